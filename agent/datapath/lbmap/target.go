// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"lash.internal/lash/agent/reconcile"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// Maps are the maps that a Target writes. They stay the caller's.
type Maps struct {
	Front, Svc, Slot, Backend, Maglev, Srcrange, Hostback *ebpf.Map
	// Skrev is read only; nil where nothing is translated at sockets.
	Skrev *ebpf.Map
}

// MapsOf takes the maps that are written by name.
func MapsOf(of func(name string) *ebpf.Map) Maps {
	return Maps{Front: of("front"), Svc: of("svc"), Slot: of("slot"), Backend: of("backend"), Maglev: of("maglev"), Srcrange: of("srcrange"), Hostback: of("hostback")}
}

// Options are what a Target has to know about the node.
type Options struct {
	// Local says whether an address is one of this node's own; nil: none is. Call AddressesChanged
	// when it may answer otherwise.
	Local func(netip.Addr) bool
	// MaglevSize is the number of entries of a Maglev table, a prime; 0: programs choose at random.
	// MaglevSeed has to be the same on every node.
	MaglevSize, MaglevSeed uint32
}

// Target is the Services in the kernel: the reconcile target of Service ports, each known by its
// primary frontend. Methods may be called from several goroutines.
type Target struct {
	now                    func() time.Time
	front, srcrange, skrev *ebpf.Map
	left                   reconcile.Signal

	mu       sync.Mutex
	closed   bool
	svcs     array[bpf.Svc]
	slots    array[bpf.Slots]
	backends array[bpf.Backend]
	tables   tables
	host     hostPorts

	blocks     *blocks
	svcIDs     *ids
	backendIDs *ids

	records  map[bpf.FrontKey]*record // by primary frontend
	owners   numbered[record]
	fronts   map[bpf.FrontKey]bpf.Front // what map front holds
	outdated map[uint32][]bpf.FrontKey  // what is to go from there, by number
	ranges   map[uint32][]netip.Prefix  // what map srcrange holds, by number
	byID     numbered[backend]
	byAddr   map[endpoint]uint32
	epoch    uint32

	opened  time.Time
	orphans []*backend // found at the start, behind no frontend
	swept   bool       // what was found at the start and not asked for is gone
	current bool       // Open has read the maps a moment ago
}

// Open maps the arrays into memory and restores from them what an earlier run has written.
func Open(m Maps, o Options) (*Target, error) { return open(m, o, time.Now) }

func open(m Maps, o Options, now func() time.Time) (*Target, error) {
	if m.Front == nil || m.Srcrange == nil {
		return nil, errors.New("maps front and srcrange: one is missing")
	}
	if o.Local == nil {
		o.Local = func(netip.Addr) bool { return false }
	}
	t := &Target{
		now: now, front: m.Front, srcrange: m.Srcrange, skrev: m.Skrev, opened: now(),
		host:    hostPorts{local: o.Local, now: now, uses: map[uint32]int{}, resting: map[uint32]time.Time{}},
		records: map[bpf.FrontKey]*record{}, fronts: map[bpf.FrontKey]bpf.Front{}, outdated: map[uint32][]bpf.FrontKey{},
		byAddr: map[endpoint]uint32{},
	}
	err := errors.Join(
		mapInto(&t.svcs, m.Svc, "svc"), mapInto(&t.slots, m.Slot, "slot"), mapInto(&t.backends, m.Backend, "backend"),
		mapInto(&t.tables.words, m.Maglev, "maglev"), mapInto(&t.host.words, m.Hostback, "hostback"))
	if err == nil && t.host.words.len != 2*bpf.HostbackWords {
		err = fmt.Errorf("map hostback: has %d elements", t.host.words.len)
	}
	if err == nil {
		err = t.tables.init(o.MaglevSize, o.MaglevSeed)
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	t.blocks = newBlocks(t.slots.len*bpf.SlotsPerElem, slotGrain)
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
	return errors.Join(t.svcs.close(), t.slots.close(), t.backends.close(), t.tables.words.close(), t.host.words.close())
}

// ID returns the number that the datapath has for the Service port behind any of its frontends.
func (t *Target) ID(f state.Frontend) (uint32, bool) {
	key, err := frontKey(f)
	if err != nil {
		return 0, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.owners.at(t.fronts[key].SvcId); r != nil {
		return r.id, true
	}
	return 0, false
}

// Status is what a Target holds.
type Status struct {
	// Ports are Service ports, Tables those that have a Maglev table, and Roomless those for which
	// there was no room for one: their callers from outside get a backend at random.
	Ports, Fronts, Tables, Roomless int
}

// Status counts.
func (t *Target) Status() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Status{Ports: len(t.records), Fronts: len(t.fronts)}
	for _, r := range t.records {
		if r.table != 0 {
			s.Tables++
		}
		if r.roomless {
			s.Roomless++
		}
	}
	return s
}

// Load reads the maps. Entries that are not as they were written come back as damaged.
func (t *Target) Load(context.Context) (map[state.Frontend]state.Balance, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, errClosed
	}
	t.dropOrphans()
	if !t.current {
		if err := errors.Join(t.readFronts(), t.readRanges()); err != nil {
			return nil, err
		}
	}
	t.host.repair()
	out, known := t.judge()
	t.current = false
	if known < len(t.fronts) {
		t.findStrays()
		out, _ = t.judge()
	}
	for _, r := range t.records {
		if r.roomless && !r.damaged {
			t.publishTable(t.svcs.at(r.id), r, r)
		}
	}
	return out, nil
}

