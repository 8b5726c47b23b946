// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"lash.internal/lash/cmd/kube"
	"lash.internal/lash/cmd/term"
	"lash.internal/lash/connectivity/check"
	"lash.internal/lash/connectivity/probe"
)

type connectivityFlags struct {
	check.Options
	testNamespace string
	families      []string
	output        string
	junitFile     string
	junitProps    map[string]string
	timeout       time.Duration
	cleanup       bool
	cleanOnly     bool
	pause         bool
	zero          bool
	verbose       bool
	debug         bool
	list          bool
	externalIPv4  string
	externalIPv6  string
	serviceCIDRs  []string
}

func newConnectivity(w World) *cobra.Command {
	c := &cobra.Command{
		Use: "connectivity", Short: "Check that the network works", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newConnectivityTest(w), newConnectivityEcho(w), newConnectivityProbe(w), newConnectivitySoak(w), newConnectivityPerf(w))
	return c
}

// newConnectivityEcho is the server outside the cluster: the local cluster's external host runs it.
func newConnectivityEcho(w World) *cobra.Command {
	return &cobra.Command{
		Use: "echo [flags]", Short: "Serve what the connectivity test asks", Hidden: true, DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			return probe.EchoCommand(c.Context(), args, w.Out, w.Err)
		},
	}
}

// newConnectivityProbe is the client outside the cluster.
func newConnectivityProbe(w World) *cobra.Command {
	return &cobra.Command{
		Use: "probe [flags]", Short: "Ask as the connectivity test does", Hidden: true, DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			return probe.ProbeCommand(c.Context(), args, w.In, w.Out, w.Err)
		},
	}
}

// newConnectivitySoak is the same load outside pods, to compare with.
func newConnectivitySoak(w World) *cobra.Command {
	return &cobra.Command{
		Use: "soak [flags]", Short: "A steady load over one path", Hidden: true, DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			return probe.SoakCommand(c.Context(), args, w.In, w.Out, w.Err)
		},
	}
}

