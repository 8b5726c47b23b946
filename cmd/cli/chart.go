// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"lash.internal/lash/chart"
	cliterm "lash.internal/lash/cmd/term"
)

func newChart(w World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "chart",
		Short: "The Helm chart that is built into this program",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(&cobra.Command{
		Use:     "export DIR",
		Short:   "Write the chart into a new folder",
		Example: "  lash chart export ./lash && helm install cilium ./lash -n kube-system",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := chart.Export(args[0]); err != nil {
				return err
			}
			cliterm.New(w.Err, w.Getenv).Println("✅ Wrote the chart to %s", args[0])
			return nil
		},
	})
	return cmd
}
