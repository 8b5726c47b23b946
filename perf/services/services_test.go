// SPDX-License-Identifier: Apache-2.0

package services

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	k8stesting "k8s.io/client-go/testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/rounds"
	"lash.internal/lash/perf/stage"
	"lash.internal/lash/perf/stage/stagetest"
)

// clusterOf has Deployments that run, beside bare pods.
func clusterOf(t *testing.T, nodes ...*corev1.Node) *stagetest.Cluster {
	c := stagetest.New(nodes...)
	c.Client.PrependReactor("create", "deployments", func(a k8stesting.Action) (bool, runtime.Object, error) {
		d := a.(k8stesting.CreateAction).GetObject().(*appsv1.Deployment)
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: d.Name + "-x", Namespace: a.GetNamespace(), Labels: d.Spec.Template.Labels}, Spec: d.Spec.Template.Spec,
		}
		c.Run(p)
		if err := c.Client.Tracker().Add(p); err != nil { // a reactor must not use the client
			t.Error(err)
		}
		return false, nil, nil
	})
	return c
}

func options(t *testing.T, names []string, clusters ...*stagetest.Cluster) Options {
	o := Options{
		Steps: []int{1, 50}, Ports: 2, Sources: []string{FromPod, FromNode}, Ways: []string{NodePortLocal, ClusterIP},
		Tests: []netperf.Test{netperf.TCPCRR}, Samples: 2, Length: time.Second,
		Step: func(string, ...any) func(error) { return func(error) {} },
	}
	for i, c := range clusters {
		o.Places = append(o.Places, Place{Stage: stage.Options{Name: names[i], Client: c.Client, Exec: c.Exec, Say: t.Logf}})
	}
	return o
}

// TestWithoutService measures the pod and its node beside the Service, from where they can be reached.
func TestWithoutService(t *testing.T) {
	c := clusterOf(t, stagetest.Node("n1", 1, nil), stagetest.Node("n2", 2, nil))
	o := options(t, []string{"a"}, c)
	o.Steps, o.Ways, o.Sources = []int{1}, []string{PodIP, HostIP}, []string{FromPod, FromExternal}
	o.Places[0].External = &stage.Source{Name: "outside", Run: func(ctx context.Context, args ...string) ([]byte, error) {
		var out bytes.Buffer
		err := c.Exec(ctx, "outside", "outside", "", &out, io.Discard, args...)
		return out.Bytes(), err
	}}
	rep, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range rep.Series {
		got = append(got, s.Scenario)
	}
	if want := "pod-to-pod-ip pod-to-host-ip external-to-host-ip"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}

// TestNothingToMeasure ends before any of the Services is made.
func TestNothingToMeasure(t *testing.T) {
	c := clusterOf(t, stagetest.Node("n1", 1, nil))
	o := options(t, []string{"a"}, c)
	o.Ways = []string{NodePortRemote}
	o.Created = func(int, int, time.Duration) { t.Error("Services are made") }
	_, err := Run(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "a: nothing to measure: no --paths of node-port-remote is there for --from pod,node") {
		t.Errorf("%v, want what is missing", err)
	}
	if n := c.Leftovers(t); n != 0 {
		t.Errorf("%d namespaces are left", n)
	}
}

// TestLadder climbs two clusters by turns.
func TestLadder(t *testing.T) {
	a := clusterOf(t, stagetest.Node("n1", 1, nil), stagetest.Node("n2", 2, nil))
	b := clusterOf(t, stagetest.Node("m1", 1, nil))
	o := options(t, []string{"a", "b"}, a, b)
	var most int
	var order []string
	o.Progress = func(p rounds.Progress) {
		order = append(order, p.What)
		if l, err := a.Client.CoreV1().Services("lash-perf").List(t.Context(), metav1.ListOptions{}); err == nil {
			most = max(most, len(l.Items))
		}
	}
	rep, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if most != 51 { // and the one that is measured through
		t.Errorf("there were at most %d Services", most)
	}
	// Four ways in the first cluster, four in the second, at two steps.
	if len(rep.Series) != 16 || len(order) != 32 || len(rep.Clusters) != 2 {
		t.Fatalf("%d series, %d samples", len(rep.Series), len(order))
	}
	s := rep.Series[8]
	if s.Cluster != "a" || s.Scenario != "pod-to-node-port-local" || s.Placement != "other-node" || s.Services != 50 || s.ServicePorts != 100 || len(s.Results()) != 2 {
		t.Errorf("%+v", s.Key)
	}
	if rep.Series[12].Cluster != "b" || rep.Series[12].Placement != "same-node" {
		t.Errorf("%+v", rep.Series[12].Key)
	}
	waits := 0
	for _, line := range a.Commands() {
		if strings.HasPrefix(line, "lash-perf-host/host-other: /usr/bin/lash-agent perf wait") {
			waits++
		}
	}
	if waits != 2 {
		t.Errorf("the other node was asked %d times whether it serves the Services", waits)
	}
	if n := a.Leftovers(t) + b.Leftovers(t); n != 0 {
		t.Errorf("%d namespaces are left", n)
	}
}

