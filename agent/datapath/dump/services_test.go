// SPDX-License-Identifier: Apache-2.0

package dump

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

var ip = netip.MustParseAddr

func frontAt(a string, port uint16, proto uint8) bpf.FrontKey {
	return bpf.FrontKey{Ip: bpf.IP(ip(a)), Port: bpf.Port(port), Proto: proto}
}

func front(id, kind, flags uint32) bpf.Front {
	return bpf.Front{SvcId: id, Flags: kind<<bpf.FrontTypeShift | flags}
}

// lbMaps hold one Service of all types with two backends and one that leaves, and a HostPort.
func lbMaps(t *testing.T, flags uint32) (map[string]*ebpf.Map, *state.Tables) {
	t.Helper()
	m := kernelMaps(t, "front", "svc", "slot", "backend", "addr", "srcrange", "aff")
	any := bpf.FrontOutside
	for k, v := range map[bpf.FrontKey]bpf.Front{
		frontAt("10.96.0.20", 80, 6):   front(7, bpf.FrontClusterIP, bpf.FrontPrimary),
		frontAt("0.0.0.0", 30080, 6):   front(7, bpf.FrontNodePort, any),
		frontAt("198.51.100.9", 80, 6): front(7, bpf.FrontExternalIP, any),
		frontAt("203.0.113.1", 80, 6):  front(7, bpf.FrontLoadBalancer, any|bpf.FrontSources),
		frontAt("fd00:10::20", 80, 6):  front(8, bpf.FrontClusterIP, bpf.FrontPrimary),
		frontAt("::", 30080, 6):        front(8, bpf.FrontNodePort, any),
		frontAt("0.0.0.0", 4000, 6):    front(9, bpf.FrontHostPort, bpf.FrontPrimary|any|bpf.FrontThisNode),
	} {
		put(t, m["front"], k, v)
	}
	put(t, m["svc"], uint32(7), bpf.Svc{BlkAll: 2 << bpf.SvcBlockShift, BlkLocal: 4 | 1<<bpf.SvcBlockShift, Flags: flags})
	put(t, m["svc"], uint32(9), bpf.Svc{BlkAll: 8 | 1<<bpf.SvcBlockShift})
	put(t, m["slot"], uint32(0), bpf.Slots{BackendId: [16]uint32{0: 3, 1: 4, 4: 3, 8: 6}})
	for id, b := range map[uint32]bpf.Backend{
		3: {Ip: bpf.IP(ip("10.244.1.7")), Port: bpf.Port(8080), Proto: 6, State: bpf.BackendActive},
		4: {Ip: bpf.IP(ip("10.244.2.9")), Port: bpf.Port(8080), Proto: 6, State: bpf.BackendActive},
		5: {Ip: bpf.IP(ip("10.244.1.8")), Port: bpf.Port(8080), Proto: 6, State: bpf.BackendTerminating},
		6: {Ip: bpf.IP(ip("10.244.1.9")), Port: bpf.Port(80), Proto: 6, State: bpf.BackendActive},
	} {
		put(t, m["backend"], id, b)
	}
	put(t, m["addr"], bpf.AddrKey{Ip: bpf.IP(ip("192.0.2.1"))}, bpf.Addr{Kind: bpf.AddrLocalNode, Flags: bpf.AddrNodePort})
	put(t, m["addr"], bpf.AddrKey{Ip: bpf.IP(ip("192.0.2.11"))}, bpf.Addr{Kind: bpf.AddrLocalNode})
	put(t, m["addr"], bpf.AddrKey{Ip: bpf.IP(ip("192.0.2.2"))}, bpf.Addr{Kind: bpf.AddrRemoteNode, Flags: bpf.AddrNodePort})
	put(t, m["addr"], bpf.AddrKey{Ip: bpf.IP(ip("2001:db8::1"))}, bpf.Addr{Kind: bpf.AddrLocalNode, Flags: bpf.AddrNodePort})

	tables := state.NewTables()
	w := tables.DB.WriteTxn()
	name := state.Name{Namespace: "default", Name: "web"}
	tables.Nodes.Insert(w, state.Node{Name: "n1", Local: true})
	tables.Services.Insert(w, state.Service{
		Name: name, Type: "LoadBalancer", ClusterIPs: []netip.Addr{ip("10.96.0.20"), ip("fd00:10::20")}, HealthCheckNodePort: 31000,
		Ports: []state.ServicePort{{Name: "http", Protocol: "TCP", Port: 80, NodePort: 30080}},
	})
	tables.EndpointSlices.Insert(w, state.EndpointSlice{
		Name: name, Service: name, Ports: []state.SlicePort{{Name: "http", Protocol: "TCP", Port: 8080}},
		Endpoints: []state.SliceEndpoint{
			{Addresses: []netip.Addr{ip("10.244.1.7")}, Ready: true, NodeName: "n1", Zone: "a"},
			{Addresses: []netip.Addr{ip("10.244.2.9")}, Ready: true, NodeName: "n2", Zone: "b"},
			{Addresses: []netip.Addr{ip("10.244.1.8")}, Serving: true, Terminating: true, NodeName: "n1"},
			{Addresses: []netip.Addr{ip("10.244.1.99")}, Terminating: true, NodeName: "n1"}, // not in the kernel any more
		},
	})
	tables.Pods.Insert(w, state.Pod{ // it came too late
		Name:      state.Name{Namespace: "default", Name: "another"},
		IPs:       []netip.Addr{ip("10.244.1.10")},
		HostPorts: []state.HostPort{{HostPort: 4000, ContainerPort: 80, Protocol: "TCP"}},
	})
	tables.Pods.Insert(w, state.Pod{
		Name:      state.Name{Namespace: "default", Name: "echo"},
		IPs:       []netip.Addr{ip("10.244.1.9")},
		HostPorts: []state.HostPort{{HostPort: 4000, ContainerPort: 80, Protocol: "TCP"}},
	})
	w.Commit()
	return m, tables
}

