// SPDX-License-Identifier: Apache-2.0

// Package paths measures the ways that a cluster's network has: between pods and nodes, on one node and
// across, straight and through Services, with node to node as what to compare them with. It is what
// `lash perf run` and `lash connectivity perf` do.
package paths

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/report"
	"lash.internal/lash/perf/rounds"
	"lash.internal/lash/perf/stage"
)

// Path is a kind of way.
type Path string

// The ways.
const (
	PodIP        Path = "pod-ip"
	HostIP       Path = "host-ip"
	ClusterIP    Path = "cluster-ip"
	NodePort     Path = "node-port"
	LoadBalancer Path = "load-balancer"
)

// All are all ways.
var All = []Path{PodIP, HostIP, ClusterIP, NodePort, LoadBalancer}

// Parse finds ways by their names.
func Parse(names []string) ([]Path, error) {
	var out []Path
	for _, n := range names {
		if !slices.Contains(All, Path(n)) {
			var known []string
			for _, p := range All {
				known = append(known, string(p))
			}
			return nil, fmt.Errorf("unknown path %q: use some of %s", n, strings.Join(known, ", "))
		}
		out = append(out, Path(n))
	}
	return out, nil
}

// Options say what to measure.
type Options struct {
	Stage stage.Options
	Tests []stage.Test
	Paths []Path
	// FromPod and FromHost are the sources. Node to node is measured in any case.
	FromPod, FromHost bool
	// ToPod and ToHost are the targets of PodIP and HostIP that a source of the other kind has too.
	PodToHost, HostToPod bool
	Samples              int
	Length, Warmup       time.Duration
	Delay                time.Duration // between the deployment and the first sample
	Family               int           // 4, 6, or 0 for all that there are
	// Step starts a piece of preparation that the returned function ends.
	Step     func(format string, args ...any) func(error)
	Progress func(rounds.Progress)
	// Estimate hears how long it will take about, and how many samples it is.
	Estimate func(time.Duration, int)
}

func (o *Options) has(p Path) bool { return slices.Contains(o.Paths, p) }

// serviceLimit is how long a new Service may take to reach the nodes.
const serviceLimit = time.Minute

// run is a measurement under way.
type run struct {
	o       *Options
	s       *stage.Stage
	rep     *report.Report
	courses []*rounds.Course
}

