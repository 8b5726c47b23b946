// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"lash.internal/lash/perf/stats"
)

// WriteMarkdown writes tables for a document: on the ladder one for each way, with the clusters side by
// side and each of the others' latency by the first one's; else one of all series.
func (r *Report) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	for _, c := range r.Clusters {
		proxy := "kube-proxy " + c.KubeProxy
		if c.KubeProxy == "none" {
			proxy = "no kube-proxy"
		}
		kernel := ""
		if len(c.Nodes) > 0 {
			kernel = ", kernel " + c.Nodes[0].Kernel
		}
		fmt.Fprintf(&b, "- %s: Kubernetes %s, %s, %s%s\n", c.Name, c.Kubernetes, c.CNI, proxy, kernel)
	}
	fmt.Fprintf(&b, "\n%s; %d samples of %gs at each point, by turns; medians with the interval of the median.\n", r.Started.UTC().Format("2 January 2006"), r.Rounds, r.Seconds)
	if r.Command != "" {
		fmt.Fprintf(&b, "\n    %s\n", r.Command)
	}
	if r.Kind == KindServices {
		r.ladders(&b)
	} else {
		fmt.Fprintf(&b, "\n| Path | Test | Median | Interval | Noisy |\n|---|---|---|---|---|\n")
		for _, s := range r.Series {
			if len(s.Results()) == 0 {
				continue
			}
			m := Main(s.Test)
			e := s.Estimate(m)
			n, _ := s.Noisy()
			fmt.Fprintf(&b, "| %s | %s | %s %s | %s - %s | %d of %d |\n", s.lineName(len(r.Clusters) > 1), s.Test, number(e.Median), m.Unit, number(e.Low), number(e.High), n, e.N)
		}
	}
	for _, why := range r.Skipped {
		fmt.Fprintf(&b, "\nNot measured: %s\n", why)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// ladders writes a table for each scenario and test.
func (r *Report) ladders(b *strings.Builder) {
	var keys []Key
	for _, s := range r.Series {
		k := s.nameless()
		k.Services, k.ServicePorts = 0, 0
		if !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	names := r.ClusterNames()
	for _, k := range keys {
		m := Main(k.Test)
		fmt.Fprintf(b, "\n#### %s\n\n| Services | ports |", k.Title())
		rule := "|---|---|"
		for i, name := range names {
			fmt.Fprintf(b, " %s, %s %s | P99 | RT_LATENCY | served after |", name, m.Name, m.Unit)
			rule += "---|---|---|---|"
			if i > 0 {
				fmt.Fprintf(b, " by %s |", names[0])
				rule += "---|"
			}
		}
		fmt.Fprintf(b, " noisy |\n%s---|\n", rule)
		for _, step := range r.Steps() {
			r.rung(b, k, step, names)
		}
	}
}

// rung is a line of a ladder's table.
func (r *Report) rung(b *strings.Builder, k Key, step int, names []string) {
	var cells []string
	var first *Series
	noisy, all, ports := 0, 0, 0
	for i, name := range names {
		at := slices.IndexFunc(r.Series, func(s *Series) bool {
			x := s.nameless()
			x.Services, x.ServicePorts = 0, 0
			return x == k && s.Services == step && s.Cluster == name
		})
		if at < 0 || len(r.Series[at].Results()) == 0 {
			cells = append(cells, "-", "-", "-", "-")
			if i > 0 {
				cells = append(cells, "-")
			}
			continue
		}
		s := r.Series[at]
		ports = s.ServicePorts
		m := Main(k.Test)
		e := s.Estimate(m)
		cells = append(cells,
			fmt.Sprintf("%s (%s - %s)", number(e.Median), number(e.Low), number(e.High)), number(stats.Median(s.Values(P99))),
			number(stats.Median(s.Values(RTLatency))), fmt.Sprintf("%.1f s", s.Programmed))
		if i == 0 {
			first = s
		} else if first != nil {
			q := stats.RatioOf(first.Values(m), s.Values(m), 0.95)
			cells = append(cells, fmt.Sprintf("%.2f (%.2f - %.2f)", q.Ratio, q.Low, q.High))
		} else {
			cells = append(cells, "-")
		}
		n, _ := s.Noisy()
		noisy, all = noisy+n, all+e.N
	}
	fmt.Fprintf(b, "| %d | %d | %s | %d of %d |\n", step, ports, strings.Join(cells, " | "), noisy, all)
}
