// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/cmd/kube"
	"lash.internal/lash/cmd/term"
	"lash.internal/lash/connectivity/cluster"
	nodeimage "lash.internal/lash/install/image"
	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/paths"
	"lash.internal/lash/perf/report"
	"lash.internal/lash/perf/rounds"
	"lash.internal/lash/perf/stage"
)

// perfOutput are the flags for what becomes of a report.
type perfOutput struct {
	output, html, svg, csv string
	selectors, format      string
}

func (o *perfOutput) bind(f *pflag.FlagSet) {
	f.StringVarP(&o.output, "output", "o", "table", "table, json, csv, markdown or netperf (see --selectors)")
	f.StringVar(&o.html, "html", "", "also write a page with tables and plots to this file; it needs no network")
	f.StringVar(&o.svg, "svg", "", "also write the plot to this file")
	f.StringVar(&o.csv, "csv", "", "also write a line for each sample to this file")
	f.StringVar(&o.selectors, "selectors", "RT_LATENCY,P50_LATENCY,P90_LATENCY,P99_LATENCY,THROUGHPUT,THROUGHPUT_UNITS", "netperf's output selectors, for -o netperf")
	f.StringVar(&o.format, "netperf-format", "csv", "csv, keyval or columns, for -o netperf")
}

// netperfForms are the names of netperf's output formats.
var netperfForms = map[string]netperf.Form{"csv": netperf.CSV, "keyval": netperf.KeyVal, "columns": netperf.Columns}

func (o *perfOutput) check() error {
	if !slices.Contains([]string{"table", "json", "csv", "markdown", "netperf"}, o.output) {
		return usageError("invalid --output %q: want table, json, csv, markdown or netperf", o.output)
	}
	if _, known := netperfForms[o.format]; !known {
		return usageError("invalid --netperf-format %q: want csv, keyval or columns", o.format)
	}
	if _, err := netperf.ParseSelection(o.selectors); err != nil {
		return usageError("invalid --selectors: %w", err)
	}
	return nil
}

// write prints a report and writes the files.
func (o *perfOutput) write(w World, r *report.Report) error {
	files := map[string]func(io.Writer) error{o.csv: r.WriteCSV, o.svg: r.WriteSVG, o.html: r.WriteHTML}
	delete(files, "")
	for name, write := range files {
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		if err := errors.Join(write(f), f.Close()); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	switch o.output {
	case "json":
		return r.Write(w.Out)
	case "csv":
		return r.WriteCSV(w.Out)
	case "markdown":
		return r.WriteMarkdown(w.Out)
	case "netperf":
		return o.writeNetperf(w.Out, r)
	}
	t := term.New(w.Out, w.Getenv)
	writePerf(t, r)
	if r.Kind == report.KindServices {
		for _, p := range r.Plots() {
			t.Println("")
			t.Plot(p.Title, p.X, p.Y, plotLines(p))
		}
	}
	return nil
}

func (o *perfOutput) writeNetperf(out io.Writer, r *report.Report) error {
	selection, err := netperf.ParseSelection(o.selectors)
	if err != nil {
		return err
	}
	for _, s := range r.Series {
		for i, x := range s.Results() {
			if i == 0 {
				fmt.Fprintf(out, "# %s, %d Services\n", s.Title(), s.Services)
			}
			outcome := netperf.Outcome{Result: *x, MeanThroughput: x.Rate + x.Throughput, MeanSeconds: x.Seconds}
			if err := selection.Write(out, netperfForms[o.format], i == 0, &outcome); err != nil {
				return err
			}
		}
	}
	return nil
}

// stageFlags are the flags of the place of a measurement.
type stageFlags struct {
	namespace, image, clientNodes, serverNodes string
}

func (f *stageFlags) bind(fl *pflag.FlagSet) {
	fl.StringVar(&f.namespace, "test-namespace", stage.DefaultNamespace, "namespace to make; pods on the hosts' network get one with -host behind the name")
	fl.StringVar(&f.image, "performance-image", "", `image of the pods (default: the agents' own, or what "lash image save" writes)`)
	fl.StringVar(&f.image, "image", "", "the same")
	fl.StringVar(&f.clientNodes, "node-selector-client", "", "labels of the client's node")
	fl.StringVar(&f.serverNodes, "node-selector-server", "", "labels of the servers' nodes")
}

// perfQPS is the rate of requests that measurements allow themselves: thousands of Services are made.
const perfQPS = 500

// options is the place in one cluster.
func (f *stageFlags) options(cl *kube.Client, say func(string, ...any)) (stage.Options, error) {
	cfg := rest.CopyConfig(cl.Config)
	cfg.QPS, cfg.Burst = perfQPS, 2*perfQPS
	fast, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return stage.Options{}, err
	}
	o := stage.Options{
		Name: cl.Context, Client: fast, Network: cl.Namespace, Namespace: f.namespace, Image: f.image,
		DefaultImage: nodeimage.Repository + ":" + api.Version, ClientSelector: f.clientNodes, ServerSelector: f.serverNodes,
		Version: api.Version, Say: say,
	}
	o.Exec = func(ctx context.Context, ns, pod, container string, out, errOut io.Writer, command ...string) error {
		return cl.ExecStream(ctx, ns, pod, container, kube.Streams{Out: out, Err: errOut}, command...)
	}
	if name, local := strings.CutPrefix(cl.Cluster, "lash-"); local {
		if c, err := cluster.Get("", name); err == nil && c.CNI != "none" {
			o.CNI = c.CNI
		}
	}
	return o, nil
}

