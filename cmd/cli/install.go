// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/types"

	"lash.internal/lash/cmd/kube"
	cliterm "lash.internal/lash/cmd/term"
	"lash.internal/lash/connectivity/cluster"
	"lash.internal/lash/install"
)

// valueFlags are Helm's value options under their names and under cilium's.
type valueFlags struct {
	u, alias install.UserValues
}

func (v *valueFlags) bind(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&v.u.Files, "values", "f", nil, "File with Helm values, - is standard input (repeat for several)")
	fs.StringArrayVar(&v.u.Set, "set", nil, "Helm value as key=value (several with commas)")
	fs.StringArrayVar(&v.u.SetString, "set-string", nil, "Helm value as key=text")
	fs.StringArrayVar(&v.u.SetFile, "set-file", nil, "Helm value as key=file that holds the text")
	fs.StringArrayVar(&v.u.JSON, "set-json", nil, "Helm value as key=JSON")
	fs.StringArrayVar(&v.u.Literal, "set-literal", nil, "Helm value as key=text without any escape")
	for name, p := range map[string]*[]string{
		"helm-values": &v.alias.Files, "helm-set": &v.alias.Set, "helm-set-string": &v.alias.SetString, "helm-set-file": &v.alias.SetFile,
	} {
		fs.StringArrayVar(p, name, nil, "")
		_ = fs.MarkHidden(name) // the flag exists, so this cannot fail
	}
}

func (v *valueFlags) all() install.UserValues {
	u := v.u
	u.Files = append(append([]string(nil), v.alias.Files...), u.Files...)
	u.Set = append(append([]string(nil), v.alias.Set...), u.Set...)
	u.SetString = append(append([]string(nil), v.alias.SetString...), u.SetString...)
	u.SetFile = append(append([]string(nil), v.alias.SetFile...), u.SetFile...)
	return u
}

type installFlags struct {
	values       valueFlags
	version      string
	listVersions bool
	chartDir     string
	datapathMode string
	without      bool
	wait         bool
	waitDuration time.Duration
	dryRun       bool
	dryRunValues bool
	historyMax   int
	yes          bool
}

