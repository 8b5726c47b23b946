// SPDX-License-Identifier: Apache-2.0

package ctgc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"lash.internal/lash/bpf"
)

// Maps are the conntrack tables, the map that hands candidates to the program, and the one that counts what
// has come into the main tables.
type Maps struct {
	Ct4, Ct4New, Ct6, Ct6New, Batch, Settled *ebpf.Map
}

// Programs are the ones that work on flows in the kernel.
type Programs struct {
	Expire, Purge, Move *ebpf.Program
}

// lookupBatch is how many entries one system call reads: buckets are held meanwhile.
const lookupBatch = 256

// Collector sweeps the tables of one node.
type Collector struct {
	maps  Maps
	progs Programs
	log   *slog.Logger
	now   func() (uint32, error) // in the unit of Ct.Seen

	batch sync.Mutex // guards progs, and the content of maps.Batch while one reads it
	// Swept, if it is set before Run, is told after each sweep of both families the ports of either side
	// of the flows whose replies are translated: bit n of the words is port n of TCP, and those of UDP
	// follow. They are those of all flows that began before start.
	Swept func(start time.Time, ports *[2 * bpf.HostbackWords]uint64)

	mu    sync.Mutex
	stats [2]Stats // IPv4, IPv6
	fails uint64
	ports [2 * bpf.HostbackWords]uint64
	// settled is what the programs had counted when the last sweep of a family began.
	settled [2]uint64
}

// Stats is what is known about the tables of one family.
type Stats struct {
	Runs     uint64
	Alive    uint64 // found by the last sweep
	Deleted  uint64 // by all sweeps
	Purged   uint64 // because their address went away
	Duration time.Duration
	Fill     float64 // share of the main table in use after the last sweep, 0 to 1
}

// New returns a collector. Nothing happens before Run or Purge.
func New(m Maps, p Programs, log *slog.Logger) *Collector {
	return &Collector{maps: m, progs: p, log: log, now: clock}
}

// Use changes the programs; those of before may be closed then.
func (c *Collector) Use(p Programs) {
	c.batch.Lock()
	defer c.batch.Unlock()
	c.progs = p
}

// clock is the coarse monotonic clock in the unit of Ct.Seen.
func clock() (uint32, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return 0, fmt.Errorf("monotonic clock: %w", err)
	}
	return uint32(uint64(ts.Nano()) >> bpf.SeenShift), nil
}

// Stats returns the counters of a family.
func (c *Collector) Stats(v6 bool) Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats[index(v6)]
}

func index(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

// Run sweeps both families until ctx ends. Call it once Services and endpoints are in the kernel:
// until then flows may look idle only because a restarting agent has not yet put their way back.
func (c *Collector) Run(ctx context.Context) error {
	interval := intervalFirst
	last := time.Now()
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if time.Since(last) < interval && !c.filling() {
			continue
		}
		last = time.Now()
		var share, fill float64
		start, complete := time.Now(), true
		c.ports = [2 * bpf.HostbackWords]uint64{}
		for _, v6 := range []bool{false, true} {
			before := c.Stats(v6)
			if err := c.Sweep(v6); err != nil {
				c.log.Warn("sweep of the conntrack table failed", "ipv6", v6, "error", err)
				complete = false
				continue
			}
			s := c.Stats(v6)
			deleted := float64(s.Deleted - before.Deleted)
			if deleted >= lookupBatch { // a few flows are no reason to hurry
				share = max(share, deleted/(deleted+float64(s.Alive)))
			}
			fill = max(fill, s.Fill)
		}
		if complete && c.Swept != nil {
			c.Swept(start, &c.ports)
		}
		if fill > fillFull {
			c.log.Warn("conntrack table is nearly full", "fill", fill)
		}
		interval = nextInterval(interval, share, fill)
	}
}

// filling says whether a table may have become so full since its last sweep that it must not wait for
// the next one. Flows that end by themselves do not count: who deletes flows is this collector.
func (c *Collector) filling() bool {
	for _, v6 := range []bool{false, true} {
		fill, grown, err := c.estimate(v6)
		if err == nil && fill > fillTight && grown > grownLeast {
			return true
		}
	}
	return false
}

