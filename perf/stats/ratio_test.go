// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestMannWhitney checks the counts for 2 and 3 values, which are easily written down.
func TestMannWhitney(t *testing.T) {
	if got, want := mannWhitney(2, 3), []float64{1, 1, 2, 2, 2, 1, 1}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	// Critical values of U at 5 percent, two-sided, from the usual tables: k is one more.
	for _, c := range []struct{ m, n, k int }{{4, 4, 1}, {5, 5, 3}, {8, 8, 14}, {10, 10, 24}, {10, 15, 40}, {20, 20, 128}} {
		if k, level := rankOf(c.m, c.n, 0.95); k != c.k || level < 0.95 {
			t.Errorf("%d and %d values: rank %d at %.4f, want %d", c.m, c.n, k, level, c.k)
		}
	}
	if k, level := rankOf(3, 3, 0.95); k != 1 || math.Abs(level-0.9) > 1e-12 {
		t.Errorf("3 and 3 values: rank %d at %v", k, level)
	}
	if k, level := rankOf(200, 200, 0.95); k < 17000 || k > 18000 || level != 0.95 {
		t.Errorf("200 and 200 values: rank %d at %v", k, level)
	}
}

// TestRatioCoverage draws both sides from skewed distributions that differ by a known factor: the
// interval has to hold it as often as it says, and has to leave 1 out when the factor is far from it.
func TestRatioCoverage(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	draw := func(scale float64) []float64 {
		out := make([]float64, 8)
		for i := range out {
			out[i] = scale * math.Exp(0.05*r.NormFloat64()*r.NormFloat64())
		}
		return out
	}
	const trials = 5000
	var hit, seen int
	var level float64
	for range trials {
		q := RatioOf(draw(100), draw(120), 0.95)
		level = q.Level
		if q.Low <= 1.2 && 1.2 <= q.High {
			hit++
		}
		if q.Low > 1 {
			seen++
		}
	}
	if got := float64(hit) / trials; math.Abs(got-level) > 0.01 {
		t.Errorf("the interval held the factor in %.4f of the trials, it says %.4f", got, level)
	}
	if float64(seen)/trials < 0.99 {
		t.Errorf("a difference of a fifth is seen in %d of %d trials only", seen, trials)
	}
}

func TestRatioOf(t *testing.T) {
	q := RatioOf([]float64{10, 10, 10, 10}, []float64{11, 11, 11, 11}, 0.95)
	if q.Ratio != 1.1 || q.Low != 1.1 || q.High != 1.1 || q.Level < 0.95 {
		t.Errorf("%+v", q)
	}
	if q := RatioOf(nil, []float64{1}, 0.95); !math.IsNaN(q.Ratio) || q.Level != 0 {
		t.Errorf("%+v", q)
	}
}

func TestOutliers(t *testing.T) {
	if got, want := Outliers([]float64{100, 101, 99, 100.5, 250, 98}), []bool{false, false, false, false, true, false}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if slices.Contains(Outliers([]float64{1, 2, 1000}), true) || slices.Contains(Outliers([]float64{5, 5, 5, 5, 6}), true) {
		t.Error("outliers among too few, or without any spread")
	}
}
