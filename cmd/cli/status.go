// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lash.internal/lash/cmd/kube"
	"lash.internal/lash/cmd/term"
	"lash.internal/lash/status"
)

// statusPoll is how often `status --wait` looks again. Agents cannot be watched from outside, so
// this is a poll.
const statusPoll = time.Second

type statusFlags struct {
	wait           bool
	waitDuration   time.Duration
	output         string
	verbose        bool
	ignoreWarnings bool
	interactive    bool
	workers        int
}

func newStatus(w World) *cobra.Command {
	var f statusFlags
	c := &cobra.Command{
		Use: "status", Short: "Show the state of the network", Args: cobra.NoArgs,
		Long: `Show the state of the network: its workloads and pods, what each agent says of itself, and how many
pods of the cluster it serves. Each error comes with its cause, what shows it, and what to do next.

Exit code: 0 when nothing is wrong, 1 on errors, 3 when the cluster cannot be reached, 4 when --wait ran out.`,
		Example: `  lash status
  lash status --wait
  lash status -o json | jq .errors`,
		RunE: func(c *cobra.Command, _ []string) error {
			if f.output != "summary" && f.output != "json" {
				return usageError("invalid --output %q: want summary or json", f.output)
			}
			if f.workers < 1 {
				return usageError("invalid --worker-count %d: want 1 or more", f.workers)
			}
			cl, err := w.Kube.Client()
			if err != nil {
				return err
			}
			col := &status.Collector{
				Client: cl.Clientset, Dynamic: cl.Dynamic, Exec: cl.Exec,
				Namespace: cl.Namespace, Release: cl.Release, Workers: f.workers,
			}
			return runStatus(c.Context(), w, f, col, cl.Explain)
		},
	}
	fl := c.Flags()
	fl.BoolVar(&f.wait, "wait", false, "wait until there are no errors and no warnings")
	fl.DurationVar(&f.waitDuration, "wait-duration", 5*time.Minute, "how long --wait waits")
	fl.StringVarP(&f.output, "output", "o", "summary", "summary or json")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "also what each agent says of itself")
	fl.BoolVar(&f.ignoreWarnings, "ignore-warnings", false, "--wait is content when there are no errors")
	fl.BoolVar(&f.interactive, "interactive", true, "with --wait on a terminal: show the summary while waiting")
	fl.IntVar(&f.workers, "worker-count", 5, "how many agents to ask at a time")
	return c
}

func runStatus(ctx context.Context, w World, f statusFlags, col *status.Collector, explain func(error) error) error {
	out := term.New(w.Out, w.Getenv)
	s, err := collect(ctx, col)
	if f.wait {
		s, err = waitStatus(ctx, w, f, col, s, err)
	}
	if err != nil {
		return explain(err)
	}
	timedOut := f.wait && !s.OK(!f.ignoreWarnings)
	if timedOut {
		s.Code = ExitTimeout
	}
	if f.output == "json" {
		enc := json.NewEncoder(w.Out)
		enc.SetIndent("", " ")
		enc.SetEscapeHTML(false)
		if err := enc.Encode(s); err != nil {
			return err
		}
	} else {
		writeStatus(out, s, f.verbose)
	}
	switch {
	case timedOut:
		return &ExitError{Code: ExitTimeout, Err: fmt.Errorf("%w: not all is well after %s (the last state is above)", kube.ErrTimeout, f.waitDuration)}
	case s.Code != ExitOK:
		return &ExitError{Code: s.Code, Err: errors.New("status has errors"), Quiet: true}
	}
	return nil
}

// collect looks once. An API server that does not answer counts as one that cannot be reached.
func collect(ctx context.Context, col *status.Collector) (*status.Status, error) {
	s, err := col.Collect(ctx)
	if errors.Is(err, status.ErrNoAnswer) {
		err = fmt.Errorf("%w: %w", kube.ErrUnreachable, err)
	}
	return s, err
}