// rowsOf prints frontends, one a line.
func rowsOf(t *testing.T, d *Maps, tables *state.Tables) string {
	t.Helper()
	all, err := d.Services(tables)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, s := range all {
		f := s.Spec.Frontend
		fmt.Fprintf(&b, "%d %s %d/%s %s %s %s/%s", s.Spec.ID, f.IP, f.Port, f.Protocol, f.Scope, s.Spec.Flags.Type, s.Spec.Flags.Namespace, s.Spec.Flags.Name)
		for _, x := range s.Spec.Backends {
			fmt.Fprintf(&b, " %s:%d@%s%s(%s)", x.IP, x.Port, x.NodeName, x.Zone, x.State)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestEveryFrontendIsListedWithItsBackends(t *testing.T) {
	m, tables := lbMaps(t, 0)
	const backends = "10.244.1.7:8080@n1a(active) 10.244.2.9:8080@n2b(active) 10.244.1.8:8080@n1(terminating)\n"
	want := "7 10.96.0.20 80/TCP external ClusterIP default/web " + backends +
		"7 0.0.0.0 30080/TCP external NodePort default/web " + backends +
		"7 192.0.2.1 30080/TCP external NodePort default/web " + backends +
		"7 198.51.100.9 80/TCP external ExternalIPs default/web " + backends +
		"7 203.0.113.1 80/TCP external LoadBalancer default/web " + backends +
		"8 fd00:10::20 80/TCP external ClusterIP default/web\n" +
		"8 :: 30080/TCP external NodePort default/web\n" +
		"8 2001:db8::1 30080/TCP external NodePort default/web\n" +
		"9 0.0.0.0 4000/TCP external HostPort default/echo/host-port/4000 10.244.1.9:80@n1(active)\n" +
		"9 192.0.2.1 4000/TCP external HostPort default/echo/host-port/4000 10.244.1.9:80@n1(active)\n" +
		"9 192.0.2.11 4000/TCP external HostPort default/echo/host-port/4000 10.244.1.9:80@n1(active)\n"
	if got := rowsOf(t, New(m), tables); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}

func TestPoliciesGiveEachScopeItsBackends(t *testing.T) {
	const here, all = " 10.244.1.7:8080@n1a(active) 10.244.1.8:8080@n1(terminating)\n",
		" 10.244.1.7:8080@n1a(active) 10.244.2.9:8080@n2b(active) 10.244.1.8:8080@n1(terminating)\n"
	for flags, want := range map[uint32][]string{
		bpf.SvcExternalLocal: {
			"7 10.96.0.20 80/TCP external ClusterIP default/web" + all,
			"7 203.0.113.1 80/TCP external LoadBalancer default/web" + here,
			"7 203.0.113.1 80/TCP internal LoadBalancer default/web" + all,
			"7 192.0.2.1 30080/TCP external NodePort default/web" + here,
		},
		bpf.SvcInternalLocal: {
			"7 10.96.0.20 80/TCP external ClusterIP default/web" + here,
			"7 203.0.113.1 80/TCP external LoadBalancer default/web" + all,
		},
	} {
		m, tables := lbMaps(t, flags)
		got := rowsOf(t, New(m), tables)
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("flags %d: no %sin:\n%s", flags, w, got)
			}
		}
	}
}

func TestAFrontendThatNobodyClaimsIsListed(t *testing.T) {
	m, _ := lbMaps(t, 0)
	tables := state.NewTables()
	if got := rowsOf(t, New(m), tables); !strings.Contains(got, "7 10.96.0.20 80/TCP external ClusterIP / 10.244.1.7:8080@(active) 10.244.2.9:8080@(active)\n") {
		t.Errorf("got:\n%s", got)
	}
}

func TestFrontendsReadInCiliumsWords(t *testing.T) {
	m, _ := lbMaps(t, bpf.SvcExternalLocal)
	put(t, m["svc"], uint32(8), bpf.Svc{AffinitySecs: 60, Flags: bpf.SvcInternalLocal})
	got := text(t, New(m), "view:lb")
	for _, want := range []string{
		"10.96.0.20:80/TCP (0) | 0.0.0.0:0 (7) (0) [ClusterIP, two-scopes, Local, non-routable]\n",
		"203.0.113.1:80/TCP (0) | 0.0.0.0:0 (7) (0) [LoadBalancer, two-scopes, Local, check source-range]\n",
		"203.0.113.1:80/TCP (1) | 10.244.1.7:8080/TCP (7) (1) [local]\n203.0.113.1:80/TCP (2) | 10.244.2.9:8080/TCP (7) (2)\n",
		"[fd00:10::20]:80/TCP (0) | [::]:0 (8) (0) [ClusterIP, two-scopes, InternalLocal, sessionAffinity, non-routable]\n",
		"[::]:30080/TCP (0) | [::]:0 (8) (0) [NodePort, two-scopes, InternalLocal, sessionAffinity]\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %sin:\n%s", want, got)
		}
	}
	if got, want := text(t, New(m), "view:lb-frontends"), "203.0.113.1:80/TCP | 7 (LoadBalancer)\n"; !strings.Contains(got, want) {
		t.Errorf("no %sin:\n%s", want, got)
	}
}

