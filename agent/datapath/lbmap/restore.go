// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"cmp"
	"net/netip"
	"slices"
	"sync/atomic"

	"lash.internal/lash/bpf"
)

// restore reads what an earlier run has written.
func (t *Target) restore() error {
	n := 0
	for id := uint32(1); id < t.backends.len; id++ {
		if t.backends.at(id).State != bpf.BackendGone {
			n++
		}
	}
	t.byAddr = make(map[endpoint]uint32, n)
	for id := uint32(1); id < t.backends.len; id++ {
		e := *t.backends.at(id)
		if e.State == bpf.BackendGone || e.Ip == [16]byte{} {
			continue
		}
		b := &backend{endpoint: endpoint{e.Ip, e.Port, e.Proto}, id: id, gen: e.Gen}
		if t.byAddr[b.endpoint] != 0 || !t.backendIDs.reserve(id) {
			continue
		}
		t.byAddr[b.endpoint] = id
		t.byID.put(id, b)
		t.host.add(b)
	}
	t.host.rest()
	es, err := t.takeFronts()
	if err != nil {
		return err
	}
	if err := t.readRanges(); err != nil {
		return err
	}
	t.records = make(map[bpf.FrontKey]*record, len(es)/2)
	t.adoptAll(es)
	t.current = true
	for _, b := range t.byID {
		if b != nil && b.state() == bpf.BackendGone {
			t.orphans = append(t.orphans, b)
		}
	}
	return nil
}

// adoptAll makes records of elements of map front, grouped by the number that they lead to.
func (t *Target) adoptAll(all []entry) {
	next := make([]int32, len(all))    // by index in all: the one before with the same number, 1 + index
	heads := make([]int32, t.svcs.len) // by number: the last one
	for i, e := range all {
		id := e.val.SvcId
		if id == 0 || id >= t.svcs.len || t.owners.at(id) != nil {
			t.homeless(e)
			continue
		}
		next[i], heads[id] = heads[id], int32(i+1)
	}
	var group []entry
	for id, head := range heads {
		group = group[:0]
		for ; head != 0; head = next[head-1] {
			group = append(group, all[head-1])
		}
		if len(group) > 0 {
			t.adopt(uint32(id), group)
		}
	}
}

// homeless makes a record of an element of map front that leads nowhere.
func (t *Target) homeless(e entry) {
	if t.records[e.key] == nil {
		t.records[e.key] = &record{key: e.key, damaged: true, fronts: []entry{e}}
	}
}

// adopt makes a record of what the maps say about a Service port. What makes no sense is damaged and
// gets written anew.
func (t *Target) adopt(id uint32, es []entry) {
	slices.SortFunc(es, func(a, b entry) int {
		if c := cmp.Compare(b.val.Flags&bpf.FrontPrimary, a.val.Flags&bpf.FrontPrimary); c != 0 {
			return c
		}
		return frontend(a.key).Compare(frontend(b.key))
	})
	if t.records[es[0].key] != nil || !t.svcIDs.reserve(id) {
		for _, e := range es {
			t.homeless(e)
		}
		return
	}
	r := &record{key: es[0].key, id: id, fronts: slices.Clone(es)}
	t.records[r.key] = r
	t.owners.put(id, r)
	family := frontend(r.key)
	s := t.svcs.at(id)
	okFronts := t.adoptFronts(r)
	var okAll, okLocal bool
	r.all, okAll = t.adoptList(r, s.BlkAll, family.Addr)
	r.local, okLocal = t.adoptList(r, s.BlkLocal, family.Addr)
	r.damaged = !okFronts || !okAll || !okLocal || s.Flags&^(bpf.SvcInternalLocal|bpf.SvcExternalLocal) != 0
	if okAll && okLocal {
		r.balance.All, r.balance.Local = addrs(r.all.backends), addrs(r.local.backends)
	} else {
		r.forgetLists()
	}
	r.balance.InternalLocal, r.balance.ExternalLocal = s.Flags&bpf.SvcInternalLocal != 0, s.Flags&bpf.SvcExternalLocal != 0
	r.balance.AffinitySecs, r.balance.SourceRanges = s.AffinitySecs, slices.Clone(t.ranges[id])
	r.count(1)
	t.adoptTable(r, s)
}

// forgetLists is for lists that make no sense. Their slots stay taken, as programs may use them.
func (r *record) forgetLists() {
	for _, l := range []*list{&r.all, &r.local} {
		if l.count > 0 {
			r.leftover = append(r.leftover, l.block)
		}
		*l = list{}
	}
}

// adoptFronts reads types and flags of the frontends.
func (t *Target) adoptFronts(r *record) bool {
	for i, e := range r.fronts {
		f, ok := frontOf(e)
		if !ok || (e.val.Flags&bpf.FrontPrimary != 0) != (i == 0) {
			return false
		}
		if i > 0 {
			r.balance.Fronts = append(r.balance.Fronts, f)
			continue
		}
		r.balance.Type = f.Type
		if f != primary(f.Frontend, f.Type) {
			return false
		}
	}
	return true
}

func (t *Target) adoptList(r *record, ref uint64, family netip.Addr) (list, bool) {
	b, ok := unpack(ref)
	if !ok || b.count == 0 {
		return list{}, ok
	}
	if !t.blocks.reserve(b) {
		return list{}, false
	}
	l := list{block: b, backends: make([]*backend, 0, b.count)}
	for i := range b.count {
		id := *t.slot(b.base + i)
		if id >= t.backends.len {
			return l, false
		}
		be := t.byID.at(id)
		if be == nil || be.gone || be.proto != r.key.Proto || bpf.FromIP(be.ip).Is6() != family.Is6() {
			return l, false
		}
		l.backends = append(l.backends, be)
	}
	return l, true
}

// adoptTable takes the Maglev table of a record. One that is not what it should be is written anew;
// if it may even lead to backends of others, programs choose at random until then.
func (t *Target) adoptTable(r *record, s *bpf.Svc) {
	ref := s.Maglev
	view := r.all.backends
	if r.balance.ExternalLocal {
		view = r.local.backends
	}
	due := t.tables.size != 0 && outside(r.fronts) && len(view) > 1
	if ref == 0 {
		r.roomless = due // there was no room, or no Maglev
		return
	}
	taken := t.tables.reserve(ref)
	switch {
	case due && taken && t.tables.matches(uint32(ref), view):
		r.table, r.sum = uint32(ref), t.tables.sum(uint32(ref))
		return
	case due && taken && t.tables.within(uint32(ref), slices.Concat(r.all.backends, r.local.backends)):
		r.table = uint32(ref)
	default:
		atomic.StoreUint64(&s.Maglev, 0)
		if taken {
			t.tables.put(uint32(ref), t.now())
		}
	}
	r.damaged = r.damaged || due
}

func addrs(in []*backend) []netip.AddrPort {
	if len(in) == 0 {
		return nil
	}
	out := make([]netip.AddrPort, 0, len(in))
	for _, b := range in {
		out = append(out, b.addr())
	}
	return out
}
