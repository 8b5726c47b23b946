// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"hash/fnv"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"
)

// AuditInterval is how often a chain reads its targets again and compares, except for loops that
// say otherwise.
const AuditInterval = 5 * time.Minute

// Stage is a loop as a chain sees it; *Loop is the only kind.
type Stage interface {
	Name() string
	Status() Status
	drive() runner
}

// runner is the part of a stage that the chain drives.
type runner interface {
	collect(now time.Time) []<-chan struct{}
	ready() bool
	load(ctx context.Context, now time.Time) error
	isLoaded() bool
	auditInterval() time.Duration // 0: that of the chain
	needsSweep() bool
	sweep(now time.Time)
	begin(now time.Time)
	sets(ctx context.Context, now time.Time, ready bool)
	deletes(ctx context.Context, now time.Time)
	troubled() bool
	end(ready bool)
	nextRetry(now time.Time) time.Time
}

type loopRunner[K comparable, V any] struct {
	*Loop[K, V]
	reqs []*request[K]
}

func (l *Loop[K, V]) drive() runner { return &loopRunner[K, V]{Loop: l} }

func (r *loopRunner[K, V]) isLoaded() bool               { return r.loaded }
func (r *loopRunner[K, V]) auditInterval() time.Duration { return r.interval }
func (r *loopRunner[K, V]) needsSweep() bool             { return !r.swept }
func (r *loopRunner[K, V]) begin(now time.Time)          { r.reqs = r.take(now) }

func (r *loopRunner[K, V]) sets(ctx context.Context, now time.Time, ready bool) {
	asked := map[K]bool{}
	for _, q := range r.reqs {
		for _, k := range q.keys {
			asked[k] = true
		}
	}
	r.Loop.sets(ctx, now, ready, asked)
}

func (r *loopRunner[K, V]) end(ready bool) {
	r.finish(r.reqs, ready)
	r.reqs = nil
}

// Chain runs loops whose entries refer to each other: it writes in the order of the stages and
// deletes in the opposite order, so that nothing ever refers to what is not there.
type Chain struct {
	name   string
	log    *slog.Logger
	stages []Stage
	kick   chan struct{} // an audit is wanted now

	mu     sync.Mutex
	wanted bool // an audit now
	synced chan struct{}
	done   bool
}

// NewChain returns a chain of stages, those referred to first.
func NewChain(name string, log *slog.Logger, stages ...Stage) *Chain {
	return &Chain{
		name: name, log: log.With("chain", name), stages: stages, synced: make(chan struct{}), kick: make(chan struct{}, 1),
	}
}

// Name returns the chain's name.
func (c *Chain) Name() string { return c.name }

// Synced returns a channel that closes when all sources have been complete and every stage has
// applied what they said.
func (c *Chain) Synced() <-chan struct{} { return c.synced }

// Audit asks for an audit of every loop now, for when it is known that entries were lost. It does
// not wait for it.
func (c *Chain) Audit() {
	c.mu.Lock()
	c.wanted = true
	c.mu.Unlock()
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

func (c *Chain) takeWanted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.wanted
	c.wanted = false
	return w
}

// Status returns the status of every stage.
func (c *Chain) Status() []Status {
	out := make([]Status, 0, len(c.stages))
	for _, s := range c.stages {
		st := s.Status()
		st.Chain = c.name
		out = append(out, st)
	}
	return out
}

// Run works until ctx ends. It leaves every target as it is.
func (c *Chain) Run(ctx context.Context) {
	now := time.Now()
	stages := make([]runner, 0, len(c.stages))
	for _, s := range c.stages {
		stages = append(stages, s.drive())
	}
	audits := c.schedule(stages, now)
	loadDelay := retryMin
	for ctx.Err() == nil {
		now = time.Now()
		if c.takeWanted() {
			for i := range audits {
				audits[i] = now
			}
		}
		c.audit(ctx, stages, audits, now)
		loaded := c.loadAll(ctx, stages, now)
		wakes, retryAt, ready := c.pass(ctx, stages, now, loaded)
		wakes = append(wakes, c.kick)
		next := slices.MinFunc(audits, time.Time.Compare)
		if !retryAt.IsZero() && retryAt.Before(next) {
			next = retryAt
		}
		if !loaded {
			next = now.Add(loadDelay)
			loadDelay = min(loadDelay*2, retryMax)
		} else {
			loadDelay = retryMin
		}
		if loaded && allReady(stages) != ready {
			continue // a source got complete meanwhile; its channel may have fired before we had it
		}
		wait(ctx, wakes, next)
	}
}