func TestSourceRangesAndAffinityReadWithTheirServices(t *testing.T) {
	m, _ := lbMaps(t, 0)
	for p, id := range map[string]uint32{"192.0.2.0/24": 7, "0.0.0.0/0": 7, "2001:db8::/32": 8} {
		k := bpf.CIDR(netip.MustParsePrefix(p))
		put(t, m["srcrange"], bpf.SrcrangeKey{Plen: k.Plen, SvcId: id, Ip: k.Ip}, uint32(1))
	}
	want := "0.0.0.0/0 (7) | 203.0.113.1:80/TCP\n192.0.2.0/24 (7) | 203.0.113.1:80/TCP\n2001:db8::/32 (8) | \n"
	if got := text(t, New(m), "view:lb-sources"); got != want {
		t.Errorf("source ranges:\n%swant:\n%s", got, want)
	}
	put(t, m["aff"], bpf.AffKey{Client: bpf.IP(ip("192.0.2.77")), SvcId: 7}, bpf.Aff{BackendId: 3, Seen: tick()})
	if got, want := text(t, New(m), "view:lb-affinity"), "192.0.2.77 (7) | 10.244.1.7:8080/TCP (3) idle="; !strings.HasPrefix(got, want) {
		t.Errorf("affinity: %q, want %q", got, want)
	}
}

func TestMaglevTablesAreReadInWhole(t *testing.T) {
	m, _ := lbMaps(t, 0)
	spec, err := bpf.LoadTc()
	if err != nil {
		t.Fatal(err)
	}
	ms := spec.Maps["maglev"].Copy()
	ms.MaxEntries = 16
	if m["maglev"], err = ebpf.NewMap(ms); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m["maglev"].Close() })
	put(t, m["svc"], uint32(7), bpf.Svc{Maglev: 4})
	for i, pair := range [][2]uint32{{3, 4}, {4, 3}, {3, 4}, {4, 99}} { // the last entry is no part of a table of 7
		put(t, m["maglev"], uint32(4+i), bpf.Maglev{BackendId: pair})
	}
	d := New(m)
	d.MaglevSize = 7
	if got, want := text(t, d, "view:lb-maglev"), "7 | 7 entries by backend [3: 3, 4: 4]\n"; got != want {
		t.Errorf("list: %q, want %q", got, want)
	}
	if got, want := text(t, d, "view:lb-maglev:7"), "7 | [3, 4, 4, 3, 3, 4, 4]\n"; got != want {
		t.Errorf("table: %q, want %q", got, want)
	}
	if got := text(t, d, "view:lb-maglev:9"); got != "" {
		t.Errorf("a Service without a table: %q", got)
	}
	if _, err := d.Map("view:lb-maglev:x"); err == nil {
		t.Error("no error for a number that is none")
	}
}

