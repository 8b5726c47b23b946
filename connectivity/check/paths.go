// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"net/netip"
	"slices"

	"lash.internal/lash/connectivity/probe"
)

const (
	needNodes    = "needs two nodes"
	testPolicies = "no-policies"

	testNoEndpoints = "service-without-endpoints"
)

// each calls f for every IP family that both peers have.
func (e *Env) each(a, b Peer, f func(family int)) {
	for _, fam := range e.Families {
		if a.IP(fam).IsValid() && b.IP(fam).IsValid() {
			f(fam)
		}
	}
}

// ports of the echo server of a peer.
func (p Peer) ports() (http, tcp, udp int) {
	if p.portSet != nil {
		return p.portSet.http, p.portSet.tcp, p.portSet.udp
	}
	if p.Kind == PeerHost {
		return hostHTTPPort, hostTCPPort, hostUDPPort
	}
	return httpPort, tcpPort, udpPort
}

func (p Peer) hosts() []string {
	if p.Host == "" {
		return nil
	}
	return []string{p.Host}
}

// allProtocols are a TCP, a UDP, an HTTP and an ICMP action from one peer to another. The Services
// of Kubernetes do not answer ICMP.
func allProtocols(from, to Peer, family int, path PathKind, want Expect) []Action {
	httpP, tcpP, udpP := to.ports()
	probes := []probe.Probe{
		{Proto: probe.TCP, Target: to.target(family, tcpP), Size: 100},
		{Proto: probe.UDP, Target: to.target(family, udpP), Size: 200},
		{Proto: probe.HTTP, Target: "http://" + to.target(family, httpP) + "/"},
	}
	if to.Kind != PeerService {
		probes = append(probes, probe.Probe{Proto: probe.ICMP, Target: to.IP(family).String(), Size: 56})
	}
	var out []Action
	for _, p := range probes {
		out = append(out, Action{From: from, To: to, Path: path, Family: family, Probe: p, Expect: want})
	}
	return out
}

func podPath(a, b Peer) PathKind {
	if a.Node == b.Node {
		return PathSameNode
	}
	return PathOtherNode
}

// seenFrom is the address that a server sees of a pod when nothing translates on the way.
func seenFrom(p Peer, family int) []netip.Addr { return []netip.Addr{p.IP(family)} }

// needsTwoHosts skips what goes from node to node where there is one.
func needsTwoHosts(e *Env) string {
	if len(e.Hosts) < 2 {
		return needNodes
	}
	return ""
}

// nodeToNode tells a broken fabric from a broken pod network.
func nodeToNode() Scenario {
	return Scenario{
		Test: "node-to-node", Name: "host-to-host",
		Skip: needsTwoHosts,
		Actions: func(e *Env) (out []Action) {
			for _, a := range e.Hosts {
				for _, b := range e.Hosts {
					if a.Node == b.Node {
						continue
					}
					e.each(a, b, func(f int) {
						out = append(out, allProtocols(a, b, f, PathNodeToNode, Expect{})...)
					})
				}
			}
			return out
		},
	}
}

// podToPod is every client to every server, on its own node and on the other one.
func podToPod() Scenario {
	return Scenario{
		Test: testPolicies, Name: "pod-to-pod",
		Actions: func(e *Env) (out []Action) {
			for _, c := range e.Clients {
				for _, s := range e.Echoes {
					e.each(c, s, func(f int) {
						out = append(out, allProtocols(c, s, f, podPath(c, s), Expect{Hosts: s.hosts(), Seen: seenFrom(c, f)})...)
					})
				}
			}
			return out
		},
	}
}

// clientToClient pings every client from every other one.
func clientToClient() Scenario {
	return Scenario{
		Test: testPolicies, Name: "client-to-client",
		Actions: func(e *Env) (out []Action) {
			for _, a := range e.Clients {
				for _, b := range e.Clients {
					if a.Pod == b.Pod {
						continue
					}
					e.each(a, b, func(f int) {
						out = append(out, Action{
							From: a, To: b, Path: podPath(a, b), Family: f,
							Probe: probe.Probe{Proto: probe.ICMP, Target: b.IP(f).String(), Size: 56},
						})
					})
				}
			}
			return out
		},
	}
}

// podToService reaches servers on both nodes through their ClusterIPs; the source stays the pod's.
func podToService() Scenario {
	return Scenario{
		Test: testPolicies, Name: "pod-to-service",
		Actions: func(e *Env) (out []Action) {
			for _, c := range e.Clients {
				for _, s := range e.Echoes {
					svc := e.Services[s.Name]
					e.each(c, svc, func(f int) {
						out = append(out, allProtocols(c, svc, f, PathService, Expect{Hosts: s.hosts(), Seen: seenFrom(c, f)})...)
					})
				}
			}
			return out
		},
	}
}

