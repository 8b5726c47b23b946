// SPDX-License-Identifier: Apache-2.0

package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"lash.internal/lash/agent/api"
)

func ptr[T any](v T) *T { return &v }

// web is a Service of every kind, with two ready backends on two nodes and one that is not.
func web(change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.20", ClusterIPs: []string{"10.96.0.20", "fd00:10::20"},
			ExternalIPs: []string{"198.51.100.9"},
			Ports:       []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, NodePort: 30080}},
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{
			{IP: "203.0.113.1"}, {IP: "203.0.113.2", IPMode: ptr(corev1.LoadBalancerIPModeProxy)}, {Hostname: "lb.example.com"},
		}}},
	}
	if change != nil {
		change(s)
	}
	return s
}

func webSlice(change func(*discoveryv1.EndpointSlice)) *discoveryv1.EndpointSlice {
	ep := func(addr, node string, ready bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
	}
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr("http"), Protocol: ptr(corev1.ProtocolTCP), Port: ptr(int32(8080))}},
		Endpoints:   []discoveryv1.Endpoint{ep("10.244.1.7", "node1", true), ep("10.244.2.9", "node2", true), ep("10.244.2.10", "node2", false)},
	}
	if change != nil {
		change(s)
	}
	return s
}

func config(data map[string]string) *corev1.ConfigMap {
	all := map[string]string{"enable-ipv4": "true", "enable-ipv6": "false", "kube-proxy-replacement": "true"}
	for k, v := range data {
		all[k] = v
	}
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "cilium-config"}, Data: all}
}

const both = "10.244.1.7:8080 10.244.2.9:8080"

// front is a row of an agent's list; a backend may say its state: "10.0.0.1:80=terminating".
func front(kind, at, scope, name, backends string) api.Service {
	a := netip.MustParseAddrPort(at)
	ns, n, _ := strings.Cut(name, "/")
	s := api.Service{Spec: api.ServiceSpec{
		Frontend: api.FrontendAddress{IP: a.Addr().String(), Port: a.Port(), Protocol: "TCP", Scope: scope},
		Flags:    api.ServiceSpecFlags{Type: kind, Namespace: ns, Name: n},
	}}
	for _, b := range strings.Fields(backends) {
		at, state, _ := strings.Cut(b, "=")
		p := netip.MustParseAddrPort(at)
		if state == "" {
			state = "active"
		}
		s.Spec.Backends = append(s.Spec.Backends, api.BackendAddress{IP: p.Addr().String(), Port: p.Port(), State: state})
	}
	return s
}

// programmed is what an agent lists when all is well.
func programmed() []api.Service {
	return []api.Service{
		front("ClusterIP", "10.96.0.20:80", "external", "shop/web", both),
		front("NodePort", "0.0.0.0:30080", "external", "shop/web", both),
		front("NodePort", "192.0.2.1:30080", "external", "shop/web", both),
		front("ExternalIPs", "198.51.100.9:80", "external", "shop/web", both),
		front("LoadBalancer", "203.0.113.1:80", "external", "shop/web", both),
		front("HostPort", "0.0.0.0:4000", "external", "shop/echo/host-port/4000", "10.244.1.3:80"),
	}
}

// cluster answers for two agents. look is called for each list that agent n is asked for.
func cluster(look func(n int, list []api.Service) ([]api.Service, error), objs ...runtime.Object) *Collector {
	objs = append(objs, podOf(Agent, 1), podOf(Agent, 2))
	return &Collector{
		Client: fake.NewClientset(objs...), Namespace: "kube-system",
		Exec: func(_ context.Context, _, pod, _ string, command ...string) ([]byte, []byte, error) {
			if !strings.HasPrefix(strings.Join(command, " "), "cilium service list -o json") {
				return nil, []byte("unknown command"), errors.New("exit 1")
			}
			var n int
			if _, err := fmt.Sscanf(pod, Agent+"-%d", &n); err != nil {
				return nil, nil, err
			}
			list, err := programmed(), error(nil)
			if look != nil {
				list, err = look(n, list)
			}
			if err != nil {
				return nil, []byte("Error: no socket"), err
			}
			b, err := json.Marshal(list)
			return b, nil, err
		},
	}
}