// perfSteps tells of the preparations and of the samples on standard error.
type perfSteps struct {
	t      *term.Term
	step   *term.Step // of the samples
	making *term.Step // of the preparation under way
}

func (p *perfSteps) Step(format string, args ...any) func(error) {
	p.finish(nil)
	s := p.t.Step(format, args...)
	p.making = s
	return func(err error) {
		p.making = nil
		_ = s.Done(err)
	}
}

// Progress shows the sample that comes, and how long the rest will take.
func (p *perfSteps) Progress(x rounds.Progress) {
	if p.step == nil {
		p.step = p.t.Step("Measuring")
	}
	p.step.Detail("sample %d of %d, %s, %s left", x.Done+1, x.Of, x.What, x.Remaining.Round(time.Second))
}

func (p *perfSteps) finish(err error) {
	if p.step != nil {
		_ = p.step.Done(err)
		p.step = nil
	}
}

type perfRunFlags struct {
	stageFlags
	perfOutput
	tests, paths          []string
	samples, streams      int
	duration, delay       time.Duration
	messageSize           int
	rate                  float64
	sameNode, otherNode   bool
	podNet, hostNet       bool
	podToHost, hostToPod  bool
	rr, crr, udp          bool
	throughput, multi     bool
	ipv4, ipv6, cleanOnly bool
	reportDir             string
}

func newPerfRun(w World) *cobra.Command {
	var f perfRunFlags
	c := &cobra.Command{
		Use: "run", Short: "Measure between pods, nodes and Services of a cluster", Args: cobra.NoArgs,
		Long: `Deploy clients and servers from the agents' own image, measure by turns, and remove them again.

Node to node is always measured, to compare the rest with. Tests run in rounds, forwards and backwards by
turns, after a warm-up; the tables have medians, and mark what was measured while the machine was busy with
other things. -o json keeps every sample; ` + "`lash perf compare`" + ` compares two such files.

node-port-local is a node port of the node that has the backend, node-port-remote that of the other one.`,
		Example: `  lash perf run
  lash perf run --tests TCP_CRR --paths pod-ip,cluster-ip,node-port --samples 10 -o json > a.json
  lash perf run --tests UDP_STREAM --msg-size 1024 --other-node=false`,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c.Context(), w, f.listed()) },
	}
	fl := c.Flags()
	fl.StringSliceVar(&f.tests, "tests", []string{"TCP_RR", "TCP_CRR", "TCP_STREAM"}, netperf.TestNames())
	fl.StringSliceVar(&f.paths, "paths", []string{"pod-ip", "host-ip", "cluster-ip", "node-port"}, "pod-ip, host-ip, cluster-ip, node-port, load-balancer")
	fl.IntVar(&f.samples, "samples", 5, "samples of each test; 6 make a 95 % interval")
	fl.DurationVar(&f.duration, "duration", 2*time.Second, "of a sample, in whole seconds")
	fl.IntVar(&f.streams, "streams", 1, "of each test at the same time")
	f.common(fl)
	return c
}