// hostToService is the same from the nodes.
func hostToService() Scenario {
	return Scenario{
		Test: testHosts, Name: "host-to-service",
		Actions: func(e *Env) (out []Action) {
			for _, h := range e.Hosts {
				for _, s := range e.Echoes {
					svc := e.Services[s.Name]
					e.each(h, svc, func(f int) {
						out = append(out, allProtocols(h, svc, f, PathHostService, Expect{Hosts: s.hosts()})...)
					})
				}
			}
			return out
		},
	}
}

// podToHost reaches every node's own addresses. Another node sees the pod's node where pods are
// hidden behind it.
func podToHost() Scenario {
	return Scenario{
		Test: testPolicies, Name: "pod-to-host",
		Actions: func(e *Env) (out []Action) {
			for _, c := range e.Clients {
				for _, h := range e.Hosts {
					path, want := PathPodToHost, Expect{}
					if h.Node != c.Node {
						path = PathPodToRemote
					}
					e.each(c, h, func(f int) {
						want.Seen = seenFrom(c, f)
						if n := e.node(c.Node); path == PathPodToRemote && n != nil && e.Masquerade(f) {
							want.Seen = append(want.Seen, n.IPs...)
						}
						out = append(out, allProtocols(c, h, f, path, want)...)
					})
				}
			}
			return out
		},
	}
}

// hostToPod is what the kubelet and the API server need.
func hostToPod() Scenario {
	return Scenario{
		Test: testPolicies, Name: "host-to-pod",
		Actions: func(e *Env) (out []Action) {
			for _, h := range e.Hosts {
				for _, s := range e.Echoes {
					path := PathHostToPod
					if h.Node != s.Node {
						path = PathRemoteToPod
					}
					e.each(h, s, func(f int) {
						out = append(out, allProtocols(h, s, f, path, Expect{Hosts: s.hosts()})...)
					})
				}
			}
			return out
		},
	}
}

// externalToPod reaches pods by their own addresses from the host outside, through their nodes.
func externalToPod() Scenario {
	return Scenario{
		Test: testPolicies, Name: "external-to-pod",
		Skip:    needsOutside,
		Prepare: func(ctx context.Context, e *Env) error { return e.routeOutside(ctx, e.Echoes) },
		Actions: func(e *Env) (out []Action) {
			for _, s := range e.Echoes {
				e.each(*e.Outside, s, func(f int) {
					want := Expect{Hosts: s.hosts(), Seen: seenFrom(*e.Outside, f)}
					out = append(out, allProtocols(*e.Outside, s, f, PathFromOutside, want)...)
					large := probe.Probe{Proto: probe.TCP, Target: s.target(f, tcpPort), Size: 300000}
					out = append(out, Action{From: *e.Outside, To: s, Path: PathFromOutside, Family: f, Probe: large, Expect: want})
				})
			}
			return out
		},
	}
}

