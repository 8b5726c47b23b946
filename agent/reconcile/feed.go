// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"sync"

	"lash.internal/lash/agent/state"
)

// Feed says which keys of a loop may have changed. One goroutine reads it.
type Feed[K comparable] interface {
	// Next gives the keys that may have changed since the last call and a channel that closes
	// when there is more to know.
	Next() (dirty []K, wake <-chan struct{})
	// Ready says whether the source has delivered its first full set. A change of the answer
	// closes the channel that Next gave.
	Ready() bool
}

// FromTable is the feed of the keys that the rows of t touch. When a row changes, the keys of its
// old and of its new form are dirty.
func FromTable[K, RK comparable, R any](t *state.Table[RK, R], keys func(R) []K) Feed[K] {
	return &tableFeed[K, RK, R]{table: t, cursor: t.Changes(), keys: keys, prev: map[RK][]K{}}
}

type tableFeed[K, RK comparable, R any] struct {
	table  *state.Table[RK, R]
	cursor *state.Cursor[RK, R]
	keys   func(R) []K
	prev   map[RK][]K
}

func (f *tableFeed[K, RK, R]) Next() ([]K, <-chan struct{}) {
	changes, wake := f.cursor.Next()
	dirty := make([]K, 0, len(changes))
	for _, c := range changes {
		dirty = append(dirty, f.prev[c.Key]...)
		if c.Deleted {
			delete(f.prev, c.Key)
			continue
		}
		keys := f.keys(c.Row)
		dirty = append(dirty, keys...)
		if len(keys) == 0 {
			delete(f.prev, c.Key)
		} else {
			f.prev[c.Key] = keys
		}
	}
	return dirty, wake
}

func (f *tableFeed[K, RK, R]) Ready() bool {
	ok, _ := f.table.Initialized()
	return ok
}

// Table is what a loop over whole sets needs of a table: *state.Table is one.
type Table interface {
	Watch() <-chan struct{}
	Initialized() (bool, <-chan struct{})
}

// Signal is a Table without rows, for what bears on keys and is in no table. The zero value is ready.
type Signal struct {
	mu sync.Mutex
	ch chan struct{}
}

// Watch returns a channel that closes with the next Fire.
func (s *Signal) Watch() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

// Initialized is always true.
func (s *Signal) Initialized() (bool, <-chan struct{}) { return true, nil }

// Fire says that something has changed.
func (s *Signal) Fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

// EveryKey is a feed that makes all of a loop's keys dirty whenever t changes. It is for small
// tables that bear on every entry, such as the local node.
func EveryKey[K comparable](t Table, all func() []K) Feed[K] {
	return &everyFeed[K]{table: t, all: all}
}

type everyFeed[K comparable] struct {
	table Table
	all   func() []K
	seen  <-chan struct{}
}

func (f *everyFeed[K]) Next() ([]K, <-chan struct{}) {
	wake := f.table.Watch()
	if wake == f.seen {
		return nil, wake
	}
	f.seen = wake
	return f.all(), wake
}

func (f *everyFeed[K]) Ready() bool {
	ok, _ := f.table.Initialized()
	return ok
}

// Via is a feed of the keys that bear on what another feed names. of is asked when something of it
// has changed, so it sees the tables as they are then.
func Via[K, C comparable](from Feed[C], of func(C) []K) Feed[K] { return &viaFeed[K, C]{from, of} }

type viaFeed[K, C comparable] struct {
	from Feed[C]
	of   func(C) []K
}

func (f *viaFeed[K, C]) Next() ([]K, <-chan struct{}) {
	changed, wake := f.from.Next()
	var dirty []K
	seen := make(map[C]struct{}, len(changed))
	for _, c := range changed {
		if _, ok := seen[c]; !ok {
			seen[c] = struct{}{}
			dirty = append(dirty, f.of(c)...)
		}
	}
	return dirty, wake
}

func (f *viaFeed[K, C]) Ready() bool { return f.from.Ready() }