// common are the flags of both spellings.
func (f *perfRunFlags) common(fl *pflag.FlagSet) {
	fl.IntVar(&f.messageSize, "msg-size", 1024, "bytes of a datagram, UDP_STREAM")
	fl.Float64Var(&f.rate, "rate", 0, "transactions to begin in a second, late ones counted from when they were due (default: one after the other)")
	fl.DurationVar(&f.delay, "setup-delay", 0, "wait between deployment and the first sample")
	fl.BoolVar(&f.sameNode, "same-node", true, "measure within a node")
	fl.BoolVar(&f.otherNode, "other-node", true, "measure between two nodes")
	fl.BoolVar(&f.podNet, "pod-net", true, "measure from the pod network")
	fl.BoolVar(&f.hostNet, "host-net", true, "measure from the hosts' network; node to node is measured in any case")
	fl.BoolVar(&f.podToHost, "pod-to-host", false, "measure from pods to nodes")
	fl.BoolVar(&f.hostToPod, "host-to-pod", false, "measure from nodes to pods")
	fl.BoolVarP(&f.ipv4, "ipv4", "4", false, "IPv4 only")
	fl.BoolVarP(&f.ipv6, "ipv6", "6", false, "IPv6 only")
	fl.BoolVar(&f.cleanOnly, "cleanup-only", false, "only remove what an earlier run left behind")
	f.stageFlags.bind(fl)
	f.perfOutput.bind(fl)
}

// newConnectivityPerf is the same measurement with the flags and tables of Cilium's command.
func newConnectivityPerf(w World) *cobra.Command {
	f := perfRunFlags{paths: []string{"pod-ip", "host-ip"}}
	c := &cobra.Command{
		Use: "perf", Short: "Measure between pods and nodes of a cluster", Args: cobra.NoArgs,
		Long: "The measurement of `lash perf run`, with the flags of `cilium connectivity perf`.",
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c.Context(), w, f.switched()) },
	}
	fl := c.Flags()
	fl.BoolVar(&f.rr, "rr", true, "TCP_RR, with --udp UDP_RR too")
	fl.BoolVar(&f.crr, "crr", false, "TCP_CRR")
	fl.BoolVar(&f.udp, "udp", false, "UDP tests too")
	fl.BoolVar(&f.throughput, "throughput", true, "TCP_STREAM, with --udp UDP_STREAM too")
	fl.BoolVar(&f.multi, "throughput-multi", true, "the same with --streams at once")
	fl.IntVar(&f.samples, "samples", 1, "samples of each test; 6 make a 95 % interval")
	fl.DurationVar(&f.duration, "duration", 10*time.Second, "of a sample, in whole seconds")
	fl.IntVar(&f.streams, "streams", 4, "of --throughput-multi")
	fl.StringVar(&f.reportDir, "report-dir", "", "also write the report as JSON into this folder")
	f.common(fl)
	for _, no := range []struct{ name, why string }{
		{"net-qos", "there is no bandwidth manager yet"},
		{"bandwidth", "there is no bandwidth manager yet"},
		{"unsafe-capture-kernel-profiles", "use perf(1) on the nodes"},
	} {
		v := fl.VarPF(&refused{off: "false", why: no.why}, no.name, "", no.why)
		v.Hidden, v.NoOptDefVal = true, "true"
	}
	return c
}

// perfTests is the tests of a run, or why there are none.
type perfTests struct {
	tests []stage.Test
	err   error
}

// listed are the tests of --tests.
func (f *perfRunFlags) listed() perfTests {
	var out perfTests
	for _, name := range f.tests {
		t, err := netperf.ParseTest(name)
		if err != nil {
			return perfTests{err: usageError("%w", err)}
		}
		out.tests = append(out.tests, stage.Test{Test: t, Streams: f.streams})
	}
	return out
}

