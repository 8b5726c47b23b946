// SPDX-License-Identifier: Apache-2.0

// Package rounds measures several things by turns: one sample of each in every round, forwards and
// backwards, so that a machine that gets steadily slower or faster favours none. The first pass is a
// warm-up that does not count.
package rounds

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/report"
	"lash.internal/lash/perf/stats"
)

// Course is one thing that is measured.
type Course struct {
	Series *report.Series
	// Measure takes one sample of about the length given.
	Measure func(ctx context.Context, length time.Duration) (netperf.Result, error)

	failed int // samples, one after the other
}

// Plan says how often and how long.
type Plan struct {
	Rounds int
	Length time.Duration
	// Warmup is how long the sample is that does not count; 0 for none.
	Warmup time.Duration
	// Pause before each sample; 0 for none.
	Pause time.Duration
	// Progress hears before each sample what comes and how long the rest will take.
	Progress func(Progress)
}

// Progress is how far it is.
type Progress struct {
	Done, Of  int // samples
	What      string
	Remaining time.Duration
}

// maxFailed is how many samples of a course may fail one after the other until it is given up.
const maxFailed = 3

// overhead is what a sample takes beside its length, before one has been taken.
const overhead = time.Second

// Estimate is about how long Run will take.
func (p *Plan) Estimate(courses int) time.Duration {
	d := time.Duration(p.Rounds) * (p.Length + p.Pause + overhead)
	if p.Warmup > 0 {
		d += p.Warmup + overhead
	}
	return d * time.Duration(courses)
}

// Run measures all courses. Samples that fail are recorded, with their error; Run itself only fails when
// ctx ends, or when nothing has a result.
func (p *Plan) Run(ctx context.Context, courses []*Course) error {
	all := len(courses) * p.Rounds
	if p.Warmup > 0 {
		all += len(courses)
	}
	done := 0
	var beside time.Duration // what samples took beside their length
	step := func(round int, c *Course, length time.Duration) error {
		if c.failed >= maxFailed {
			done++
			return nil
		}
		if p.Progress != nil {
			each := overhead
			if done > 0 {
				each = beside / time.Duration(done)
			}
			p.Progress(Progress{done, all, c.Series.Title(), time.Duration(all-done) * (p.Length + each)})
		}
		begun := time.Now()
		if err := c.sample(ctx, p.Pause, round, length); err != nil {
			return err
		}
		done++
		beside += max(time.Since(begun)-length, 0)
		return nil
	}
	if p.Warmup > 0 {
		for _, c := range courses {
			if err := step(-1, c, p.Warmup); err != nil {
				return err
			}
		}
	}
	for round := range p.Rounds {
		for _, i := range stats.Order(len(courses), round) {
			if err := step(round, courses[i], p.Length); err != nil {
				return err
			}
		}
	}
	return resultless(courses)
}

// resultless is the error when not one sample has a result.
func resultless(courses []*Course) error {
	var errs []error
	for _, c := range courses {
		if len(c.Series.Results()) > 0 {
			return nil
		}
		if _, why := c.Series.Failed(); why != "" {
			errs = append(errs, fmt.Errorf("%s: %s", c.Series.Title(), why))
		}
	}
	if len(errs) == 0 {
		return errors.New("nothing to measure")
	}
	return fmt.Errorf("no sample has a result: %w", errors.Join(errs...))
}

func (c *Course) sample(ctx context.Context, pause time.Duration, round int, length time.Duration) error {
	if pause > 0 {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	s := report.Sample{Round: round, Warmup: round < 0, Start: time.Now().UTC()}
	r, err := c.Measure(ctx, length)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		s.Error = err.Error()
		c.failed++
	} else {
		s.Result, s.Noisy = &r, report.NoisyResult(&r)
		c.failed = 0
	}
	c.Series.Samples = append(c.Series.Samples, s)
	return nil
}