func newConnectivityTest(w World) *cobra.Command {
	var f connectivityFlags
	c := &cobra.Command{
		Use: "test", Short: "Try every path that the network has to offer", Args: cobra.NoArgs,
		Long: `Deploy clients and servers into a namespace of their own, try every path between pods, nodes, Services,
DNS, the API server and the outside, and remove them again. The test image is the one that the agents run,
so nothing is downloaded. No check is tried twice. After a failure the routes, the map entries and the
drops of both nodes are shown, and a sentence names the broken path.

Services of every type are tested, with addresses of --service-address-cidr for what a load balancer would give.
What needs a host outside runs where one is known: local clusters have one.

--test takes regular expressions TEST or TEST/SCENARIO; a leading ! leaves out what matches. --list shows them.

Exit code: 0 when all tests passed, 1 when one failed, 2 for a mistake in the command line, 3 when the cluster
cannot be reached, 4 when --timeout ran out, 130 after Ctrl-C.`,
		Example: `  lash connectivity test
  lash connectivity test --test no-policies/pod-to-pod,dns
  lash connectivity test --test '!pod-to-world' -o json`,
		RunE: func(c *cobra.Command, _ []string) error { return runConnectivity(c.Context(), w, &f) },
	}
	fl := c.Flags()
	fl.StringSliceVar(&f.Tests, "test", nil, "only the tests that match; a leading ! leaves out")
	fl.BoolVar(&f.list, "list", false, "list tests and scenarios and end")
	fl.StringVar(&f.testNamespace, "test-namespace", check.DefaultTestNamespace, "namespace to test in; -1 is added")
	fl.StringToStringVar(&f.NamespaceLabels, "namespace-labels", nil, "labels for the test namespace")
	fl.StringToStringVar(&f.NamespaceAnnotations, "namespace-annotations", nil, "annotations for the test namespace")
	fl.StringVarP(&f.output, "output", "o", "text", "text, json or junit")
	fl.StringVar(&f.junitFile, "junit-file", "", "also write a JUnit report to this file")
	fl.StringToStringVar(&f.junitProps, "junit-property", nil, "properties of the JUnit report")
	fl.DurationVar(&f.timeout, "timeout", 0, "end after this time (0: never)")
	fl.StringSliceVar(&f.families, "ip-families", []string{"ipv4", "ipv6"}, "families to test; those that the cluster lacks are left out")
	fl.BoolVar(&f.SingleNode, "single-node", false, "leave out what needs two nodes")
	fl.StringVar(&f.NodeSelector, "node-selector", "", "only nodes with these labels")
	fl.StringVar(&f.AgentDaemonSet, "agent-daemonset-name", check.DefaultAgentDaemonSet, "name of the agents' DaemonSet")
	fl.StringVar(&f.AgentSelector, "agent-pod-selector", check.DefaultAgentSelector, "labels of the agents' pods")
	fl.BoolVar(&f.cleanup, "cleanup", true, "remove the test namespace at the end")
	fl.BoolVar(&f.cleanOnly, "cleanup-only", false, "only remove what an earlier run left behind")
	fl.BoolVarP(&f.pause, "pause-on-fail", "p", false, "wait for Enter after a failed test")
	fl.BoolVar(&f.zero, "exit-zero-on-failure", false, "exit with 0 even when tests fail")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "show every action")
	fl.BoolVarP(&f.debug, "debug", "d", false, "show every action and what it took")
	fl.DurationVar(&f.RequestTimeout, "request-timeout", check.DefaultRequestTimeout, "time for one exchange")
	fl.IntVar(&f.Concurrency, "test-concurrency", check.DefaultConcurrency, "actions at a time")
	fl.StringVar(&f.ExternalTarget, "external-target", "", "host outside the cluster to fetch from over HTTP (default: the local cluster's own)")
	fl.StringVar(&f.externalIPv4, "external-ip", "", "IPv4 address outside the cluster to ping")
	fl.StringVar(&f.externalIPv6, "external-ipv6", "", "IPv6 address outside the cluster to ping")
	fl.StringSliceVar(&f.serviceCIDRs, "service-address-cidr", strings.Split(check.DefaultServicePrefixes, ","),
		"ranges, one a family, for the external IPs and load balancers' addresses of the test's Services")
	fl.StringVar(&f.ClusterDomain, "cluster-domain", check.DefaultClusterDomain, "DNS zone of the cluster")
	fl.StringVar(&f.Image, "image", "", "test image (default: the agents' own)")
	refuseFlags(fl)
	return c
}

// unsupported are flags that users of Cilium's command know and that have no meaning here (yet). A
// value that switches the thing off is accepted.
var unsupported = []struct{ name, off, why string }{
	{"multi-cluster", "", "there is no cluster mesh"},
	{"hubble", "false", "the test watches the agents' own drop events"},
	{"flow-validation", "disabled", "the test watches the agents' own drop events"},
	{"all-flows", "false", "the test watches the agents' own drop events"},
	{"print-flows", "false", "failures show the drops of the agents"},
	{"retry", "0", "no check is tried twice"},
	{"include-unsafe-tests", "false", "there are no unsafe tests"},
	{"include-conn-disrupt-test", "false", "there is no disruption test"},
	{"conn-disrupt-test-setup", "false", "there is no disruption test"},
	{"collect-sysdump-on-failure", "false", "the evidence is in the report (-o json)"},
	{"force-deploy", "true", "every run deploys anew"},
	{"curl-image", "", "the test image is the agents' own; see --image"},
	{"json-mock-image", "", "the test image is the agents' own; see --image"},
	{"dns-test-server-image", "", "the test image is the agents' own; see --image"},
	{"connect-timeout", "", "use --request-timeout"},
	{"external-cidr", "", "use --external-ip"},
	{"external-other-target", "", "use --external-target"},
	{"external-other-ip", "", "use --external-ip"},
	{"service-type", "NodePort", "Services of every type are tested"},
	{"flush-ct", "false", "connection tracking needs no flush"},
	{"assume-cilium-version", "", "the agents are asked"},
}