// Run measures and removes what it made. The report is there as far as it got, with the error beside it.
func Run(ctx context.Context, o Options) (rep *report.Report, err error) {
	if len(o.Tests) == 0 || len(o.Paths) == 0 {
		return nil, errors.New("nothing to measure: no test or no path is left")
	}
	services := o.has(ClusterIP) || o.has(NodePort) || o.has(LoadBalancer)
	o.Stage.Host = true
	if services {
		for _, t := range o.Tests {
			o.Stage.Streams = max(o.Stage.Streams, t.Streams)
		}
	}
	done := o.Step("Deploying clients and servers into namespace %s", o.Stage.Namespace)
	s, err := stage.Open(ctx, o.Stage)
	done(err)
	if err != nil {
		return nil, err
	}
	defer func() {
		done := o.Step("Removing namespace %s", o.Stage.Namespace)
		cerr := s.Close(ctx)
		done(cerr)
		err = errors.Join(err, cerr)
	}()
	r := &run{o: &o, s: s, rep: &report.Report{
		Format: report.Format, Kind: report.KindPaths, Started: time.Now().UTC(), Seconds: o.Length.Seconds(), Rounds: o.Samples,
		Clusters: []report.Cluster{s.Cluster},
	}}
	if err := r.plan(ctx); err != nil {
		return nil, err
	}
	if o.Delay > 0 {
		select {
		case <-time.After(o.Delay):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	plan := rounds.Plan{Rounds: o.Samples, Length: o.Length, Warmup: o.Warmup, Progress: o.Progress}
	if o.Estimate != nil {
		o.Estimate(plan.Estimate(len(r.courses)), len(r.courses)*o.Samples)
	}
	for _, c := range r.courses {
		r.rep.Series = append(r.rep.Series, c.Series)
	}
	err = plan.Run(ctx, r.courses)
	r.rep.Ended = time.Now().UTC()
	return r.rep, err
}

// way is a source and a target of a family.
type way struct {
	scenario, placement string
	family              int
	from                *stage.Source
	to                  stage.Target
	baseline            bool
	noUDP               bool
}

func (r *run) plan(ctx context.Context) error {
	families := r.s.Families()
	if r.o.Family != 0 {
		if !slices.Contains(families, r.o.Family) {
			return fmt.Errorf("the pods of this cluster have no %s address", stage.FamilyName(r.o.Family))
		}
		families = []int{r.o.Family}
	}
	var ways []way
	for _, f := range families {
		ways = append(ways, r.straight(f)...)
	}
	through, err := r.services(ctx, families)
	if err != nil {
		return err
	}
	ways = append(ways, through...)
	for _, t := range r.o.Tests {
		for _, w := range ways {
			if w.noUDP && t.Test.Datagrams() {
				continue
			}
			r.courses = append(r.courses, &rounds.Course{
				Series: &report.Series{
					Key: report.Key{
						Cluster: r.s.Cluster.Name, Scenario: w.scenario, Placement: w.placement, Family: stage.FamilyName(w.family),
						Test: t.Test, Streams: streamsOf(t),
					},
					Baseline: w.baseline,
				},
				Measure: func(ctx context.Context, length time.Duration) (netperf.Result, error) {
					return r.s.Measure(ctx, w.from, w.to, t, length)
				},
			})
		}
	}
	if len(r.courses) == 0 {
		return errors.New("nothing to measure: no way is left")
	}
	return nil
}

func streamsOf(t stage.Test) int {
	if t.Streams > 1 {
		return t.Streams
	}
	return 0
}

const (
	sameNode  = "same-node"
	otherNode = "other-node"
)

// servers are the pods of the servers by where they are, seen from the client.
func (r *run) servers(same, other string) map[string]*stage.Pod {
	out := map[string]*stage.Pod{}
	if p := r.s.Pod(same); p != nil && r.o.Stage.Same {
		out[sameNode] = p
	}
	if p := r.s.Pod(other); p != nil {
		out[otherNode] = p
	}
	return out
}

// straight are the ways without a Service.
func (r *run) straight(family int) []way {
	pod, host := r.s.From(r.s.Pod(stage.ClientPod)), r.s.From(r.s.Pod(stage.HostLocal))
	var out []way
	for _, placement := range []string{sameNode, otherNode} {
		if p := r.servers(stage.ServerSame, stage.ServerOther)[placement]; p != nil && r.o.has(PodIP) {
			if r.o.FromPod {
				out = append(out, way{"pod-to-pod", placement, family, pod, stage.ToPod(p, family), false, false})
			}
			if r.o.HostToPod {
				out = append(out, way{"host-to-pod", placement, family, host, stage.ToPod(p, family), false, false})
			}
		}
		p := r.servers(stage.HostLocal, stage.HostOther)[placement]
		if p == nil {
			continue
		}
		if r.o.PodToHost && r.o.has(HostIP) {
			out = append(out, way{"pod-to-host", placement, family, pod, stage.ToPod(p, family), false, false})
		}
		// Node to node is what all else is compared with. Without another node it is within this one.
		baseline := placement == otherNode || r.s.OtherNode.Name == ""
		if baseline || r.o.FromHost && r.o.has(HostIP) {
			out = append(out, way{"host-to-host", placement, family, host, stage.ToPod(p, family), baseline, false})
		}
	}
	return slices.DeleteFunc(out, func(w way) bool { return !w.to.Valid() })
}

// services are the ways through Services, which are made here and waited for.
func (r *run) services(ctx context.Context, families []int) ([]way, error) {
	if !r.o.has(ClusterIP) && !r.o.has(NodePort) && !r.o.has(LoadBalancer) {
		return nil, nil
	}
	done := r.o.Step("Creating Services and waiting until they answer")
	out, err := r.makeServices(ctx, families)
	done(err)
	return out, err
}

func (r *run) makeServices(ctx context.Context, families []int) ([]way, error) {
	kind := corev1.ServiceTypeClusterIP
	switch {
	case r.o.has(LoadBalancer):
		kind = corev1.ServiceTypeLoadBalancer
	case r.o.has(NodePort):
		kind = corev1.ServiceTypeNodePort
	}
	sources := map[string]*stage.Source{}
	if r.o.FromPod {
		sources["pod"] = r.s.From(r.s.Pod(stage.ClientPod))
	}
	if r.o.FromHost {
		sources["host"] = r.s.From(r.s.Pod(stage.HostLocal))
	}
	var out []way
	servers := r.servers(stage.ServerSame, stage.ServerOther)
	for _, placement := range []string{sameNode, otherNode} {
		p := servers[placement]
		if p == nil {
			continue
		}
		v, err := r.s.Service(ctx, p.Name, p.Name, kind)
		if err != nil {
			return nil, err
		}
		balanced := false
		if r.o.has(LoadBalancer) {
			if balanced, err = r.s.AwaitIngress(ctx, v); err != nil {
				return nil, err
			}
			if !balanced {
				r.rep.Skipped = append(r.rep.Skipped, "load-balancer "+placement+": nothing in this cluster gave the Service an address")
			}
		}
		// Where the backend is, and where it is not.
		near, far := r.s.Local, r.s.OtherNode
		if placement == otherNode {
			near, far = far, near
		}
		for _, from := range []string{"pod", "host"} {
			if sources[from] == nil {
				continue
			}
			for _, f := range families {
				add := func(name string, to stage.Target) {
					if to.Valid() {
						out = append(out, way{from + "-to-" + name, placement, f, sources[from], to, false, kind == corev1.ServiceTypeLoadBalancer})
					}
				}
				if r.o.has(ClusterIP) {
					add("cluster-ip", v.ToClusterIP(f))
				}
				if r.o.has(NodePort) {
					add("node-port-local", v.ToNodePort(near, f))
					if far.Name != "" {
						add("node-port-remote", v.ToNodePort(far, f))
					}
				}
				if balanced {
					add("load-balancer", v.ToIngress(f))
				}
			}
		}
	}
	return r.answering(ctx, out)
}

// answering waits until the ways through Services answer. One that does not is left out of the
// measurement, with the reason in the report; when none does, that is the error.
func (r *run) answering(ctx context.Context, ways []way) ([]way, error) {
	var out []way
	var errs []error
	limit := serviceLimit
	for _, w := range ways {
		if err := stage.Await(ctx, w.from, limit, w.to.Control); err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			errs = append(errs, fmt.Errorf("%s %s %s does not answer: %w", w.scenario, w.placement, stage.FamilyName(w.family), err))
			limit = serviceLimit / 4 // the others had their time already
			continue
		}
		out = append(out, w)
	}
	if len(out) == 0 && len(ways) > 0 {
		return nil, errors.Join(errs...)
	}
	for _, err := range errs {
		r.rep.Skipped = append(r.rep.Skipped, err.Error())
	}
	return out, nil
}
