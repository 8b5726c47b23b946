// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"lash.internal/lash/cmd/term"
	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/report"
	"lash.internal/lash/perf/stats"
)

// writePerf prints a report as tables: one of transactions, one of throughput. Every figure is the
// median of the samples.
func writePerf(t *term.Term, r *report.Report) {
	for _, c := range r.Clusters {
		t.Println("%s", clusterLine(c))
	}
	several := len(r.Clusters) > 1
	ladder := r.Kind == report.KindServices
	lead := func(s *report.Series) []string {
		var out []string
		if several {
			out = append(out, s.Cluster)
		}
		if ladder {
			out = append(out, fmt.Sprint(s.Services))
		}
		out = append(out, s.Scenario, s.Placement, testName(s))
		if ladder {
			return out
		}
		return append(out, time.Duration(r.Seconds*float64(time.Second)).String())
	}
	head := func(rest ...string) []string {
		var out []string
		if several {
			out = append(out, "Cluster")
		}
		if ladder {
			return append(append(out, "Services", "Scenario", "Backend", "Test"), rest...)
		}
		return append(append(out, "Scenario", "Node", "Test", "Duration"), rest...)
	}
	var latency, throughput [][]string
	for _, s := range r.Series {
		if len(s.Results()) == 0 {
			continue
		}
		m := func(of func(*netperf.Result) float64) string {
			return figure(stats.Median(s.Values(report.Metric{Of: of})))
		}
		e := s.Estimate(report.Main(s.Test))
		interval := fmt.Sprintf("%s - %s", figure(e.Low), figure(e.High))
		if s.Test.Transactions() {
			latency = append(latency, append(lead(s),
				m(func(r *netperf.Result) float64 { return r.Latency.Min }), m(func(r *netperf.Result) float64 { return r.Latency.Mean }),
				m(func(r *netperf.Result) float64 { return r.Latency.Max }), m(report.P50.Of), interval, m(report.P90.Of), m(report.P99.Of),
				m(report.RTLatency.Of), m(report.Rate.Of), m(report.ClientCPU.Of)+" / "+m(report.ServerCPU.Of), notes(t, s)))
		} else {
			throughput = append(throughput, append(lead(s), m(report.Throughput.Of), interval, m(report.ClientCPU.Of)+" / "+m(report.ServerCPU.Of), notes(t, s)))
		}
	}
	if len(latency) > 0 {
		t.Println("")
		t.Table(head("Min", "Mean", "Max", "P50", "P50 95 %", "P90", "P99", "RT_LATENCY", "Transaction rate OP/s", "CPU us/tran", "Notes"), latency)
	}
	if len(throughput) > 0 {
		t.Println("")
		t.Table(head("Throughput Mb/s", "95 %", "CPU us/KB", "Notes"), throughput)
	}
	t.Println("")
	t.Println("%s", t.Faint(fmt.Sprintf("Latencies in us, medians of %d samples of %gs; 95 %% is the interval of the median%s. CPU is of the client's and of the server's machine.",
		r.Rounds, r.Seconds, fewSamples(r.Rounds))))
	for _, why := range r.Skipped {
		t.Println("%s", t.Yellow("Not measured: "+why))
	}
	for _, s := range r.Series {
		if n, why := s.Failed(); n > 0 {
			t.Println("%s", t.Red(fmt.Sprintf("%s: %d samples failed: %s", s.Title(), n, why)))
		}
	}
	if n := noisySeries(r); n > 0 {
		t.Println("%s", t.Yellow(fmt.Sprintf("⚠️  %d of %d results are marked noisy: the machine was busy with other things before most of their samples.", n, len(r.Series))))
	}
}

// fewSamples says what an interval of a few samples is.
func fewSamples(n int) string {
	if n >= 6 {
		return ""
	}
	return " (of all samples: fewer than 6 cannot reach 95 %)"
}

func clusterLine(c report.Cluster) string {
	kernels := map[string]bool{}
	for _, n := range c.Nodes {
		kernels[n.Kernel] = true
	}
	proxy := "kube-proxy " + c.KubeProxy
	switch c.KubeProxy {
	case "none":
		proxy = "no kube-proxy"
	case "":
		proxy = "kube-proxy of an unknown mode"
	}
	return fmt.Sprintf("%s: Kubernetes %s, %s, %s, kernel %s, Lash %s", c.Name, c.Kubernetes, c.CNI, proxy, strings.Join(slices.Sorted(maps.Keys(kernels)), " and "), c.Lash)
}

func testName(s *report.Series) string {
	name := string(s.Test)
	if s.Streams > 1 {
		name = strings.Replace(name, "STREAM", "STREAM_MULTI", 1)
		if s.Test.Transactions() {
			name += "_MULTI"
		}
	}
	if s.Family == "IPv6" {
		name += " IPv6"
	}
	return name
}

func noisySeries(r *report.Report) (n int) {
	for _, s := range r.Series {
		if _, most := s.Noisy(); most {
			n++
		}
	}
	return n
}

// alarms are the counters that a reader should know of even when all else is well.
var alarms = []struct{ counter, word string }{
	{"TCPSynRetrans", "SYN retransmits"},
	{"RetransSegs", "retransmits"},
	{"TCPTimeWaitOverflow", "TIME_WAIT overflows"},
	{"ListenDrops", "listen drops"},
}

func notes(t *term.Term, s *report.Series) string {
	var out []string
	if s.Baseline {
		out = append(out, "baseline")
	}
	if n, most := s.Noisy(); most {
		out = append(out, t.Yellow("noisy"))
	} else if n > 0 {
		out = append(out, fmt.Sprintf("%d noisy", n))
	}
	if n := s.Outliers(); n > 0 {
		out = append(out, fmt.Sprintf("%d outliers", n))
	}
	failed := 0
	for _, r := range s.Results() {
		for _, n := range r.Errors {
			failed += n
		}
	}
	if failed > 0 {
		out = append(out, t.Red(fmt.Sprintf("%d failed connections", failed)))
	}
	troubles := s.Troubles()
	for _, a := range alarms {
		if n := troubles[a.counter]; n > 0 {
			out = append(out, fmt.Sprintf("%d %s", n, a.word))
		}
	}
	return strings.Join(out, ", ")
}

// plotLines are the lines of a plot for the terminal.
func plotLines(p report.Plot) []term.Line {
	var out []term.Line
	for _, l := range p.Lines {
		line := term.Line{Name: l.Name}
		for _, pt := range l.Points {
			line.X, line.Y = append(line.X, pt.X), append(line.Y, pt.Y)
		}
		out = append(out, line)
	}
	return out
}
