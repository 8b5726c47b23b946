// SPDX-License-Identifier: Apache-2.0

package rounds

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/report"
	"lash.internal/lash/perf/stats"
)

func course(name string, log *[]string, measure func(n int) error) *Course {
	n := 0
	return &Course{
		Series: &report.Series{Key: report.Key{Scenario: name, Test: netperf.TCPRR}},
		Measure: func(_ context.Context, length time.Duration) (netperf.Result, error) {
			n++
			*log = append(*log, name+" "+length.String())
			return netperf.Result{Latency: &stats.Summary{P50: float64(n)}, Before: &stats.Noise{Pressure: 0.05 * float64(n)}}, measure(n)
		},
	}
}

// TestOrder: a warm-up of each, then forwards and backwards by turns.
func TestOrder(t *testing.T) {
	var log []string
	fine := func(int) error { return nil }
	a, b := course("a", &log, fine), course("b", &log, fine)
	var last Progress
	p := Plan{Rounds: 3, Length: 2 * time.Second, Warmup: time.Second, Progress: func(p Progress) { last = p }}
	if err := p.Run(t.Context(), []*Course{a, b}); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(log, ", "), "a 1s, b 1s, a 2s, b 2s, b 2s, a 2s, a 2s, b 2s"; got != want {
		t.Errorf("order %s, want %s", got, want)
	}
	if last.Done != 7 || last.Of != 8 || last.Remaining < 2*time.Second {
		t.Errorf("%+v", last)
	}
	s := a.Series
	if len(s.Samples) != 4 || !s.Samples[0].Warmup || len(s.Results()) != 3 {
		t.Errorf("%+v", s.Samples)
	}
	// The third and fourth samples of each were taken under 15 and 20 percent of pressure.
	if n, most := s.Noisy(); n != 2 || !most {
		t.Errorf("%d are noisy", n)
	}
}

// TestFailing gives up a course after three failures in a row and keeps the others.
func TestFailing(t *testing.T) {
	var log []string
	a := course("a", &log, func(n int) error {
		if n > 1 {
			return errors.New("refused")
		}
		return nil
	})
	b := course("b", &log, func(int) error { return nil })
	p := Plan{Rounds: 6, Length: time.Second}
	if err := p.Run(t.Context(), []*Course{a, b}); err != nil {
		t.Fatal(err)
	}
	if n, why := a.Series.Failed(); n != 3 || why != "refused" || len(b.Series.Results()) != 6 {
		t.Errorf("%d failed, %s", n, why)
	}
	c := course("c", &log, func(int) error { return errors.New("no route") })
	if err := p.Run(t.Context(), []*Course{c}); err == nil || !strings.Contains(err.Error(), "no route") {
		t.Error(err)
	}
}

// TestCancel ends in the middle and says why.
func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var log []string
	a := course("a", &log, func(n int) error {
		if n == 2 {
			cancel()
		}
		return nil
	})
	p := Plan{Rounds: 5, Length: time.Second}
	if err := p.Run(ctx, []*Course{a}); !errors.Is(err, context.Canceled) || len(a.Series.Samples) != 1 {
		t.Errorf("%v, %d samples", err, len(a.Series.Samples))
	}
}