// estimate is how full the main table of a family is at most, and which share of it has come since the
// last sweep.
func (c *Collector) estimate(v6 bool) (fill, grown float64, err error) {
	settled, err := c.countSettled(v6)
	if err != nil {
		return 0, 0, err
	}
	most := c.maps.Ct4.MaxEntries()
	if v6 {
		most = c.maps.Ct6.MaxEntries()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	grown = float64(settled-c.settled[index(v6)]) / float64(most)
	return min(c.stats[index(v6)].Fill+grown, 1), grown, nil
}

func (c *Collector) countSettled(v6 bool) (uint64, error) {
	var each []uint64
	if err := c.maps.Settled.Lookup(uint32(index(v6)), &each); err != nil {
		return 0, fmt.Errorf("count of settled flows: %w", err)
	}
	var all uint64
	for _, n := range each {
		all += n
	}
	return all, nil
}

// Sweep removes the idle flows of one family.
func (c *Collector) Sweep(v6 bool) error {
	start := time.Now()
	now, err := c.now()
	if err != nil {
		return err
	}
	settled, err := c.countSettled(v6)
	if err != nil {
		return err
	}
	fill, _, err := c.estimate(v6)
	if err != nil {
		return err
	}
	var r result
	if v6 {
		r, err = sweep(c, c.family6(), now, pressureOf(fill))
	} else {
		r, err = sweep(c, c.family4(), now, pressureOf(fill))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settled[index(v6)] = settled
	s := &c.stats[index(v6)]
	s.Deleted += r.deleted
	if err != nil {
		c.fails++
		return err
	}
	s.Runs++
	s.Alive, s.Fill, s.Duration = r.alive, r.fill, time.Since(start)
	return nil
}

// family is the tables of one address family; the first tier is the one that nobody evicts.
type family[K comparable, V any] struct {
	v6    bool
	tiers [2]*ebpf.Map
	ct    func(*V) *bpf.Ct
	l4    func(*K) (proto uint8, pa, pb uint16)
	twin  func(*K, *V) K
}

func (c *Collector) family4() family[bpf.Ct4Key, bpf.Ct4] {
	return family[bpf.Ct4Key, bpf.Ct4]{
		tiers: [2]*ebpf.Map{c.maps.Ct4, c.maps.Ct4New},
		ct:    func(v *bpf.Ct4) *bpf.Ct { return &v.C }, twin: twin4,
		l4: func(k *bpf.Ct4Key) (uint8, uint16, uint16) { return k.Proto, k.Pa, k.Pb },
	}
}

func (c *Collector) family6() family[bpf.Ct6Key, bpf.Ct6] {
	return family[bpf.Ct6Key, bpf.Ct6]{
		v6: true, tiers: [2]*ebpf.Map{c.maps.Ct6, c.maps.Ct6New},
		ct: func(v *bpf.Ct6) *bpf.Ct { return &v.C }, twin: twin6,
		l4: func(k *bpf.Ct6Key) (uint8, uint16, uint16) { return k.Proto, k.Pa, k.Pb },
	}
}

type result struct {
	alive, deleted uint64
	fill           float64
}

// sweep reads both tiers and gives what is idle to the program.
func sweep[K comparable, V any](c *Collector, f family[K, V], now uint32, p pressure) (result, error) {
	var r result
	left := uint64(0)
	_, deleted, err := remove(c, f, func(k *K, v *V, tier uint8) []bpf.GcItem {
		idle := f.judge(k, v, tier, now, p)
		if idle == nil {
			r.alive++
			if tier == 0 {
				left++
			}
		}
		if ct := f.ct(v); ct.Kind == bpf.CtRev && idle == nil {
			c.notePorts(f.l4(k))
		}
		return idle
	})
	r.deleted, r.fill = deleted, float64(left)/float64(f.tiers[0].MaxEntries())
	return r, err
}

// notePorts notes the ports of a flow whose replies are translated.
func (c *Collector) notePorts(proto uint8, pa, pb uint16) {
	first := uint32(0)
	switch proto {
	case protoTCP:
	case protoUDP:
		first = bpf.HostbackWords
	default:
		return
	}
	for _, p := range []uint16{bpf.Port(pa), bpf.Port(pb)} {
		c.ports[first+uint32(p)/64] |= 1 << (p % 64)
	}
}

// remove reads both tiers and has the program delete what pick chooses, unless it has moved since. It
// returns how many were chosen and how many of them were deleted. Flows go from the second tier to
// the first while this reads, never back, so the first is read last.
func remove[K comparable, V any](c *Collector, f family[K, V], pick func(k *K, v *V, tier uint8) []bpf.GcItem) (chosen, deleted uint64, err error) {
	var items []bpf.GcItem
	flush := func() error {
		n, err := c.expire(f.v6, items)
		chosen += uint64(len(items))
		deleted += n
		items = items[:0]
		return err
	}
	for _, tier := range []uint8{1, 0} {
		err := eachBatch(f.tiers[tier], func(keys []K, values []V) error {
			for i := range keys {
				items = append(items, pick(&keys[i], &values[i], tier)...)
			}
			if len(items) < lookupBatch {
				return nil
			}
			return flush()
		})
		if err != nil {
			return chosen, deleted, err
		}
	}
	return chosen, deleted, flush()
}

// judge returns the items that end a flow if it is idle, both halves of it; none if it is not.
func (f family[K, V]) judge(k *K, v *V, tier uint8, now uint32, p pressure) []bpf.GcItem {
	proto, pa, pb := f.l4(k)
	ct := f.ct(v)
	fl := newFlow(proto, pa, pb, ct, now)
	if !fl.expired(p) {
		return nil
	}
	items := []bpf.GcItem{item(k, ct, tier)}
	if ct.Kind == bpf.CtPlain {
		return items
	}
	other := f.twin(k, v)
	for t, m := range f.tiers {
		var w V
		err := m.Lookup(&other, &w)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return nil
		}
		o := f.ct(&w)
		if o.Kind == bpf.CtPlain || o.Kind == ct.Kind || f.twin(&other, &w) != *k {
			continue // another flow has taken the tuple
		}
		_, pa, pb := f.l4(&other)
		if fl = fl.join(newFlow(proto, pa, pb, o, now)); !fl.expired(p) {
			return nil
		}
		items = append(items, item(&other, o, uint8(t)))
	}
	return items
}

func item[K any](k *K, ct *bpf.Ct, tier uint8) bpf.GcItem {
	it := bpf.GcItem{Seen: ct.Seen, Flags: ct.Flags, Tier: tier}
	copy(it.Key[:], unsafe.Slice((*byte)(unsafe.Pointer(k)), unsafe.Sizeof(*k)))
	return it
}

// eachBatch reads a table a few hundred entries at a time. What is inserted meanwhile may be
// missed until the next sweep.
func eachBatch[K, V any](m *ebpf.Map, do func([]K, []V) error) error {
	size := lookupBatch
	for {
		keys, values := make([]K, size), make([]V, size)
		var cursor ebpf.MapBatchCursor
		for {
			n, err := m.BatchLookup(&cursor, keys, values, nil)
			done := errors.Is(err, ebpf.ErrKeyNotExist)
			if errors.Is(err, unix.ENOSPC) {
				break // a bucket holds more than size: once more with a larger one
			}
			if err != nil && !done {
				return fmt.Errorf("read conntrack table: %w", err)
			}
			if err := do(keys[:n], values[:n]); err != nil {
				return err
			}
			if done {
				return nil
			}
		}
		size *= 4
	}
}

// expire has the program delete those items that are still as they were read.
func (c *Collector) expire(v6 bool, items []bpf.GcItem) (uint64, error) {
	n, err := c.each(func(p Programs) *ebpf.Program { return p.Expire }, v6, items)
	if err != nil {
		err = fmt.Errorf("expire flows: %w", err)
	}
	return n, err
}

// each gives items to a program, a batch at a time, and returns how many it has dealt with.
func (c *Collector) each(which func(Programs) *ebpf.Program, v6 bool, items []bpf.GcItem) (uint64, error) {
	c.batch.Lock()
	defer c.batch.Unlock()
	var done uint64
	limit := int(c.maps.Batch.MaxEntries())
	for len(items) > 0 {
		part := items[:min(len(items), limit)]
		items = items[len(part):]
		index := make([]uint32, len(part))
		for i := range index {
			index[i] = uint32(i)
		}
		if _, err := c.maps.Batch.BatchUpdate(index, part, nil); err != nil {
			return done, fmt.Errorf("write the batch: %w", err)
		}
		arg := bpf.GcExpire{Count: uint32(len(part))}
		if v6 {
			arg.V6 = 1
		}
		if err := run(which(c.progs), &arg); err != nil {
			return done, err
		}
		done += uint64(arg.Deleted)
	}
	return done, nil
}

// Purge deletes every flow of the addresses, translated or not, for those that leave the node: before
// somebody else may get them. Many at once cost as much as one: the tables are read once.
func (c *Collector) Purge(addrs ...netip.Addr) error {
	v4, v6 := map[uint32]netip.Addr{}, map[[16]byte]netip.Addr{}
	for _, a := range addrs {
		switch a = a.Unmap(); {
		case a.Is4():
			v4[bpf.IP4(a)] = a
		case a.Is6():
			v6[bpf.IP(a)] = a
		}
	}
	return errors.Join(
		purge(c, c.family4(), v4, func(k *bpf.Ct4Key, v *bpf.Ct4) [4]uint32 { return [4]uint32{k.A, k.B, v.Saddr, v.Daddr} }),
		purge(c, c.family6(), v6, func(k *bpf.Ct6Key, v *bpf.Ct6) [4][16]byte { return [4][16]byte{k.A, k.B, v.Saddr, v.Daddr} }))
}

// purge deletes the flows of addresses of one family. of returns the addresses of an entry, the last
// two of them those of the translated packet.
func purge[K, A comparable, V any](c *Collector, f family[K, V], addrs map[A]netip.Addr, of func(*K, *V) [4]A) error {
	if len(addrs) == 0 {
		return nil
	}
	gone := func(a A) bool { _, ok := addrs[a]; return ok }
	chosen, deleted, err := remove(c, f, func(k *K, v *V, tier uint8) []bpf.GcItem {
		a, ct := of(k, v), f.ct(v)
		if gone(a[0]) || gone(a[1]) || ct.Kind != bpf.CtPlain && (gone(a[2]) || gone(a[3])) {
			return []bpf.GcItem{item(k, ct, tier)}
		}
		return nil
	})
	// Somebody still sends to an address that is gone: the program takes flows that move, but reads the
	// tables for each address.
	if err == nil && deleted < chosen {
		for _, a := range addrs {
			arg := bpf.GcPurge{Ip: bpf.IP(a)}
			c.batch.Lock()
			err = errors.Join(err, run(c.progs.Purge, &arg))
			c.batch.Unlock()
			deleted += uint64(arg.Deleted)
		}
	}
	c.mu.Lock()
	c.stats[index(f.v6)].Purged += deleted
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("purge flows: %w", err)
	}
	return nil
}

