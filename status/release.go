// SPDX-License-Identifier: Apache-2.0

package status

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// maxRelease bounds the unpacked size of a release, in bytes.
const maxRelease = 64 << 20

// Release is one revision of a Helm release, as far as it is of interest without Helm.
type Release struct {
	Revision   int            `json:"revision"`
	Status     string         `json:"status"`
	Chart      string         `json:"chart"` // version
	AppVersion string         `json:"app_version"`
	Values     map[string]any `json:"values"` // the user's
}

// Releases reads the revisions of a Helm release that are kept, oldest first.
func Releases(ctx context.Context, c kubernetes.Interface, namespace, name string) ([]Release, error) {
	all, err := releaseSecrets(ctx, c, namespace, name)
	if err != nil {
		return nil, err
	}
	out := make([]Release, 0, len(all))
	for i := range all {
		r, err := decodeRelease(all[i].Data["release"])
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", all[i].Name, err)
		}
		r.Revision = revisionOf(all[i])
		out = append(out, r)
	}
	return out, nil
}

// releaseSecrets are where Helm keeps the revisions of a release, oldest first.
func releaseSecrets(ctx context.Context, c kubernetes.Interface, namespace, name string) ([]corev1.Secret, error) {
	l, err := c.CoreV1().Secrets(namespace).List(ctx, metav1.ListOptions{LabelSelector: "owner=helm,name=" + name})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(l.Items, func(a, b corev1.Secret) int { return revisionOf(a) - revisionOf(b) })
	return l.Items, nil
}

func revisionOf(s corev1.Secret) int {
	v, err := strconv.Atoi(s.Labels["version"])
	if err != nil {
		return -1
	}
	return v
}

// releaseVersion reads chart and app version of the newest revision of a Helm release; both are
// empty when there is no such release.
func releaseVersion(ctx context.Context, c kubernetes.Interface, namespace, name string) (chart, app string, err error) {
	all, err := releaseSecrets(ctx, c, namespace, name)
	if err != nil || len(all) == 0 {
		return "", "", err
	}
	r, err := decodeRelease(all[len(all)-1].Data["release"])
	return r.Chart, r.AppVersion, err
}

// decodeRelease reads the value that Helm stores: gzipped JSON in base64.
func decodeRelease(data []byte) (Release, error) {
	raw, err := base64.StdEncoding.DecodeString(string(data))
	if err != nil {
		return Release{}, fmt.Errorf("decode release: %w", err)
	}
	if bytes.HasPrefix(raw, []byte{0x1f, 0x8b, 0x08}) {
		z, err := gzip.NewReader(bytes.NewReader(raw))
		if err != nil {
			return Release{}, fmt.Errorf("unpack release: %w", err)
		}
		if raw, err = io.ReadAll(io.LimitReader(z, maxRelease)); err != nil {
			return Release{}, fmt.Errorf("unpack release: %w", err)
		}
	}
	var r struct {
		Chart struct {
			Metadata struct {
				Version    string `json:"version"`
				AppVersion string `json:"appVersion"`
			} `json:"metadata"`
		} `json:"chart"`
		Info struct {
			Status string `json:"status"`
		} `json:"info"`
		Config map[string]any `json:"config"`
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return Release{}, fmt.Errorf("parse release: %w", err)
	}
	return Release{Status: r.Info.Status, Chart: r.Chart.Metadata.Version, AppVersion: r.Chart.Metadata.AppVersion, Values: r.Config}, nil
}
