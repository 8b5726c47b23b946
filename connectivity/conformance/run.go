// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"lash.internal/lash/connectivity/cluster"
)

// Options say what to run.
type Options struct {
	Name     string   // of the cluster; one of that name that is there is deleted
	Self     string   // path of the program that runs this, which as "balance KUBECONFIG" is to call Balance
	Lash     string   // path of the program that installs
	Suite    string   // folder of the nested module
	Family   string   // ipv4, ipv6 or dual
	Workers  int      // nodes beside the control plane, each in a zone of three
	Set      []string // values for lash install
	Focus    string   // regular expression on the names of tests
	Procs    int      // tests at a time
	Keep     bool     // leave the cluster
	Cluster  string   // an existing cluster with Lash to use as it is, instead of one of our own
	Logs     string   // folder for everything that the tests print
	Progress func(format string, args ...any)
}

// bench is a cluster to run tests in.
type bench struct {
	o          Options
	c          *cluster.Cluster
	kubeconfig string
}

// Run builds, makes the cluster, installs Lash, runs the tests and deletes the cluster.
func Run(ctx context.Context, o Options) (_ *Report, err error) {
	say := func(step string) { o.Progress("%s", step) }
	s, err := buildSuite(ctx, o.Suite, say)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Logs, 0o755); err != nil {
		return nil, fmt.Errorf("folder of logs: %w", err)
	}
	archives, err := s.images(ctx, say)
	if err != nil {
		return nil, err
	}
	b := &bench{o: o, kubeconfig: filepath.Join(o.Logs, "kubeconfig")}
	if o.Cluster == "" {
		if err := b.create(ctx); err != nil {
			return nil, err
		}
		if !o.Keep {
			defer func() {
				o.Progress("deleting the cluster")
				err = errors.Join(err, cluster.Delete(context.WithoutCancel(ctx), "", o.Name))
			}()
		}
		if err := b.install(ctx); err != nil {
			return nil, err
		}
	} else if err := b.adopt(); err != nil {
		return nil, err
	}
	o.Progress("loading %d images", len(archives))
	for _, a := range archives {
		if err := cluster.LoadImage(ctx, "", b.c.Name, a); err != nil {
			return nil, err
		}
	}
	return b.test(ctx, s)
}

func (b *bench) create(ctx context.Context) (err error) {
	if err := cluster.Delete(ctx, "", b.o.Name); err != nil && !errors.Is(err, cluster.ErrNotFound) {
		return err
	}
	b.c, err = cluster.Create(ctx, cluster.Options{
		Name: b.o.Name, Workers: b.o.Workers, IPFamily: b.o.Family, Kubeconfig: b.kubeconfig,
		Progress: func(step string) { b.o.Progress("cluster: %s", step) },
	})
	return err
}

// adopt uses a cluster that is there.
func (b *bench) adopt() (err error) {
	if b.c, err = cluster.Get("", b.o.Cluster); err != nil {
		return err
	}
	data, err := cluster.Kubeconfig("", b.o.Cluster)
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.kubeconfig, data, 0o600); err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	return nil
}

// install puts Lash into the cluster as a user would, and the workers into zones.
func (b *bench) install(ctx context.Context) error {
	archive := filepath.Join(b.o.Logs, "lash-image.tar")
	defer os.Remove(archive)
	if _, err := b.run(ctx, b.o.Lash, "image", "save", archive); err != nil {
		return err
	}
	if err := cluster.LoadImage(ctx, "", b.o.Name, archive); err != nil {
		return err
	}
	b.o.Progress("lash install")
	args := []string{"install", "--wait", "--yes"}
	for _, v := range b.o.Set {
		args = append(args, "--set", v)
	}
	if _, err := b.run(ctx, b.o.Lash, args...); err != nil {
		return err
	}
	if _, err := b.run(ctx, b.o.Lash, "status", "--wait"); err != nil {
		return err
	}
	workers := 0
	for _, n := range b.c.Nodes {
		if n.Role != cluster.RoleWorker {
			continue
		}
		zone := fmt.Sprintf("topology.kubernetes.io/zone=zone-%d", 1+workers%zones)
		workers++
		if _, err := b.run(ctx, b.c.Kubectl, "label", "node", n.Name, zone); err != nil {
			return err
		}
	}
	return nil
}

// zones is how many zones the tests of traffic distribution ask for.
const zones = 3

