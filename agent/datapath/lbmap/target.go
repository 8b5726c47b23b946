// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"

	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// Numbers of protocols (source: IANA protocol numbers).
const (
	protoTCP = 6
	protoUDP = 17
)

// Maps are the maps that a Target writes. They stay the caller's.
type Maps struct {
	Front, Svc, Slot, Backend *ebpf.Map
}

// Target is the Services in the kernel: the reconcile target of frontends and what stands behind
// them. Methods may be called from several goroutines.
type Target struct {
	now   func() time.Time
	front *ebpf.Map

	mu       sync.Mutex
	closed   bool
	svcs     array[bpf.Svc]
	slots    array[bpf.Slots]
	backends array[bpf.Backend]

	blocks     *blocks
	svcIDs     *ids
	backendIDs *ids

	records map[state.Frontend]*record
	seen    map[state.Frontend]uint32 // what map front says
	byID    map[uint32]*backend
	byAddr  map[endpoint]*backend
	orphans []*backend // found at the start, behind no frontend
	opened  time.Time
}

// record is one Service port as we have written it.
type record struct {
	id            uint32
	all, local    list
	internalLocal bool
	draining      []*backend
	damaged       bool // what the maps said at the start made no sense
}

// list is a block and what its slots hold.
type list struct {
	block
	backends []*backend
}

type endpoint struct {
	addr  netip.AddrPort
	proto uint8
}

// backend is one element of map backend.
type backend struct {
	endpoint
	id       uint32
	gen      uint16
	active   int // Services that choose it
	draining int // Services that let it finish
	gone     bool
}

func (b *backend) state() uint8 {
	switch {
	case b.active > 0:
		return bpf.BackendActive
	case b.draining > 0:
		return bpf.BackendTerminating
	}
	return bpf.BackendGone
}

func (b *backend) element() bpf.Backend {
	return bpf.Backend{
		Ip: bpf.IP(b.addr.Addr()), Port: bpf.Port(b.addr.Port()), Proto: b.proto, State: b.state(), Gen: b.gen,
	}
}

// Open maps the arrays into memory and restores from them what an earlier run has written.
func Open(m Maps) (*Target, error) { return open(m, time.Now) }

func open(m Maps, now func() time.Time) (*Target, error) {
	if m.Front == nil {
		return nil, errors.New("map front: missing")
	}
	t := &Target{
		now: now, front: m.Front, opened: now(),
		records: map[state.Frontend]*record{}, seen: map[state.Frontend]uint32{},
		byID: map[uint32]*backend{}, byAddr: map[endpoint]*backend{},
	}
	var err error
	if t.svcs, err = mapArray[bpf.Svc](m.Svc); err != nil {
		return nil, fmt.Errorf("map svc: %w", err)
	}
	if t.slots, err = mapArray[bpf.Slots](m.Slot); err != nil {
		return nil, errors.Join(fmt.Errorf("map slot: %w", err), t.Close())
	}
	if t.backends, err = mapArray[bpf.Backend](m.Backend); err != nil {
		return nil, errors.Join(fmt.Errorf("map backend: %w", err), t.Close())
	}
	t.blocks = newBlocks(t.slots.len * bpf.SlotsPerElem)
	t.svcIDs, t.backendIDs = newIDs(t.svcs.len), newIDs(t.backends.len)
	if err := t.restore(); err != nil {
		return nil, errors.Join(fmt.Errorf("restore services: %w", err), t.Close())
	}
	return t, nil
}

// errClosed is the answer of a target after Close.
var errClosed = errors.New("target is closed")

// Close gives the memory back and leaves the maps as they are. Calls fail afterwards.
func (t *Target) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	return errors.Join(t.svcs.close(), t.slots.close(), t.backends.close())
}

// ID returns the number that the datapath has for the Service behind a frontend.
func (t *Target) ID(f state.Frontend) (uint32, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.records[f]
	if r == nil || r.id == 0 {
		return 0, false
	}
	return r.id, true
}

