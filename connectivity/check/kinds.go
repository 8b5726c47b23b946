// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Names of the Services beside those of clients and servers.
const (
	svcNoEndpoints = "no-endpoints"
	svcBoth        = "echo"            // both servers, also at externalIPs
	svcSticky      = "echo-sticky"     // both servers, one of them for each client
	svcLocal       = "echo-local"      // LoadBalancer, externalTrafficPolicy Local, server on the node Local
	svcBalanced    = "echo-balanced"   // LoadBalancer, server on the other node if there is one
	svcAllowed     = "echo-allowed"    // LoadBalancer for the host outside only
	svcRefused     = "echo-refused"    // LoadBalancer for nobody
	svcInside      = "echo-inside"     // internalTrafficPolicy Local, server on the node Local
	svcOnHosts     = "host-netns"      // pods of the nodes' own network
	svcNotReady    = "not-ready"       // a pod that is never ready
	svcPublished   = "not-ready-named" // the same, with publishNotReadyAddresses
	svcDraining    = "echo-draining"   // both servers by a slice of the test, so that one can be said to end

	echoSame, echoOther = "echo-same-node", "echo-other-node"
	podNotReady         = "echo-not-ready"
)

// balancerClass keeps a cloud's controllers from making load balancers of the test's Services.
const balancerClass = "lash.internal/connectivity-test"

// Ports of the servers' pods on their nodes.
const hostPortHTTP, hostPortTCP, hostPortUDP = 4000, 4001, 4002

// Ranges that nobody is in (RFC 5737, RFC 3849).
var nobodyRanges = []string{"203.0.113.0/24", "2001:db8:ffff::/48"}

// firstAddress is the place of the first address in ServicePrefixes that is used, addressesUsed their number.
const firstAddress, addressesUsed = 16, 5

// DefaultServicePrefixes are for documentation (RFC 5737, RFC 3849): no network routes them.
const DefaultServicePrefixes = "198.51.100.0/24,2001:db8::/32"

// ParseServicePrefixes reads the prefixes of Options.ServicePrefixes, at most one a family.
func ParseServicePrefixes(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return nil, fmt.Errorf("%q: %w", s, err)
		}
		p = p.Masked()
		if !p.Contains(nthAddr(p, firstAddress+addressesUsed-1)) {
			return nil, fmt.Errorf("%s has no %d addresses", p, firstAddress+addressesUsed)
		}
		if slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Addr().Is6() == p.Addr().Is6() }) {
			return nil, fmt.Errorf("%s: there is another prefix of its family", p)
		}
		out = append(out, p)
	}
	return out, nil
}

func nthAddr(p netip.Prefix, n int64) netip.Addr {
	b := p.Addr().AsSlice()
	sum := new(big.Int).Add(new(big.Int).SetBytes(b), big.NewInt(n))
	if sum.BitLen() > 8*len(b) {
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(sum.FillBytes(b))
	return a
}

// addresses are the addresses of a place, one a family that prefixes were given for.
func (e *Env) addresses(place int64) []netip.Addr {
	var out []netip.Addr
	for _, p := range e.opts.ServicePrefixes {
		out = append(out, nthAddr(p, firstAddress+place))
	}
	return out
}

func texts(list []netip.Addr) []string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return out
}

// testService is a Service of the test.
type testService struct {
	name     string
	selector map[string]string
	// change makes it another kind than ClusterIP.
	change func(*corev1.Service)
	// balancer are the addresses of its load balancer.
	balancer []netip.Addr
	// backends is how many it has for callers that may use all, localTo the node beside which its
	// ClusterIP has none.
	backends int
	localTo  string
}

func named(name string) map[string]string { return map[string]string{"name": name} }

func nodePort(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }

func loadBalancer(s *corev1.Service) {
	s.Spec.Type = corev1.ServiceTypeLoadBalancer
	s.Spec.LoadBalancerClass = ptr(balancerClass)
	s.Spec.AllocateLoadBalancerNodePorts = ptr(false)
}

// onlyFrom is a load balancer for some sources.
func onlyFrom(ranges []string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		loadBalancer(s)
		s.Spec.LoadBalancerSourceRanges = ranges
	}
}

