// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"
)

// Target holds entries of one kind. Implementations need not be safe for concurrent use: one
// chain calls them.
type Target[K comparable, V any] interface {
	// Load reads every entry that is ours.
	Load(ctx context.Context) (map[K]V, error)
	// Set creates the entry or replaces it in one step.
	Set(ctx context.Context, key K, value V) error
	// Delete removes the entry; an entry that is gone already is no error.
	Delete(ctx context.Context, key K) error
}

// Status is what is known about one loop.
type Status struct {
	Name    string `json:"name"`
	Chain   string `json:"chain"`
	Entries int    `json:"entries"`
	Pending int    `json:"pending"`
	// Synced is set once every source was complete and all entries of that moment were applied.
	Synced        bool      `json:"synced"`
	OldestPending time.Time `json:"oldest-pending,omitzero"`
	LastError     string    `json:"last-error,omitempty"`
	LastErrorAt   time.Time `json:"last-error-at,omitzero"`
	Sets          uint64    `json:"sets"`
	Deletes       uint64    `json:"deletes"`
	Failures      uint64    `json:"failures"`
	// Repairs counts entries that an audit found changed behind our back.
	Repairs uint64 `json:"repairs"`
}

// Back-off of one failing key.
const (
	retryMin = 100 * time.Millisecond
	retryMax = 30 * time.Second
)

// dirtyRoom is how many dirty keys a loop keeps room for.
const dirtyRoom = 1024

// Loop keeps one target equal to what a Want function says.
type Loop[K comparable, V any] struct {
	name   string
	target Target[K, V]
	feeds  []Feed[K]
	want   func(K) (V, bool)

	whole   func() map[K]V // loops over whole sets only
	watches []Table
	woke    []<-chan struct{}
	wants   map[K]V

	equal    func(a, b V) bool
	rank     func(K) int
	interval time.Duration // of audits, 0: that of the chain

	belief map[K]V
	dirty  map[K]time.Time // since when
	marked int             // dirty keys at most, since dirty was made
	failed map[K]*retry
	loaded bool
	swept  bool // the first full comparison after all sources were ready is done

	kick chan struct{}

	mu       sync.Mutex
	requests []*request[K]
	status   Status
}

type retry struct {
	since, at time.Time
	delay     time.Duration
	err       error
}

type request[K comparable] struct {
	keys []K
	done chan error
}

// Keyed returns a loop whose Want answers for one key at a time; feeds name the keys to ask for.
func Keyed[K comparable, V any](name string, t Target[K, V], want func(K) (V, bool), feeds ...Feed[K]) *Loop[K, V] {
	l := newLoop(name, t)
	l.want, l.feeds = want, feeds
	return l
}

// Whole returns a loop whose Want gives the whole set, asked for whenever one of the tables
// changes. It is for domains that stay small.
func Whole[K comparable, V any](name string, t Target[K, V], want func() map[K]V, tables ...Table) *Loop[K, V] {
	l := newLoop(name, t)
	l.whole, l.watches = want, tables
	l.woke = make([]<-chan struct{}, len(tables))
	l.want = func(k K) (V, bool) { v, ok := l.wants[k]; return v, ok }
	return l
}

func newLoop[K comparable, V any](name string, t Target[K, V]) *Loop[K, V] {
	l := &Loop[K, V]{
		name: name, target: t,
		belief: map[K]V{}, dirty: map[K]time.Time{}, failed: map[K]*retry{},
		kick:   make(chan struct{}, 1),
		status: Status{Name: name},
		equal:  func(a, b V) bool { return reflect.DeepEqual(a, b) },
	}
	if reflect.TypeFor[V]().Comparable() {
		l.equal = func(a, b V) bool { return any(a) == any(b) }
	}
	return l
}

// Equal sets the comparison that decides whether an entry must be written. The default is == for
// comparable values and deep equality else.
func (l *Loop[K, V]) Equal(f func(a, b V) bool) *Loop[K, V] {
	l.equal = f
	return l
}

// Rank sets the order within one pass: entries of a lower rank are written first and deleted last.
func (l *Loop[K, V]) Rank(f func(K) int) *Loop[K, V] {
	l.rank = f
	return l
}

// AuditEvery sets how often the target is read again, for targets that others often meddle with.
func (l *Loop[K, V]) AuditEvery(d time.Duration) *Loop[K, V] {
	l.interval = d
	return l
}