// text is a report, a line each row.
func text(r *ServiceReport) string {
	var b strings.Builder
	for _, x := range r.Rows {
		fmt.Fprintf(&b, "%s/%s %s %s %s ready=%d", x.Namespace, x.Name, x.Port, x.Kind, strings.Join(x.Frontends, ","), x.Ready)
		if x.Note != "" {
			b.WriteString(" (" + x.Note + ")")
		}
		for i, d := range x.Differences {
			b.WriteString([]string{" | ", "; "}[min(i, 1)] + d.String())
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestServicesThatEveryNodeHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, err := cluster(nil, web(nil), webSlice(nil), config(nil)).Services(t.Context(), ServiceQuery{Namespace: "shop"})
		if err != nil {
			t.Fatal(err)
		}
		want := "shop/web http ClusterIP 10.96.0.20:80/TCP ready=2\n" +
			"shop/web http NodePort 0.0.0.0:30080/TCP ready=2\n" +
			"shop/web http ExternalIPs 198.51.100.9:80/TCP ready=2\n" +
			"shop/web http LoadBalancer 203.0.113.1:80/TCP ready=2\n"
		if got := text(r); got != want || !r.OK() || !slices.Equal(r.Nodes, []string{"node1", "node2"}) {
			t.Errorf("got:\n%swant:\n%s%+v", got, want, r)
		}
	})
}

// edit changes the rows of one kind, or of all kinds, on agent 2.
func edit(kind string, change func(*api.Service)) func(int, []api.Service) ([]api.Service, error) {
	return func(n int, list []api.Service) ([]api.Service, error) {
		for i := range list {
			if n == 2 && (kind == "" || list[i].Spec.Flags.Type == kind) && list[i].Spec.Flags.Type != "HostPort" {
				change(&list[i])
			}
		}
		return list, nil
	}
}

func backends(in string) func(*api.Service) {
	return func(s *api.Service) { s.Spec.Backends = front("", "0.0.0.0:1", "", "", in).Spec.Backends }
}

func drop(kind string, nodes ...int) func(int, []api.Service) ([]api.Service, error) {
	return func(n int, list []api.Service) ([]api.Service, error) {
		if slices.Contains(nodes, n) {
			list = slices.DeleteFunc(list, func(s api.Service) bool { return s.Spec.Flags.Type == kind })
		}
		return list, nil
	}
}

