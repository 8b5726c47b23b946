// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/cmd/kube"
	cliterm "lash.internal/lash/cmd/term"
	"lash.internal/lash/connectivity/check"
	"lash.internal/lash/install"
)

type uninstallFlags struct {
	wait, keepCRDs, force, verify bool
	timeout                       time.Duration
	testNamespace, image, output  string
}

func newUninstall(w World) *cobra.Command {
	var f uninstallFlags
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the network from a cluster",
		Long: `Uninstall removes the namespaces of connectivity tests and the Helm release, waits until the agents are gone,
cleans every node that had one (programs, maps, devices, routes, sysctls, mounts, files) and takes away what agents
and operator have written into the API server. It acts only on a release of Lash's own chart.

Kept on purpose, and said: the custom resource definitions (--keep-crds=false removes them), the image on the nodes,
and the namespace when it is not kube-system.

With --verify it looks afterwards at every node and at the API server and lists what of Lash is still there; where
Lash is not installed it does only that. A short pod from Lash's image looks at each node, with a read-only view of its
files; it needs no agent, and it is removed again.

Exit code: 0 when nothing is left, 1 when something is, or could not be looked at.`,
		Example: `  lash uninstall
  lash uninstall --keep-crds=false --verify
  # Weeks later, or after another tool has removed the release
  lash uninstall --verify
  lash uninstall --force`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.output != "table" && f.output != "json" {
				return usageError("invalid --output %q: want table or json", f.output)
			}
			if f.verify && !f.wait {
				return usageError("--verify needs --wait: without it the nodes are not cleaned")
			}
			return runUninstall(cmd.Context(), w, &f)
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&f.wait, "wait", true, "Wait until the agents are gone and clean nodes and API server; without it only the release is removed")
	fl.DurationVar(&f.timeout, "timeout", 5*time.Minute, "Limit of the whole command")
	fl.BoolVar(&f.keepCRDs, "keep-crds", true, "Keep the custom resource definitions")
	fl.StringVar(&f.testNamespace, "test-namespace", check.DefaultTestNamespace, "Namespaces of connectivity tests to remove: this name, alone or with a number")
	fl.BoolVar(&f.verify, "verify", false, "Look at every node and at the API server afterwards and list what is left")
	fl.BoolVar(&f.force, "force", false, "Without a release, too: clean all nodes and the API server")
	fl.StringVar(&f.image, "image", "", "Image for the pods on nodes when there is no release (default: the one of this version that nodes have)")
	fl.StringVarP(&f.output, "output", "o", "table", "Form of what --verify finds: table or json")
	return cmd
}

func runUninstall(ctx context.Context, w World, f *uninstallFlags) error {
	progress := cliterm.New(w.Err, w.Getenv)
	client, err := w.Kube.Client()
	if err != nil {
		return err
	}
	if _, err := client.Check(ctx); err != nil {
		return err
	}
	ctx, cancel := kube.WithTimeout(ctx, f.timeout)
	defer cancel()
	pods := install.NodePods{Cluster: clusterOf(client), WaitPods: client.WaitPods, Logs: logsOf(client), Say: progress.Println}
	r := &install.Removal{
		NodePods: pods, Clean: f.wait, KeepCRDs: f.keepCRDs, Force: f.force, Image: f.image, Timeout: f.timeout,
		Before: func(ctx context.Context) error { return removeTests(ctx, progress, client, f.testNamespace) },
	}
	kept, err := r.Run(ctx)
	switch {
	case f.verify && errors.Is(err, install.ErrNotInstalled):
		progress.Println("ℹ️  Lash is not installed in context %q: looking for what it may have left", client.Context)
	case err != nil:
		return err
	default:
		printKept(progress, f.wait, kept)
	}
	if !f.verify {
		return nil
	}
	step := progress.Step("Looking at every node and at the API server")
	v, err := (&install.Verification{NodePods: pods, Image: f.image}).Run(ctx)
	if step.Done(err) != nil {
		return err
	}
	return printVerdict(w, progress, v, f.output)
}

