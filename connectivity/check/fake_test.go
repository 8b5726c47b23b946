// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/connectivity/probe"
)

// fakeCluster is a cluster of two nodes: pods run as soon as their workload is created, and probes
// and agent commands are answered by functions of the test.
type fakeCluster struct {
	t      *testing.T
	client *fake.Clientset
	mu     sync.Mutex
	pods   map[string]Peer // by pod name
	nextIP byte
	svcIP  byte
	// answer changes the answer to a probe, which is a success otherwise.
	answer func(from Peer, p probe.Probe, r *probe.Result)
	// drops are reported by the monitor of a node.
	drops map[string][]api.MonitorEvent
	// agent answers a command in the agent of a node.
	agent func(node string, command string) (string, error)
	// dropped is the drop counter of every node.
	dropped int
	// turn counts answers of Services, kept are who answered on connections that were left open, ending
	// is a server that takes no new ones.
	turn   map[string]int
	kept   map[string]string
	ending string
	// routed are the addresses that the host outside has been given routes to.
	routed []string
}

func newFakeCluster(t *testing.T) *fakeCluster {
	t.Helper()
	c := &fakeCluster{
		t: t, pods: map[string]Peer{}, nextIP: 10, svcIP: 10,
		turn: map[string]int{}, kept: map[string]string{}, drops: map[string][]api.MonitorEvent{},
	}
	objs := []runtime.Object{
		&appsv1.DaemonSet{
			ObjectMeta: metav1.ObjectMeta{Name: "cilium", Namespace: "kube-system"},
			Spec: appsv1.DaemonSetSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
				Containers: []corev1.Container{{Name: "cilium-agent", Image: "localhost/lash:test"}},
			}}},
		},
		&corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "cilium-config", Namespace: "kube-system"},
			Data:       map[string]string{"kube-proxy-replacement": "true", "enable-ipv4-masquerade": "true", "tunnel-port": "8472"},
		},
		service("default", "kubernetes", "10.96.0.1", nil),
		service("kube-system", "kube-dns", "10.96.0.10", map[string]string{"k8s-app": "kube-dns"}),
		readyPod("kube-system", "coredns", "n1", map[string]string{"k8s-app": "kube-dns"}, "10.244.1.2"),
	}
	for i, n := range []string{"n1", "n2"} {
		objs = append(objs, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: n},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("172.31.0.%d", i+1)}}},
		}, readyPod("kube-system", "agent-"+n, n, map[string]string{"k8s-app": "cilium"}, ""))
	}
	c.client = fake.NewClientset(objs...)
	c.client.PrependReactor("create", "services", c.onService)
	c.client.PrependReactor("update", "endpointslices", c.onSlice)
	c.client.PrependReactor("create", "deployments", c.onDeployment)
	c.client.PrependReactor("create", "daemonsets", c.onDaemonSet)
	return c
}

func service(ns, name, ip string, labels map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, Labels: labels},
		Spec:       corev1.ServiceSpec{ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Port: 53}, {Port: 443}}},
	}
}

func readyPod(ns, name, node string, labels map[string]string, ip string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, Labels: labels},
		Spec:       corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning,
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: corev1.ContainersReady, Status: corev1.ConditionTrue},
			},
		},
	}
	if ip != "" {
		p.Status.PodIPs = []corev1.PodIP{{IP: ip}}
	}
	return p
}

func (c *fakeCluster) onService(a k8stesting.Action) (bool, runtime.Object, error) {
	s := a.(k8stesting.CreateAction).GetObject().(*corev1.Service)
	c.svcIP++
	s.Spec.ClusterIPs = []string{fmt.Sprintf("10.96.1.%d", c.svcIP)}
	ports := s.Spec.Type == corev1.ServiceTypeNodePort ||
		s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.AllocateLoadBalancerNodePorts == nil
	for i := range s.Spec.Ports {
		if ports {
			s.Spec.Ports[i].NodePort = 30000 + 10*int32(c.svcIP) + int32(i)
		}
	}
	if ports && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		s.Spec.HealthCheckNodePort = 32000
	}
	return false, s, nil
}

