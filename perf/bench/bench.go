// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"lash.internal/lash/connectivity/cluster"
	"lash.internal/lash/perf/lab"
	"lash.internal/lash/perf/netperf"
)

// Options say what to measure and for how long.
type Options struct {
	Name   string // of the clusters; one of that name that is there is deleted
	Bin    string // folder of lash, lash-agent and lash-cni
	Self   string // a program that calls ServeCNIJob when its argument is "cni"
	Groups []string
	Tests  []netperf.Test
	IPv6   bool
	Rounds int
	// Attempts is how many rounds there may be when some are disturbed, Patience how long to wait for a
	// quiet machine before a round.
	Attempts int
	Patience time.Duration
	Length   time.Duration // of a sample, whole seconds
	// ClientCPU and ServerCPU are the processors that the two sides are bound to.
	ClientCPU, ServerCPU int
	Starts               int           // of the agent, adopted and clean
	Idle                 time.Duration // for which the idle agent is watched
	// Netperf is the folder of the real netperf, to compare the measuring program with; empty means PATH.
	Netperf string
	// Command is what the user typed, for the report.
	Command string
	// Records gets a line for each record.
	Records io.Writer
	Say     func(format string, args ...any)
}

// congestion is the control that one-way tests use: known to every kernel and allowed to every process.
const congestion = "reno"

// settle is the pause between the start of a client and its test. Starting a process in a pod takes many
// others, which must not run beside the test; bare clients wait as long.
const settle = 300 * time.Millisecond

// DefaultTests are the tests of a run.
var DefaultTests = []netperf.Test{netperf.TCPRR, netperf.TCPCRR, netperf.TCPStream}

// run is a bench at work.
type run struct {
	o      Options
	groups []Group
	say    func(string, ...any)
	all    []Record
	image  string // file
	dir    string // temporary
}

