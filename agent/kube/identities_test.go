// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lash.internal/lash/agent/kube/ciliumio"
	"lash.internal/lash/agent/kube/fake"
	"lash.internal/lash/agent/state"
)

func TestIdentityObjects(t *testing.T) {
	api := fake.New()
	ids := (&Client{Kubernetes: api.Kubernetes, Dynamic: api.Dynamic}).Identities()
	set := []string{"k8s:app=web", "k8s:io.kubernetes.pod.namespace=default", "reserved:test"}
	if err := ids.Create(t.Context(), 300, set); err != nil {
		t.Fatal(err)
	}
	if err := ids.Create(t.Context(), 300, []string{"k8s:app=other"}); !errors.Is(err, ErrTaken) {
		t.Errorf("a number in use: %v", err)
	}
	if err := ids.Create(t.Context(), 301, append(set, "k8s:more=x")); err != nil {
		t.Fatal(err)
	}
	got, err := ids.Find(t.Context(), set)
	if err != nil || !slices.Equal(got, []state.IdentityID{300}) {
		t.Errorf("the numbers of exactly this set: %v, %v", got, err)
	}
	back, ok, err := ids.Get(t.Context(), 300)
	if err != nil || !ok || !slices.Equal(back, set) {
		t.Errorf("get: %v, %v, %v", back, ok, err)
	}
	if _, ok, err := ids.Get(t.Context(), 999); ok || err != nil {
		t.Errorf("a free number: %v, %v", ok, err)
	}
	u, err := api.Dynamic.Resource(ciliumio.Identities).Get(t.Context(), "300", metav1.GetOptions{})
	if err != nil || u.GetLabels()["app"] != "web" || len(u.GetLabels()) != 2 || u.GetKind() != "CiliumIdentity" {
		t.Errorf("object %+v, %v", u, err)
	}
	api.Fail("*", "ciliumidentities", "", fake.Forbidden("ciliumidentities"), -1)
	for what, err := range map[string]error{
		"create CiliumIdentity 302": ids.Create(t.Context(), 302, set),
		"get CiliumIdentity 300":    func() error { _, _, err := ids.Get(t.Context(), 300); return err }(),
		"list CiliumIdentities of ": func() error { _, err := ids.Find(t.Context(), set); return err }(),
	} {
		if err == nil || errors.Is(err, ErrTaken) || !strings.HasPrefix(err.Error(), what) || !strings.Contains(err.Error(), "no role allows it") {
			t.Errorf("without permission: %v, want %s...", err, what)
		}
	}
}

func TestObjectsThatTheWatchHasNotBrought(t *testing.T) {
	api := fake.New(
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", Labels: map[string]string{"a": "b"}}},
	)
	c := &Client{Kubernetes: api.Kubernetes, Dynamic: api.Dynamic}
	if p, ok, err := c.Pod(t.Context(), state.Name{Namespace: "default", Name: "web"}); !ok || err != nil || p.UID != "u" {
		t.Errorf("pod: %+v, %v, %v", p, ok, err)
	}
	if n, ok, err := c.Namespace(t.Context(), "default"); !ok || err != nil || n.Labels["a"] != "b" {
		t.Errorf("namespace: %+v, %v, %v", n, ok, err)
	}
	if _, ok, err := c.Pod(t.Context(), state.Name{Namespace: "default", Name: "none"}); ok || err != nil {
		t.Errorf("no such pod: %v, %v", ok, err)
	}
	if _, ok, err := c.Namespace(t.Context(), "none"); ok || err != nil {
		t.Errorf("no such namespace: %v, %v", ok, err)
	}
	api.Fail("get", "pods", "", fake.Forbidden("pods"), 1)
	if _, _, err := c.Pod(t.Context(), state.Name{Namespace: "default", Name: "web"}); err == nil || !strings.Contains(err.Error(), "get pod default/web: ") {
		t.Errorf("without permission: %v", err)
	}
}