// waitStatus collects until all is well or the time is up, and returns the last state.
func waitStatus(ctx context.Context, w World, f statusFlags, col *status.Collector, s *status.Status, err error) (*status.Status, error) {
	progress := term.New(w.Err, w.Getenv)
	var step *term.Step
	if f.interactive || !progress.TTY {
		step = progress.Step("Waiting for the network")
		defer func() {
			if err != nil || s == nil || !s.OK(!f.ignoreWarnings) {
				_ = step.Done(kube.ErrTimeout)
				return
			}
			_ = step.Done(nil)
		}()
	}
	limit, cancel := kube.WithTimeout(ctx, f.waitDuration)
	defer cancel()
	tick := time.NewTicker(statusPoll)
	defer tick.Stop()
	for {
		if err == nil && s.OK(!f.ignoreWarnings) {
			return s, nil
		}
		if step != nil && err == nil {
			e, n, _ := s.Count("")
			step.Detail("%d errors, %d warnings: %s", e, n, firstProblem(s))
		}
		select {
		case <-ctx.Done():
			return s, ctx.Err()
		case <-limit.Done():
			return s, err
		case <-tick.C:
		}
		// The last look is allowed to end after the limit, so that there is a state to show.
		s, err = collect(ctx, col)
	}
}

func firstProblem(s *status.Status) string {
	for _, w := range slices.Sorted(maps.Keys(s.Errors)) {
		for _, p := range slices.Sorted(maps.Keys(s.Errors[w])) {
			for _, x := range slices.Concat(s.Errors[w][p].Errors, s.Errors[w][p].Warnings) {
				return x.Message
			}
		}
	}
	if len(s.CollectionErrors) > 0 {
		return s.CollectionErrors[0]
	}
	return "-"
}

