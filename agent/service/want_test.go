// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"lash.internal/lash/agent/reconcile"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

func addrs(in ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range in {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func clusterIP(name string, ips ...string) state.Service {
	return state.Service{
		Name: state.Name{Namespace: "default", Name: name}, Type: "ClusterIP", ClusterIPs: addrs(ips...),
		Ports: []state.ServicePort{{Name: "http", Protocol: "TCP", Port: 80}},
	}
}

// slice is one of the Service's slices, with endpoints "address[ notready][ serving][ terminating][ @node]".
func slice(service, name string, port state.SlicePort, endpoints ...string) state.EndpointSlice {
	sl := state.EndpointSlice{
		Name:    state.Name{Namespace: "default", Name: service + "-" + name},
		Service: state.Name{Namespace: "default", Name: service}, Ports: []state.SlicePort{port},
	}
	for _, text := range endpoints {
		words := strings.Fields(text)
		e := state.SliceEndpoint{Addresses: addrs(words[0]), Ready: true, Serving: true}
		sl.IPv6 = e.Addresses[0].Is6()
		for _, w := range words[1:] {
			switch w {
			case "notready":
				e.Ready, e.Serving = false, false
			case "serving":
				e.Serving = true
			case "terminating":
				e.Ready, e.Terminating = false, true
			default:
				e.NodeName = strings.TrimPrefix(w, "@")
			}
		}
		sl.Endpoints = append(sl.Endpoints, e)
	}
	return sl
}

var http = state.SlicePort{Name: "http", Protocol: "TCP", Port: 8080}

func text(b state.Balance) string {
	s := fmt.Sprint(b.All)
	if b.InternalLocal || b.ExternalLocal || len(b.Local) > 0 {
		s += fmt.Sprint(" local ", b.Local)
	}
	for _, f := range b.Fronts {
		s += fmt.Sprint(" ", f.Type, " ", f)
		if f.Sources {
			s += fmt.Sprint(" from ", b.SourceRanges)
		}
	}
	if b.AffinitySecs > 0 {
		s += fmt.Sprint(" affinity ", b.AffinitySecs)
	}
	if len(b.Draining) > 0 {
		s += fmt.Sprint(" draining ", b.Draining)
	}
	return s
}

// memory is a target in memory that counts what is written.
type memory struct {
	held map[state.Frontend]state.Balance
	sets int
}

func (m *memory) Load(context.Context) (map[state.Frontend]state.Balance, error) {
	return maps.Clone(m.held), nil
}

func (m *memory) Set(_ context.Context, k state.Frontend, v state.Balance) error {
	m.held[k] = v
	m.sets++
	return nil
}

func (m *memory) Delete(_ context.Context, k state.Frontend) error {
	delete(m.held, k)
	return nil
}

// world runs the loop of Services over a memory target.
type world struct {
	view   View
	target *memory
	ready  []func(*state.WriteTxn)
}

// newWorld starts over what the target holds from before; none: nothing.
func newWorld(t *testing.T, held map[state.Frontend]state.Balance, change func(*View)) *world {
	w := &world{
		view:   View{Tables: state.NewTables(), Enabled: true, IPv4: true, IPv6: true, NodeName: "here"},
		target: &memory{held: maps.Clone(held)},
	}
	if held == nil {
		w.target.held = map[state.Frontend]state.Balance{}
	}
	if change != nil {
		change(&w.view)
	}
	tb := w.view.Tables
	w.ready = append(w.ready, tb.Services.RegisterInitializer("test"), tb.EndpointSlices.RegisterInitializer("test"), tb.Nodes.RegisterInitializer("test"))
	loop := w.loop()
	chain := reconcile.NewChain("services", slog.New(slog.DiscardHandler), loop)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { chain.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

// loop is the loop as the agent has it.
func (w *world) loop() *reconcile.Loop[state.Frontend, state.Balance] {
	v, tb := w.view, w.view.Tables
	return reconcile.Keyed("services", w.target, v.Want,
		reconcile.Via(reconcile.FromTable(tb.Services, v.Claims), v.Touched),
		reconcile.FromTable(tb.EndpointSlices, v.PrimariesOfSlice), reconcile.FromTable(tb.Pods, v.HostPorts),
		reconcile.Via(reconcile.FromTable(tb.Nodes, v.Local), v.PrimariesOfNode)).
		Equal(state.Balance.Satisfies)
}

func (w *world) put(rows ...any) {
	tx := w.view.Tables.DB.WriteTxn()
	for _, r := range rows {
		switch r := r.(type) {
		case state.Service:
			w.view.Tables.Services.Insert(tx, r)
		case state.EndpointSlice:
			w.view.Tables.EndpointSlices.Insert(tx, r)
		case state.Pod:
			w.view.Tables.Pods.Insert(tx, r)
		case state.Node:
			w.view.Tables.Nodes.Insert(tx, r)
		case state.Name: // away with the Service or pod
			w.view.Tables.Services.Delete(tx, r)
			w.view.Tables.Pods.Delete(tx, r)
		case func(*state.WriteTxn):
			r(tx)
		}
	}
	tx.Commit()
	synctest.Wait()
}

func (w *world) complete() { w.put(w.ready[0], w.ready[1], w.ready[2]) }

func (w *world) lines() string {
	var out []string
	for k, v := range w.target.held {
		out = append(out, k.String()+" "+text(v)+"\n")
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

// TestBackends says which endpoints of a Service get connections, whatever comes first.
func TestBackends(t *testing.T) {
	local := clusterIP("web", "10.96.0.10")
	local.InternalTrafficLocal = true
	notReady := clusterIP("web", "10.96.0.10")
	notReady.PublishNotReady = true
	dual := clusterIP("web", "10.96.0.10", "fd00::10")
	headless := clusterIP("web")
	headless.Headless = true
	external := clusterIP("web", "10.96.0.10")
	external.Type = "ExternalName"
	foreign := clusterIP("web", "10.96.0.10")
	foreign.ProxyName = "other"
	ports := clusterIP("web", "10.96.0.10")
	ports.Ports = []state.ServicePort{
		{Name: "http", Protocol: "TCP", Port: 80}, {Name: "dns", Protocol: "UDP", Port: 53}, {Name: "sctp", Protocol: "SCTP", Port: 9},
	}
	for _, c := range []struct {
		name    string
		service state.Service
		slices  []state.EndpointSlice
		want    string
	}{
		{"none", clusterIP("web", "10.96.0.10"), nil, "10.96.0.10:80/TCP []\n"},
		{"ready", clusterIP("web", "10.96.0.10"), []state.EndpointSlice{
			slice("web", "a", http, "10.1.0.2", "10.1.0.1", "10.1.0.3 notready"),
			slice("web", "b", http, "10.1.0.4", "10.1.0.2 notready"),
			slice("api", "a", http, "10.1.0.9"),
		}, "10.96.0.10:80/TCP [10.1.0.1:8080 10.1.0.2:8080 10.1.0.4:8080]\n"},
		{"terminating ones drain", clusterIP("web", "10.96.0.10"), []state.EndpointSlice{
			slice("web", "a", http, "10.1.0.1", "10.1.0.2 terminating"),
		}, "10.96.0.10:80/TCP [10.1.0.1:8080] draining [10.1.0.2:8080]\n"},
		{"terminating ones are better than none", clusterIP("web", "10.96.0.10"), []state.EndpointSlice{
			slice("web", "a", http, "10.1.0.1 notready", "10.1.0.2 terminating", "10.1.0.3 notready terminating"),
		}, "10.96.0.10:80/TCP [10.1.0.2:8080] draining [10.1.0.3:8080]\n"},
		{"not ready ones are published", notReady, []state.EndpointSlice{
			slice("web", "a", http, "10.1.0.1 notready"),
		}, "10.96.0.10:80/TCP [10.1.0.1:8080]\n"},
		{"only those of the node", local, []state.EndpointSlice{
			slice("web", "a", http, "10.1.0.1 @here", "10.1.0.2 @there"),
		}, "10.96.0.10:80/TCP [10.1.0.1:8080 10.1.0.2:8080] local [10.1.0.1:8080]\n"},
		{"none of the node", local, []state.EndpointSlice{
			slice("web", "a", http, "10.1.0.2 @there", "10.1.0.3"),
		}, "10.96.0.10:80/TCP [10.1.0.2:8080 10.1.0.3:8080] local []\n"},
		{"the last of the node", local, []state.EndpointSlice{
			slice("web", "a", http, "10.1.0.2 @there", "10.1.0.3 terminating @here"),
		}, "10.96.0.10:80/TCP [10.1.0.2:8080] local [10.1.0.3:8080]\n"},
		{"families", dual, []state.EndpointSlice{
			slice("web", "a", http, "10.1.0.1"), slice("web", "b", http, "fd01::1"),
		}, "10.96.0.10:80/TCP [10.1.0.1:8080]\n[fd00::10]:80/TCP [[fd01::1]:8080]\n"},
		{"named ports", ports, []state.EndpointSlice{
			slice("web", "a", http, "10.1.0.1"),
			slice("web", "b", state.SlicePort{Name: "http", Protocol: "TCP", Port: 9090}, "10.1.0.2"),
			slice("web", "c", state.SlicePort{Name: "dns", Protocol: "UDP", Port: 5353}, "10.1.0.1"),
		}, "10.96.0.10:53/UDP [10.1.0.1:5353]\n10.96.0.10:80/TCP [10.1.0.1:8080 10.1.0.2:9090]\n10.96.0.10:9/SCTP []\n"},
		{"headless", headless, []state.EndpointSlice{slice("web", "a", http, "10.1.0.1")}, ""},
		{"external name", external, nil, ""},
		{"another proxy's", foreign, []state.EndpointSlice{slice("web", "a", http, "10.1.0.1")}, ""},
	} {
		for _, order := range []string{"service first", "slices first", "all at once"} {
			t.Run(c.name+"/"+order, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, nil, nil)
					w.complete()
					var rows []any
					for _, sl := range c.slices {
						rows = append(rows, sl)
					}
					switch order {
					case "service first":
						w.put(c.service)
						for _, r := range rows {
							w.put(r)
						}
					case "slices first":
						w.put(rows...)
						w.put(c.service)
					default:
						w.put(append(rows, c.service)...)
					}
					if got := w.lines(); got != c.want {
						t.Errorf("wanted:\n%swant:\n%s", got, c.want)
					}
				})
			})
		}
	}
}

// TestNothingIsWrittenFromHalfTheTruth starts with backends in the kernel while slices arrive late.
func TestNothingIsWrittenFromHalfTheTruth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web := state.Frontend{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Protocol: "TCP"}
		w := newWorld(t, map[state.Frontend]state.Balance{
			web: {All: []netip.AddrPort{netip.MustParseAddrPort("10.1.0.7:8080")}},
		}, nil)
		w.put(clusterIP("web", "10.96.0.10"), w.ready[0], w.ready[2])
		w.put(slice("web", "a", http, "10.1.0.1"))
		if got := w.lines(); got != "10.96.0.10:80/TCP [10.1.0.7:8080]\n" {
			t.Errorf("before all slices were known: %s", got)
		}
		w.put(w.ready[1])
		if got := w.lines(); got != "10.96.0.10:80/TCP [10.1.0.1:8080]\n" {
			t.Errorf("after: %s", got)
		}
	})
}