func newInstall(w World) *cobra.Command {
	var f installFlags
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install the network into a cluster",
		Long: `Install looks at the cluster, derives the Helm values that fit it, says what stands in the way, and
installs the built-in chart as a Helm release. Values of your own win over derived ones.`,
		Example: `  # Install into the current context and wait until it works
  lash install --wait

  # See what would be applied, with IPv6 on
  lash install --set ipv6.enabled=true --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runInstall(cmd.Context(), w, &f) },
	}
	fs := cmd.Flags()
	f.values.bind(fs)
	fs.StringVar(&f.version, "version", "", "Version to install, or a Cilium version 1.15.x or 1.16.x to report as compatibility level")
	fs.BoolVar(&f.listVersions, "list-versions", false, "List what --version takes and do nothing else")
	fs.StringVar(&f.chartDir, "chart-directory", "", "Folder with a chart to use instead of the built-in one (see lash chart export)")
	fs.StringVar(&f.datapathMode, "datapath-mode", "", "How packets reach other nodes: tunnel or native")
	fs.BoolVar(&f.without, "nodes-without-cilium", false, "Leave out nodes with the label "+install.NoScheduleLabel+"=true")
	fs.BoolVar(&f.wait, "wait", false, "Wait until the agents and the operator are ready")
	fs.DurationVar(&f.waitDuration, "wait-duration", 5*time.Minute, "How long --wait waits")
	fs.BoolVar(&f.dryRun, "dry-run", false, "Print the manifests and apply nothing")
	fs.BoolVar(&f.dryRunValues, "dry-run-helm-values", false, "Print the Helm values that differ from the chart's defaults and apply nothing")
	fs.IntVar(&f.historyMax, "history-max", 10, "Revisions of the release that Helm keeps, 0 for all")
	fs.BoolVarP(&f.yes, "yes", "y", false, "Answer yes to every question")
	return cmd
}

func clusterOf(c *kube.Client) *install.Cluster {
	return &install.Cluster{
		Clientset: c.Clientset, Dynamic: c.Dynamic, Getter: c.Getter,
		Context: c.Context, Name: c.Cluster, Server: c.Server, Namespace: c.Namespace, Release: c.Release,
	}
}

func runInstall(ctx context.Context, w World, f *installFlags) error {
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
		Version: f.version, ChartDir: f.chartDir, Values: user, DatapathMode: f.datapathMode,
		NodesWithoutNetwork: f.without, HistoryMax: f.historyMax, Say: progress.Println,
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
	target := clusterOf(client)
	opts.ImageOnNode = imageOnLocalNode(client)
	if !f.dryRun && !f.dryRunValues {
		if done, err := alreadyInstalled(progress, target, !f.values.all().Empty()); done || err != nil {
			return err
		}
	}
	plan, err := install.Make(ctx, target, opts)
	if err != nil {
		return optionError(err)
	}
	switch {
	case f.dryRunValues:
		text, err := install.YAML(plan.Values)
		fmt.Fprint(w.Out, text)
		return err
	case f.dryRun:
		printFindings(progress, plan.Findings)
		fmt.Fprint(w.Out, plan.Manifest)
		return nil
	}
	if err := consent(w, progress, client, plan.Findings, f.yes); err != nil {
		return err
	}
	if _, err := install.Apply(ctx, target, plan, opts); err != nil {
		return err
	}
	progress.Println("✅ Cilium was successfully installed! Run 'lash status' to view installation health")
	if !f.wait {
		return nil
	}
	return waitInstalled(ctx, progress, client, f.waitDuration, nil)
}

func listVersions(t *cliterm.Term) {
	var rows [][]string
	for _, v := range install.Versions() {
		rows = append(rows, v[:])
	}
	t.Table([]string{"VERSION", "IS"}, rows)
}

// imageOnLocalNode asks the nodes of a cluster that runs on this machine; nil for other clusters.
func imageOnLocalNode(c *kube.Client) func(ctx context.Context, node, image string) (have, known bool) {
	name, ok := strings.CutPrefix(c.Cluster, "lash-")
	if !ok {
		return nil
	}
	local, err := cluster.Get("", name)
	if err != nil || !strings.HasSuffix(c.Server, fmt.Sprintf("127.0.0.1:%d", local.Port)) {
		return nil
	}
	return func(ctx context.Context, node, image string) (have, known bool) {
		have, err := cluster.HasImage(ctx, "", name, node, image)
		return have, err == nil
	}
}

// alreadyInstalled says so when there is a release of ours, and how to change it.
func alreadyInstalled(t *cliterm.Term, c *install.Cluster, withValues bool) (done bool, err error) {
	rel, err := install.Existing(c)
	if err != nil || rel == nil || !install.Ours(rel) {
		return false, err
	}
	if rel.Info.Status != "deployed" {
		next := "run `lash uninstall`, then install again"
		if rel.Version > 1 {
			next = "run `lash upgrade` to try again, or `lash rollback`"
		}
		return true, fmt.Errorf("release %s is in state %s since %s: %s",
			c.Release, rel.Info.Status, rel.Info.LastDeployed.Format(time.RFC3339), next)
	}
	t.Println("ℹ️  Lash %s is already installed: release %s in namespace %s, revision %d. Nothing was changed.",
		rel.Chart.Metadata.Version, c.Release, c.Namespace, rel.Version)
	t.Println("ℹ️  To upgrade it or to change its values: lash upgrade [--set KEY=VALUE]")
	if withValues {
		return true, fmt.Errorf("%w: the values that you gave were not applied, use `lash upgrade`", install.ErrInstalled)
	}
	return true, nil
}

var levelMarks = map[install.Level]string{install.Note: "ℹ️ ", install.Ask: "⚠️ ", install.Block: "❌"}

func printFindings(t *cliterm.Term, findings []install.Finding) {
	for _, f := range findings {
		t.Println("%s %s", levelMarks[f.Level], f.What)
		t.Println("   evidence: %s", f.Evidence)
		t.Println("   next:     %s", f.Next)
	}
}

// consent shows the findings and stops where one of them blocks or where the user says no.
func consent(w World, t *cliterm.Term, c *kube.Client, findings []install.Finding, yes bool) error {
	printFindings(t, findings)
	if err := blocked(findings); err != nil {
		return err
	}
	for _, f := range findings {
		if f.Level == install.Ask {
			if err := confirm(w, yes, fmt.Sprintf("Install into context %q nevertheless?", c.Context)); err != nil {
				return fmt.Errorf("%w: %w", install.ErrPreflight, err)
			}
			return nil
		}
	}
	return nil
}

// waitInstalled waits for the agents and for the operator, and before that for the end of the old
// pods that were told to go.
func waitInstalled(ctx context.Context, t *cliterm.Term, c *kube.Client, limit time.Duration, old map[types.UID]bool) error {
	ctx, cancel := kube.WithTimeout(ctx, limit)
	defer cancel()
	s := t.Step("Waiting for the agents")
	err := waitReplaced(ctx, c, old)
	if err == nil {
		err = c.WaitDaemonSet(ctx, c.Namespace, "cilium")
	}
	if s.Done(err) != nil {
		return fmt.Errorf("waiting for the agents: %w; see `lash status`", err)
	}
	s = t.Step("Waiting for the operator")
	if err := s.Done(c.WaitDeployment(ctx, c.Namespace, "cilium-operator")); err != nil {
		return fmt.Errorf("waiting for the operator: %w; see `lash status`", err)
	}
	return nil
}
