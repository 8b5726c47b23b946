// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	"lash.internal/lash/connectivity/testbed"
)

// dnsSelector are the labels of the Service and of the pods of the cluster's DNS.
const dnsSelector = "k8s-app=kube-dns"

// Ports of the echo servers: in pods, and on hosts where they must not meet others.
const (
	httpPort, tcpPort, udpPort             = 8080, 8081, 8082
	hostHTTPPort, hostTCPPort, hostUDPPort = 18280, 18281, 18282
)

// Node is a node that takes part.
type Node struct {
	Name  string
	IPs   []netip.Addr // InternalIPs
	Agent *corev1.Pod  // nil: none runs here
	// Problem says why the agent cannot be used; empty when it is ready.
	Problem string
	taints  []corev1.Taint
}

// Ready says whether the node can run test pods.
func (n Node) Ready() bool { return n.Agent != nil && n.Problem == "" }

// PeerKind is what a Peer is.
type PeerKind string

// The kinds.
const (
	PeerPod      PeerKind = "pod"
	PeerHost     PeerKind = "node"
	PeerService  PeerKind = "service"
	PeerExternal PeerKind = "external"
	PeerName     PeerKind = "name"
)

// Peer is one end of an action.
type Peer struct {
	Kind PeerKind
	Name string // for messages: pod, node or Service name
	Pod  string // pod to exec into, for sources
	Host string // name that its echo server answers with
	Node string
	IPs  []netip.Addr
	// Via says at what a Service is asked, where that is not its ClusterIP.
	Via string
	// portSet are its ports where they are not those of its kind.
	portSet *portSet
}

// String is the peer in a message.
func (p Peer) String() string {
	switch p.Kind {
	case PeerHost:
		return "node " + p.Name
	case PeerService:
		text := "service " + p.Name
		if p.Via != "" {
			text += " " + p.Via
		}
		if p.Node != "" {
			text += "@" + p.Node
		}
		return text
	}
	if p.Node != "" {
		return p.Name + "@" + p.Node
	}
	return p.Name
}

// At is the peer with its address of a family.
func (p Peer) At(family int) string {
	if ip := p.IP(family); ip.IsValid() {
		return p.String() + " (" + ip.String() + ")"
	}
	return p.String()
}

// IP returns the peer's address of a family, invalid when it has none.
func (p Peer) IP(family int) netip.Addr {
	for _, ip := range p.IPs {
		if ip.Is6() == (family == 6) {
			return ip
		}
	}
	return netip.Addr{}
}

func (p Peer) target(family, port int) string {
	return net.JoinHostPort(p.IP(family).String(), strconv.Itoa(port))
}

// Env is what the scenarios work with.
type Env struct {
	opts   Options
	Config map[string]string // ConfigMap cilium-config
	Image  string
	Nodes  []Node
	// Local and Other are the nodes of the test pods; Other is the zero Node in a single-node run.
	Local, Other Node
	Families     []int
	Clients      []Peer // client, client2 on Local, client3 on Other
	Echoes       []Peer // echo-same-node on Local, echo-other-node on Other
	Hosts        []Peer // one a node, hostNetwork
	// Services by name; the backends of echo-* are Echoes of the same name.
	Services map[string]Peer
	created  []made
	NotReady Peer // a pod that is never ready
	// lookup is a Service that no earlier run had: name servers go on giving the addresses of an
	// earlier Service of a name until their caches run out.
	lookup   string
	DNS      Peer // zero when the cluster has no DNS Service
	API      Peer
	Outside  *Peer
	external *External // behind Outside

	sessions *sessions
	watch    *watcher
	drops    dropCounters
}

// SingleNode says whether there is only one node to place pods on.
func (e *Env) SingleNode() bool { return e.Other.Name == "" }

// KubeProxyReplacement says whether Services are our own.
func (e *Env) KubeProxyReplacement() bool { return e.Config["kube-proxy-replacement"] == "true" }

// Masquerade says whether pods are hidden behind their node outside the cluster.
func (e *Env) Masquerade(family int) bool {
	return e.Config["enable-ipv"+strconv.Itoa(family)+"-masquerade"] == "true"
}

// node returns a node by name.
func (e *Env) node(name string) *Node {
	for i := range e.Nodes {
		if e.Nodes[i].Name == name {
			return &e.Nodes[i]
		}
	}
	return nil
}

// host returns the hostNetwork pod of a node.
func (e *Env) host(node string) (Peer, bool) {
	i := slices.IndexFunc(e.Hosts, func(p Peer) bool { return p.Node == node })
	if i < 0 {
		return Peer{}, false
	}
	return e.Hosts[i], true
}

