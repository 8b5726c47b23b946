// SPDX-License-Identifier: Apache-2.0

// Package report is what a measurement in a cluster gave: every sample, with what it was measured in and
// with, as JSON; what can be said of the samples together; the comparison of two reports; and the report
// as CSV, SVG and a page of HTML. It measures nothing.
//
//	Report   one run of `lash perf run` or `lash perf services`
//	Series   one test on one path, measured again and again; on the Service ladder, at one number of Services
//	Sample   one of these
//	Metric   a figure that each sample has, such as P50
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/stats"
)

// Format is the version of the JSON.
const Format = 1

// Kinds of reports.
const (
	KindPaths    = "paths"
	KindServices = "services"
)

// Report is one run.
type Report struct {
	Format   int       `json:"format"`
	Kind     string    `json:"kind"`
	Started  time.Time `json:"started"`
	Ended    time.Time `json:"ended"`
	Command  string    `json:"command,omitempty"`
	Seconds  float64   `json:"seconds"` // of a sample
	Rounds   int       `json:"rounds"`
	Clusters []Cluster `json:"clusters"`
	Series   []*Series `json:"series"`
	// Skipped is what was not measured, and why.
	Skipped []string `json:"skipped,omitempty"`
}

// Cluster is where it was measured.
type Cluster struct {
	Name       string `json:"name"` // of its kubeconfig context
	Kubernetes string `json:"kubernetes"`
	Lash       string `json:"lash"` // version of this program
	Image      string `json:"image"`
	CNI        string `json:"cni"`       // with its version, as far as it can be told
	KubeProxy  string `json:"kubeProxy"` // "none", "iptables", "nftables", "ipvs", or "" when it cannot be told
	Nodes      []Node `json:"nodes"`
}

// Node is one of the nodes that took part.
type Node struct {
	Name      string `json:"name"`
	Role      string `json:"role"` // what ran there
	Kernel    string `json:"kernel"`
	OS        string `json:"os"`
	Runtime   string `json:"runtime"`
	Arch      string `json:"architecture"`
	CPU       string `json:"cpu"`
	Memory    string `json:"memory"`
	Kubelet   string `json:"kubelet"`
	Addresses string `json:"addresses,omitempty"`
}

// Key says what a series is about.
type Key struct {
	Cluster   string       `json:"cluster"`
	Scenario  string       `json:"scenario"`  // such as pod-to-pod
	Placement string       `json:"placement"` // same-node, other-node; on the ladder where the backend is
	Family    string       `json:"family"`    // IPv4 or IPv6
	Test      netperf.Test `json:"test"`
	Streams   int          `json:"streams,omitempty"` // when more than one
	// Services and ServicePorts are how many there were beside the one that was measured through.
	Services     int `json:"services"`
	ServicePorts int `json:"servicePorts"`
}

// Series is one test on one path, measured again and again.
type Series struct {
	Key
	Baseline bool `json:"baseline,omitempty"` // node to node, without the pod network
	// Programmed is how long the node took until it served the last of the Services of this step.
	Programmed float64  `json:"programmed_s,omitempty"`
	Samples    []Sample `json:"samples"`
}

// Sample is one measurement.
type Sample struct {
	Round  int             `json:"round"` // from 0; warm-ups have -1
	Start  time.Time       `json:"start"`
	Warmup bool            `json:"warmup,omitempty"`
	Noisy  bool            `json:"noisy,omitempty"` // the machine was busy with other things
	Error  string          `json:"error,omitempty"`
	Result *netperf.Result `json:"result,omitempty"`
}

// Limits of noise, as shares of the time: pressure right before a sample, and steal during it. A test
// itself makes tasks wait, for every wake-up takes a moment, so the pressure during it says nothing.
const (
	MaxPressure = 0.10
	MaxSteal    = 0.05
)

// NoisyResult says whether the machine was busy with other things.
func NoisyResult(r *netperf.Result) bool {
	return r.Noise.Steal > MaxSteal || r.Before != nil && r.Before.Pressure > MaxPressure
}

// Metric is a figure that samples have.
type Metric struct {
	Name   string
	Unit   string
	Higher bool // is better
	Of     func(*netperf.Result) float64
}

// Metrics of transactions and of one-way tests, the first of each being the one to rank by.
var (
	P50        = Metric{"P50", "us", false, func(r *netperf.Result) float64 { return r.Latency.P50 }}
	P90        = Metric{"P90", "us", false, func(r *netperf.Result) float64 { return r.Latency.P90 }}
	P99        = Metric{"P99", "us", false, func(r *netperf.Result) float64 { return r.Latency.P99 }}
	P999       = Metric{"P99.9", "us", false, func(r *netperf.Result) float64 { return r.Latency.P999 }}
	RTLatency  = Metric{"RT_LATENCY", "us", false, func(r *netperf.Result) float64 { return r.RTLatency }}
	Rate       = Metric{"rate", "1/s", true, func(r *netperf.Result) float64 { return r.Rate }}
	Throughput = Metric{"throughput", "Mbit/s", true, func(r *netperf.Result) float64 { return r.Throughput }}
	ClientCPU  = Metric{"client CPU", "us/unit", false, func(r *netperf.Result) float64 { return r.LocalDemand }}
	ServerCPU  = Metric{"server CPU", "us/unit", false, func(r *netperf.Result) float64 { return r.RemoteDemand }}
)

