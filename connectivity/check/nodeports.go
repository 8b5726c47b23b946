// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"net/netip"

	"lash.internal/lash/connectivity/probe"
)

// Names of tests.
const (
	testExtra      = "no-policies-extra"
	testNorthSouth = "north-south-loadbalancing"
	testHosts      = "host-to-service"
	testPolicy     = "external-traffic-policy"
	testHostPort   = "hostport"

	needOutside = "no host outside the cluster is known that can send"
	needKPR     = "Services are kube-proxy's (kubeProxyReplacement=false)"
)

func needsOutside(e *Env) string {
	if e.Outside == nil || e.Outside.Pod == "" {
		return needOutside
	}
	return ""
}

func needsKPR(e *Env) string {
	if !e.KubeProxyReplacement() {
		return needKPR
	}
	return ""
}

// sources are all clients and hosts.
func (e *Env) sources() []Peer { return append(append([]Peer{}, e.Clients...), e.Hosts...) }

// seenThroughService is what a server sees of who asked it through a Service. kube-proxy may hide pods
// behind a node, and every node those outside, if the policy is not Local.
func (e *Env) seenThroughService(from, to Peer, family int) []netip.Addr {
	if from.Kind == PeerPod && e.KubeProxyReplacement() || from.Kind == PeerExternal && to.Name == svcLocal {
		return seenFrom(from, family)
	}
	return nil
}

// toServers are the actions from a peer to a Service, answered by the servers behind it.
func (e *Env) toServers(from, to Peer, path PathKind) (out []Action) {
	e.each(from, to, func(f int) {
		want := Expect{Hosts: hostsOf(e.backendsOfService(to.Name)), Seen: e.seenThroughService(from, to, f)}
		out = append(out, allProtocols(from, to, f, path, want)...)
	})
	return out
}

// silent are the actions that nothing may answer.
func (e *Env) silent(from, to Peer, path PathKind, kind probe.Kind) []Action {
	return e.refusals(from, to, path, Expect{Kind: kind})
}

func (e *Env) refusals(from, to Peer, path PathKind, want Expect) (out []Action) {
	verb := " is refused"
	if want.Kind == probe.KindTimeout {
		verb = " is not answered"
	}
	_, tcpP, udpP := to.ports()
	e.each(from, to, func(f int) {
		for _, p := range []probe.Probe{
			{Proto: probe.TCP, Target: to.target(f, tcpP)},
			{Proto: probe.UDP, Target: to.target(f, udpP), Size: 10},
		} {
			out = append(out, Action{From: from, To: to, Path: path, Family: f, Probe: p, Title: string(p.Proto) + verb, Expect: want})
		}
	})
	return out
}

// podToNodePort reaches NodePorts from pods, each with a server on the node that is asked and with
// one elsewhere.
func podToNodePort(name string, own bool, skip func(*Env) string) Scenario {
	return Scenario{
		Test: testExtra, Name: name, Skip: skip,
		Actions: func(e *Env) (out []Action) {
			for _, c := range e.Clients {
				for _, h := range e.Hosts {
					if (h.Node == c.Node) != own {
						continue
					}
					for _, s := range e.Echoes {
						out = append(out, e.toServers(c, e.nodePortAt(s.Name, h), PathNodePort)...)
					}
				}
			}
			return out
		},
	}
}

// hostToNodePort is the same from the nodes, own and other addresses.
func hostToNodePort() Scenario {
	return Scenario{
		Test: testHosts, Name: "host-to-nodeport",
		Actions: func(e *Env) (out []Action) {
			for _, from := range e.Hosts {
				for _, h := range e.Hosts {
					for _, s := range e.Echoes {
						out = append(out, e.toServers(from, e.nodePortAt(s.Name, h), PathHostNodePort)...)
					}
				}
			}
			return out
		},
	}
}

// hostToLoopbackNodePort asks at 127.0.0.1 and ::1.
func hostToLoopbackNodePort() Scenario {
	return Scenario{
		Test: testHosts, Name: "host-to-localhost-nodeport",
		Skip: func(e *Env) string {
			switch {
			case !e.KubeProxyReplacement():
				return "kube-proxy answers on loopback addresses in some of its modes only"
			case e.Config["nodeport-addresses"] != "":
				return "NodePorts are open at some addresses only (nodePort.addresses)"
			}
			return ""
		},
		Actions: func(e *Env) (out []Action) {
			for _, h := range e.Hosts {
				for _, s := range e.Echoes {
					at := h
					at.IPs = parseAddrs([]string{"127.0.0.1", "::1"})
					at = e.nodePortAt(s.Name, at)
					out = append(out, e.toServers(h, at, PathHostNodePort)...)
				}
			}
			return out
		},
	}
}

