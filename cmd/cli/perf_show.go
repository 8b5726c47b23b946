// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"
)

// newPerfShow prints a report that was kept, in any of the forms.
func newPerfShow(w World) *cobra.Command {
	var o perfOutput
	var only string
	c := &cobra.Command{
		Use: "show REPORT.json", Short: "Print a report that `lash perf run` or `lash perf services` wrote with -o json", Args: cobra.ExactArgs(1),
		Example: `  lash perf show ladder.json --html ladder.html
  lash perf show ladder.json -o markdown`,
		RunE: func(_ *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			r, err := readReport(args[0], only)
			if err != nil {
				return err
			}
			return o.write(w, r)
		},
	}
	c.Flags().StringVar(&only, "cluster", "", "only this cluster of the report")
	o.bind(c.Flags())
	return c
}