// Run measures everything that the options ask for and returns the records.
func Run(ctx context.Context, o Options) ([]Record, error) {
	b := &run{o: o, say: o.Say}
	var err error
	if b.groups, err = pickGroups(o.Groups); err != nil {
		return nil, err
	}
	if o.Rounds < 1 || o.Length < time.Second || o.Length%time.Second != 0 {
		return nil, fmt.Errorf("%d rounds of %s: use at least one round and whole seconds", o.Rounds, o.Length)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("the bench needs root: it makes namespaces and clusters")
	}
	if b.dir, err = os.MkdirTemp("", "lash-bench-"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(b.dir)
	m, err := b.describe(ctx)
	if err != nil {
		return nil, err
	}
	if err := b.record(Record{Machine: m}); err != nil {
		return nil, err
	}
	tools := slices.DeleteFunc(slices.Clone(b.groups), func(g Group) bool { return g.Tool == nil })
	if err := b.compareTools(ctx, tools); err != nil {
		return b.all, err
	}
	if len(tools) == len(b.groups) {
		return b.all, nil
	}
	b.image = filepath.Join(b.dir, "lash.tar")
	k := &kube{lash: filepath.Join(o.Bin, "lash"), kubeconfig: filepath.Join(b.dir, "kubeconfig")}
	if _, err := k.lashCLI(ctx, "image", "save", b.image); err != nil {
		return b.all, err
	}
	b.say("sizes and start of the programs")
	if err := b.measureSizes(ctx, b.image); err != nil {
		return b.all, err
	}
	for _, native := range []bool{false, true} {
		groups := slices.DeleteFunc(slices.Clone(b.groups), func(g Group) bool { return g.Tool != nil || g.Native != native })
		if len(groups) == 0 {
			continue
		}
		if err := b.inCluster(ctx, k, native, groups); err != nil {
			return b.all, err
		}
	}
	return b.all, nil
}

func (b *run) record(r Record) error {
	r.Time = time.Now().UTC().Truncate(time.Millisecond)
	b.all = append(b.all, r)
	return writeRecord(b.o.Records, r)
}

func (b *run) figures(all ...Figure) error {
	for _, f := range all {
		if err := b.record(Record{Figure: &f}); err != nil {
			return err
		}
	}
	return nil
}

// inCluster makes a cluster, measures the groups in it and deletes it.
func (b *run) inCluster(ctx context.Context, k *kube, native bool, groups []Group) (err error) {
	if err := cluster.Delete(ctx, "", b.o.Name); err != nil && !errors.Is(err, cluster.ErrNotFound) {
		return err
	}
	family := "ipv4"
	if b.o.IPv6 {
		family = "dual"
	}
	k.c, err = cluster.Create(ctx, cluster.Options{
		Name: b.o.Name, Workers: 1, IPFamily: family, Kubeconfig: k.kubeconfig,
		Progress: func(step string) { b.say("cluster: %s", step) },
	})
	if err != nil {
		return err
	}
	defer func() {
		b.say("deleting the cluster")
		err = errors.Join(err, cluster.Delete(context.WithoutCancel(ctx), "", b.o.Name))
	}()
	if err := cluster.LoadImage(ctx, "", b.o.Name, b.image); err != nil {
		return err
	}
	if err := b.install(ctx, k, native); err != nil {
		if native && ctx.Err() == nil {
			for _, g := range groups {
				b.say("%s is not measured: %v", g.Name, err)
				if err := b.record(Record{Skipped: &Skipped{What: g.Title, Why: err.Error()}}); err != nil {
					return err
				}
			}
			return nil
		}
		return err
	}
	b.say("starting the pods")
	pods, err := k.deploy(ctx, b.o.ServerCPU, b.o.IPv6)
	if err != nil {
		return err
	}
	if !native && b.o.Idle > 0 {
		if err := b.measureIdle(ctx, k); err != nil {
			return err
		}
	}
	if err := b.measurePaths(ctx, k, pods, groups); err != nil {
		return err
	}
	if native {
		return nil
	}
	if err := b.measureCNI(ctx, k); err != nil {
		return err
	}
	if b.o.Starts > 0 {
		return b.measureStarts(ctx, k)
	}
	return nil
}

// install brings Lash into the cluster, as a user would.
func (b *run) install(ctx context.Context, k *kube, native bool) error {
	args := []string{"install", "--wait", "--yes"}
	if native {
		args = append(args, "--set", "routingMode=native,autoDirectNodeRoutes=true")
		for _, cidr := range k.c.PodCIDRs {
			p, err := netip.ParsePrefix(cidr)
			if err != nil {
				return fmt.Errorf("pod CIDR: %w", err)
			}
			key := "ipv4NativeRoutingCIDR"
			if p.Addr().Is6() {
				key = "ipv6NativeRoutingCIDR"
			}
			args = append(args, "--set", key+"="+cidr)
		}
	}
	b.say("lash install%s", map[bool]string{true: ", native routing"}[native])
	if _, err := k.lashCLI(ctx, args...); err != nil {
		return err
	}
	_, err := k.lashCLI(ctx, "status", "--wait")
	return err
}

// measurePaths builds the lab beside the cluster and measures the groups.
func (b *run) measurePaths(ctx context.Context, k *kube, pods map[string]pod, groups []Group) error {
	o := b.labOptions()
	agent := b.agentFile()
	var err error
	if o.ClientGroups, err = lab.GroupsOf(pods[client].pid); err != nil {
		return err
	}
	if o.ServerGroups, err = lab.GroupsOf(pods[serverSame].pid); err != nil {
		return err
	}
	// The bare paths get the MTU that pods have, which a first test of each path tells.
	for _, g := range groups {
		first, err := b.overLash(ctx, k, pods[g.Server], netperf.TCPRR)
		if err != nil {
			return fmt.Errorf("%s: %w", g.Name, err)
		}
		switch {
		case g.Server == serverSame:
			o.LocalMTU = first.PathMTU
		case g.Native:
			o.RemoteMTU = first.PathMTU
		default:
			o.TunnelMTU = first.PathMTU
		}
	}
	b.say("building the bare paths; MTU %d on a node, %d between nodes, %d in the tunnel", o.LocalMTU, o.RemoteMTU, o.TunnelMTU)
	l, err := lab.New(ctx, o)
	if err != nil {
		return fmt.Errorf("bare paths: %w", err)
	}
	defer l.Close()
	var courses []*course
	for _, test := range b.o.Tests {
		for _, g := range groups {
			c := &course{group: g.Name, test: test}
			c.paths = append(c.paths, path{LashPath, func(ctx context.Context, t netperf.Test) (netperf.Result, error) {
				return b.overLash(ctx, k, pods[g.Server], t)
			}})
			for _, bare := range g.Bare {
				c.paths = append(c.paths, path{bare.Name, func(ctx context.Context, t netperf.Test) (netperf.Result, error) {
					return b.overBare(ctx, l, bare, agent, t)
				}})
			}
			courses = append(courses, c)
		}
	}
	if err := b.field().run(ctx, courses); err != nil {
		return err
	}
	for _, n := range lab.PlainNodes {
		if tracked, err := l.Tracked(ctx, n); err != nil || tracked != 0 {
			return errors.Join(fmt.Errorf("node %s of the bare paths tracks %d connections, it must not", n, tracked), err)
		}
	}
	return b.recordTracked(ctx, k, groups[0].Native)
}

func (b *run) agentFile() string { return filepath.Join(b.o.Bin, "lash-agent") }

func (b *run) labOptions() lab.Options {
	return lab.Options{
		IPv6: b.o.IPv6, LocalMTU: 1500, RemoteMTU: 1500, TunnelMTU: 1450,
		Server: []string{b.agentFile(), "perf", "server", "--cpu", strconv.Itoa(b.o.ServerCPU)},
	}
}

func (b *run) field() *field {
	return &field{
		want: b.o.Rounds, attempts: max(b.o.Attempts, b.o.Rounds), patience: b.o.Patience, pressure: watchPressure,
		record: func(s Sample) error { return b.record(Record{Sample: &s}) }, say: b.say,
	}
}

// recordTracked notes how many connections the kernel of the worker tracks: a kubelet's rules make it
// look at what passes the host's stack, the packets of a tunnel among it.
func (b *run) recordTracked(ctx context.Context, k *kube, native bool) error {
	worker, _, err := k.nodes()
	if err != nil {
		return err
	}
	var out, errOut bytes.Buffer
	code, err := cluster.Exec(ctx, "", k.c.Name, worker, []string{"cat", "/proc/sys/net/netfilter/nf_conntrack_count"}, nil, &out, &errOut)
	if err != nil || code != 0 {
		return errors.Join(fmt.Errorf("connections that %s tracks: %s", worker, errOut.String()), err)
	}
	mode := map[bool]string{false: "VXLAN", true: "native"}[native]
	n, err := strconv.ParseFloat(strings.TrimSpace(out.String()), 64)
	if err != nil {
		return fmt.Errorf("connections that %s tracks: %w", worker, err)
	}
	return b.figures(Figure{Name: "connections that the kernel of a Lash node tracks after the rounds, " + mode, Unit: "entries", Values: []float64{n}})
}

// clientArgs is the command line of a client behind its program.
func (b *run) clientArgs(to netip.AddrPort, test netperf.Test) []string {
	return []string{
		"perf", "client", to.String(), "--test", string(test), "--length", b.o.Length.String(),
		"--cpu", strconv.Itoa(b.o.ClientCPU), "--server-cpu", strconv.Itoa(b.o.ServerCPU), "--settle", settle.String(), "--output", "json",
	}
}

// fair adds what makes one-way tests of pods and bare paths alike.
func fair(args []string, test netperf.Test) []string {
	if !test.Transactions() {
		args = append(args, "--congestion", congestion)
	}
	return args
}

func (b *run) overLash(ctx context.Context, k *kube, server pod, test netperf.Test) (netperf.Result, error) {
	to, err := netip.ParseAddr(server.ip)
	if err != nil {
		return netperf.Result{}, fmt.Errorf("address of pod %s: %w", server.name, err)
	}
	return decode(k.kubectl(ctx, append([]string{"-n", namespace, "exec", client, "--", "/usr/bin/lash-agent"}, fair(b.clientArgs(netip.AddrPortFrom(to, netperf.DefaultPort), test), test)...)...))
}

func (b *run) overBare(ctx context.Context, l *lab.Lab, p Bare, agent string, test netperf.Test) (netperf.Result, error) {
	to, err := l.Addr(p.To, p.Tunnel)
	if err != nil {
		return netperf.Result{}, err
	}
	return decode(l.Exec(ctx, p.From, append([]string{agent}, fair(b.clientArgs(netip.AddrPortFrom(to, netperf.DefaultPort), test), test)...)...))
}

func decode(out []byte, err error) (netperf.Result, error) {
	var r netperf.Result
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("result: %w", err)
	}
	return r, nil
}
