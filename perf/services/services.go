// SPDX-License-Identifier: Apache-2.0

// Package services measures new connections through a Service while the cluster gets more and more of
// them: the Service ladder. It is what `lash perf services` does.
//
//	for each step:  make Services up to its number, in all clusters
//	                wait until the nodes serve the last of them
//	                measure in rounds, the clusters by turns
//
// With several clusters their samples are taken in the same rounds, so that they can be compared.
package services

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/report"
	"lash.internal/lash/perf/rounds"
	"lash.internal/lash/perf/stage"
)

// Place is a cluster to measure in.
type Place struct {
	Stage stage.Options
	// External is a host outside the cluster; nil for none.
	External *stage.Source
}

// Sources to measure from, and ways through the Service.
const (
	FromPod      = "pod"
	FromNode     = "node"
	FromExternal = "external"

	NodePortLocal  = "node-port-local"  // of the node that has the backend
	NodePortRemote = "node-port-remote" // of the other node
	ClusterIP      = "cluster-ip"       // not from outside

	// Without a Service, to compare with.
	PodIP  = "pod-ip"  // the server itself, not from outside
	HostIP = "host-ip" // a server on the network of the same node, a routed path without a pod
)

var (
	sources = []string{FromPod, FromNode, FromExternal}
	ways    = []string{NodePortLocal, NodePortRemote, ClusterIP, PodIP, HostIP}
)

// Options say what to measure.
type Options struct {
	Places  []Place
	Steps   []int // numbers of Services beside the one that is measured through
	Ports   int   // of each of them
	Sources []string
	Ways    []string
	Tests   []netperf.Test
	Rate    float64
	Samples int
	Length  time.Duration
	Warmup  time.Duration
	// Step starts a piece of work that the returned function ends.
	Step     func(format string, args ...any) func(error)
	Created  func(done, of int, left time.Duration)
	Progress func(rounds.Progress)
	Say      func(format string, args ...any)
}

// MaxStep bounds the Services of a step.
const MaxStep = 60_000

// Check says what is wrong with the options.
func (o *Options) Check() error {
	switch {
	case len(o.Steps) == 0:
		return errors.New("--steps is empty: name numbers of Services, such as 1,100,1000")
	case o.Ports < 1 || o.Ports > 100:
		return fmt.Errorf("--ports-per-service %d: use 1 to 100", o.Ports)
	}
	for i, n := range o.Steps {
		if n < 0 || n > MaxStep {
			return fmt.Errorf("--steps %d: use 0 to %d Services", n, MaxStep)
		}
		if i > 0 && n <= o.Steps[i-1] {
			return fmt.Errorf("--steps %d after %d: name the numbers in growing order", n, o.Steps[i-1])
		}
	}
	for _, l := range []struct {
		flag         string
		given, known []string
	}{{"--from", o.Sources, sources}, {"--paths", o.Ways, ways}} {
		if len(l.given) == 0 {
			return fmt.Errorf("%s is empty: use some of %s", l.flag, strings.Join(l.known, ", "))
		}
		for _, g := range l.given {
			if !slices.Contains(l.known, g) {
				return fmt.Errorf("%s %q: use some of %s", l.flag, g, strings.Join(l.known, ", "))
			}
		}
	}
	for _, t := range o.Tests {
		if !t.Transactions() {
			return fmt.Errorf("test %s: the ladder takes tests of transactions (TCP_CRR, TCP_RR, UDP_RR)", t)
		}
	}
	return nil
}

// ground is a place with everything deployed.
type ground struct {
	*Place
	s      *stage.Stage
	target *stage.Service
	server *stage.Pod
	node   stage.Node // of the server
	other  stage.Node // of the client
	family int
	filler *filler
}

// Run climbs the ladder, and removes all that it made. The report is there as far as it got.
func Run(ctx context.Context, o Options) (rep *report.Report, err error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	rep = &report.Report{Format: report.Format, Kind: report.KindServices, Started: time.Now().UTC(), Seconds: o.Length.Seconds(), Rounds: o.Samples}
	var grounds []*ground
	defer func() {
		if len(grounds) == 0 {
			return
		}
		done := o.Step("Removing the Services and pods again")
		cerr := closeAll(ctx, grounds)
		done(cerr)
		err = errors.Join(err, cerr)
	}()
	for i := range o.Places {
		p := &o.Places[i]
		done := o.Step("Deploying into %s", p.Stage.Name)
		g, err := prepare(ctx, p)
		if g != nil {
			grounds = append(grounds, g)
		}
		done(err)
		if err != nil {
			return rep, fmt.Errorf("%s: %w", p.Stage.Name, err)
		}
		if all, err := g.courses(&o, 0, 0); err != nil {
			return rep, err
		} else if len(all) == 0 {
			return rep, fmt.Errorf("%s: nothing to measure: no --paths of %s is there for --from %s (pod-ip and cluster-ip are not for hosts outside, node-port-remote needs two nodes)",
				p.Stage.Name, strings.Join(o.Ways, ","), strings.Join(o.Sources, ","))
		}
		rep.Clusters = append(rep.Clusters, g.s.Cluster)
	}
	for _, n := range o.Steps {
		if err := climb(ctx, &o, rep, grounds, n); err != nil {
			return rep, fmt.Errorf("at %d Services: %w", n, err)
		}
	}
	rep.Ended = time.Now().UTC()
	return rep, nil
}

