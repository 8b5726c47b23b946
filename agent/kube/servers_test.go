// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lash.internal/lash/agent/kube/apiserver"
	"lash.internal/lash/agent/kube/fake"
	"lash.internal/lash/agent/state"
)

func apiServerSlice(port int32, addresses ...string) *discoveryv1.EndpointSlice {
	name := "https"
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

// TestAPIServersAreFollowed changes the slice that API servers write: the client knows what it says, and
// what was given.
func TestAPIServersAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, tables := fake.New(apiServerSlice(6443, "192.0.2.1", "192.0.2.2")), state.NewTables()
		set, err := apiserver.New(apiserver.Options{Given: []string{"api.example.org:443"}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		c := &Client{Kubernetes: api.Kubernetes, Dynamic: api.Dynamic, Servers: set}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{}, 2)
		mirror, chain := APIServerMirror(c, tables), FollowServers(c, tables, slog.New(slog.DiscardHandler))
		go func() { mirror(ctx); ended <- struct{}{} }()
		go func() { chain.Run(ctx); ended <- struct{}{} }()
		want := func(addresses ...string) {
			t.Helper()
			synctest.Wait()
			got, _ := set.Servers()
			slices.Sort(got)
			if slices.Sort(addresses); !slices.Equal(got, addresses) {
				t.Errorf("known are %q, want %q", got, addresses)
			}
		}
		want("192.0.2.1:6443", "192.0.2.2:6443", "api.example.org:443")
		slices := api.Kubernetes.DiscoveryV1().EndpointSlices("default")
		for _, s := range []*discoveryv1.EndpointSlice{apiServerSlice(6443, "192.0.2.2", "192.0.2.3"), apiServerSlice(6443)} {
			if _, err := slices.Update(ctx, s, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			if len(s.Endpoints) > 0 {
				want("192.0.2.2:6443", "192.0.2.3:6443", "api.example.org:443")
			}
		}
		synctest.Wait()
		if all, _ := set.Servers(); len(all) != 2 {
			t.Errorf("with no endpoint known are %q, want the last one to stay", all)
		}
		cancel()
		<-ended
		<-ended
	})
}

func TestTryOrder(t *testing.T) {
	servers := []string{"192.0.2.1:6443", "192.0.2.2:6443", "192.0.2.3:6443"}
	first := map[string]int{}
	for _, node := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		got := tryOrder("192.0.2.1:6443", servers, node)
		first[got[0]]++
		if slices.Sort(got); !slices.Equal(got, servers) {
			t.Errorf("node %s tries %q", node, got)
		}
		if got := tryOrder("api.example.org:443", servers, node); got[0] != "api.example.org:443" || len(got) != 4 {
			t.Errorf("node %s tries %q", node, got)
		}
	}
	if len(first) != 3 {
		t.Errorf("nodes begin with %v", first)
	}
	if got := tryOrder("192.0.2.1:6443", nil, "a"); !slices.Equal(got, servers[:1]) {
		t.Errorf("got %q", got)
	}
}
