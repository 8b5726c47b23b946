// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"lash.internal/lash/cmd/measure"
	"lash.internal/lash/perf/netperf"
)

func newPerf(w World) *cobra.Command {
	c := &cobra.Command{
		Use: "perf", Short: "Measure the network, as netperf does", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(measure.NewServer(w.Out, w.Err), measure.NewClient(w.Out), measure.NewWait(), newPerfRun(w), newPerfServices(w), newPerfCompare(w), newPerfShow(w))
	return c
}

// netperfCommand is a command with netperf's own flags.
func netperfCommand(w World, use, short string, run func(ctx context.Context, args []string, out, errOut io.Writer) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error { return run(c.Context(), args, w.Out, w.Err) },
	}
}

func newNetserver(w World) *cobra.Command {
	return netperfCommand(w, "netserver [flags]", "The server of netperf, with netperf's flags", netperf.ServerCommand)
}

func newNetperf(w World) *cobra.Command {
	return netperfCommand(w, "netperf [flags] -- [flags of the test]", "The client of netperf, with netperf's flags", netperf.ClientCommand)
}
