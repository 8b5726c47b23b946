// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestRecorder has exact percentiles while there is room, and near ones when there is none.
func TestRecorder(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var values []int64
	for range 20000 {
		values = append(values, int64(1000+50_000*r.ExpFloat64()))
	}
	exact, tight := NewRecorder(len(values)), NewRecorder(100)
	for _, v := range values {
		exact.Add(v)
		tight.Add(v)
	}
	want := Summarize(values)
	got, first, err := exact.Summary()
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	near, second, err := tight.Summary()
	if err != nil || near.Count != want.Count || near.Min != want.Min || near.Max != want.Max {
		t.Errorf("%+v, %v; want %+v", near, err, want)
	}
	for name, pair := range map[string][2]float64{
		"P50": {near.P50, want.P50}, "P99": {near.P99, want.P99}, "P99.9": {near.P999, want.P999}, "mean": {near.Mean, want.Mean}, "deviation": {near.StdDev, want.StdDev},
	} {
		if math.Abs(pair[0]/pair[1]-1) > 0.001 {
			t.Errorf("%s is %v, want %v within a thousandth", name, pair[0], pair[1])
		}
	}
	both, _, err := Merge([]string{first, second})
	if err != nil || both.Count != 2*want.Count || math.Abs(both.P90/want.P90-1) > 0.001 {
		t.Errorf("together %+v, %v", both, err)
	}
	if _, _, err := Merge([]string{"x"}); err == nil {
		t.Error("x is a histogram")
	}
}