// switched are the tests of the flags that are on.
func (f *perfRunFlags) switched() perfTests {
	var out perfTests
	add := func(on bool, t netperf.Test, streams int) {
		if on {
			out.tests = append(out.tests, stage.Test{Test: t, Streams: streams})
		}
	}
	add(f.rr, netperf.TCPRR, 1)
	add(f.rr && f.udp, netperf.UDPRR, 1)
	add(f.crr, netperf.TCPCRR, 1)
	add(f.throughput, netperf.TCPStream, 1)
	add(f.throughput && f.udp, netperf.UDPStream, 1)
	add(f.multi, netperf.TCPStream, f.streams)
	add(f.multi && f.udp, netperf.UDPStream, f.streams)
	return out
}

func (f *perfRunFlags) options(tests perfTests) (paths.Options, error) {
	o := paths.Options{
		FromPod: f.podNet, FromHost: f.hostNet, PodToHost: f.podToHost, HostToPod: f.hostToPod,
		Samples: f.samples, Length: f.duration, Warmup: time.Second, Delay: f.delay, Tests: tests.tests,
	}
	var err error
	if tests.err != nil {
		return o, tests.err
	}
	if o.Paths, err = paths.Parse(f.paths); err != nil {
		return o, usageError("%w", err)
	}
	for i := range o.Tests {
		o.Tests[i].Rate = f.rate
		if o.Tests[i].Test == netperf.UDPStream {
			o.Tests[i].MessageSize = f.messageSize
		}
	}
	switch {
	case f.ipv4 && f.ipv6:
		return o, usageError("-4 and -6 exclude each other: without both all families are measured")
	case f.ipv4:
		o.Family = 4
	case f.ipv6:
		o.Family = 6
	}
	switch {
	case f.samples < 1 || f.samples > 1000:
		return o, usageError("invalid --samples %d: want 1 to 1000", f.samples)
	case f.duration < time.Second || f.duration%time.Second != 0 || f.duration > time.Hour:
		return o, usageError("invalid --duration %s: want whole seconds, up to an hour", f.duration)
	case f.streams < 1 || f.streams > netperf.MaxStreams:
		return o, usageError("invalid --streams %d: want 1 to %d", f.streams, netperf.MaxStreams)
	case f.messageSize < 1 || f.messageSize > 65507:
		return o, usageError("invalid --msg-size %d: want 1 to 65507 bytes", f.messageSize)
	case f.rate < 0:
		return o, usageError("invalid --rate %v: want transactions a second", f.rate)
	case !f.sameNode && !f.otherNode:
		return o, usageError("--same-node and --other-node are both off: nothing is left to measure")
	}
	return o, f.check()
}

func (f *perfRunFlags) run(ctx context.Context, w World, tests perfTests) error {
	o, err := f.options(tests)
	if err != nil {
		return err
	}
	cl, err := w.Kube.Client()
	if err != nil {
		return err
	}
	if _, err := cl.Check(ctx); err != nil {
		return err
	}
	errTerm := term.New(w.Err, w.Getenv)
	steps := &perfSteps{t: errTerm}
	if o.Stage, err = f.stageFlags.options(cl, errTerm.Println); err != nil {
		return err
	}
	if f.cleanOnly {
		return stage.Clean(ctx, o.Stage)
	}
	o.Stage.Same, o.Stage.Other = f.sameNode, f.otherNode
	o.Step, o.Progress = steps.Step, steps.Progress
	o.Estimate = func(d time.Duration, n int) {
		errTerm.Println("ℹ️  %d samples, about %s", n, d.Round(time.Second))
	}
	rep, err := paths.Run(ctx, o)
	steps.finish(err)
	if rep != nil && len(rep.Series) > 0 {
		rep.Command = "lash " + strings.Join(w.Args, " ")
		if werr := f.write(w, rep); werr != nil {
			return errors.Join(err, werr)
		}
		if f.reportDir != "" {
			err = errors.Join(err, writeReportDir(f.reportDir, rep))
		}
		err = errors.Join(err, failedSamples(rep))
	}
	return err
}

func writeReportDir(dir string, rep *report.Report) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.Create(dir + "/lash-perf-" + rep.Started.Format("20060102-150405") + ".json")
	if err != nil {
		return err
	}
	return errors.Join(rep.Write(f), f.Close())
}

// failedSamples is the error when some have no result.
func failedSamples(r *report.Report) error {
	n := 0
	for _, s := range r.Series {
		k, _ := s.Failed()
		n += k
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%d samples have no result", n)
}
