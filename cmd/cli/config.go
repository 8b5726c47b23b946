// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"lash.internal/lash/cmd/kube"
	"lash.internal/lash/cmd/term"
	"lash.internal/lash/install"
)

func newConfig(w World) *cobra.Command {
	c := &cobra.Command{
		Use: "config", Short: "Show and change the options of agents and operator", Args: cobra.NoArgs,
		Long: `Show and change the options of agents and operator, the ConfigMap cilium-config. What is changed here is
the object in the cluster: the next lash upgrade sets again what the chart has a value for. To keep a change, give
it to the chart: lash upgrade --set-literal extraConfig.OPTION=VALUE.`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newConfigView(w), newConfigSet(w), newConfigDelete(w))
	return c
}

func newConfigView(w World) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "view", Short: "Show every option that is set", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "table" && output != "json" && output != "yaml" {
				return usageError("invalid --output %q: want table, json or yaml", output)
			}
			client, err := w.Kube.Client()
			if err != nil {
				return err
			}
			return viewConfig(c.Context(), w, client, output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	return c
}

func viewConfig(ctx context.Context, w World, client *kube.Client, output string) error {
	all, err := install.Settings{Cluster: clusterOf(client)}.All(ctx)
	if err != nil {
		return err
	}
	switch output {
	case "json":
		enc := json.NewEncoder(w.Out)
		enc.SetIndent("", "  ")
		return enc.Encode(all)
	case "yaml":
		text, err := yaml.Marshal(all)
		fmt.Fprint(w.Out, string(text))
		return err
	}
	t := tabwriter.NewWriter(w.Out, 0, 0, 4, ' ', 0)
	for _, k := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(t, "%s\t%s\n", k, all[k])
	}
	return t.Flush()
}

func newConfigSet(w World) *cobra.Command {
	var restart bool
	c := &cobra.Command{
		Use: "set OPTION VALUE", Short: "Give an option a value", Args: cobra.ExactArgs(2),
		Long: `Give an option a value. The whole configuration is checked as the agents check it before anything is written,
so a value that they would not start with is refused.`,
		Example: "  lash config set debug true\n  lash config set monitor-aggregation none --restart=false",
		RunE: func(c *cobra.Command, args []string) error {
			client, err := w.Kube.Client()
			if err != nil {
				return err
			}
			return changeConfig(c.Context(), w, client, restart, func(s install.Settings) (bool, error) {
				return s.Set(c.Context(), args[0], args[1])
			}, fmt.Sprintf("to keep it: lash upgrade --set-literal 'extraConfig.%s=%s'", args[0], args[1]))
		},
	}
	bindRestart(c, &restart)
	return c
}

func newConfigDelete(w World) *cobra.Command {
	var restart bool
	c := &cobra.Command{
		Use: "delete OPTION", Short: "Take an option back to its default", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := w.Kube.Client()
			if err != nil {
				return err
			}
			return changeConfig(c.Context(), w, client, restart, func(s install.Settings) (bool, error) {
				return s.Delete(c.Context(), args[0])
			}, "if the chart sets the option")
		},
	}
	bindRestart(c, &restart)
	return c
}

func bindRestart(c *cobra.Command, restart *bool) {
	c.Flags().BoolVarP(restart, "restart", "r", true, "delete the pods of agents and operator so that they read the configuration again")
}

// changeConfig makes one change and restarts those who read it.
func changeConfig(ctx context.Context, w World, client *kube.Client, restart bool, change func(install.Settings) (bool, error), keep string) error {
	progress := term.New(w.Err, w.Getenv)
	changed, err := change(install.Settings{Cluster: clusterOf(client), Say: progress.Println})
	switch {
	case errors.Is(err, install.ErrUnknownOption), errors.Is(err, install.ErrBadOption):
		return &ExitError{Code: ExitUsage, Err: err}
	case err != nil || !changed:
		return err
	}
	progress.Println("ℹ️  The next lash upgrade sets it back; %s", keep)
	if !restart {
		progress.Println("ℹ️  Agents and operator use it after their next start: kubectl -n %s rollout restart ds/cilium deploy/cilium-operator", client.Namespace)
		return nil
	}
	if _, err := restartPods(ctx, client); err != nil {
		return err
	}
	progress.Println("♻️  Restarted Cilium pods")
	return nil
}
