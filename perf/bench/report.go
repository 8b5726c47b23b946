// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/stats"
)

// level is the confidence of the intervals.
const level = 0.95

// Report writes BENCHMARKS.md from records. results is the name of the file that they are in.
func Report(records []Record, results string) (string, error) {
	if len(records) == 0 || records[0].Machine == nil {
		return "", errors.New("the records do not begin with the machine")
	}
	r := &report{m: records[0].Machine, when: records[0].Time.Format("2 January 2006")}
	for _, rec := range records {
		switch {
		case rec.Sample != nil:
			r.samples = append(r.samples, *rec.Sample)
		case rec.CNI != nil:
			r.cni = append(r.cni, *rec.CNI)
		case rec.Figure != nil:
			r.figures = append(r.figures, *rec.Figure)
		case rec.Skipped != nil:
			r.skipped = append(r.skipped, *rec.Skipped)
		}
	}
	r.head(results)
	for _, g := range Groups {
		if g.Tool == nil {
			r.group(g)
		}
	}
	r.plugins()
	r.single()
	for _, g := range Groups {
		if g.Tool != nil {
			r.group(g)
		}
	}
	r.missing()
	r.machine()
	return r.b.String(), nil
}

type report struct {
	b       strings.Builder
	m       *Machine
	when    string
	samples []Sample
	cni     []CNISample
	figures []Figure
	skipped []Skipped
}

func (r *report) line(format string, args ...any) { fmt.Fprintf(&r.b, format+"\n", args...) }

func (r *report) table(head []string, rows [][]string) {
	r.line("| %s |", strings.Join(head, " | "))
	r.line("|%s", strings.Repeat("---|", len(head)))
	for _, row := range rows {
		r.line("| %s |", strings.Join(row, " | "))
	}
	r.line("")
}

func (r *report) head(results string) {
	r.line("# Benchmarks\n")
	r.line("Made on %s by `%s`; every sample is in `%s`. Do not edit: `make bench` writes this file.\n", r.when, r.m.Command, results)
	r.line("Lash is a real cluster of two nodes on one machine, its clients and servers are pods. Beside it, on the same")
	r.line("machine and in the same rounds, run bare paths: the same namespaces, links and processes without a network")
	r.line("plugin. In each round every path is measured once, forwards and backwards by turns (A B, B A, ...), %d s each;", r.m.Seconds)
	r.line("a ratio compares samples of the same round. **Ratios above 1 are in Lash's favour.** A figure is the median of")
	r.line("the rounds; brackets hold a confidence interval of the median from order statistics, %.0f %% or more, that assumes", 100*level)
	r.line("no distribution. The tests are netperf's, spoken by a program of our own: TCP_RR sends one byte and waits for")
	r.line("one, TCP_CRR opens a connection for that, TCP_STREAM sends all that it can. Latencies are exact percentiles of")
	r.line("all transactions; RT_LATENCY is netperf's, the time of the test by its transactions. The client is bound to")
	r.line("processor %d and the server to processor %d. Bare clients and servers run in the control groups of the pods, so", r.m.ClientCPU, r.m.ServerCPU)
	r.line("that scheduling costs the same.\n")
	r.line("Read only ratios: with client, server and both nodes on one machine absolute figures say little about a network")
	r.line("between machines. A goal is met when the whole interval is on its side, missed when none of it is, else open.\n")
}

// round is the samples of one round by path.
type round map[string]Sample

// roundsOf gives the rounds that count: undisturbed ones if there are enough, else all.
func (r *report) roundsOf(group string, test netperf.Test, paths int) (use []round, disturbed int, all bool) {
	byNumber := map[int]round{}
	for _, s := range r.samples {
		if s.Group != group || s.Test != test || s.Error != "" {
			continue
		}
		if byNumber[s.Round] == nil {
			byNumber[s.Round] = round{}
		}
		byNumber[s.Round][s.Path] = s
	}
	var clean, every []round
	for _, n := range slices.Sorted(maps.Keys(byNumber)) {
		one := byNumber[n]
		if len(one) != paths {
			continue // cut short, or a sample failed
		}
		every = append(every, one)
		bad := false
		for _, s := range one {
			bad = bad || s.Disturbed
		}
		if !bad {
			clean = append(clean, one)
		}
	}
	if len(clean) >= r.m.Rounds {
		return clean, len(every) - len(clean), false
	}
	return every, len(every) - len(clean), true
}

// values takes one number out of each round.
func values(rounds []round, path string, f func(*netperf.Result) float64) []float64 {
	var out []float64
	for _, one := range rounds {
		s := one[path]
		out = append(out, f(&s.Result))
	}
	return out
}

