// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"math"
	"slices"
)

// Median is the middle of the values, or the mean of the two in the middle. It is NaN for no values.
func Median(values []float64) float64 {
	n := len(values)
	if n == 0 {
		return math.NaN()
	}
	x := slices.Sorted(slices.Values(values))
	if n%2 == 1 {
		return x[n/2]
	}
	return (x[n/2-1] + x[n/2]) / 2
}

// Estimate is a median with its confidence interval.
type Estimate struct {
	Median float64 `json:"median"`
	// Low and High hold the median of all rounds that there could be with probability Level or more.
	// Without enough values for the level asked for they are the smallest and the largest, and Level
	// is what these two reach.
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
	Level float64 `json:"level"`
	N     int     `json:"n"`
}

// EstimateMedian gives the median of the values and the narrowest pair of order statistics x(j) and
// x(n+1-j) that holds the true median with at least the probability level. The number of values
// below the true median is binomial with probability 1/2, whatever the values' distribution, so the
// pair holds it with probability 1 - 2 P(B <= j-1): H. A. David and H. N. Nagaraja, "Order
// Statistics", 3rd edition, section 7.1. With 10 values and 95 percent j is 2 (97.9 percent).
// Fewer than 6 values cannot reach 95 percent.
func EstimateMedian(values []float64, level float64) Estimate {
	n := len(values)
	if n == 0 {
		return Estimate{Median: math.NaN(), Low: math.NaN(), High: math.NaN()}
	}
	x := slices.Sorted(slices.Values(values))
	// term is P(B = j-1), below is P(B <= j-1).
	term := math.Pow(0.5, float64(n))
	below := term
	j := 1
	for next := j + 1; next <= (n+1)/2; next++ {
		term *= float64(n-next+2) / float64(next-1)
		if 1-2*(below+term) < level {
			break
		}
		below += term
		j = next
	}
	return Estimate{Median: Median(x), Low: x[j-1], High: x[n-j], Level: max(1-2*below, 0), N: n}
}

// Ratios divides round by round; the two slices belong to the same rounds.
func Ratios(a, b []float64) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = a[i] / b[i]
	}
	return out
}

// Order is the sequence in which n things are measured in a round, counted from 0: forwards and
// backwards by turns (A B, B A, A B, ...), so that a machine that gets steadily slower or faster
// does not favour any of them.
func Order(n, round int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	if round%2 == 1 {
		slices.Reverse(out)
	}
	return out
}
