// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"lash.internal/lash/cmd/kube"
	cliterm "lash.internal/lash/cmd/term"
	"lash.internal/lash/install"
)

// applyFlags are those of every command that makes a new revision of the release.
type applyFlags struct {
	restart, dryRun, wait, yes bool
	waitDuration               time.Duration
	historyMax                 int
}

func (f *applyFlags) bind(fs *pflag.FlagSet) {
	fs.BoolVarP(&f.yes, "yes", "y", false, "Do not ask")
	fs.BoolVarP(&f.restart, "restart", "r", false, "Delete the pods of agents and operator so that they read the configuration again")
	fs.BoolVar(&f.dryRun, "dry-run", false, "Show what changes, print the manifests and apply nothing")
	fs.BoolVar(&f.wait, "wait", false, "Wait until the agents and the operator are ready")
	fs.DurationVar(&f.waitDuration, "wait-duration", 5*time.Minute, "How long --wait waits")
	fs.DurationVar(&f.waitDuration, "timeout", 5*time.Minute, "")
	_ = fs.MarkHidden("timeout") // helm's name for it; the flag exists, so this cannot fail
	fs.IntVar(&f.historyMax, "history-max", 10, "Revisions of the release that Helm keeps, 0 for all")
}

type upgradeFlags struct {
	applyFlags
	values                   valueFlags
	version, chartDir        string
	datapathMode             string
	without, listVersions    bool
	reset, reuse, resetReuse bool
	dryRunValues             bool
}

