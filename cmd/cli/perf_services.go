// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lash.internal/lash/cmd/kube"
	"lash.internal/lash/cmd/term"
	"lash.internal/lash/connectivity/cluster"
	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/report"
	"lash.internal/lash/perf/services"
	"lash.internal/lash/perf/stage"
)

type perfServicesFlags struct {
	stageFlags
	perfOutput
	services.Options
	tests     []string
	contexts  []string
	external  bool
	cleanOnly bool
}

func newPerfServices(w World) *cobra.Command {
	var f perfServicesFlags
	c := &cobra.Command{
		Use: "services", Short: "Measure new connections while the cluster gets more and more Services", Args: cobra.NoArgs,
		Long: `Deploy a server behind a Service with node ports, then make other Services, step by step, and measure
through the first one after each step: is a new connection slower the more Services there are?

A step begins to be measured when both nodes serve the last of its Services: the agents are asked, and
connections to the last and to some of the others are tried. The Services have endpoints of our own with the
server's address, because those of the cluster's controller would come at 20 a second. All is removed at the
end, also after Ctrl-C.

With --with-context other clusters are measured in the same rounds, so that they can be compared:
` + "`lash perf compare r.json r.json --cluster-a A --cluster-b B`" + `.

--from-external measures from a host outside the cluster: of a local cluster its external host, else this one.`,
		Example: `  lash perf services
  lash perf services --steps 1,1000,10000 --from-external --html ladder.html
  lash perf services --context a --with-context b -o json > ladder.json`,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c.Context(), w) },
	}
	fl := c.Flags()
	fl.IntSliceVar(&f.Steps, "steps", []int{1, 100, 1000, 2767}, "numbers of Services")
	fl.IntVar(&f.Ports, "ports-per-service", 2, "ports of each of these Services")
	fl.StringSliceVar(&f.Sources, "from", []string{services.FromPod, services.FromNode}, "pod, node")
	fl.BoolVar(&f.external, "from-external", false, "measure from a host outside the cluster too")
	fl.StringSliceVar(&f.Ways, "paths", []string{services.NodePortLocal}, "node-port-local (of the server's node), node-port-remote, cluster-ip; to compare with: pod-ip, and host-ip (a server on the node's network)")
	fl.StringSliceVar(&f.tests, "tests", []string{string(netperf.TCPCRR)}, "TCP_CRR, TCP_RR, UDP_RR")
	fl.Float64Var(&f.Rate, "rate", 0, "transactions to begin in a second, late ones counted from when they were due (default: one after the other)")
	fl.IntVar(&f.Samples, "samples", 5, "samples at each step; 6 make a 95 % interval")
	fl.DurationVar(&f.Length, "duration", 2*time.Second, "of a sample, in whole seconds")
	fl.StringSliceVar(&f.contexts, "with-context", nil, "kubeconfig contexts of clusters to measure in the same rounds")
	fl.BoolVar(&f.cleanOnly, "cleanup-only", false, "only remove what an earlier run left behind")
	f.stageFlags.bind(fl)
	f.perfOutput.bind(fl)
	return c
}

func (f *perfServicesFlags) options() error {
	f.Warmup = time.Second
	for _, name := range f.tests {
		t, err := netperf.ParseTest(name)
		if err != nil {
			return usageError("%w", err)
		}
		f.Tests = append(f.Tests, t)
	}
	if f.external && !slices.Contains(f.Sources, services.FromExternal) {
		f.Sources = append(f.Sources, services.FromExternal)
	}
	switch {
	case f.Samples < 1 || f.Samples > 1000:
		return usageError("invalid --samples %d: want 1 to 1000", f.Samples)
	case f.Length < time.Second || f.Length%time.Second != 0 || f.Length > time.Hour:
		return usageError("invalid --duration %s: want whole seconds, up to an hour", f.Length)
	case f.Rate < 0:
		return usageError("invalid --rate %v: want transactions a second", f.Rate)
	}
	if err := f.Check(); err != nil {
		return usageError("%w", err)
	}
	return f.check()
}

func (f *perfServicesFlags) run(ctx context.Context, w World) error {
	if err := f.options(); err != nil {
		return err
	}
	errTerm := term.New(w.Err, w.Getenv)
	clients, err := f.clients(ctx, w)
	if err != nil {
		return err
	}
	for _, cl := range clients {
		o, err := f.stageFlags.options(cl, errTerm.Println)
		if err != nil {
			return err
		}
		if f.cleanOnly {
			if err := stage.Clean(ctx, o); err != nil {
				return err
			}
			continue
		}
		p := services.Place{Stage: o}
		if slices.Contains(f.Sources, services.FromExternal) {
			if p.External, err = outside(cl.Cluster); err != nil {
				return err
			}
		}
		f.Places = append(f.Places, p)
	}
	if f.cleanOnly {
		return nil
	}
	steps := &perfSteps{t: errTerm}
	f.Step, f.Progress, f.Created = steps.Step, steps.Progress, steps.created
	begin := time.Now()
	rep, err := services.Run(ctx, f.Options)
	steps.finish(err)
	if rep == nil || !slices.ContainsFunc(rep.Series, func(s *report.Series) bool { return len(s.Results()) > 0 }) {
		return err
	}
	errTerm.Println("ℹ️  %s in all", time.Since(begin).Round(time.Second))
	rep.Command = "lash " + strings.Join(w.Args, " ")
	return errors.Join(err, f.write(w, rep), failedSamples(rep))
}

// clients are those of the cluster that the global flags name and of the other contexts.
func (f *perfServicesFlags) clients(ctx context.Context, w World) ([]*kube.Client, error) {
	cl, err := w.Kube.Client()
	if err != nil {
		return nil, err
	}
	out := []*kube.Client{cl}
	for _, name := range f.contexts {
		other, err := w.Kube.WithContext(name).Client()
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(c *kube.Client) bool { return c.Context == other.Context }) {
			return nil, usageError("context %q is named twice", name)
		}
		out = append(out, other)
	}
	for _, c := range out {
		if _, err := c.Check(ctx); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// outside is a host outside a cluster: of a local cluster its own one, else this machine.
func outside(clusterEntry string) (*stage.Source, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	name, local := strings.CutPrefix(clusterEntry, "lash-")
	if local {
		c, err := cluster.Get("", name)
		local = err == nil && c.FullName() == clusterEntry
	}
	return &stage.Source{Name: "the host outside", Run: func(ctx context.Context, args ...string) ([]byte, error) {
		var out, errOut bytes.Buffer
		var err error
		if local {
			var code int
			code, err = cluster.Exec(ctx, "", name, string(cluster.RoleExternal), append([]string{self}, args...), nil, &out, &errOut)
			if err == nil && code != 0 {
				err = fmt.Errorf("code %d", code)
			}
		} else {
			cmd := exec.CommandContext(ctx, self, args...)
			cmd.Stdout, cmd.Stderr = &out, &errOut
			err = cmd.Run()
		}
		if err != nil && errOut.Len() > 0 {
			err = errors.New(strings.TrimPrefix(strings.TrimSpace(errOut.String()), "Error: "))
		}
		return out.Bytes(), err
	}}, nil
}

// created shows how far the Services of a step are.
func (p *perfSteps) created(done, of int, left time.Duration) {
	if p.making != nil {
		p.making.Detail("%d of %d made, %s left", done, of, left.Round(time.Second))
	}
}
