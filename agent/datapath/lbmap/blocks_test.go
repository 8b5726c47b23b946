// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestBlocksAreNeverShared hands out, frees and restores blocks at random: no two that are in use
// or resting overlap, and all space comes back.
func TestBlocksAreNeverShared(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const slots = 256
		now := time.Unix(0, 0)
		a := newBlocks(slots, slotGrain)
		var used []block
		check := func() {
			var owner [slots / slotGrain]int
			mark := func(b block, who int) {
				first, n := a.span(b)
				for i := first; i < first+n; i++ {
					if owner[i] != 0 {
						t.Fatalf("slots from %d are given out twice", i*slotGrain)
					}
					owner[i] = who
				}
			}
			for i, b := range used {
				mark(b, i+1)
			}
			for _, h := range a.held.items[a.held.head:] {
				mark(h.what, -1)
			}
			for i, who := range owner {
				if a.taken.has(uint32(i)) != (who != 0) {
					t.Fatalf("slots from %d: taken %v, owner %d", i*slotGrain, a.taken.has(uint32(i)), who)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"alloc": func(t *rapid.T) {
				n := rapid.Uint32Range(0, 40).Draw(t, "count")
				b, err := a.alloc(n, now)
				if err == nil {
					if b.count != n || b.base+b.count > slots {
						t.Fatalf("asked for %d, got %v", n, b)
					}
					used = append(used, b)
				}
			},
			"put": func(t *rapid.T) {
				if len(used) > 0 {
					i := rapid.IntRange(0, len(used)-1).Draw(t, "which")
					a.put(used[i], now)
					used = append(used[:i], used[i+1:]...)
				}
			},
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(100, 3000).Draw(t, "ms")) * time.Millisecond)
			},
			"restart": func(t *rapid.T) {
				a = newBlocks(slots, slotGrain)
				for _, b := range used {
					if !a.reserve(b) {
						t.Fatalf("%v cannot be restored", b)
					}
					if b.count > 0 && a.reserve(b) {
						t.Fatalf("%v was restored twice", b)
					}
				}
			},
			"": func(*rapid.T) { check() },
		})
		for _, b := range used {
			a.put(b, now)
		}
		if _, err := a.alloc(slots, now.Add(holdBlock)); err != nil {
			t.Fatalf("not all space came back: %v", err)
		}
	})
}

func TestAFreedBlockRests(t *testing.T) {
	now := time.Unix(0, 0)
	a := newBlocks(8, slotGrain)
	b, err := a.alloc(8, now)
	if err != nil {
		t.Fatal(err)
	}
	a.put(b, now)
	if _, err := a.alloc(1, now.Add(holdBlock-1)); err == nil {
		t.Error("a block is reused while programs may still read it")
	}
	if _, err := a.alloc(1, now.Add(holdBlock)); err != nil {
		t.Error(err)
	}
}

func TestBadBlocksAreNotRestored(t *testing.T) {
	a := newBlocks(64, slotGrain)
	for _, b := range []block{{1, 4}, {64, 1}, {60, 8}, {0, 1 << 24}, {1 << 31, 4}} {
		if a.reserve(b) {
			t.Errorf("%v was taken", b)
		}
	}
}

// TestNumbersRest checks that a released number is not given out for a minute, unless its owner
// comes back, and that every number is given out in the end.
func TestNumbersRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(0, 0)
		a := newIDs(16)
		used, released := map[uint32]bool{}, map[uint32]time.Time{}
		t.Repeat(map[string]func(*rapid.T){
			"alloc": func(*rapid.T) {
				id, err := a.alloc(now)
				if err != nil {
					return
				}
				if at, ok := released[id]; id == 0 || id >= 16 || used[id] || ok && now.Sub(at) < holdID {
					t.Fatalf("number %d given out at %v, used %v, released %v", id, now, used[id], at)
				}
				used[id] = true
				delete(released, id)
			},
			"put": func(t *rapid.T) {
				id := rapid.Uint32Range(1, 15).Draw(t, "id")
				if used[id] {
					a.put(id, now)
					delete(used, id)
					released[id] = now
				}
			},
			"reserve": func(t *rapid.T) {
				id := rapid.Uint32Range(0, 17).Draw(t, "id")
				if ok := a.reserve(id); ok != (id > 0 && id < 16 && !used[id]) {
					t.Fatalf("reserve %d: %v", id, ok)
				} else if ok {
					used[id] = true
					delete(released, id)
				}
			},
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 40).Draw(t, "s")) * time.Second)
			},
		})
		now = now.Add(holdID)
		for len(used) < 15 {
			id, err := a.alloc(now)
			if err != nil {
				t.Fatalf("%d numbers given out: %v", len(used), err)
			}
			used[id] = true
		}
	})
}
