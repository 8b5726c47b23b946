// SPDX-License-Identifier: Apache-2.0

// Package measure is the commands of both ends of a measurement, `perf server` and `perf client`. They
// need no cluster and no agent: lash has them for any two hosts, lash-agent for pods and bare namespaces.
package measure

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
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"lash.internal/lash/perf/netperf"
)

// Main runs the command line `perf server|client` and returns the exit code.
func Main(ctx context.Context, args []string, out, errOut io.Writer) int {
	root := &cobra.Command{
		Use: "perf", Short: "Measure the network, as netperf does", SilenceUsage: true, SilenceErrors: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetOut(out)
	root.SetErr(errOut)
	root.AddCommand(NewServer(out, errOut), NewClient(out), NewWait())
	root.SetArgs(args)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(errOut, "Error: "+err.Error())
		return 1
	}
	return 0
}

// checkOutput says what is wrong with the flag -o.
func checkOutput(o string) error {
	if o == "text" || o == "json" {
		return nil
	}
	return fmt.Errorf("invalid output %q: want text or json", o)
}

// ready is the line that the server writes when it listens.
type ready struct {
	Ready  bool   `json:"ready"`
	Listen string `json:"listen"`
}

// NewServer is the command `server`.
func NewServer(out, errOut io.Writer) *cobra.Command {
	var form string
	var cpu int
	s := netperf.Server{Log: slog.New(slog.NewTextHandler(errOut, nil))}
	c := &cobra.Command{
		Use: "server", Short: "Serve netperf's omni tests until told to end", Args: cobra.NoArgs,
		Long: `Serve clients of "perf client", "netperf" and netperf itself (2.6.0 or later) until told to end.
With a host in --listen the server binds nothing else, whatever a client asks for. Sizes and times that a
client may ask for are bounded, no file is read or written, and a session without a test ends after 5 minutes.`,
		Example: `  lash perf server --listen 192.0.2.1:12865 --passphrase secret`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkOutput(form); err != nil {
				return err
			}
			if cpu >= 0 {
				s.CPU = &cpu
			}
			return s.Run(c.Context(), func(a net.Addr) {
				if form == "json" {
					_ = json.NewEncoder(out).Encode(ready{true, a.String()})
					return
				}
				fmt.Fprintln(out, "listening on "+a.String())
			})
		},
	}
	f := c.Flags()
	f.StringVar(&s.Listen, "listen", fmt.Sprintf(":%d", netperf.DefaultPort), "address and port of the control connections")
	f.Uint16Var(&s.DataPort, "data-port", 0, "port of tests whose client leaves the choice to the server (default: any)")
	f.IntVar(&cpu, "cpu", -1, "processor to run tests on (default: the one that a client asks for)")
	f.StringVar(&s.Passphrase, "passphrase", "", "what clients have to send first")
	f.StringVarP(&form, "output", "o", "text", "text, or json: announce the address as a line of JSON")
	return c
}

// NewWait is the command `wait`.
func NewWait() *cobra.Command {
	var limit time.Duration
	c := &cobra.Command{
		Use: "wait ADDRESS:PORT...", Short: "Wait until addresses take TCP connections", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			for _, a := range args {
				if _, _, err := net.SplitHostPort(a); err != nil {
					return fmt.Errorf("%q: use ADDRESS:PORT: %w", a, err)
				}
			}
			ctx, cancel := context.WithTimeoutCause(c.Context(), limit, fmt.Errorf("not within %s", limit))
			defer cancel()
			return netperf.Await(ctx, args)
		},
	}
	c.Flags().DurationVar(&limit, "timeout", time.Minute, "how long to wait")
	return c
}

// clientFlags are the flags of a measurement beside its options.
type clientFlags struct {
	netperf.Options
	test      string
	streams   int
	connect   []uint
	selectors string
	format    string
	output    string
}

// forms are the names of netperf's output formats.
var forms = map[string]netperf.Form{"csv": netperf.CSV, "keyval": netperf.KeyVal, "columns": netperf.Columns}

// NewClient is the command `client`.
func NewClient(out io.Writer) *cobra.Command {
	var f clientFlags
	c := &cobra.Command{
		Use: "client SERVER[:PORT]", Short: "Measure the way to a server", Args: cobra.ExactArgs(1),
		Long: `Measure the way to a "perf server", a netserver of Lash or of netperf.

Behind a Service or another translation of ports, --data-port is the port that the server shall use, and
--connect-port the one under which the client reaches it. RT_LATENCY is netperf's: the time of the test by
its transactions; percentiles are exact.`,
		Example: `  lash perf client 192.0.2.1 -t TCP_CRR -l 10s
  lash perf client 192.0.2.1:30001 -t TCP_CRR --data-port 12866 --connect-port 30002
  lash perf client 192.0.2.1 -t TCP_RR --rate 1000 -o json`,
		RunE: func(c *cobra.Command, args []string) error { return f.run(c.Context(), args[0], out) },
	}
	fl := c.Flags()
	fl.StringVarP(&f.test, "test", "t", string(netperf.TCPRR), netperf.TestNames())
	fl.DurationVarP(&f.Length, "length", "l", 10*time.Second, "time to measure, in whole seconds")
	fl.IntVar(&f.Count, "count", 0, "end after so many transactions or bytes instead")
	fl.Float64Var(&f.Rate, "rate", 0, "transactions to begin in a second, late ones counted from when they were due (default: one after the other)")
	fl.IntVar(&f.streams, "streams", 1, "tests at the same time")
	fl.IntVar(&f.RequestSize, "request-size", 1, "bytes of a request")
	fl.IntVar(&f.ResponseSize, "response-size", 1, "bytes of a response")
	fl.IntVar(&f.SendSize, "send-size", 0, "bytes that a call sends in a one-way test (default: the send buffer)")
	fl.BoolVar(&f.NoDelay, "no-delay", false, "set TCP_NODELAY")
	fl.Uint16Var(&f.DataPort, "data-port", 0, "port that the server is to use for the test, plus one for each further stream (default: any)")
	fl.UintSliceVar(&f.connect, "connect-port", nil, "port to connect to whatever the server answers, one for each stream")
	fl.IntVar(&f.CPU, "cpu", -1, "processor to measure on (default: any)")
	fl.IntVar(&f.ServerCPU, "server-cpu", -1, "processor that the server is to run the test on (default: any)")
	fl.StringVar(&f.Congestion, "congestion", "", "congestion control of both sides (default: the kernels')")
	fl.StringVar(&f.Passphrase, "passphrase", "", "what the server wants first")
	fl.DurationVar(&f.Settle, "settle", 0, "time to do nothing first, so that the start of this program is over")
	fl.StringVar(&f.selectors, "selectors", "", "print netperf's output selectors, separated by commas")
	fl.StringVar(&f.format, "netperf-format", "csv", "csv (-o), keyval (-k) or columns (-O), with --selectors")
	fl.StringVarP(&f.output, "output", "o", "text", "text or json")
	return c
}