func closeAll(ctx context.Context, grounds []*ground) error {
	errs := make([]error, len(grounds))
	var wg sync.WaitGroup
	for i, g := range grounds {
		wg.Go(func() { errs[i] = g.s.Close(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// targetLimit is how long the first Service may take to be served.
const targetLimit = 2 * time.Minute

// prepare deploys the server behind a Service on one node and the client on another, or on the same one
// where there is only one. The ground is there, to be closed, even when the Service fails.
func prepare(ctx context.Context, p *Place) (*ground, error) {
	o := p.Stage
	o.Host, o.Deployment, o.Other, o.Same = true, true, true, false
	s, err := stage.Open(ctx, o)
	if errors.Is(err, stage.ErrOneNode) {
		o.Other, o.Same = false, true
		s, err = stage.Open(ctx, o)
	}
	if err != nil {
		return nil, err
	}
	g := &ground{Place: p, s: s, server: s.Pod(stage.ServerOther), node: s.OtherNode, other: s.Local, family: s.Families()[0]}
	if g.server == nil {
		g.server, g.node = s.Pod(stage.ServerSame), s.Local
	}
	g.filler = &filler{client: o.Client, namespace: s.Namespace(), server: g.server.IP(g.family)}
	if g.target, err = s.Service(ctx, "target", g.server.Name, corev1.ServiceTypeNodePort); err != nil {
		return g, err
	}
	to := g.target.ToNodePort(g.node, g.family)
	if !to.Valid() {
		return g, fmt.Errorf("the Service got no node port, or node %s has no %s address", g.node.Name, stage.FamilyName(g.family))
	}
	if err := stage.Await(ctx, s.From(s.Pod(stage.HostLocal)), targetLimit, to.Control, g.target.ToClusterIP(g.family).Control); err != nil {
		return g, fmt.Errorf("the Service does not answer: %w", err)
	}
	return g, nil
}

// climb makes the Services of a step everywhere, and measures.
func climb(ctx context.Context, o *Options, rep *report.Report, grounds []*ground, n int) error {
	took := make([]time.Duration, len(grounds))
	for i, g := range grounds {
		done := o.Step("Up to %d Services in %s, served by every node", n, g.Stage.Name)
		var err error
		took[i], err = g.grow(ctx, o, n)
		done(err)
		if err != nil {
			return fmt.Errorf("%s: %w", g.Stage.Name, err)
		}
	}
	var courses []*rounds.Course
	for i, g := range grounds {
		all, err := g.courses(o, n, took[i])
		if err != nil {
			return err
		}
		courses = append(courses, all...)
	}
	for _, c := range courses {
		rep.Series = append(rep.Series, c.Series)
	}
	plan := rounds.Plan{Rounds: o.Samples, Length: o.Length, Warmup: o.Warmup, Progress: o.Progress}
	return plan.Run(ctx, courses)
}

// courses are the sources and ways of a cluster at a step.
func (g *ground) courses(o *Options, n int, programmed time.Duration) ([]*rounds.Course, error) {
	from := map[string]*stage.Source{
		FromPod: g.s.From(g.s.Pod(stage.ClientPod)), FromNode: g.s.From(g.s.Pod(stage.HostLocal)), FromExternal: g.External,
	}
	placement := "other-node"
	if g.node.Name == g.other.Name {
		placement = "same-node"
	}
	var out []*rounds.Course
	for _, source := range sources {
		if !slices.Contains(o.Sources, source) {
			continue
		}
		if from[source] == nil {
			return nil, fmt.Errorf("%s: there is no host outside this cluster to measure from", g.Stage.Name)
		}
		for _, way := range ways {
			to := g.to(way)
			if !slices.Contains(o.Ways, way) || !to.Valid() || source == FromExternal && (way == ClusterIP || way == PodIP) {
				continue
			}
			for _, t := range o.Tests {
				out = append(out, &rounds.Course{
					Series: &report.Series{
						Key: report.Key{
							Cluster: g.s.Cluster.Name, Scenario: source + "-to-" + way, Placement: placement, Family: stage.FamilyName(g.family),
							Test: t, Services: n, ServicePorts: n * o.Ports,
						},
						Programmed: programmed.Seconds(),
					},
					Measure: func(ctx context.Context, length time.Duration) (netperf.Result, error) {
						return g.s.Measure(ctx, from[source], to, stage.Test{Test: t, Rate: o.Rate}, length)
					},
				})
			}
		}
	}
	return out, nil
}

// to is where a way ends; not valid where there is none, as from one node to another on a single one.
func (g *ground) to(way string) stage.Target {
	switch way {
	case NodePortLocal:
		return g.target.ToNodePort(g.node, g.family)
	case NodePortRemote:
		if g.node.Name != g.other.Name {
			return g.target.ToNodePort(g.other, g.family)
		}
	case ClusterIP:
		return g.target.ToClusterIP(g.family)
	case PodIP:
		return stage.ToPod(g.server, g.family)
	case HostIP:
		p := g.s.Pod(stage.HostOther)
		if p == nil {
			p = g.s.Pod(stage.HostLocal)
		}
		return stage.ToPod(p, g.family)
	}
	return stage.Target{}
}