func (c *fakeCluster) onSlice(a k8stesting.Action) (bool, runtime.Object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ep := range a.(k8stesting.UpdateAction).GetObject().(*discoveryv1.EndpointSlice).Endpoints {
		for _, p := range c.pods {
			if ep.Conditions.Terminating != nil && *ep.Conditions.Terminating && ep.Addresses[0] == p.IPs[0].String() {
				c.ending = p.Pod
			}
		}
	}
	return false, nil, nil
}

func (c *fakeCluster) onDeployment(a k8stesting.Action) (bool, runtime.Object, error) {
	d := a.(k8stesting.CreateAction).GetObject().(*appsv1.Deployment)
	terms := d.Spec.Template.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	node := terms[0].MatchFields[0].Values[0]
	c.nextIP++
	ip := fmt.Sprintf("10.244.%s.%d", strings.TrimPrefix(node, "n"), c.nextIP)
	c.run(readyPod(a.GetNamespace(), d.Name+"-x", node, d.Spec.Template.Labels, ip))
	return false, nil, nil
}

func (c *fakeCluster) onDaemonSet(a k8stesting.Action) (bool, runtime.Object, error) {
	d := a.(k8stesting.CreateAction).GetObject().(*appsv1.DaemonSet)
	for i, n := range []string{"n1", "n2"} {
		c.run(readyPod(a.GetNamespace(), "host-"+n, n, d.Spec.Template.Labels, fmt.Sprintf("172.31.0.%d", i+1)))
	}
	return false, nil, nil
}

func (c *fakeCluster) run(p *corev1.Pod) {
	if err := c.client.Tracker().Add(p); err != nil {
		c.t.Error(err)
	}
	ip := netip.MustParseAddr(p.Status.PodIPs[0].IP)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pods[p.Name] = Peer{Name: p.Labels["name"], Pod: p.Name, Node: p.Spec.NodeName, IPs: []netip.Addr{ip}}
}

// external is a host outside the cluster.
func (c *fakeCluster) external(context.Context, uint16, uint16, uint16) (*External, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pods[outsidePod] = Peer{Name: "external", Pod: outsidePod, IPs: []netip.Addr{netip.MustParseAddr("172.31.0.99")}}
	return &External{
		Addresses: []string{"172.31.0.99"},
		Exec:      func(ctx context.Context, s Streams, _ ...string) error { return c.batch(ctx, outsidePod, s) },
		Route: func(_ context.Context, to, _ netip.Addr) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.routed = append(c.routed, to.String())
			return nil
		},
		Stop: func() {},
	}, nil
}

// exec stands for kubectl exec.
func (c *fakeCluster) exec(ctx context.Context, ns, pod, _ string, s Streams, command ...string) error {
	if ns != "kube-system" {
		return c.batch(ctx, pod, s)
	}
	node := strings.TrimPrefix(pod, "agent-")
	line := strings.Join(command, " ")
	if strings.HasPrefix(line, "cilium monitor") {
		enc := json.NewEncoder(s.Out)
		for _, ev := range c.drops[node] {
			if err := enc.Encode(ev); err != nil {
				return err
			}
		}
		_, err := io.Copy(io.Discard, s.In) // it ends with its input, as the real one does
		return err
	}
	if c.agent != nil {
		if text, err := c.agent(node, line); text != "" || err != nil {
			_, _ = io.WriteString(s.Out, text)
			return err
		}
	}
	switch {
	case line == "cilium status --brief":
		_, _ = io.WriteString(s.Out, "OK\n")
	case strings.HasPrefix(line, "cilium bpf endpoint list"):
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, p := range c.pods {
			if p.Node == node {
				fmt.Fprintf(s.Out, "%s:0 id=1\n", p.IPs[0])
			}
		}
	case strings.HasPrefix(line, "cilium bpf lb list"):
		for _, svc := range c.services() {
			fmt.Fprintf(s.Out, "%s:%d/TCP (0)\n", svc.Spec.Frontend.IP, svc.Spec.Frontend.Port)
		}
	case strings.HasPrefix(line, "cilium service list"):
		return json.NewEncoder(s.Out).Encode(c.services())
	case strings.HasPrefix(line, "cilium metrics list"):
		c.mu.Lock()
		defer c.mu.Unlock()
		n := c.dropped
		return json.NewEncoder(s.Out).Encode([]api.Metric{
			{Name: "cilium_drop_count_total", Labels: map[string]string{"reason": "CT: Map insertion failed"}, Value: float64(n)},
			{Name: "cilium_drop_count_total", Labels: map[string]string{"reason": "Service backend not found"}, Value: float64(n) * 2},
		})
	}
	return nil
}