func (f *clientFlags) run(ctx context.Context, server string, out io.Writer) error {
	err := checkOutput(f.output)
	if err != nil {
		return err
	}
	form, known := forms[f.format]
	if !known {
		return fmt.Errorf("invalid --netperf-format %q: want csv, keyval or columns", f.format)
	}
	var selection netperf.Selection
	if f.selectors != "" {
		if selection, err = netperf.ParseSelection(f.selectors); err != nil {
			return err
		}
	}
	o := f.Options
	if o.Test, err = netperf.ParseTest(f.test); err != nil {
		return err
	}
	var connect []uint16
	for _, p := range f.connect {
		if p == 0 || p > 65535 {
			return fmt.Errorf("--connect-port %d: use 1 to 65535", p)
		}
		connect = append(connect, uint16(p))
	}
	if o.Server, err = parseServer(ctx, server); err != nil {
		return err
	}
	r, err := netperf.MeasureStreams(ctx, o, f.streams, connect)
	if err != nil {
		return err
	}
	switch {
	case f.output == "json":
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(&r)
	case selection != nil:
		outcome := netperf.Outcome{Result: r, MeanThroughput: r.Throughput + r.Rate, MeanSeconds: r.Seconds}
		return selection.Write(out, form, true, &outcome)
	}
	return printResult(out, &r)
}

// parseServer takes an address or a name, with or without a port, IPv6 with or without brackets.
func parseServer(ctx context.Context, text string) (netip.AddrPort, error) {
	host, port := text, strconv.Itoa(netperf.DefaultPort)
	if h, p, err := net.SplitHostPort(text); err == nil {
		host, port = h, p
	}
	if strings.Count(host, ":") > 0 {
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil {
			return netip.AddrPort{}, errors.Join(fmt.Errorf("server %q: use a name or an IP address, with a port if it is not %d", text, netperf.DefaultPort), err)
		}
	}
	return netperf.ResolveServer(ctx, "ip", host, port)
}

func printResult(w io.Writer, r *netperf.Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, name+":\t"+format+"\n", args...) }
	if r.Streams > 1 {
		row("Test", "%s, %d streams to %s, %.2f s", r.Test, r.Streams, r.Server, r.Seconds)
	} else {
		row("Test", "%s, %s to %s, %.2f s", r.Test, r.Client, r.Server, r.Seconds)
	}
	unit := "KB"
	if l := r.Latency; l != nil {
		unit = "transaction"
		row("Transactions", "%d, %.1f/s", r.Transactions, r.Rate)
		row("RT_LATENCY", "%.2f us", r.RTLatency)
		row("P50, P90, P99, P99.9", "%.1f, %.1f, %.1f, %.1f us", l.P50, l.P90, l.P99, l.P999)
		row("Min, max, standard deviation", "%.1f, %.1f, %.1f us", l.Min, l.Max, l.StdDev)
	} else {
		row("Throughput", "%.1f Mbit/s (%d bytes)", r.Throughput, r.Bytes)
	}
	if r.Due > r.Transactions {
		row("Behind the rate", "%d of %d transactions did not begin in time", r.Due-r.Transactions, r.Due)
	}
	if r.Test == netperf.UDPStream {
		row("Sent", "%d bytes, %.1f %% did not arrive", r.Sent, 100*(1-float64(r.Bytes)/float64(max(r.Sent, 1))))
	}
	if r.Test == netperf.UDPRR && r.Lost > 0 {
		row("Lost", "%d datagrams without an answer", r.Lost)
	}
	row("Processor time", "%.2f us here, %.2f us there a %s; %.2f us of the client itself", r.LocalDemand, r.RemoteDemand, unit, r.ThreadDemand)
	row("Processor pressure, steal", "%.1f %%, %.1f %%", 100*max(r.Noise.Pressure, 0), 100*r.Noise.Steal)
	for _, what := range slices.Sorted(maps.Keys(r.Errors)) {
		row("Failed connections", "%d: %s", r.Errors[what], what)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Counters)) {
		row(name, "%d", r.Counters[name])
	}
	return t.Flush()
}
