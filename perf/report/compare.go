// SPDX-License-Identifier: Apache-2.0

package report

import (
	"errors"
	"fmt"
	"strings"

	"lash.internal/lash/perf/stats"
)

// Verdict is what a comparison comes to.
type Verdict string

// The verdicts.
const (
	Better Verdict = "better"
	Worse  Verdict = "worse"
	Same   Verdict = "no difference"
	Unsure Verdict = "too noisy"
)

// Change is how a metric of the second report differs from the first.
type Change struct {
	Series  string      `json:"series"`
	Metric  string      `json:"metric"`
	Unit    string      `json:"unit"`
	Higher  bool        `json:"higherIsBetter"`
	A       float64     `json:"a"` // medians
	B       float64     `json:"b"`
	Ratio   stats.Ratio `json:"ratio"`
	Verdict Verdict     `json:"verdict"`
	Why     string      `json:"why,omitempty"` // it is too noisy
	// Failed says that it is worse by more than the limit.
	Failed bool `json:"failed,omitempty"`
}

// Comparison is all of them.
type Comparison struct {
	A       string   `json:"a"` // what was compared
	B       string   `json:"b"`
	Changes []Change `json:"changes"`
	OnlyA   []string `json:"onlyA,omitempty"` // series that one side lacks
	OnlyB   []string `json:"onlyB,omitempty"`
	Failed  int      `json:"failed"`
}

// Tolerance is the difference that matters when the user names none.
const Tolerance = 0.05

// Compare sets the series of b beside those of a. limit is by how much, as a share, a metric may be worse;
// 0 or less means that none fails.
func Compare(a, b *Report, limit float64) (*Comparison, error) {
	out := &Comparison{A: strings.Join(a.ClusterNames(), ", "), B: strings.Join(b.ClusterNames(), ", ")}
	left, err := byKey(a)
	if err != nil {
		return nil, fmt.Errorf("first report: %w", err)
	}
	right, err := byKey(b)
	if err != nil {
		return nil, fmt.Errorf("second report: %w", err)
	}
	tolerance := limit
	if tolerance <= 0 {
		tolerance = Tolerance
	}
	for _, s := range a.Series {
		other := right[s.nameless()]
		if other == nil {
			out.OnlyA = append(out.OnlyA, s.stepTitle())
			continue
		}
		for _, m := range MetricsOf(s.Test) {
			c, ok := change(s, other, m, tolerance)
			if !ok {
				continue
			}
			if c.Verdict == Worse && limit > 0 && c.cost() > 1+limit {
				c.Failed = true
				out.Failed++
			}
			out.Changes = append(out.Changes, c)
		}
	}
	for _, s := range b.Series {
		if left[s.nameless()] == nil {
			out.OnlyB = append(out.OnlyB, s.stepTitle())
		}
	}
	if len(out.Changes) == 0 {
		return nil, errors.New("the reports have no series in common that could be compared")
	}
	return out, nil
}

// nameless is the key without the cluster: reports are made in clusters of any name.
func (s *Series) nameless() Key {
	k := s.Key
	k.Cluster = ""
	return k
}

func (s *Series) stepTitle() string {
	if s.Services > 0 {
		return fmt.Sprintf("%s, %d Services", s.Title(), s.Services)
	}
	return s.Title()
}

func byKey(r *Report) (map[Key]*Series, error) {
	out := map[Key]*Series{}
	for _, s := range r.Series {
		if out[s.nameless()] != nil {
			return nil, fmt.Errorf("%s was measured in more than one cluster (%s): choose one", s.stepTitle(), strings.Join(r.ClusterNames(), ", "))
		}
		out[s.nameless()] = s
	}
	return out, nil
}

// Only leaves the series of one cluster in a report.
func (r *Report) Only(cluster string) (*Report, error) {
	out := *r
	out.Clusters, out.Series = nil, nil
	for _, c := range r.Clusters {
		if c.Name == cluster {
			out.Clusters = append(out.Clusters, c)
		}
	}
	if len(out.Clusters) == 0 {
		return nil, fmt.Errorf("the report has no cluster %q, it has %s", cluster, strings.Join(r.ClusterNames(), ", "))
	}
	for _, s := range r.Series {
		if s.Cluster == cluster {
			out.Series = append(out.Series, s)
		}
	}
	return &out, nil
}

// cost is the ratio turned so that above 1 is worse.
func (c *Change) cost() float64 {
	if c.Higher {
		return 1 / c.Ratio.Ratio
	}
	return c.Ratio.Ratio
}

func positive(values []float64) bool {
	for _, v := range values {
		if v <= 0 {
			return false
		}
	}
	return len(values) > 0
}

func change(a, b *Series, m Metric, tolerance float64) (Change, bool) {
	x, y := a.Values(m), b.Values(m)
	if !positive(x) || !positive(y) {
		return Change{}, false
	}
	c := Change{
		Series: a.stepTitle(), Metric: m.Name, Unit: m.Unit, Higher: m.Higher,
		A: stats.Median(x), B: stats.Median(y), Ratio: stats.RatioOf(x, y, 0.95),
	}
	_, noisyA := a.Noisy()
	_, noisyB := b.Noisy()
	low, high := c.Ratio.Low, c.Ratio.High
	if c.Higher {
		low, high = 1/high, 1/low
	}
	switch {
	case c.Ratio.Level < 0.95:
		c.Verdict, c.Why = Unsure, fmt.Sprintf("%d and %d samples are too few, 4 on each side are enough", len(x), len(y))
	case noisyA || noisyB:
		c.Verdict, c.Why = Unsure, "most samples were taken while the machine was busy with other things"
	case low > 1:
		c.Verdict = Worse
	case high < 1:
		c.Verdict = Better
	case low >= 1-tolerance && high <= 1+tolerance:
		c.Verdict = Same
	default:
		c.Verdict, c.Why = Unsure, fmt.Sprintf("the interval is too wide to rule out a difference of %.3g %%", 100*tolerance)
	}
	return c, true
}
