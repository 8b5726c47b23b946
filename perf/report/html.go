// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"lash.internal/lash/perf/stats"
)

// page is the report as one file that asks nothing of a network.
var page = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>lash perf, {{.Started}}</title>
<style>
body{font:14px/1.5 sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .7em;border-bottom:1px solid #ddd;text-align:left}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.noisy{background:#fff4d6}.failed{color:#a00}svg{max-width:100%;height:auto}
caption{text-align:left;font-weight:bold;padding:.5em 0}
</style></head><body>
<h1>lash perf</h1>
<p>{{.Started}}{{if .Command}}, <code>{{.Command}}</code>{{end}}. Medians of {{.Rounds}} samples of {{.Seconds}} s, taken by turns; the interval is
that of the median (95 %, or of all samples where fewer than 6 cannot reach it). Rows on yellow were measured while the machine was busy with other things.</p>
<table><caption>Where</caption><tr><th>Cluster<th>Kubernetes<th>Network<th>kube-proxy<th>Lash<th>Nodes</tr>
{{range .Clusters}}<tr><td>{{.Name}}<td>{{.Kubernetes}}<td>{{.CNI}}<td>{{.KubeProxy}}<td>{{.Lash}}
<td>{{range .Nodes}}{{.Name}} ({{.Role}}): kernel {{.Kernel}}, {{.OS}}, {{.CPU}} CPUs, {{.Memory}}<br>{{end}}</tr>{{end}}</table>
{{range .Plots}}<figure>{{.}}</figure>{{end}}
{{range .Tables}}<table><caption>{{.Title}}</caption><tr>{{range .Head}}<th>{{.}}{{end}}</tr>
{{range .Rows}}<tr{{if .Noisy}} class="noisy"{{end}}>{{range .Cells}}<td>{{.}}{{end}}</tr>{{end}}</table>{{end}}
{{range .Notes}}<p class="failed">{{.}}</p>{{end}}
</body></html>
`))

type pageRow struct {
	Noisy bool
	Cells []string
}

type pageTable struct {
	Title string
	Head  []string
	Rows  []pageRow
}

// WriteHTML writes the report as a page.
func (r *Report) WriteHTML(w io.Writer) error {
	data := struct {
		*Report
		Started string
		Plots   []template.HTML
		Tables  []pageTable
		Notes   []string
	}{Report: r, Started: r.Started.UTC().Format(time.RFC1123)}
	for _, p := range r.Plots() {
		data.Plots = append(data.Plots, template.HTML(p.SVG())) //nolint:gosec // made above, with its texts escaped
	}
	data.Tables = r.pageTables()
	for _, why := range r.Skipped {
		data.Notes = append(data.Notes, "Not measured: "+why)
	}
	for _, s := range r.Series {
		if n, why := s.Failed(); n > 0 {
			data.Notes = append(data.Notes, fmt.Sprintf("%s: %d samples failed: %s", s.stepTitle(), n, why))
		}
	}
	return page.Execute(w, data)
}

// pageTables has one table of transactions and one of throughput.
func (r *Report) pageTables() []pageTable {
	var tables []pageTable
	for _, transactions := range []bool{true, false} {
		t := pageTable{Title: "Throughput", Head: []string{"Cluster", "Services", "Service ports", "Path", "Test", "Samples"}}
		if transactions {
			t.Title = "Transactions"
		}
		for _, s := range r.Series {
			if s.Test.Transactions() != transactions || len(s.Results()) == 0 {
				continue
			}
			metrics := MetricsOf(s.Test)
			if len(t.Rows) == 0 {
				for i, m := range metrics {
					t.Head = append(t.Head, m.Name+" "+m.Unit)
					if i == 0 {
						t.Head = append(t.Head, "interval")
					}
				}
				t.Head = append(t.Head, "Notes")
			}
			_, noisy := s.Noisy()
			cells := []string{
				s.Cluster, strconv.Itoa(s.Services), strconv.Itoa(s.ServicePorts), s.lineName(false), string(s.Test), strconv.Itoa(len(s.Results())),
			}
			for i, m := range metrics {
				cells = append(cells, number(stats.Median(s.Values(m))))
				if i == 0 {
					e := s.Estimate(m)
					cells = append(cells, number(e.Low)+" - "+number(e.High))
				}
			}
			t.Rows = append(t.Rows, pageRow{noisy, append(cells, s.pageNotes())})
		}
		if len(t.Rows) > 0 {
			tables = append(tables, t)
		}
	}
	return tables
}

func (s *Series) pageNotes() string {
	var out []string
	if s.Baseline {
		out = append(out, "baseline")
	}
	if n := s.Outliers(); n > 0 {
		out = append(out, fmt.Sprintf("%d outliers", n))
	}
	troubles := s.Troubles()
	for _, what := range slices.Sorted(maps.Keys(troubles)) {
		out = append(out, fmt.Sprintf("%s: %d", what, troubles[what]))
	}
	return strings.Join(out, ", ")
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) }
