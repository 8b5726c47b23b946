// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"fmt"
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Limits of the histogram: up to an hour in nanoseconds, with three significant digits.
const (
	histogramMax    = int64(time.Hour)
	histogramDigits = 3
)

// Recorder takes latencies while a test runs, without an allocation. It keeps as many as it has room
// for, so that percentiles are exact; those beyond go into an HdrHistogram, and percentiles then have
// three significant digits.
type Recorder struct {
	exact []int64
	hist  *hdrhistogram.Histogram
	over  int64
	min   int64
	max   int64
}

// NewRecorder has room for a number of latencies.
func NewRecorder(room int) *Recorder {
	r := &Recorder{exact: make([]int64, room), hist: hdrhistogram.New(1, histogramMax, histogramDigits), min: math.MaxInt64}
	for i := 0; i < len(r.exact); i += 512 {
		r.exact[i] = 1 // the memory is there before the clock runs
	}
	r.exact = r.exact[:0]
	return r
}

// Add notes a latency in nanoseconds.
func (r *Recorder) Add(ns int64) {
	if len(r.exact) < cap(r.exact) {
		r.exact = append(r.exact, ns)
		return
	}
	r.over++
	r.min, r.max = min(r.min, ns), max(r.max, ns)
	_ = r.hist.RecordValue(min(max(ns, 1), histogramMax)) // within the limits, so it cannot fail
}

// Count is how many latencies there are.
func (r *Recorder) Count() int { return len(r.exact) + int(r.over) }

// Summary describes the latencies, and gives them as a histogram that Merge takes. Nothing may be added
// afterwards.
func (r *Recorder) Summary() (Summary, string, error) {
	for _, ns := range r.exact {
		_ = r.hist.RecordValue(min(max(ns, 1), histogramMax))
	}
	s := Summarize(r.exact)
	if r.over > 0 {
		least, most := r.min, r.max
		if len(r.exact) > 0 {
			least, most = min(least, r.exact[0]), max(most, r.exact[len(r.exact)-1])
		}
		s = describe(r.hist)
		s.Min, s.Max = us(least), us(most)
	}
	text, err := r.hist.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	if err != nil {
		return s, "", fmt.Errorf("encode the histogram: %w", err)
	}
	return s, string(text), nil
}

func us(ns int64) float64 { return float64(ns) / float64(time.Microsecond) }

func describe(h *hdrhistogram.Histogram) Summary {
	const micro = float64(time.Microsecond)
	p := func(q float64) float64 { return us(h.ValueAtPercentile(q)) }
	return Summary{
		Count: int(h.TotalCount()), Min: us(h.Min()), Mean: h.Mean() / micro, StdDev: h.StdDev() / micro,
		P50: p(50), P90: p(90), P99: p(99), P999: p(99.9), Max: us(h.Max()),
	}
}

// Merge describes the latencies of several histograms together, to three significant digits, and gives
// the histogram of all of them.
func Merge(histograms []string) (Summary, string, error) {
	all := hdrhistogram.New(1, histogramMax, histogramDigits)
	for _, text := range histograms {
		h, err := hdrhistogram.Decode([]byte(text))
		if err != nil {
			return Summary{}, "", fmt.Errorf("decode a histogram: %w", err)
		}
		if n := all.Merge(h); n > 0 {
			return Summary{}, "", fmt.Errorf("a histogram has %d values above %s", n, time.Duration(histogramMax))
		}
	}
	text, err := all.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	if err != nil {
		return Summary{}, "", fmt.Errorf("encode the histogram: %w", err)
	}
	return describe(all), string(text), nil
}
