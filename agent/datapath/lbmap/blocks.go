// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"errors"
	"math/bits"
	"time"
)

// errFull means that nothing is free now. What was freed lately comes back by itself.
var errFull = errors.New("no space left")

// slotGrain is the unit in which slots are handed out; it keeps small changes of size from cutting
// the free space to pieces.
const slotGrain = 4

// holdBlock is how long a freed block stays untouched: longer than any program run that may still
// read it.
const holdBlock = 2 * time.Second

// queue is what waits for its time, the oldest first.
type queue[T any] struct {
	items []queued[T]
	head  int
}

type queued[T any] struct {
	what  T
	since time.Time
}

func (q *queue[T]) push(v T, now time.Time) { q.items = append(q.items, queued[T]{v, now}) }

// pop returns the oldest item if it has waited for d.
func (q *queue[T]) pop(now time.Time, d time.Duration) (queued[T], bool) {
	if q.head == len(q.items) || now.Sub(q.items[q.head].since) < d {
		return queued[T]{}, false
	}
	v := q.items[q.head]
	if q.head++; q.head > len(q.items)/2 {
		q.items = append(q.items[:0], q.items[q.head:]...)
		q.head = 0
	}
	return v, true
}

// bitmap has a bit for each number below its length.
type bitmap []uint64

func newBitmap(n uint32) bitmap {
	b := make(bitmap, (n+63)/64)
	if n%64 != 0 {
		b[n/64] = ^uint64(0) << (n % 64) // beyond the end everything is taken
	}
	return b
}

func (b bitmap) has(i uint32) bool { return b[i/64]>>(i%64)&1 != 0 }
func (b bitmap) set(i uint32)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) clear(i uint32)    { b[i/64] &^= 1 << (i % 64) }

// run returns the first of n numbers in a row that are not taken, from from up to end.
func (b bitmap) run(from, end, n uint32) (uint32, bool) {
	for i := from; i < end; {
		free := ^b[i/64] >> (i % 64)
		if free == 0 {
			i = i/64*64 + 64
			continue
		}
		i += uint32(bits.TrailingZeros64(free))
		j := i
		for j < end && j-i < n {
			taken := b[j/64] >> (j % 64)
			if taken != 0 {
				j += uint32(bits.TrailingZeros64(taken))
				break
			}
			j = j/64*64 + 64
		}
		if min(j, end)-i >= n {
			return i, true
		}
		i = j
	}
	return 0, false
}

// block is a run of elements.
type block struct{ base, count uint32 }

// blocks hands out runs of elements, whole grains of them. Freed runs are reused after holdBlock.
type blocks struct {
	grain uint32
	units uint32
	taken bitmap
	next  uint32 // unit where the search goes on
	held  queue[block]
}

// newBlocks manages elements 0 to limit; what is left over from whole grains is not used.
func newBlocks(limit, grain uint32) *blocks {
	return &blocks{grain: grain, units: limit / grain, taken: newBitmap(limit / grain)}
}

// span are the units that a block takes.
func (a *blocks) span(b block) (first, n uint32) {
	return b.base / a.grain, uint32((uint64(b.count) + uint64(a.grain) - 1) / uint64(a.grain))
}

// alloc returns a block of count elements. A block of none needs no space.
func (a *blocks) alloc(count uint32, now time.Time) (block, error) {
	a.release(now)
	b := block{count: count}
	_, n := a.span(b)
	if n == 0 {
		return b, nil
	}
	at, ok := a.taken.run(a.next, a.units, n)
	if !ok {
		at, ok = a.taken.run(0, a.units, n)
	}
	if !ok {
		return block{}, errFull
	}
	b.base, a.next = at*a.grain, at+n
	for i := at; i < at+n; i++ {
		a.taken.set(i)
	}
	return b, nil
}

// reserve takes a block that is known to be in use. It says whether all of it was free.
func (a *blocks) reserve(b block) bool {
	if b.count == 0 {
		return true
	}
	first, n := a.span(b)
	if b.base%a.grain != 0 || n > a.units || first > a.units-n {
		return false
	}
	for i := first; i < first+n; i++ {
		if a.taken.has(i) {
			return false
		}
	}
	for i := first; i < first+n; i++ {
		a.taken.set(i)
	}
	return true
}

// put gives a block back.
func (a *blocks) put(b block, now time.Time) {
	if b.count > 0 {
		a.held.push(b, now)
	}
}

func (a *blocks) release(now time.Time) {
	for h, ok := a.held.pop(now, holdBlock); ok; h, ok = a.held.pop(now, holdBlock) {
		first, n := a.span(h.what)
		for i := first; i < first+n; i++ {
			a.taken.clear(i)
		}
	}
}

// holdID is how long a number stays unused after its release: longer than what may still remember
// it is idle.
const holdID = 60 * time.Second

// ids hands out numbers from 1 up.
type ids struct {
	used bitmap
	next uint32 // all from here on were never given out
	max  uint32 // exclusive
	back []uint32
	held queue[uint32]
	hold map[uint32]time.Time // since when a number is held
}

func newIDs(limit uint32) *ids {
	return &ids{used: newBitmap(limit), next: 1, max: limit, hold: map[uint32]time.Time{}}
}

func (a *ids) alloc(now time.Time) (uint32, error) {
	for h, ok := a.held.pop(now, holdID); ok; h, ok = a.held.pop(now, holdID) {
		// A number that was reserved and released again since is held by a later entry.
		if a.hold[h.what].Equal(h.since) {
			delete(a.hold, h.what)
			a.back = append(a.back, h.what)
		}
	}
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
	if _, held := a.hold[id]; held || a.used.has(id) {
		return false
	}
	a.used.set(id)
	return true
}

// reserve takes a given number, held or not. It says whether the number was free.
func (a *ids) reserve(id uint32) bool {
	if id == 0 || id >= a.max || a.used.has(id) {
		return false
	}
	delete(a.hold, id)
	a.used.set(id)
	return true
}

// put gives a number back. Until holdID has passed only reserve takes it.
func (a *ids) put(id uint32, now time.Time) {
	a.used.clear(id)
	a.hold[id] = now
	a.held.push(id, now)
}

// numbered are things by their numbers, with room for those that were given out so far.
type numbered[T any] []*T

// at is the thing with a number, nil if there is none.
func (n numbered[T]) at(id uint32) *T {
	if id >= uint32(len(n)) {
		return nil
	}
	return n[id]
}

// put gives a number to a thing, or with nil to none.
func (n *numbered[T]) put(id uint32, thing *T) {
	if more := int(id) + 1 - len(*n); more > 0 {
		*n = append(*n, make([]*T, more)...)
	}
	(*n)[id] = thing
}