// test runs the tests and reads what became of them.
func (b *bench) test(ctx context.Context, s *suite) (*Report, error) {
	results, log := filepath.Join(b.o.Logs, "results.json"), filepath.Join(b.o.Logs, "ginkgo.log")
	if err := os.Remove(results); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("results of an earlier run: %w", err)
	}
	f, err := os.Create(log)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	defer f.Close()
	kubeconfig, stop, err := b.outside(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	args := []string{
		s.ginkgo, "--no-color", "--silence-skips", "--procs", fmt.Sprint(b.o.Procs), "--timeout", "4h", "--keep-going",
		"--focus", cmp.Or(b.o.Focus, sigNetwork), "--output-dir", b.o.Logs, "--json-report", filepath.Base(results),
	}
	for _, e := range skips {
		args = append(args, "--skip", e.pattern)
	}
	args = append(args, s.tests, "--",
		"--kubeconfig", kubeconfig, "--kubectl-path", b.c.Kubectl, "--provider", "skeleton", "--disable-log-dump",
		"--e2e-output-dir", b.o.Logs)
	started := time.Now()
	b.o.Progress("running the tests, %d at a time; what they print is in %s", b.o.Procs, log)
	code, runErr := cluster.Exec(ctx, "", b.c.Name, string(cluster.RoleExternal), args, nil, f, f)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("the tests were interrupted: %w", context.Cause(ctx))
	}
	if runErr == nil && code != 0 {
		runErr = fmt.Errorf("ginkgo ended with %d", code)
	}
	data, err := os.ReadFile(results)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the tests left no results (see %s): %w", log, err), runErr)
	}
	r, err := parse(data, b.o.Focus)
	if err != nil {
		return nil, err
	}
	if runErr != nil && r.Count(Failed) == 0 && len(r.Suite) == 0 {
		return nil, fmt.Errorf("the tests failed as a whole (see %s): %w", log, runErr)
	}
	r.Kubernetes, r.Procs, r.Started, r.Took = s.version, b.o.Procs, started, time.Since(started)
	b.describe(r)
	out, err := b.run(ctx, b.o.Lash, "version", "--client")
	if err != nil {
		return nil, err
	}
	r.Lash, _, _ = strings.Cut(string(out), "\n")
	return r, nil
}

// describe says what cluster the tests ran in.
func (b *bench) describe(r *Report) {
	r.Family, r.KubeProxy = "dual", b.c.KubeProxy
	if len(b.c.Services) == 1 {
		r.Family = "ipv4"
		if strings.Contains(b.c.Services[0], ":") {
			r.Family = "ipv6"
		}
	}
	for _, n := range b.c.Nodes {
		if n.Role == cluster.RoleWorker {
			r.Workers++
		}
	}
}

// outside prepares the host outside the cluster, which the tests run on as on a laptop that has routes to
// load balancers: an address that is not of the nodes' network, and the stand-in for a load balancer. It
// returns the kubeconfig to use there.
func (b *bench) outside(ctx context.Context) (kubeconfig string, stop func(), err error) {
	host, err := b.c.Node(string(cluster.RoleExternal))
	if err != nil {
		return "", nil, err
	}
	for _, n := range b.c.Nodes {
		for i, a := range host.Addresses {
			client := clients[0]
			if a.Is6() {
				client = clients[1]
			}
			dst := netip.PrefixFrom(client, client.BitLen()).String()
			args := []string{"ip", "route", "replace", dst, "via", a.String()}
			switch {
			case n.Role == cluster.RoleFabric:
				continue
			case n.Role == cluster.RoleExternal:
				args = []string{"ip", "address", "replace", dst, "dev", "lo"}
			case i >= len(n.Addresses):
				continue
			}
			if err := b.on(ctx, n.Name, args...); err != nil {
				return "", nil, err
			}
		}
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		policy := "/proc/sys/net/" + family + "/fib_multipath_hash_policy" // 1: by ports too
		if err := b.on(ctx, host.Name, "sh", "-c", "echo 1 >"+policy); err != nil {
			return "", nil, err
		}
	}
	config, err := clientcmd.LoadFromFile(b.kubeconfig)
	if err != nil {
		return "", nil, fmt.Errorf("kubeconfig: %w", err)
	}
	for _, n := range b.c.Nodes {
		if n.Role == cluster.RoleControlPlane {
			config.Clusters[b.c.FullName()].Server = "https://" + netip.AddrPortFrom(n.Addresses[0], 6443).String()
		}
	}
	kubeconfig = b.kubeconfig + ".outside"
	if err := clientcmd.WriteToFile(*config, kubeconfig); err != nil {
		return "", nil, fmt.Errorf("kubeconfig: %w", err)
	}
	stop, err = b.balance(ctx, kubeconfig)
	return kubeconfig, stop, err
}

// balance starts the stand-in for a load balancer and waits until it watches Services.
func (b *bench) balance(ctx context.Context, kubeconfig string) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	in, out := io.Pipe()
	ended := make(chan struct{})
	go func() {
		args := []string{b.o.Self, "balance", kubeconfig}
		code, err := cluster.Exec(ctx, "", b.c.Name, string(cluster.RoleExternal), args, nil, out, out)
		if err == nil && ctx.Err() == nil {
			err = fmt.Errorf("ended with %d", code)
		}
		out.CloseWithError(err)
		close(ended)
	}()
	stop = func() {
		cancel()
		<-ended
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if lines.Text() != "ready" {
			b.o.Progress("load balancer: %s", lines.Text())
			continue
		}
		go func() {
			for lines.Scan() {
				b.o.Progress("load balancer: %s", lines.Text())
			}
		}()
		return stop, nil
	}
	stop()
	return nil, fmt.Errorf("the stand-in for a load balancer: %w", lines.Err())
}

// on runs a command on a machine of the cluster.
func (b *bench) on(ctx context.Context, node string, args ...string) error {
	var out bytes.Buffer
	code, err := cluster.Exec(ctx, "", b.c.Name, node, args, nil, &out, &out)
	if err == nil && code != 0 {
		err = errors.New(strings.TrimSpace(out.String()))
	}
	if err != nil {
		return fmt.Errorf("%s: %s: %w", node, strings.Join(args, " "), err)
	}
	return nil
}

// run runs a program against the cluster.
func (b *bench) run(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+b.kubeconfig, "NO_COLOR=1")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, errOut.String()), ctx.Err())
	}
	return out.Bytes(), nil
}
