// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// tableOf builds a table and returns the address of each entry.
func tableOf(size, seed uint32, bs []*backend) []netip.AddrPort {
	m := builder{size: size, seed: seed, entries: make([]int32, size)}
	sorted, entries := m.table(bs)
	out := make([]netip.AddrPort, 0, size)
	for _, i := range entries {
		out = append(out, sorted[i].addr())
	}
	return out
}

// TestSharesAreEven holds the share of each backend to one entry's difference.
func TestSharesAreEven(t *testing.T) {
	for _, n := range []int{2, 3, 100, 1000} {
		share := map[netip.AddrPort]int{}
		for _, a := range tableOf(16381, 1, someBackends(n)) {
			share[a]++
		}
		least, most := slices.Min(slices.Collect(maps.Values(share))), slices.Max(slices.Collect(maps.Values(share)))
		if len(share) != n || least < 16381/n || most > 16381/n+1 {
			t.Errorf("%d of %d backends have %d to %d entries", len(share), n, least, most)
		}
	}
}

// TestFewEntriesMove removes one of 100 backends, and adds one.
func TestFewEntriesMove(t *testing.T) {
	const size = 16381
	all := someBackends(101)
	for _, change := range []struct {
		what     string
		from, to []*backend
	}{
		{"removal", all[:100], slices.Concat(all[:37], all[38:100])},
		{"addition", all[:100], all},
	} {
		before, after := tableOf(size, 1, change.from), tableOf(size, 1, change.to)
		stays := map[netip.AddrPort]bool{}
		for _, b := range change.to {
			stays[b.addr()] = true
		}
		moved, had := 0, 0
		for i := range before {
			if !stays[before[i]] {
				continue
			}
			had++
			if before[i] != after[i] {
				moved++
			}
		}
		if limit := had * 4 / 100; moved > limit {
			t.Errorf("%s of one of 100 backends moves %d of the %d entries of the others, want at most %d", change.what, moved, had, limit)
		}
		t.Logf("%s: %d of %d entries of the others move", change.what, moved, had)
	}
}

// TestEveryNodeHasTheSameTable gives backends other numbers and another order.
func TestEveryNodeHasTheSameTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bs := someBackends(rapid.IntRange(1, 40).Draw(t, "backends"))
		seed := rapid.Uint32().Draw(t, "seed")
		want := tableOf(testMaglev, seed, bs)
		var there []*backend
		for _, b := range rapid.Permutation(bs).Draw(t, "order") {
			c := *b
			c.id, c.gen = uint32(1000-len(there)), 7
			there = append(there, &c)
		}
		if got := tableOf(testMaglev, seed, there); !slices.Equal(got, want) {
			t.Fatalf("another node has\n%v, this one\n%v", got, want)
		}
	})
	bs := someBackends(10)
	if slices.Equal(tableOf(testMaglev, 1, bs), tableOf(testMaglev, 2, bs)) {
		t.Error("the seed makes no difference")
	}
	// What nodes of two versions compute has to be the same: this table is part of the protocol.
	var first []int
	m := builder{size: 7, seed: 42, entries: make([]int32, 7)}
	_, entries := m.table(someBackends(3))
	for _, e := range entries {
		first = append(first, int(e))
	}
	if want := []int{1, 2, 2, 0, 0, 1, 0}; !slices.Equal(first, want) {
		t.Errorf("table of three backends is %v, want %v", first, want)
	}
}

func maglevFixture(t *testing.T) *fixture {
	f := newFixture(t)
	f.opt = Options{MaglevSize: testMaglev, MaglevSeed: 7}
	f.restart()
	return f
}

// outsideView checks the table of a Service against the backends in a block and returns whether it has one.
func (f *fixture) outsideView(fr state.Frontend, local bool) bool {
	f.t.Helper()
	_, s := f.svc(fr)
	if s.Maglev == 0 {
		return false
	}
	ref := s.BlkAll
	if local {
		ref = s.BlkLocal
	}
	ids, _ := f.chosen(ref)
	f.checkTable(s.Maglev, ids)
	return true
}