// backends are the pods behind a Service.
func (c *fakeCluster) backends(s *corev1.Service) []Peer {
	var out []Peer
	if s.Name == svcNotReady || s.Namespace != "cilium-test-1" {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range sortedKeys(c.pods) {
		p := c.pods[name]
		switch {
		case s.Spec.Selector["name"] == p.Name:
			out = append(out, p)
		case (s.Spec.Selector["kind"] == "echo" || s.Name == svcDraining) && strings.HasPrefix(p.Name, "echo-") && p.Name != podNotReady:
			if s.Name != svcDraining || p.Pod != c.ending {
				out = append(out, p)
			}
		}
	}
	return out
}

func outerIPs(s *corev1.Service) []string {
	out := slices.Clone(s.Spec.ExternalIPs)
	for _, i := range s.Status.LoadBalancer.Ingress {
		out = append(out, i.IP)
	}
	return out
}

func (c *fakeCluster) services() []api.Service {
	list, err := c.client.CoreV1().Services("").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		c.t.Error(err)
	}
	var out []api.Service
	add := func(ip string, port int32, backends []Peer) {
		svc := api.Service{Spec: api.ServiceSpec{Frontend: api.FrontendAddress{IP: ip, Port: uint16(port)}}}
		for _, b := range backends {
			svc.Spec.Backends = append(svc.Spec.Backends, api.BackendAddress{IP: b.IPs[0].String(), State: "active"})
		}
		out = append(out, svc)
	}
	for i := range list.Items {
		s := &list.Items[i]
		backends := c.backends(s)
		if s.Namespace == "kube-system" {
			backends = []Peer{{IPs: []netip.Addr{netip.MustParseAddr("10.244.1.2")}}}
		}
		for _, p := range s.Spec.Ports {
			for _, ip := range append(outerIPs(s), s.Spec.ClusterIPs[0]) {
				add(ip, p.Port, backends)
			}
			if p.NodePort != 0 {
				add("0.0.0.0", p.NodePort, backends)
			}
		}
	}
	for _, port := range []int32{hostPortHTTP, hostPortTCP, hostPortUDP} {
		add("0.0.0.0", port, []Peer{{IPs: []netip.Addr{netip.MustParseAddr("10.244.1.1")}}})
	}
	return out
}

