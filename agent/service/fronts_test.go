// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"lash.internal/lash/agent/state"
)

// exposed is a dual-stack Service with a NodePort and one address of each further kind and family.
func exposed(name string, change func(*state.Service)) state.Service {
	s := clusterIP(name, "10.96.0.10", "fd00::10")
	s.Type, s.Ports[0].NodePort = "LoadBalancer", 30080
	s.ExternalIPs, s.LoadBalancerIPs = addrs("192.0.2.5", "2001:db8::5"), addrs("198.51.100.9", "2001:db8::9")
	if change != nil {
		change(&s)
	}
	return s
}

func pod(name string, ports ...state.HostPort) state.Pod {
	return state.Pod{
		Name: state.Name{Namespace: "default", Name: name}, Phase: "Running", IPs: addrs("10.1.0.7", "fd01::7"), HostPorts: ports,
	}
}

func ranges(in ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range in {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// TestFrontends says at which addresses a Service port can be reached, and by whom.
func TestFrontends(t *testing.T) {
	for _, c := range []struct {
		name   string
		view   func(*View)
		change func(*state.Service)
		want   string
	}{
		{
			"all kinds", nil, nil,
			"10.96.0.10:80/TCP [10.1.0.1:8080] NodePort 0.0.0.0:30080/TCP ExternalIPs 192.0.2.5:80/TCP LoadBalancer 198.51.100.9:80/TCP\n" +
				"[fd00::10]:80/TCP [] NodePort [::]:30080/TCP ExternalIPs [2001:db8::5]:80/TCP LoadBalancer [2001:db8::9]:80/TCP\n",
		},
		{
			"one family of pods", func(v *View) { v.IPv6 = false }, nil,
			"10.96.0.10:80/TCP [10.1.0.1:8080] NodePort 0.0.0.0:30080/TCP ExternalIPs 192.0.2.5:80/TCP LoadBalancer 198.51.100.9:80/TCP\n",
		},
		{
			"addresses of a family that the Service lacks", nil, func(s *state.Service) { s.ClusterIPs = addrs("10.96.0.10") },
			"10.96.0.10:80/TCP [10.1.0.1:8080] NodePort 0.0.0.0:30080/TCP ExternalIPs 192.0.2.5:80/TCP LoadBalancer 198.51.100.9:80/TCP\n",
		},
		{
			"no NodePort allocated", func(v *View) { v.IPv6 = false }, func(s *state.Service) { s.Ports[0].NodePort = 0 },
			"10.96.0.10:80/TCP [10.1.0.1:8080] ExternalIPs 192.0.2.5:80/TCP LoadBalancer 198.51.100.9:80/TCP\n",
		},
		{
			"ranges of sources bear on the load balancer's addresses", func(v *View) { v.IPv6 = false },
			func(s *state.Service) {
				s.Restricted, s.SourceRanges = true, ranges("203.0.113.0/24", "2001:db8:1::/48")
			},
			"10.96.0.10:80/TCP [10.1.0.1:8080] NodePort 0.0.0.0:30080/TCP ExternalIPs 192.0.2.5:80/TCP LoadBalancer 198.51.100.9:80/TCP from [203.0.113.0/24]\n",
		},
		{
			"an address that is both is restricted", func(v *View) { v.IPv6 = false },
			func(s *state.Service) {
				s.Restricted, s.SourceRanges, s.ExternalIPs = true, ranges("203.0.113.0/24"), s.LoadBalancerIPs
			},
			"10.96.0.10:80/TCP [10.1.0.1:8080] NodePort 0.0.0.0:30080/TCP LoadBalancer 198.51.100.9:80/TCP from [203.0.113.0/24]\n",
		},
		{
			"ranges of the other family let nobody in", func(v *View) { v.IPv6 = false },
			func(s *state.Service) { s.Restricted, s.SourceRanges = true, ranges("2001:db8:1::/48") },
			"10.96.0.10:80/TCP [10.1.0.1:8080] NodePort 0.0.0.0:30080/TCP ExternalIPs 192.0.2.5:80/TCP LoadBalancer 198.51.100.9:80/TCP from []\n",
		},
		{
			"a node in the ranges may use its own load balancer", func(v *View) { v.IPv6 = false },
			func(s *state.Service) { s.Restricted, s.SourceRanges = true, ranges("172.18.0.0/16") },
			"10.96.0.10:80/TCP [10.1.0.1:8080] NodePort 0.0.0.0:30080/TCP ExternalIPs 192.0.2.5:80/TCP LoadBalancer 198.51.100.9:80/TCP from [172.18.0.0/16 198.51.100.9/32]\n",
		},
		{
			"ranges are not looked at", func(v *View) { v.IPv6, v.AnySource = false, true },
			func(s *state.Service) { s.Restricted, s.SourceRanges = true, ranges("203.0.113.0/24") },
			"10.96.0.10:80/TCP [10.1.0.1:8080] NodePort 0.0.0.0:30080/TCP ExternalIPs 192.0.2.5:80/TCP LoadBalancer 198.51.100.9:80/TCP\n",
		},
		{
			"affinity", func(v *View) { v.IPv6 = false }, func(s *state.Service) { s.SessionAffinitySecs, s.ExternalIPs, s.LoadBalancerIPs = 60, nil, nil },
			"10.96.0.10:80/TCP [10.1.0.1:8080] NodePort 0.0.0.0:30080/TCP affinity 60\n",
		},
		{
			"nobody of this node for those outside", func(v *View) { v.IPv6 = false },
			func(s *state.Service) { s.ExternalTrafficLocal, s.ExternalIPs, s.LoadBalancerIPs = true, nil, nil },
			"10.96.0.10:80/TCP [10.1.0.1:8080] local [] NodePort 0.0.0.0:30080/TCP\n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil, c.view)
				w.put(state.Node{Name: "here", Local: true, InternalIPs: addrs("172.18.0.2")},
					exposed("web", c.change), slice("web", "a", http, "10.1.0.1 @there"))
				w.complete()
				if got := w.lines(); got != c.want {
					t.Errorf("wanted:\n%swant:\n%s", got, c.want)
				}
			})
		})
	}
}

