// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"lash.internal/lash/agent/kube/fake"
)

// TestWarn: the same warning is one event, another is another, and long ones are still events.
func TestWarn(t *testing.T) {
	api := fake.New()
	c := &Client{Kubernetes: api.Kubernetes, Dynamic: api.Dynamic}
	w := Warning{Kind: "Pod", Namespace: "default", Name: "web", UID: "u1", Reason: "HostPortNotOpen", Message: "taken", Component: "cilium-agent", Node: "n1"}
	say := func(w Warning, want int) {
		t.Helper()
		if err := c.Warn(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		all, err := api.Kubernetes.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
		if err != nil || len(all.Items) != want {
			t.Fatalf("%d events, want %d, %v", len(all.Items), want, err)
		}
		for _, e := range all.Items {
			if bad := validation.IsDNS1123Subdomain(e.Name); len(bad) > 0 || len(e.Message) > 1024 {
				t.Errorf("the API server would not take %s with %d bytes: %v", e.Name, len(e.Message), bad)
			}
			if e.InvolvedObject.Kind != "Pod" || e.Type != corev1.EventTypeWarning || e.Source.Host != "n1" {
				t.Errorf("event %+v", e)
			}
		}
	}
	say(w, 1)
	first, err := api.Kubernetes.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	say(w, 1)
	again, err := api.Kubernetes.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
	if err != nil || again.Items[0].LastTimestamp.Before(&first.Items[0].LastTimestamp) {
		t.Errorf("the event is not a recent one: %v", err)
	}
	w.UID = "u2" // another pod of the name
	say(w, 2)
	w.Message = strings.Repeat("ö", 2000)
	say(w, 3)
	w.Name = strings.Repeat("x", 253)
	say(w, 4)
}
