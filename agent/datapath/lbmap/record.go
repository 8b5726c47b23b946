// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// record is one Service port as we have written it.
type record struct {
	key        bpf.FrontKey // of the primary frontend
	id         uint32       // 0: it has no element in map svc
	balance    state.Balance
	fronts     []entry
	all, local list
	draining   []*backend
	table      uint32 // first element of its Maglev table, 0: none
	sum        uint64 // of the table as it was written, 0: it is not known to be right
	roomless   bool   // it is to have a table, and there was no room
	damaged    bool   // what the maps said made no sense
	leftover   []block
}

// list is a block and what its slots hold.
type list struct {
	block
	backends []*backend
}

func svcFlags(b state.Balance) uint32 {
	var flags uint32
	if b.InternalLocal {
		flags |= bpf.SvcInternalLocal
	}
	if b.ExternalLocal {
		flags |= bpf.SvcExternalLocal
	}
	return flags
}

func pack(b block) uint64 {
	if b.count == 0 {
		return 0
	}
	return uint64(b.base) | uint64(b.count)<<bpf.SvcBlockShift
}

func unpack(w uint64) (block, bool) {
	base, count := w&(1<<bpf.SvcBlockShift-1), w>>bpf.SvcBlockShift
	return block{uint32(base), uint32(count)}, base <= 1<<31
}

func (t *Target) slot(i uint32) *uint32 {
	return &t.slots.at(i / bpf.SlotsPerElem).BackendId[i%bpf.SlotsPerElem]
}

// published says whether ref and the slots behind it hold l.
func (t *Target) published(ref *uint64, l list) bool {
	if atomic.LoadUint64(ref) != pack(l.block) {
		return false
	}
	for i, b := range l.backends {
		if atomic.LoadUint32(t.slot(l.base+uint32(i))) != b.id {
			return false
		}
	}
	return true
}

// intact says whether the maps hold a record as it was written, and how many elements of map front
// are its own.
func (t *Target) intact(r *record) (ok bool, fronts int) {
	ok = !r.damaged && r.id != 0
	if t.current {
		return ok, len(r.fronts) // that is how it was found
	}
	for _, e := range r.fronts {
		if t.fronts[e.key] == e.val {
			fronts++
		} else {
			ok = false
		}
	}
	if !ok {
		return false, fronts
	}
	s := t.svcs.at(r.id)
	if atomic.LoadUint32(&s.Flags) != svcFlags(r.balance) || atomic.LoadUint32(&s.AffinitySecs) != r.balance.AffinitySecs ||
		!t.published(&s.BlkAll, r.all) || !t.published(&s.BlkLocal, r.local) || !t.sameRanges(r.id, r.balance.SourceRanges) {
		return false, fronts
	}
	if atomic.LoadUint64(&s.Maglev) != uint64(r.table) || r.table != 0 && t.tables.sum(r.table) != r.sum {
		return false, fronts
	}
	for _, bs := range [][]*backend{r.all.backends, r.local.backends, r.draining} {
		for _, b := range bs {
			if t.backends.load(b.id) != b.element() {
				return false, fronts
			}
		}
	}
	return true, fronts
}

// stage prepares the successor of a record: backends and slots are written, nobody reads them yet.
func (t *Target) stage(old *record, want state.Balance) (*record, error) {
	next := &record{key: old.key, id: old.id, balance: want, table: old.table, sum: old.sum}
	var fresh []*backend
	// Both lists are sorted: what was there before is found without a look into byAddr.
	take := func(in, before []netip.AddrPort, had []*backend) ([]*backend, error) {
		if len(in) == 0 {
			return nil, nil
		}
		out := make([]*backend, 0, len(in))
		j := 0
		for _, a := range in {
			for j < len(had) && before[j].Compare(a) < 0 {
				j++
			}
			if j < len(had) && before[j] == a {
				out = append(out, had[j])
				continue
			}
			b, isNew, err := t.acquire(endpointOf(a, old.key.Proto))
			if err != nil {
				return nil, err
			}
			if isNew {
				fresh = append(fresh, b)
			}
			out = append(out, b)
		}
		return out, nil
	}
	var err error
	was := old.balance
	if next.all.backends, err = take(want.All, was.All, old.all.backends); err == nil {
		if next.local.backends, err = take(want.Local, was.Local, old.local.backends); err == nil {
			next.draining, err = take(want.Draining, was.Draining, old.draining)
		}
	}
	if err == nil {
		next.count(1)
		t.storeBackends(next)
		if err = t.fillBoth(next, old); err == nil {
			return next, nil
		}
		next.count(-1)
	}
	for _, b := range fresh {
		if !b.gone && b.state() == bpf.BackendGone {
			t.retire(b)
		}
	}
	t.storeBackends(next)
	return nil, err
}

// storeBackends writes the elements of a record's backends that somebody uses.
func (t *Target) storeBackends(r *record) {
	for _, l := range [][]*backend{r.all.backends, r.local.backends, r.draining} {
		for _, b := range l {
			if b.state() != bpf.BackendGone {
				t.backends.store(b.id, b.element())
			}
		}
	}
}

