// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/report"
	"lash.internal/lash/perf/rounds"
	"lash.internal/lash/perf/stage"
	"lash.internal/lash/perf/stage/stagetest"
)

func options(t *testing.T, c *stagetest.Cluster, ways ...Path) Options {
	return Options{
		Stage: stage.Options{Name: "test", Client: c.Client, Exec: c.Exec, Same: true, Other: true, Say: t.Logf},
		Tests: []stage.Test{{Test: netperf.TCPCRR}}, Paths: ways, FromPod: true, FromHost: true, Samples: 2, Length: time.Second,
		Step: func(string, ...any) func(error) { return func(error) {} },
	}
}

func scenarios(r *report.Report) string {
	var out []string
	for _, s := range r.Series {
		name := s.Scenario + " " + s.Placement
		if s.Baseline {
			name += "!"
		}
		out = append(out, name)
	}
	return strings.Join(out, ", ")
}

// TestWays measures every way that two nodes have, and node to node in any case.
func TestWays(t *testing.T) {
	for _, c := range []struct {
		ways   []Path
		change func(*Options)
		want   string
	}{
		{[]Path{PodIP}, nil, "pod-to-pod same-node, pod-to-pod other-node, host-to-host other-node!"},
		{[]Path{HostIP}, func(o *Options) { o.PodToHost = true }, "pod-to-host same-node, host-to-host same-node, pod-to-host other-node, host-to-host other-node!"},
		{
			[]Path{NodePort, ClusterIP},
			func(o *Options) { o.FromHost = false },
			"host-to-host other-node!, pod-to-cluster-ip same-node, pod-to-node-port-local same-node, pod-to-node-port-remote same-node, " +
				"pod-to-cluster-ip other-node, pod-to-node-port-local other-node, pod-to-node-port-remote other-node",
		},
		{[]Path{PodIP}, func(o *Options) { o.Stage.Other = false }, "pod-to-pod same-node, host-to-host same-node!"},
	} {
		cluster := stagetest.New(stagetest.Node("n1", 1, nil), stagetest.Node("n2", 2, nil))
		o := options(t, cluster, c.ways...)
		if c.change != nil {
			c.change(&o)
		}
		r, err := Run(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if got := scenarios(r); got != c.want {
			t.Errorf("measured %s\nwant %s", got, c.want)
		}
		for _, s := range r.Series {
			if len(s.Results()) != 2 {
				t.Errorf("%s has %d results", s.Title(), len(s.Results()))
			}
		}
		if n := cluster.Leftovers(t); n != 0 {
			t.Errorf("%d namespaces are left", n)
		}
	}
}

// TestUnserved leaves a way out that does not answer, and says so; with no way left it is an error.
func TestUnserved(t *testing.T) {
	cluster := stagetest.New(stagetest.Node("n1", 1, nil), stagetest.Node("n2", 2, nil))
	cluster.Answer = func(command string) (string, error) {
		if strings.Contains(command, "perf wait") && strings.Contains(command, "172.31.0.") {
			return "", errors.New("takes no connection")
		}
		return `{"test":"TCP_CRR","latency":{"p50_us":1},"rate":1}`, nil
	}
	o := options(t, cluster, ClusterIP, NodePort)
	o.FromHost = false
	r, err := Run(t.Context(), o)
	if err != nil || len(r.Skipped) != 4 || !strings.Contains(r.Skipped[0], "pod-to-node-port-local same-node IPv4 does not answer: from client: takes no connection") {
		t.Errorf("%v, %q", err, r.Skipped)
	}
	if got, want := scenarios(r), "host-to-host other-node!, pod-to-cluster-ip same-node, pod-to-cluster-ip other-node"; got != want {
		t.Errorf("measured %s\nwant %s", got, want)
	}
	again := stagetest.New(stagetest.Node("n1", 1, nil), stagetest.Node("n2", 2, nil))
	again.Answer, cluster = cluster.Answer, again
	o = options(t, cluster, NodePort)
	o.FromHost = false
	if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "does not answer") || cluster.Leftovers(t) != 0 {
		t.Errorf("%v, %d namespaces are left", err, cluster.Leftovers(t))
	}
}

// TestInterrupted keeps what was measured and removes what was made.
func TestInterrupted(t *testing.T) {
	cluster := stagetest.New(stagetest.Node("n1", 1, nil), stagetest.Node("n2", 2, nil))
	ctx, cancel := context.WithCancel(t.Context())
	o := options(t, cluster, PodIP)
	o.Progress = func(p rounds.Progress) {
		if p.Done == 3 {
			cancel()
		}
	}
	r, err := Run(ctx, o)
	if !errors.Is(err, context.Canceled) || r == nil || len(r.Series[0].Results()) != 1 || cluster.Leftovers(t) != 0 {
		t.Errorf("%v, %+v, %d namespaces are left", err, r, cluster.Leftovers(t))
	}
}

func TestParse(t *testing.T) {
	if p, err := Parse([]string{"pod-ip", "node-port"}); err != nil || len(p) != 2 {
		t.Errorf("%v, %v", p, err)
	}
	if _, err := Parse([]string{"wire"}); err == nil || !strings.Contains(err.Error(), `unknown path "wire": use some of pod-ip, host-ip`) {
		t.Error(err)
	}
}