// judge compares every record with the maps. known is how many elements of map front belong to one.
func (t *Target) judge() (out map[state.Frontend]state.Balance, known int) {
	out = make(map[state.Frontend]state.Balance, len(t.records))
	for _, r := range t.records {
		b := r.balance
		ok, n := t.intact(r)
		if known += n; !ok || len(t.outdated[r.id]) > 0 {
			b = state.Balance{Damaged: true}
		}
		out[frontend(r.key)] = b
	}
	return out, known
}

// findStrays finds what is in map front and nobody wants: elements that lead to a Service port are its
// to remove, others are adopted.
func (t *Target) findStrays() {
	var es []entry
	for k, v := range t.fronts {
		o := t.owners.at(v.SvcId)
		switch {
		case o == nil && t.records[k] == nil:
			es = append(es, entry{k, v})
		case o != nil && !slices.Contains(o.fronts, entry{k, v}) && !slices.Contains(t.outdated[o.id], k):
			t.outdated[o.id] = append(t.outdated[o.id], k)
		}
	}
	t.adoptAll(es)
}

// Set writes what stands behind the frontends of a Service port. Programs see all of it or what was
// there before.
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
	t.current = false
	old := t.records[key]
	if old == nil {
		old = &record{key: key}
	}
	if want.KeepLast && len(want.All) == 0 {
		want.All, want.Local = old.balance.All, old.balance.Local
	}
	want.KeepLast, want.Damaged = false, false
	fresh := old.id == 0
	if fresh {
		id, err := t.svcIDs.alloc(t.now())
		if err != nil {
			return fmt.Errorf("service number: %w", err)
		}
		old = &record{key: key, id: id, fronts: old.fronts}
	}
	next, err := t.prepare(old, want)
	if err != nil {
		if fresh {
			t.svcIDs.put(old.id, t.now())
		}
		return errors.Join(err, t.keepRanges(old.id, old.balance.SourceRanges))
	}
	t.publish(old, next, fresh)
	t.records[key] = next
	t.owners.put(next.id, next)
	t.outdate(old, next.fronts)
	if err := t.putFronts(next.fronts); err != nil {
		if t.fronts[key].SvcId != next.id {
			err = errors.Join(err, t.remove(next)) // nothing leads to it, nobody would ask for its removal
		}
		return err
	}
	return errors.Join(t.dropOutdated(next.id, next.fronts), t.keepRanges(next.id, want.SourceRanges))
}

// prepare makes the successor of a record and writes what it needs.
func (t *Target) prepare(old *record, want state.Balance) (*record, error) {
	fronts, err := entries(old.id, old.key, want)
	if err != nil {
		return nil, err
	}
	if err := t.addRanges(old.id, want.SourceRanges); err != nil {
		return nil, err
	}
	next, err := t.stage(old, want)
	if err != nil {
		return nil, err
	}
	next.fronts = fronts
	return next, nil
}

// Delete removes a Service port and what only it needed.
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
	if r := t.records[key]; r != nil {
		return t.remove(r)
	}
	return nil
}

// remove takes a record out of the maps, the frontends first.
func (t *Target) remove(r *record) error {
	t.outdate(r, nil)
	if err := errors.Join(t.dropOutdated(r.id, nil), t.keepRanges(r.id, nil)); err != nil {
		return err
	}
	delete(t.records, r.key)
	if r.id == 0 {
		return nil
	}
	t.publish(r, &record{key: r.key, id: r.id, table: r.table}, false)
	t.owners.put(r.id, nil)
	t.svcIDs.put(r.id, t.now())
	return nil
}