// Flush deletes all entries, of flows in use too: their next packets begin new ones. It returns how
// many there were.
func (c *Collector) Flush() (uint64, error) {
	n4, err4 := flush[bpf.Ct4Key, bpf.Ct4](c.maps.Ct4, c.maps.Ct4New)
	n6, err6 := flush[bpf.Ct6Key, bpf.Ct6](c.maps.Ct6, c.maps.Ct6New)
	return n4 + n6, errors.Join(err4, err6)
}

func flush[K, V any](tables ...*ebpf.Map) (uint64, error) {
	var n uint64
	for _, m := range tables {
		var all []K
		if err := eachBatch(m, func(keys []K, _ []V) error { all = append(all, keys...); return nil }); err != nil {
			return n, err
		}
		for i := range all {
			switch err := m.Delete(&all[i]); {
			case err == nil:
				n++
			case !errors.Is(err, ebpf.ErrKeyNotExist):
				return n, fmt.Errorf("flush connection table: %w", err)
			}
		}
	}
	return n, nil
}

// run calls a program with an argument that it may change.
func run[T any](p *ebpf.Program, arg *T) error {
	var out T
	rc, err := p.Run(&ebpf.RunOptions{Context: *arg, ContextOut: &out})
	if err != nil {
		return err
	}
	if rc != 0 {
		return fmt.Errorf("program returned %d", int32(rc))
	}
	*arg = out
	return nil
}