// services are all Services of the test.
func (e *Env) services() []testService {
	both, far := 1, echoSame
	if !e.SingleNode() {
		both, far = 2, echoOther
	}
	echoes := map[string]string{"kind": "echo"}
	s := []testService{
		{name: echoSame, selector: named(echoSame), change: nodePort, backends: 1},
		{name: "client", selector: named("client"), backends: 1},
		{name: svcNoEndpoints, selector: named("nobody"), change: nodePort},
		{name: e.lookup, selector: named(echoSame), backends: 1},
		{name: svcBoth, selector: echoes, backends: both, change: func(s *corev1.Service) { s.Spec.ExternalIPs = texts(e.addresses(0)) }},
		{name: svcSticky, selector: echoes, backends: both, change: func(s *corev1.Service) {
			nodePort(s)
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		}},
		{name: svcLocal, selector: named(echoSame), backends: 1, balancer: e.addresses(1), change: func(s *corev1.Service) {
			loadBalancer(s)
			s.Spec.AllocateLoadBalancerNodePorts = nil
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		}},
		{name: svcBalanced, selector: named(far), backends: 1, balancer: e.addresses(2), change: loadBalancer},
		{name: svcRefused, selector: named(echoSame), backends: 1, balancer: e.addresses(3), change: onlyFrom(nobodyRanges)},
		{name: svcInside, selector: named(echoSame), backends: 1, localTo: e.Local.Name, change: func(s *corev1.Service) {
			s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
		}},
		{name: svcOnHosts, selector: named("host-netns"), backends: len(e.Nodes), change: func(s *corev1.Service) {
			for i, p := range []int32{hostHTTPPort, hostTCPPort, hostUDPPort} {
				s.Spec.Ports[i].TargetPort = intstr.FromInt32(p)
			}
		}},
		{name: svcNotReady, selector: named(podNotReady)},
		{name: svcPublished, selector: named(podNotReady), backends: 1, change: func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }},
		{name: svcDraining, backends: both},
	}
	if !e.SingleNode() {
		s = append(s, testService{name: echoOther, selector: named(echoOther), change: nodePort, backends: 1})
	}
	if e.Outside != nil && len(e.Outside.IPs) > 0 {
		var ranges []string
		for _, a := range e.Outside.IPs {
			ranges = append(ranges, netip.PrefixFrom(a, a.BitLen()).String())
		}
		s = append(s, testService{name: svcAllowed, selector: named(echoSame), backends: 1, balancer: e.addresses(4), change: onlyFrom(ranges)})
	}
	return s
}

func serviceObject(t testService) *corev1.Service {
	dual := corev1.IPFamilyPolicyPreferDualStack
	port := func(name string, p int32, proto corev1.Protocol) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: p, TargetPort: intstr.FromInt32(p), Protocol: proto}
	}
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: t.name, Labels: map[string]string{"kind": "echo"}},
		Spec: corev1.ServiceSpec{
			Selector:       t.selector,
			IPFamilyPolicy: &dual,
			Ports: []corev1.ServicePort{
				port("http", httpPort, corev1.ProtocolTCP), port("tcp", tcpPort, corev1.ProtocolTCP), port("udp", udpPort, corev1.ProtocolUDP),
			},
		},
	}
	if t.change != nil {
		t.change(s)
	}
	return s
}

// createServices makes all Services at once.
func (e *Env) createServices(ctx context.Context) error {
	c := e.opts.Client.CoreV1().Services(e.opts.TestNamespace)
	for _, t := range e.services() {
		svc, err := c.Create(ctx, serviceObject(t), metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("create Service %s: %w", t.name, err)
		}
		e.Services[t.name] = servicePeer(svc)
		e.created = append(e.created, made{t, svc})
		if len(t.balancer) == 0 {
			continue
		}
		for _, a := range t.balancer {
			if slices.ContainsFunc(e.Services[t.name].IPs, func(o netip.Addr) bool { return o.Is6() == a.Is6() }) {
				svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String()})
			}
		}
		if _, err := c.UpdateStatus(ctx, svc, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("give Service %s the addresses of a load balancer: %w", t.name, err)
		}
	}
	return nil
}

// made is a Service as the API server has it.
type made struct {
	testService
	object *corev1.Service
}

func (e *Env) service(name string) (made, bool) {
	i := slices.IndexFunc(e.created, func(m made) bool { return m.name == name })
	if i < 0 {
		return made{}, false
	}
	return e.created[i], true
}

// portSet are the ports of the three servers of a peer.
type portSet struct{ http, tcp, udp int }

func nodePorts(s *corev1.Service) *portSet {
	at := func(i int) int { return int(s.Spec.Ports[i].NodePort) }
	return &portSet{at(0), at(1), at(2)}
}