func TestWhoHasATable(t *testing.T) {
	f := maglevFixture(t)
	many, few := eps("10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"), eps("10.1.0.1:80", "10.1.0.3:80")
	steps := []struct {
		what  string
		b     state.Balance
		table bool
	}{
		{"inside only", state.Balance{All: many}, false},
		{"outside", state.Balance{All: many, Fronts: []state.Front{nodePort}}, true},
		{"fewer", state.Balance{All: few, Fronts: []state.Front{nodePort}}, true},
		{"local policy", state.Balance{All: many, Local: few, ExternalLocal: true, Fronts: []state.Front{nodePort}}, true},
		{"one here", state.Balance{All: many, Local: few[:1], ExternalLocal: true, Fronts: []state.Front{nodePort}}, false},
		{"none", state.Balance{Fronts: []state.Front{nodePort}}, false},
		{"again", state.Balance{All: many, Fronts: []state.Front{nodePort}}, true},
		{"inside again", state.Balance{All: many}, false},
	}
	for _, restart := range []bool{false, true} {
		for _, s := range steps {
			s.b.Type = state.FrontClusterIP
			f.set(web, s.b)
			if restart {
				f.restart()
			}
			if got := f.outsideView(web, s.b.ExternalLocal); got != s.table {
				t.Errorf("%s: table %v, want %v", s.what, got, s.table)
			}
			if got := f.load()[web]; !got.Satisfies(s.b) {
				t.Errorf("%s: %+v, want %+v", s.what, got, s.b)
			}
		}
	}
}