// schedule returns the time of the first audit of each stage. Those of the chains are spread over
// the interval.
func (c *Chain) schedule(stages []runner, now time.Time) []time.Time {
	h := fnv.New32a()
	h.Write([]byte(c.name))
	first := now.Add(AuditInterval/2 + time.Duration(h.Sum32()%1000)*AuditInterval/2000)
	out := make([]time.Time, len(stages))
	for i, s := range stages {
		out[i] = first
		if d := s.auditInterval(); d > 0 {
			out[i] = now.Add(d)
		}
	}
	return out
}

func (c *Chain) loadAll(ctx context.Context, stages []runner, now time.Time) bool {
	for i, s := range stages {
		if s.isLoaded() {
			continue
		}
		if err := s.load(ctx, now); err != nil {
			c.log.Warn("cannot read target", "loop", c.stages[i].Name(), "error", err)
			return false
		}
	}
	return true
}

// audit reads the targets of the stages that are due and compares.
func (c *Chain) audit(ctx context.Context, stages []runner, due []time.Time, now time.Time) {
	for i, s := range stages {
		if now.Before(due[i]) {
			continue
		}
		interval := s.auditInterval()
		if interval == 0 {
			interval = AuditInterval
		}
		due[i] = now.Add(interval)
		if !s.isLoaded() {
			continue
		}
		before := c.stages[i].Status().Repairs
		if err := s.load(ctx, now); err != nil {
			c.log.Warn("cannot read target for audit", "loop", c.stages[i].Name(), "error", err)
			continue
		}
		if n := c.stages[i].Status().Repairs - before; n > 0 {
			c.log.Warn("entries were changed by somebody else, repairing", "loop", c.stages[i].Name(), "entries", n)
		}
	}
}

// pass brings every stage up to date once.
func (c *Chain) pass(ctx context.Context, stages []runner, now time.Time, loaded bool) ([]<-chan struct{}, time.Time, bool) {
	// Readiness is asked before the rows are read: rows that arrive in between are seen in this
	// pass, and a source that gets ready in between only in the next.
	ready := allReady(stages)
	var wakes []<-chan struct{}
	for _, s := range stages {
		wakes = append(wakes, s.collect(now)...)
	}
	if !loaded {
		return wakes, time.Time{}, ready
	}
	for _, s := range stages {
		s.begin(now)
		if ready && s.needsSweep() {
			s.sweep(now)
		}
	}
	for _, s := range stages {
		s.sets(ctx, now, ready)
	}
	if ready {
		for i := len(stages) - 1; i >= 0; i-- {
			stages[i].deletes(ctx, now)
			if stages[i].troubled() {
				break // what a stuck entry may still refer to stays
			}
		}
	}
	var retryAt time.Time
	allSynced := ready
	for i, s := range stages {
		s.end(ready)
		if at := s.nextRetry(now); !at.IsZero() && (retryAt.IsZero() || at.Before(retryAt)) {
			retryAt = at
		}
		st := c.stages[i].Status()
		allSynced = allSynced && st.Synced
		if st.LastError != "" && st.LastErrorAt.Equal(now) {
			c.log.Warn("cannot apply", "loop", st.Name, "pending", st.Pending, "error", st.LastError)
		}
	}
	if allSynced {
		c.mu.Lock()
		if !c.done {
			c.done = true
			close(c.synced)
		}
		c.mu.Unlock()
	}
	return wakes, retryAt, ready
}

func allReady(stages []runner) bool {
	for _, s := range stages {
		if !s.ready() {
			return false
		}
	}
	return true
}

// wait returns when a channel closes or delivers, at the given time, or when ctx ends.
func wait(ctx context.Context, wakes []<-chan struct{}, at time.Time) {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	cases := make([]reflect.SelectCase, 0, len(wakes)+2)
	cases = append(cases,
		reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())},
		reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(timer.C)})
	for _, w := range wakes {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(w)})
	}
	reflect.Select(cases)
}
