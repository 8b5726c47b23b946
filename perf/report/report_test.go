// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/stats"
)

// made is a report of one series with TCP_CRR samples drawn around a P50, and of one with TCP_STREAM.
func made(seed uint64, n int, p50, throughput, spread float64, noisy bool) *Report {
	r := rand.New(rand.NewPCG(seed, 1))
	draw := func(middle float64) float64 { return middle * math.Exp(spread*r.NormFloat64()) }
	out := &Report{Format: Format, Kind: KindPaths, Rounds: n, Seconds: 2, Clusters: []Cluster{{Name: "c"}}}
	crr := &Series{Key: Key{Cluster: "c", Scenario: "pod-to-pod", Placement: "same-node", Family: "IPv4", Test: netperf.TCPCRR}}
	stream := &Series{Key: Key{Cluster: "c", Scenario: "pod-to-pod", Placement: "same-node", Family: "IPv4", Test: netperf.TCPStream}}
	for i := range n {
		d := draw(p50)
		crr.Samples = append(crr.Samples, Sample{Round: i, Noisy: noisy, Result: &netperf.Result{
			Test: netperf.TCPCRR, Seconds: 2, Rate: 1e6 / d, RTLatency: d, Transactions: int(2e6 / d), LocalDemand: d, RemoteDemand: d,
			Latency: &stats.Summary{Count: 1, Min: d / 2, Mean: d, P50: d, P90: 2 * d, P99: 3 * d, P999: 4 * d, Max: 9 * d},
		}})
		stream.Samples = append(stream.Samples, Sample{Round: i, Noisy: noisy, Result: &netperf.Result{
			Test: netperf.TCPStream, Seconds: 2, Throughput: draw(throughput), LocalDemand: 1, RemoteDemand: 1,
		}})
	}
	out.Series = []*Series{crr, stream}
	return out
}

// verdicts are those of P50 and of the throughput.
func verdicts(t *testing.T, a, b *Report, limit float64) (p50, throughput Change, c *Comparison) {
	t.Helper()
	c, err := Compare(a, b, limit)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range c.Changes {
		switch x.Metric {
		case "P50":
			p50 = x
		case "throughput":
			throughput = x
		}
	}
	return p50, throughput, c
}

func TestCompare(t *testing.T) {
	base := made(1, 10, 60, 20000, 0.005, false)
	for name, c := range map[string]struct {
		other           *Report
		p50, throughput Verdict
		fails           bool
	}{
		"the same":          {made(2, 10, 60, 20000, 0.005, false), Same, Same, false},
		"a tenth worse":     {made(3, 10, 66, 18000, 0.005, false), Worse, Worse, true},
		"a tenth better":    {made(4, 10, 54, 22000, 0.005, false), Better, Better, false},
		"worse, within it":  {made(5, 10, 62, 19400, 0.002, false), Worse, Worse, false},
		"spread":            {made(6, 6, 62, 20000, 0.5, false), Unsure, Unsure, false},
		"too few":           {made(7, 3, 120, 10000, 0.005, false), "", "", false},
		"busy machine":      {made(8, 10, 120, 10000, 0.005, true), Unsure, Unsure, false},
		"two of everything": {made(9, 4, 120, 10000, 0.005, false), Worse, Worse, true},
	} {
		p50, throughput, cmp := verdicts(t, base, c.other, 0.05)
		if name == "too few" {
			// 10 and 3 samples reach 95 percent, 3 and 3 do not.
			p50, throughput, cmp = verdicts(t, made(1, 3, 60, 20000, 0.005, false), c.other, 0.05)
			c.p50, c.throughput = Unsure, Unsure
		}
		if p50.Verdict != c.p50 || throughput.Verdict != c.throughput || (cmp.Failed > 0) != c.fails {
			t.Errorf("%s: P50 %s, throughput %s, %d failed: %+v", name, p50.Verdict, throughput.Verdict, cmp.Failed, p50)
		}
	}
}

