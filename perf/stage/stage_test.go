// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	k8stesting "k8s.io/client-go/testing"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/stage/stagetest"
)

func options(t *testing.T, c *stagetest.Cluster) Options {
	return Options{Name: "test", Client: c.Client, Exec: c.Exec, Version: "0.1.0", Same: true, Other: true, Host: true, Say: t.Logf}
}

// TestStage deploys, measures through a node port, and leaves nothing behind.
func TestStage(t *testing.T) {
	c := stagetest.New(stagetest.Node("n1", 1, nil), stagetest.Node("n2", 2, nil))
	o := options(t, c)
	o.Streams = 2
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if x := s.Cluster; x.CNI != "Lash 0.1.0" || x.KubeProxy != "nftables" || x.Image != "localhost/lash:test" || len(x.Nodes) != 2 || x.Nodes[0].Kernel != "6.18.0" {
		t.Errorf("%+v", x)
	}
	for name, level := range map[string]string{"lash-perf": "restricted", "lash-perf-host": "privileged"} {
		ns, err := c.Client.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || ns.Labels["pod-security.kubernetes.io/enforce"] != level {
			t.Errorf("namespace %s: %v, %v", name, ns.Labels, err)
		}
	}
	pod, err := c.Client.CoreV1().Pods("lash-perf").Get(t.Context(), ServerOther, metav1.GetOptions{})
	if err != nil || pod.Spec.NodeName != "n2" || pod.Spec.HostNetwork || !*pod.Spec.SecurityContext.RunAsNonRoot || *pod.Spec.Containers[0].SecurityContext.AllowPrivilegeEscalation {
		t.Errorf("%+v, %v", pod, err)
	}
	v, err := s.Service(t.Context(), "other", ServerOther, corev1.ServiceTypeNodePort)
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Measure(t.Context(), s.From(s.Pod(ClientPod)), v.ToNodePort(s.OtherNode, 4), Test{Test: netperf.TCPCRR, Streams: 2}, 2*time.Second)
	if err != nil || r.Rate != 10000 {
		t.Fatalf("%+v, %v", r, err)
	}
	last := c.Commands()[len(c.Commands())-1]
	for _, want := range []string{
		"lash-perf/client: /usr/bin/lash-agent perf client 172.31.0.2:30000 ", "--test TCP_CRR", "--length 2s", "--streams 2",
		"--data-port 12866", "--connect-port 30001 --connect-port 30003", "--passphrase " + s.passphrase,
	} {
		if !strings.Contains(last, want) {
			t.Errorf("the command lacks %q: %s", want, last)
		}
	}
	if ToPod(s.Pod(HostOther), 4).Control.Port() != hostPort || ToPod(s.Pod(ServerSame), 4).Control.Port() != netperf.DefaultPort {
		t.Error("ports of the servers")
	}
	if ok := ToPod(s.Pod(ServerSame), 6).Valid(); ok {
		t.Error("a pod without an IPv6 address can be measured over IPv6")
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := c.Leftovers(t); n != 0 {
		t.Errorf("%d namespaces are left", n)
	}
}

// TestRefusals is what the user sees when a cluster does not play along. Nothing is left behind.
func TestRefusals(t *testing.T) {
	forbid := func(c *stagetest.Cluster, resource, why string) {
		c.Client.PrependReactor("create", resource, func(k8stesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "client", errors.New(why))
		})
	}
	two := func() *stagetest.Cluster {
		return stagetest.New(stagetest.Node("n1", 1, nil), stagetest.Node("n2", 2, map[string]string{"disk": "ssd"}))
	}
	for name, c := range map[string]struct {
		cluster *stagetest.Cluster
		change  func(*stagetest.Cluster, *Options)
		want    []string
	}{
		"no second node": {stagetest.New(stagetest.Node("n1", 1, nil)), nil, []string{"there is no second node to measure to", "n1 is the only one", "--other-node=false"}},
		"no such label":  {two(), func(_ *stagetest.Cluster, o *Options) { o.ServerSelector = "disk=none" }, []string{`no node is ready among those with the labels "disk=none"`}},
		"no common node": {
			two(), func(_ *stagetest.Cluster, o *Options) { o.ServerSelector, o.ClientSelector = "disk=ssd", "disk!=ssd" },
			[]string{"no node is left for both", "--same-node=false"},
		},
		"no image": {two(), func(c *stagetest.Cluster, o *Options) {
			c.Waiting = &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "not found"}
			o.Image = "example.org/x:1"
		}, []string{"the image cannot be pulled", "example.org/x:1 on node n", "ErrImagePull not found", "--image"}},
		"quota": {
			two(), func(c *stagetest.Cluster, _ *Options) {
				forbid(c, "pods", "exceeded quota: compute, requested: pods=1")
			},
			[]string{"create pod client: a quota of namespace lash-perf leaves no room", "exceeded quota: compute"},
		},
		"rbac": {two(), func(c *stagetest.Cluster, _ *Options) { forbid(c, "namespaces", "no rights") }, []string{"create namespace lash-perf", "no rights"}},
	} {
		o := options(t, c.cluster)
		if c.change != nil {
			c.change(c.cluster, &o)
		}
		_, err := Open(t.Context(), o)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
		if name == "quota" && apierrors.IsForbidden(err) {
			t.Error("a quota is taken for a missing permission")
		}
		if n := c.cluster.Leftovers(t); n != 0 {
			t.Errorf("%s: %d namespaces are left", name, n)
		}
	}
}

// TestForeign leaves a namespace of somebody else's alone.
func TestForeign(t *testing.T) {
	c := stagetest.New(stagetest.Node("n1", 1, nil), stagetest.Node("n2", 2, nil))
	if _, err := c.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "lash-perf"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), options(t, c)); err == nil || !strings.Contains(err.Error(), "choose another with --test-namespace") {
		t.Error(err)
	}
	if _, err := c.Client.CoreV1().Namespaces().Get(t.Context(), "lash-perf", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

// TestOneNode has a server beside the client and none elsewhere.
func TestOneNode(t *testing.T) {
	c := stagetest.New(stagetest.Node("n1", 1, nil))
	o := options(t, c)
	o.Other = false
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	if s.OtherNode.Name != "" || s.Pod(ServerOther) != nil || s.Pod(ServerSame).Node != "n1" || s.Pod(HostOther) != nil {
		t.Errorf("%+v", s.pods)
	}
}

// TestCancelled removes everything although the context has ended.
func TestCancelled(t *testing.T) {
	c := stagetest.New(stagetest.Node("n1", 1, nil), stagetest.Node("n2", 2, nil))
	ctx, cancel := context.WithCancel(t.Context())
	s, err := Open(ctx, options(t, c))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := s.Close(ctx); err != nil || c.Leftovers(t) != 0 {
		t.Errorf("%v, %d namespaces are left", err, c.Leftovers(t))
	}
}
