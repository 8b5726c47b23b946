// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lash.internal/lash/agent/state"
)

type obj struct {
	name  string
	value int
}

// store is a target in memory that can be told to fail.
type store struct {
	mu      sync.Mutex
	entries map[string]int
	writes  int
	name    string
	shared  *[]string
	fail    func(op, key string) error
}

func (s *store) Load(context.Context) (map[string]int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failure("load", ""); err != nil {
		return nil, err
	}
	return maps.Clone(s.entries), nil
}

func (s *store) failure(op, key string) error {
	if s.fail == nil {
		return nil
	}
	return s.fail(op, key)
}

func (s *store) Set(_ context.Context, k string, v int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failure("set", k); err != nil {
		return err
	}
	s.entries[k] = v
	s.note("set " + k)
	return nil
}

func (s *store) Delete(_ context.Context, k string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failure("delete", k); err != nil {
		return err
	}
	delete(s.entries, k)
	s.note("delete " + k)
	return nil
}

func (s *store) note(what string) {
	s.writes++
	if s.shared != nil {
		*s.shared = append(*s.shared, s.name+": "+what)
	}
}

func (s *store) content() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.entries)
}

func newStore(entries map[string]int) *store {
	if entries == nil {
		entries = map[string]int{}
	}
	return &store{entries: entries}
}

type fixture struct {
	db    *state.DB
	table *state.Table[string, obj]
}

func newFixture() fixture {
	db := state.New()
	return fixture{db, state.NewTable(db, "objects", func(o obj) string { return o.name })}
}

func (f fixture) put(objs ...obj) {
	w := f.db.WriteTxn()
	for _, o := range objs {
		f.table.Insert(w, o)
	}
	w.Commit()
}

func (f fixture) remove(names ...string) {
	w := f.db.WriteTxn()
	for _, n := range names {
		f.table.Delete(w, n)
	}
	w.Commit()
}

func (f fixture) want(k string) (int, bool) {
	o, ok := f.table.Get(k)
	return o.value, ok
}

func (f fixture) feed() Feed[string] {
	return FromTable(f.table, func(o obj) []string { return []string{o.name} })
}

func run(t *testing.T, stages ...Stage) *Chain {
	c := NewChain("test", slog.New(slog.DiscardHandler), stages...)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		c.Run(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return c
}

func expect(t *testing.T, s *store, want map[string]int) {
	t.Helper()
	synctest.Wait()
	if got := s.content(); !maps.Equal(got, want) {
		t.Errorf("target holds %v, want %v", got, want)
	}
}

// TestNothingIsDeletedBeforeTheSourcesAreComplete starts over a target that holds an entry nobody
// has asked for yet.
func TestNothingIsDeletedBeforeTheSourcesAreComplete(t *testing.T) {
	for _, form := range []string{"keyed", "whole"} {
		t.Run(form, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture()
				complete := f.table.RegisterInitializer("api")
				s := newStore(map[string]int{"old": 1, "kept": 2})
				loop := Keyed("objects", s, f.want, f.feed())
				if form == "whole" {
					loop = Whole("objects", s, func() map[string]int {
						out := map[string]int{}
						for k, o := range f.table.All() {
							out[k] = o.value
						}
						return out
					}, f.table)
				}
				c := run(t, loop)
				f.put(obj{"new", 3}, obj{"kept", 2})
				expect(t, s, map[string]int{"old": 1, "kept": 2, "new": 3})
				f.remove("new")
				expect(t, s, map[string]int{"old": 1, "kept": 2, "new": 3})
				select {
				case <-c.Synced():
					t.Error("synced before the source was complete")
				default:
				}
				w := f.db.WriteTxn()
				complete(w)
				w.Commit()
				expect(t, s, map[string]int{"kept": 2})
				<-c.Synced()
				if s.writes != 3 {
					t.Errorf("%d writes, want 3: an entry that was right already is left alone", s.writes)
				}
			})
		})
	}
}

