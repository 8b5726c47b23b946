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

	"github.com/spf13/cobra"

	"lash.internal/lash/cmd/kube"
	"lash.internal/lash/cmd/term"
	"lash.internal/lash/status"
)

func newService(w World) *cobra.Command {
	c := &cobra.Command{
		Use: "service", Aliases: []string{"services", "svc"}, Short: "Compare Services with what every node has programmed",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newServiceList(w))
	return c
}

type serviceFlags struct {
	namespace string
	all       bool
	output    string
	workers   int
}

func newServiceList(w World) *cobra.Command {
	var f serviceFlags
	c := &cobra.Command{
		Use: "list [NAME]", Aliases: []string{"ls"}, Short: "List Services and where a node has something else", Args: cobra.MaximumNArgs(1),
		Long: `List the ports of Services with their frontends of each kind and the number of ready backends, as Kubernetes
has them, and say where a node has something else: a frontend that is missing or stale, backends that are
missing or stale. Every node's agent is asked for what is in its kernel. Nodes follow changes within
milliseconds; a difference is one that stays for a few seconds.

Here -n/--namespace is that of the Services, by default that of the kubeconfig context; the network's own
namespace comes from CILIUM_NAMESPACE.

Exit code: 0 when every node has what Kubernetes says, 1 when one has not or does not answer, 3 when the
cluster cannot be reached.`,
		Example: `  lash service list
  lash service list web -n shop
  lash service list -A -o json | jq '.services[] | select(.differences != [])'`,
		RunE: func(c *cobra.Command, args []string) error {
			q, err := f.query(c, args)
			if err != nil {
				return err
			}
			cl, err := w.Kube.Client()
			if err != nil {
				return err
			}
			if !f.all && q.Namespace == "" {
				q.Namespace = cl.User
			}
			// The global flag of the network's namespace has another meaning here and keeps its default.
			col := &status.Collector{Client: cl.Clientset, Exec: cl.Exec, Namespace: cl.Namespace, Workers: f.workers}
			return listServices(c.Context(), w, f, col, q, cl.Explain)
		},
	}
	fl := c.Flags()
	fl.StringVarP(&f.namespace, "namespace", "n", "", "namespace of the Services (default: that of the context)")
	fl.BoolVarP(&f.all, "all-namespaces", "A", false, "Services of all namespaces")
	fl.StringVarP(&f.output, "output", "o", "table", "table or json")
	fl.IntVar(&f.workers, "worker-count", 5, "how many agents to ask at a time")
	c.MarkFlagsMutuallyExclusive("namespace", "all-namespaces")
	return c
}

// query checks what the command line says.
func (f serviceFlags) query(c *cobra.Command, args []string) (status.ServiceQuery, error) {
	q := status.ServiceQuery{Namespace: f.namespace}
	switch {
	case f.output != "table" && f.output != "json":
		return q, usageError("invalid --output %q: want table or json", f.output)
	case f.workers < 1:
		return q, usageError("invalid --worker-count %d: want 1 or more", f.workers)
	case c.Flags().Changed("namespace") && f.namespace == "":
		return q, usageError("invalid --namespace \"\": want a name, or -A for all")
	case len(args) == 1 && f.all:
		return q, usageError("a Service by name is in one namespace: give -n instead of -A")
	case len(args) == 1 && (args[0] == "" || strings.Contains(args[0], "/")):
		return q, usageError("invalid name %q: want the name of a Service; its namespace is -n", args[0])
	}
	if len(args) == 1 {
		q.Name = args[0]
	}
	return q, nil
}

func listServices(ctx context.Context, w World, f serviceFlags, col *status.Collector, q status.ServiceQuery, explain func(error) error) error {
	r, err := col.Services(ctx, q)
	if errors.Is(err, status.ErrNoAnswer) {
		err = fmt.Errorf("%w: %w", kube.ErrUnreachable, err)
	}
	if errors.Is(err, status.ErrKubeProxy) {
		err = fmt.Errorf("%w; remove kube-proxy and run `lash upgrade --set kubeProxyReplacement=true` to change that", err)
	}
	if err != nil {
		return explain(err)
	}
	if f.output == "json" {
		enc := json.NewEncoder(w.Out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		if err := enc.Encode(r); err != nil {
			return err
		}
	} else {
		writeServices(term.New(w.Out, w.Getenv), r, f.all, q)
	}
	if !r.OK() {
		return &ExitError{Code: ExitFailed, Err: errors.New("nodes differ from Kubernetes"), Quiet: true}
	}
	return nil
}

func writeServices(t *term.Term, r *status.ServiceReport, namespaces bool, q status.ServiceQuery) {
	var rows [][]string
	good := "same on " + counted(len(r.Nodes), "node")
	for _, s := range r.Rows {
		state := t.Green(good)
		switch {
		case len(s.Differences) > 0:
			var words []string
			for _, d := range s.Differences {
				words = append(words, d.String())
			}
			state = t.Red(strings.Join(words, "; "))
		case s.Note != "":
			state = t.Faint(s.Note)
		case len(r.Nodes) == 0:
			state = "?"
		}
		ready := fmt.Sprint(s.Ready)
		if s.Note != "" {
			ready = "-"
		}
		row := []string{s.Name, dash(s.Port), dash(s.Kind), dash(frontendText(s.Frontends)), ready, state}
		if namespaces {
			row = append([]string{s.Namespace}, row...)
		}
		rows = append(rows, row)
	}
	head := []string{"NAME", "PORT", "KIND", "FRONTENDS", "READY", "NODES"}
	if namespaces {
		head = append([]string{"NAMESPACE"}, head...)
	}
	if len(rows) > 0 {
		t.Table(head, rows)
	} else {
		where := "in namespace " + q.Namespace
		if namespaces {
			where = "in the cluster"
		}
		fmt.Fprintf(t.W, "No Services %s\n", where)
	}
	for _, n := range slices.Sorted(maps.Keys(r.Silent)) {
		fmt.Fprintf(t.W, "%s %s\n", t.Red("Node "+n+":"), r.Silent[n])
	}
}

// frontendText writes the unspecified addresses as what they stand for.
func frontendText(in []string) string {
	out := make([]string, 0, len(in))
	for _, f := range in {
		if rest, ok := strings.CutPrefix(f, "0.0.0.0:"); ok {
			f = "*:" + rest
		}
		if rest, ok := strings.CutPrefix(f, "[::]:"); ok {
			f = "[*]:" + rest
		}
		out = append(out, f)
	}
	return strings.Join(out, ", ")
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
