// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// kernelMaps creates small maps as the programs declare them, some of the sizes given.
func kernelMaps(t *testing.T, sizes map[string]uint32) Maps {
	t.Helper()
	spec, err := bpf.LoadTc()
	if err != nil {
		t.Fatal(err)
	}
	small := map[string]uint32{
		"front": 64, "svc": 64, "slot": 16, "backend": 64, "maglev": Sizes(testMaglev, 4)["maglev"], "srcrange": 64,
	}
	maps.Copy(small, sizes)
	return MapsOf(func(name string) *ebpf.Map {
		ms := spec.Maps[name].Copy()
		if n := small[name]; n > 0 {
			ms.MaxEntries = n
		}
		m, err := ebpf.NewMap(ms)
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, fs.ErrPermission) {
			t.Skipf("cannot create maps: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return m
	})
}

// testMaglev is the size of Maglev tables in tests.
const testMaglev = 251

type fixture struct {
	Maps
	t   *testing.T
	now time.Time
	opt Options
	lb  *Target
}

func newFixture(t *testing.T) *fixture { return newFixtureOf(t, nil) }

func newFixtureOf(t *testing.T, sizes map[string]uint32) *fixture {
	f := &fixture{Maps: kernelMaps(t, sizes), t: t, now: time.Unix(0, 0)}
	f.restart()
	t.Cleanup(func() { f.lb.Close() })
	return f
}

func (f *fixture) restart() {
	f.t.Helper()
	if f.lb != nil {
		if err := f.lb.Close(); err != nil {
			f.t.Fatal(err)
		}
	}
	lb, err := open(f.Maps, f.opt, func() time.Time { return f.now })
	if err != nil {
		f.t.Fatal(err)
	}
	f.lb = lb
}

func (f *fixture) set(front state.Frontend, b state.Balance) {
	f.t.Helper()
	if err := f.lb.Set(f.t.Context(), front, b); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) load() map[state.Frontend]state.Balance {
	f.t.Helper()
	out, err := f.lb.Load(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

func (f *fixture) front(front state.Frontend) bpf.Front {
	f.t.Helper()
	k, err := frontKey(front)
	if err != nil {
		f.t.Fatal(err)
	}
	var v bpf.Front
	if err := f.Front.Lookup(&k, &v); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		f.t.Fatal(err)
	}
	return v
}

func (f *fixture) svc(front state.Frontend) (uint32, bpf.Svc) {
	f.t.Helper()
	v := f.front(front)
	var s bpf.Svc
	if err := f.Svc.Lookup(v.SvcId, &s); err != nil {
		f.t.Fatal(err)
	}
	return v.SvcId, s
}

// chosen reads through system calls what a program would choose from.
func (f *fixture) chosen(ref uint64) (ids []uint32, addrs []string) {
	f.t.Helper()
	b, _ := unpack(ref)
	for i := b.base; i < b.base+b.count; i++ {
		var s bpf.Slots
		var be bpf.Backend
		if err := f.Slot.Lookup(i/bpf.SlotsPerElem, &s); err != nil {
			f.t.Fatal(err)
		}
		id := s.BackendId[i%bpf.SlotsPerElem]
		if err := f.Backend.Lookup(id, &be); err != nil {
			f.t.Fatal(err)
		}
		if id == 0 || be.State != bpf.BackendActive {
			f.t.Fatalf("slot %d holds backend %d in state %d", i, id, be.State)
		}
		ids = append(ids, id)
		addrs = append(addrs, fmt.Sprintf("%s:%d", bpf.FromIP(be.Ip), bpf.Port(be.Port)))
	}
	return ids, addrs
}

func (f *fixture) backend(id uint32) bpf.Backend {
	f.t.Helper()
	var be bpf.Backend
	if err := f.Backend.Lookup(id, &be); err != nil {
		f.t.Fatal(err)
	}
	return be
}

func front(s string) state.Frontend {
	a := netip.MustParseAddrPort(s)
	return state.Frontend{Addr: a.Addr(), Port: a.Port(), Protocol: "TCP"}
}

func eps(in ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range in {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

var (
	web  = front("10.96.0.10:80")
	web6 = front("[fd00:96::a]:80")
	dns  = state.Frontend{Addr: netip.MustParseAddr("10.96.0.53"), Port: 53, Protocol: "UDP"}
)

func TestAServiceReachesThePrograms(t *testing.T) {
	f := newFixture(t)
	f.set(web, state.Balance{All: eps("10.1.0.1:8080", "10.1.0.2:8080")})
	f.set(web6, state.Balance{All: eps("[fd00::1]:8080"), Local: eps("[fd00::1]:8080"), InternalLocal: true})
	f.set(dns, state.Balance{})
	_, s := f.svc(web)
	if _, got := f.chosen(s.BlkAll); !slices.Equal(got, []string{"10.1.0.1:8080", "10.1.0.2:8080"}) || s.Flags != 0 || s.BlkLocal != 0 {
		t.Errorf("web: %v, %+v", got, s)
	}
	_, s = f.svc(web6)
	if _, got := f.chosen(s.BlkLocal); !slices.Equal(got, []string{"fd00::1:8080"}) || s.Flags != bpf.SvcInternalLocal {
		t.Errorf("web6: %v, %+v", got, s)
	}
	if id, s := f.svc(dns); s.BlkAll != 0 || id == 0 {
		t.Errorf("a Service without backends has number %d and block %x", id, s.BlkAll)
	}
}

// TestRemovedBackends follows what conntrack relies on: states, generations, numbers.
func TestRemovedBackends(t *testing.T) {
	f := newFixture(t)
	f.set(web, state.Balance{All: eps("10.1.0.1:8080", "10.1.0.2:8080")})
	_, before := f.svc(web)
	ids, _ := f.chosen(before.BlkAll)
	f.set(web, state.Balance{All: eps("10.1.0.2:8080"), Draining: eps("10.1.0.1:8080")})
	if be := f.backend(ids[0]); be.State != bpf.BackendTerminating {
		t.Errorf("a draining backend is %+v", be)
	}
	if _, s := f.svc(web); s.Gen != before.Gen {
		t.Error("a draining backend raised the generation: its UDP flows look for another")
	}
	f.set(web, state.Balance{All: eps("10.1.0.2:8080")})
	if be := f.backend(ids[0]); be.State != bpf.BackendGone {
		t.Errorf("a removed backend is %+v", be)
	}
	_, s := f.svc(web)
	if s.Gen == before.Gen {
		t.Error("a removed backend did not raise the generation")
	}
	f.set(web, state.Balance{All: eps("10.1.0.2:8080", "10.1.0.3:8080")})
	_, s = f.svc(web)
	if now, _ := f.chosen(s.BlkAll); slices.Contains(now, ids[0]) {
		t.Error("the number of a removed backend is in use at once")
	}
	gen := f.backend(ids[0]).Gen
	f.set(web, state.Balance{All: eps("10.1.0.1:8080", "10.1.0.2:8080")})
	if be := f.backend(ids[0]); be.State != bpf.BackendActive || be.Gen == gen {
		t.Errorf("a backend that came back is %+v, generation was %d", be, gen)
	}
}

// TestSharedBackend removes a backend from two Services one after the other: flows of each choose
// again when theirs drops it.
func TestSharedBackend(t *testing.T) {
	f := newFixture(t)
	other := front("10.96.0.11:80")
	f.set(web, state.Balance{All: eps("10.1.0.1:8080")})
	f.set(other, state.Balance{All: eps("10.1.0.1:8080")})
	_, s := f.svc(web)
	_, o := f.svc(other)
	ids, _ := f.chosen(s.BlkAll)
	before := f.backend(ids[0])
	f.set(web, state.Balance{})
	if be := f.backend(ids[0]); be.State != bpf.BackendActive || be.Gen == before.Gen {
		t.Fatalf("a backend that another Service has is %+v, was %+v", be, before)
	}
	if _, now := f.svc(web); now.Gen == s.Gen {
		t.Error("flows of the Service that dropped the backend stay on it")
	}
	if _, now := f.svc(other); now.Gen != o.Gen {
		t.Error("flows of the other Service are disturbed")
	}
	if err := f.lb.Delete(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if be := f.backend(ids[0]); be.State != bpf.BackendGone {
		t.Errorf("backend of nobody is %+v", be)
	}
}

// TestRestart opens the maps of an earlier run: same numbers, no write needed.
func TestRestart(t *testing.T) {
	f := newFixture(t)
	f.set(dns, state.Balance{Type: state.FrontClusterIP, All: eps("10.1.0.9:53")})
	f.set(web, state.Balance{Type: state.FrontClusterIP, All: eps("10.1.0.1:8080", "10.1.0.2:8080"), Draining: eps("10.1.0.3:8080")})
	id, s := f.svc(web)
	ids, _ := f.chosen(s.BlkAll)
	f.restart()
	want := map[state.Frontend]state.Balance{
		dns: {Type: state.FrontClusterIP, All: eps("10.1.0.9:53")},
		web: {Type: state.FrontClusterIP, All: eps("10.1.0.1:8080", "10.1.0.2:8080")},
	}
	if got := f.load(); !reflect.DeepEqual(got, want) {
		t.Fatalf("after the restart %v, want %v", got, want)
	}
	if n, ok := f.lb.ID(web); !ok || n != id {
		t.Errorf("the Service has number %d, had %d", n, id)
	}
	// The one that drained is still known, and keeps its state until it had its time.
	var draining uint32
	for i := uint32(1); i < 10; i++ {
		if be := f.backend(i); be.State == bpf.BackendTerminating {
			draining = i
		}
	}
	if draining == 0 {
		t.Fatal("no backend drains after the restart")
	}
	f.set(web, state.Balance{All: eps("10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.4:8080")})
	_, s = f.svc(web)
	if now, _ := f.chosen(s.BlkAll); !slices.Equal(now[:2], ids) || now[2] == draining {
		t.Errorf("backends have numbers %v, had %v and %d drains", now, ids, draining)
	}
	f.now = f.now.Add(holdID)
	f.load()
	if be := f.backend(draining); be.State != bpf.BackendGone {
		t.Errorf("the backend that nobody asked for is %+v", be)
	}
}

// TestDamage changes the maps behind the target's back; Load says so and Set repairs.
func TestDamage(t *testing.T) {
	damage := map[string]func(f *fixture, id uint32, s bpf.Svc, ids []uint32) error{
		"block": func(f *fixture, id uint32, s bpf.Svc, _ []uint32) error { s.BlkAll = 7; return f.Svc.Put(id, s) },
		"far": func(f *fixture, id uint32, s bpf.Svc, _ []uint32) error {
			s.BlkAll = 3<<40 | 1<<39
			return f.Svc.Put(id, s)
		},
		"flags":   func(f *fixture, id uint32, s bpf.Svc, _ []uint32) error { s.Flags = 1; return f.Svc.Put(id, s) },
		"slot":    func(f *fixture, _ uint32, _ bpf.Svc, _ []uint32) error { return f.Slot.Put(uint32(0), bpf.Slots{}) },
		"backend": func(f *fixture, _ uint32, _ bpf.Svc, ids []uint32) error { return f.Backend.Put(ids[0], bpf.Backend{}) },
		"affinity": func(f *fixture, id uint32, s bpf.Svc, _ []uint32) error {
			s.AffinitySecs = 9
			return f.Svc.Put(id, s)
		},
		"frontend": func(f *fixture, _ uint32, _ bpf.Svc, _ []uint32) error {
			k, _ := frontKey(web)
			return f.Front.Put(k, bpf.Front{SvcId: 40})
		},
	}
	for name, do := range damage {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s restart=%v", name, restart), func(t *testing.T) {
				f := newFixture(t)
				want := state.Balance{Type: state.FrontClusterIP, All: eps("10.1.0.1:8080", "10.1.0.2:8080")}
				f.set(web, want)
				id, s := f.svc(web)
				ids, _ := f.chosen(s.BlkAll)
				if err := do(f, id, s, ids); err != nil {
					t.Fatal(err)
				}
				if restart {
					f.restart()
				}
				if got := f.load()[web]; got.Satisfies(want) {
					t.Fatalf("damage is not seen: %+v", got)
				}
				f.set(web, want)
				if got := f.load()[web]; !got.Satisfies(want) {
					t.Errorf("not repaired: %+v", got)
				}
				_, s = f.svc(web)
				if _, got := f.chosen(s.BlkAll); len(got) != 2 {
					t.Errorf("programs choose from %v", got)
				}
			})
		}
	}
}