// TestAPartOfTheTruthReplacesNothing starts over an entry whose value takes two sources to know, one
// of which comes late.
func TestAPartOfTheTruthReplacesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, late := newFixture(), newFixture()
		complete := late.table.RegisterInitializer("api")
		s := newStore(map[string]int{"a": 3, "b": 7})
		asked := map[string]int{}
		run(t, Keyed("objects", s, func(k string) (int, bool) {
			asked[k]++
			v, ok := f.want(k)
			more, _ := late.want(k)
			return v + more, ok
		}, f.feed(), late.feed()))
		f.put(obj{"a", 1}, obj{"b", 1}, obj{"c", 1})
		expect(t, s, map[string]int{"a": 3, "b": 7, "c": 1})
		if asked["a"]+asked["b"] != 0 || asked["c"] == 0 {
			t.Errorf("asked for %v before all was known: only c is of use then", asked)
		}
		late.put(obj{"a", 2})
		w := late.db.WriteTxn()
		complete(w)
		w.Commit()
		expect(t, s, map[string]int{"a": 3, "b": 1, "c": 1})
		if s.writes != 2 {
			t.Errorf("%d writes, want one for b and one for c", s.writes)
		}
	})
}

// TestFailuresAreRetried lets one key fail a few times; others are not held up by it.
func TestFailuresAreRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		s := newStore(nil)
		left := 3
		s.fail = func(op, key string) error {
			if op == "set" && key == "bad" && left > 0 {
				left--
				return errors.New("no space")
			}
			return nil
		}
		loop := Keyed("objects", s, f.want, f.feed())
		run(t, loop)
		f.put(obj{"bad", 1}, obj{"good", 2})
		expect(t, s, map[string]int{"good": 2})
		st := loop.Status()
		if st.Pending != 1 || st.LastError != "set bad: no space" || st.Synced || st.OldestPending.IsZero() {
			t.Errorf("status %+v", st)
		}
		time.Sleep(time.Second)
		expect(t, s, map[string]int{"good": 2, "bad": 1})
		if st := loop.Status(); st.Pending != 0 || st.LastError != "" || !st.Synced || st.Failures != 3 {
			t.Errorf("status %+v", st)
		}
	})
}

// TestAuditRepairs changes the target behind the loop's back.
func TestAuditRepairs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		s := newStore(nil)
		loop := Keyed("objects", s, f.want, f.feed())
		run(t, loop)
		f.put(obj{"a", 1}, obj{"b", 2}, obj{"c", 3})
		synctest.Wait()
		s.mu.Lock()
		s.entries["a"] = 9
		delete(s.entries, "b")
		s.entries["foreign"] = 4
		s.mu.Unlock()
		time.Sleep(2 * AuditInterval)
		expect(t, s, map[string]int{"a": 1, "b": 2, "c": 3})
		if n := loop.Status().Repairs; n != 3 {
			t.Errorf("%d repairs counted, want 3", n)
		}
	})
}

// TestAuditOfItsOwnInterval has one loop that looks more often than its chain, and asks for an
// audit of all.
func TestAuditOfItsOwnInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		watched, quiet := newStore(nil), newStore(nil)
		c := run(t, Keyed("watched", watched, f.want, f.feed()).AuditEvery(10*time.Second), Keyed("quiet", quiet, f.want, f.feed()))
		f.put(obj{"a", 1})
		synctest.Wait()
		lose := func(s *store) {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.entries, "a")
		}
		lose(watched)
		lose(quiet)
		time.Sleep(11 * time.Second)
		expect(t, watched, map[string]int{"a": 1})
		expect(t, quiet, map[string]int{})
		c.Audit()
		synctest.Wait()
		expect(t, quiet, map[string]int{"a": 1})
	})
}

// TestSignal asks for all keys again because of something that is in no table.
func TestSignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sig Signal
		var value atomic.Int64
		value.Store(1)
		s := newStore(nil)
		want := func(string) (int, bool) { return int(value.Load()), true }
		run(t, Keyed("objects", s, want, EveryKey(&sig, func() []string { return []string{"a"} })))
		expect(t, s, map[string]int{"a": 1})
		for i := range 3 {
			value.Store(int64(i))
			sig.Fire()
			expect(t, s, map[string]int{"a": i})
		}
	})
}