// Name returns the loop's name.
func (l *Loop[K, V]) Name() string { return l.name }

// Status returns what is known about the loop.
func (l *Loop[K, V]) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

// Sync asks for keys to be brought up to date now and waits until it is done. It returns the
// errors of those keys that could not be written; they are retried like all others.
func (l *Loop[K, V]) Sync(ctx context.Context, keys ...K) error {
	r := &request[K]{keys: keys, done: make(chan error, 1)}
	l.mu.Lock()
	l.requests = append(l.requests, r)
	l.mu.Unlock()
	select {
	case l.kick <- struct{}{}:
	default:
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s: wait for entry: %w", l.name, ctx.Err())
	}
}

// collect moves what the feeds know into the dirty set. It returns the channels to wait on.
func (l *Loop[K, V]) collect(now time.Time) []<-chan struct{} {
	wakes := []<-chan struct{}{l.kick}
	for _, f := range l.feeds {
		keys, wake := f.Next()
		for _, k := range keys {
			l.mark(k, now)
		}
		wakes = append(wakes, wake)
	}
	changed := l.wants == nil
	for i, t := range l.watches {
		w := t.Watch()
		changed = changed || w != l.woke[i]
		l.woke[i] = w
		wakes = append(wakes, w)
	}
	if l.whole != nil && changed {
		next := l.whole()
		if next == nil {
			next = map[K]V{}
		}
		for k, v := range next {
			if old, ok := l.wants[k]; !ok || !l.equal(old, v) {
				l.mark(k, now)
			}
		}
		for k := range l.wants {
			if _, ok := next[k]; !ok {
				l.mark(k, now)
			}
		}
		l.wants = next
	}
	return wakes
}

func (l *Loop[K, V]) mark(k K, now time.Time) {
	if _, ok := l.dirty[k]; !ok {
		l.dirty[k] = now
		l.marked = max(l.marked, len(l.dirty))
	}
	if f := l.failed[k]; f != nil {
		f.at = now // new facts: try at once
	}
}

// take returns the requests that the coming pass answers and marks their keys.
func (l *Loop[K, V]) take(now time.Time) []*request[K] {
	l.mu.Lock()
	reqs := l.requests
	l.requests = nil
	l.mu.Unlock()
	for _, r := range reqs {
		for _, k := range r.keys {
			l.mark(k, now)
		}
	}
	return reqs
}

func (l *Loop[K, V]) ready() bool {
	for _, f := range l.feeds {
		if !f.Ready() {
			return false
		}
	}
	for _, t := range l.watches {
		if ok, _ := t.Initialized(); !ok {
			return false
		}
	}
	return true
}

// load fills the belief; on a later call it compares and marks what differs.
func (l *Loop[K, V]) load(ctx context.Context, now time.Time) error {
	actual, err := l.target.Load(ctx)
	if err != nil {
		l.fail(fmt.Errorf("load: %w", err), now)
		return err
	}
	if actual == nil {
		actual = map[K]V{}
	}
	if !l.loaded {
		l.loaded = true
		l.belief = actual
		return nil
	}
	var repairs uint64
	for k, v := range actual {
		if b, ok := l.belief[k]; !ok || !l.equal(b, v) {
			l.mark(k, now)
			repairs++
		}
	}
	for k := range l.belief {
		if _, ok := actual[k]; !ok {
			l.mark(k, now)
			repairs++
		}
	}
	l.belief = actual
	l.mu.Lock()
	l.status.Repairs += repairs
	l.mu.Unlock()
	return nil
}

// sweep marks every entry that the target holds, so that what nobody wants is found.
func (l *Loop[K, V]) sweep(now time.Time) {
	for k := range l.belief {
		l.mark(k, now)
	}
	l.swept = true
}

func (l *Loop[K, V]) due(k K, now time.Time) bool {
	f := l.failed[k]
	return f == nil || !f.at.After(now)
}

// ordered are the dirty keys by rank.
func (l *Loop[K, V]) ordered() []K {
	keys := make([]K, 0, len(l.dirty))
	for k := range l.dirty {
		keys = append(keys, k)
	}
	if l.rank != nil {
		slices.SortStableFunc(keys, func(a, b K) int { return cmp.Compare(l.rank(a), l.rank(b)) })
	}
	return keys
}