// TestPing: the addresses of load balancers answer, unless they are for some sources only.
func TestPing(t *testing.T) {
	for _, c := range []struct {
		name   string
		view   func(*View)
		change func(*state.Service)
		want   bool
	}{
		{"for everybody", nil, nil, true},
		{"for some", nil, func(s *state.Service) { s.Restricted, s.SourceRanges = true, ranges("203.0.113.0/24") }, false},
		{"for some, which is not looked at", func(v *View) { v.AnySource = true }, func(s *state.Service) { s.Restricted = true }, true},
		{"kube-proxy's", func(v *View) { v.Enabled = false }, nil, false},
		{"no ClusterIP of the family", nil, func(s *state.Service) { s.ClusterIPs = addrs("fd00::10") }, false},
	} {
		v := View{Tables: state.NewTables(), Enabled: true, IPv4: true, IPv6: true}
		if c.view != nil {
			c.view(&v)
		}
		tx := v.Tables.DB.WriteTxn()
		v.Tables.Services.Insert(tx, exposed("web", c.change))
		tx.Commit()
		if got := v.Ping(netip.MustParseAddr("198.51.100.9")); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		for _, a := range addrs("192.0.2.5", "10.96.0.10", "198.51.100.10", "0.0.0.0") {
			if v.Ping(a) {
				t.Errorf("%s: %s answers", c.name, a)
			}
		}
	}
}

