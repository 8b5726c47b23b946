// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"math"
	"slices"
)

// Ratio is by what factor the values of b differ from those of a, with its confidence interval.
type Ratio struct {
	Ratio float64 `json:"ratio"` // b by a
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
	// Level is the probability with which the interval holds the true factor. It is less than what was
	// asked for when there are too few values.
	Level float64 `json:"level"`
	A     int     `json:"a"` // numbers of values
	B     int     `json:"b"`
}

// exactLimit is up to which product of the numbers of values the distribution of U is counted out.
const exactLimit = 10_000

// RatioOf is the median of all quotients of a value of b by a value of a (Hodges and Lehmann's estimate
// of a shift, of the logarithms), and the interval between two of the sorted quotients that belongs to
// Mann and Whitney's test: W. J. Conover, "Practical Nonparametric Statistics", 3rd edition, section
// 5.4. It assumes that both have the same distribution but for the factor, and nothing of its shape.
// Values have to be above 0. Four values on each side are enough for 95 percent.
func RatioOf(a, b []float64, level float64) Ratio {
	m, n := len(a), len(b)
	out := Ratio{Ratio: math.NaN(), Low: math.NaN(), High: math.NaN(), A: m, B: n}
	if m == 0 || n == 0 {
		return out
	}
	quotients := make([]float64, 0, m*n)
	for _, x := range a {
		for _, y := range b {
			quotients = append(quotients, y/x)
		}
	}
	slices.Sort(quotients)
	out.Ratio = Median(quotients)
	k, reached := rankOf(m, n, level)
	out.Low, out.High, out.Level = quotients[k-1], quotients[m*n-k], reached
	return out
}

// rankOf is the highest k for which the k-th quotient from either end bounds an interval of at least the
// level, and the level that it has; 1 when none does.
func rankOf(m, n int, level float64) (k int, reached float64) {
	if m*n > exactLimit {
		mean, sd := float64(m*n)/2, math.Sqrt(float64(m*n)*float64(m+n+1)/12)
		z := math.Sqrt2 * math.Erfinv(level)
		return max(int(mean-z*sd), 1), level
	}
	counts := mannWhitney(m, n)
	var all float64
	for _, c := range counts {
		all += c
	}
	below := counts[0] / all
	k, reached = 1, max(1-2*below, 0)
	for u := 1; u < len(counts)/2; u++ {
		below += counts[u] / all
		if 1-2*below < level {
			break
		}
		k, reached = u+1, 1-2*below
	}
	return k, reached
}

// mannWhitney is in how many arrangements of m and n values U has each of its values: the coefficients
// of the product of (1-x^(n+i)) / (1-x^i) for i from 1 to m.
func mannWhitney(m, n int) []float64 {
	c := make([]float64, m*n+1)
	c[0] = 1
	for i := 1; i <= m; i++ {
		for u := len(c) - 1; u >= n+i; u-- {
			c[u] -= c[u-n-i]
		}
		for u := i; u < len(c); u++ {
			c[u] += c[u-i]
		}
	}
	return c
}

// outlierScore is how far from the median, in units of the standard deviation that the median of the
// distances stands for, a value may lie: B. Iglewicz and D. Hoaglin, "How to Detect and Handle Outliers".
const outlierScore = 3.5

// Outliers says of each value whether it lies far from the others. Nothing is one among fewer than 4.
func Outliers(values []float64) []bool {
	out := make([]bool, len(values))
	if len(values) < 4 {
		return out
	}
	middle := Median(values)
	distances := make([]float64, len(values))
	for i, v := range values {
		distances[i] = math.Abs(v - middle)
	}
	spread := Median(distances)
	for i, d := range distances {
		out[i] = spread > 0 && 0.6745*d/spread > outlierScore
	}
	return out
}
