// SPDX-License-Identifier: Apache-2.0

package rest

import (
	"fmt"
	"net/http"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/state"
)

// metrics holds the registry of one agent. Collectors read the tables when they are scraped, so
// no code elsewhere keeps gauges up to date.
type metrics struct {
	reg     *prometheus.Registry
	apiTime *prometheus.HistogramVec
}

func newMetrics(s *Server) *metrics {
	m := &metrics{
		reg: prometheus.NewPedanticRegistry(),
		apiTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cilium_agent_api_process_time_seconds",
			Help: "Time that requests on the agent's socket took.",
		}, []string{"path", "method", "return_code"}),
	}
	m.reg.MustRegister(m.apiTime, newTableCollector(s),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{Namespace: "cilium"}),
		collectors.NewGoCollector())
	return m
}

// timed measures a handler that returns its status code.
func (m *metrics) timed(path string, h func(http.ResponseWriter, *http.Request) int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		code := h(w, r)
		m.apiTime.WithLabelValues(path, r.Method, strconv.Itoa(code)).Observe(time.Since(start).Seconds())
	}
}

// list flattens the registry: counters and gauges as they are, of histograms the sum and the count.
func (m *metrics) list() ([]api.Metric, error) {
	families, err := m.reg.Gather()
	if err != nil {
		return nil, fmt.Errorf("gather metrics: %w", err)
	}
	out := []api.Metric{}
	for _, f := range families {
		for _, x := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range x.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			add := func(name string, v float64) {
				out = append(out, api.Metric{Name: name, Labels: labels, Value: v})
			}
			switch {
			case x.Counter != nil:
				add(f.GetName(), x.GetCounter().GetValue())
			case x.Gauge != nil:
				add(f.GetName(), x.GetGauge().GetValue())
			case x.Histogram != nil:
				add(f.GetName()+"_sum", x.GetHistogram().GetSampleSum())
				add(f.GetName()+"_count", float64(x.GetHistogram().GetSampleCount()))
			case x.Summary != nil:
				add(f.GetName()+"_sum", x.GetSummary().GetSampleSum())
				add(f.GetName()+"_count", float64(x.GetSummary().GetSampleCount()))
			case x.Untyped != nil:
				add(f.GetName(), x.GetUntyped().GetValue())
			}
		}
	}
	return out, nil
}

// Metrics returns the handler that Prometheus scrapes on /metrics.
func (s *Server) Metrics() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.reg, promhttp.HandlerOpts{}))
	return mux
}