// TestLocalBackends keeps those of this node where somebody asks for them.
func TestLocalBackends(t *testing.T) {
	backends := []string{"10.1.0.1 @there", "10.1.0.2 terminating @here", "10.1.0.3 @here"}
	for _, c := range []struct {
		name      string
		direct    bool
		change    func(*state.Service)
		endpoints []string
		want      string
	}{
		{"nobody asks", false, nil, backends, "[10.1.0.1:8080 10.1.0.3:8080] draining [10.1.0.2:8080]"},
		{"other nodes send packets on", true, nil, backends, "[10.1.0.1:8080 10.1.0.3:8080] local [10.1.0.3:8080] draining [10.1.0.2:8080]"},
		{"other nodes would, but none can be asked", true, func(s *state.Service) { s.Ports[0].NodePort = 0 }, backends, "[10.1.0.1:8080 10.1.0.3:8080] draining [10.1.0.2:8080]"},
		{"policy for those outside", false, func(s *state.Service) { s.ExternalTrafficLocal = true }, backends, "[10.1.0.1:8080 10.1.0.3:8080] local [10.1.0.3:8080] draining [10.1.0.2:8080]"},
		{
			"the last one here ends while others are ready", false, func(s *state.Service) { s.ExternalTrafficLocal = true },
			backends[:2], "[10.1.0.1:8080] local [10.1.0.2:8080]",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil, func(v *View) { v.IPv6, v.Direct = false, c.direct })
				w.complete()
				s := clusterIP("web", "10.96.0.10")
				s.Ports[0].NodePort = 30080
				if c.change != nil {
					c.change(&s)
				}
				w.put(s, slice("web", "a", http, c.endpoints...))
				got := strings.Replace(strings.TrimSpace(w.lines()), " NodePort 0.0.0.0:30080/TCP", "", 1)
				if want := "10.96.0.10:80/TCP " + c.want; got != want {
					t.Errorf("wanted: %s\n  want: %s", got, want)
				}
			})
		})
	}
}

// TestTopology follows hints as kube-proxy does.
func TestTopology(t *testing.T) {
	hinted := func(hints ...string) state.EndpointSlice {
		sl := slice("web", "a", http, "10.1.0.1 @here", "10.1.0.2 @there", "10.1.0.3 terminating @there")
		for i, h := range hints {
			for _, w := range strings.Fields(h) {
				if name, ok := strings.CutPrefix(w, "@"); ok {
					sl.Endpoints[i].ForNodes = append(sl.Endpoints[i].ForNodes, name)
				} else {
					sl.Endpoints[i].ForZones = append(sl.Endpoints[i].ForZones, w)
				}
			}
		}
		return sl
	}
	const both = "[10.1.0.1:8080 10.1.0.2:8080] draining [10.1.0.3:8080]"
	for _, c := range []struct {
		name, zone string
		slice      state.EndpointSlice
		want       string
	}{
		{"no hints", "a", hinted(), both},
		{"the node's zone", "a", hinted("a", "b"), "[10.1.0.1:8080] draining [10.1.0.2:8080 10.1.0.3:8080]"},
		{"one endpoint for two zones", "b", hinted("a b", "c"), "[10.1.0.1:8080] draining [10.1.0.2:8080 10.1.0.3:8080]"},
		{"one has none", "a", hinted("a", ""), both},
		{"none for the zone", "c", hinted("a", "b"), both},
		{"the node does not know its zone", "", hinted("a", "b"), both},
		{"one that is not ready has none", "b", slice("web", "a", http, "10.1.0.9 notready"), "[]"},
		{"the node itself goes before its zone", "a", hinted("a @there", "a @here"), "[10.1.0.2:8080] draining [10.1.0.1:8080 10.1.0.3:8080]"},
		{"no node's, then the zone's", "a", hinted("a @x", "b @y"), "[10.1.0.1:8080] draining [10.1.0.2:8080 10.1.0.3:8080]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil, nil)
				w.complete()
				w.put(clusterIP("web", "10.96.0.10"), c.slice)
				w.put(state.Node{Name: "here", Local: true, Labels: map[string]string{zoneLabel: c.zone}})
				if got, want := w.lines(), "10.96.0.10:80/TCP "+c.want+"\n"; got != want {
					t.Errorf("wanted: %swant: %s", got, want)
				}
			})
		})
	}
}