func TestDifferencesAreMarkedByNode(t *testing.T) {
	local := func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }
	onlyClusterIP := func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalIPs, s.Spec.Ports[0].NodePort, s.Status = corev1.ServiceTypeClusterIP, nil, 0, corev1.ServiceStatus{}
	}
	for _, c := range []struct {
		name  string
		look  func(int, []api.Service) ([]api.Service, error)
		svc   func(*corev1.Service)
		slice func(*discoveryv1.EndpointSlice)
		want  []string // differences; none: all is well
	}{
		{name: "a frontend is missing on one node", look: drop("LoadBalancer", 2), want: []string{"ready=2 | missing on node2"}},
		{name: "a frontend is missing on both", look: drop("NodePort", 1, 2), want: []string{"ready=2 | missing on node1, node2"}},
		{
			name: "a backend is missing", look: edit("ClusterIP", backends("10.244.1.7:8080")),
			want: []string{"ready=2 | 1 of 2 backends on node2"},
		},
		{
			name: "a backend is stale", look: edit("ClusterIP", backends(both+" 10.244.9.9:8080")),
			want: []string{"| stale backend 10.244.9.9:8080 on node2"},
		},
		{name: "what drains is not stale", look: edit("ClusterIP", backends(both+" 10.244.9.9:8080=terminating"))},
		{
			name: "a backend that gets nothing new is not there", look: edit("ClusterIP", backends("10.244.1.7:8080 10.244.2.9:8080=terminating")),
			want: []string{"ready=2 | 1 of 2 backends on node2"},
		},
		{
			name: "another Service has the frontend", look: edit("ExternalIPs", func(s *api.Service) { s.Spec.Flags.Name = "old" }),
			want: []string{"| that of shop/old on node2\n", "| 198.51.100.9:80/TCP: stale on node2"},
		},
		{
			name: "a frontend is stale", svc: func(s *corev1.Service) { s.Status = corev1.ServiceStatus{} },
			want: []string{"| 203.0.113.1:80/TCP: stale on node1, node2"},
		},
		{
			name: "with hints a part is enough", look: edit("", backends("10.244.2.9:8080")),
			slice: func(s *discoveryv1.EndpointSlice) {
				for i := range s.Endpoints {
					s.Endpoints[i].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "a"}}}
				}
			},
		},
		{
			name: "with hints none is not", look: edit("ClusterIP", backends("")), svc: onlyClusterIP,
			slice: func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Hints = &discoveryv1.EndpointHints{} },
			want:  []string{"| 0 of 2 backends on node2"},
		},
		{
			name: "policy Local wants a node's own for those outside", svc: local,
			look: func(n int, list []api.Service) ([]api.Service, error) {
				var out []api.Service
				for _, s := range list {
					if s.Spec.Flags.Type != "ClusterIP" && s.Spec.Flags.Type != "HostPort" {
						inside := s
						inside.Spec.Frontend.Scope = "internal"
						out = append(out, inside)
						backends([]string{"", "10.244.1.7:8080", "10.244.2.9:8080"}[n])(&s)
					}
					out = append(out, s)
				}
				return out, nil
			},
		},
		{
			name: "each kind of callers has its own", svc: local, want: []string{"| 0 of 1 backends for callers outside on node2; 1 of 2 backends for callers inside on node2"},
			look: func(n int, list []api.Service) ([]api.Service, error) {
				var out []api.Service
				for _, s := range list {
					if s.Spec.Flags.Type != "ClusterIP" && s.Spec.Flags.Type != "HostPort" {
						inside := s
						inside.Spec.Frontend.Scope = "internal"
						if backends("10.244.1.7:8080")(&s); n == 2 {
							backends("10.244.1.7:8080")(&inside)
							backends("")(&s)
						}
						out = append(out, inside)
					}
					out = append(out, s)
				}
				return out, nil
			},
		},
		{
			name: "policy Local that is not followed", svc: local, want: []string{"| stale backend 10.244.1.7:8080 on node2"},
		},
		{
			name: "when none is ready, those that serve while they end stand in", look: edit("ClusterIP", backends("10.244.2.9:8080")), svc: onlyClusterIP,
			slice: func(s *discoveryv1.EndpointSlice) {
				s.Endpoints = s.Endpoints[1:2]
				s.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(true), Terminating: ptr(true)}
			},
			want: []string{"| stale backend 10.244.1.7:8080 on node1"},
		},
		{
			name: "those that are not ready count if the Service says so", svc: func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true },
			want: []string{"ready=3 | 2 of 3 backends on node1, node2"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, err := cluster(c.look, web(c.svc), webSlice(c.slice), config(nil)).Services(t.Context(), ServiceQuery{Namespace: "shop"})
				if err != nil {
					t.Fatal(err)
				}
				got := text(r)
				for _, w := range c.want {
					if !strings.Contains(got, w) {
						t.Errorf("no %q in:\n%s", w, got)
					}
				}
				if r.OK() != (len(c.want) == 0) {
					t.Errorf("ok is %t:\n%s", r.OK(), got)
				}
			})
		})
	}
}

func TestFamiliesOfTheClusterAreExpected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, err := cluster(nil, web(nil), webSlice(nil), config(map[string]string{"enable-ipv6": "true"})).Services(t.Context(), ServiceQuery{Namespace: "shop", Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		got := text(r)
		for _, w := range []string{
			"ClusterIP 10.96.0.20:80/TCP,[fd00:10::20]:80/TCP ready=2 | [fd00:10::20]:80/TCP: missing on node1, node2\n",
			"NodePort 0.0.0.0:30080/TCP,[::]:30080/TCP ready=2 | [::]:30080/TCP: missing on node1, node2\n",
		} {
			if !strings.Contains(got, w) {
				t.Errorf("no %sin:\n%s", w, got)
			}
		}
	})
}

