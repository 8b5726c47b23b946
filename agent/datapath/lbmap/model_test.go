// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	kernel "lash.internal/lash/agent/datapath/maps"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

var (
	sctp     = state.Frontend{Addr: netip.MustParseAddr("10.96.0.9"), Port: 3868, Protocol: "SCTP"}
	hostPort = front("0.0.0.0:8080")
)

// model is what the target should hold.
type model struct {
	*rapid.T
	f    *fixture
	want map[state.Frontend]state.Balance
}

// extras are frontends that any Service of a family may claim.
func extras(proto string, v6 bool) []state.Front {
	addrs := []string{"192.0.2.1", "192.0.2.2", "0.0.0.0"}
	if v6 {
		addrs = []string{"2001:db8::1", "2001:db8::2", "::"}
	}
	var out []state.Front
	for i, a := range addrs {
		fr := state.Frontend{Addr: netip.MustParseAddr(a), Port: 8080 + uint16(i), Protocol: proto}
		kind := []state.FrontType{state.FrontLoadBalancer, state.FrontExternalIP, state.FrontNodePort}[i]
		out = append(out, state.Front{Frontend: fr, Type: kind, Outside: true})
	}
	return out
}

func (m *model) addrs(v6 bool, label string, not ...netip.AddrPort) []netip.AddrPort {
	var out []netip.AddrPort
	for i := range 6 {
		a := netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})
		if v6 {
			a = netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i)})
		}
		ap := netip.AddrPortFrom(a, 80)
		if rapid.Bool().Draw(m.T, label) && !slices.Contains(not, ap) {
			out = append(out, ap)
		}
	}
	return out
}

// balance draws what stands behind a frontend. Frontends that another Service has are taken from it:
// robbed are those Services.
func (m *model) balance(k state.Frontend) (b state.Balance, robbed []state.Frontend) {
	v6 := k.Addr.Is6()
	b = state.Balance{Type: state.FrontClusterIP, All: m.addrs(v6, "all")}
	b.InternalLocal, b.ExternalLocal = rapid.Bool().Draw(m.T, "internal"), rapid.Bool().Draw(m.T, "external")
	if b.InternalLocal || b.ExternalLocal {
		b.Local = m.addrs(v6, "here")
	}
	b.Draining = m.addrs(v6, "draining", slices.Concat(b.All, b.Local)...)
	b.AffinitySecs = rapid.SampledFrom([]uint32{0, 10800}).Draw(m.T, "affinity")
	if k == hostPort {
		b.Type = state.FrontHostPort
		return b, nil
	}
	for _, e := range extras(k.Protocol, v6) {
		if rapid.Bool().Draw(m.T, "front") {
			continue
		}
		e.Sources = e.Type == state.FrontLoadBalancer && rapid.Bool().Draw(m.T, "sources")
		b.Fronts = append(b.Fronts, e)
		if e.Sources {
			for _, p := range []string{"10.0.0.0/8", "192.168.0.0/16"} {
				if !v6 && rapid.Bool().Draw(m.T, "range") {
					b.SourceRanges = append(b.SourceRanges, netip.MustParsePrefix(p))
				}
			}
		}
		for other, o := range m.want {
			i := slices.IndexFunc(o.Fronts, func(x state.Front) bool { return x.Frontend == e.Frontend })
			if other != k && i >= 0 {
				o.Fronts = slices.Delete(slices.Clone(o.Fronts), i, i+1)
				m.want[other] = o
				robbed = append(robbed, other)
			}
		}
	}
	slices.SortFunc(b.Fronts, func(x, y state.Front) int { return x.Compare(y.Frontend) })
	return b, robbed
}

func (m *model) set(k state.Frontend) {
	err := m.f.lb.Set(m.f.t.Context(), k, m.want[k])
	if errors.Is(err, errFull) {
		m.f.now = m.f.now.Add(holdID) // what rests is free again
		err = m.f.lb.Set(m.f.t.Context(), k, m.want[k])
	}
	if err != nil {
		m.Fatal(err)
	}
}