// TestTopologyIsIgnoredForLocal: a policy that asks for the node's own backends is not narrowed further.
func TestTopologyIsIgnoredForLocal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, nil)
		w.complete()
		s := clusterIP("web", "10.96.0.10")
		s.InternalTrafficLocal = true
		sl := slice("web", "a", http, "10.1.0.1 @here", "10.1.0.2 @there")
		sl.Endpoints[0].ForZones, sl.Endpoints[1].ForZones = []string{"b"}, []string{"a"}
		w.put(state.Node{Name: "here", Local: true, Labels: map[string]string{zoneLabel: "a"}}, s, sl)
		if got, want := w.lines(), "10.96.0.10:80/TCP [10.1.0.2:8080] local [10.1.0.1:8080]\n"; got != want {
			t.Errorf("wanted: %swant: %s", got, want)
		}
	})
}

// TestWhoHasAFrontend lets several Services claim one frontend, come and go.
func TestWhoHasAFrontend(t *testing.T) {
	const shared = "192.0.2.5:80/TCP"
	claim := func(name, ip string, created int64) state.Service {
		s := clusterIP(name, ip)
		s.ExternalIPs, s.Created = addrs("192.0.2.5"), created
		return s
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, nil)
		w.complete()
		holder := func() string {
			var out []string
			for k, b := range w.target.held {
				if k.String() == shared || slices.ContainsFunc(b.Fronts, func(f state.Front) bool { return f.String() == shared }) {
					out = append(out, k.Addr.String())
				}
			}
			slices.Sort(out)
			return strings.Join(out, " and ")
		}
		for _, step := range []struct {
			what string
			rows []any
			want string
		}{
			{"one", []any{claim("b", "10.96.0.2", 200)}, "10.96.0.2"},
			{"a younger one comes", []any{claim("a", "10.96.0.1", 300)}, "10.96.0.2"},
			{"an older one comes", []any{claim("c", "10.96.0.3", 100)}, "10.96.0.3"},
			{"as old, behind by name", []any{claim("d", "10.96.0.4", 100)}, "10.96.0.3"},
			{"the oldest goes", []any{state.Name{Namespace: "default", Name: "c"}}, "10.96.0.4"},
			{"the next is another proxy's", []any{func() state.Service {
				s := claim("d", "10.96.0.4", 100)
				s.ProxyName = "other"
				return s
			}()}, "10.96.0.2"},
			{"the address is a ClusterIP", []any{clusterIP("e", "192.0.2.5")}, "192.0.2.5"},
			{"no more", []any{state.Name{Namespace: "default", Name: "e"}}, "10.96.0.2"},
			{"the last ones go", []any{state.Name{Namespace: "default", Name: "b"}, state.Name{Namespace: "default", Name: "a"}}, ""},
		} {
			w.put(step.rows...)
			if got := holder(); got != step.want {
				t.Fatalf("%s: %s is at %q, want %q", step.what, shared, got, step.want)
			}
		}
	})
}

