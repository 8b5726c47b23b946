// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	thousand := make([]int64, 1000)
	for i := range thousand {
		thousand[i] = int64(i + 1)
	}
	for _, c := range []struct {
		values []int64
		p      float64
		want   int64
	}{
		{nil, 50, 0},
		{[]int64{7}, 0, 7},
		{[]int64{7}, 100, 7},
		{[]int64{1, 2, 3, 4}, 50, 2},
		{[]int64{1, 2, 3, 4, 5}, 50, 3},
		{[]int64{15, 20, 35, 40, 50}, 30, 20},
		{thousand, 99.9, 999},
		{thousand, 99, 990},
		{thousand, 99.95, 1000},
	} {
		if got := Percentile(c.values, c.p); got != c.want {
			t.Errorf("percentile %v of %d values: %d, want %d", c.p, len(c.values), got, c.want)
		}
	}
}

func TestSummarize(t *testing.T) {
	var ns []int64
	for i := 100; i > 0; i-- {
		ns = append(ns, int64(i)*int64(time.Microsecond))
	}
	got := Summarize(ns)
	want := Summary{Count: 100, Min: 1, Mean: 50.5, StdDev: math.Sqrt(833.25), P50: 50, P90: 90, P99: 99, P999: 100, Max: 100}
	if math.Abs(got.StdDev-want.StdDev) > 1e-9 {
		t.Errorf("standard deviation %v, want %v", got.StdDev, want.StdDev)
	}
	got.StdDev = want.StdDev
	if got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if (Summarize(nil) != Summary{}) {
		t.Error("no values have a summary")
	}
}

// TestEstimateMedian checks the ranks against the binomial table for p = 1/2.
func TestEstimateMedian(t *testing.T) {
	for _, c := range []struct {
		n         int
		low, high float64 // values are 1..n, so a value is its own rank
		level     float64
	}{
		{1, 1, 1, 0},
		{2, 1, 2, 0.5},
		{5, 1, 5, 1 - 2.0/32},
		{6, 1, 6, 1 - 2.0/64},
		{8, 1, 8, 1 - 2.0/256},
		{9, 2, 8, 1 - 2*10.0/512},
		{10, 2, 9, 1 - 2*11.0/1024},
		{15, 4, 12, 1 - 2*576.0/32768},
		{20, 6, 15, 1 - 2*21700.0/1048576},
	} {
		var values []float64
		for i := range c.n {
			values = append(values, float64(c.n-i))
		}
		e := EstimateMedian(values, 0.95)
		if e.Low != c.low || e.High != c.high || math.Abs(e.Level-c.level) > 1e-9 || e.N != c.n {
			t.Errorf("%d values: %+v, want [%v, %v] at %v", c.n, e, c.low, c.high, c.level)
		}
		if want := float64(c.n+1) / 2; e.Median != want {
			t.Errorf("%d values: median %v, want %v", c.n, e.Median, want)
		}
	}
	if e := EstimateMedian(nil, 0.95); !math.IsNaN(e.Median) || e.N != 0 {
		t.Errorf("no values: %+v", e)
	}
}

// TestCoverage draws from a skewed distribution with a known median: the interval has to hold it as
// often as it says.
func TestCoverage(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const trials = 20000
	hit := 0
	var level float64
	for range trials {
		values := make([]float64, 10)
		for i := range values {
			values[i] = r.ExpFloat64()
		}
		e := EstimateMedian(values, 0.95)
		level = e.Level
		if e.Low <= math.Ln2 && math.Ln2 <= e.High {
			hit++
		}
	}
	if got := float64(hit) / trials; math.Abs(got-level) > 0.005 {
		t.Errorf("the interval held the median in %.4f of the trials, it says %.4f", got, level)
	}
}

func TestOrder(t *testing.T) {
	var seen []int
	for round := range 4 {
		seen = append(seen, Order(2, round)...)
	}
	if want := []int{0, 1, 1, 0, 0, 1, 1, 0}; !slices.Equal(seen, want) {
		t.Errorf("order %v, want %v", seen, want)
	}
}

func TestRatios(t *testing.T) {
	if got := Ratios([]float64{1, 9, 4}, []float64{2, 3}); !slices.Equal(got, []float64{0.5, 3}) {
		t.Errorf("ratios %v", got)
	}
}

func TestNoise(t *testing.T) {
	tick, count, err := parseStat("cpu  100 1 20 300 4 5 6 7 50 0\ncpu0 1 2 3\ncpu1 1 2 3\nintr 5\n")
	if want := (ticks{100, 1, 20, 300, 4, 5, 6, 7}); err != nil || tick != want || tick.total() != 443 || count != 2 {
		t.Errorf("ticks %v of %d processors: %v", tick, count, err)
	}
	stall, err := parsePressure("some avg10=90.35 avg60=77.63 avg300=48.37 total=247901593\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
	if err != nil || stall != 247901593*time.Microsecond {
		t.Errorf("stall %v: %v", stall, err)
	}
	for _, bad := range []string{"", "cpu 1 2\n", "cpu0 1 2 3 4 5 6 7 8\n", "cpu a b c d e f g h\n"} {
		if _, _, err := parseStat(bad); err == nil {
			t.Errorf("%q is taken for processor times", bad)
		}
	}
	if _, err := parsePressure("full total=1\n"); err == nil {
		t.Error("a file without the line \"some\" is taken for pressure")
	}
	at := time.Now()
	from := Clock{at: at, hasStall: true, stall: time.Second, ticks: ticks{490, 0, 0, 400, 100, 0, 0, 10}}
	to := Clock{at: at.Add(2 * time.Second), hasStall: true, stall: 1500 * time.Millisecond, count: 4, ticks: ticks{590, 40, 60, 460, 140, 20, 60, 30}}
	if got, want := from.To(to), (Noise{Pressure: 0.25, Steal: 0.05, Busy: 0.75}); got != want {
		t.Errorf("noise %+v, want %+v", got, want)
	}
	cpu := from.CPU(to)
	if want := (CPU{Count: 4, Busy: 75, User: 35, System: 15, IOWait: 10, IRQ: 5, SoftIRQ: 15}); cpu != want {
		t.Errorf("processors %+v, want %+v", cpu, want)
	}
	// 75 % of four processors for 2 s are 6 s of work.
	if got := cpu.PerUnit(2, 1000); got != 6000 {
		t.Errorf("%v us a unit, want 6000", got)
	}
	from.hasStall = false
	if got := from.To(to); got.Pressure != -1 {
		t.Errorf("pressure %v on a kernel that has none", got.Pressure)
	}
}

// TestReadClock reads this machine's counters.
func TestReadClock(t *testing.T) {
	a, err := ReadClock()
	if err != nil {
		t.Fatal(err)
	}
	b, err := ReadClock()
	if err != nil {
		t.Fatal(err)
	}
	if n := a.To(b); n.Pressure > 1 || n.Steal < 0 || n.Busy > 1 {
		t.Errorf("noise %+v", n)
	}
}
