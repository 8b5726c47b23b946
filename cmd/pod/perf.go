// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lash.internal/lash/perf/netperf"
)

// newPerf is the server and the client of measurements. Both run in test pods and in bare namespaces
// and ask no agent.
func newPerf(w World) *cobra.Command {
	root := &cobra.Command{
		Use: "perf", Short: "Measure the network, as netperf does", SilenceUsage: true, SilenceErrors: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetOut(w.Out)
	root.SetErr(w.Err)
	root.AddCommand(newPerfServer(w), newPerfClient(w))
	return root
}

// PerfMain runs the command line `perf server|client` of w and returns the exit code.
func PerfMain(ctx context.Context, w World) int {
	root := newPerf(w)
	root.SetArgs(w.Args)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(w.Err, "Error: "+err.Error())
		return 1
	}
	return 0
}

// perfReady is the line that the server writes when it listens.
type perfReady struct {
	Ready  bool   `json:"ready"`
	Listen string `json:"listen"`
}

func newPerfServer(w World) *cobra.Command {
	var out output
	var cpu int
	s := netperf.Server{Listen: fmt.Sprintf(":%d", netperf.DefaultPort), Log: slog.New(slog.NewTextHandler(w.Err, nil))}
	c := &cobra.Command{
		Use: "server", Short: "Serve netperf's omni tests until told to end", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if out != "" && out != "json" {
				return fmt.Errorf("invalid output %q: want json", string(out))
			}
			if cpu >= 0 {
				s.CPU = &cpu
			}
			return s.Run(c.Context(), func(a net.Addr) {
				if out == "json" {
					_ = json.NewEncoder(w.Out).Encode(perfReady{true, a.String()})
					return
				}
				fmt.Fprintln(w.Out, "listening on "+a.String())
			})
		},
	}
	f := c.Flags()
	f.StringVar(&s.Listen, "listen", s.Listen, "address and port of the control connections")
	f.IntVar(&cpu, "cpu", -1, "processor to run tests on (default: the one that a client asks for)")
	f.StringVar(&s.Passphrase, "passphrase", "", "what clients have to send first")
	f.StringVarP((*string)(&out), "output", "o", "", "json: announce the address as a line of JSON")
	return c
}

func newPerfClient(w World) *cobra.Command {
	var out output
	var test string
	var names []string
	for _, t := range netperf.Tests {
		names = append(names, string(t))
	}
	o := netperf.Options{}
	c := &cobra.Command{
		Use: "client SERVER[:PORT]", Short: "Measure the way to a server", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			err := out.check()
			if err != nil {
				return err
			}
			if o.Server, err = parseServer(args[0]); err != nil {
				return err
			}
			o.Test = netperf.Test(strings.ToUpper(test))
			r, err := netperf.Measure(c.Context(), o)
			if err != nil {
				return err
			}
			if done, err := out.print(w.Out, &r); done {
				return err
			}
			return printPerf(w.Out, &r)
		},
	}
	f := c.Flags()
	f.StringVarP(&test, "test", "t", string(netperf.TCPRR), strings.Join(names, ", "))
	f.DurationVarP(&o.Length, "length", "l", 10*time.Second, "time to measure, in whole seconds")
	f.IntVar(&o.RequestSize, "request-size", 1, "bytes of a request")
	f.IntVar(&o.ResponseSize, "response-size", 1, "bytes of a response")
	f.IntVar(&o.SendSize, "send-size", 0, "bytes that a call sends in a one-way test (default: the send buffer)")
	f.Uint16Var(&o.DataPort, "data-port", 0, "port that the server is to use for the test (default: any)")
	f.IntVar(&o.CPU, "cpu", -1, "processor to measure on (default: any)")
	f.IntVar(&o.ServerCPU, "server-cpu", -1, "processor that the server is to run the test on (default: any)")
	f.StringVar(&o.Congestion, "congestion", "", "congestion control of both sides (default: the kernels')")
	f.StringVar(&o.Passphrase, "passphrase", "", "what the server wants first")
	f.DurationVar(&o.Settle, "settle", 0, "time to do nothing first, so that the start of this program is over")
	out.bind(c)
	return c
}

// parseServer takes an address with or without a port, IPv6 with or without brackets.
func parseServer(text string) (netip.AddrPort, error) {
	host, port := text, strconv.Itoa(netperf.DefaultPort)
	if h, p, err := net.SplitHostPort(text); err == nil {
		host, port = h, p
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("server %q: use an IP address, with a port if it is not %d: %w", text, netperf.DefaultPort, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return netip.AddrPort{}, errors.Join(fmt.Errorf("server %q: %q is not a port", text, port), err)
	}
	return netip.AddrPortFrom(addr, uint16(n)), nil
}

func printPerf(w io.Writer, r *netperf.Result) error {
	t := table(w, 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, name+":\t"+format+"\n", args...) }
	row("Test", "%s, %s to %s, %.2f s", r.Test, r.Client, r.Server, r.Seconds)
	if l := r.Latency; l != nil {
		row("Transactions", "%d, %.1f/s", r.Transactions, r.Rate)
		row("RT_LATENCY", "%.2f us", r.RTLatency)
		row("P50, P90, P99, P99.9", "%.1f, %.1f, %.1f, %.1f us", l.P50, l.P90, l.P99, l.P999)
		row("Min, max, standard deviation", "%.1f, %.1f, %.1f us", l.Min, l.Max, l.StdDev)
	} else {
		row("Throughput", "%.1f Mbit/s (%d bytes)", r.Throughput, r.Bytes)
	}
	if r.Lost > 0 {
		row("Lost", "%d datagrams without an answer", r.Lost)
	}
	row("Processor pressure, steal", "%.1f %%, %.1f %%", 100*max(r.Noise.Pressure, 0), 100*r.Noise.Steal)
	for _, name := range slices.Sorted(maps.Keys(r.Counters)) {
		row(name, "%d", r.Counters[name])
	}
	return t.Flush()
}