func rate(x *netperf.Result) float64 {
	if x.Test.Transactions() {
		return x.Rate
	}
	return x.Throughput
}

func percentile(f func(*stats.Summary) float64) func(*netperf.Result) float64 {
	return func(x *netperf.Result) float64 {
		if x.Latency == nil {
			return 0
		}
		return f(x.Latency)
	}
}

var (
	p50 = percentile(func(s *stats.Summary) float64 { return s.P50 })
	p99 = percentile(func(s *stats.Summary) float64 { return s.P99 })
)

func (r *report) group(g Group) {
	var tests []netperf.Test
	for _, t := range netperf.Tests {
		if slices.ContainsFunc(r.samples, func(s Sample) bool { return s.Group == g.Name && s.Test == t }) {
			tests = append(tests, t)
		}
	}
	slices.SortStableFunc(tests, func(a, b netperf.Test) int {
		return cmp.Compare(slices.Index(DefaultTests, a), slices.Index(DefaultTests, b))
	})
	if len(tests) == 0 {
		return
	}
	r.line("## %s\n", g.Title)
	if g.Tool != nil {
		r.line("The same path, measured by each pair of our programs and the real ones. Ratios are to the last row: of netperf's")
		r.line("RT_LATENCY, or of the rate of a one-way test, and of the processor time that the client takes for a transaction,")
		r.line("or for 1024 bytes. Goals: a ratio of %.2f to %.2f, and at most %.2f of the processor time. The processors are kept from", toolLow, toolHigh, toolTime)
		r.line("sleeping (`%s`): how deep they sleep, and how often something wakes them, is not a matter of the path.\n", latencyFile)
	}
	for _, t := range tests {
		if g.Tool != nil {
			r.tool(g, t)
		} else {
			r.test(g, t)
		}
	}
}

// Goals of the measuring program beside netperf.
const (
	toolLow, toolHigh = 0.97, 1.03
	toolTime          = 1.03
)

// tool is the table of the pairs of programs.
func (r *report) tool(g Group, t netperf.Test) {
	rounds, disturbed, all := r.roundsOf(g.Name, t, len(pairs))
	if len(rounds) == 0 {
		return
	}
	r.line("### %s\n", t)
	value := func(x *netperf.Result) float64 { return x.RTLatency }
	head := []string{"Client, server", "P50 us", "P99 us", "RT_LATENCY us", "Ratio", "Goal", "Client us", "Ratio", "Goal"}
	if !t.Transactions() {
		value = rate
		head = append([]string{head[0], "Mbit/s"}, head[4:]...)
	}
	demand := func(x *netperf.Result) float64 { return x.ProcessDemand }
	last := pairs[len(pairs)-1].name
	var rows [][]string
	for _, p := range pairs {
		mid := func(f func(*netperf.Result) float64) float64 { return stats.Median(values(rounds, p.name, f)) }
		row := []string{p.title}
		if t.Transactions() {
			row = append(row, fmt.Sprintf("%.1f", mid(p50)), fmt.Sprintf("%.1f", mid(p99)))
		}
		row = append(row, fmt.Sprintf("%.1f", mid(value)))
		of := func(f func(*netperf.Result) float64) stats.Estimate {
			return stats.EstimateMedian(stats.Ratios(values(rounds, p.name, f), values(rounds, last, f)), level)
		}
		if p.name == last {
			rows = append(rows, append(row, "", "", fmt.Sprintf("%.2f", mid(demand)), "", ""))
			continue
		}
		byValue, byTime := of(value), of(demand)
		row = append(row, interval(byValue), within(byValue, toolLow, toolHigh), fmt.Sprintf("%.2f", mid(demand)), interval(byTime))
		if p.client {
			rows = append(rows, append(row, ""))
			continue
		}
		rows = append(rows, append(row, within(byTime, 0, toolTime)))
	}
	r.table(head, rows)
	r.footer(g.Name, t, rounds, disturbed, all)
}

