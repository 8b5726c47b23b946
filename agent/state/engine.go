// SPDX-License-Identifier: Apache-2.0

// Package state is the data model of the node program: typed in-memory tables that sources write
// and features read. One revision counter orders all commits; a change cursor gives a reader each
// key that changed since it last looked, deletions included; a ready gate says when every source
// of a table has delivered its first full set.
//
// Rows are immutable plain values: a writer inserts a new row, nobody changes one in place.
// The API is a subset of github.com/cilium/statedb in spirit, so that it can be swapped.
package state

import (
	"iter"
	"slices"
	"sort"
	"sync"
)

// Revision counts commits of a DB; it only grows.
type Revision uint64

// DB groups tables that are committed together.
type DB struct {
	mu     sync.RWMutex
	rev    Revision
	tables []tableMeta
}

type tableMeta interface {
	Name() string
	Len() int
	Initialized() (bool, <-chan struct{})
	notify()
}

// New returns an empty DB.
func New() *DB { return &DB{} }

// Revision returns the number of the last commit.
func (db *DB) Revision() Revision {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.rev
}

// TableInfo is what status output says of one table.
type TableInfo struct {
	Name        string `json:"name"`
	Rows        int    `json:"rows"`
	Initialized bool   `json:"initialized"`
}

// Tables lists all tables in the order of their creation.
func (db *DB) Tables() []TableInfo {
	db.mu.RLock()
	tables := slices.Clone(db.tables)
	db.mu.RUnlock()
	out := make([]TableInfo, 0, len(tables))
	for _, t := range tables {
		ok, _ := t.Initialized()
		out = append(out, TableInfo{Name: t.Name(), Rows: t.Len(), Initialized: ok})
	}
	return out
}

// WriteTxn buffers changes of any number of tables until Commit. It is not safe for concurrent
// use. Nothing is visible to readers before Commit, then all of it at once.
type WriteTxn struct {
	db  *DB
	ops []operation
}

// operation is one buffered change. do says whether it changed anything.
type operation struct {
	table tableMeta
	do    func(rev Revision) bool
}

// WriteTxn starts a transaction. It holds no lock, so it may be dropped without Commit.
func (db *DB) WriteTxn() *WriteTxn { return &WriteTxn{db: db} }

// Commit applies all buffered changes under one revision and wakes the readers. The transaction
// is empty afterwards and may be used again.
func (w *WriteTxn) Commit() Revision {
	w.db.mu.Lock()
	defer w.db.mu.Unlock()
	if len(w.ops) == 0 {
		return w.db.rev
	}
	w.db.rev++
	changed := map[tableMeta]struct{}{}
	for _, op := range w.ops {
		if op.do(w.db.rev) {
			changed[op.table] = struct{}{}
		}
	}
	for t := range changed {
		t.notify()
	}
	w.ops = nil
	return w.db.rev
}

type entry[R any] struct {
	row     R
	rev     Revision
	seq     uint64 // of the log entry that tells of this state
	deleted bool
}

// Table holds rows of type R under unique keys of type K.
type Table[K comparable, R any] struct {
	db      *DB
	name    string
	key     func(R) K
	rows    map[K]entry[R]
	live    int
	log     []logEntry[K] // ascending; an entry is stale when rows[key].seq differs
	seq     uint64
	limit   int // length of log at which it is compacted
	cursors map[*Cursor[K, R]]struct{}
	indexes []*index[K, R]
	watch   chan struct{}
	pending map[string]struct{}
	ready   chan struct{}
}

type logEntry[K comparable] struct {
	key K
	rev Revision
	seq uint64
}

// logSlack is how far the log may grow beyond twice what it must hold.
const logSlack = 64

type index[K comparable, R any] struct {
	name string
	of   func(R) []string
	keys map[string]bucket[K]
}

// bucket is the set of rows with one index key. Most have a single one, which needs no map.
type bucket[K comparable] struct {
	one  K
	full bool           // one counts
	more map[K]struct{} // all of them once there have been several
}

func (b bucket[K]) with(k K) bucket[K] {
	switch {
	case b.more != nil:
		b.more[k] = struct{}{}
	case !b.full:
		b.one, b.full = k, true
	case b.one != k:
		b.more = map[K]struct{}{b.one: {}, k: {}}
	}
	return b
}

// without says also whether anything is left.
func (b bucket[K]) without(k K) (bucket[K], bool) {
	if b.more != nil {
		delete(b.more, k)
		return b, len(b.more) > 0
	}
	return b, b.full && b.one != k
}