// TestRank writes the entries of one pass in the order of their rank and deletes them in the
// opposite one.
func TestRank(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		var journal, want []string
		s := newStore(nil)
		s.shared = &journal
		var objs []obj
		for i := range 9 {
			objs = append(objs, obj{fmt.Sprint(8 - i), 1})
			want = append(want, fmt.Sprintf(": set %d", i))
		}
		for i := range 9 {
			want = append(want, fmt.Sprintf(": delete %d", 8-i))
		}
		run(t, Keyed("objects", s, f.want, f.feed()).Rank(func(k string) int { return int(k[0]) }))
		f.put(objs...)
		synctest.Wait()
		f.remove("0", "1", "2", "3", "4", "5", "6", "7", "8")
		synctest.Wait()
		if !slices.Equal(journal, want) {
			t.Errorf("order %q, want %q", journal, want)
		}
	})
}

// TestSyncWaitsForTheEntry asks for one key and finds it written when the call returns.
func TestSyncWaitsForTheEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		s := newStore(nil)
		s.fail = func(_, key string) error {
			if key == "bad" {
				return errors.New("refused")
			}
			return nil
		}
		loop := Keyed("objects", s, f.want, f.feed())
		run(t, loop)
		f.put(obj{"a", 1})
		if err := loop.Sync(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if got := s.content()["a"]; got != 1 {
			t.Errorf("entry is %d after Sync, want 1", got)
		}
		f.put(obj{"bad", 1})
		if err := loop.Sync(t.Context(), "bad"); err == nil || err.Error() != "objects: set bad: refused" {
			t.Errorf("Sync of a key that fails: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		idle := Keyed("idle", newStore(nil), f.want)
		if err := idle.Sync(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Sync of a loop that does not run: %v", err)
		}
	})
}

// TestChainOrder writes what is referred to first and deletes it last.
func TestChainOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		var journal []string
		lower, upper := newStore(nil), newStore(nil)
		lower.name, lower.shared = "backends", &journal
		upper.name, upper.shared = "frontends", &journal
		stuck := false
		upper.fail = func(op, _ string) error {
			if op == "delete" && stuck {
				return errors.New("busy")
			}
			return nil
		}
		run(t, Keyed("backends", lower, f.want, f.feed()), Keyed("frontends", upper, f.want, f.feed()))
		f.put(obj{"x", 1})
		synctest.Wait()
		stuck = true
		f.remove("x")
		expect(t, lower, map[string]int{"x": 1}) // still referred to
		stuck = false
		time.Sleep(time.Second)
		expect(t, lower, map[string]int{})
		want := []string{"backends: set x", "frontends: set x", "frontends: delete x", "backends: delete x"}
		if !slices.Equal(journal, want) {
			t.Errorf("order %v, want %v", journal, want)
		}
	})
}

// TestConvergence changes rows at random over targets that fail at random, and expects the targets
// to be right in the end.
func TestConvergence(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			f := newFixture()
			complete := f.table.RegisterInitializer("api")
			healthy := false
			flaky := func(string, string) error {
				if !healthy && rnd.IntN(3) == 0 {
					return errors.New("unlucky")
				}
				return nil
			}
			a, b := newStore(map[string]int{"stale": 1, "k3": 7}), newStore(nil)
			a.fail, b.fail = flaky, flaky
			c := run(t, Keyed("a", a, f.want, f.feed()), Keyed("b", b, f.want, f.feed()))
			for i := range 200 {
				k := fmt.Sprintf("k%d", rnd.IntN(20))
				if rnd.IntN(3) == 0 {
					f.remove(k)
				} else {
					f.put(obj{k, rnd.IntN(5)})
				}
				if i == 50 {
					w := f.db.WriteTxn()
					complete(w)
					w.Commit()
				}
				time.Sleep(time.Duration(rnd.IntN(300)) * time.Millisecond)
			}
			synctest.Wait()
			healthy = true
			time.Sleep(2 * retryMax)
			want := map[string]int{}
			for k, o := range f.table.All() {
				want[k] = o.value
			}
			expect(t, a, want)
			expect(t, b, want)
			<-c.Synced()
		})
	}
}