// refused is the value of a flag that cannot be set to anything but off.
type refused struct{ off, why string }

func (r *refused) String() string { return "" }
func (r *refused) Type() string   { return "string" }
func (r *refused) Set(v string) error {
	if v == r.off && r.off != "" {
		return nil
	}
	return fmt.Errorf("not supported: %s", r.why)
}

func refuseFlags(fl *pflag.FlagSet) {
	for _, u := range unsupported {
		v := fl.VarPF(&refused{off: u.off, why: u.why}, u.name, "", u.why)
		v.Hidden = true
		if u.off == "false" || u.off == "true" {
			v.NoOptDefVal = "true"
		}
	}
}

// options checks the flags and completes the options.
func (f *connectivityFlags) options(w World, cl *kube.Client, p check.Progress) (check.Options, error) {
	o := f.Options
	if !slices.Contains([]string{"text", "json", "junit"}, f.output) {
		return o, usageError("invalid --output %q: want text, json or junit", f.output)
	}
	for _, fam := range f.families {
		switch strings.ToLower(fam) {
		case "ipv4":
			o.Families = append(o.Families, 4)
		case "ipv6":
			o.Families = append(o.Families, 6)
		default:
			return o, usageError("invalid --ip-families %q: want ipv4 and ipv6", fam)
		}
	}
	if _, err := check.ParseFilter(o.Tests, check.Scenarios()); err != nil {
		return o, usageError("%w", err)
	}
	var err error
	if o.ServicePrefixes, err = check.ParseServicePrefixes(f.serviceCIDRs); err != nil {
		return o, usageError("invalid --service-address-cidr: %w", err)
	}
	for _, ip := range []string{f.externalIPv4, f.externalIPv6} {
		if ip != "" {
			o.ExternalIPs = append(o.ExternalIPs, ip)
		}
	}
	o.Client, o.Context, o.Namespace = cl.Clientset, cl.Context, cl.Namespace
	o.TestNamespace = f.testNamespace + "-1"
	o.Keep = !f.cleanup
	o.Progress = p
	o.Exec = func(ctx context.Context, ns, pod, container string, s check.Streams, command ...string) error {
		return cl.ExecStream(ctx, ns, pod, container, kube.Streams{In: s.In, Out: s.Out, Err: s.Err}, command...)
	}
	if f.pause {
		o.Pause = func(ctx context.Context, t check.TestResult) { pauseForEnter(ctx, w, t.Name) }
	}
	o.External = externalServer(cl.Cluster)
	return o, nil
}

// pauseForEnter returns when a line has come in, or ctx ends.
func pauseForEnter(ctx context.Context, w World, test string) {
	fmt.Fprintf(w.Err, "Test %s failed; the pods are still there. Press Enter to go on: ", test)
	got := make(chan struct{})
	go func() { // stays behind when ctx ends: a read of a terminal cannot be cancelled
		_, _ = bufio.NewReader(w.In).ReadString('\n')
		close(got)
	}()
	select {
	case <-got:
	case <-ctx.Done():
	}
}

func runConnectivity(ctx context.Context, w World, f *connectivityFlags) error {
	if f.list {
		listScenarios(w.Out)
		return nil
	}
	cl, err := w.Kube.Client()
	if err != nil {
		return err
	}
	errTerm := term.New(w.Err, w.Getenv)
	progress := &connectivityProgress{t: errTerm, verbose: f.verbose || f.debug, debug: f.debug}
	o, err := f.options(w, cl, progress)
	if err != nil {
		return err
	}
	if f.cleanOnly {
		return check.Clean(ctx, o)
	}
	if _, err := cl.Check(ctx); err != nil {
		return err
	}
	if f.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = kube.WithTimeout(ctx, f.timeout)
		defer cancel()
	}
	progress.Info("ℹ️  Testing context %s, image and agents from DaemonSet %s/%s", cl.Context, o.Namespace, o.AgentDaemonSet)
	rep, err := check.Run(ctx, o)
	if rep != nil && (err == nil || errors.Is(err, check.ErrFailed)) {
		if werr := writeReport(w, f, rep); werr != nil {
			return werr
		}
	}
	switch {
	case errors.Is(err, check.ErrFailed):
		if f.zero {
			return nil
		}
		return &ExitError{Code: ExitFailed, Err: err, Quiet: true}
	case err != nil && errors.Is(err, context.DeadlineExceeded):
		return &ExitError{Code: ExitTimeout, Err: err}
	}
	return err
}

