// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/csv"
	"io"
	"strconv"
	"time"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/stats"
)

// columns of the CSV behind those of the key.
var columns = []struct {
	name string
	of   func(*netperf.Result) string
}{
	{"seconds", func(r *netperf.Result) string { return decimal(r.Seconds) }},
	{"transactions", func(r *netperf.Result) string { return strconv.Itoa(r.Transactions) }},
	{"rate", func(r *netperf.Result) string { return decimal(r.Rate) }},
	{"rt_latency_us", func(r *netperf.Result) string { return decimal(r.RTLatency) }},
	{"min_us", func(r *netperf.Result) string { return decimal(latency(r).Min) }},
	{"mean_us", func(r *netperf.Result) string { return decimal(latency(r).Mean) }},
	{"p50_us", func(r *netperf.Result) string { return decimal(latency(r).P50) }},
	{"p90_us", func(r *netperf.Result) string { return decimal(latency(r).P90) }},
	{"p99_us", func(r *netperf.Result) string { return decimal(latency(r).P99) }},
	{"p999_us", func(r *netperf.Result) string { return decimal(latency(r).P999) }},
	{"max_us", func(r *netperf.Result) string { return decimal(latency(r).Max) }},
	{"throughput_mbit", func(r *netperf.Result) string { return decimal(r.Throughput) }},
	{"client_cpu_us", func(r *netperf.Result) string { return decimal(r.LocalDemand) }},
	{"server_cpu_us", func(r *netperf.Result) string { return decimal(r.RemoteDemand) }},
	{"failed_connections", func(r *netperf.Result) string {
		n := 0
		for _, c := range r.Errors {
			n += c
		}
		return strconv.Itoa(n)
	}},
	{"retransmits", func(r *netperf.Result) string { return strconv.Itoa(r.Retransmits) }},
	{"syn_retransmits", func(r *netperf.Result) string { return strconv.FormatInt(r.Counters["TCPSynRetrans"], 10) }},
	{"time_wait_overflow", func(r *netperf.Result) string { return strconv.FormatInt(r.Counters["TCPTimeWaitOverflow"], 10) }},
	{"pressure_before", func(r *netperf.Result) string {
		if r.Before == nil {
			return ""
		}
		return decimal(r.Before.Pressure)
	}},
	{"pressure_during", func(r *netperf.Result) string { return decimal(r.Noise.Pressure) }},
	{"steal", func(r *netperf.Result) string { return decimal(r.Noise.Steal) }},
}

func decimal(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

func latency(r *netperf.Result) *stats.Summary {
	if r.Latency == nil {
		return &stats.Summary{}
	}
	return r.Latency
}

// WriteCSV writes a line for each sample.
func (r *Report) WriteCSV(w io.Writer) error {
	c := csv.NewWriter(w)
	head := []string{"cluster", "scenario", "placement", "family", "test", "streams", "services", "service_ports", "round", "start", "warmup", "noisy", "error"}
	for _, col := range columns {
		head = append(head, col.name)
	}
	if err := c.Write(head); err != nil {
		return err
	}
	for _, s := range r.Series {
		for _, x := range s.Samples {
			line := []string{
				s.Cluster, s.Scenario, s.Placement, s.Family, string(s.Test), strconv.Itoa(max(s.Streams, 1)), strconv.Itoa(s.Services),
				strconv.Itoa(s.ServicePorts), strconv.Itoa(x.Round), x.Start.UTC().Format(time.RFC3339Nano),
				strconv.FormatBool(x.Warmup), strconv.FormatBool(x.Noisy), x.Error,
			}
			for _, col := range columns {
				if x.Result == nil {
					line = append(line, "")
					continue
				}
				line = append(line, col.of(x.Result))
			}
			if err := c.Write(line); err != nil {
				return err
			}
		}
	}
	c.Flush()
	return c.Error()
}
