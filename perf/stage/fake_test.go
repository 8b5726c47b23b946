// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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

// fakeCluster runs pods as soon as they are made, or leaves them in a state of the test's.
type fakeCluster struct {
	client   *fake.Clientset
	mu       sync.Mutex
	commands []string
	next     byte
	waiting  *corev1.ContainerStateWaiting // of every pod
	answer   func(command string) (string, error)
}

func node(name string, ip byte, labels map[string]string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("172.31.0.%d", ip)}}
	n.Status.NodeInfo.KernelVersion = "6.18.0"
	return n
}

func newFake(nodes ...*corev1.Node) *fakeCluster {
	c := &fakeCluster{next: 1}
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
	c.client = fake.NewClientset(objs...)
	c.client.PrependReactor("create", "pods", func(a k8stesting.Action) (bool, runtime.Object, error) {
		c.run(a.(k8stesting.CreateAction).GetObject().(*corev1.Pod))
		return false, nil, nil
	})
	c.client.PrependReactor("create", "services", func(a k8stesting.Action) (bool, runtime.Object, error) {
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

func (c *fakeCluster) run(p *corev1.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.Spec.NodeName = p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0].Values[0]
	if c.waiting != nil {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "perf", Image: p.Spec.Containers[0].Image, State: corev1.ContainerState{Waiting: c.waiting}}}
		return
	}
	c.next++
	p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.244.0.%d", c.next)}}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
}

// exec answers a measurement with a result.
func (c *fakeCluster) exec(_ context.Context, ns, pod, _ string, out, errOut io.Writer, command ...string) error {
	line := strings.Join(command, " ")
	c.mu.Lock()
	c.commands = append(c.commands, ns+"/"+pod+": "+line)
	c.mu.Unlock()
	if c.answer != nil {
		text, err := c.answer(line)
		if err != nil {
			io.WriteString(errOut, "Error: "+err.Error()+"\n")
			return err
		}
		_, err = io.WriteString(out, text)
		return err
	}
	if !strings.Contains(line, "perf client") {
		return nil
	}
	return json.NewEncoder(out).Encode(netperf.Result{Test: netperf.TCPCRR, Seconds: 1, Rate: 10000, RTLatency: 100, Latency: &stats.Summary{Count: 1, P50: 99}})
}

func (c *fakeCluster) options(t *testing.T) Options {
	return Options{Name: "test", Client: c.client, Exec: c.exec, Version: "0.1.0", Same: true, Other: true, Host: true, Say: t.Logf}
}

// leftovers are the namespaces that are still there.
func (c *fakeCluster) leftovers(t *testing.T) int {
	t.Helper()
	l, err := c.client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return len(l.Items)
}
