// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"slices"

	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// apiServer is the Service that the agent itself, and all else on the node, needs to learn
// anything; it never goes to zero backends.
var apiServer = state.Name{Namespace: "default", Name: "kubernetes"}

// View is what the wants read. All fields but the tables are fixed when the agent starts.
type View struct {
	Tables *state.Tables
	// Enabled says that Services are ours; else nothing is wanted and kube-proxy has them.
	Enabled bool
	// IPv4 and IPv6 are the families that pods have.
	IPv4, IPv6 bool
	// NodeName is the name of this node.
	NodeName string
	// Direct says that other nodes may send packets for a Service on to this one as they came.
	Direct bool
	// AnySource says that loadBalancerSourceRanges are not looked at.
	AnySource bool
	// NodePortAddresses are where the node's addresses have to lie for NodePorts to be open there;
	// none: everywhere.
	NodePortAddresses []netip.Prefix
	// HealthChecks says that nodes answer on the healthCheckNodePort of Services.
	HealthChecks bool
}

// ours says whether anything of a Service is translated by us.
func (v View) ours(s state.Service) bool {
	return v.Enabled && !s.Headless && s.Type != "ExternalName" && s.ProxyName == ""
}

func (v View) family(a netip.Addr) bool {
	if !a.IsValid() || a.IsUnspecified() {
		return false
	}
	return a.Is6() && v.IPv6 || a.Is4() && v.IPv4
}

// clusterIP is the address of a Service in a family, if it has one that is ours.
func (v View) clusterIP(s state.Service, v6 bool) (netip.Addr, bool) {
	for _, a := range s.ClusterIPs {
		if a.Is6() == v6 && v.family(a) {
			return a, v.ours(s)
		}
	}
	return netip.Addr{}, false
}

func balanced(protocol string) bool {
	return protocol == "TCP" || protocol == "UDP" || protocol == "SCTP"
}

// Primaries are the frontends by which the loop knows the ports of a Service.
func (v View) Primaries(s state.Service) []state.Frontend {
	if !v.ours(s) {
		return nil
	}
	var out []state.Frontend
	for _, a := range s.ClusterIPs {
		if !v.family(a) {
			continue
		}
		for _, p := range s.Ports {
			if balanced(p.Protocol) {
				out = append(out, state.Frontend{Addr: a, Port: p.Port, Protocol: p.Protocol})
			}
		}
	}
	return out
}

// PrimariesOfSlice are the keys that a slice touches: those of its Service and family. A slice
// that comes before its Service touches none yet; the Service then brings them.
func (v View) PrimariesOfSlice(sl state.EndpointSlice) []state.Frontend {
	s, ok := v.Tables.Services.Get(sl.Service)
	if !ok {
		return nil
	}
	return slices.DeleteFunc(v.Primaries(s), func(f state.Frontend) bool { return f.Addr.Is6() != sl.IPv6 })
}

// PrimariesOfNode are the keys that a node touches: all, if it is this one, since what is near
// depends on where it is.
func (v View) PrimariesOfNode(local bool) []state.Frontend {
	if !local || !v.Enabled {
		return nil
	}
	var out []state.Frontend
	for _, s := range v.Tables.Services.All() {
		out = append(out, v.Primaries(s)...)
	}
	return out
}

// Local says whether a node is this one, for PrimariesOfNode.
func (View) Local(n state.Node) []bool { return []bool{n.Local} }

// AddrKeys are the keys of map addr that a Service touches.
func (v View) AddrKeys(s state.Service) []bpf.AddrKey {
	if !v.ours(s) {
		return nil
	}
	var out []bpf.AddrKey
	for _, list := range [][]netip.Addr{s.ClusterIPs, s.OutsideIPs()} {
		for _, a := range list {
			if v.family(a) {
				out = append(out, bpf.AddrKey{Ip: bpf.IP(a)})
			}
		}
	}
	return out
}

// VIP says whether an address is that of a Service of ours.
func (v View) VIP(a netip.Addr) bool {
	if !v.family(a) {
		return false
	}
	key := a.String()
	return v.Tables.Services.Any("ip", key, v.ours) ||
		v.Tables.Services.Any("externalip", key, func(s state.Service) bool {
			_, ok := v.clusterIP(s, a.Is6())
			return ok
		})
}