func frontKey(f state.Frontend) (bpf.FrontKey, error) {
	k := bpf.FrontKey{Ip: bpf.IP(f.Addr), Port: bpf.Port(f.Port)}
	switch f.Protocol {
	case "TCP":
		k.Proto = protoTCP
	case "UDP":
		k.Proto = protoUDP
	default:
		return k, fmt.Errorf("protocol %s is not balanced", f.Protocol)
	}
	return k, nil
}

// frontend is the inverse of frontKey; false for keys that are not of this target.
func frontend(k bpf.FrontKey) (state.Frontend, bool) {
	f := state.Frontend{Addr: bpf.FromIP(k.Ip), Port: bpf.Port(k.Port)}
	switch k.Proto {
	case protoTCP:
		f.Protocol = "TCP"
	case protoUDP:
		f.Protocol = "UDP"
	}
	return f, f.Protocol != "" && k.Cluster == 0
}

// readFronts reads map front.
func (t *Target) readFronts() error {
	seen := map[state.Frontend]uint32{}
	var k bpf.FrontKey
	var v bpf.Front
	it := t.front.Iterate()
	for it.Next(&k, &v) {
		if f, ok := frontend(k); ok {
			seen[f] = v.SvcId
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read frontends: %w", err)
	}
	t.seen = seen
	return nil
}

// Load reads the maps. Entries that are not as they were written come back as damaged.
func (t *Target) Load(context.Context) (map[state.Frontend]state.Balance, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, errClosed
	}
	t.dropOrphans()
	if err := t.readFronts(); err != nil {
		return nil, err
	}
	out := make(map[state.Frontend]state.Balance, len(t.seen))
	for f, id := range t.seen {
		r := t.records[f]
		if r == nil || r.damaged || r.id != id || !t.intact(r) {
			out[f] = state.Balance{Damaged: true}
			continue
		}
		out[f] = state.Balance{
			All: addrs(r.all.backends), Local: addrs(r.local.backends), InternalLocal: r.internalLocal,
			Draining: addrs(r.draining),
		}
	}
	return out, nil
}

func addrs(in []*backend) []netip.AddrPort {
	var out []netip.AddrPort
	for _, b := range in {
		out = append(out, b.addr)
	}
	return out
}

// intact says whether the maps hold a record as it was written.
func (t *Target) intact(r *record) bool {
	s := t.svcs.at(r.id)
	if (atomic.LoadUint32(&s.Flags)&bpf.SvcInternalLocal != 0) != r.internalLocal {
		return false
	}
	if !t.published(&s.BlkAll, r.all) || !t.published(&s.BlkLocal, r.local) {
		return false
	}
	for _, bs := range [][]*backend{r.all.backends, r.local.backends, r.draining} {
		for _, b := range bs {
			if *t.backends.at(b.id) != b.element() {
				return false
			}
		}
	}
	return true
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

// Set writes what stands behind a frontend. Programs see all of it or what was there before.
func (t *Target) Set(_ context.Context, f state.Frontend, want state.Balance) error {
	key, err := frontKey(f)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errClosed
	}
	t.dropOrphans()
	r := t.records[f]
	fresh := r == nil || r.id == 0
	if fresh {
		id, err := t.svcIDs.alloc(t.now())
		if err != nil {
			return fmt.Errorf("service number: %w", err)
		}
		r = &record{id: id}
	}
	next, err := t.stage(r, key.Proto, want)
	if err != nil {
		if fresh {
			t.svcIDs.put(r.id, t.now())
		}
		return err
	}
	t.publish(r, next, fresh)
	t.records[f] = next
	if t.seen[f] != next.id {
		if err := t.front.Update(&key, &bpf.Front{SvcId: next.id}, ebpf.UpdateAny); err != nil {
			return fmt.Errorf("write frontend: %w", err)
		}
		t.seen[f] = next.id
	}
	return nil
}