// TestAPIServerKeepsItsBackends removes the last endpoint of default/kubernetes, before and after
// a restart.
func TestAPIServerKeepsItsBackends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, nil)
		w.complete()
		w.put(clusterIP("kubernetes", "10.96.0.1"), clusterIP("web", "10.96.0.10"),
			slice("kubernetes", "a", http, "172.18.0.2"), slice("web", "a", http, "10.1.0.1"))
		w.put(slice("kubernetes", "a", http), slice("web", "a", http))
		want := "10.96.0.10:80/TCP []\n10.96.0.1:80/TCP [172.18.0.2:8080]\n"
		if got := w.lines(); got != want {
			t.Errorf("wanted:\n%swant:\n%s", got, want)
		}
		w.put(slice("kubernetes", "a", http, "172.18.0.3"))
		if got := w.lines(); !strings.Contains(got, "10.96.0.1:80/TCP [172.18.0.3:8080]\n") {
			t.Errorf("a new API server is not taken: %s", got)
		}
		again := newWorld(t, w.target.held, nil)
		again.put(clusterIP("kubernetes", "10.96.0.1"), clusterIP("web", "10.96.0.10"))
		again.complete()
		if got := again.lines(); !strings.Contains(got, "10.96.0.1:80/TCP [172.18.0.3:8080]\n") {
			t.Errorf("lost at the restart: %s", got)
		}
	})
}

