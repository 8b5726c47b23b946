// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/cmd/kube"
	"lash.internal/lash/cmd/term"
	"lash.internal/lash/status/sysdump"
)

// sysdumpTime is the form of <ts> in the name of a sysdump.
const sysdumpTime = "20060102-150405"

type sysdumpFlags struct {
	sysdump.Options
	output   string
	maxSize  string
	logBytes string
}

func newSysdump(w World) *cobra.Command {
	var f sysdumpFlags
	c := &cobra.Command{
		Use:   "sysdump",
		Short: "Collect what is needed to find out what is wrong, in one zip file",
		Long: `Collect objects, logs, what each agent says and what each node's kernel holds in one zip file. It stays within a
time and a size: what matters most comes first, nodes with something wrong before those that are well, and what there
was no time or no room for is listed in summary.txt, as is what could not be collected.

Secrets are taken out: the data of Secrets, tokens, keys and passwords wherever they stand, environment variables of
pods of others; of Helm's releases only the values are there. Addresses, names and labels stay.`,
		Example: `  lash sysdump
  lash sysdump --quick --max-time 30s
  lash sysdump --node-list worker-3,worker-7 --max-size 100Mi`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return runSysdump(c.Context(), w, &f) },
	}
	fl := c.Flags()
	fl.StringVar(&f.output, "output-filename", "cilium-sysdump-<ts>", "name of the file without .zip; <ts> becomes the time")
	fl.DurationVar(&f.MaxTime, "max-time", 2*time.Minute, "longest time to collect")
	fl.StringVar(&f.maxSize, "max-size", "20Mi", "largest size of the file")
	fl.BoolVar(&f.Quick, "quick", false, "leave out what is large: entries of maps, and objects of others")
	fl.StringSliceVar(&f.Nodes, "node-list", nil, "only these nodes")
	fl.IntVar(&f.Workers, "worker-count", 20, "how many things to collect at a time")
	fl.DurationVar(&f.LogsSince, "logs-since-time", 8760*time.Hour, "how far back logs go")
	fl.Int64Var(&f.LogLines, "logs-max-lines", 10000, "most lines of one log, the last ones; 0 for all")
	fl.StringVar(&f.logBytes, "logs-limit-bytes", "4Mi", "most bytes of one log")
	fl.StringSliceVar(&f.Selectors, "extra-label-selectors", nil, "labels of pods of others whose logs to take, too")
	for _, u := range []struct{ name, off, why string }{
		{"hubble-flows-count", "0", "there is no Hubble"},
		{"hubble-flows-timeout", "", "there is no Hubble"},
		{"cilium-bugtool-flags", "", "the agents are asked directly"},
		{"cilium-namespace", "kube-system", "use --namespace"},
	} {
		fl.VarPF(&refused{off: u.off, why: u.why}, u.name, "", u.why).Hidden = true
	}
	return c
}

// complete checks the flags and fills in the options.
func (f *sysdumpFlags) complete(now time.Time) error {
	size := func(flag, text string) (int64, error) {
		q, err := resource.ParseQuantity(text)
		if err != nil || q.Value() <= 0 {
			return 0, usageError("invalid --%s %q: want a size such as 20Mi", flag, text)
		}
		return q.Value(), nil
	}
	var err error
	if f.MaxSize, err = size("max-size", f.maxSize); err != nil {
		return err
	}
	if f.MaxSize < 16<<10 {
		return usageError("invalid --max-size %q: want at least 16Ki", f.maxSize)
	}
	if f.LogBytes, err = size("logs-limit-bytes", f.logBytes); err != nil {
		return err
	}
	switch {
	case f.MaxTime < 2*time.Second:
		return usageError("invalid --max-time %s: want at least 2s", f.MaxTime)
	case f.Workers < 1:
		return usageError("invalid --worker-count %d: want 1 or more", f.Workers)
	}
	for _, s := range f.Selectors {
		if _, err := labels.Parse(s); err != nil {
			return usageError("invalid --extra-label-selectors: %w", err)
		}
	}
	f.output = strings.ReplaceAll(f.output, "<ts>", now.Format(sysdumpTime))
	if !strings.HasSuffix(f.output, ".zip") {
		f.output += ".zip"
	}
	return nil
}

func runSysdump(ctx context.Context, w World, f *sysdumpFlags) error {
	if err := f.complete(time.Now()); err != nil {
		return err
	}
	client, err := w.Kube.Client()
	if err != nil {
		return err
	}
	if _, err := client.Check(ctx); err != nil {
		return err
	}
	return takeSysdump(ctx, w, f, client)
}

func takeSysdump(ctx context.Context, w World, f *sysdumpFlags, client *kube.Client) error {
	progress := term.New(w.Err, w.Getenv)
	o := f.Options
	o.Client, o.Dynamic, o.Exec = client.Clientset, client.Dynamic, client.Exec
	o.Context, o.Namespace, o.Release, o.Version = client.Context, client.Namespace, client.Release, api.Version
	// Half a file has another name, so that nobody takes it for a whole one.
	file, err := os.CreateTemp(filepath.Dir(f.output), filepath.Base(f.output)+".part-*")
	if err != nil {
		return fmt.Errorf("sysdump: %w", err)
	}
	defer os.Remove(file.Name())
	defer file.Close()
	step := progress.Step("Collecting into %s", f.output)
	o.Say = func(done, all int, name string) { step.Detail("%d of %d: %s", done, all, name) }
	r, err := sysdump.Run(ctx, file, o)
	if err == nil {
		err = errors.Join(file.Close(), os.Rename(file.Name(), f.output))
	}
	if step.Done(err) != nil {
		return fmt.Errorf("sysdump: %w", err)
	}
	printSysdump(progress, r)
	fmt.Fprintln(w.Out, f.output)
	return ctx.Err()
}

func printSysdump(t *term.Term, r *sysdump.Result) {
	for _, n := range r.Nodes {
		if n.Sick != "" {
			t.Println("⚠️  Node %s: %s", n.Name, n.Sick)
		}
	}
	some := func(what string, all []sysdump.Missing) {
		const shown = 5
		for i, m := range all {
			if i == shown {
				t.Println("⚠️  %s: %d more, see summary.txt", what, len(all)-shown)
				return
			}
			t.Println("⚠️  %s: %s: %s", what, m.File, firstLine(m.Why))
		}
	}
	some("Not collected", r.Failed)
	some("Left out", r.Skipped)
	var words []string
	for _, k := range slices.Sorted(maps.Keys(r.Redacted)) {
		words = append(words, fmt.Sprintf("%s %d", k, r.Redacted[k]))
	}
	if len(words) == 0 {
		words = []string{"nothing"}
	}
	t.Println("ℹ️  Redacted: %s", strings.Join(words, ", "))
	t.Println("✅ %d files, %s; look at it before you give it away", r.Files, sizeText(r.Size))
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