// TestADifferenceHasToStay looks again before it says anything.
func TestADifferenceHasToStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var looks atomic.Int32
		c := cluster(func(n int, list []api.Service) ([]api.Service, error) {
			if looks.Add(1) <= 4 { // two looks at two agents
				return nil, nil
			}
			return list, nil
		}, web(nil), webSlice(nil), config(nil))
		r, err := c.Services(t.Context(), ServiceQuery{Namespace: "shop"})
		if err != nil || !r.OK() || looks.Load() != 6 {
			t.Errorf("after %d answers: %v\n%s", looks.Load(), err, text(r))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		var looks atomic.Int32
		c := cluster(func(n int, list []api.Service) ([]api.Service, error) {
			// Something is always on its way, and always something else.
			return edit("ClusterIP", backends(fmt.Sprintf("%s 10.244.9.%d:8080", both, looks.Add(1))))(n, list)
		}, web(nil), webSlice(nil), config(nil))
		if r, err := c.Services(t.Context(), ServiceQuery{Namespace: "shop"}); err != nil || !r.OK() {
			t.Errorf("%v\n%s", err, text(r))
		}
	})
}

func TestAgentsThatDoNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pending := podOf(Agent, 3)
		pending.Status = corev1.PodStatus{Phase: corev1.PodPending}
		c := cluster(func(n int, list []api.Service) ([]api.Service, error) {
			if n == 2 {
				return nil, errors.New("exit 1")
			}
			return list, nil
		}, web(nil), webSlice(nil), config(nil), pending)
		r, err := c.Services(t.Context(), ServiceQuery{Namespace: "shop"})
		if err != nil {
			t.Fatal(err)
		}
		if r.OK() || !strings.Contains(r.Silent["node2"], "exit 1: Error: no socket") || !strings.Contains(r.Silent["node3"], "Pending") || !slices.Equal(r.Nodes, []string{"node1"}) {
			t.Errorf("nodes %v, silent %v", r.Nodes, r.Silent)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32 // one that comes late, with a difference
		c := cluster(func(n int, list []api.Service) ([]api.Service, error) {
			if n == 2 && asked.Add(1) == 1 {
				return nil, errors.New("exit 1")
			}
			return drop("NodePort", 2)(n, list)
		}, web(nil), webSlice(nil), config(nil))
		r, err := c.Services(t.Context(), ServiceQuery{Namespace: "shop"})
		if err != nil || r.OK() || len(r.Silent) != 0 || !strings.Contains(text(r), "missing on node2") {
			t.Errorf("%v, silent %v\n%s", err, r.Silent, text(r))
		}
	})
}

func TestServicesThatAreNotProgrammedSayWhy(t *testing.T) {
	other := func(name string, change func(*corev1.Service)) *corev1.Service {
		return web(func(s *corev1.Service) {
			s.Name, s.Spec.ExternalIPs, s.Status = name, nil, corev1.ServiceStatus{}
			change(s)
		})
	}
	synctest.Test(t, func(t *testing.T) {
		r, err := cluster(func(int, []api.Service) ([]api.Service, error) { return nil, nil }, config(nil),
			other("a", func(s *corev1.Service) {
				s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "example.com"
			}),
			other("b", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} }),
			other("c", func(s *corev1.Service) { s.Labels = map[string]string{proxyNameLabel: "mine"} }),
		).Services(t.Context(), ServiceQuery{})
		want := "shop/a    ready=0 (a name for example.com)\nshop/b    ready=0 (headless)\nshop/c    ready=0 (left to mine (label service.kubernetes.io/service-proxy-name))\n"
		if err != nil || text(r) != want || !r.OK() {
			t.Errorf("%v:\n%swant:\n%s", err, text(r), want)
		}
	})
}

func TestServicesThatCannotBeCompared(t *testing.T) {
	for name, x := range map[string]struct {
		objs []runtime.Object
		q    ServiceQuery
		want error
	}{
		"no such Service": {[]runtime.Object{config(nil)}, ServiceQuery{Namespace: "shop", Name: "web"}, ErrNoService},
		"not installed":   {[]runtime.Object{web(nil)}, ServiceQuery{}, ErrNoAgents},
		"kube-proxy":      {[]runtime.Object{web(nil), config(map[string]string{"kube-proxy-replacement": "false"})}, ServiceQuery{}, ErrKubeProxy},
	} {
		if _, err := cluster(nil, x.objs...).Services(t.Context(), x.q); !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", name, err, x.want)
		}
	}
	c := &Collector{Client: fake.NewClientset(config(nil), web(nil)), Namespace: "kube-system"}
	if _, err := c.Services(t.Context(), ServiceQuery{}); !errors.Is(err, ErrNoAgents) {
		t.Errorf("no agents: %v", err)
	}
}
