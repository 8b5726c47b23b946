// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lash.internal/lash/cmd/kube"
	cliterm "lash.internal/lash/cmd/term"
	"lash.internal/lash/install"
)

type upgradeFlags struct {
	values                   valueFlags
	version, chartDir        string
	reset, reuse, resetReuse bool
	restart, dryRun, wait    bool
	dryRunValues             bool
	waitDuration             time.Duration
	historyMax               int
}

func newUpgrade(w World) *cobra.Command {
	var f upgradeFlags
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Upgrade the network or change its values",
		Long: `Upgrade applies the built-in chart to an existing release of Lash. Values that were given before stay,
new ones win over them.`,
		Example: "  lash upgrade --set debug.enabled=true --restart --wait",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runUpgrade(cmd.Context(), w, &f) },
	}
	fs := cmd.Flags()
	f.values.bind(fs)
	fs.StringVar(&f.version, "version", "", "Version to upgrade to, or a Cilium version 1.15.x or 1.16.x to report as compatibility level")
	fs.StringVar(&f.chartDir, "chart-directory", "", "Folder with a chart to use instead of the built-in one (see lash chart export)")
	fs.BoolVar(&f.resetReuse, "reset-then-reuse-values", true, "Take the chart's defaults and the values that were given before")
	fs.BoolVar(&f.reset, "reset-values", false, "Forget the values that were given before")
	fs.BoolVar(&f.reuse, "reuse-values", false, "Take every value from the release, also defaults of its chart")
	fs.BoolVarP(&f.restart, "restart", "r", false, "Delete the pods of agents and operator so that they read the configuration again")
	fs.BoolVar(&f.dryRun, "dry-run", false, "Print the manifests and apply nothing")
	fs.BoolVar(&f.dryRunValues, "dry-run-helm-values", false, "Print the Helm values that differ from the chart's defaults and apply nothing")
	fs.BoolVar(&f.wait, "wait", false, "Wait until the agents and the operator are ready")
	fs.DurationVar(&f.waitDuration, "wait-duration", 5*time.Minute, "How long --wait waits")
	fs.IntVar(&f.historyMax, "history-max", 10, "Revisions of the release that Helm keeps, 0 for all")
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
	progress := cliterm.New(w.Err, w.Getenv)
	user, err := f.values.all().Merge()
	if err != nil {
		return &ExitError{Code: ExitUsage, Err: err}
	}
	opts := install.Options{
		Version: f.version, ChartDir: f.chartDir, Values: user, HistoryMax: f.historyMax, Say: progress.Println,
	}
	if err := opts.Validate(); err != nil {
		return optionError(err)
	}
	client, err := w.Kube.Client()
	if err != nil {
		return err
	}
	if _, err := client.Check(ctx); err != nil {
		return err
	}
	change, err := install.Upgrade(clusterOf(client), opts, f.mode())
	if err != nil {
		return optionError(err)
	}
	if f.dryRunValues {
		text, err := install.YAML(change.Values)
		fmt.Fprint(w.Out, text)
		return err
	}
	rel, err := change.Apply(ctx, f.dryRun)
	if err != nil {
		return err
	}
	if f.dryRun {
		fmt.Fprint(w.Out, rel.Manifest)
		return nil
	}
	progress.Println("✅ Cilium was successfully upgraded to revision %d", rel.Version)
	if f.restart {
		if err := restartPods(ctx, client); err != nil {
			return err
		}
		progress.Println("♻️  Restarted Cilium pods")
	}
	if !f.wait {
		return nil
	}
	return waitInstalled(ctx, progress, client, f.waitDuration)
}

// restartPods deletes the pods of agents and operator; their owners make new ones.
func restartPods(ctx context.Context, c *kube.Client) error {
	for _, sel := range []string{"k8s-app=cilium", "io.cilium/app=operator"} {
		if err := c.Clientset.CoreV1().Pods(c.Namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: sel}); err != nil {
			return fmt.Errorf("restarting pods %s: %w", sel, err)
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
