// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	kernel "lash.internal/lash/agent/datapath/maps"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

var (
	other    = front("10.96.0.11:80")
	nodePort = state.Front{Frontend: front("0.0.0.0:30080"), Type: state.FrontNodePort, Outside: true}
	external = state.Front{Frontend: front("192.0.2.7:80"), Type: state.FrontExternalIP, Outside: true}
	balancer = state.Front{Frontend: front("203.0.113.9:80"), Type: state.FrontLoadBalancer, Outside: true, Sources: true}
	shared   = state.Front{Frontend: front("192.0.2.8:8080"), Type: state.FrontHostPort, Outside: true}
)

func prefixList(in ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range in {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// allows says whether a program would let a source use the frontends with source ranges.
func (f *fixture) allows(id uint32, ip string) bool {
	f.t.Helper()
	k := bpf.SrcrangeKey{Plen: 32 + 128, SvcId: id, Ip: bpf.IP(netip.MustParseAddr(ip))}
	var v uint32
	err := f.Srcrange.Lookup(&k, &v)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		f.t.Fatal(err)
	}
	return err == nil
}

// TestEveryKindOfFrontend leads to one Service port, with what programs have to know about it.
func TestEveryKindOfFrontend(t *testing.T) {
	f := newFixture(t)
	b := state.Balance{
		Type: state.FrontClusterIP, All: eps("10.1.0.1:80"), Fronts: []state.Front{nodePort, external, shared, balancer},
		SourceRanges: prefixList("198.51.100.0/24"), AffinitySecs: 60, ExternalLocal: true,
	}
	f.set(web, b)
	id, s := f.svc(web)
	if s.AffinitySecs != 60 || s.Flags != bpf.SvcExternalLocal {
		t.Errorf("the Service is %+v", s)
	}
	kind := func(k uint32) uint32 { return k << bpf.FrontTypeShift }
	for fr, flags := range map[state.Frontend]uint32{
		web:               bpf.FrontPrimary,
		nodePort.Frontend: bpf.FrontOutside | kind(bpf.FrontNodePort),
		external.Frontend: bpf.FrontOutside | kind(bpf.FrontExternalIP),
		shared.Frontend:   bpf.FrontOutside | kind(bpf.FrontHostPort),
		balancer.Frontend: bpf.FrontOutside | bpf.FrontSources | kind(bpf.FrontLoadBalancer),
	} {
		if got := f.front(fr); got.SvcId != id || got.Flags != flags {
			t.Errorf("frontend %s is %+v, want Service %d and flags %x", fr, got, id, flags)
		}
		if n, ok := f.lb.ID(fr); !ok || n != id {
			t.Errorf("frontend %s has number %d", fr, n)
		}
	}
	f.restart()
	if got := f.load()[web]; !got.Satisfies(b) {
		t.Errorf("after a restart %+v, want %+v", got, b)
	}
	b.Fronts = []state.Front{external}
	b.SourceRanges = nil
	f.set(web, b)
	if f.front(nodePort.Frontend).SvcId != 0 || f.front(external.Frontend).SvcId != id || f.allows(id, "198.51.100.1") {
		t.Error("a frontend that is no longer wanted, or a range, is there")
	}
	for _, name := range []string{"0.0.0.0:8080", "[::]:8080"} {
		hp := front(name)
		f.set(hp, state.Balance{Type: state.FrontHostPort, All: nil})
		if want := bpf.FrontPrimary | bpf.FrontOutside | bpf.FrontThisNode | kind(bpf.FrontHostPort); f.front(hp).Flags != want {
			t.Errorf("HostPort %s has flags %x, want %x", hp, f.front(hp).Flags, want)
		}
	}
	f.restart()
	if got := f.load(); len(got) != 3 || got[front("[::]:8080")].Type != state.FrontHostPort {
		t.Errorf("after a restart %v", got)
	}
}

// TestBadFrontends are refused with their name, and nothing of the Service is written.
func TestBadFrontends(t *testing.T) {
	f := newFixture(t)
	udp := nodePort
	udp.Protocol = "UDP"
	for what, b := range map[string]state.Balance{
		"another family or protocol": {Fronts: []state.Front{udp}},
		"stands there twice":         {Fronts: []state.Front{external, external}},
		"no such type":               {Fronts: []state.Front{{Frontend: external.Frontend, Type: "Ingress"}}},
		"bits beyond its length":     {SourceRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}},
	} {
		if err := f.lb.Set(t.Context(), web, b); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("got %v, want %q", err, what)
		}
	}
	if got := f.load(); len(got) != 0 {
		t.Errorf("maps hold %v", got)
	}
}

