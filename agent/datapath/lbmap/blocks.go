// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"errors"
	"slices"
	"time"
)

// errFull means that nothing is free now. What was freed lately comes back by itself.
var errFull = errors.New("no space left")

// grain is the unit in which slots are handed out; it keeps small changes of size from cutting the
// free space to pieces.
const grain = 4

// holdBlock is how long a freed block stays untouched: longer than any program run that may still
// read it.
const holdBlock = 2 * time.Second

// block is a run of slots.
type block struct{ base, count uint32 }

// size is what the block takes in the allocator.
func (b block) size() uint32 { return (b.count + grain - 1) / grain * grain }

// blocks hands out runs of slots, first fit. Freed runs are reused after holdBlock.
type blocks struct {
	free  []block // by base, never adjacent; count is the exact size
	held  []heldBlock
	limit uint32
}

type heldBlock struct {
	block
	since time.Time
}

func newBlocks(slots uint32) *blocks {
	return &blocks{free: []block{{0, slots}}, limit: slots}
}

// alloc returns a block of count slots. A block of none needs no space.
func (a *blocks) alloc(count uint32, now time.Time) (block, error) {
	a.release(now)
	b := block{count: count}
	if count == 0 {
		return b, nil
	}
	if count > a.limit {
		return block{}, errFull
	}
	for i := range a.free {
		f := &a.free[i]
		if f.count < b.size() {
			continue
		}
		b.base = f.base
		f.base += b.size()
		f.count -= b.size()
		if f.count == 0 {
			a.free = slices.Delete(a.free, i, i+1)
		}
		return b, nil
	}
	return block{}, errFull
}

// reserve takes a block that is known to be in use. It says whether all of it was free.
func (a *blocks) reserve(b block) bool {
	if b.count == 0 {
		return true
	}
	if b.base%grain != 0 || b.count > a.limit || b.base > a.limit-b.count {
		return false
	}
	i, found := slices.BinarySearchFunc(a.free, b.base, func(f block, base uint32) int { return int(int64(f.base) - int64(base)) })
	if !found {
		i--
	}
	if i < 0 {
		return false
	}
	f := a.free[i]
	if b.base+b.size() > f.base+f.count {
		return false
	}
	var rest []block
	if b.base > f.base {
		rest = append(rest, block{f.base, b.base - f.base})
	}
	if end := b.base + b.size(); end < f.base+f.count {
		rest = append(rest, block{end, f.base + f.count - end})
	}
	a.free = slices.Replace(a.free, i, i+1, rest...)
	return true
}

// put gives a block back.
func (a *blocks) put(b block, now time.Time) {
	if b.count > 0 {
		a.held = append(a.held, heldBlock{b, now})
	}
}

func (a *blocks) release(now time.Time) {
	n := 0
	for n < len(a.held) && now.Sub(a.held[n].since) >= holdBlock {
		a.insert(block{a.held[n].base, a.held[n].size()})
		n++
	}
	a.held = slices.Delete(a.held, 0, n)
}

// insert joins a run with its free neighbours.
func (a *blocks) insert(b block) {
	i, _ := slices.BinarySearchFunc(a.free, b.base, func(f block, base uint32) int { return int(int64(f.base) - int64(base)) })
	if i < len(a.free) && b.base+b.count == a.free[i].base {
		b.count += a.free[i].count
		a.free = slices.Delete(a.free, i, i+1)
	}
	if i > 0 && a.free[i-1].base+a.free[i-1].count == b.base {
		a.free[i-1].count += b.count
		return
	}
	a.free = slices.Insert(a.free, i, b)
}

// holdID is how long a number stays unused after its release: longer than what may still remember
// it is idle.
const holdID = 60 * time.Second

// ids hands out numbers from 1 up.
type ids struct {
	used map[uint32]bool
	next uint32 // all from here on were never given out
	max  uint32 // exclusive
	back []uint32
	held []heldID
	hold map[uint32]time.Time // since when a number is held
}

type heldID struct {
	id    uint32
	since time.Time
}

func newIDs(limit uint32) *ids {
	return &ids{used: map[uint32]bool{}, next: 1, max: limit, hold: map[uint32]time.Time{}}
}

func (a *ids) alloc(now time.Time) (uint32, error) {
	n := 0
	for ; n < len(a.held) && now.Sub(a.held[n].since) >= holdID; n++ {
		// A number that was reserved and released again since is held by a later entry.
		if h := a.held[n]; a.hold[h.id].Equal(h.since) {
			delete(a.hold, h.id)
			a.back = append(a.back, h.id)
		}
	}
	a.held = slices.Delete(a.held, 0, n)
	for len(a.back) > 0 {
		id := a.back[len(a.back)-1]
		a.back = a.back[:len(a.back)-1]
		if a.take(id) {
			return id, nil
		}
	}
	for a.next < a.max {
		id := a.next
		a.next++
		if a.take(id) {
			return id, nil
		}
	}
	return 0, errFull
}

func (a *ids) take(id uint32) bool {
	if _, held := a.hold[id]; held || a.used[id] {
		return false
	}
	a.used[id] = true
	return true
}

// reserve takes a given number, held or not. It says whether the number was free.
func (a *ids) reserve(id uint32) bool {
	if id == 0 || id >= a.max || a.used[id] {
		return false
	}
	delete(a.hold, id)
	a.used[id] = true
	return true
}

// put gives a number back. Until holdID has passed only reserve takes it.
func (a *ids) put(id uint32, now time.Time) {
	delete(a.used, id)
	a.hold[id] = now
	a.held = append(a.held, heldID{id, now})
}
