// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Bounds of an event (source: the API server's validation).
const (
	eventMessageMax = 1024
	eventObjectMax  = 200 // of the name of an object, as a part of the event's
)

// Warning is what is told about an object to those who look at its events.
type Warning struct {
	Kind            string // Pod or Service
	Namespace, Name string
	UID             string
	Reason, Message string
	// Component says who tells, Node from where.
	Component, Node string
}

// Warn makes an event. The same warning again, of this or an earlier run, makes that event a recent one.
func (c *Client) Warn(ctx context.Context, w Warning) error {
	now := metav1.Now().Rfc3339Copy() // as it is written
	h := fnv.New64a()
	for _, s := range []string{w.UID, w.Reason, w.Message, w.Component, w.Node} {
		_, _ = h.Write([]byte(s + "\x00"))
	}
	name := fmt.Sprintf("%s.%x", w.Name[:min(len(w.Name), eventObjectMax)], h.Sum64())
	events := c.Kubernetes.CoreV1().Events(w.Namespace)
	_, err := events.Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: name, Namespace: w.Namespace},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: w.Kind, Namespace: w.Namespace, Name: w.Name, UID: types.UID(w.UID)},
		Type:           corev1.EventTypeWarning, Reason: w.Reason, Message: cut(w.Message, eventMessageMax),
		Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: w.Component, Host: w.Node}, ReportingController: w.Component, ReportingInstance: w.Node,
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		patch, merr := json.Marshal(map[string]any{"lastTimestamp": now})
		if merr != nil {
			return fmt.Errorf("encode event: %w", merr)
		}
		_, err = events.Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		return fmt.Errorf("event on %s %s/%s: %w", w.Kind, w.Namespace, w.Name, err)
	}
	return nil
}

// cut shortens a text to so many bytes and says that it did.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	n := limit - len("...")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "..."
}
