// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lash.internal/lash/perf/report"
)

// discover finds the nodes, the image and the facts of the cluster.
func (s *Stage) discover(ctx context.Context) error {
	o := &s.o
	nodes, err := o.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list the nodes: %w", err)
	}
	clients, err := s.candidates(ctx, nodes.Items, o.ClientSelector)
	if err != nil {
		return err
	}
	servers, err := s.candidates(ctx, nodes.Items, o.ServerSelector)
	if err != nil {
		return err
	}
	if err := s.place(clients, servers); err != nil {
		return err
	}
	sets, err := o.Client.AppsV1().DaemonSets("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list the DaemonSets: %w", err)
	}
	version := ""
	if v, err := o.Client.Discovery().ServerVersion(); err == nil {
		version = v.GitVersion
	}
	c := report.Cluster{Name: o.Name, Kubernetes: version, Lash: o.Version}
	var agents *appsv1.DaemonSet
	c.CNI, agents = network(sets.Items)
	if c.CNI == "" {
		c.CNI = o.CNI
	}
	if c.CNI == "" {
		c.CNI = "unknown"
	}
	if c.KubeProxy, err = s.kubeProxy(ctx, sets.Items); err != nil {
		return err
	}
	switch {
	case o.Image != "":
	case agents != nil:
		o.Image = agents.Spec.Template.Spec.Containers[0].Image
	case o.DefaultImage != "":
		o.Image = o.DefaultImage
	default:
		return errors.New("there are no agents of Lash whose image could be used: name one with --image")
	}
	c.Image = o.Image
	for i := range nodes.Items {
		n := &nodes.Items[i]
		role := map[string]string{s.Local.Name: "client and near server", s.OtherNode.Name: "far server"}[n.Name]
		if role == "" {
			continue
		}
		info := n.Status.NodeInfo
		c.Nodes = append(c.Nodes, report.Node{
			Name: n.Name, Role: role, Kernel: info.KernelVersion, OS: info.OSImage, Runtime: info.ContainerRuntimeVersion, Arch: info.Architecture,
			CPU: n.Status.Capacity.Cpu().String(), Memory: n.Status.Capacity.Memory().String(), Kubelet: info.KubeletVersion,
		})
	}
	s.Cluster = c
	return nil
}

// candidates are the nodes that a selector leaves and that pods can run on, those without taints first.
func (s *Stage) candidates(ctx context.Context, all []corev1.Node, selector string) ([]corev1.Node, error) {
	if selector != "" {
		list, err := s.o.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return nil, fmt.Errorf("list the nodes with %q: %w", selector, err)
		}
		all = list.Items
	}
	var out []corev1.Node
	for _, tainted := range []bool{false, true} {
		for _, n := range all {
			blocked := slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Effect != corev1.TaintEffectPreferNoSchedule })
			if ready(&n) && !n.Spec.Unschedulable && blocked == tainted {
				out = append(out, n)
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no node is ready%s", with(selector))
	}
	return out, nil
}

func with(selector string) string {
	if selector == "" {
		return ""
	}
	return fmt.Sprintf(" among those with the labels %q", selector)
}

func ready(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// ErrOneNode says that there is no second node.
var ErrOneNode = errors.New("there is no second node to measure to")

// place picks the client's node, and another one.
func (s *Stage) place(clients, servers []corev1.Node) error {
	named := func(n string) func(corev1.Node) bool { return func(o corev1.Node) bool { return o.Name == n } }
	local := clients[0]
	if s.o.Same {
		i := slices.IndexFunc(clients, func(n corev1.Node) bool { return slices.ContainsFunc(servers, named(n.Name)) })
		if i < 0 {
			return errors.New("no node is left for both the client and a server on the same node: use other labels, or --same-node=false")
		}
		local = clients[i]
	}
	s.Local = nodeOf(&local)
	if !s.o.Other {
		return nil
	}
	i := slices.IndexFunc(servers, func(n corev1.Node) bool { return n.Name != local.Name })
	if i < 0 {
		return fmt.Errorf("%w: %s is the only one that is ready%s; use --other-node=false", ErrOneNode, local.Name, with(s.o.ServerSelector))
	}
	s.OtherNode = nodeOf(&servers[i])
	return nil
}

func nodeOf(n *corev1.Node) Node {
	out := Node{Name: n.Name}
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			out.IPs = append(out.IPs, ip)
		}
	}
	return out
}

// networks are the DaemonSets that networks run as.
var networks = map[string]string{
	"cilium": "Cilium", "calico-node": "Calico", "kube-flannel-ds": "flannel", "kindnet": "kindnet", "aws-node": "Amazon VPC CNI",
	"weave-net": "Weave Net", "kube-router": "kube-router", "antrea-agent": "Antrea", "ovnkube-node": "OVN-Kubernetes", "azure-cns": "Azure CNI",
}

// network tells the network from its DaemonSet, and returns it when it is Lash's.
func network(sets []appsv1.DaemonSet) (string, *appsv1.DaemonSet) {
	name := ""
	for i := range sets {
		d := &sets[i]
		if chart, ours := strings.CutPrefix(d.Labels["helm.sh/chart"], "lash-"); ours && d.Name == "cilium" {
			return "Lash " + chart, d
		}
		if word := networks[d.Name]; word != "" && name == "" {
			name = word
			if c := d.Spec.Template.Spec.Containers; len(c) > 0 {
				name += " " + tag(c[0].Image)
			}
		}
	}
	return name, nil
}

func tag(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		return image[i+1:]
	}
	return ""
}

// kubeProxy is the mode of kube-proxy, or "none".
func (s *Stage) kubeProxy(ctx context.Context, sets []appsv1.DaemonSet) (string, error) {
	if !slices.ContainsFunc(sets, func(d appsv1.DaemonSet) bool {
		return d.Namespace == metav1.NamespaceSystem && strings.Contains(d.Name, "kube-proxy")
	}) {
		return "none", nil
	}
	cm, err := s.o.Client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, "kube-proxy", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the configuration of kube-proxy: %w", err)
	}
	for _, text := range cm.Data {
		for line := range strings.SplitSeq(text, "\n") {
			if mode, found := strings.CutPrefix(strings.TrimSpace(line), "mode:"); found {
				if mode = strings.Trim(strings.TrimSpace(mode), `"'`); mode != "" {
					return mode, nil
				}
			}
		}
	}
	return "iptables", nil // kube-proxy's own default on Linux
}
