// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	cliterm "lash.internal/lash/cmd/term"
	"lash.internal/lash/install"
)

func newRollback(w World) *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use:   "rollback [REVISION]",
		Short: "Go back to an earlier revision of the release",
		Long: `Rollback makes an earlier revision of the release, its chart and its values, the current one again. Without a
number that is the newest earlier one that was deployed. It shows first what changes, and asks. lash history lists
the revisions.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			revision := 0
			if len(args) == 1 {
				var err error
				if revision, err = strconv.Atoi(args[0]); err != nil || revision < 1 {
					return usageError("invalid revision %q: want a number as `lash history` lists them", args[0])
				}
			}
			return runRollback(cmd.Context(), w, &f, revision)
		},
	}
	f.bind(cmd.Flags())
	return cmd
}

func runRollback(ctx context.Context, w World, f *applyFlags, revision int) error {
	progress := cliterm.New(w.Err, w.Getenv)
	client, err := w.Kube.Client()
	if err != nil {
		return err
	}
	if _, err := client.Check(ctx); err != nil {
		return err
	}
	change, err := install.Rollback(ctx, clusterOf(client), install.Options{
		HistoryMax: f.historyMax, Say: progress.Println, ImageOnNode: imageOnLocalNode(client),
	}, revision)
	if err != nil {
		if revision != 0 && errors.Is(err, install.ErrNoRevision) {
			return &ExitError{Code: ExitUsage, Err: err}
		}
		return err
	}
	return applyChange(ctx, w, progress, client, change, f, fmt.Sprintf("Go back to revision %d of", change.To.Version), "rolled back")
}

func newHistory(w World) *cobra.Command {
	var (
		output string
		most   int
	)
	cmd := &cobra.Command{
		Use:   "history",
		Short: "List the revisions of the release",
		Args:  cobra.NoArgs,
		RunE: func(_ *cobra.Command, _ []string) error {
			if output != "table" && output != "json" && output != "yaml" {
				return usageError("invalid --output %q: want table, json or yaml", output)
			}
			client, err := w.Kube.Client()
			if err != nil {
				return err
			}
			rows, err := install.History(clusterOf(client))
			if err != nil {
				return err
			}
			if most > 0 && len(rows) > most {
				rows = rows[len(rows)-most:]
			}
			return printHistory(w, rows, output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	cmd.Flags().IntVar(&most, "max", 256, "Most revisions to list")
	return cmd
}

func printHistory(w World, rows []install.Revision, output string) error {
	switch output {
	case "json":
		enc := json.NewEncoder(w.Out)
		enc.SetIndent("", "  ")
		return enc.Encode(rows)
	case "yaml":
		text, err := yaml.Marshal(rows)
		fmt.Fprint(w.Out, string(text))
		return err
	}
	var cells [][]string
	for _, r := range rows {
		cells = append(cells, []string{
			strconv.Itoa(r.Revision), r.Updated.Format(time.RFC3339), r.Status, r.Chart, r.AppVersion, r.Description,
		})
	}
	cliterm.New(w.Out, w.Getenv).Table([]string{"REVISION", "UPDATED", "STATUS", "CHART", "APP VERSION", "DESCRIPTION"}, cells)
	return nil
}