// TestInterrupted ends in the middle of the creation, and of the measurement, and leaves nothing.
func TestInterrupted(t *testing.T) {
	for _, when := range []string{"creating", "measuring"} {
		c := clusterOf(t, stagetest.Node("n1", 1, nil), stagetest.Node("n2", 2, nil))
		ctx, cancel := context.WithCancel(t.Context())
		o := options(t, []string{"a"}, c)
		o.Steps = []int{5000}
		if when == "creating" {
			n := 0
			c.Client.PrependReactor("create", "endpointslices", func(k8stesting.Action) (bool, runtime.Object, error) {
				if n++; n == 100 {
					cancel()
				}
				return false, nil, nil
			})
		} else {
			o.Steps = []int{10}
			o.Progress = func(p rounds.Progress) {
				if p.Done == 1 {
					cancel()
				}
			}
		}
		rep, err := Run(ctx, o)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", when, err)
		}
		if when == "measuring" && (rep == nil || len(rep.Series) == 0) {
			t.Error("what had been measured is lost")
		}
		if n := c.Leftovers(t); n != 0 {
			t.Errorf("%s: %d namespaces are left", when, n)
		}
		cancel()
	}
}

// TestFull says what to do when the cluster has no more addresses, and keeps the steps before.
func TestFull(t *testing.T) {
	c := clusterOf(t, stagetest.Node("n1", 1, nil), stagetest.Node("n2", 2, nil))
	n := 0
	c.Client.PrependReactor("create", "services", func(a k8stesting.Action) (bool, runtime.Object, error) {
		if n++; n > 20 {
			return true, nil, apierrors.NewInternalError(errors.New("failed to allocate a serviceIP: range is full"))
		}
		return false, nil, nil
	})
	rep, err := Run(t.Context(), options(t, []string{"a"}, c))
	if err == nil || !strings.Contains(err.Error(), "at 50 Services: a: make Service") || !strings.Contains(err.Error(), "range of Service addresses is full: use smaller --steps") {
		t.Error(err)
	}
	if len(rep.Series) != 4 || len(rep.Series[0].Results()) != 2 || c.Leftovers(t) != 0 {
		t.Errorf("%d series, %d namespaces are left", len(rep.Series), c.Leftovers(t))
	}
}

func TestCheck(t *testing.T) {
	good := options(t, nil)
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for want, f := range map[string]func(*Options){
		"--steps is empty":                func(o *Options) { o.Steps = nil },
		"in growing order":                func(o *Options) { o.Steps = []int{10, 10} },
		"use 0 to 60000":                  func(o *Options) { o.Steps = []int{100000} },
		"--ports-per-service 0":           func(o *Options) { o.Ports = 0 },
		`--from "moon": use some of pod`:  func(o *Options) { o.Sources = []string{"moon"} },
		`--paths "wire": use some of nod`: func(o *Options) { o.Ways = []string{"wire"} },
		"takes tests of transactions":     func(o *Options) { o.Tests = []netperf.Test{netperf.TCPStream} },
	} {
		o := good
		f(&o)
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	o := options(t, []string{"a"}, clusterOf(t, stagetest.Node("n1", 1, nil)))
	o.Sources = []string{FromExternal}
	if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "no host outside this cluster") {
		t.Error(err)
	}
}
