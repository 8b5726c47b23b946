// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/stats"
)

// Limits of noise, as shares of the time: a sample beyond them is disturbed, and its round is repeated.
const (
	MaxPressure = 0.10
	MaxSteal    = 0.05
)

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

// rounds measures all courses by turns until each has enough undisturbed rounds, or twice as many
// rounds in all. record gets every sample.
func rounds(ctx context.Context, courses []*course, want int, record func(Sample) error, say func(string, ...any)) error {
	for {
		open := false
		for _, c := range courses {
			if c.clean >= want || c.next >= 2*want {
				continue
			}
			open = true
			if err := c.round(ctx, record, say); err != nil {
				return err
			}
		}
		if !open {
			return nil
		}
	}
}

// round measures each path once.
func (c *course) round(ctx context.Context, record func(Sample) error, say func(string, ...any)) error {
	clean := true
	line := fmt.Sprintf("%s %s round %d:", c.group, c.test, c.next+1)
	for _, i := range stats.Order(len(c.paths), c.next) {
		p := c.paths[i]
		r, err := p.measure(ctx, c.test)
		if err != nil {
			return fmt.Errorf("%s, path %s: %w", c.group, p.name, err)
		}
		clean = clean && !disturbed(r.Noise)
		if err := record(Sample{Group: c.group, Path: p.name, Test: c.test, Round: c.next, Disturbed: disturbed(r.Noise), Result: r}); err != nil {
			return err
		}
		if r.Latency != nil {
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
	say("%s", line)
	return nil
}

// disturbed says whether something else kept the machine from the test.
func disturbed(n stats.Noise) bool { return n.Pressure > MaxPressure || n.Steal > MaxSteal }