// stage prepares the successor of a record: backends and slots are written, nobody reads them yet.
func (t *Target) stage(old *record, proto uint8, want state.Balance) (*record, error) {
	r := &record{id: old.id, internalLocal: want.InternalLocal}
	var fresh []*backend
	var failed error
	take := func(in []netip.AddrPort) []*backend {
		var out []*backend
		for _, a := range in {
			b, isNew, err := t.acquire(endpoint{a, proto})
			if err != nil {
				failed = err
				return nil
			}
			if isNew {
				fresh = append(fresh, b)
			}
			out = append(out, b)
		}
		return out
	}
	r.all.backends, r.local.backends, r.draining = take(want.All), take(want.Local), take(want.Draining)
	s := t.svcs.at(r.id)
	if failed == nil {
		r.count(1)
		for _, l := range [][]*backend{r.all.backends, r.local.backends, r.draining} {
			for _, b := range l {
				t.backends.store(b.id, b.element())
			}
		}
		if failed = t.fill(&r.all, old.all, &s.BlkAll); failed == nil {
			if failed = t.fill(&r.local, old.local, &s.BlkLocal); failed != nil && r.all.block != old.all.block {
				t.blocks.put(r.all.block, t.now())
			}
		}
		if failed != nil {
			r.count(-1)
		}
	}
	if failed == nil {
		return r, nil
	}
	for _, b := range slices.Concat(r.all.backends, r.local.backends, r.draining, fresh) {
		if !b.gone && b.state() == bpf.BackendGone && !slices.Contains(t.orphans, b) {
			t.retire(b)
		} else {
			t.backends.store(b.id, b.element())
		}
	}
	return nil, failed
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

// count adds n to the uses of the record's backends, once for each.
func (r *record) count(n int) {
	for b := range r.chosen() {
		b.active += n
	}
	for _, b := range r.draining {
		b.draining += n
	}
}

func (r *record) chosen() map[*backend]bool {
	out := make(map[*backend]bool, len(r.all.backends))
	for _, b := range r.all.backends {
		out[b] = true
	}
	for _, b := range r.local.backends {
		out[b] = true
	}
	return out
}

// publish makes programs use next in place of old and releases what only old needed.
func (t *Target) publish(old, next *record, fresh bool) {
	s := t.svcs.at(next.id)
	if fresh {
		t.svcs.store(next.id, bpf.Svc{Gen: s.Gen + 1})
	}
	atomic.StoreUint64(&s.BlkLocal, pack(next.local.block))
	atomic.StoreUint64(&s.BlkAll, pack(next.all.block))
	flags := uint32(0)
	if next.internalLocal {
		flags = bpf.SvcInternalLocal
	}
	atomic.StoreUint32(&s.Flags, flags)
	now := t.now()
	if old.all.block != next.all.block {
		t.blocks.put(old.all.block, now)
	}
	if old.local.block != next.local.block {
		t.blocks.put(old.local.block, now)
	}
	t.drop(old, next)
}

// drop ends the uses of old's backends; next is what follows it. A flow that sees a new generation
// of its Service chooses again if its backend is gone or has a new generation too, so backends are
// written first. One that another Service keeps gets a new generation for the flows of this one.
func (t *Target) drop(old, next *record) {
	old.count(-1)
	keep := next.chosen()
	for _, b := range next.draining {
		keep[b] = true
	}
	lost := map[*backend]bool{}
	for _, b := range slices.Concat(old.all.backends, old.local.backends, old.draining) {
		if !keep[b] && !lost[b] {
			lost[b] = true
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
	if len(lost) > 0 {
		t.bump(old.id)
	}
}

func (t *Target) bump(id uint32) { atomic.AddUint32(&t.svcs.at(id).Gen, 1) }

// Delete removes a frontend and what only it needed.
func (t *Target) Delete(_ context.Context, f state.Frontend) error {
	key, err := frontKey(f)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errClosed
	}
	if err := t.front.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete frontend: %w", err)
	}
	delete(t.seen, f)
	r := t.records[f]
	delete(t.records, f)
	if r == nil || r.id == 0 {
		return nil
	}
	t.publish(r, &record{id: r.id}, false)
	t.svcIDs.put(r.id, t.now())
	return nil
}
