// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"fmt"
	"net/netip"

	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// acquire returns the backend of an endpoint and says whether nothing used it before. One that
// went lately gets its number again, with a new generation: it may be somebody else by now.
func (t *Target) acquire(e endpoint) (b *backend, isNew bool, err error) {
	b = t.byAddr[e]
	if b != nil && b.gone && t.backendIDs.reserve(b.id) {
		b.gone = false
		b.gen++
		return b, true, nil
	}
	if b != nil && !b.gone {
		return b, false, nil
	}
	id, err := t.backendIDs.alloc(t.now())
	if err != nil {
		return nil, false, fmt.Errorf("backend number: %w", err)
	}
	if last := t.byID[id]; last != nil && t.byAddr[last.endpoint] == last {
		delete(t.byAddr, last.endpoint)
	}
	b = &backend{endpoint: e, id: id, gen: t.backends.at(id).Gen + 1}
	t.byID[id], t.byAddr[e] = b, b
	return b, true, nil
}

// retire says that a backend is gone and lets its number rest.
func (t *Target) retire(b *backend) {
	b.gone, b.active, b.draining = true, 0, 0
	t.backends.store(b.id, b.element())
	t.backendIDs.put(b.id, t.now())
}

// dropOrphans ends the backends that were there at the start and that nobody has asked for since.
// They may have been draining: their flows get the time that numbers rest.
func (t *Target) dropOrphans() {
	if t.orphans == nil || t.now().Sub(t.opened) < holdID {
		return
	}
	bump := false
	for _, b := range t.orphans {
		if !b.gone && b.state() == bpf.BackendGone {
			t.retire(b)
			bump = true
		}
	}
	t.orphans = nil
	if !bump {
		return
	}
	for _, r := range t.records {
		if r.id != 0 {
			t.bump(r.id)
		}
	}
}

// restore reads what an earlier run has written.
func (t *Target) restore() error {
	for id := uint32(1); id < t.backends.len; id++ {
		e := *t.backends.at(id)
		addr := bpf.FromIP(e.Ip)
		if e.State == bpf.BackendGone || !addr.IsValid() {
			continue
		}
		b := &backend{endpoint: endpoint{netip.AddrPortFrom(addr, bpf.Port(e.Port)), e.Proto}, id: id, gen: e.Gen}
		if t.byAddr[b.endpoint] != nil || !t.backendIDs.reserve(id) {
			continue
		}
		t.byID[id], t.byAddr[b.endpoint] = b, b
	}
	if err := t.readFronts(); err != nil {
		return err
	}
	for f, id := range t.seen {
		t.records[f] = t.adopt(f, id)
	}
	for _, b := range t.byID {
		if b.state() == bpf.BackendGone {
			t.orphans = append(t.orphans, b)
		}
	}
	return nil
}

// adopt makes a record of what the maps say about a Service. What makes no sense is damaged and
// gets written anew.
func (t *Target) adopt(f state.Frontend, id uint32) *record {
	if !t.svcIDs.reserve(id) {
		return &record{damaged: true}
	}
	s := *t.svcs.at(id)
	key, err := frontKey(f)
	if err != nil {
		return &record{id: id, damaged: true}
	}
	r := &record{id: id, internalLocal: s.Flags&bpf.SvcInternalLocal != 0}
	var ok bool
	if r.all, ok = t.adoptList(s.BlkAll, key.Proto, f.Addr); ok {
		if r.local, ok = t.adoptList(s.BlkLocal, key.Proto, f.Addr); !ok {
			t.blocks.put(r.all.block, t.now())
		}
	}
	if !ok {
		return &record{id: id, damaged: true}
	}
	r.count(1)
	return r
}

func (t *Target) adoptList(ref uint64, proto uint8, family netip.Addr) (list, bool) {
	b, ok := unpack(ref)
	if !ok || b.count == 0 {
		return list{}, ok
	}
	if !t.blocks.reserve(b) {
		return list{}, false
	}
	l := list{block: b}
	for i := range b.count {
		be := t.byID[*t.slot(b.base + i)]
		if be == nil || be.proto != proto || be.addr.Addr().Is6() != family.Is6() {
			t.blocks.put(b, t.now())
			return list{}, false
		}
		l.backends = append(l.backends, be)
	}
	return l, true
}