// TestCompareApart says which series have nothing to be compared with.
func TestCompareApart(t *testing.T) {
	a, b := made(1, 5, 60, 20000, 0.01, false), made(2, 5, 60, 20000, 0.01, false)
	b.Series[1].Scenario = "host-to-host"
	_, _, c := verdicts(t, a, b, 0)
	if strings.Join(c.OnlyA, ";") != "pod-to-pod same-node TCP_STREAM" || strings.Join(c.OnlyB, ";") != "host-to-host same-node TCP_STREAM" {
		t.Errorf("%+v", c)
	}
	b.Series = b.Series[1:]
	if _, err := Compare(a, b, 0); err == nil || !strings.Contains(err.Error(), "no series in common") {
		t.Error(err)
	}
	// Two clusters in one report have to be told apart by the user.
	both := made(1, 5, 60, 20000, 0.01, false)
	other := made(2, 5, 90, 20000, 0.01, false)
	for _, s := range other.Series {
		s.Cluster = "d"
	}
	both.Series, both.Clusters = append(both.Series, other.Series...), append(both.Clusters, Cluster{Name: "d"})
	if _, err := Compare(both, both, 0); err == nil || !strings.Contains(err.Error(), "more than one cluster (c, d)") {
		t.Error(err)
	}
	x, err := both.Only("c")
	if err != nil {
		t.Fatal(err)
	}
	y, err := both.Only("d")
	if err != nil {
		t.Fatal(err)
	}
	if p50, _, _ := verdicts(t, x, y, 0.05); p50.Verdict != Worse {
		t.Errorf("%+v", p50)
	}
	if _, err := both.Only("e"); err == nil || !strings.Contains(err.Error(), `no cluster "e", it has c, d`) {
		t.Error(err)
	}
}

// TestJSON reads what was written, and refuses what is something else.
func TestJSON(t *testing.T) {
	r := made(1, 3, 60, 20000, 0.01, true)
	r.Series[0].Samples = append(r.Series[0].Samples, Sample{Round: -1, Warmup: true, Result: r.Series[0].Samples[0].Result}, Sample{Round: 3, Error: "refused"})
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	back, err := Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	s := back.Series[0]
	if len(s.Samples) != 5 || len(s.Results()) != 3 || s.Results()[2].Latency.P50 != r.Series[0].Samples[2].Result.Latency.P50 {
		t.Errorf("%+v", s)
	}
	if n, most := s.Noisy(); n != 3 || !most {
		t.Errorf("%d noisy", n)
	}
	if n, why := s.Failed(); n != 1 || why != "refused" {
		t.Errorf("%d failed: %s", n, why)
	}
	for text, want := range map[string]string{
		"{}": "no format", "x": "not a report", `{"format":9,"series":[{"test":"TCP_RR"}]}`: "use a newer one",
		`{"format":1,"series":[{"test":"RR"}]}`:                               "unknown test",
		`{"format":1,"series":[{"test":"TCP_RR","samples":[{"result":{}}]}]}`: "no latencies",
	} {
		if _, err := Read(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestCSV(t *testing.T) {
	r := made(1, 2, 60, 20000, 0.01, false)
	r.Series[0].Samples = append(r.Series[0].Samples, Sample{Round: 2, Error: "a, b"})
	var b bytes.Buffer
	if err := r.WriteCSV(&b); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 6 || !strings.HasPrefix(lines[0], "cluster,scenario,placement,family,test,") || !strings.HasPrefix(lines[1], "c,pod-to-pod,same-node,IPv4,TCP_CRR,1,0,0,0,") || !strings.Contains(lines[3], `"a, b"`) {
		t.Errorf("%s", b.String())
	}
}

func FuzzRead(f *testing.F) {
	var b bytes.Buffer
	_ = made(1, 2, 60, 20000, 0.01, false).Write(&b)
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		_, _ = Compare(r, r, 0.05)
	})
}