func TestTranslationsAreReadFromBothHalves(t *testing.T) {
	m := kernelMaps(t, "ct4", "ct4_new", "ct6", "ct6_new", "addr")
	put(t, m["addr"], bpf.AddrKey{Ip: bpf.IP(ip("10.244.1.7"))}, bpf.Addr{Kind: bpf.AddrLocalEP})
	put(t, m["addr"], bpf.AddrKey{Ip: bpf.IP(ip("192.0.2.1"))}, bpf.Addr{Kind: bpf.AddrLocalNode})
	now := tick()
	half := func(from, to string, xs, xd string, kind uint8, flags uint16) {
		a, b := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
		s, d := netip.MustParseAddrPort(xs), netip.MustParseAddrPort(xd)
		put(t, m["ct4"], bpf.Ct4Key{A: bpf.IP4(a.Addr()), B: bpf.IP4(b.Addr()), Pa: bpf.Port(a.Port()), Pb: bpf.Port(b.Port()), Proto: 6},
			bpf.Ct4{
				C:     bpf.Ct{Kind: kind, Flags: bpf.CtOrigA | flags, Seen: now, SvcId: 7, TcpO: 0x12},
				Saddr: bpf.IP4(s.Addr()), Daddr: bpf.IP4(d.Addr()), Sport: bpf.Port(s.Port()), Dport: bpf.Port(d.Port()),
			})
	}
	// A pod asks a Service; a client outside asks a NodePort whose backend is on another node.
	half("10.244.1.7:40000", "10.96.0.20:80", "10.244.1.7:40000", "10.244.2.9:8080", bpf.CtFwd, bpf.CtService)
	half("10.244.1.7:40000", "10.244.2.9:8080", "10.96.0.20:80", "10.244.1.7:40000", bpf.CtRev, bpf.CtService|bpf.CtConfirmed)
	half("198.51.100.4:50000", "192.0.2.1:30080", "10.244.1.1:2000", "10.244.2.9:8080", bpf.CtFwd, bpf.CtService|bpf.CtMasq)
	d := New(m)
	want := "TCP IN 10.244.2.9:8080 -> 10.244.1.7:40000 | XLATE_SRC 10.96.0.20:80 Idle=\n" +
		"TCP OUT 10.244.1.7:40000 -> 10.96.0.20:80 | XLATE_DST 10.244.2.9:8080 Idle=\n" +
		"TCP OUT 198.51.100.4:50000 -> 192.0.2.1:30080 | XLATE_SRC 10.244.1.1:2000 XLATE_DST 10.244.2.9:8080 Idle=\n"
	var got strings.Builder
	for _, l := range strings.SplitAfter(text(t, d, "view:nat"), "\n") {
		if before, _, ok := strings.Cut(l, "Idle="); ok {
			got.WriteString(before + "Idle=\n")
		}
	}
	if got.String() != want {
		t.Errorf("nat:\n%swant:\n%s", got.String(), want)
	}
	ct := text(t, d, "view:ct")
	for _, want := range []string{
		"TCP SVC 10.244.1.7:40000 -> 10.96.0.20:80 | expires=",
		"TCP OUT 10.244.1.7:40000 -> 10.244.2.9:8080 | expires=",
		"TCP SVC 198.51.100.4:50000 -> 192.0.2.1:30080 | expires=",
	} {
		if !strings.Contains(ct, want) {
			t.Errorf("no %q in:\n%s", want, ct)
		}
	}
	// Both halves together say that there was a reply: the flow is established.
	m2, err := d.Map("view:ct")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range m2.Cache {
		got, err := strconv.Atoi(e.Fields["remaining"])
		if established := e.Fields["source"] == "10.244.1.7:40000"; err != nil || established != (got > 60) {
			t.Errorf("%s remains %d s, %v", e.Key, got, err)
		}
	}
}
