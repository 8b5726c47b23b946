// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math/big"
	"slices"
	"sync/atomic"
	"time"

	"lash.internal/lash/bpf"
)

// perElem is how many backend ids an element of map maglev has.
const perElem = 2

// maglevBytes is the memory that tables may take where no number of them is given.
const maglevBytes = 64 << 20

// Sizes are the numbers of entries of maps that depend on Maglev: size is that of a table, 0 without
// Maglev, and tables how many Service ports can have one, 0 for as many as fit 64 MiB.
func Sizes(size, tables uint32) map[string]uint32 {
	if size == 0 {
		return map[string]uint32{"maglev": 1}
	}
	if tables == 0 {
		tables = max(maglevBytes/8/elems(size), 1)
	}
	return map[string]uint32{"maglev": 1 + tables*elems(size)}
}

// elems is how many elements a table takes.
func elems(size uint32) uint32 { return (size + perElem - 1) / perElem }

// tables are the Maglev tables in their map: of the same size, from element 1 on.
type tables struct {
	words array[uint64] // two backend ids each, the first in the lower half
	size  uint32        // entries of a table; 0: there are none
	space *blocks
	build builder
}

func (t *tables) init(size, seed uint32) error {
	t.size = size
	if size == 0 {
		t.space = newBlocks(0, 1)
		return nil
	}
	if !big.NewInt(int64(size)).ProbablyPrime(0) { // exact below 2^64
		return fmt.Errorf("maglev table size %d: has to be a prime, such as 16381", size)
	}
	if t.words.len <= elems(size) {
		return fmt.Errorf("map maglev: %d elements are too few for a table of %d entries", t.words.len, size)
	}
	t.space = newBlocks(t.words.len-1, elems(size))
	t.build = builder{size: size, seed: seed, entries: make([]int32, size)}
	return nil
}

// alloc returns the first element of a table that is free.
func (t *tables) alloc(now time.Time) (uint32, error) {
	b, err := t.space.alloc(elems(t.size), now)
	if err != nil || t.size == 0 {
		return 0, errFull
	}
	return 1 + b.base, nil
}

func (t *tables) blockOf(ref uint32) block { return block{ref - 1, elems(t.size)} }

// reserve takes the table that a reference names. It says whether there is one that nobody has.
func (t *tables) reserve(ref uint64) bool {
	if t.size == 0 || ref == 0 || ref >= uint64(t.words.len) {
		return false
	}
	return t.space.reserve(t.blockOf(uint32(ref)))
}

func (t *tables) put(ref uint32, now time.Time) { t.space.put(t.blockOf(ref), now) }

// each gives the elements that a table for backends has.
func (t *tables) each(backends []*backend, f func(i uint32, word uint64)) {
	sorted, entries := t.build.table(backends)
	for i := uint32(0); i < t.size; i += perElem {
		word := uint64(sorted[entries[i]].id)
		if i+1 < t.size {
			word |= uint64(sorted[entries[i+1]].id) << 32
		}
		f(i/perElem, word)
	}
}

// write makes the table at ref one for backends. Programs may read it meanwhile: each entry is that of
// before or the new one. It returns the table's sum.
func (t *tables) write(ref uint32, backends []*backend) uint64 {
	t.each(backends, func(i uint32, word uint64) {
		if w := t.words.at(ref + i); atomic.LoadUint64(w) != word {
			atomic.StoreUint64(w, word)
		}
	})
	return t.sum(ref)
}

// matches says whether the table at ref is one for backends.
func (t *tables) matches(ref uint32, backends []*backend) bool {
	same := true
	t.each(backends, func(i uint32, word uint64) { same = same && *t.words.at(ref + i) == word })
	return same
}

// within says whether all entries of a table are among backends.
func (t *tables) within(ref uint32, backends []*backend) bool {
	ids := map[uint32]bool{}
	for _, b := range backends {
		ids[b.id] = true
	}
	for i := range t.size {
		if !ids[uint32(*t.words.at(ref + i/perElem)>>(32*(i%perElem)))] {
			return false
		}
	}
	return true
}

// sum is what two tables differ in if any of their entries does, very likely.
func (t *tables) sum(ref uint32) uint64 {
	var h uint64
	for i := range elems(t.size) {
		h = (h ^ *t.words.at(ref + i)) * 0x9e3779b97f4a7c15
		h ^= h >> 29
	}
	return h
}

// builder makes lookup tables as in "Maglev: A Fast and Reliable Software Network Load Balancer"
// (NSDI 2016), section 3.4: each backend has a permutation of the entries by its own hash, and in turn
// they take the first entry of theirs that is free.
type builder struct {
	size, seed uint32
	entries    []int32
	sorted     []*backend
	next, skip []uint32
}

// table returns the backends in the order in which they take their turns, the same on every node, and
// for each entry the index of its backend. Both are valid until the next call. There is at least one.
func (m *builder) table(backends []*backend) ([]*backend, []int32) {
	m.sorted = append(m.sorted[:0], backends...)
	slices.SortFunc(m.sorted, func(a, b *backend) int {
		return cmp.Or(bytes.Compare(a.ip[:], b.ip[:]), cmp.Compare(bpf.Port(a.port), bpf.Port(b.port)))
	})
	m.next, m.skip = m.next[:0], m.skip[:0]
	for _, b := range m.sorted {
		h := b.hash(m.seed)
		m.next = append(m.next, uint32(h>>32)%m.size)
		m.skip = append(m.skip, uint32(h)%(m.size-1)+1)
	}
	for i := range m.entries {
		m.entries[i] = -1
	}
	for left := m.size; ; {
		for i := range m.next {
			c, skip := m.next[i], m.skip[i]
			for m.entries[c] >= 0 {
				if c += skip; c >= m.size {
					c -= m.size
				}
			}
			m.entries[c] = int32(i)
			m.next[i] = c
			if left--; left == 0 {
				return m.sorted, m.entries
			}
		}
	}
}

// hash mixes address, port and protocol with the output function of SplitMix64 (Steele, Lea, Flood:
// "Fast splittable pseudorandom number generators", 2014).
func (e endpoint) hash(seed uint32) uint64 {
	h := uint64(seed)
	for _, w := range [3]uint64{
		binary.BigEndian.Uint64(e.ip[:]), binary.BigEndian.Uint64(e.ip[8:]), uint64(bpf.Port(e.port))<<8 | uint64(e.proto),
	} {
		h = (h ^ w) + 0x9e3779b97f4a7c15
		h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
		h = (h ^ h>>27) * 0x94d049bb133111eb
		h ^= h >> 31
	}
	return h
}
