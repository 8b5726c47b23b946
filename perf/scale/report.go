// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"lash.internal/lash/perf/report"
	"lash.internal/lash/perf/stats"
)

// row is one line of the report: a figure, what of its values counts, and what Lash is to reach at a
// number of Services, at most.
type row struct {
	title string
	name  string
	pick  func([]float64) float64
	goals map[int]float64 // by Services; 0 stands for every number
}

func percentile(p float64) func([]float64) float64 {
	return func(v []float64) float64 {
		s := slices.Sorted(slices.Values(v))
		return s[max(int(math.Ceil(p*float64(len(s))))-1, 0)]
	}
}

var rows = []row{
	{"Cold start, until the last Service answers, s", ColdStart, stats.Median, map[int]float64{10000: 1.5, 30000: 4}},
	{"The same, until ready, s", ColdReady, stats.Median, nil},
	{"Start over a node that is programmed, until ready, s", WarmReady, stats.Median, map[int]float64{0: 1}},
	{"The same: entries written", WarmWrites, percentile(1), map[int]float64{0: 0}},
	{"The same, until what changed meanwhile answers, s", WarmChange, stats.Median, nil},
	{"First endpoint of a Service, event to connection, P50 ms", AddEndpoint, percentile(0.5), map[int]float64{30000: 3}},
	{"The same, P99 ms", AddEndpoint, percentile(0.99), map[int]float64{30000: 15}},
	{"New Service, events to connection, P50 ms", AddService, percentile(0.5), map[int]float64{30000: 3}},
	{"The same, P99 ms", AddService, percentile(0.99), map[int]float64{30000: 15}},
	{"100 changes a second, % of a processor", Changes, stats.Median, map[int]float64{0: 10}},
	{"The last of them, event to connection, ms", ChangesLast, stats.Median, nil},
	{"Memory of the program, MB", Memory, stats.Median, nil},
	{"Memory of BPF maps, MB", MemoryMaps, stats.Median, nil},
	{"Both, MB", total, stats.Median, map[int]float64{10000: 120, 30000: 300}},
	{"Memory of the program at most, MB", MemoryPeak, stats.Median, nil},
	{"Memory of the program after the changes, MB", MemoryAfter, stats.Median, nil},
	{"Memory of the kernel for it, MB", MemoryKernel, stats.Median, nil},
}

// total is the sum of Memory and MemoryMaps.
const total = "memory-total"

func (r *Results) figure(contender string, z Size, name string) (Figure, bool) {
	if name != total {
		return r.find(contender, z, name)
	}
	own, ok := r.find(contender, z, Memory)
	held, _ := r.find(contender, z, MemoryMaps)
	if !ok || len(own.Values) == 0 {
		return own, ok
	}
	sum := own.Values[0]
	if len(held.Values) > 0 {
		sum += held.Values[0]
	}
	own.Values = []float64{sum}
	return own, true
}

// sizes are those of the figures, small ones first.
func (r *Results) sizes() []Size {
	var out []Size
	for _, f := range r.Figures {
		if !slices.Contains(out, f.Size) {
			out = append(out, f.Size)
		}
	}
	slices.SortFunc(out, func(a, b Size) int {
		return (a.Services-b.Services)*1000 + (a.Endpoints-b.Endpoints)*10 + a.Ports - b.Ports
	})
	return out
}

// number writes a value with three digits that count.
func number(v float64) string {
	switch {
	case v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	case math.Abs(v) >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// cell is what a figure looks like.
func (w row) cell(f Figure) string {
	if len(f.Values) == 0 {
		return f.Failed
	}
	text := number(w.pick(f.Values))
	if n := len(f.Values); n > 1 {
		s := slices.Sorted(slices.Values(f.Values))
		text += fmt.Sprintf(" (%s to %s, %d)", number(s[0]), number(s[n-1]), n)
	}
	if f.noisy() {
		text += ", noisy"
	}
	if f.Failed != "" {
		text += "; " + f.Failed
	}
	return text
}

// goal is what Lash is to reach, and whether it does.
func (w row) goal(f Figure) string {
	at, ok := w.goals[f.Size.Services]
	if !ok {
		if at, ok = w.goals[0]; !ok {
			return ""
		}
	}
	verdict := "missed"
	if len(f.Values) > 0 && w.pick(f.Values) <= at {
		verdict = "met"
	}
	return fmt.Sprintf("at most %s: %s", number(at), verdict)
}

// Report is the section about scale in Markdown. path is the file of the figures.
func Report(r *Results, path string) string {
	var b strings.Builder
	b.WriteString("<!-- scale -->\n## Programming the Services of large clusters\n\n")
	fmt.Fprintf(&b, "Made by `make bench-scale`; every value is in `%s`.\n\n", path)
	fmt.Fprintf(&b, `One list/watch stand-in of the API server feeds all contenders alike, over TLS on the loopback address of the
node on which each of them works, alone, in namespaces of its own; stand-in, contender and client share the
machine. The client is a process on the node that connects to ClusterIPs, backends are one veth pair away. A start
counts from the execution of the program until the last Service has accepted a connection: 128 of them, chosen anew
each time, are tried every 20 ms, all others 0.1 s after the last of these. An event counts from the moment at which
its bytes are written into the watch until the first connection, which is tried every 0.1 ms. Processor time
is the program's and that of the programs that it calls, in user space and in the kernel; what the kernel does later,
on its own, is in no figure. Figures are medians where nothing else is said, brackets hold the smallest and the
largest value and their number. 1 MB is 10^6 bytes. A start takes as much longer on a busy machine as others take of
its processors: figures are noisy if tasks waited for one during more than %.0f %% of the half second before a start.
`, 100*report.MaxPressure)
	for _, z := range r.sizes() {
		fmt.Fprintf(&b, "\n### %d Services with %d endpoints each", z.Services, z.Endpoints)
		if z.Ports > 1 {
			fmt.Fprintf(&b, " and %d ports", z.Ports)
		}
		b.WriteString("\n\n| Figure |")
		for _, c := range Contenders {
			b.WriteString(" " + c.Title + " |")
		}
		b.WriteString(" Goal |\n|---|" + strings.Repeat("---|", len(Contenders)+1) + "\n")
		for _, w := range rows {
			line, there := "| "+w.title+" |", false
			var goal string
			for _, c := range Contenders {
				f, ok := r.figure(c.Name, z, w.name)
				there = there || ok
				line += " "
				if ok {
					line += w.cell(f) + " "
				}
				line += "|"
				if c.Name == Lash && ok {
					goal = w.goal(f)
				}
			}
			if there {
				b.WriteString(line + " " + goal + " |\n")
			}
		}
	}
	if m := r.Machine; m != nil {
		fmt.Fprintf(&b, "\nKernel %s, %d processors (%s), %d MB", m.Kernel, m.Processors, m.Processor, m.MemoryMB)
		for _, name := range slices.Sorted(maps.Keys(m.Versions)) {
			fmt.Fprintf(&b, "; %s: %s", name, m.Versions[name])
		}
		fmt.Fprintf(&b, ".\n\n    %s\n", m.Command)
	}
	return b.String()
}
