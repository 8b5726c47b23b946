// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// TestBalancer takes a Service through its life: an address and routes to all nodes, with policy Local only
// to nodes that say that they have endpoints, and nothing when it is of another type.
func TestBalancer(t *testing.T) {
	ctx := t.Context()
	var ready atomic.Bool
	health := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer health.Close()
	port := netip.MustParseAddrPort(strings.TrimPrefix(health.URL, "http://")).Port()
	node := corev1.Node{Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
		{Type: corev1.NodeHostName, Address: "n"}, {Type: corev1.NodeInternalIP, Address: "127.0.0.1"}, {Type: corev1.NodeInternalIP, Address: "::1"},
	}}}
	other := corev1.Node{Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.2"}}}}
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "ns"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			HealthCheckNodePort: int32(port),
		},
	}
	var lines []string
	b := &balancer{
		client: fake.NewClientset(svc), nodes: []corev1.Node{node, other}, given: map[string][]netip.Addr{}, routes: map[netip.Addr]string{},
		checks: health.Client(),
		route: func(_ context.Context, args ...string) error {
			lines = append(lines, strings.Join(args, " "))
			return nil
		},
	}
	api := b.client.CoreV1().Services("ns")
	// step serves the Service until nothing changes, and returns what was done to the routes.
	step := func(change func(*corev1.Service)) (*corev1.Service, []string) {
		t.Helper()
		lines = nil
		now, err := api.Get(ctx, "a", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		change(now)
		if now, err = api.Update(ctx, now, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := b.serve(ctx, now); err != nil {
				t.Fatal(err)
			}
			if now, err = api.Get(ctx, "a", metav1.GetOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		return now, lines
	}
	want := func(what string, got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: routes %q, want %q", what, got, want)
		}
	}
	now, routes := step(func(*corev1.Service) {})
	if in := now.Status.LoadBalancer.Ingress; len(in) != 2 || in[0].IP != "198.51.100.1" || in[1].IP != "2001:db8:2::1" || !slices.Contains(now.Finalizers, finalizer) {
		t.Errorf("created: %+v, finalizers %q", in, now.Finalizers)
	}
	want("created", routes,
		"-4 route replace 198.51.100.1/32 src 192.0.2.1 nexthop via 127.0.0.1 nexthop via 127.0.0.2",
		"-6 route replace 2001:db8:2::1/128 src 2001:db8:1::1 nexthop via ::1")
	_, routes = step(func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP })
	want("clients stay", routes, "-4 route replace 198.51.100.1/32 src 192.0.2.1 nexthop via 127.0.0.1")
	_, routes = step(func(s *corev1.Service) {
		s.Spec.IPFamilies = s.Spec.IPFamilies[:1]
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	})
	want("no local endpoint", routes[:2], "-4 route flush 198.51.100.1/32", "-4 route replace unreachable 198.51.100.1/32")
	ready.Store(true)
	_, routes = step(func(*corev1.Service) {})
	want("a local endpoint", routes[:2], "-4 route flush 198.51.100.1/32", "-4 route replace 198.51.100.1/32 src 192.0.2.1 nexthop via 127.0.0.1")
	now, routes = step(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
	if len(now.Status.LoadBalancer.Ingress) > 0 || len(now.Finalizers) > 0 || len(b.given) > 0 {
		t.Errorf("of another type: %+v %q %v", now.Status.LoadBalancer, now.Finalizers, b.given)
	}
	want("of another type", routes[:2], "-4 route flush 198.51.100.1/32", "-4 route replace unreachable 198.51.100.1/32")
	class := "other"
	now, routes = step(func(s *corev1.Service) {
		s.Spec.Type, s.Spec.LoadBalancerClass = corev1.ServiceTypeLoadBalancer, &class
	})
	if len(now.Status.LoadBalancer.Ingress) > 0 || len(routes) > 0 {
		t.Errorf("of another class: %+v %q", now.Status.LoadBalancer, routes)
	}
}