// at is a Service at other addresses than its own, of the families that it has.
func (e *Env) at(name, via, node string, ips []netip.Addr, ports *portSet) Peer {
	p := Peer{Kind: PeerService, Name: name, Via: via, Node: node, portSet: ports}
	for _, ip := range ips {
		if e.Services[name].IP(family(ip)).IsValid() {
			p.IPs = append(p.IPs, ip)
		}
	}
	return p
}

func family(a netip.Addr) int {
	if a.Is6() {
		return 6
	}
	return 4
}

// nodePortAt is the NodePort of a Service at a node.
func (e *Env) nodePortAt(name string, n Peer) Peer {
	m, _ := e.service(name)
	return e.at(name, "NodePort", n.Node, e.openAt(n.IPs), nodePorts(m.object))
}

// openAt are the addresses of a node at which NodePorts are open.
func (e *Env) openAt(ips []netip.Addr) []netip.Addr {
	var ranges []netip.Prefix
	for _, s := range strings.FieldsFunc(e.Config["nodeport-addresses"], func(r rune) bool { return r == ',' || r == ' ' }) {
		if p, err := netip.ParsePrefix(s); err == nil {
			ranges = append(ranges, p)
		}
	}
	if len(ranges) == 0 || !e.KubeProxyReplacement() {
		return ips
	}
	return slices.DeleteFunc(slices.Clone(ips), func(a netip.Addr) bool {
		return !slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
	})
}

// balancerOf is a Service at the addresses of its load balancer.
func (e *Env) balancerOf(name string) Peer {
	m, _ := e.service(name)
	return e.at(name, "load balancer", "", m.balancer, nil)
}

// externalIPsOf is the Service that has them.
func (e *Env) externalIPsOf() Peer { return e.at(svcBoth, "external IP", "", e.addresses(0), nil) }

// hostPortOf is the HostPort of a server.
func (e *Env) hostPortOf(s Peer) Peer {
	p := Peer{Kind: PeerService, Name: s.Name, Via: "HostPort", Node: s.Node, portSet: &portSet{hostPortHTTP, hostPortTCP, hostPortUDP}}
	if h, ok := e.host(s.Node); ok {
		p.IPs = h.IPs
	}
	return p
}

// server returns the server of a name.
func (e *Env) server(name string) (Peer, bool) {
	i := slices.IndexFunc(e.Echoes, func(p Peer) bool { return p.Name == name })
	if i < 0 {
		return Peer{}, false
	}
	return e.Echoes[i], true
}

// backendsOfService are the servers behind a Service.
func (e *Env) backendsOfService(name string) []Peer {
	switch name {
	case svcBoth, svcSticky, svcDraining:
		return e.Echoes
	case svcBalanced:
		if p, ok := e.server(echoOther); ok {
			return []Peer{p}
		}
	}
	p, _ := e.server(name)
	if p.Name == "" {
		p, _ = e.server(echoSame)
	}
	return []Peer{p}
}

func hostsOf(list []Peer) []string {
	var out []string
	for _, p := range list {
		out = append(out, p.hosts()...)
	}
	return out
}

// drainingSlices say which pods are behind svcDraining; ending names one that terminates.
func (e *Env) drainingSlices(ending string) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, f := range []int{4, 6} {
		if !e.Services[svcDraining].IP(f).IsValid() {
			continue
		}
		sl := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Name: fmt.Sprintf("%s-ipv%d", svcDraining, f),
				Labels: map[string]string{
					discoveryv1.LabelServiceName: svcDraining, discoveryv1.LabelManagedBy: "connectivity-test." + managedValue,
				},
			},
			AddressType: discoveryv1.AddressTypeIPv4,
		}
		if f == 6 {
			sl.AddressType = discoveryv1.AddressTypeIPv6
		}
		for _, p := range []struct {
			name  string
			port  int32
			proto corev1.Protocol
		}{{"http", httpPort, corev1.ProtocolTCP}, {"tcp", tcpPort, corev1.ProtocolTCP}, {"udp", udpPort, corev1.ProtocolUDP}} {
			sl.Ports = append(sl.Ports, discoveryv1.EndpointPort{Name: ptr(p.name), Port: ptr(p.port), Protocol: ptr(p.proto)})
		}
		for _, s := range e.Echoes {
			if !s.IP(f).IsValid() {
				continue
			}
			ends := s.Host == ending
			sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{s.IP(f).String()}, NodeName: ptr(s.Node),
				Conditions: discoveryv1.EndpointConditions{Ready: ptr(!ends), Serving: ptr(true), Terminating: ptr(ends)},
			})
		}
		out = append(out, sl)
	}
	return out
}
