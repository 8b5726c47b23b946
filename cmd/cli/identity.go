// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/status"
)

func newIdentity(w World) *cobra.Command {
	c := &cobra.Command{
		Use: "identity", Short: "Show security identities: the numbers that stand for label sets",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newIdentityList(w), newIdentityGet(w))
	return c
}

func newIdentityList(w World) *cobra.Command {
	var output, selector string
	var noHeaders bool
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List all identities of the cluster", Args: cobra.NoArgs,
		Example: `  lash identity list
  lash identity list -l app=backend1
  lash identity list -l io.kubernetes.pod.namespace=default -o json`,
		RunE: func(c *cobra.Command, _ []string) error {
			sel, err := parseSelector(selector)
			if err != nil {
				return err
			}
			if err := checkOutput(output); err != nil {
				return err
			}
			cl, err := w.Kube.Client()
			if err != nil {
				return err
			}
			return listIdentities(c.Context(), w.Out, cl.Dynamic, sel, output, noHeaders, cl.Explain)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	c.Flags().StringVarP(&selector, "selector", "l", "", "only identities with these labels (app=x, app in (x,y), !app)")
	c.Flags().BoolVar(&noHeaders, "no-headers", false, "leave the column names out")
	return c
}

func newIdentityGet(w World) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "get ID", Short: "Show one identity", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || n < 0 {
				return usageError("invalid identity %q: want a number", args[0])
			}
			if err := checkOutput(output); err != nil {
				return err
			}
			cl, err := w.Kube.Client()
			if err != nil {
				return err
			}
			id, err := status.Identity(c.Context(), cl.Dynamic, n)
			if err != nil {
				return cl.Explain(err)
			}
			return writeIdentities(w.Out, []api.Identity{id}, output, false)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	return c
}

func checkOutput(o string) error {
	switch o {
	case "table", "json", "yaml":
		return nil
	}
	return usageError("invalid --output %q: want table, json or yaml", o)
}

// parseSelector takes labels with their source, too ("k8s:app=x"), as the lists print them.
func parseSelector(s string) (labels.Selector, error) {
	for _, source := range []string{"k8s:", "reserved:", "any:"} {
		s = strings.ReplaceAll(s, source, "")
	}
	sel, err := labels.Parse(s)
	if err != nil {
		return nil, usageError("invalid --selector: %v", err)
	}
	return sel, nil
}

func listIdentities(ctx context.Context, w io.Writer, c dynamic.Interface, sel labels.Selector, output string, noHeaders bool, explain func(error) error) error {
	ids, err := status.Identities(ctx, c, sel)
	if errors.Is(err, status.ErrNotInstalled) {
		return err
	}
	if err != nil {
		return explain(fmt.Errorf("listing identities: %w", err))
	}
	return writeIdentities(w, ids, output, noHeaders)
}

func writeIdentities(w io.Writer, ids []api.Identity, output string, noHeaders bool) error {
	switch output {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(ids)
	case "yaml":
		b, err := yaml.Marshal(ids)
		if err != nil {
			return fmt.Errorf("encode yaml: %w", err)
		}
		_, err = w.Write(b)
		return err
	}
	t := tabwriter.NewWriter(w, 5, 0, 3, ' ', 0)
	if !noHeaders {
		fmt.Fprintln(t, "ID\tLABELS")
	}
	for _, id := range ids {
		first := strconv.FormatInt(id.ID, 10)
		for _, l := range id.Labels {
			fmt.Fprintf(t, "%s\t%s\n", first, l)
			first = ""
		}
		if len(id.Labels) == 0 {
			fmt.Fprintf(t, "%s\t\n", first)
		}
	}
	return t.Flush()
}
