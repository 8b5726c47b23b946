// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"embed"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/yaml"
)

//go:embed crds/*.yaml
var crdFiles embed.FS

// schemaVersion is raised with every change of a definition; schemaLabel carries it.
const (
	schemaVersion = "1.30.8"
	schemaLabel   = "io.cilium.k8s.crd.schema.version"
)

// definitions returns the custom resource definitions of this version.
func definitions() ([]*apiextensionsv1.CustomResourceDefinition, error) {
	entries, err := crdFiles.ReadDir("crds")
	if err != nil {
		return nil, fmt.Errorf("definitions: %w", err)
	}
	var out []*apiextensionsv1.CustomResourceDefinition
	for _, e := range entries {
		body, err := crdFiles.ReadFile("crds/" + e.Name())
		if err != nil {
			return nil, fmt.Errorf("definition %s: %w", e.Name(), err)
		}
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.UnmarshalStrict(body, crd); err != nil {
			return nil, fmt.Errorf("definition %s: %w", e.Name(), err)
		}
		crd.Labels = map[string]string{schemaLabel: schemaVersion}
		out = append(out, crd)
	}
	return out, nil
}

// older says whether version a comes before b; what is no version comes before everything.
func older(a, b string) bool {
	x, y := versionParts(a), versionParts(b)
	for i := range x {
		if x[i] != y[i] {
			return x[i] < y[i]
		}
	}
	return false
}

func versionParts(v string) (out [3]int) {
	for i, p := range strings.SplitN(strings.TrimPrefix(v, "v"), ".", 3) {
		n, err := strconv.Atoi(p)
		if err != nil {
			return [3]int{-1, -1, -1}
		}
		out[i] = n
	}
	return out
}

// registerCRDs creates the definitions, upgrades those of an older schema, and returns when the
// API server serves them all.
func registerCRDs(ctx context.Context, c apiextensions.Interface, log *slog.Logger) error {
	want, err := definitions()
	if err != nil {
		return err
	}
	api := c.ApiextensionsV1().CustomResourceDefinitions()
	for _, crd := range want {
		have, err := api.Get(ctx, crd.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			if _, err = api.Create(ctx, crd, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
				return fmt.Errorf("create definition %s: %w", crd.Name, err)
			}
			log.Info("custom resource definition created", "name", crd.Name, "schema", schemaVersion)
		case err != nil:
			return fmt.Errorf("get definition %s: %w", crd.Name, err)
		case older(have.Labels[schemaLabel], schemaVersion):
			next := have.DeepCopy()
			if next.Labels == nil {
				next.Labels = map[string]string{}
			}
			from := next.Labels[schemaLabel]
			next.Labels[schemaLabel] = schemaVersion
			next.Spec = *crd.Spec.DeepCopy()
			if _, err := api.Update(ctx, next, metav1.UpdateOptions{}); err != nil {
				return fmt.Errorf("upgrade definition %s: %w", crd.Name, err)
			}
			log.Info("custom resource definition upgraded", "name", crd.Name, "from", from, "schema", schemaVersion)
		}
	}
	for _, crd := range want {
		if err := waitEstablished(ctx, c, crd.Name); err != nil {
			return err
		}
	}
	return nil
}

func established(crd *apiextensionsv1.CustomResourceDefinition) bool {
	for _, c := range crd.Status.Conditions {
		if c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue {
			return true
		}
	}
	return false
}

func waitEstablished(ctx context.Context, c apiextensions.Interface, name string) error {
	api := c.ApiextensionsV1().CustomResourceDefinitions()
	for {
		crd, err := api.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("wait for definition %s: %w", name, err)
		}
		if established(crd) {
			return nil
		}
		w, err := api.Watch(ctx, metav1.ListOptions{
			FieldSelector:   fields.OneTermEqualSelector("metadata.name", name).String(),
			ResourceVersion: crd.ResourceVersion,
		})
		if err != nil {
			return fmt.Errorf("wait for definition %s: %w", name, err)
		}
		done, ended := false, false
		for !done && !ended {
			select {
			case <-ctx.Done():
				w.Stop()
				return fmt.Errorf("wait for definition %s: %w", name, ctx.Err())
			case ev, ok := <-w.ResultChan():
				got, is := ev.Object.(*apiextensionsv1.CustomResourceDefinition)
				done, ended = is && established(got), !ok || ev.Type == watch.Error
			}
		}
		w.Stop()
		if ended { // a server that ends watches at once is not asked all the time
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
}