func (b bucket[K]) len() int {
	if b.more != nil {
		return len(b.more)
	}
	if b.full {
		return 1
	}
	return 0
}

func (b bucket[K]) each(yield func(K) bool) {
	if b.more == nil {
		if b.full {
			yield(b.one)
		}
		return
	}
	for k := range b.more {
		if !yield(k) {
			return
		}
	}
}

// Index names a secondary index: Of gives the index keys of a row (none, one or several).
type Index[R any] struct {
	Name string
	Of   func(R) []string
}

// NewTable adds a table to db. key must depend on nothing but the row.
func NewTable[K comparable, R any](db *DB, name string, key func(R) K, indexes ...Index[R]) *Table[K, R] {
	t := &Table[K, R]{
		db: db, name: name, key: key,
		rows:    map[K]entry[R]{},
		cursors: map[*Cursor[K, R]]struct{}{},
		watch:   make(chan struct{}),
		pending: map[string]struct{}{},
		ready:   make(chan struct{}),
		limit:   logSlack,
	}
	close(t.ready) // until a source registers
	for _, ix := range indexes {
		t.indexes = append(t.indexes, &index[K, R]{name: ix.Name, of: ix.Of, keys: map[string]bucket[K]{}})
	}
	db.mu.Lock()
	db.tables = append(db.tables, t)
	db.mu.Unlock()
	return t
}

// Name returns the table's name.
func (t *Table[K, R]) Name() string { return t.name }

// Len returns the number of live rows.
func (t *Table[K, R]) Len() int {
	t.db.mu.RLock()
	defer t.db.mu.RUnlock()
	return t.live
}

// Insert puts row, replacing the row of the same key.
func (t *Table[K, R]) Insert(w *WriteTxn, row R) {
	w.ops = append(w.ops, operation{t, func(rev Revision) bool {
		t.put(t.key(row), entry[R]{row: row, rev: rev})
		return true
	}})
}

// Delete removes the row of key; a missing row is no error.
func (t *Table[K, R]) Delete(w *WriteTxn, key K) {
	w.ops = append(w.ops, operation{t, func(rev Revision) bool {
		old, ok := t.rows[key]
		if !ok || old.deleted {
			return false
		}
		t.put(key, entry[R]{row: old.row, rev: rev, deleted: true})
		return true
	}})
}

func (t *Table[K, R]) put(key K, e entry[R]) {
	old, had := t.rows[key]
	if had && !old.deleted {
		t.live--
		for _, ix := range t.indexes {
			for _, s := range ix.of(old.row) {
				if b, left := ix.keys[s].without(key); left {
					ix.keys[s] = b
				} else {
					delete(ix.keys, s)
				}
			}
		}
	}
	if !e.deleted {
		t.live++
		for _, ix := range t.indexes {
			for _, s := range ix.of(e.row) {
				ix.keys[s] = ix.keys[s].with(key)
			}
		}
	}
	t.seq++
	e.seq = t.seq
	t.rows[key] = e
	t.log = append(t.log, logEntry[K]{key: key, rev: e.rev, seq: e.seq})
	if len(t.log) >= t.limit {
		t.compact()
	}
}

// compact drops overwritten log entries and the tombstones that every cursor has seen.
func (t *Table[K, R]) compact() {
	low := t.db.rev
	for c := range t.cursors {
		low = min(low, c.rev)
	}
	kept := t.log[:0]
	for _, l := range t.log {
		e := t.rows[l.key]
		switch {
		case e.seq != l.seq:
		case e.deleted && l.rev <= low:
			delete(t.rows, l.key)
		default:
			kept = append(kept, l)
		}
	}
	clear(t.log[len(kept):])
	t.log = kept
	t.limit = 2*len(kept) + logSlack
}

func (t *Table[K, R]) notify() {
	close(t.watch)
	t.watch = make(chan struct{})
}

// Get returns the row of key.
func (t *Table[K, R]) Get(key K) (R, bool) {
	t.db.mu.RLock()
	defer t.db.mu.RUnlock()
	e, ok := t.rows[key]
	if !ok || e.deleted {
		var zero R
		return zero, false
	}
	return e.row, true
}

// All iterates over a snapshot of the live rows, in no particular order.
func (t *Table[K, R]) All() iter.Seq2[K, R] {
	t.db.mu.RLock()
	snap := make(map[K]R, t.live)
	for k, e := range t.rows {
		if !e.deleted {
			snap[k] = e.row
		}
	}
	t.db.mu.RUnlock()
	return func(yield func(K, R) bool) {
		for k, r := range snap {
			if !yield(k, r) {
				return
			}
		}
	}
}

