// SPDX-License-Identifier: Apache-2.0

// Package stagetest is a cluster for the tests of measurements: pods run as soon as they are made, and
// commands in them are answered by the test.
package stagetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/stats"
)

// Cluster runs pods as soon as they are made.
type Cluster struct {
	Client   *fake.Clientset
	mu       sync.Mutex
	commands []string
	next     byte
	Waiting  *corev1.ContainerStateWaiting // of every pod, which then does not run
	// Answer, when set, answers every command.
	Answer func(command string) (string, error)
}

// Node is a node that is ready.
func Node(name string, ip byte, labels map[string]string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("172.31.0.%d", ip)}}
	n.Status.NodeInfo.KernelVersion = "6.18.0"
	return n
}

// New is a cluster of some nodes, with Lash and with kube-proxy in nftables mode.
func New(nodes ...*corev1.Node) *Cluster {
	c := &Cluster{next: 1}
	var objs []runtime.Object
	for _, n := range nodes {
		objs = append(objs, n)
	}
	objs = append(objs,
		&appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "kube-proxy", Namespace: "kube-system"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kube-proxy", Namespace: "kube-system"}, Data: map[string]string{"config.conf": "kind: K\n    mode: nftables\n"}},
		&appsv1.DaemonSet{
			ObjectMeta: metav1.ObjectMeta{Name: "cilium", Namespace: "kube-system", Labels: map[string]string{"helm.sh/chart": "lash-0.1.0"}},
			Spec: appsv1.DaemonSetSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
				Containers: []corev1.Container{{Name: "cilium-agent", Image: "localhost/lash:test"}},
			}}},
		})
	c.Client = fake.NewClientset(objs...)
	c.Client.PrependReactor("create", "pods", func(a k8stesting.Action) (bool, runtime.Object, error) {
		c.Run(a.(k8stesting.CreateAction).GetObject().(*corev1.Pod))
		return false, nil, nil
	})
	c.Client.PrependReactor("create", "services", func(a k8stesting.Action) (bool, runtime.Object, error) {
		s := a.(k8stesting.CreateAction).GetObject().(*corev1.Service)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.next++
		s.Spec.ClusterIP = fmt.Sprintf("10.96.0.%d", c.next)
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
		for i := range s.Spec.Ports {
			if s.Spec.Type == corev1.ServiceTypeNodePort {
				s.Spec.Ports[i].NodePort = int32(30000 + i)
			}
		}
		return false, s, nil
	})
	return c
}

// Commands are those that were run so far.
func (c *Cluster) Commands() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.commands)
}

// Run gives a pod what one that runs has.
func (c *Cluster) Run(p *corev1.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.Spec.NodeName = p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0].Values[0]
	if c.Waiting != nil {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "perf", Image: p.Spec.Containers[0].Image, State: corev1.ContainerState{Waiting: c.Waiting}}}
		return
	}
	c.next++
	p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.244.0.%d", c.next)}}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
}

// Exec answers a measurement with a result.
func (c *Cluster) Exec(_ context.Context, ns, pod, _ string, out, errOut io.Writer, command ...string) error {
	line := strings.Join(command, " ")
	c.mu.Lock()
	c.commands = append(c.commands, ns+"/"+pod+": "+line)
	c.mu.Unlock()
	if c.Answer != nil {
		text, err := c.Answer(line)
		if err != nil {
			return errors.Join(err, write(errOut, "Error: "+err.Error()+"\n"))
		}
		return write(out, text)
	}
	if !strings.Contains(line, "perf client") {
		return nil
	}
	return json.NewEncoder(out).Encode(netperf.Result{Test: netperf.TCPCRR, Seconds: 1, Rate: 10000, RTLatency: 100, Latency: &stats.Summary{Count: 1, P50: 99}})
}

// Leftovers are the namespaces that are still there.
func (c *Cluster) Leftovers(t *testing.T) int {
	t.Helper()
	l, err := c.Client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return len(l.Items)
}

func write(w io.Writer, text string) error {
	_, err := io.WriteString(w, text)
	return err
}