// Register adds a feature's own collectors.
func (s *Server) Register(cs ...prometheus.Collector) error {
	for _, c := range cs {
		if err := s.metrics.reg.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

type desc = *prometheus.Desc

// tableCollector turns tables and sources into samples.
type tableCollector struct {
	s *Server

	version, endpoint, endpointState, identity, nodes, ipAddresses         desc
	drops, dropBytes, forwards, forwardBytes                               desc
	ctlRuns, ctlFailing, eventsLost, mapCapacity, mapPressure, unreachable desc
	enforcement                                                            desc
}

func newTableCollector(s *Server) *tableCollector {
	d := func(name, help string, labels ...string) desc {
		return prometheus.NewDesc("cilium_"+name, help, labels, nil)
	}
	return &tableCollector{
		s:             s,
		version:       d("version", "Version of the agent, always 1.", "version", "revision", "arch"),
		endpoint:      d("endpoint", "Number of endpoints of this node."),
		endpointState: d("endpoint_state", "Number of endpoints by state.", "endpoint_state"),
		identity:      d("identity", "Number of known identities by kind.", "type"),
		nodes:         d("nodes_all_num", "Number of nodes that the agent knows."),
		ipAddresses:   d("ip_addresses", "Number of allocated addresses.", "family"),
		drops:         d("drop_count_total", "Dropped packets.", "reason", "direction"),
		dropBytes:     d("drop_bytes_total", "Bytes of dropped packets.", "reason", "direction"),
		forwards:      d("forward_count_total", "Forwarded packets.", "direction"),
		forwardBytes:  d("forward_bytes_total", "Bytes of forwarded packets.", "direction"),
		ctlRuns:       d("controllers_runs_total", "Runs of the agent's loops by outcome.", "status"),
		ctlFailing:    d("controllers_failing", "Number of loops whose last run failed."),
		eventsLost:    d("event_lost_total", "Datapath events that were lost before they were read.", "source"),
		mapCapacity:   d("bpf_map_capacity", "Capacity of a map, in entries.", "map_group"),
		mapPressure:   d("bpf_map_pressure", "Share of a map's capacity in use, from 0.1 up.", "map_name"),
		unreachable:   d("unreachable_nodes", "Nodes without a known address."),
		enforcement:   d("policy_endpoint_enforcement_status", "Endpoints by policy enforcement.", "enforcement"),
	}
}

// Describe sends the descriptions of all samples.
func (c *tableCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []desc{
		c.version, c.endpoint, c.endpointState, c.identity, c.nodes, c.ipAddresses, c.drops, c.dropBytes,
		c.forwards, c.forwardBytes, c.ctlRuns, c.ctlFailing, c.eventsLost, c.mapCapacity, c.mapPressure,
		c.unreachable, c.enforcement,
	} {
		ch <- d
	}
}

// Collect reads the tables and sends the samples.
func (c *tableCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(c.version, 1, api.CiliumVersion, api.Revision, runtime.GOARCH)
	if c.s.src.Tables != nil {
		c.collectTables(gauge)
	}
	if c.s.src.IPAM != nil {
		st := c.s.src.IPAM()
		gauge(c.ipAddresses, float64(len(st.IPv4)), "ipv4")
		gauge(c.ipAddresses, float64(len(st.IPv6)), "ipv6")
	}
	counter := func(d desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	if c.s.src.Controllers != nil {
		var ok, bad, failing float64
		for _, x := range c.s.src.Controllers() {
			ok += float64(x.Status.SuccessCount)
			bad += float64(x.Status.FailureCount)
			if x.Status.ConsecutiveFailureCount > 0 {
				failing++
			}
		}
		counter(c.ctlRuns, ok, "success")
		counter(c.ctlRuns, bad, "failure")
		gauge(c.ctlFailing, failing)
	}
	if c.s.src.Events != nil {
		counter(c.eventsLost, float64(c.s.src.Events.Ring().Lost), "ring")
	}
	c.collectMaps(gauge)
	c.collectTraffic(ch, counter)
}

func (c *tableCollector) collectTables(gauge func(desc, float64, ...string)) {
	t := c.s.src.Tables
	byState := map[state.EndpointState]int{}
	for _, ep := range t.Endpoints.All() {
		byState[ep.State]++
	}
	gauge(c.endpoint, float64(t.Endpoints.Len()))
	gauge(c.enforcement, float64(t.Endpoints.Len()), "none")
	for _, st := range []state.EndpointState{
		state.EndpointWaitingForIdentity, state.EndpointRestoring, state.EndpointRegenerating,
		state.EndpointReady, state.EndpointDisconnecting,
	} {
		gauge(c.endpointState, float64(byState[st]), string(st))
	}
	cluster := 0
	for id := range t.Identities.All() {
		if id >= state.IdentityMinimal {
			cluster++
		}
	}
	gauge(c.identity, float64(cluster), "cluster_local")
	gauge(c.identity, float64(len(reserved)), "reserved")
	noAddr := 0
	for _, n := range t.Nodes.All() {
		if len(n.InternalIPs) == 0 {
			noAddr++
		}
	}
	gauge(c.nodes, float64(t.Nodes.Len()))
	gauge(c.unreachable, float64(noAddr))
}

func (c *tableCollector) collectMaps(gauge func(desc, float64, ...string)) {
	if c.s.src.Maps == nil {
		return
	}
	maps, err := c.s.src.Maps.Maps()
	if err != nil {
		c.s.src.Log.Warn("maps not measured", "error", err)
		return
	}
	for _, m := range maps {
		gauge(c.mapCapacity, float64(m.MaxEntries), m.Name)
		if m.MaxEntries > 0 {
			if p := float64(m.Entries) / float64(m.MaxEntries); p >= 0.1 {
				gauge(c.mapPressure, p, m.Name)
			}
		}
	}
}

func (c *tableCollector) collectTraffic(ch chan<- prometheus.Metric, counter func(desc, float64, ...string)) {
	if c.s.src.Traffic == nil {
		return
	}
	counts, err := c.s.src.Traffic()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.drops, err)
		return
	}
	for k, x := range sumTraffic(counts) {
		dir := k.direction()
		if k.reason == "" {
			counter(c.forwards, float64(x.Packets), dir)
			counter(c.forwardBytes, float64(x.Bytes), dir)
			continue
		}
		counter(c.drops, float64(x.Packets), k.reason, dir)
		counter(c.dropBytes, float64(x.Bytes), k.reason, dir)
	}
}

// trafficKey is what counters are summed up by.
type trafficKey struct {
	reason  string // empty: forwarded
	ingress bool
}

func (k trafficKey) direction() string {
	if k.ingress {
		return "INGRESS"
	}
	return "EGRESS"
}

func sumTraffic(counts []api.TrafficCount) map[trafficKey]api.TrafficCount {
	sum := map[trafficKey]api.TrafficCount{}
	for _, t := range counts {
		k := trafficKey{t.Reason, t.Ingress}
		x := sum[k]
		x.Packets += t.Packets
		x.Bytes += t.Bytes
		sum[k] = x
	}
	return sum
}