// TestOneSliceTouchesOneService changes a slice among many Services and counts the writes.
func TestOneSliceTouchesOneService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, nil)
		var rows []any
		for i := range 100 {
			name := fmt.Sprintf("s%d", i)
			rows = append(rows, clusterIP(name, fmt.Sprintf("10.96.1.%d", i)), slice(name, "a", http, "10.1.0.1"))
		}
		w.put(rows...)
		w.complete()
		before := w.target.sets
		w.put(slice("s7", "a", http, "10.1.0.2"))
		if n := w.target.sets - before; before != 100 || n != 1 {
			t.Errorf("%d writes for 100 Services, %d for one change", before, n)
		}
	})
}

// TestSwitchedOff leaves Services to kube-proxy and removes what was there.
func TestSwitchedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, map[state.Frontend]state.Balance{
			{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Protocol: "TCP"}: {},
		}, func(v *View) { v.Enabled = false })
		w.put(clusterIP("web", "10.96.0.10"), slice("web", "a", http, "10.1.0.1"))
		w.complete()
		if got := w.lines(); got != "" || w.view.VIP(netip.MustParseAddr("10.96.0.10")) {
			t.Errorf("left to kube-proxy, but held: %s", got)
		}
	})
}

func TestVIPs(t *testing.T) {
	v := View{Tables: state.NewTables(), Enabled: true, IPv4: true}
	web := clusterIP("web", "10.96.0.10", "fd00::10")
	tx := v.Tables.DB.WriteTxn()
	v.Tables.Services.Insert(tx, web)
	tx.Commit()
	if got := v.AddrKeys(web); len(got) != 1 || got[0].Ip != bpf.IP(netip.MustParseAddr("10.96.0.10")) {
		t.Errorf("keys of a dual-stack Service where only IPv4 is on: %v", got)
	}
	tx = v.Tables.DB.WriteTxn()
	v.Tables.Services.Insert(tx, exposed("web", nil))
	foreign := exposed("foreign", func(s *state.Service) { s.ProxyName, s.ClusterIPs, s.ExternalIPs = "other", nil, addrs("192.0.2.77") })
	v.Tables.Services.Insert(tx, foreign)
	tx.Commit()
	if got := len(v.AddrKeys(exposed("web", nil))) + len(v.AddrKeys(foreign)); got != 3 {
		t.Errorf("%d keys, want those of the ClusterIP, the external address and the load balancer's", got)
	}
	for a, want := range map[string]bool{
		"10.96.0.10": true, "fd00::10": false, "10.96.0.11": false, "192.0.2.5": true, "198.51.100.9": true, "2001:db8::5": false, "192.0.2.77": false,
	} {
		if v.VIP(netip.MustParseAddr(a)) != want {
			t.Errorf("VIP(%s) is not %v", a, want)
		}
	}
}

