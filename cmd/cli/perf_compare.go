// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lash.internal/lash/cmd/term"
	"lash.internal/lash/perf/report"
)

// errWorse ends a comparison that found something worse than the limit.
var errWorse = errors.New("worse than --fail-if-worse allows")

func newPerfCompare(w World) *cobra.Command {
	var limit, output, clusterA, clusterB string
	c := &cobra.Command{
		Use: "compare A.json B.json", Short: "Say what differs between two reports, and whether that is more than noise", Args: cobra.ExactArgs(2),
		Long: `Set each metric of the second report beside the first: the ratio of B to A, its 95 percent interval, and
a verdict.

  better, worse    the interval leaves 1 out
  no difference    the interval is within --fail-if-worse (5 % when it is not given) of 1
  too noisy        neither: too few samples, too much spread, or a machine that was busy with other things

The interval is Hodges and Lehmann's, by Mann and Whitney's test: it assumes no distribution, and needs 4
samples on each side. Reports with several clusters are narrowed by --cluster-a and --cluster-b, so that
one file can be compared with itself.

Exit code: 1 when a metric is worse by more than --fail-if-worse, else 0.`,
		Example: `  lash perf compare before.json after.json --fail-if-worse 5%
  lash perf compare ladder.json ladder.json --cluster-a lash-iptables --cluster-b lash-dev`,
	}
	c.RunE = func(_ *cobra.Command, args []string) error {
		share, err := parsePercent(limit)
		if err != nil {
			return err
		}
		if output != "table" && output != "json" {
			return usageError("invalid --output %q: want table or json", output)
		}
		a, err := readReport(args[0], clusterA)
		if err != nil {
			return err
		}
		b, err := readReport(args[1], clusterB)
		if err != nil {
			return err
		}
		cmp, err := report.Compare(a, b, share)
		if err != nil {
			return err
		}
		if output == "json" {
			enc := json.NewEncoder(w.Out)
			enc.SetIndent("", "  ")
			err = enc.Encode(cmp)
		} else {
			writeComparison(term.New(w.Out, w.Getenv), cmp)
		}
		if err == nil && cmp.Failed > 0 {
			return &ExitError{Code: ExitFailed, Err: fmt.Errorf("%d metrics are %w (%s)", cmp.Failed, errWorse, limit)}
		}
		return err
	}
	f := c.Flags()
	f.StringVar(&limit, "fail-if-worse", "", "exit with 1 when a metric is worse by more than this, such as 5%")
	f.StringVar(&clusterA, "cluster-a", "", "only this cluster of the first report")
	f.StringVar(&clusterB, "cluster-b", "", "only this cluster of the second report")
	f.StringVarP(&output, "output", "o", "table", "table or json")
	return c
}

// parsePercent reads "5%" or "5" as a share; nothing is 0.
func parsePercent(text string) (float64, error) {
	if text == "" {
		return 0, nil
	}
	v, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(text), "%"), 64)
	if err != nil || !(v > 0 && v <= 1000) {
		return 0, usageError("invalid --fail-if-worse %q: want a percentage above 0, such as 5%%", text)
	}
	return v / 100, nil
}

func readReport(path, cluster string) (*report.Report, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := report.Read(f)
	if err == nil && cluster != "" {
		r, err = r.Only(cluster)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

func writeComparison(t *term.Term, c *report.Comparison) {
	style := map[report.Verdict]func(string) string{
		report.Better: t.Green, report.Worse: t.Red, report.Unsure: t.Yellow, report.Same: func(s string) string { return s },
	}
	t.Println("A: %s", c.A)
	t.Println("B: %s", c.B)
	var rows [][]string
	var why []string
	for _, x := range c.Changes {
		verdict := string(x.Verdict)
		if x.Failed {
			verdict += " (fails)"
		}
		rows = append(rows, []string{
			x.Series, x.Metric, figure(x.A) + " " + x.Unit, figure(x.B) + " " + x.Unit, fmt.Sprintf("%.3f", x.Ratio.Ratio),
			fmt.Sprintf("%.3f to %.3f", x.Ratio.Low, x.Ratio.High), style[x.Verdict](verdict),
		})
		if note := x.Series + ": " + x.Why; x.Why != "" && (len(why) == 0 || why[len(why)-1] != note) {
			why = append(why, note)
		}
	}
	t.Table([]string{"Series", "Metric", "A", "B", "B/A", "95 % interval", "Verdict"}, rows)
	for _, line := range why {
		t.Println("%s", t.Faint("too noisy: "+line))
	}
	for _, s := range c.OnlyA {
		t.Println("only in A: %s", s)
	}
	for _, s := range c.OnlyB {
		t.Println("only in B: %s", s)
	}
}

// figure is a number with three to four digits that matter.
func figure(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