// writeStatus prints the block that users of Cilium know.
func writeStatus(t *term.Term, s *status.Status, verbose bool) {
	y, c, g, r, m, b := t.Yellow, t.Cyan, t.Green, t.Red, t.Magenta, t.Blue
	logo := []struct{ art, label, workload string }{
		{c(` /¯¯`) + y(`\__/`) + g(`¯¯\`), "Cilium:", status.Agent},
		{c(` \__`) + r(`/¯¯\`) + g(`__/`), "Operator:", status.Operator},
		{g(` /¯¯`) + r(`\__/`) + m(`¯¯\`), "Envoy DaemonSet:", status.Envoy},
		{g(` \__`) + b(`/¯¯\`) + m(`__/`), "Hubble Relay:", status.Relay},
		{b(`    \__/`), "ClusterMesh:", status.ClusterMesh},
	}
	fmt.Fprintln(t.W, t.Text(y(`    /¯¯\`)))
	for _, l := range logo {
		pad := strings.Repeat(" ", 15-term.Width(l.art))
		fmt.Fprintf(t.W, "%s%s%-20s%s\n", t.Text(l.art), pad, l.label, summaryOf(t, s, l.workload))
	}
	fmt.Fprintln(t.W)
	writeRows(t, statusRows(t, s))
	if verbose {
		writeVerbose(t, s)
	}
}

// summaryOf is the word behind a component: its errors and warnings, disabled, or OK.
func summaryOf(t *term.Term, s *status.Status, workload string) string {
	e, w, disabled := s.Count(workload)
	var words []string
	if e > 0 {
		words = append(words, t.Red(fmt.Sprintf("%d errors", e)))
	}
	if w > 0 {
		words = append(words, t.Yellow(fmt.Sprintf("%d warnings", w)))
	}
	if disabled {
		words = append(words, t.Cyan("disabled"))
	}
	if len(words) == 0 {
		return t.Green("OK")
	}
	return strings.Join(words, ", ")
}

func statusRows(t *term.Term, s *status.Status) [][]string {
	var rows [][]string
	for _, kind := range []string{"DaemonSet", "Deployment"} {
		for _, name := range slices.Sorted(maps.Keys(s.PodState)) {
			if p := s.PodState[name]; p.Type == kind {
				rows = append(rows, []string{kind, name, podStateText(t, p)})
			}
		}
	}
	rows = append(rows, containerRows(s)...)
	number := func(n int, unknown bool) string {
		if unknown {
			return "?"
		}
		return strconv.Itoa(n)
	}
	c := s.PodsCount
	managed := number(c.ByCilium, c.ByCiliumUnknown) + "/" + number(c.All, c.AllUnknown) + " managed by Cilium"
	rows = append(rows, []string{"Cluster Pods:", managed})
	rows = append(rows, []string{"Helm chart version:", s.HelmChartVersion})
	head := "Image versions"
	for _, name := range slices.Sorted(maps.Keys(s.ImageCount)) {
		for _, image := range slices.Sorted(maps.Keys(s.ImageCount[name])) {
			rows = append(rows, []string{head, name, fmt.Sprintf("%s: %d", image, s.ImageCount[name][image])})
			head = ""
		}
	}
	rows = append(rows, problemRows(t, s)...)
	head = t.Red("Collection errors:")
	for _, e := range s.CollectionErrors {
		rows = append(rows, []string{head, e})
		head = ""
	}
	head = t.Yellow("Configuration:")
	for _, e := range s.ConfigErrors {
		rows = append(rows, []string{head, e})
		head = ""
	}
	return rows
}

// podStateText leaves counts of zero out, as long as one is left.
func podStateText(t *term.Term, p status.PodState) string {
	words := []string{fmt.Sprintf("Desired: %d", p.Desired)}
	count := func(word string, n int, style func(string) string) {
		if n > 0 {
			words = append(words, style(fmt.Sprintf("%s: %d/%d", word, n, p.Desired)))
		}
	}
	plain := func(s string) string {
		return s
	}
	good := plain
	if p.Ready == p.Desired {
		good = t.Green
	}
	count("Ready", p.Ready, good)
	count("Available", p.Available, good)
	count("Unavailable", p.Unavailable, t.Red)
	return strings.Join(words, ", ")
}

// containerRows lists the phases of the pods of each workload. The optional ones that are always
// listed show that they could be there.
func containerRows(s *status.Status) [][]string {
	names := []string{status.Agent, status.Operator, status.ClusterMesh, status.Relay}
	for name := range s.PhaseCount {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var rows [][]string
	head := "Containers:"
	for _, name := range names {
		var words []string
		for _, phase := range slices.Sorted(maps.Keys(s.PhaseCount[name])) {
			words = append(words, fmt.Sprintf("%s: %d", phase, s.PhaseCount[name][phase]))
		}
		row := []string{head, name}
		if len(words) > 0 {
			row = append(row, strings.Join(words, ", "))
		}
		rows = append(rows, row)
		head = ""
	}
	return rows
}

func problemRows(t *term.Term, s *status.Status) [][]string {
	var rows [][]string
	list := func(title string, of func(status.Problems) []status.Problem) {
		for _, w := range slices.Sorted(maps.Keys(s.Errors)) {
			for _, pod := range slices.Sorted(maps.Keys(s.Errors[w])) {
				for _, p := range of(s.Errors[w][pod]) {
					rows = append(rows, []string{title, w, pod, p.Message})
					title = ""
					if p.Evidence != "" {
						rows = append(rows, []string{"", "", "", "  " + t.Faint("evidence: ") + p.Evidence})
					}
					if p.Next != "" {
						rows = append(rows, []string{"", "", "", "  " + t.Faint("next: ") + p.Next})
					}
				}
			}
		}
	}
	list(t.Red("Errors:"), func(p status.Problems) []status.Problem { return p.Errors })
	list(t.Yellow("Warnings:"), func(p status.Problems) []status.Problem { return p.Warnings })
	return rows
}

// writeRows aligns rows as elastic tab stops do: a column is as wide as the widest cell of the
// adjoining rows that have a further cell behind it, plus four spaces.
func writeRows(t *term.Term, rows [][]string) {
	width := func(i, col int) int {
		w := 0
		for _, step := range []int{-1, 1} {
			for j := i; j >= 0 && j < len(rows) && len(rows[j]) > col+1; j += step {
				w = max(w, term.Width(t.Text(rows[j][col])))
			}
		}
		return w + 4
	}
	for i, row := range rows {
		var b strings.Builder
		for col, cell := range row {
			cell = t.Text(cell)
			b.WriteString(cell)
			if col < len(row)-1 {
				b.WriteString(strings.Repeat(" ", width(i, col)-term.Width(cell)))
			}
		}
		fmt.Fprintln(t.W, strings.TrimRight(b.String(), " "))
	}
}