// ByIndex returns the rows whose index keys contain key. An unknown index name panics: it is a
// mistake in the program, not in its input.
func (t *Table[K, R]) ByIndex(name, key string) []R {
	t.db.mu.RLock()
	defer t.db.mu.RUnlock()
	b := t.index(name).keys[key]
	out := make([]R, 0, b.len())
	for k := range b.each {
		out = append(out, t.rows[k].row)
	}
	return out
}

// Any says whether f is true of a row whose index keys contain key, without copying them all. f must
// not use the tables.
func (t *Table[K, R]) Any(name, key string, f func(R) bool) bool {
	t.db.mu.RLock()
	defer t.db.mu.RUnlock()
	for k := range t.index(name).keys[key].each {
		if f(t.rows[k].row) {
			return true
		}
	}
	return false
}

func (t *Table[K, R]) index(name string) *index[K, R] {
	for _, ix := range t.indexes {
		if ix.name == name {
			return ix
		}
	}
	panic("state: table " + t.name + " has no index " + name)
}

// Watch returns a channel that is closed at the next change of the table.
func (t *Table[K, R]) Watch() <-chan struct{} {
	t.db.mu.RLock()
	defer t.db.mu.RUnlock()
	return t.watch
}

// RegisterInitializer says that source has yet to deliver its first full set. The table is not
// ready until the returned function's transaction commits.
func (t *Table[K, R]) RegisterInitializer(source string) func(w *WriteTxn) {
	t.db.mu.Lock()
	if len(t.pending) == 0 {
		t.ready = make(chan struct{})
	}
	t.pending[source] = struct{}{}
	t.db.mu.Unlock()
	return func(w *WriteTxn) {
		w.ops = append(w.ops, operation{t, func(Revision) bool {
			if _, ok := t.pending[source]; !ok {
				return false
			}
			delete(t.pending, source)
			if len(t.pending) == 0 {
				close(t.ready)
			}
			return true
		}})
	}
}

// Initialized says whether every registered source has delivered its first full set, and gives
// the channel that closes when that happens. A table without sources is initialized.
func (t *Table[K, R]) Initialized() (bool, <-chan struct{}) {
	t.db.mu.RLock()
	defer t.db.mu.RUnlock()
	return len(t.pending) == 0, t.ready
}

// Pending lists the sources that have not delivered their first full set yet.
func (t *Table[K, R]) Pending() []string {
	t.db.mu.RLock()
	defer t.db.mu.RUnlock()
	out := make([]string, 0, len(t.pending))
	for s := range t.pending {
		out = append(out, s)
	}
	sort.Strings(out)
	return out
}

// Change is one key's newest state since a cursor's last look.
type Change[K comparable, R any] struct {
	Key      K
	Row      R // of a deleted key: the last live row
	Deleted  bool
	Revision Revision
}

// Cursor reads a table's changes. It is used by one goroutine.
type Cursor[K comparable, R any] struct {
	t   *Table[K, R]
	rev Revision
}

// Changes returns a cursor whose first Next gives every live row.
func (t *Table[K, R]) Changes() *Cursor[K, R] {
	c := &Cursor[K, R]{t: t}
	t.db.mu.Lock()
	t.cursors[c] = struct{}{}
	t.db.mu.Unlock()
	return c
}

// Next returns the keys that changed since the last call, oldest first and each once, and a
// channel that closes at the next change.
func (c *Cursor[K, R]) Next() ([]Change[K, R], <-chan struct{}) {
	t := c.t
	t.db.mu.Lock()
	defer t.db.mu.Unlock()
	first := c.rev == 0
	i := sort.Search(len(t.log), func(i int) bool { return t.log[i].rev > c.rev })
	var out []Change[K, R]
	if n := len(t.log) - i; n > 0 {
		out = make([]Change[K, R], 0, n)
	}
	for _, l := range t.log[i:] {
		e := t.rows[l.key]
		if e.seq != l.seq || (first && e.deleted) {
			continue
		}
		out = append(out, Change[K, R]{Key: l.key, Row: e.row, Deleted: e.deleted, Revision: l.rev})
	}
	c.rev = t.db.rev
	return out, t.watch
}

// Close releases the cursor, so that the tombstones it held back can be dropped.
func (c *Cursor[K, R]) Close() {
	c.t.db.mu.Lock()
	delete(c.t.cursors, c)
	c.t.db.mu.Unlock()
}