// discover finds out what the cluster is before anything is deployed.
func discover(ctx context.Context, o Options) (*Env, error) {
	e := &Env{opts: o, Services: map[string]Peer{}, lookup: "lookup-" + rand.String(8)}
	_, err := o.Client.AppsV1().DaemonSets(o.Namespace).Get(ctx, o.AgentDaemonSet, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("find the agents: %w", err)
	}
	if cm, err := o.Client.CoreV1().ConfigMaps(o.Namespace).Get(ctx, "cilium-config", metav1.GetOptions{}); err == nil {
		e.Config = cm.Data
	}
	agents, err := o.Client.CoreV1().Pods(o.Namespace).List(ctx, metav1.ListOptions{LabelSelector: o.AgentSelector})
	if err != nil {
		return nil, fmt.Errorf("list the agents: %w", err)
	}
	nodes, err := o.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: o.NodeSelector})
	if err != nil {
		return nil, fmt.Errorf("list the nodes: %w", err)
	}
	for i := range nodes.Items {
		e.Nodes = append(e.Nodes, describeNode(&nodes.Items[i], agents.Items))
	}
	slices.SortFunc(e.Nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	if err := e.place(); err != nil {
		return nil, err
	}
	// The image of an agent that works, not of a rollout that may be stuck.
	e.Image = agentImage(e.Local.Agent.Spec.Containers)
	if o.Image != "" {
		e.Image = o.Image
	}
	return e, nil
}

func agentImage(containers []corev1.Container) string {
	i := max(0, slices.IndexFunc(containers, func(c corev1.Container) bool { return c.Name == "cilium-agent" }))
	if i < len(containers) {
		return containers[i].Image
	}
	return ""
}

func describeNode(n *corev1.Node, agents []corev1.Pod) Node {
	out := Node{Name: n.Name, taints: n.Spec.Taints}
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			out.IPs = append(out.IPs, ip)
		}
	}
	for i := range agents {
		p := &agents[i]
		if p.Spec.NodeName != n.Name || p.DeletionTimestamp != nil {
			continue
		}
		if out.Agent == nil || testbed.PodReady(p) {
			out.Agent = p
		}
	}
	switch {
	case out.Agent == nil:
		out.Problem = "no agent runs on it"
	case !testbed.PodReady(out.Agent):
		out.Problem = fmt.Sprintf("its agent %s is not ready: %s", out.Agent.Name, testbed.PodProblem(out.Agent))
	}
	return out
}

// place picks the two nodes of the test pods: ready ones, without taints first.
func (e *Env) place() error {
	var ready, problems []string
	for _, tainted := range []bool{false, true} {
		for _, n := range e.Nodes {
			if n.Ready() && noSchedule(n.taints) == tainted {
				ready = append(ready, n.Name)
			}
		}
	}
	for _, n := range e.Nodes {
		if n.Problem != "" {
			problems = append(problems, n.Name+": "+n.Problem)
		}
	}
	if len(ready) == 0 {
		if len(problems) == 0 {
			return errors.New("no node to test on")
		}
		return fmt.Errorf("no node has an agent that is ready:\n  %s", strings.Join(problems, "\n  "))
	}
	e.Local = *e.node(ready[0])
	if len(ready) > 1 && !e.opts.SingleNode {
		e.Other = *e.node(ready[1])
	}
	return nil
}

func noSchedule(taints []corev1.Taint) bool {
	return slices.ContainsFunc(taints, func(t corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	})
}

// findServices looks up what the cluster brings itself.
func (e *Env) findServices(ctx context.Context) error {
	api, err := e.opts.Client.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("find the Service of the API server: %w", err)
	}
	e.API = servicePeer(api)
	e.API.Name = "default/kubernetes"
	list, err := e.opts.Client.CoreV1().Services("kube-system").List(ctx, metav1.ListOptions{LabelSelector: dnsSelector})
	if err != nil {
		return fmt.Errorf("find the cluster's DNS: %w", err)
	}
	if len(list.Items) > 0 {
		e.DNS = servicePeer(&list.Items[0])
		e.DNS.Name = "kube-system/" + list.Items[0].Name
	}
	return nil
}

func servicePeer(s *corev1.Service) Peer {
	p := Peer{Kind: PeerService, Name: s.Name}
	for _, ip := range s.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			p.IPs = append(p.IPs, a)
		}
	}
	return p
}

// probeFor is a probe with the run's time limit.
func (e *Env) timeoutMillis() int { return int(e.opts.RequestTimeout / time.Millisecond) }
