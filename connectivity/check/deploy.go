// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lash.internal/lash/connectivity/testbed"
)

const (
	agentBinary  = "/usr/bin/lash-agent"
	nobody       = 65532
	managedLabel = "app.kubernetes.io/name"
	managedValue = "cilium-cli"
	kindNotReady = "not-ready"
)

// workload is one Deployment of a single pod on a given node.
type workload struct {
	name, kind string
	node       string
	labels     map[string]string
}

func (e *Env) workloads() []workload {
	w := []workload{
		{"client", "client", e.Local.Name, nil},
		{"client2", "client", e.Local.Name, map[string]string{"other": "client"}},
		{echoSame, "echo", e.Local.Name, map[string]string{"other": "echo"}},
	}
	if !e.SingleNode() {
		w = append(w,
			workload{"client3", "client", e.Other.Name, map[string]string{"other": "client-other-node"}},
			workload{echoOther, "echo", e.Other.Name, map[string]string{"first": "echo"}})
	}
	return append(w, workload{podNotReady, kindNotReady, e.Local.Name, nil})
}

// deploy creates everything in the test namespace and waits until it runs.
func (e *Env) deploy(ctx context.Context) error {
	ns := e.opts.TestNamespace
	if err := e.createServices(ctx); err != nil {
		return err
	}
	for _, w := range e.workloads() {
		if _, err := e.opts.Client.AppsV1().Deployments(ns).Create(ctx, e.deployment(w), metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create Deployment %s: %w", w.name, err)
		}
	}
	if _, err := e.opts.Client.AppsV1().DaemonSets(ns).Create(ctx, e.hostDaemonSet(), metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create DaemonSet host-netns: %w", err)
	}
	if err := e.waitPods(ctx); err != nil {
		return err
	}
	for _, sl := range e.drainingSlices("") {
		if _, err := e.opts.Client.DiscoveryV1().EndpointSlices(ns).Create(ctx, sl, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create EndpointSlice %s: %w", sl.Name, err)
		}
	}
	return nil
}

// makeNamespace creates the test namespace; one that an earlier run left behind is removed first.
func (e *Env) makeNamespace(ctx context.Context) error {
	labels := map[string]string{"pod-security.kubernetes.io/enforce": "privileged"}
	maps.Copy(labels, e.opts.NamespaceLabels)
	obj := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: e.opts.TestNamespace, Labels: labels, Annotations: e.opts.NamespaceAnnotations}}
	return e.bed().Make(ctx, obj)
}

// errForeign is about a namespace that is not ours to remove.
var errForeign = testbed.ErrForeign

// removeNamespace deletes the test namespace and waits until it is gone. One that no connectivity
// test has made is left alone.
func (e *Env) removeNamespace(ctx context.Context) error {
	return e.bed().Remove(ctx, e.opts.TestNamespace)
}

func (e *Env) bed() testbed.Bed {
	return testbed.Bed{
		Client: e.opts.Client, Label: managedLabel, Value: managedValue, Maker: "a connectivity test", Flag: "--test-namespace",
		Say: e.opts.Progress.Info,
	}
}

func (e *Env) deployment(w workload) *appsv1.Deployment {
	labels := map[string]string{"name": w.name, "kind": w.kind}
	maps.Copy(labels, w.labels)
	one := int32(1)
	spec := e.podSpec(httpPort, tcpPort, udpPort)
	spec.SecurityContext = &corev1.PodSecurityContext{
		RunAsNonRoot: ptr(true), RunAsUser: ptr(int64(nobody)), RunAsGroup: ptr(int64(nobody)),
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	spec.Affinity = testbed.OnNode(w.node)
	switch {
	case w.kind == kindNotReady: // nobody ever says that it is
		spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: balancerClass}}
	case w.kind == "echo" && e.KubeProxyReplacement():
		for i, p := range []int32{hostPortHTTP, hostPortTCP, hostPortUDP} {
			spec.Containers[0].Ports[i].HostPort = p
		}
	}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: w.name, Labels: labels},
		Spec: appsv1.DeploymentSpec{
			Replicas: &one,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"name": w.name}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
		},
	}
}

func (e *Env) hostDaemonSet() *appsv1.DaemonSet {
	labels := map[string]string{"name": "host-netns", "kind": "host-netns"}
	spec := e.podSpec(hostHTTPPort, hostTCPPort, hostUDPPort)
	spec.HostNetwork = true
	spec.DNSPolicy = corev1.DNSClusterFirstWithHostNet
	// A host has no net.ipv4.ping_group_range for us: ping needs a raw socket there.
	spec.Containers[0].SecurityContext.Capabilities.Add = []corev1.Capability{"NET_RAW"}
	spec.Containers[0].SecurityContext.RunAsUser = ptr(int64(0))
	var names []string
	for _, n := range e.Nodes {
		names = append(names, n.Name)
	}
	spec.Affinity = testbed.OnNode(names...)
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "host-netns", Labels: labels},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"name": "host-netns"}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
		},
	}
}

