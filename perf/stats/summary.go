// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"math"
	"slices"
	"time"
)

// Summary describes a set of latencies, in microseconds.
type Summary struct {
	Count  int     `json:"count"`
	Min    float64 `json:"min_us"`
	Mean   float64 `json:"mean_us"`
	StdDev float64 `json:"stddev_us"` // of the population
	P50    float64 `json:"p50_us"`
	P90    float64 `json:"p90_us"`
	P99    float64 `json:"p99_us"`
	P999   float64 `json:"p999_us"`
	Max    float64 `json:"max_us"`
}

// Summarize sorts the latencies, given in nanoseconds, and describes them. Percentiles are exact:
// each is one of the values.
func Summarize(ns []int64) Summary {
	if len(ns) == 0 {
		return Summary{}
	}
	slices.Sort(ns)
	var sum float64
	for _, v := range ns {
		sum += float64(v)
	}
	mean := sum / float64(len(ns))
	var squares float64
	for _, v := range ns {
		squares += (float64(v) - mean) * (float64(v) - mean)
	}
	const us = float64(time.Microsecond)
	return Summary{
		Count:  len(ns),
		Min:    float64(ns[0]) / us,
		Mean:   mean / us,
		StdDev: math.Sqrt(squares/float64(len(ns))) / us,
		P50:    float64(Percentile(ns, 50)) / us,
		P90:    float64(Percentile(ns, 90)) / us,
		P99:    float64(Percentile(ns, 99)) / us,
		P999:   float64(Percentile(ns, 99.9)) / us,
		Max:    float64(ns[len(ns)-1]) / us,
	}
}

// Percentile is the smallest value that at least p percent of the sorted values do not exceed: the
// nearest rank, definition 1 of R. J. Hyndman and Y. Fan, "Sample Quantiles in Statistical
// Packages", The American Statistician 50 (1996). It is 0 for no values.
func Percentile[T int64 | float64](sorted []T, p float64) T {
	if len(sorted) == 0 {
		return 0
	}
	// The product is rounded first: 99.9 percent of 1000 is rank 999, not the 1000 that its binary
	// fraction would give.
	rank := int(math.Ceil(math.Round(p*float64(len(sorted))*1e6) / 1e8))
	return sorted[min(max(rank, 1), len(sorted))-1]
}