// Ping says whether an address answers pings, as routers that spread packets over nodes expect: those of
// load balancers, unless they are for some sources only. It answers whether there are backends or not.
func (v View) Ping(a netip.Addr) bool {
	return v.family(a) && v.Tables.Services.Any("externalip", a.String(), func(s state.Service) bool {
		_, ok := v.clusterIP(s, a.Is6())
		return ok && slices.Contains(s.LoadBalancerIPs, a) && (!s.Restricted || v.AnySource)
	})
}

// NodePortOpen says whether NodePorts are open at an address of a node.
func (v View) NodePortOpen(a netip.Addr) bool {
	if !v.Enabled || !v.family(a) || a.IsLoopback() {
		return false
	}
	if len(v.NodePortAddresses) == 0 {
		return !a.IsLinkLocalUnicast()
	}
	return slices.ContainsFunc(v.NodePortAddresses, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Want says what stands behind a primary frontend. It says so only once the tables are complete: what
// the kernel has from before is better than a part of the truth.
func (v View) Want(f state.Frontend) (state.Balance, bool) {
	if !v.complete() {
		return state.Balance{}, false
	}
	s, port, ok := v.primary(f)
	if !ok {
		return v.hostPort(f)
	}
	c := v.candidates(s, port.Name, f)
	near := v.near(c)
	b := state.Balance{
		Type: state.FrontClusterIP, Fronts: v.fronts(s, port, f.Addr.Is6()),
		InternalLocal: s.InternalTrafficLocal, ExternalLocal: s.ExternalTrafficLocal,
		AffinitySecs: s.SessionAffinitySecs, KeepLast: s.Name == apiServer,
	}
	b.All = c.pick(near)
	if b.InternalLocal || b.ExternalLocal || v.Direct && len(b.Fronts) > 0 {
		b.Local = c.pick(func(e candidate) bool { return e.local })
		if len(b.Local) == 0 {
			b.Local = c.last(func(e candidate) bool { return e.local })
		}
	}
	if len(b.All) == 0 {
		b.All = c.last(nil)
	}
	if slices.ContainsFunc(b.Fronts, func(f state.Front) bool { return f.Sources }) {
		b.SourceRanges = v.sources(s, f.Addr.Is6())
	}
	for _, e := range c {
		// Those that are ready and too far away keep what they have, like those that end.
		if (e.terminating || e.ready) && !slices.Contains(b.All, e.addr) && !slices.Contains(b.Local, e.addr) {
			b.Draining = append(b.Draining, e.addr)
		}
	}
	return b, true
}

func (v View) complete() bool {
	services, _ := v.Tables.Services.Initialized()
	endpoints, _ := v.Tables.EndpointSlices.Initialized()
	nodes, _ := v.Tables.Nodes.Initialized()
	return services && endpoints && nodes
}

// primary returns the Service of a primary frontend and its port. Should two Services claim it, the
// first by name has it.
func (v View) primary(f state.Frontend) (owner state.Service, port state.ServicePort, ok bool) {
	if !v.family(f.Addr) {
		return owner, port, false
	}
	for _, s := range v.Tables.Services.ByIndex("ip", f.Addr.String()) {
		if !v.ours(s) || ok && s.Name.String() > owner.Name.String() {
			continue
		}
		for _, p := range s.Ports {
			if p.Port == f.Port && p.Protocol == f.Protocol {
				owner, port, ok = s, p, true
				break
			}
		}
	}
	return owner, port, ok
}

// sources are who may use the load balancer's addresses of a family. There may be nobody: ranges of
// the other family open nothing. A node in the ranges that talks to its own load balancer has the
// balancer's address as its own.
func (v View) sources(s state.Service, v6 bool) []netip.Prefix {
	out := slices.DeleteFunc(slices.Clone(s.SourceRanges), func(p netip.Prefix) bool { return p.Addr().Is6() != v6 })
	n, _ := v.Tables.Nodes.Get(v.NodeName)
	if slices.ContainsFunc(n.InternalIPs, func(a netip.Addr) bool {
		return slices.ContainsFunc(out, func(p netip.Prefix) bool { return p.Contains(a) })
	}) {
		for _, a := range s.LoadBalancerIPs {
			if a.Is6() == v6 {
				out = append(out, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}