func ptr[T any](v T) *T { return &v }

func (e *Env) podSpec(http, tcp, udp int) corev1.PodSpec {
	return corev1.PodSpec{
		AutomountServiceAccountToken:  ptr(false),
		EnableServiceLinks:            ptr(false),
		TerminationGracePeriodSeconds: ptr(int64(1)),
		Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		Containers: []corev1.Container{{
			Name: "echo", Image: e.Image, ImagePullPolicy: corev1.PullIfNotPresent,
			Command: []string{agentBinary, "echo", fmt.Sprintf("--http=%d", http), fmt.Sprintf("--tcp=%d", tcp), fmt.Sprintf("--udp=%d", udp)},
			Env:     []corev1.EnvVar{{Name: "GOMEMLIMIT", Value: "64MiB"}},
			Ports: []corev1.ContainerPort{
				{Name: "http", ContainerPort: int32(http), Protocol: corev1.ProtocolTCP},
				{Name: "tcp", ContainerPort: int32(tcp), Protocol: corev1.ProtocolTCP},
				{Name: "udp", ContainerPort: int32(udp), Protocol: corev1.ProtocolUDP},
			},
			// Ready has to mean listening. The probe runs inside the pod: one from the kubelet would
			// already need the path from node to pod.
			StartupProbe: &corev1.Probe{
				ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{
					Command: []string{agentBinary, "probe", "tcp", fmt.Sprintf("localhost:%d", tcp)},
				}},
				PeriodSeconds: 1, TimeoutSeconds: 10, FailureThreshold: 30,
			},
			SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: ptr(false), ReadOnlyRootFilesystem: ptr(true),
				Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			},
		}},
	}
}

// deployLimit is how long the pods may take to run.
const deployLimit = 2 * time.Minute

// waitPods follows the pods of the test namespace until all are ready, and notes them in e.
func (e *Env) waitPods(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, deployLimit, errors.New("time ran out"))
	defer cancel()
	want := map[string]int{"host-netns": len(e.Nodes)}
	for _, w := range e.workloads() {
		want[w.name] = 1
	}
	missing := "no pod has been created"
	err := testbed.FollowPods(ctx, e.opts.Client, e.opts.TestNamespace, "", func(pods []corev1.Pod) bool {
		missing = missingPods(pods, want)
		if missing == "" {
			e.notePods(pods)
		}
		return missing == ""
	})
	if err != nil {
		return fmt.Errorf("the test pods do not run (%w): %s", err, missing)
	}
	return nil
}

// runs says whether a pod is as ready as it will be.
func runs(p *corev1.Pod) bool {
	if p.Labels["kind"] != kindNotReady {
		return testbed.PodReady(p)
	}
	return p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.ContainersReady && c.Status == corev1.ConditionTrue
	})
}

func missingPods(pods []corev1.Pod, want map[string]int) string {
	have := map[string]int{}
	var problems []string
	for i := range pods {
		p := &pods[i]
		if runs(p) && len(p.Status.PodIPs) > 0 {
			have[p.Labels["name"]]++
		} else if p.DeletionTimestamp == nil {
			problems = append(problems, fmt.Sprintf("%s on %s: %s", p.Name, p.Spec.NodeName, testbed.PodProblem(p)))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if have[name] < want[name] && len(problems) == 0 {
			problems = append(problems, fmt.Sprintf("%s: %d of %d pods", name, have[name], want[name]))
		}
		if have[name] < want[name] {
			slices.Sort(problems)
			return strings.Join(problems, "; ")
		}
	}
	return ""
}

// notePods fills in Clients, Echoes, Hosts and Families.
func (e *Env) notePods(pods []corev1.Pod) {
	slices.SortFunc(pods, func(a, b corev1.Pod) int {
		return strings.Compare(a.Labels["name"]+a.Spec.NodeName, b.Labels["name"]+b.Spec.NodeName)
	})
	e.Clients, e.Echoes, e.Hosts = nil, nil, nil
	for i := range pods {
		p := &pods[i]
		if !runs(p) {
			continue
		}
		peer := Peer{Kind: PeerPod, Name: p.Labels["name"], Pod: p.Name, Host: p.Name, Node: p.Spec.NodeName}
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				peer.IPs = append(peer.IPs, a)
			}
		}
		switch p.Labels["kind"] {
		case "client":
			e.Clients = append(e.Clients, peer)
		case "echo":
			e.Echoes = append(e.Echoes, peer)
		case kindNotReady:
			e.NotReady = peer
		case "host-netns":
			peer.Kind, peer.Name, peer.Host = PeerHost, p.Spec.NodeName, ""
			if n := e.node(peer.Node); n != nil {
				peer.IPs = n.IPs
			}
			e.Hosts = append(e.Hosts, peer)
		}
	}
	e.Families = nil
	for _, f := range e.opts.Families {
		if len(e.Clients) > 0 && e.Clients[0].IP(f).IsValid() {
			e.Families = append(e.Families, f)
		}
	}
}