// check compares what the target says, and what programs find, with the model.
func (m *model) check(draining bool) {
	want := maps.Clone(m.want)
	if !draining {
		for k, b := range want {
			b.Draining = nil
			want[k] = b
		}
	}
	if got := m.f.load(); !maps.EqualFunc(got, want, state.Balance.Satisfies) {
		m.Fatalf("maps hold\n%v, want\n%v", got, want)
	}
	fronts, ranges := 0, 0
	for k, b := range want {
		id, s := m.f.svc(k)
		for _, e := range slices.Concat([]state.Front{primary(k, b.Type)}, b.Fronts) {
			fronts++
			v := m.f.front(e.Frontend)
			if v.SvcId != id || v.Flags&bpf.FrontOutside != 0 != e.Outside || v.Flags&bpf.FrontSources != 0 != e.Sources ||
				v.Flags&bpf.FrontPrimary != 0 != (e.Frontend == k) || v.Flags&bpf.FrontThisNode != 0 != (e.Type == state.FrontHostPort) {
				m.Fatalf("frontend %+v is %+v, the Service has number %d", e, v, id)
			}
		}
		ids, _ := m.f.chosen(s.BlkAll)
		local, _ := m.f.chosen(s.BlkLocal)
		if b.ExternalLocal {
			ids = local
		}
		if s.Maglev != 0 {
			m.f.checkTable(s.Maglev, ids)
		}
		for _, p := range b.SourceRanges {
			ranges++
			var one uint32
			k := rangeKey(id, p)
			if err := m.f.Srcrange.Lookup(&k, &one); err != nil {
				m.Fatalf("range %s of Service %d: %v", p, id, err)
			}
		}
	}
	// Nothing else is there; what an earlier run left may be for a while.
	n := 0
	if err := kernel.Each(m.f.Front, func(bpf.FrontKey, bpf.Front) { n++ }); err != nil || n != fronts {
		m.Fatalf("%d frontends, want %d, %v", n, fronts, err)
	}
	n = 0
	if err := kernel.Each(m.f.Srcrange, func(bpf.SrcrangeKey, uint32) { n++ }); err != nil || n != ranges {
		m.Fatalf("%d source ranges, want %d, %v", n, ranges, err)
	}
}

// checkTable compares the backends in a Maglev table with those that callers outside are to get.
func (f *fixture) checkTable(ref uint64, ids []uint32) {
	f.t.Helper()
	share := map[uint32]int{}
	for i := range uint32(testMaglev) {
		var m bpf.Maglev
		if err := f.Maglev.Lookup(uint32(ref)+i/perElem, &m); err != nil {
			f.t.Fatal(err)
		}
		share[m.BackendId[i%perElem]]++
	}
	for _, id := range ids {
		if n := share[id]; n < testMaglev/len(ids) || n > testMaglev/len(ids)+1 {
			f.t.Fatalf("backend %d of %d has %d of %d entries", id, len(ids), n, testMaglev)
		}
		delete(share, id)
	}
	if len(share) != 0 {
		f.t.Fatalf("a table has entries of others: %v", share)
	}
}

// TestTargetAgainstModel sets, deletes, takes frontends over and restarts at random, and compares with
// plain maps.
func TestTargetAgainstModel(t *testing.T) {
	f := newFixture(t)
	f.opt = Options{MaglevSize: testMaglev, MaglevSeed: 7}
	f.restart()
	keys := []state.Frontend{web, web6, dns, sctp, hostPort, front("10.96.0.12:443"), front("10.96.0.13:443")}
	rapid.Check(t, func(rt *rapid.T) {
		for k := range f.load() {
			if err := f.lb.Delete(t.Context(), k); err != nil {
				rt.Fatal(err)
			}
		}
		f.now = f.now.Add(2 * holdID)
		m := &model{T: rt, f: f, want: map[state.Frontend]state.Balance{}}
		rt.Repeat(map[string]func(*rapid.T){
			"set": func(rt *rapid.T) {
				m.T = rt
				k := rapid.SampledFrom(keys).Draw(rt, "frontend")
				b, robbed := m.balance(k)
				m.want[k] = b
				order := append(robbed, k)
				if rapid.Bool().Draw(rt, "takeover") { // the new owner comes before the old one lets go
					slices.Reverse(order)
				}
				for _, k := range order {
					m.set(k)
				}
				m.check(true)
			},
			"delete": func(rt *rapid.T) {
				m.T = rt
				k := rapid.SampledFrom(keys).Draw(rt, "frontend")
				if err := f.lb.Delete(t.Context(), k); err != nil {
					rt.Fatal(err)
				}
				delete(m.want, k)
				m.check(true)
			},
			"delete the loser": func(rt *rapid.T) {
				m.T = rt
				k := rapid.SampledFrom(keys).Draw(rt, "frontend")
				b, robbed := m.balance(k)
				m.want[k] = b
				m.set(k)
				for _, l := range robbed {
					if err := f.lb.Delete(t.Context(), l); err != nil {
						rt.Fatal(err)
					}
					delete(m.want, l)
				}
				m.check(true)
			},
			"restart": func(rt *rapid.T) {
				m.T = rt
				f.restart()
				m.check(false)
				for k := range m.want { // as a loop would
					m.set(k)
				}
				m.check(true)
			},
			"wait": func(*rapid.T) { f.now = f.now.Add(holdBlock) },
		})
	})
}