func (r *report) test(g Group, t netperf.Test) {
	rounds, disturbed, all := r.roundsOf(g.Name, t, 1+len(g.Bare))
	if len(rounds) == 0 {
		return
	}
	r.line("### %s\n", t)
	const by = "Lash by this"
	head := []string{"Path", "P50 us", "P99 us", "RT_LATENCY us", "per second", by + ", rate", by + ", P50", "Goal (rate)"}
	if !t.Transactions() {
		head = []string{"Path", "Mbit/s", by, "Goal"}
	}
	row := func(title, path string, goals map[netperf.Test]float64) []string {
		mid := func(f func(*netperf.Result) float64) float64 { return stats.Median(values(rounds, path, f)) }
		out := []string{title}
		if t.Transactions() {
			out = append(out, fmt.Sprintf("%.1f", mid(p50)), fmt.Sprintf("%.1f", mid(p99)),
				fmt.Sprintf("%.1f", mid(func(x *netperf.Result) float64 { return x.RTLatency })))
		}
		out = append(out, fmt.Sprintf("%.0f", mid(rate)))
		if path == LashPath {
			return append(out, slices.Repeat([]string{""}, len(head)-len(out))...)
		}
		byRate := stats.EstimateMedian(stats.Ratios(values(rounds, LashPath, rate), values(rounds, path, rate)), level)
		out = append(out, interval(byRate))
		if t.Transactions() {
			out = append(out, interval(stats.EstimateMedian(stats.Ratios(values(rounds, path, p50), values(rounds, LashPath, p50)), level)))
		}
		return append(out, goal(byRate, goals[t]))
	}
	rows := [][]string{row("**Lash**", LashPath, nil)}
	for _, b := range g.Bare {
		rows = append(rows, row(b.Title, b.Name, b.Goals))
	}
	r.table(head, rows)
	r.footer(g.Name, t, rounds, disturbed, all)
}

// footer tells of the rounds behind a table.
func (r *report) footer(group string, t netperf.Test, rounds []round, disturbed int, all bool) {
	if failed := r.failures(group, t); failed != "" {
		r.line("Samples that failed, with their rounds left out: %s.\n", failed)
	}
	switch {
	case disturbed == 0:
		r.line("%d rounds, none disturbed.%s\n", len(rounds), r.trouble(rounds))
	case all:
		r.line("%d rounds, %d of them disturbed and counted nevertheless, because there are not %d others.%s\n", len(rounds), disturbed, r.m.Rounds, r.trouble(rounds))
	default:
		r.line("%d rounds; %d more were disturbed and left out.%s\n", len(rounds), disturbed, r.trouble(rounds))
	}
}

// failures counts the samples without a result by path.
func (r *report) failures(group string, test netperf.Test) string {
	n := map[string]int{}
	for _, s := range r.samples {
		if s.Group == group && s.Test == test && s.Error != "" {
			n[s.Path]++
		}
	}
	var parts []string
	for _, path := range slices.Sorted(maps.Keys(n)) {
		parts = append(parts, fmt.Sprintf("%s %d", path, n[path]))
	}
	return strings.Join(parts, ", ")
}

// trouble names the counters that moved, which none should.
func (r *report) trouble(rounds []round) string {
	sum := map[string]int64{}
	for _, one := range rounds {
		for path, s := range one {
			for name, n := range s.Result.Counters {
				sum[path+" "+name] += n
			}
		}
	}
	if len(sum) == 0 {
		return ""
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(sum)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, sum[k]))
	}
	return " Counters that moved: " + strings.Join(parts, ", ") + "."
}

func interval(e stats.Estimate) string {
	if e.N < 2 {
		return fmt.Sprintf("%.3f", e.Median)
	}
	out := fmt.Sprintf("%.3f [%.3f, %.3f]", e.Median, e.Low, e.High)
	if e.Level < level {
		out += fmt.Sprintf(" at %.0f %%", 100*e.Level)
	}
	return out
}

// goal compares an interval with the least value that is aimed for.
func goal(e stats.Estimate, least float64) string {
	if least == 0 {
		return ""
	}
	verdict := "open"
	switch {
	case e.Level < level:
	case e.Low >= least:
		verdict = "met"
	case e.High < least:
		verdict = "missed"
	}
	return fmt.Sprintf("%.2f: %s", least, verdict)
}

// within compares an interval with a range that is aimed for.
func within(e stats.Estimate, low, high float64) string {
	switch {
	case e.Level < level:
		return "open"
	case e.Low >= low && e.High <= high:
		return "met"
	case e.High < low || e.Low > high:
		return "missed"
	}
	return "open"
}

// cniGoal is how many times faster than the reference plugin an ADD is to be.
const cniGoal = 2