// sets writes the dirty keys that are wanted and differ from the belief. Until every source has been
// complete once, what is there from before is not replaced: it is better than a part of the truth,
// which would be undone a moment later. An entry that somebody waits for is written at once.
func (l *Loop[K, V]) sets(ctx context.Context, now time.Time, ready bool, asked map[K]bool) {
	for _, k := range l.ordered() {
		since := l.dirty[k]
		if ctx.Err() != nil {
			return
		}
		if !l.due(k, now) {
			continue
		}
		b, held := l.belief[k]
		if held && !ready && !asked[k] {
			continue
		}
		v, wanted := l.want(k)
		if !wanted {
			continue // deletes handles it
		}
		if held && l.equal(b, v) {
			l.settle(k)
			continue
		}
		if err := l.target.Set(ctx, k, v); err != nil {
			l.failKey(k, since, now, fmt.Errorf("set %v: %w", k, err))
			continue
		}
		l.belief[k] = v
		l.settle(k)
		l.mu.Lock()
		l.status.Sets++
		l.mu.Unlock()
	}
}

// deletes removes the dirty keys that nobody wants. It says whether all of them went.
func (l *Loop[K, V]) deletes(ctx context.Context, now time.Time) {
	keys := l.ordered()
	slices.Reverse(keys)
	for _, k := range keys {
		since := l.dirty[k]
		if ctx.Err() != nil {
			return
		}
		if _, held := l.belief[k]; !held {
			if _, wanted := l.want(k); !wanted {
				l.settle(k)
			}
			continue
		}
		if !l.due(k, now) {
			continue
		}
		if _, wanted := l.want(k); wanted {
			continue
		}
		if err := l.target.Delete(ctx, k); err != nil {
			l.failKey(k, since, now, fmt.Errorf("delete %v: %w", k, err))
			continue
		}
		delete(l.belief, k)
		l.settle(k)
		l.mu.Lock()
		l.status.Deletes++
		l.mu.Unlock()
	}
}

func (l *Loop[K, V]) settle(k K) {
	delete(l.dirty, k)
	delete(l.failed, k)
}

func (l *Loop[K, V]) failKey(k K, since, now time.Time, err error) {
	f := l.failed[k]
	if f == nil {
		f = &retry{since: since, delay: retryMin}
		l.failed[k] = f
	} else {
		f.delay = min(f.delay*2, retryMax)
	}
	f.at, f.err = now.Add(f.delay), err
	l.fail(err, now)
}

func (l *Loop[K, V]) fail(err error, now time.Time) {
	l.mu.Lock()
	l.status.Failures++
	l.status.LastError = err.Error()
	l.status.LastErrorAt = now
	l.mu.Unlock()
}

// troubled says whether an operation of the loop has failed and is waiting for its retry.
func (l *Loop[K, V]) troubled() bool { return len(l.failed) > 0 }

// finish answers the requests of the pass and brings the status up to date.
func (l *Loop[K, V]) finish(reqs []*request[K], ready bool) {
	for _, r := range reqs {
		var errs []error
		for _, k := range r.keys {
			if f := l.failed[k]; f != nil {
				errs = append(errs, f.err)
			}
		}
		err := errors.Join(errs...)
		if err != nil {
			err = fmt.Errorf("%s: %w", l.name, err)
		}
		r.done <- err
	}
	var oldest time.Time
	pending := 0
	for k, since := range l.dirty {
		if f := l.failed[k]; f != nil {
			since = f.since
		} else if ready {
			continue // handled in the next pass
		}
		pending++
		if oldest.IsZero() || since.Before(oldest) {
			oldest = since
		}
	}
	if len(l.dirty) == 0 && l.marked > dirtyRoom {
		l.dirty, l.marked = map[K]time.Time{}, 0 // a map never gets smaller
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.Entries = len(l.belief)
	l.status.Pending = pending
	l.status.OldestPending = oldest
	if pending == 0 {
		l.status.LastError = ""
	}
	if ready && pending == 0 && len(l.dirty) == 0 {
		l.status.Synced = true
	}
}

// nextRetry returns when the first failed key is due, zero when none is. Keys that were due in
// this pass and are still there wait for something else: another stage or a source.
func (l *Loop[K, V]) nextRetry(now time.Time) time.Time {
	var at time.Time
	for _, f := range l.failed {
		if !f.at.After(now) {
			continue
		}
		if at.IsZero() || f.at.Before(at) {
			at = f.at
		}
	}
	return at
}
