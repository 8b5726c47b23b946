// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"lash.internal/lash/agent/config"
	"lash.internal/lash/install/values"
)

// ConfigMap is the object that agents and operators read their options from.
const ConfigMap = "cilium-config"

// Mistakes in the change of an option; test with errors.Is.
var (
	ErrUnknownOption = errors.New("unknown option")
	ErrBadOption     = errors.New("the agents would not accept it")
)

// Settings is the live configuration of agents and operators. It is the object in the cluster: the
// next upgrade sets what the chart has a value for.
type Settings struct {
	Cluster *Cluster
	Say     func(format string, args ...any)
}

// All returns every option that is set.
func (s Settings) All(ctx context.Context) (map[string]string, error) {
	cm, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	return cm.Data, nil
}

func (s Settings) read(ctx context.Context) (*corev1.ConfigMap, error) {
	c := s.Cluster
	cm, err := c.Clientset.CoreV1().ConfigMaps(c.Namespace).Get(ctx, ConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("%w: there is no ConfigMap %s in namespace %s of context %q; use `lash install`", ErrNotInstalled, ConfigMap, c.Namespace, c.Context)
	case err != nil:
		return nil, fmt.Errorf("reading ConfigMap %s: %w", ConfigMap, err)
	case !owned(cm.ObjectMeta):
		return nil, fmt.Errorf("%w: ConfigMap %s in namespace %s belongs to no release of Lash", ErrForeign, ConfigMap, c.Namespace)
	}
	if cm.Data == nil {
		cm.Data = map[string]string{}
	}
	return cm, nil
}

// Set gives an option a value. changed is false when it has it already; nothing is written then.
// The whole configuration is judged as the agents judge it before anything is written.
func (s Settings) Set(ctx context.Context, key, value string) (changed bool, err error) {
	if !isOption(key) {
		return false, unknownOption(key, optionNames())
	}
	cm, err := s.read(ctx)
	if err != nil {
		return false, err
	}
	if have, ok := cm.Data[key]; ok && have == value {
		s.Say("ℹ️  %s has %s=%s already", ConfigMap, key, value)
		return false, nil
	}
	next := maps.Clone(cm.Data)
	next[key] = value
	if err := accepts(cm.Data, next); err != nil {
		return false, err
	}
	s.Say("✨ Patching ConfigMap %s with %s=%s...", ConfigMap, key, value)
	if err := s.patch(ctx, cm, key, value); err != nil {
		return false, err
	}
	return true, s.overrides(ctx, key)
}

// Delete takes an option out of the ConfigMap, so that its default counts again.
func (s Settings) Delete(ctx context.Context, key string) (changed bool, err error) {
	cm, err := s.read(ctx)
	if err != nil {
		return false, err
	}
	if _, ok := cm.Data[key]; !ok {
		if isOption(key) {
			s.Say("ℹ️  %s does not set %s; its default is %q", ConfigMap, key, defaultOf(key))
			return false, nil
		}
		return false, unknownOption(key, append(optionNames(), slices.Collect(maps.Keys(cm.Data))...))
	}
	next := maps.Clone(cm.Data)
	delete(next, key)
	if err := accepts(cm.Data, next); err != nil {
		return false, err
	}
	s.Say("✨ Removing key %s from ConfigMap %s...", key, ConfigMap)
	if err := s.patch(ctx, cm, key, nil); err != nil {
		return false, err
	}
	if isOption(key) {
		s.Say("ℹ️  Its default counts again: %q", defaultOf(key))
	}
	return true, nil
}

// accepts judges a new configuration. Mistakes that were there before are no reason to refuse a
// change that has nothing to do with them.
func accepts(before, after map[string]string) error {
	err := config.Check(after)
	if err == nil {
		return nil
	}
	if old := config.Check(before); old != nil && old.Error() == err.Error() {
		return nil
	}
	return fmt.Errorf("%w, nothing was changed: %w", ErrBadOption, err)
}

// patch writes one key, or removes it for a nil value, unless somebody else has written meanwhile.
func (s Settings) patch(ctx context.Context, cm *corev1.ConfigMap, key string, value any) error {
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": cm.ResourceVersion},
		"data":     map[string]any{key: value},
	})
	if err != nil {
		return fmt.Errorf("patching ConfigMap %s: %w", ConfigMap, err)
	}
	_, err = s.Cluster.Clientset.CoreV1().ConfigMaps(cm.Namespace).Patch(ctx, ConfigMap, types.MergePatchType, body, metav1.PatchOptions{FieldManager: "lash"})
	if apierrors.IsConflict(err) {
		return fmt.Errorf("ConfigMap %s was changed by somebody else at the same moment, look at it with `lash config view` and try again: %w", ConfigMap, err)
	}
	if err != nil {
		return fmt.Errorf("patching ConfigMap %s: %w", ConfigMap, err)
	}
	return nil
}

// overrides says where the pods themselves set the option, because that wins over the ConfigMap.
func (s Settings) overrides(ctx context.Context, key string) error {
	c := s.Cluster
	warn := func(kind, name string, t *corev1.PodTemplateSpec) {
		for _, ctr := range t.Spec.Containers {
			for _, e := range ctr.Env {
				if e.Name == config.Env(key) {
					s.Say("⚠️  %s %s sets %s=%s, which wins over the ConfigMap: change it with `lash upgrade` (extraEnv)", kind, name, e.Name, e.Value)
				}
			}
			for _, a := range ctr.Args {
				if a == "--"+key || strings.HasPrefix(a, "--"+key+"=") {
					s.Say("⚠️  %s %s has the argument %s, which wins over the ConfigMap: change it with `lash upgrade` (extraArgs)", kind, name, a)
				}
			}
		}
	}
	ds, err := c.Clientset.AppsV1().DaemonSets(c.Namespace).Get(ctx, agentDaemonSet, metav1.GetOptions{})
	if err == nil {
		warn("DaemonSet", ds.Name, &ds.Spec.Template)
	} else if !apierrors.IsNotFound(err) {
		return fmt.Errorf("reading DaemonSet %s: %w", agentDaemonSet, err)
	}
	dep, err := c.Clientset.AppsV1().Deployments(c.Namespace).Get(ctx, operatorDeployment, metav1.GetOptions{})
	if err == nil {
		warn("Deployment", dep.Name, &dep.Spec.Template)
	} else if !apierrors.IsNotFound(err) {
		return fmt.Errorf("reading Deployment %s: %w", operatorDeployment, err)
	}
	return nil
}

func optionNames() []string {
	var out []string
	for _, o := range config.Table() {
		out = append(out, o.Key)
	}
	return out
}

func isOption(key string) bool { return slices.Contains(optionNames(), key) }

func defaultOf(key string) string {
	for _, o := range config.Table() {
		if o.Key == key {
			return o.Default
		}
	}
	return ""
}

func unknownOption(key string, known []string) error {
	if n := values.NearestOf(key, known); n != "" {
		return fmt.Errorf("%w %s: did you mean %s?", ErrUnknownOption, key, n)
	}
	return fmt.Errorf("%w %s: `lash config view` lists those that are set", ErrUnknownOption, key)
}