// TestHostPorts are the pods of the node that are reached at the node's addresses.
func TestHostPorts(t *testing.T) {
	http := state.HostPort{HostPort: 8081, ContainerPort: 80, Protocol: "TCP"}
	bound := state.HostPort{HostIP: netip.MustParseAddr("192.0.2.1"), HostPort: 8081, ContainerPort: 81, Protocol: "TCP"}
	with := func(p state.Pod, change func(*state.Pod)) state.Pod { change(&p); return p }
	ended := with(pod("p", http), func(p *state.Pod) { p.Phase = "Succeeded" })
	young := with(pod("p", http), func(p *state.Pod) { p.Created = 200 })
	old := with(pod("q", http), func(p *state.Pod) { p.Created, p.IPs = 100, addrs("10.1.0.8") })
	leaving := with(old, func(p *state.Pod) { p.Terminating = true })
	nodePort := clusterIP("web", "10.96.0.10")
	nodePort.Ports[0].NodePort = 8081
	for _, c := range []struct {
		name string
		rows []any
		want string
	}{
		{"all addresses", []any{pod("p", http)}, "0.0.0.0:8081/TCP [10.1.0.7:80]\n[::]:8081/TCP [[fd01::7]:80]\n"},
		{"one address", []any{pod("p", bound)}, "192.0.2.1:8081/TCP [10.1.0.7:81]\n"},
		{"both", []any{pod("p", http, bound)}, "0.0.0.0:8081/TCP [10.1.0.7:80]\n192.0.2.1:8081/TCP [10.1.0.7:81]\n[::]:8081/TCP [[fd01::7]:80]\n"},
		{"no address yet", []any{with(pod("p", http), func(p *state.Pod) { p.IPs = nil })}, ""},
		{"ended", []any{pod("p", http), ended}, ""},
		{"removed", []any{pod("p", http), state.Name{Namespace: "default", Name: "p"}}, ""},
		{"the older has it", []any{young, old}, "0.0.0.0:8081/TCP [10.1.0.8:80]\n[::]:8081/TCP [[fd01::7]:80]\n"},
		{"unless it ends", []any{young, old, leaving}, "0.0.0.0:8081/TCP [10.1.0.7:80]\n[::]:8081/TCP [[fd01::7]:80]\n"},
		{"one that ends keeps it while nobody else asks", []any{leaving}, "0.0.0.0:8081/TCP [10.1.0.8:80]\n"},
		{
			"a NodePort goes before it, in its families",
			[]any{pod("p", http), nodePort},
			"10.96.0.10:80/TCP [] NodePort 0.0.0.0:8081/TCP\n[::]:8081/TCP [[fd01::7]:80]\n",
		},
		{
			"and gives it back",
			[]any{pod("p", http), nodePort, state.Name{Namespace: "default", Name: "web"}},
			"0.0.0.0:8081/TCP [10.1.0.7:80]\n[::]:8081/TCP [[fd01::7]:80]\n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil, nil)
				w.complete()
				for _, r := range c.rows {
					w.put(r)
				}
				if got := w.lines(); got != c.want {
					t.Errorf("wanted:\n%swant:\n%s", got, c.want)
				}
			})
		})
	}
}

// TestOpenAddresses are the addresses of nodes at which NodePorts and HostPorts are looked up.
func TestOpenAddresses(t *testing.T) {
	v := View{Tables: state.NewTables(), Enabled: true, IPv4: true}
	open := func(v View, in ...string) string {
		return strings.Join(slices.DeleteFunc(in, func(a string) bool { return !v.NodePortOpen(netip.MustParseAddr(a)) }), " ")
	}
	all := []string{"192.0.2.1", "10.0.0.1", "127.0.0.1", "169.254.1.1", "2001:db8::1", "fe80::1"}
	if got := open(v, slices.Clone(all)...); got != "192.0.2.1 10.0.0.1" {
		t.Errorf("by default NodePorts are open at %s", got)
	}
	v.IPv6, v.NodePortAddresses = true, ranges("10.0.0.0/8", "2001:db8::/32")
	if got := open(v, slices.Clone(all)...); got != "10.0.0.1 2001:db8::1" {
		t.Errorf("with ranges NodePorts are open at %s", got)
	}
	tx := v.Tables.DB.WriteTxn()
	v.Tables.Pods.Insert(tx, pod("p", state.HostPort{HostIP: netip.MustParseAddr("192.0.2.1"), HostPort: 1, ContainerPort: 1, Protocol: "UDP"}))
	tx.Commit()
	if !v.HostPortAt(netip.MustParseAddr("192.0.2.1")) || v.HostPortAt(netip.MustParseAddr("10.0.0.1")) {
		t.Error("a HostPort of one address is not looked up there only")
	}
	v.Enabled = false
	if v.HostPortAt(netip.MustParseAddr("192.0.2.1")) || open(v, all...) != "" {
		t.Error("left to kube-proxy, but looked up")
	}
}