// TestNoRoomForATable makes callers get a backend at random until there is room.
func TestNoRoomForATable(t *testing.T) {
	f := maglevFixture(t) // four tables
	b := func(i int) state.Balance {
		fr := nodePort
		fr.Port += uint16(i)
		return state.Balance{Type: state.FrontClusterIP, All: eps("10.1.0.1:80", "10.1.0.2:80"), Fronts: []state.Front{fr}}
	}
	services := []state.Frontend{web, other, front("10.96.0.12:80"), front("10.96.0.13:80"), front("10.96.0.14:80")}
	for i, k := range services {
		f.set(k, b(i))
	}
	if s := f.lb.Status(); s.Tables != 4 || s.Roomless != 1 || f.outsideView(services[4], false) {
		t.Fatalf("five Services and room for four tables: %+v", s)
	}
	if got := f.load()[services[4]]; !got.Satisfies(b(4)) {
		t.Errorf("the Service without a table is %+v", got)
	}
	if err := f.lb.Delete(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	f.load()
	if f.lb.Status().Roomless != 1 {
		t.Error("a table that programs may still read is given to another Service")
	}
	f.now = f.now.Add(holdBlock)
	f.load()
	if s := f.lb.Status(); s.Tables != 4 || s.Roomless != 0 || !f.outsideView(services[4], false) {
		t.Errorf("a table is free, and %+v", s)
	}
}

// TestTablesAfterARestart are believed if they are right. Others are written anew, and those that lead
// to backends of other Services are not used until then.
func TestTablesAfterARestart(t *testing.T) {
	want := state.Balance{Type: state.FrontClusterIP, All: eps("10.1.0.1:80", "10.1.0.2:80"), Fronts: []state.Front{nodePort}}
	for _, c := range []struct {
		what   string
		change func(f *fixture, id uint32, s bpf.Svc) error
		whole  bool // nothing has to be written
		used   bool
	}{
		{"nothing", func(*fixture, uint32, bpf.Svc) error { return nil }, true, true},
		{"an entry of its own", func(f *fixture, _ uint32, s bpf.Svc) error {
			ids, _ := f.chosen(s.BlkAll)
			return f.Maglev.Put(uint32(s.Maglev), bpf.Maglev{BackendId: [2]uint32{ids[0], ids[0]}})
		}, false, true},
		{"another's entry", func(f *fixture, _ uint32, s bpf.Svc) error {
			return f.Maglev.Put(uint32(s.Maglev)+3, bpf.Maglev{BackendId: [2]uint32{60, 61}})
		}, false, false},
		{"beyond the end", func(f *fixture, id uint32, s bpf.Svc) error { s.Maglev = 1 << 33; return f.Svc.Put(id, s) }, false, false},
		{"not a beginning", func(f *fixture, id uint32, s bpf.Svc) error { s.Maglev++; return f.Svc.Put(id, s) }, false, false},
		{"another seed", func(f *fixture, _ uint32, _ bpf.Svc) error { f.opt.MaglevSeed++; return nil }, false, true},
		{"no Maglev", func(f *fixture, _ uint32, _ bpf.Svc) error { f.opt.MaglevSize = 0; return nil }, true, false},
	} {
		f := maglevFixture(t)
		f.set(web, want)
		id, s := f.svc(web)
		if err := c.change(f, id, s); err != nil {
			t.Fatal(err)
		}
		f.restart()
		if _, s := f.svc(web); (s.Maglev != 0) != c.used {
			t.Errorf("%s: table at %d after the restart, used %v", c.what, s.Maglev, c.used)
		}
		if got := f.load()[web]; got.Satisfies(want) != c.whole {
			t.Errorf("%s: %+v, whole %v", c.what, got, c.whole)
		}
		f.set(web, want)
		if got := f.load()[web]; !got.Satisfies(want) || f.outsideView(web, false) != (f.opt.MaglevSize > 0) {
			t.Errorf("%s: not repaired: %+v", c.what, got)
		}
	}
}

func TestMaglevTurnedOnByARestart(t *testing.T) {
	f := newFixture(t)
	want := state.Balance{Type: state.FrontClusterIP, All: eps("10.1.0.1:80", "10.1.0.2:80"), Fronts: []state.Front{nodePort}}
	f.set(web, want)
	f.opt = Options{MaglevSize: testMaglev}
	f.restart()
	if got := f.load()[web]; !got.Satisfies(want) || !f.outsideView(web, false) {
		t.Errorf("%+v, has a table: %v", got, f.outsideView(web, false))
	}
}

// TestDamagedTable is one that somebody writes to while the agent runs.
func TestDamagedTable(t *testing.T) {
	f := maglevFixture(t)
	want := state.Balance{Type: state.FrontClusterIP, All: eps("10.1.0.1:80", "10.1.0.2:80"), Fronts: []state.Front{nodePort}}
	f.set(web, want)
	_, s := f.svc(web)
	if err := f.Maglev.Put(uint32(s.Maglev)+5, bpf.Maglev{}); err != nil {
		t.Fatal(err)
	}
	if got := f.load()[web]; got.Satisfies(want) {
		t.Error("the damage is not seen")
	}
	f.set(web, want)
	if got := f.load()[web]; !got.Satisfies(want) || !f.outsideView(web, false) {
		t.Errorf("not repaired: %+v", got)
	}
}

func TestMaglevOptions(t *testing.T) {
	m := kernelMaps(t, nil)
	if _, err := Open(m, Options{MaglevSize: 16380}); err == nil {
		t.Error("a size that is not prime is accepted")
	}
	if _, err := Open(m, Options{MaglevSize: 16381}); err == nil {
		t.Error("a map without room for one table is accepted")
	}
	if n := Sizes(0, 0)["maglev"]; n != 1 {
		t.Errorf("without Maglev the map has %d elements", n)
	}
	if n := Sizes(16381, 2048)["maglev"]; n != 1+2048*8191 {
		t.Errorf("2048 tables take %d elements", n)
	}
	if n := Sizes(16381, 0)["maglev"]; n*8 > 64<<20 || n < 1000*8191 {
		t.Errorf("64 MiB of tables are %d elements", n)
	}
}