func printKept(t *cliterm.Term, cleaned bool, kept []string) {
	t.Println("ℹ️  Pods that are still running have no network any more, and cannot end before another one is installed")
	if !cleaned {
		t.Println("ℹ️  Neither nodes nor API server were cleaned: programs, devices, files and objects of Lash are still there (lash uninstall --force)")
		return
	}
	for _, k := range kept {
		t.Println("ℹ️  Kept: %s", k)
	}
}

// removeTests removes the namespaces that connectivity tests have left.
func removeTests(ctx context.Context, t *cliterm.Term, c *kube.Client, base string) error {
	names, err := check.Namespaces(ctx, c.Clientset, base)
	if err != nil {
		return err
	}
	for _, n := range names {
		t.Println("⌛ Removing namespace %s of a connectivity test", n)
		if err := check.Clean(ctx, check.Options{Client: c.Clientset, TestNamespace: n}); err != nil {
			return err
		}
	}
	return nil
}

// logsOf reads what a container has written.
func logsOf(c *kube.Client) func(ctx context.Context, namespace, pod, container string) ([]byte, error) {
	return func(ctx context.Context, namespace, pod, container string) ([]byte, error) {
		return c.Clientset.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Container: container}).DoRaw(ctx)
	}
}

// collapse leaves out pins and files below others that are listed, and counts them there.
func collapse(items []api.NodeItem) []api.NodeItem {
	var out []api.NodeItem
	below := map[int]int{} // by position in out
	for _, x := range items {
		at := slices.IndexFunc(out, func(o api.NodeItem) bool {
			return o.Kind == x.Kind && (x.Kind == "pin" || x.Kind == "file") && strings.HasPrefix(x.Name, strings.TrimSuffix(o.Name, "/")+"/")
		})
		if at < 0 {
			out = append(out, x)
			continue
		}
		below[at]++
	}
	for at, n := range below {
		out[at].Name += fmt.Sprintf(" and %d below", n)
	}
	return out
}

// printVerdict prints what a verification has found. Anything left is an exit code of 1.
func printVerdict(w World, t *cliterm.Term, v *install.Verdict, output string) error {
	var bad error
	if !v.Clean() {
		bad = &ExitError{Code: ExitFailed, Err: errors.New("something is left"), Quiet: true}
	}
	if output == "json" {
		enc := json.NewEncoder(w.Out)
		enc.SetIndent("", " ")
		code := ExitOK
		if bad != nil {
			code = ExitFailed
		}
		if err := enc.Encode(struct {
			*install.Verdict
			Code int `json:"code"`
		}{v, code}); err != nil {
			return err
		}
		return bad
	}
	var rows [][]string
	for _, x := range v.API {
		rows = append(rows, []string{"API", x.Kind, x.Name, x.Ours})
	}
	for _, n := range slices.Sorted(maps.Keys(v.Nodes)) {
		for _, x := range collapse(v.Nodes[n]) {
			rows = append(rows, []string{n, x.Kind, x.Name, x.Ours})
		}
	}
	if len(rows) > 0 {
		cliterm.New(w.Out, w.Getenv).Table([]string{"WHERE", "KIND", "NAME", "WHY IT IS LASH'S"}, rows)
	}
	for _, x := range v.Kept {
		t.Println("ℹ️  Kept: %s %s", x.Kind, x.Name)
	}
	for _, what := range slices.Sorted(maps.Keys(v.Failed)) {
		t.Println("⚠️  Not looked at: %s: %s", what, v.Failed[what])
	}
	looked := fmt.Sprintf("%d nodes (%s)", len(v.Nodes), strings.Join(slices.Sorted(maps.Keys(v.Nodes)), ", "))
	left := len(v.API)
	for _, items := range v.Nodes {
		left += len(items)
	}
	switch {
	case left > 0:
		t.Println("❌ %d things of Lash are left; looked at %s and the API server. To remove them: lash uninstall --force", left, looked)
	case bad != nil:
		t.Println("⚠️  Nothing of Lash was found, but not everything could be looked at")
	default:
		t.Println("✅ Nothing of Lash is left; looked at %s and the API server", looked)
	}
	return bad
}