// keptNodePorts has processes of the nodes listen at NodePorts, which would never be asked.
func keptNodePorts() Scenario {
	return Scenario{
		Test: testHosts, Name: "nodeport-bind-protection",
		Skip: func(e *Env) string {
			if e.Config["node-port-bind-protection"] == "false" {
				return "processes of the nodes may bind NodePorts (nodePort.bindProtection=false)"
			}
			return needsKPR(e)
		},
		Actions: func(e *Env) (out []Action) {
			for _, h := range e.Hosts {
				at := e.nodePortAt(e.Echoes[0].Name, h)
				_, tcp, udp := at.ports()
				e.each(h, at, func(f int) {
					for _, network := range []string{"tcp", "udp"} {
						port := tcp
						if network == "udp" {
							port = udp
						}
						out = append(out,
							Action{
								From: h, To: at, Family: f, Title: "bind to the " + network + " port is forbidden", Expect: Expect{Kind: probe.KindForbidden},
								Probe: probe.Probe{Proto: probe.Bind, Network: network, Target: at.target(f, port)},
							},
							Action{
								From: h, To: h, Family: f, Title: "bind to another " + network + " port",
								Probe: probe.Probe{Proto: probe.Bind, Network: network, Target: h.target(f, 0)},
							})
					}
				})
			}
			return out
		},
	}
}

// outsideToNodePort asks every node for servers there and elsewhere.
func outsideToNodePort() Scenario {
	return Scenario{
		Test: testNorthSouth, Name: "outside-to-nodeport", Skip: needsOutside,
		Actions: func(e *Env) (out []Action) {
			for _, h := range e.Hosts {
				for _, s := range e.Echoes {
					to := e.nodePortAt(s.Name, h)
					e.each(*e.Outside, to, func(f int) {
						for _, a := range allProtocols(*e.Outside, to, f, PathFromOutside, Expect{Hosts: s.hosts()}) {
							if e.keepsOutside(a.Probe.Proto, s.Node == h.Node) {
								a.Expect.Seen = seenFrom(*e.Outside, f)
							}
							out = append(out, a)
						}
					})
				}
			}
			return out
		},
	}
}

// keepsOutside says whether a server sees who asked from outside, with externalTrafficPolicy Cluster.
func (e *Env) keepsOutside(proto probe.Proto, local bool) bool {
	if !e.KubeProxyReplacement() {
		return false
	}
	switch mode := e.Config["bpf-lb-mode"]; mode {
	case "dsr":
		return true
	case "hybrid":
		return local || proto != probe.UDP
	}
	return local
}

// localPolicyOutside is externalTrafficPolicy Local: a node with a server keeps the client's address,
// one without says nothing.
func localPolicyOutside() Scenario {
	return Scenario{
		Test: testPolicy, Name: "outside-to-nodeport-local", Skip: needsOutside,
		Actions: func(e *Env) (out []Action) {
			for _, h := range e.Hosts {
				to := e.nodePortAt(svcLocal, h)
				if h.Node != e.Local.Name {
					out = append(out, e.silent(*e.Outside, to, PathFromOutside, probe.KindTimeout)...)
					continue
				}
				e.each(*e.Outside, to, func(f int) {
					want := Expect{Hosts: hostsOf(e.backendsOfService(svcLocal)), Seen: seenFrom(*e.Outside, f)}
					out = append(out, allProtocols(*e.Outside, to, f, PathFromOutside, want)...)
				})
			}
			return out
		},
	}
}

// localPolicyInside says that the policy is not for those inside: their own node answers them. Another
// node takes them for callers from outside, as they have left theirs; so with kube-proxy, where pods may
// look like that to their own node too, only the node with the server is asked.
func localPolicyInside() Scenario {
	return Scenario{
		Test: testPolicy, Name: "inside-to-nodeport-local",
		Actions: func(e *Env) (out []Action) {
			for _, from := range e.sources() {
				path := PathNodePort
				if from.Kind == PeerHost {
					path = PathHostNodePort
				}
				for _, h := range e.Hosts {
					asked := from.Node
					if !e.KubeProxyReplacement() {
						asked = e.Local.Name
					}
					if h.Node == asked {
						out = append(out, e.toServers(from, e.nodePortAt(svcLocal, h), path)...)
					}
				}
			}
			return out
		},
	}
}

