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
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// maxRelease bounds the unpacked size of a release, in bytes.
const maxRelease = 64 << 20

// releaseVersion reads chart and app version of the newest revision of a Helm release; both are
// empty when there is no such release.
func releaseVersion(ctx context.Context, c kubernetes.Interface, namespace, name string) (chart, app string, err error) {
	l, err := c.CoreV1().Secrets(namespace).List(ctx, metav1.ListOptions{LabelSelector: "owner=helm,name=" + name})
	if err != nil {
		return "", "", err
	}
	newest, data := -1, []byte(nil)
	for _, s := range l.Items {
		if v, err := strconv.Atoi(s.Labels["version"]); err == nil && v > newest {
			newest, data = v, s.Data["release"]
		}
	}
	if newest < 0 {
		return "", "", nil
	}
	return decodeRelease(data)
}

// decodeRelease reads the value that Helm stores: gzipped JSON in base64.
func decodeRelease(data []byte) (chart, app string, err error) {
	raw, err := base64.StdEncoding.DecodeString(string(data))
	if err != nil {
		return "", "", fmt.Errorf("decode release: %w", err)
	}
	if bytes.HasPrefix(raw, []byte{0x1f, 0x8b, 0x08}) {
		z, err := gzip.NewReader(bytes.NewReader(raw))
		if err != nil {
			return "", "", fmt.Errorf("unpack release: %w", err)
		}
		if raw, err = io.ReadAll(io.LimitReader(z, maxRelease)); err != nil {
			return "", "", fmt.Errorf("unpack release: %w", err)
		}
	}
	var r struct {
		Chart struct {
			Metadata struct {
				Version    string `json:"version"`
				AppVersion string `json:"appVersion"`
			} `json:"metadata"`
		} `json:"chart"`
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return "", "", fmt.Errorf("parse release: %w", err)
	}
	return r.Chart.Metadata.Version, r.Chart.Metadata.AppVersion, nil
}
