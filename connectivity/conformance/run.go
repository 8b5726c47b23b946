// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"lash.internal/lash/connectivity/cluster"
)

// Options say what to run.
type Options struct {
	Name     string   // of the cluster; one of that name that is there is deleted
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
	args := []string{
		"--no-color", "--silence-skips", "--procs", fmt.Sprint(b.o.Procs), "--timeout", "4h", "--keep-going",
		"--focus", cmp.Or(b.o.Focus, sigNetwork), "--output-dir", b.o.Logs, "--json-report", filepath.Base(results),
	}
	for _, e := range skips {
		args = append(args, "--skip", e.pattern)
	}
	args = append(args, s.tests, "--",
		"--kubeconfig", b.kubeconfig, "--kubectl-path", b.c.Kubectl, "--provider", "skeleton", "--disable-log-dump",
		"--e2e-output-dir", b.o.Logs)
	started := time.Now()
	b.o.Progress("running the tests, %d at a time; what they print is in %s", b.o.Procs, log)
	cmd := exec.CommandContext(ctx, s.ginkgo, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 2 * time.Minute
	cmd.Env = append(os.Environ(), "KUBECONFIG="+b.kubeconfig)
	cmd.Stdout, cmd.Stderr = f, f
	runErr := cmd.Run()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("the tests were interrupted: %w", context.Cause(ctx))
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
	r.Kubernetes, r.Family, r.Workers, r.Procs, r.Started, r.Took = s.version, b.o.Family, b.o.Workers, b.o.Procs, started, time.Since(started)
	out, err := b.run(ctx, b.o.Lash, "version", "--client")
	if err != nil {
		return nil, err
	}
	r.Lash = strings.TrimSpace(string(out))
	return r, nil
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