// toHostPort reaches the HostPorts of servers. Only the server's node knows of them: to another node a
// pod goes as to the node itself.
func toHostPort(test, name string, path PathKind, skip func(*Env) string, from func(*Env) []Peer) Scenario {
	return Scenario{
		Test: test, Name: name,
		Skip: func(e *Env) string {
			if why := needsKPR(e); why != "" {
				return "HostPorts need kubeProxyReplacement=true"
			}
			if skip != nil {
				return skip(e)
			}
			return ""
		},
		Actions: func(e *Env) (out []Action) {
			for _, c := range from(e) {
				for _, s := range e.Echoes {
					to := e.hostPortOf(s)
					e.each(c, to, func(f int) {
						want := Expect{Hosts: s.hosts()}
						if c.Kind != PeerHost {
							want.Seen = seenFrom(c, f)
						}
						if n := e.node(c.Node); n != nil && c.Kind == PeerPod && c.Node != s.Node && e.Masquerade(f) {
							want.Seen = append(want.Seen, n.IPs...)
						}
						out = append(out, allProtocols(c, to, f, path, want)...)
					})
				}
			}
			return out
		},
	}
}

func clients(e *Env) []Peer { return e.Clients }
func hosts(e *Env) []Peer   { return e.Hosts }
func outside(e *Env) []Peer { return []Peer{*e.Outside} }

// toAddresses reaches Services at externalIPs and at the addresses of load balancers.
func toAddresses(test, name string, path PathKind, skip func(*Env) string, from func(*Env) []Peer) Scenario {
	return Scenario{
		Test: test, Name: name, Skip: skip,
		Actions: func(e *Env) (out []Action) {
			for _, c := range from(e) {
				for _, to := range []Peer{e.externalIPsOf(), e.balancerOf(svcBalanced), e.balancerOf(svcLocal)} {
					out = append(out, e.toServers(c, to, path)...)
				}
			}
			return out
		},
	}
}

// outsideToAddresses sends from outside by way of a node that has them, one way for each address.
func outsideToAddresses() Scenario {
	s := toAddresses(testNorthSouth, "outside-to-loadbalancer", PathFromOutside, needsRoute, outside)
	s.Prepare = func(ctx context.Context, e *Env) error {
		for _, to := range []Peer{e.externalIPsOf(), e.balancerOf(svcBalanced), e.balancerOf(svcLocal)} {
			if err := e.routeVia(ctx, to.IPs, e.Local); err != nil {
				return err
			}
		}
		return nil
	}
	return s
}

// needsRoute skips what needs a route of the host outside.
func needsRoute(e *Env) string {
	if why := needsOutside(e); why != "" {
		return why
	}
	if e.external.Route == nil {
		return "the host outside the cluster cannot be given routes"
	}
	return ""
}

func (e *Env) routeVia(ctx context.Context, to []netip.Addr, n Node) error {
	for _, a := range to {
		for _, via := range n.IPs {
			if via.Is6() == a.Is6() {
				if err := e.external.Route(ctx, a, via); err != nil {
					return err
				}
				break
			}
		}
	}
	return nil
}

// sourceRanges is a load balancer that is not for everybody: the host outside may use one, nobody the other.
func sourceRanges() Scenario {
	return Scenario{
		Test: testNorthSouth, Name: "loadbalancer-source-ranges", Skip: needsRoute,
		Prepare: func(ctx context.Context, e *Env) error {
			for _, name := range []string{svcAllowed, svcRefused} {
				if err := e.routeVia(ctx, e.balancerOf(name).IPs, e.Local); err != nil {
					return err
				}
			}
			return nil
		},
		Actions: func(e *Env) (out []Action) {
			out = e.toServers(*e.Outside, e.balancerOf(svcAllowed), PathFromOutside)
			return append(out, e.silent(*e.Outside, e.balancerOf(svcRefused), PathFromOutside, probe.KindTimeout)...)
		},
	}
}

// sourceRangesInside is the same for pods, which the ranges are for as well.
func sourceRangesInside() Scenario {
	return Scenario{
		Test: testServices, Name: "pod-to-refused-loadbalancer",
		Actions: func(e *Env) (out []Action) {
			for _, c := range e.Clients {
				out = append(out, e.silent(c, e.balancerOf(svcRefused), PathService, probe.KindTimeout)...)
			}
			return out
		},
	}
}