// batch stands for `lash-agent probe --batch` in a pod.
func (c *fakeCluster) batch(ctx context.Context, pod string, s Streams) error {
	c.mu.Lock()
	from := c.pods[pod]
	c.mu.Unlock()
	dec, enc := json.NewDecoder(s.In), json.NewEncoder(s.Out)
	for {
		var p probe.Probe
		if err := dec.Decode(&p); err != nil {
			return ctx.Err()
		}
		r := c.success(from, p)
		if c.answer != nil {
			c.answer(from, p, &r)
			r.OK = r.Error == ""
		}
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
}

// success is the answer of a network where everything works.
func (c *fakeCluster) success(from Peer, p probe.Probe) probe.Result {
	r := probe.Result{ID: p.ID, OK: true, Bytes: p.Size, Size: p.Size}
	list, _ := c.client.CoreV1().Services("").List(context.Background(), metav1.ListOptions{})
	for _, s := range list.Items {
		if p.Proto == probe.DNS && strings.HasPrefix(p.Target, s.Name+"."+s.Namespace+".") {
			r.Answers = []string{s.Spec.ClusterIPs[0]}
		}
	}
	if p.Proto == probe.Route {
		r.Answers = []string{"10.244.0.0/16 dev cilium_vxlan"}
		return r
	}
	dst := dstOf(p)
	if dst == "172.31.0.99" && p.Proto != probe.ICMP {
		r.Seen = "172.31.0." + strings.TrimPrefix(from.Node, "n") + ":1234"
		return r
	}
	node := ""
	for i, n := range []string{"n1", "n2"} {
		if dst == fmt.Sprintf("172.31.0.%d", i+1) || dst == "127.0.0.1" && from.Node == n {
			node = n
		}
	}
	refuse := func(kind probe.Kind) probe.Result {
		r.OK, r.Error, r.Kind = false, "connect: "+string(kind), kind
		return r
	}
	if p.Proto != probe.ICMP {
		r.Seen = from.IPs[0].String() + ":1234"
	}
	port := portOf(p)
	if p.Proto == probe.Bind {
		for _, s := range list.Items {
			for _, sp := range s.Spec.Ports {
				if sp.NodePort != 0 && port == strconv.Itoa(int(sp.NodePort)) {
					return refuse(probe.KindForbidden)
				}
			}
		}
		return r
	}
	if node != "" && port == "32000" {
		r.Status, r.Text = 503, `{"localEndpoints":0}`
		if node == "n1" {
			r.Status, r.Text = 200, `{"localEndpoints":1}`
		}
		return r
	}
	for i := range list.Items {
		s := &list.Items[i]
		outer := slices.Contains(outerIPs(s), dst)
		hit := outer || s.Spec.ClusterIPs[0] == dst
		for _, sp := range s.Spec.Ports {
			hit = hit || node != "" && sp.NodePort != 0 && port == strconv.Itoa(int(sp.NodePort))
		}
		if !hit || s.Namespace != "cilium-test-1" {
			continue
		}
		backends := c.backends(s)
		local := s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
		switch {
		case len(backends) == 0:
			return refuse(probe.KindRefused)
		case outer && len(s.Spec.LoadBalancerSourceRanges) > 0 && s.Spec.LoadBalancerSourceRanges[0] != from.IPs[0].String()+"/32",
			from.Pod == outsidePod && node == "n2" && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
			local && from.Node != "n1" && !strings.HasPrefix(from.Pod, "host-"):
			return refuse(probe.KindTimeout)
		case local && from.Node != "n1":
			return refuse(probe.KindRefused)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		turn := from.Pod + p.Target // of each client: clients that alternate would each meet the same server
		c.turn[turn]++
		r.Host = backends[c.turn[turn]%len(backends)].Pod
		if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
			r.Host = backends[0].Pod
		}
		if was := c.kept[from.Pod+p.Conn]; p.Conn != "" && was != "" {
			r.Host = was
		} else if p.Conn != "" {
			c.kept[from.Pod+p.Conn] = r.Host
		}
		return r
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, peer := range c.pods {
		if peer.IPs[0].String() == dst && node == "" || node == peer.Node && strings.HasPrefix(port, "400") && strings.HasPrefix(peer.Name, "echo-") && peer.Name != podNotReady {
			r.Host = peer.Pod
		}
	}
	return r
}

func portOf(p probe.Probe) string {
	t := strings.TrimPrefix(strings.TrimPrefix(p.Target, "http://"), "https://")
	t, _, _ = strings.Cut(t, "/")
	_, port, _ := net.SplitHostPort(t)
	return port
}

func dstOf(p probe.Probe) string {
	t := strings.TrimPrefix(strings.TrimPrefix(p.Target, "http://"), "https://")
	t, _, _ = strings.Cut(t, "/")
	if ap, err := netip.ParseAddrPort(t); err == nil {
		return ap.Addr().String()
	}
	return t
}