// routeOutside lets the host outside reach pods by way of their nodes.
func (e *Env) routeOutside(ctx context.Context, pods []Peer) error {
	for _, p := range pods {
		n := e.node(p.Node)
		for _, ip := range p.IPs {
			i := slices.IndexFunc(n.IPs, func(a netip.Addr) bool { return a.Is6() == ip.Is6() })
			if i < 0 {
				continue
			}
			if err := e.external.Route(ctx, ip, n.IPs[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// podToWorld fetches from outside the cluster: the host on the local cluster's fabric, or what
// --external-target names.
func podToWorld() Scenario {
	return Scenario{
		Test: testPolicies, Name: "pod-to-world",
		Prepare: func(ctx context.Context, e *Env) error {
			if e.external == nil || e.external.Route == nil || (e.Masquerade(4) && e.Masquerade(6)) {
				return nil
			}
			return e.routeOutside(ctx, e.Clients) // pods are seen by their own addresses
		},
		Skip: func(e *Env) string {
			if e.Outside == nil && e.opts.ExternalTarget == "" {
				return "no host outside the cluster is known; name one with --external-target"
			}
			return ""
		},
		Actions: func(e *Env) (out []Action) {
			for _, c := range e.Clients {
				if t := e.opts.ExternalTarget; t != "" {
					out = append(out, Action{
						From: c, To: Peer{Kind: PeerName, Name: t}, Path: PathExternal, Family: e.Families[0],
						Probe: probe.Probe{Proto: probe.HTTP, Target: "http://" + t + "/"},
					})
				}
				if e.Outside == nil {
					continue
				}
				x := *e.Outside
				e.each(c, x, func(f int) {
					want := Expect{}
					if n := e.node(c.Node); n != nil && e.Masquerade(f) {
						want.Seen = n.IPs
					}
					out = append(out, allProtocols(c, x, f, PathExternal, want)...)
					large := []probe.Probe{
						{Proto: probe.TCP, Target: x.target(f, tcpPort), Size: 300000},
						{Proto: probe.UDP, Target: x.target(f, udpPort), Size: 8000},
					}
					for _, p := range large {
						out = append(out, Action{From: c, To: x, Path: PathExternal, Family: f, Probe: p, Expect: want})
					}
				})
			}
			return out
		},
	}
}

// podToCIDR pings addresses outside the cluster that the flags name.
func podToCIDR() Scenario {
	return Scenario{
		Test: testPolicies, Name: "pod-to-cidr",
		Skip: func(e *Env) string {
			if len(e.opts.ExternalIPs) == 0 {
				return "no address outside the cluster is known; name one with --external-ip"
			}
			return ""
		},
		Actions: func(e *Env) (out []Action) {
			for _, c := range e.Clients {
				for _, ip := range parseAddrs(e.opts.ExternalIPs) {
					x := Peer{Kind: PeerExternal, Name: ip.String(), IPs: []netip.Addr{ip}}
					e.each(c, x, func(f int) {
						out = append(out, Action{
							From: c, To: x, Path: PathExternal, Family: f,
							Probe: probe.Probe{Proto: probe.ICMP, Target: ip.String(), Size: 56},
						})
					})
				}
			}
			return out
		},
	}
}

// podToPodPayload sends what is just below, at and far above the MTU.
func podToPodPayload() Scenario {
	return Scenario{
		Test: "payload-sizes", Name: "pod-to-pod-payload",
		Actions: func(e *Env) (out []Action) {
			for _, c := range e.Clients {
				if c.Name == "client2" {
					continue // on the same node as client
				}
				for _, s := range e.Echoes {
					e.each(c, s, func(f int) {
						for _, p := range payloads(s, f) {
							want := Expect{Hosts: s.hosts(), Seen: seenFrom(c, f)}
							out = append(out, Action{From: c, To: s, Path: podPath(c, s), Family: f, Probe: p, Expect: want})
						}
					})
				}
			}
			return out
		},
	}
}

// payloads are sizes that make one packet, one that just fits, one byte more, and many packets.
func payloads(to Peer, family int) []probe.Probe {
	_, tcpP, udpP := to.ports()
	headers := 28 // IPv4 and UDP or ICMP
	if family == 6 {
		headers = 48
	}
	tcp := probe.Probe{Proto: probe.TCP, Target: to.target(family, tcpP)}
	udp := probe.Probe{Proto: probe.UDP, Target: to.target(family, udpP)}
	icmp := probe.Probe{Proto: probe.ICMP, Target: to.IP(family).String()}
	var out []probe.Probe
	add := func(p probe.Probe, size int, fromMTU bool) {
		p.Size, p.FromMTU = size, fromMTU
		out = append(out, p)
	}
	for _, n := range []int{1, 8000, 65000, 2 << 20} {
		add(tcp, n, false)
	}
	for _, p := range []probe.Probe{udp, icmp} {
		add(p, 1, false)
		add(p, -headers, true)
		add(p, -headers+1, true)
		add(p, 8000, false)
		add(p, 60000, false)
	}
	return out
}

// podToPodNoFrag sends the largest packet that the route of the pod allows, whole: the route's MTU
// has to be true for the whole way.
func podToPodNoFrag() Scenario {
	return Scenario{
		Test: "pod-to-pod-no-frag", Name: "pod-to-pod-no-frag",
		Skip: func(e *Env) string {
			if e.SingleNode() {
				return needNodes
			}
			return ""
		},
		Actions: func(e *Env) (out []Action) {
			for _, c := range e.Clients {
				for _, s := range e.Echoes {
					if c.Node == s.Node {
						continue
					}
					e.each(c, s, func(f int) {
						headers := 28
						if f == 6 {
							headers = 48
						}
						out = append(out, Action{
							From: c, To: s, Path: PathOtherNode, Family: f,
							Probe: probe.Probe{Proto: probe.ICMP, Target: s.IP(f).String(), Size: -headers, FromMTU: true, DontFragment: true},
						})
					})
				}
			}
			return out
		},
	}
}

// podToItselfViaService is a pod that is the backend of the Service that it asks.
func podToItselfViaService() Scenario {
	return Scenario{
		Test: "pod-to-itself-via-service", Name: "pod-to-itself-via-service",
		Actions: func(e *Env) (out []Action) {
			for _, c := range e.Clients {
				svc, ok := e.Services[c.Name]
				if !ok {
					continue
				}
				e.each(c, svc, func(f int) {
					out = append(out, allProtocols(c, svc, f, PathLoopback, Expect{Hosts: c.hosts()})...)
				})
			}
			return out
		},
	}
}

// serviceWithoutEndpoints has to refuse at once, in every protocol, at its ClusterIP and NodePort.
func serviceWithoutEndpoints() Scenario {
	return Scenario{
		Test: testNoEndpoints, Name: "service-without-endpoints",
		Actions: func(e *Env) (out []Action) {
			for _, from := range e.sources() {
				out = append(out, e.refusals(from, e.Services[svcNoEndpoints], PathRejected, Expect{Kind: probe.KindRefused})...)
				for _, h := range e.Hosts {
					for _, a := range e.refusals(from, e.nodePortAt(svcNoEndpoints, h), PathRejected, Expect{Kind: probe.KindRefused}) {
						// the kernel's few errors a second are for the ClusterIP
						if e.KubeProxyReplacement() || a.Probe.Proto != probe.UDP {
							out = append(out, a)
						}
					}
				}
			}
			return e.asProxyRefuses(out)
		},
	}
}

// outsideWithoutEndpoints is the same from outside.
func outsideWithoutEndpoints() Scenario {
	return Scenario{
		Test: testNoEndpoints, Name: "outside-to-nodeport-without-endpoints", Skip: needsOutside,
		Actions: func(e *Env) (out []Action) {
			for _, h := range e.Hosts {
				out = append(out, e.refusals(*e.Outside, e.nodePortAt(svcNoEndpoints, h), PathRejected, Expect{Kind: probe.KindRefused})...)
			}
			return e.asProxyRefuses(out)
		},
	}
}

// dnsLookup asks the cluster's name server for names of every kind, over UDP and TCP.
func dnsLookup() Scenario {
	return Scenario{
		Test: "dns", Name: "pod-to-dns",
		Skip: func(e *Env) string {
			if len(e.DNS.IPs) == 0 {
				return "the cluster has no Service kube-dns"
			}
			return ""
		},
		Prepare: func(ctx context.Context, e *Env) error { return e.waitDNS(ctx) },
		Actions: func(e *Env) (out []Action) {
			zone := ".svc." + e.opts.ClusterDomain
			names := map[string]Peer{
				"kubernetes.default" + zone:                  e.API,
				e.lookup + "." + e.opts.TestNamespace + zone: e.Services[e.lookup],
			}
			for _, c := range e.Clients {
				e.each(c, e.DNS, func(f int) {
					for _, network := range []string{"udp", "tcp"} {
						for _, name := range sortedKeys(names) {
							typ, ip := "A", names[name].IP(4)
							if f == 6 && names[name].IP(6).IsValid() || !ip.IsValid() {
								typ, ip = "AAAA", names[name].IP(6)
							}
							out = append(out, Action{
								From: c, To: e.DNS, Path: PathDNS, Family: f,
								Probe: probe.Probe{Proto: probe.DNS, Target: name, Server: e.DNS.target(f, 53), Network: network, Type: typ},
								Title: "dns over " + network + " " + typ + " " + name, Expect: Expect{Answers: []string{ip.String()}},
							})
						}
					}
				})
			}
			return out
		},
	}
}

// podToAPIServer reaches the API server through its ClusterIP. Any HTTP answer will do.
func podToAPIServer() Scenario {
	return Scenario{
		Test: "kube-apiserver", Name: "pod-to-kube-apiserver",
		Actions: func(e *Env) (out []Action) {
			sources := append([]Peer{}, e.Clients...)
			for _, from := range append(sources, e.Hosts...) {
				e.each(from, e.API, func(f int) {
					out = append(out, Action{
						From: from, To: e.API, Path: PathAPIServer, Family: f, Title: "https /version",
						Probe: probe.Probe{Proto: probe.HTTP, Target: "https://" + e.API.target(f, 443) + "/version"},
					})
				})
			}
			return out
		},
	}
}

func parseAddrs(list []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}