func listScenarios(w io.Writer) {
	for _, s := range check.Scenarios() {
		fmt.Fprintf(w, "%s/%s\n", s.Test, s.Name)
	}
}

func writeReport(w World, f *connectivityFlags, rep *check.Report) error {
	if f.junitFile != "" {
		file, err := os.Create(f.junitFile)
		if err != nil {
			return err
		}
		err = rep.WriteJUnit(file, f.junitProps)
		if err = errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("write %s: %w", f.junitFile, err)
		}
	}
	switch f.output {
	case "json":
		return rep.WriteJSON(w.Out)
	case "junit":
		return rep.WriteJUnit(w.Out, f.junitProps)
	}
	writeConnectivity(term.New(w.Out, w.Getenv), rep)
	return nil
}

// maxShown bounds the failed actions of a test that are printed; the JSON report has all.
const maxShown = 8

func writeConnectivity(t *term.Term, rep *check.Report) {
	for _, test := range rep.Tests {
		failed := test.Failed()
		if len(failed) == 0 {
			continue
		}
		t.Println("%s", t.Bold(t.Text("📋 Test ["+test.Name+"] failed:")))
		for i, a := range failed {
			if i == maxShown {
				t.Println("  ... and %d more (-o json shows all)", len(failed)-i)
				break
			}
			t.Println("  %s %s: %s", t.Red(t.Text("❌")), a.Name, t.Red(a.Problem))
			for _, e := range a.Evidence {
				t.Println("       %s", t.Faint(e))
			}
		}
	}
	if len(rep.Diagnosis) > 0 {
		t.Println("%s", t.Bold(t.Text("🔎 What is broken:")))
		for _, s := range rep.Diagnosis {
			t.Println("  - %s", s)
		}
	}
	t.Println("%s", rep.Summary)
}

// connectivityProgress tells of a run on standard error.
type connectivityProgress struct {
	mu      sync.Mutex
	t       *term.Term
	verbose bool
	debug   bool
}

func (p *connectivityProgress) Step(format string, args ...any) func(error) {
	s := p.t.Step(format, args...)
	return func(err error) { _ = s.Done(err) }
}

func (p *connectivityProgress) Info(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.t.Println(format, args...)
}

func (p *connectivityProgress) Debug(format string, args ...any) {
	if p.debug {
		p.Info(format, args...)
	}
}

func (p *connectivityProgress) TestDone(t check.TestResult, number, of int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	mark, note := p.t.Green(p.t.Text("✓")), ""
	actions, longest := 0, 0.0
	for _, s := range t.Scenarios {
		actions += len(s.Actions)
		longest = max(longest, s.Seconds)
	}
	note = fmt.Sprintf("%d actions, %.1fs", actions, longest)
	switch {
	case t.Skipped:
		mark, note = p.t.Cyan("-"), "skipped: "+t.Scenarios[0].Skipped
	case !t.OK:
		mark, note = p.t.Red(p.t.Text("✗")), fmt.Sprintf("%d of %d actions failed", len(t.Failed()), actions)
	}
	p.t.Println("[%d/%d] %s %s %s", number, of, mark, t.Name, p.t.Faint("("+note+")"))
	if !p.verbose {
		return
	}
	for _, s := range t.Scenarios {
		if s.Skipped != "" {
			p.t.Println("    - %s skipped: %s", s.Name, s.Skipped)
		}
		for _, a := range s.Actions {
			m := "✓"
			if !a.OK {
				m = "✗"
			}
			p.t.Println("    %s %s %s", p.t.Text(m), a.Name, a.Problem)
		}
	}
}