// twin4 is the key of the other half: the tuple of the translated packet, the smaller address and
// port first, compared as the programs read them.
func twin4(k *bpf.Ct4Key, v *bpf.Ct4) bpf.Ct4Key {
	out := bpf.Ct4Key{A: v.Daddr, B: v.Saddr, Pa: v.Dport, Pb: v.Sport, Proto: k.Proto, Zone: k.Zone}
	if v.Saddr < v.Daddr || v.Saddr == v.Daddr && v.Sport < v.Dport {
		out.A, out.B, out.Pa, out.Pb = v.Saddr, v.Daddr, v.Sport, v.Dport
	}
	return out
}

// twin6 is the same for IPv6, where programs compare two words of 8 bytes.
func twin6(k *bpf.Ct6Key, v *bpf.Ct6) bpf.Ct6Key {
	out := bpf.Ct6Key{A: v.Daddr, B: v.Saddr, Pa: v.Dport, Pb: v.Sport, Proto: k.Proto, Zone: k.Zone}
	words := func(b [16]byte) [2]uint64 {
		return [2]uint64{binary.NativeEndian.Uint64(b[:8]), binary.NativeEndian.Uint64(b[8:])}
	}
	s, d := words(v.Saddr), words(v.Daddr)
	if s[0] < d[0] || s[0] == d[0] && (s[1] < d[1] || s[1] == d[1] && v.Sport < v.Dport) {
		out.A, out.B, out.Pa, out.Pb = v.Saddr, v.Daddr, v.Sport, v.Dport
	}
	return out
}