// fillBoth finds slots for the lists of a record.
func (t *Target) fillBoth(next, old *record) error {
	s := t.svcs.at(next.id)
	if err := t.fill(&next.all, old.all, &s.BlkAll); err != nil {
		return err
	}
	if err := t.fill(&next.local, old.local, &s.BlkLocal); err != nil {
		if next.all.block != old.all.block {
			t.blocks.put(next.all.block, t.now())
		}
		return err
	}
	return nil
}

// fill finds slots for a list and writes them. A list that is in the map already stays there.
func (t *Target) fill(l *list, old list, ref *uint64) error {
	if slices.Equal(l.backends, old.backends) && t.published(ref, old) {
		l.block = old.block
		return nil
	}
	b, err := t.blocks.alloc(uint32(len(l.backends)), t.now())
	if err != nil {
		return fmt.Errorf("slots for %d backends: %w", len(l.backends), err)
	}
	l.block = b
	for i, be := range l.backends {
		atomic.StoreUint32(t.slot(b.base+uint32(i)), be.id)
	}
	return nil
}

// count adds n to the uses of the record's backends.
func (r *record) count(n int32) {
	for _, b := range r.all.backends {
		b.active += n
	}
	for _, b := range r.local.backends {
		b.active += n
	}
	for _, b := range r.draining {
		b.draining += n
	}
}

// publish makes programs use next in place of old and releases what only old needed. A list is in
// place before the flags that make programs look there, and leaves after them.
func (t *Target) publish(old, next *record, fresh bool) {
	s := t.svcs.at(next.id)
	if fresh {
		t.svcs.store(next.id, bpf.Svc{Gen: s.Gen + 1, SetGen: s.SetGen + 1})
	}
	atomic.StoreUint64(&s.BlkAll, pack(next.all.block))
	flags := svcFlags(next.balance)
	fewer := atomic.LoadUint32(&s.Flags) != flags && next.local.count == 0
	if fewer {
		atomic.StoreUint32(&s.Flags, flags)
	}
	atomic.StoreUint64(&s.BlkLocal, pack(next.local.block))
	policy := flags != svcFlags(old.balance)
	atomic.StoreUint32(&s.Flags, flags)
	atomic.StoreUint32(&s.AffinitySecs, next.balance.AffinitySecs)
	t.publishTable(s, old, next)
	// Who reads the new number has read the new lists too.
	if policy || t.lost(old.all.backends, next.all.backends) || t.lost(old.local.backends, next.local.backends) {
		atomic.AddUint32(&s.SetGen, 1)
	}
	now := t.now()
	if old.all.block != next.all.block {
		t.blocks.put(old.all.block, now)
	}
	if old.local.block != next.local.block {
		t.blocks.put(old.local.block, now)
	}
	for _, b := range old.leftover {
		t.blocks.put(b, now)
	}
	t.drop(old, next)
}

// lost says whether a backend is in old and not in next.
func (t *Target) lost(old, next []*backend) bool {
	if slices.Equal(old, next) {
		return false
	}
	t.newEpoch(next)
	return slices.ContainsFunc(old, func(b *backend) bool { return !t.marked(b) })
}

// publishTable makes the Maglev table fit the backends that callers outside get. Without room for a
// table programs choose at random.
func (t *Target) publishTable(s *bpf.Svc, old, next *record) {
	view, before := next.all, old.all
	if next.balance.ExternalLocal {
		view = next.local
	}
	if old.balance.ExternalLocal {
		before = old.local
	}
	next.roomless = false
	// With one backend there is nothing to choose.
	if t.tables.size == 0 || !outside(next.fronts) || len(view.backends) < 2 {
		atomic.StoreUint64(&s.Maglev, 0)
		if next.table != 0 {
			t.tables.put(next.table, t.now())
			next.table, next.sum = 0, 0
		}
		return
	}
	if next.table == 0 {
		ref, err := t.tables.alloc(t.now())
		if err != nil {
			next.roomless = true
			atomic.StoreUint64(&s.Maglev, 0)
			return
		}
		next.table, next.sum = ref, 0
	}
	if next.sum == 0 || !slices.Equal(view.backends, before.backends) || t.tables.sum(next.table) != next.sum {
		next.sum = t.tables.write(next.table, view.backends)
	}
	atomic.StoreUint64(&s.Maglev, uint64(next.table))
}

// drop ends the uses of old's backends; next is what follows it. A flow that sees a new generation
// of its Service chooses again if its backend is gone or has a new generation too, so backends are
// written first. One that another Service keeps gets a new generation for the flows of this one.
func (t *Target) drop(old, next *record) {
	old.count(-1)
	t.newEpoch(next.all.backends, next.local.backends, next.draining)
	lost := false
	for _, l := range [][]*backend{old.all.backends, old.local.backends, old.draining} {
		for _, b := range l {
			if !t.marked(b) {
				b.mark = t.epoch
				lost = true
				if b.state() == bpf.BackendGone {
					t.retire(b)
					continue
				}
				b.gen++
			}
			if !b.gone {
				t.backends.store(b.id, b.element())
			}
		}
	}
	if lost {
		t.bump(old.id)
	}
	if lost && old.key.Proto == protoUDP {
		t.left.Fire()
	}
}

func (t *Target) bump(id uint32) { atomic.AddUint32(&t.svcs.at(id).Gen, 1) }