func (r *report) plugins() {
	if len(r.cni) == 0 {
		return
	}
	r.line("## CNI ADD and DEL\n")
	r.line("From the start of the plugin to its end, on a node, beside the reference plugin `ptp` with `host-local`, %d calls one", serialCalls)
	r.line("after the other and %d at once, in rounds as above. Lash's ADD ends when identity, programs and maps are in place.\n", burstCalls)
	ms := func(ns float64) string { return fmt.Sprintf("%.1f", ns/1e6) }
	pick := func(plugin string, atOnce bool, f func(CNITimes) float64) []float64 {
		var out []float64
		for _, s := range r.cni {
			if s.Plugin == plugin && s.AtOnce == atOnce {
				out = append(out, f(s.Times))
			}
		}
		return out
	}
	of := func(get func(CNITimes) []int64, p float64) func(CNITimes) float64 {
		return func(t CNITimes) float64 { return float64(stats.Percentile(slices.Sorted(slices.Values(get(t))), p)) }
	}
	add := func(t CNITimes) []int64 { return t.Add }
	del := func(t CNITimes) []int64 { return t.Del }
	var rows [][]string
	for _, c := range []struct {
		what   string
		atOnce bool
		f      func(CNITimes) float64
		goal   float64
	}{
		{"ADD one by one, P50", false, of(add, 50), cniGoal},
		{"ADD one by one, P99", false, of(add, 99), 0},
		{fmt.Sprintf("ADD %d at once, P50", burstCalls), true, of(add, 50), 0},
		{fmt.Sprintf("ADD %d at once, P99", burstCalls), true, of(add, 99), 0},
		{fmt.Sprintf("ADD %d at once, until the last", burstCalls), true, func(t CNITimes) float64 { return float64(t.AddWall) }, cniGoal},
		{"DEL one by one, P50", false, of(del, 50), 0},
		{fmt.Sprintf("DEL %d at once, until the last", burstCalls), true, func(t CNITimes) float64 { return float64(t.DelWall) }, 0},
	} {
		ours, ptp := pick(lashPlugin, c.atOnce, c.f), pick(ptpPlugin, c.atOnce, c.f)
		e := stats.EstimateMedian(stats.Ratios(ptp, ours), level)
		rows = append(rows, []string{c.what, ms(stats.Median(ours)), ms(stats.Median(ptp)), interval(e), goal(e, c.goal)})
	}
	r.table([]string{"Call", "Lash ms", "ptp ms", "ptp by Lash", "Goal"}, rows)
}

func (r *report) single() {
	if len(r.figures) == 0 {
		return
	}
	r.line("## Agent and programs\n")
	r.line("Measured alone; of several values the median, with the smallest and the largest. 1 MB is 10^6 bytes.\n")
	var rows [][]string
	for _, f := range r.figures {
		v := stats.Median(f.Values)
		text := fmt.Sprintf("%.3g %s", v, f.Unit)
		if len(f.Values) > 1 {
			text += fmt.Sprintf(" (%.3g to %.3g, %d values)", slices.Min(f.Values), slices.Max(f.Values), len(f.Values))
		}
		verdict := ""
		if f.Goal > 0 {
			verdict = fmt.Sprintf("at most %g: met", f.Goal)
			if v > f.Goal {
				verdict = fmt.Sprintf("at most %g: missed", f.Goal)
			}
		}
		rows = append(rows, []string{f.Name, text, verdict, f.Note})
	}
	r.table([]string{"Figure", "Value", "Goal", "Note"}, rows)
}

func (r *report) missing() {
	if len(r.skipped) == 0 {
		return
	}
	r.line("## Not measured\n")
	for _, s := range r.skipped {
		r.line("- %s: %s", s.What, strings.Join(strings.Fields(s.Why), " "))
	}
	r.line("")
}

func (r *report) machine() {
	r.line("## Machine\n")
	family := "IPv4"
	if r.m.IPv6 {
		family = "IPv6"
	}
	rows := [][]string{
		{"Kernel", r.m.Kernel},
		{"Processors", fmt.Sprintf("%d, %s", r.m.Processors, r.m.Processor)},
		{"Memory", fmt.Sprintf("%d MB", r.m.MemoryMB)},
		{"Clock source", r.m.Clock},
		{"Load before the run", fmt.Sprintf("%.2f", r.m.Load)},
		{"Family", family},
		{"Congestion control of TCP_STREAM", r.m.Congestion},
		{"Disturbed", fmt.Sprintf("a sample with more than %.0f %% processor pressure right before or after it, or with %.0f %% stolen time", 100*MaxPressure, 100*MaxSteal)},
	}
	for _, k := range slices.Sorted(maps.Keys(r.m.Versions)) {
		rows = append(rows, []string{k, r.m.Versions[k]})
	}
	r.table([]string{"", ""}, rows)
	r.b.WriteString("## Make it again\n\n    make bench                          # all of it\n" +
		"    make bench ROUNDS=3 DURATION=1s     # a quick look\n    make bench PATHS=same-node FAMILY=ipv6\n" +
		"    make bench PATHS=tool-loopback,tool-veth BENCH='--netperf FOLDER'\n")
}