func newUpgrade(w World) *cobra.Command {
	var f upgradeFlags
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Upgrade the network or change its values",
		Long: `Upgrade applies the built-in chart to an existing release of Lash. It shows first which values change and
which objects, and asks. Every value that was given before stays unless a new one replaces it; KEY=null takes one
away. lash rollback undoes it.`,
		Example: `  # What would this version change?
  lash upgrade --dry-run >/dev/null

  # Change a value and wait until the agents run with it
  lash upgrade --set debug.enabled=true --restart --wait --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runUpgrade(cmd.Context(), w, &f) },
	}
	fs := cmd.Flags()
	f.values.bind(fs)
	f.bind(fs)
	fs.StringVar(&f.version, "version", "", "Version to upgrade to, or a Cilium version 1.15.x or 1.16.x to report as compatibility level")
	fs.BoolVar(&f.listVersions, "list-versions", false, "List what --version takes and do nothing else")
	fs.StringVar(&f.chartDir, "chart-directory", "", "Folder with a chart to use instead of the built-in one (see lash chart export)")
	fs.StringVar(&f.datapathMode, "datapath-mode", "", "How packets reach other nodes: tunnel or native")
	fs.BoolVar(&f.without, "nodes-without-cilium", false, "Leave out nodes with the label "+install.NoScheduleLabel+"=true")
	fs.BoolVar(&f.resetReuse, "reset-then-reuse-values", true, "Take the chart's defaults and the values that were given before")
	fs.BoolVar(&f.reset, "reset-values", false, "Forget the values that were given before")
	fs.BoolVar(&f.reuse, "reuse-values", false, "Take every value from the release, also defaults of its chart")
	fs.BoolVar(&f.dryRunValues, "dry-run-helm-values", false, "Print the Helm values that differ from the chart's defaults and apply nothing")
	cmd.MarkFlagsMutuallyExclusive("reset-values", "reuse-values", "reset-then-reuse-values")
	return cmd
}

func (f *upgradeFlags) mode() install.Reuse {
	switch {
	case f.reset:
		return install.Reset
	case f.reuse:
		return install.ReuseAll
	}
	return install.ResetThenReuse
}

func runUpgrade(ctx context.Context, w World, f *upgradeFlags) error {
	out, progress := cliterm.New(w.Out, w.Getenv), cliterm.New(w.Err, w.Getenv)
	if f.listVersions {
		listVersions(out)
		return nil
	}
	user, err := f.values.all().Merge()
	if err != nil {
		return &ExitError{Code: ExitUsage, Err: err}
	}
	opts := install.Options{
		Version: f.version, ChartDir: f.chartDir, Values: user, HistoryMax: f.historyMax, Say: progress.Println,
		DatapathMode: f.datapathMode, NodesWithoutNetwork: f.without,
	}
	if err := opts.Validate(); err != nil { // before anybody is asked
		return optionError(err)
	}
	client, err := w.Kube.Client()
	if err != nil {
		return err
	}
	if _, err := client.Check(ctx); err != nil {
		return err
	}
	opts.ImageOnNode = imageOnLocalNode(client)
	change, err := install.Upgrade(ctx, clusterOf(client), opts, f.mode())
	if err != nil {
		return optionError(err)
	}
	if f.dryRunValues {
		text, err := install.YAML(change.Values)
		fmt.Fprint(w.Out, text)
		return err
	}
	return applyChange(ctx, w, progress, client, change, &f.applyFlags, "Upgrade", "upgraded")
}

// applyChange shows a change, asks, applies it, and restarts and waits where that is wanted. verb
// is the question's, done the word for what has happened.
func applyChange(ctx context.Context, w World, t *cliterm.Term, client *kube.Client, change *install.Change, f *applyFlags, verb, done string) error {
	printChange(t, client, change, f.restart)
	if f.dryRun {
		fmt.Fprint(w.Out, change.Manifest)
		return nil
	}
	if err := blocked(change.Findings); err != nil {
		return err
	}
	if !change.Empty() {
		if err := confirm(w, f.yes, fmt.Sprintf("%s release %s in context %q?", verb, client.Release, client.Context)); err != nil {
			return err
		}
		rel, err := change.Apply(ctx)
		if err != nil {
			return err
		}
		t.Println("✅ Cilium was successfully %s to revision %d", done, rel.Version)
	}
	var old map[types.UID]bool
	if f.restart {
		var err error
		if old, err = restartPods(ctx, client); err != nil {
			return err
		}
		t.Println("♻️  Restarted Cilium pods")
	}
	if !f.wait {
		return nil
	}
	return waitInstalled(ctx, t, client, f.waitDuration, old)
}

// printChange shows what a change does, the values first.
func printChange(t *cliterm.Term, client *kube.Client, ch *install.Change, restart bool) {
	from, to := ch.Charts()
	chart := from
	if from != to {
		chart = from + " → " + to
	}
	t.Println("ℹ️  Release %s in namespace %s of context %q: revision %d, chart %s", client.Release, client.Namespace, client.Context, ch.From.Version, chart)
	if ch.To != nil {
		t.Println("ℹ️  Going back to revision %d of %s", ch.To.Version, ch.To.Info.LastDeployed.UTC().Format(time.RFC3339))
	}
	if ch.Empty() {
		t.Println("ℹ️  Nothing changes: values, objects and configuration are like this already")
		return
	}
	if len(ch.Diff) > 0 {
		rows := make([][]string, 0, len(ch.Diff))
		for _, d := range ch.Diff {
			rows = append(rows, []string{"  " + d.Path, short(d.Before), short(d.After), string(d.Why)})
		}
		t.Table([]string{"  VALUE", "NOW", "THEN", "WHY"}, rows)
	} else {
		t.Println("ℹ️  No value changes")
	}
	if n := len(ch.Kept); n > 0 {
		t.Println("ℹ️  Kept values of yours: %s", strings.Join(ch.Kept, ", "))
	}
	if len(ch.Objects) > 0 {
		var words []string
		for _, o := range ch.Objects {
			words = append(words, fmt.Sprintf("%s %s %s", o.What, o.Kind, o.Name))
		}
		t.Println("ℹ️  Objects: %s", strings.Join(words, ", "))
	}
	for _, d := range ch.Drift {
		if d.Stays {
			t.Println("ℹ️  Option %s=%s was added to ConfigMap %s by hand and stays", d.Key, d.Live, install.ConfigMap)
			continue
		}
		t.Println("⚠️  Option %s was changed by hand: %s becomes %s; to keep it: --set-literal 'extraConfig.%s=%s'", d.Key, d.Live, d.Next, d.Key, d.Live)
	}
	switch {
	case ch.AgentsRoll:
		t.Println("ℹ️  The agents are replaced, a few nodes at a time; programs in the kernel go on meanwhile")
	case ch.ConfigChanges && !restart:
		t.Println("ℹ️  Agents and operator read the new options when they start: add --restart")
	}
	printFindings(t, ch.Findings)
}

// short cuts a long value for a table.
func short(s string) string {
	const most = 48
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

// blocked is the error of findings that make it impossible to go on.
func blocked(findings []install.Finding) error {
	var kind error
	for _, f := range findings {
		switch {
		case f.Level != install.Block:
		case f.Foreign:
			kind = install.ErrForeign
		case f.Denied && !errors.Is(kind, install.ErrForeign):
			kind = kube.ErrForbidden
		case kind == nil:
			kind = install.ErrPreflight
		}
	}
	if kind != nil {
		return fmt.Errorf("%w: nothing was changed", kind)
	}
	return nil
}

// confirm asks the user, unless yes answers already. Where nobody can be asked the answer is no.
func confirm(w World, yes bool, question string) error {
	if yes {
		return nil
	}
	in, ok := w.In.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return errors.New("nothing was changed: there is no terminal to ask on, add --yes to go on")
	}
	fmt.Fprintf(w.Err, "%s [y/N] ", question)
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil || !strings.EqualFold(strings.TrimSpace(line), "y") && !strings.EqualFold(strings.TrimSpace(line), "yes") {
		return errors.New("nothing was changed")
	}
	return nil
}

// ownPods select the pods that read the configuration.
var ownPods = []string{"k8s-app=cilium", "io.cilium/app=operator"}

// restartPods deletes the pods of agents and operator; their owners make new ones. It returns
// those that were there.
func restartPods(ctx context.Context, c *kube.Client) (map[types.UID]bool, error) {
	old := map[types.UID]bool{}
	api := c.Clientset.CoreV1().Pods(c.Namespace)
	for _, sel := range ownPods {
		l, err := api.List(ctx, metav1.ListOptions{LabelSelector: sel})
		if err != nil {
			return nil, fmt.Errorf("restarting pods %s: %w", sel, err)
		}
		for i := range l.Items {
			p := &l.Items[i]
			old[p.UID] = true
			err := api.Delete(ctx, p.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(p.UID))})
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				return nil, fmt.Errorf("restarting pod %s: %w", p.Name, err)
			}
		}
	}
	return old, nil
}

// waitReplaced waits until none of the old pods is left. Before that the counts of their owners
// say nothing about the new ones.
func waitReplaced(ctx context.Context, c *kube.Client, old map[types.UID]bool) error {
	if len(old) == 0 {
		return nil
	}
	for _, sel := range ownPods {
		err := c.WaitPods(ctx, c.Namespace, sel, func(pods []corev1.Pod) (bool, string) {
			left := 0
			for i := range pods {
				if old[pods[i].UID] {
					left++
				}
			}
			return left == 0, fmt.Sprintf("%d old pods are still there", left)
		})
		if err != nil {
			return fmt.Errorf("waiting for the old pods to end: %w", err)
		}
	}
	return nil
}

// optionError gives mistakes of the user the exit code of a wrong command line.
func optionError(err error) error {
	var oe *install.OptionError
	if errors.As(err, &oe) {
		return &ExitError{Code: ExitUsage, Err: err}
	}
	return err
}
