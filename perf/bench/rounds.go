// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/stats"
)

// Limits of noise, as shares of the time: a sample beyond them is disturbed, and its round is repeated.
// Pressure is taken right before and right after a sample, when nothing of the bench runs: a test itself
// makes tasks wait, for every wake-up takes a moment.
const (
	MaxPressure = 0.10
	MaxSteal    = 0.05
)

// pause is how long the machine is watched between two samples.
const pause = 400 * time.Millisecond

// path is something to measure.
type path struct {
	name    string
	measure func(context.Context, netperf.Test) (netperf.Result, error)
}

// course is the rounds of one test on the paths of one group.
type course struct {
	group string
	test  netperf.Test
	paths []path
	clean int // rounds without a disturbance
	next  int // number of the next round
}

// field is where courses are run: what there is beside the paths.
type field struct {
	want     int           // undisturbed rounds
	attempts int           // rounds in all, at most
	patience time.Duration // to wait before a round for a quiet machine
	pressure func(context.Context) (float64, error)
	record   func(Sample) error
	say      func(string, ...any)
	failed   int // samples one after the other
}

// maxFailed is how many samples may fail one after the other before the bench gives up.
const maxFailed = 5

// run measures all courses by turns until each has enough undisturbed rounds, or as many as it may try.
func (f *field) run(ctx context.Context, courses []*course) error {
	for {
		open := false
		for _, c := range courses {
			if c.clean >= f.want || c.next >= f.attempts {
				continue
			}
			open = true
			if err := f.round(ctx, c); err != nil {
				return err
			}
		}
		if !open {
			return nil
		}
	}
}

// round measures each path of a course once.
func (f *field) round(ctx context.Context, c *course) error {
	before, err := f.await(ctx)
	if err != nil {
		return err
	}
	clean := true
	line := fmt.Sprintf("%s %s round %d:", c.group, c.test, c.next+1)
	for _, i := range stats.Order(len(c.paths), c.next) {
		p := c.paths[i]
		r, failure := p.measure(ctx, c.test)
		after, err := f.pressure(ctx)
		if err != nil {
			return errors.Join(err, failure)
		}
		s := Sample{
			Group: c.group, Path: p.name, Test: c.test, Round: c.next, Before: before, After: after, Result: r,
			Disturbed: max(before, after) > MaxPressure || r.Noise.Steal > MaxSteal,
		}
		before = after
		if failure != nil {
			s.Error, s.Disturbed = failure.Error(), true
			f.failed++
		} else {
			f.failed = 0
		}
		clean = clean && !s.Disturbed
		if err := f.record(s); err != nil {
			return err
		}
		if f.failed >= maxFailed {
			return fmt.Errorf("%s, path %s: %d samples failed one after the other: %w", c.group, p.name, f.failed, failure)
		}
		if failure != nil {
			line += " " + p.name + " failed"
			f.say("%s, path %s: %v", c.group, p.name, failure)
		} else if r.Latency != nil {
			line += fmt.Sprintf(" %s %.0f/s", p.name, r.Rate)
		} else {
			line += fmt.Sprintf(" %s %.0f Mbit/s", p.name, r.Throughput)
		}
	}
	c.next++
	if clean {
		c.clean++
	} else {
		line += " (disturbed)"
	}
	f.say("%s", line)
	return nil
}

// await waits until the machine is quiet, or until patience is over.
func (f *field) await(ctx context.Context) (float64, error) {
	deadline := time.Now().Add(f.patience)
	for told := false; ; told = true {
		p, err := f.pressure(ctx)
		if err != nil || p <= MaxPressure || time.Now().After(deadline) {
			return p, err
		}
		if !told {
			f.say("waiting for a quiet machine, for %s at most", f.patience)
		}
	}
}

// watchPressure is the processor pressure during a pause; -1 when the kernel does not know.
func watchPressure(ctx context.Context) (float64, error) {
	from, err := stats.ReadClock()
	if err != nil {
		return 0, err
	}
	select {
	case <-time.After(pause):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	to, err := stats.ReadClock()
	return from.To(to).Pressure, err
}
