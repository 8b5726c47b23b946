// SPDX-License-Identifier: Apache-2.0

package ctgc

import "github.com/prometheus/client_golang/prometheus"

var (
	descRuns = prometheus.NewDesc("cilium_datapath_conntrack_gc_runs_total",
		"Sweeps of the conntrack tables.", []string{"family", "protocol", "status"}, nil)
	descEntries = prometheus.NewDesc("cilium_datapath_conntrack_gc_entries",
		"Entries alive at the last sweep, and entries deleted by all.", []string{"family", "protocol", "status"}, nil)
	descDuration = prometheus.NewDesc("cilium_datapath_conntrack_gc_duration_seconds",
		"Time that the last sweep took.", []string{"family", "protocol", "status"}, nil)
)

// Describe sends the descriptions of the collector's metrics.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- descRuns
	ch <- descEntries
	ch <- descDuration
}

// Collect sends the counters of both families.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	stats, fails := c.stats, c.fails
	c.mu.Unlock()
	send := func(d *prometheus.Desc, t prometheus.ValueType, v float64, family, status string) {
		ch <- prometheus.MustNewConstMetric(d, t, v, family, "all", status)
	}
	for i, family := range []string{"ipv4", "ipv6"} {
		s := stats[i]
		send(descRuns, prometheus.CounterValue, float64(s.Runs), family, "completed")
		send(descEntries, prometheus.GaugeValue, float64(s.Alive), family, "alive")
		send(descEntries, prometheus.GaugeValue, float64(s.Deleted+s.Purged), family, "deleted")
		send(descDuration, prometheus.GaugeValue, s.Duration.Seconds(), family, "completed")
	}
	send(descRuns, prometheus.CounterValue, float64(fails), "any", "uncompleted")
}