// MetricsOf are the metrics of a test.
func MetricsOf(t netperf.Test) []Metric {
	if t.Transactions() {
		return []Metric{P50, P90, P99, P999, RTLatency, Rate, ClientCPU, ServerCPU}
	}
	return []Metric{Throughput, ClientCPU, ServerCPU}
}

// Main is the metric to rank a test by.
func Main(t netperf.Test) Metric { return MetricsOf(t)[0] }

// Results are the samples that count.
func (s *Series) Results() []*netperf.Result {
	var out []*netperf.Result
	for i := range s.Samples {
		if x := &s.Samples[i]; !x.Warmup && x.Error == "" && x.Result != nil {
			out = append(out, x.Result)
		}
	}
	return out
}

// Values are a metric's, in the order of the rounds.
func (s *Series) Values(m Metric) []float64 {
	var out []float64
	for _, r := range s.Results() {
		out = append(out, m.Of(r))
	}
	return out
}

// Estimate is the median of a metric with its 95 percent interval.
func (s *Series) Estimate(m Metric) stats.Estimate { return stats.EstimateMedian(s.Values(m), 0.95) }

// Outliers is how many samples lie far from the others by the main metric.
func (s *Series) Outliers() int {
	n := 0
	for _, out := range stats.Outliers(s.Values(Main(s.Test))) {
		if out {
			n++
		}
	}
	return n
}

// Noisy is how many samples that count were taken on a busy machine, and whether those are more than
// half of them.
func (s *Series) Noisy() (n int, most bool) {
	all := 0
	for _, x := range s.Samples {
		if x.Warmup || x.Error != "" {
			continue
		}
		all++
		if x.Noisy {
			n++
		}
	}
	return n, 2*n > all
}

// Failed is how many samples have no result, and the last reason.
func (s *Series) Failed() (n int, why string) {
	for _, x := range s.Samples {
		if x.Error != "" {
			n, why = n+1, x.Error
		}
	}
	return n, why
}

// Troubles are connections that failed, segments that were sent again and the like, added up.
func (s *Series) Troubles() map[string]int {
	out := map[string]int{}
	for _, r := range s.Results() {
		for what, n := range r.Errors {
			out[what] += n
		}
		for what, n := range r.Counters {
			out[what] += int(n)
		}
	}
	return out
}

// Title is the series in a few words.
func (k *Key) Title() string {
	words := []string{k.Scenario}
	if k.Placement != "" {
		words = append(words, k.Placement)
	}
	words = append(words, string(k.Test))
	if k.Streams > 1 {
		words = append(words, strconv.Itoa(k.Streams)+" streams")
	}
	if k.Family == "IPv6" {
		words = append(words, k.Family)
	}
	return strings.Join(words, " ")
}

// Read reads the JSON of a report.
func Read(r io.Reader) (*Report, error) {
	var out Report
	dec := json.NewDecoder(r)
	if err := dec.Decode(&out); err != nil {
		return nil, fmt.Errorf("not a report of lash perf: %w", err)
	}
	if out.Format == 0 || len(out.Series) == 0 {
		return nil, errors.New("not a report of lash perf: it has no format or no series")
	}
	if out.Format > Format {
		return nil, fmt.Errorf("the report has format %d, this lash reads up to %d: use a newer one", out.Format, Format)
	}
	for _, s := range out.Series {
		if _, err := netperf.ParseTest(string(s.Test)); err != nil {
			return nil, err
		}
		for _, r := range s.Results() {
			if s.Test.Transactions() && r.Latency == nil {
				return nil, fmt.Errorf("%s: a sample has no latencies", s.Title())
			}
		}
	}
	return &out, nil
}

// Write writes the report as JSON.
func (r *Report) Write(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}

// ClusterNames are the names of the clusters, in their order.
func (r *Report) ClusterNames() []string {
	var out []string
	for _, c := range r.Clusters {
		out = append(out, c.Name)
	}
	return out
}

// Steps are the numbers of Services of the ladder, in order.
func (r *Report) Steps() []int {
	var out []int
	for _, s := range r.Series {
		if !slices.Contains(out, s.Services) {
			out = append(out, s.Services)
		}
	}
	slices.Sort(out)
	return out
}