// TestHealthChecks is what load balancers hear of a Service at its healthCheckNodePort.
func TestHealthChecks(t *testing.T) {
	v := View{Tables: state.NewTables(), Enabled: true, IPv4: true, IPv6: true, NodeName: "here", HealthChecks: true}
	web := exposed("web", func(s *state.Service) { s.ExternalTrafficLocal, s.HealthCheckNodePort = true, 31000 })
	other := state.SlicePort{Name: "other", Protocol: "TCP", Port: 9090}
	put := func(s state.Service, sls ...state.EndpointSlice) {
		tx := v.Tables.DB.WriteTxn()
		v.Tables.Services.Insert(tx, s)
		for _, sl := range sls {
			v.Tables.EndpointSlices.Insert(tx, sl)
		}
		tx.Commit()
	}
	everywhere := netip.MustParseAddrPort("[::]:31000")
	put(web,
		slice("web", "a", http, "10.1.0.1 @here", "10.1.0.2 @here", "10.1.0.3 @there", "10.1.0.4 terminating @here", "10.1.0.5 notready @here"),
		slice("web", "b", other, "10.1.0.1 @here"), slice("web", "c", http, "fd01::1 @here"))
	if got := v.HealthCheckAt(31000); len(got) != 1 || got[0] != everywhere {
		t.Errorf("asked for at %v", got)
	}
	if got, ok := v.HealthCheck(everywhere); !ok || got.LocalEndpoints != 2 || got.Service != web.Name {
		t.Errorf("%+v %v, want 2 endpoints", got, ok)
	}
	if _, ok := v.HealthCheck(netip.MustParseAddrPort("192.0.2.1:31000")); ok {
		t.Error("an answer at an address of its own beside the one for all")
	}
	v.NodePortAddresses = ranges("192.0.2.0/24")
	tx := v.Tables.DB.WriteTxn()
	eth0 := state.Device{Name: "eth0", Index: 2, Addrs: ranges("192.0.2.1/24", "10.0.0.1/8")}
	v.Tables.Devices.Insert(tx, eth0)
	tx.Commit()
	at := v.HealthCheckAt(31000)
	if len(at) != 1 || at[0].String() != "192.0.2.1:31000" || len(v.HealthAddrsOfDevice(eth0)) != 1 || v.HealthChecksOn(at[0].Addr())[0] != at[0] {
		t.Errorf("with nodePort.addresses asked for at %v", at)
	}
	if _, ok := v.HealthCheck(at[0]); !ok {
		t.Error("no answer at the node's address")
	}
	for _, gone := range []string{"[::]:31000", "192.0.2.9:31000", "10.0.0.1:31000", "192.0.2.1:31001"} {
		if _, ok := v.HealthCheck(netip.MustParseAddrPort(gone)); ok {
			t.Errorf("an answer at %s", gone)
		}
	}
	web.ExternalTrafficLocal = false
	put(web)
	if _, ok := v.HealthCheck(at[0]); ok {
		t.Error("an answer for a Service whose traffic may go anywhere")
	}
}