// TestWhoLeavesRaisesTheNumberOfTheSet follows what affinity relies on.
func TestWhoLeavesRaisesTheNumberOfTheSet(t *testing.T) {
	f := newFixture(t)
	steps := []struct {
		what   string
		b      state.Balance
		raised bool
	}{
		{"first", state.Balance{All: eps("10.1.0.1:80", "10.1.0.2:80")}, true},
		{"one more", state.Balance{All: eps("10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80")}, false},
		{"one drains", state.Balance{All: eps("10.1.0.1:80", "10.1.0.2:80"), Draining: eps("10.1.0.3:80")}, true},
		{"it is gone", state.Balance{All: eps("10.1.0.1:80", "10.1.0.2:80")}, false},
		{"a frontend", state.Balance{All: eps("10.1.0.1:80", "10.1.0.2:80"), Fronts: []state.Front{nodePort}}, false},
		{"local policy", state.Balance{All: eps("10.1.0.1:80", "10.1.0.2:80"), Local: eps("10.1.0.1:80", "10.1.0.2:80"), ExternalLocal: true}, true},
		{"one is no longer here", state.Balance{All: eps("10.1.0.1:80", "10.1.0.2:80"), Local: eps("10.1.0.1:80"), ExternalLocal: true}, true},
		{"one is replaced", state.Balance{All: eps("10.1.0.1:80", "10.1.0.4:80"), Local: eps("10.1.0.1:80"), ExternalLocal: true}, true},
	}
	before := uint32(0)
	for _, s := range steps {
		f.set(web, s.b)
		if _, now := f.svc(web); (now.SetGen != before) != s.raised {
			t.Errorf("%s: the number of the set goes from %d to %d", s.what, before, now.SetGen)
		} else {
			before = now.SetGen
		}
	}
	if err := f.lb.Delete(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	f.now = f.now.Add(2 * holdID)
	f.set(dns, state.Balance{}) // the same number, another Service
	if _, s := f.svc(dns); s.SetGen == before {
		t.Error("clients of a Service that was deleted keep their backends in another one")
	}
}

// TestSourceRanges are there before a frontend that asks for them.
func TestSourceRanges(t *testing.T) {
	f := newFixtureOf(t, map[string]uint32{"srcrange": 2})
	b := state.Balance{Type: state.FrontClusterIP, Fronts: []state.Front{balancer}, SourceRanges: prefixList("10.0.0.0/8", "192.168.0.0/16", "198.51.100.0/24")}
	if err := f.lb.Set(t.Context(), web, b); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("three ranges in two places: %v", err)
	}
	if f.front(balancer.Frontend).SvcId != 0 || f.front(web).SvcId != 0 {
		t.Fatal("a frontend is there without its ranges")
	}
	b.SourceRanges = prefixList("10.0.0.0/8", "192.168.7.0/24")
	f.set(web, b)
	id, _ := f.svc(web)
	if !f.allows(id, "10.9.9.9") || !f.allows(id, "192.168.7.1") || f.allows(id, "198.51.100.1") || f.allows(id, "192.168.8.1") || f.allows(id+1, "10.9.9.9") {
		t.Error("the ranges are not those that were asked for")
	}
	f.restart()
	if got := f.load()[web]; !got.Satisfies(b) {
		t.Errorf("after a restart %+v", got)
	}
	k := rangeKey(id, b.SourceRanges[0])
	if err := f.Srcrange.Delete(&k); err != nil {
		t.Fatal(err)
	}
	if got := f.load()[web]; got.Satisfies(b) {
		t.Error("a range that is missing is not seen")
	}
	f.set(web, b)
	if got := f.load()[web]; !got.Satisfies(b) || !f.allows(id, "10.9.9.9") {
		t.Errorf("not repaired: %+v", got)
	}
	if err := f.lb.Delete(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	if f.allows(id, "10.9.9.9") {
		t.Error("a deleted Service has ranges")
	}
	b6 := state.Balance{Fronts: []state.Front{{Frontend: front("[2001:db8::9]:80"), Type: state.FrontLoadBalancer, Outside: true, Sources: true}}, SourceRanges: prefixList("2001:db8:1::/48")}
	f.set(web6, b6)
	id, _ = f.svc(web6)
	if !f.allows(id, "2001:db8:1::5") || f.allows(id, "2001:db8:2::5") {
		t.Error("IPv6 ranges are not those that were asked for")
	}
}

// TestTakenOver moves a frontend from one Service to another: whatever the order, the new owner has it
// in the end and the old one is whole without it.
func TestTakenOver(t *testing.T) {
	with := state.Balance{Type: state.FrontClusterIP, All: eps("10.1.0.1:80"), Fronts: []state.Front{external}}
	without := state.Balance{Type: state.FrontClusterIP, All: eps("10.1.0.1:80")}
	for name, loser := range map[string]func(*fixture) error{
		"set":    func(f *fixture) error { return f.lb.Set(f.t.Context(), web, without) },
		"delete": func(f *fixture) error { return f.lb.Delete(f.t.Context(), web) },
	} {
		for _, restart := range []bool{false, true} {
			f := newFixture(t)
			f.set(web, with)
			f.set(other, with)
			if restart {
				f.restart()
			}
			if got := f.load(); got[web].Satisfies(with) || !got[other].Satisfies(with) {
				t.Errorf("%s: in between %v", name, got)
			}
			if err := loser(f); err != nil {
				t.Fatal(err)
			}
			id, _ := f.svc(other)
			got := f.load()
			if f.front(external.Frontend).SvcId != id || !got[other].Satisfies(with) {
				t.Errorf("%s: the frontend is %+v, the new owner %+v", name, f.front(external.Frontend), got[other])
			}
			if b, there := got[web]; there != (name == "set") || there && !b.Satisfies(without) {
				t.Errorf("%s: the old owner is %+v", name, b)
			}
		}
	}
}

// TestPrimaryTakenOver is a Service whose own address another claims, and that is then deleted.
func TestPrimaryTakenOver(t *testing.T) {
	f := newFixture(t)
	claim := state.Balance{Type: state.FrontClusterIP, Fronts: []state.Front{{Frontend: web, Type: state.FrontExternalIP, Outside: true}}}
	f.set(web, state.Balance{Type: state.FrontClusterIP, All: eps("10.1.0.1:80")})
	f.set(other, claim)
	if got := f.load(); !got[web].Damaged || !got[other].Satisfies(claim) {
		t.Errorf("in between %v", got)
	}
	if err := f.lb.Delete(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	if got := f.load(); len(got) != 1 || !got[other].Satisfies(claim) {
		t.Errorf("afterwards %v", got)
	}
}

// TestStrays are frontends that nobody has asked for: Load finds them, and what it then says ends them.
func TestStrays(t *testing.T) {
	for _, restart := range []bool{false, true} {
		f := newFixture(t)
		want := state.Balance{Type: state.FrontClusterIP, All: eps("10.1.0.1:80"), Fronts: []state.Front{nodePort}}
		f.set(web, want)
		id, _ := f.svc(web)
		for fr, v := range map[state.Frontend]bpf.Front{
			front("192.0.2.1:1"):   {SvcId: id, Flags: bpf.FrontOutside},
			front("192.0.2.2:1"):   {SvcId: 50, Flags: bpf.FrontOutside},
			front("192.0.2.3:1"):   {SvcId: 50},
			front("192.0.2.4:1"):   {SvcId: 1 << 30, Flags: bpf.FrontPrimary},
			front("192.0.2.5:1"):   {SvcId: 0},
			front("192.0.2.6:1"):   {SvcId: 51, Flags: bpf.FrontPrimary | 9<<bpf.FrontTypeShift},
			front("10.96.0.99:80"): {SvcId: 52, Flags: bpf.FrontPrimary},
		} {
			k, _ := frontKey(fr)
			if err := f.Front.Put(k, v); err != nil {
				t.Fatal(err)
			}
		}
		if restart {
			f.restart()
		}
		wanted := map[state.Frontend]state.Balance{web: want}
		for range 2 { // as a loop would
			for k, b := range f.load() {
				if w, ok := wanted[k]; !ok {
					if err := f.lb.Delete(t.Context(), k); err != nil {
						t.Fatal(err)
					}
				} else if !b.Satisfies(w) {
					f.set(k, w)
				}
			}
		}
		n := 0
		if err := kernel.Each(f.Front, func(bpf.FrontKey, bpf.Front) { n++ }); err != nil || n != 2 {
			t.Errorf("restart=%v: %d frontends are left, want 2, %v", restart, n, err)
		}
		if got := f.load(); len(got) != 1 || !got[web].Satisfies(want) {
			t.Errorf("restart=%v: %v", restart, got)
		}
		if now, _ := f.svc(web); now != id {
			t.Errorf("restart=%v: the number of the Service is %d, was %d", restart, now, id)
		}
	}
}

// TestFrontendsOfAnEarlierVersion had no flags. Their Service keeps its number.
func TestFrontendsOfAnEarlierVersion(t *testing.T) {
	f := newFixture(t)
	want := state.Balance{Type: state.FrontClusterIP, All: eps("10.1.0.1:80")}
	f.set(web, want)
	id, s := f.svc(web)
	ids, _ := f.chosen(s.BlkAll)
	k, _ := frontKey(web)
	if err := f.Front.Put(k, bpf.Front{SvcId: id}); err != nil {
		t.Fatal(err)
	}
	f.restart()
	if got := f.load()[web]; got.Satisfies(want) {
		t.Fatal("the missing flags are not seen")
	}
	f.set(web, want)
	now, s := f.svc(web)
	if got, _ := f.chosen(s.BlkAll); now != id || !slices.Equal(got, ids) || f.front(web).Flags != bpf.FrontPrimary {
		t.Errorf("number %d and backends %v, had %d and %v", now, got, id, ids)
	}
}

// TestNoRoomForAFrontend leaves nothing behind of a Service that could not be written.
func TestNoRoomForAFrontend(t *testing.T) {
	f := newFixtureOf(t, map[string]uint32{"front": 2})
	f.set(web, state.Balance{Type: state.FrontClusterIP, All: eps("10.1.0.1:80"), Fronts: []state.Front{nodePort}})
	want := state.Balance{Type: state.FrontClusterIP, All: eps("10.1.0.2:80")}
	if err := f.lb.Set(t.Context(), other, want); !errors.Is(err, unix.E2BIG) {
		t.Fatalf("a third frontend in two places: %v", err)
	}
	if got := f.load(); len(got) != 1 || f.lb.Status().Ports != 1 {
		t.Errorf("maps hold %v", got)
	}
	for i := uint32(1); i < 4; i++ {
		if be := f.backend(i); be.State == bpf.BackendActive && bpf.FromIP(be.Ip) == netip.MustParseAddr("10.1.0.2") {
			t.Errorf("backend %d of nobody is active", i)
		}
	}
	f.set(web, state.Balance{Type: state.FrontClusterIP, All: eps("10.1.0.1:80")})
	f.set(other, want)
	if got := f.load(); !got[other].Satisfies(want) {
		t.Errorf("maps hold %v", got)
	}
}

// TestTheLastBackendsStay is the API server's Service while it has none.
func TestTheLastBackendsStay(t *testing.T) {
	f := newFixture(t)
	f.set(web, state.Balance{All: eps("10.1.0.1:80"), KeepLast: true})
	f.set(web, state.Balance{KeepLast: true, Fronts: []state.Front{nodePort}})
	_, s := f.svc(web)
	if _, got := f.chosen(s.BlkAll); !slices.Equal(got, []string{"10.1.0.1:80"}) || f.front(nodePort.Frontend).SvcId == 0 {
		t.Errorf("backends %v, NodePort %+v", got, f.front(nodePort.Frontend))
	}
}

// TestPortsOfBackendsOnTheNode are known to programs as long as a backend has them, and then as long as
// flows have them.
func TestPortsOfBackendsOnTheNode(t *testing.T) {
	f := newFixture(t)
	own := netip.MustParseAddr("172.18.0.2")
	f.opt.Local = func(a netip.Addr) bool { return a == own }
	f.restart()
	ports := func() (out []uint32) {
		if err := kernel.Each(f.Hostback, func(i uint32, w uint64) {
			for bit := range uint32(64) {
				if w>>bit&1 != 0 {
					out = append(out, i*64+bit)
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	check := func(what string, want ...uint32) {
		t.Helper()
		if got := ports(); !slices.Equal(got, want) {
			t.Errorf("%s: bits %v, want %v", what, got, want)
		}
	}
	// sweep is a look at the flows, after some time, that finds some with these ports.
	sweep := func(after time.Duration, bits ...uint32) {
		var used Ports
		for _, b := range bits {
			used[b/64] |= 1 << (b % 64)
		}
		f.now = f.now.Add(after)
		f.lb.ReleasePorts(f.now, &used)
	}
	const udp = bpf.HostbackWords * 64
	f.set(web, state.Balance{All: eps("10.1.0.1:80", "172.18.0.2:6443", "172.18.0.3:7000")})
	f.set(dns, state.Balance{All: eps("172.18.0.2:53")})
	f.set(sctp, state.Balance{All: eps("172.18.0.2:3868")})
	check("backends", 6443, udp+53)
	f.set(web, state.Balance{All: eps("10.1.0.1:80"), Draining: eps("172.18.0.2:6443")})
	sweep(2 * holdID)
	check("one drains", 6443, udp+53)
	f.restart()
	check("restart", 6443, udp+53)
	f.set(web, state.Balance{All: eps("10.1.0.1:80", "172.18.0.2:6443", "172.18.0.3:7000")})
	f.set(web, state.Balance{All: eps("10.1.0.1:80", "172.18.0.3:7000")})
	check("one is gone", 6443, udp+53)
	sweep(holdID - 1)
	check("its flows may only begin", 6443, udp+53)
	f.restart()
	f.lb.AddressesChanged()
	sweep(holdID, 6443)
	check("a connection has outlived it", 6443, udp+53)
	sweep(10*holdID, 6443)
	check("still", 6443, udp+53)
	sweep(time.Second, udp+6443)
	check("it has ended", udp+53)
	own = netip.MustParseAddr("172.18.0.3")
	f.lb.AddressesChanged()
	check("another address", 7000, udp+53)
	sweep(holdID)
	check("another address, no flow", 7000)
	if err := f.Hostback.Put(uint32(7000/64), uint64(0)); err != nil {
		t.Fatal(err)
	}
	f.load()
	check("a lost bit", 7000)
	if err := f.lb.Delete(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	f.set(web, state.Balance{All: eps("172.18.0.3:7000")})
	sweep(2 * holdID)
	check("it is there again", 7000)
	if err := f.lb.Delete(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	sweep(holdID)
	check("none")
}

// TestSocketsThatOutliveTheirBackend are those that a Service has connected to what it no longer has.
func TestSocketsThatOutliveTheirBackend(t *testing.T) {
	f := newFixture(t)
	spec, err := bpf.LoadSock()
	if err != nil {
		t.Fatal(err)
	}
	if f.Skrev, err = ebpf.NewMap(spec.Maps["skrev"]); err != nil {
		t.Fatal(err)
	}
	defer f.Skrev.Close()
	f.restart()
	peers := eps("10.1.0.1:53", "10.1.0.2:53", "10.1.0.3:53")
	f.set(dns, state.Balance{All: peers})
	id, s := f.svc(dns)
	for i, p := range peers {
		k := bpf.SkrevKey{Cookie: uint64(i), Ip: bpf.IP(p.Addr()), Port: bpf.Port(p.Port())}
		if err := f.Skrev.Put(&k, &bpf.Skrev{SvcId: id, Gen: s.Gen}); err != nil {
			t.Fatal(err)
		}
	}
	check := func(what string, want ...bool) {
		t.Helper()
		for i, p := range peers {
			if got, err := f.lb.Outlived(uint64(i), p); err != nil || got != want[i] {
				t.Errorf("%s: socket to %s: %v, %v, want %v", what, p, got, err, want[i])
			}
			if got, err := f.lb.Outlived(uint64(i+10), p); err != nil || got {
				t.Errorf("%s: a socket that has no Service: %v, %v", what, got, err)
			}
		}
	}
	check("all are there", false, false, false)
	left := f.lb.Left()
	f.set(dns, state.Balance{All: peers[:1], Draining: peers[1:2]})
	check("one drains, one is gone", false, false, true)
	select {
	case <-left:
	default:
		t.Error("nobody is told that a backend left")
	}
	f.set(dnsToo, state.Balance{All: peers}) // another Service has them
	check("another Service has it", false, false, true)
	f.restart()
	f.set(dns, state.Balance{All: peers[:1]})
	check("after a restart", false, true, true)
	if err := f.lb.Delete(t.Context(), dns); err != nil {
		t.Fatal(err)
	}
	check("the Service is deleted", true, true, true)
	f.now = f.now.Add(2 * holdID)
	f.set(web, state.Balance{All: peers}) // may get the number
	check("its number is another's", true, true, true)
}

var dnsToo = state.Frontend{Addr: netip.MustParseAddr("10.96.0.20"), Port: 53, Protocol: "UDP"}
