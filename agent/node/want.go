// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"
	"strconv"

	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// apiServer is the Service whose backends are the API servers.
var apiServer = state.Name{Namespace: "default", Name: "kubernetes"}

// View is what the wants read. All fields but the tables are fixed when the agent starts.
type View struct {
	Tables *state.Tables
	// Vip says whether an address belongs to a Service that we translate; nil: none does.
	Vip func(netip.Addr) bool
	// NodePort says whether NodePorts are open at an address of a node, HostPort whether this node's
	// address has HostPorts of pods; nil: no address.
	NodePort, HostPort func(netip.Addr) bool
	// Ping says whether an address that only a Service has answers pings; nil: none does.
	Ping func(netip.Addr) bool
	// Underlay6 says that nodes reach each other by IPv6.
	Underlay6 bool
	// Tunnel says that pods of other nodes are reached through the tunnel; else DirectRoutes gives
	// routes to the pods of nodes on the same link.
	Tunnel, DirectRoutes bool
	// TunnelMTU is the largest packet that fits the tunnel.
	TunnelMTU int
	// Routers are this node's router addresses, one a family, and after them what else it has of the
	// pod ranges for itself.
	Routers []netip.Addr
	// Masquerade4 and Masquerade6 say that pods' packets leave with the node's address.
	Masquerade4, Masquerade6 bool
	// NoMasquerade are ranges outside the cluster that pods reach with their own address.
	NoMasquerade []netip.Prefix
}

// EpKeys are the keys of map ep that an endpoint touches.
func EpKeys(e state.Endpoint) []uint32 { return []uint32{uint32(e.IfIndex)} }

// Ep is the pod behind an interface.
func (v View) Ep(ifindex uint32) (bpf.Ep, bool) {
	for _, e := range v.Tables.Endpoints.ByIndex("ifindex", strconv.Itoa(int(ifindex))) {
		if e.State == state.EndpointDisconnecting || len(e.MAC) != 6 || len(e.NodeMAC) != 6 {
			continue
		}
		out := bpf.Ep{
			Identity: uint32(e.Identity), EpId: uint32(e.ID), Ifindex: ifindex,
			Mac: [6]uint8(e.MAC), NodeMac: [6]uint8(e.NodeMAC),
		}
		if e.IsHealth() {
			out.Flags |= bpf.EPPeerHere
		}
		if e.IPv4.IsValid() {
			out.Ipv4 = e.IPv4.As4()
		}
		if e.IPv6.IsValid() {
			out.Ipv6 = e.IPv6.As16()
		}
		return out, true
	}
	return bpf.Ep{}, false
}

// AddrKey is the key of map addr for an address.
func AddrKey(a netip.Addr) bpf.AddrKey { return bpf.AddrKey{Ip: bpf.IP(a)} }

func addrKeys(addrs ...netip.Addr) []bpf.AddrKey {
	out := make([]bpf.AddrKey, 0, len(addrs))
	for _, a := range addrs {
		if a.IsValid() {
			out = append(out, AddrKey(a))
		}
	}
	return out
}

// The keys of map addr that a row touches.
func (View) AddrOfEndpoint(e state.Endpoint) []bpf.AddrKey { return addrKeys(e.IPv4, e.IPv6) }

// AddrOfRemote are the keys of a pod of another node.
func (View) AddrOfRemote(r state.RemoteIP) []bpf.AddrKey { return addrKeys(r.IP) }

// AddrOfNode are the keys of a node's own addresses, and of those of its health endpoint.
func (View) AddrOfNode(n state.Node) []bpf.AddrKey {
	return addrKeys(slices.Concat(n.Addrs(), n.HealthIPs)...)
}

// AddrOfDevice are the keys of the addresses of a device of this node.
func (View) AddrOfDevice(d state.Device) []bpf.AddrKey {
	out := make([]bpf.AddrKey, 0, len(d.Addrs))
	for _, p := range d.Addrs {
		out = append(out, AddrKey(p.Addr()))
	}
	return out
}

// AddrAt are the keys of an address of this node; the unspecified address of a family stands for all
// of them.
func (v View) AddrAt(a netip.Addr) []bpf.AddrKey {
	if !a.IsUnspecified() {
		return addrKeys(a)
	}
	var out []bpf.AddrKey
	add := func(own netip.Addr) {
		if own.Is6() == a.Is6() {
			out = append(out, AddrKey(own))
		}
	}
	for _, d := range v.Tables.Devices.All() {
		for _, p := range d.Addrs {
			add(p.Addr())
		}
	}
	for _, n := range v.Tables.Nodes.All() {
		if n.Local {
			for _, own := range n.Addrs() {
				add(own)
			}
		}
	}
	return out
}

// AddrOfTunnel are the keys of all addresses behind a tunnel endpoint.
func (v View) AddrOfTunnel(t state.Tunnel) []bpf.AddrKey {
	var out []bpf.AddrKey
	for _, n := range v.Tables.Nodes.ByIndex("ip", t.IP.String()) {
		out = append(out, v.AddrOfNode(n)...)
		for _, a := range n.InternalIPs {
			for _, r := range v.Tables.RemoteIPs.ByIndex("node", a.String()) {
				out = append(out, v.AddrOfRemote(r)...)
			}
		}
	}
	return out
}

// AddrOfSlice are the keys of the API servers' addresses; other slices touch none.
func (View) AddrOfSlice(s state.EndpointSlice) []bpf.AddrKey {
	if s.Service != apiServer {
		return nil
	}
	var out []bpf.AddrKey
	for _, e := range s.Endpoints {
		out = append(out, addrKeys(e.Addresses...)...)
	}
	return out
}

// Addr says who an address is. A local pod wins over a row of another node that is out of date.
func (v View) Addr(key bpf.AddrKey) (bpf.Addr, bool) {
	ip := bpf.FromIP(key.Ip)
	out, ok := v.owner(ip)
	if v.Vip != nil && v.Vip(ip) {
		if !ok {
			out, ok = bpf.Addr{Kind: bpf.AddrVIP}, true
		}
		out.Flags |= bpf.AddrHasSvc
		if out.Kind == bpf.AddrVIP && v.Ping != nil && v.Ping(ip) {
			out.Flags |= bpf.AddrEcho
		}
	}
	if v.NodePort != nil && (out.Kind == bpf.AddrLocalNode || out.Kind == bpf.AddrRemoteNode) && v.NodePort(ip) {
		out.Flags |= bpf.AddrNodePort
	}
	if v.HostPort != nil && out.Kind == bpf.AddrLocalNode && v.HostPort(ip) {
		out.Flags |= bpf.AddrHasSvc
	}
	return out, ok
}

func (v View) owner(ip netip.Addr) (bpf.Addr, bool) {
	s := ip.String()
	for _, e := range v.Tables.Endpoints.ByIndex("ip", s) {
		if e.State != state.EndpointDisconnecting && e.IfIndex > 0 {
			return bpf.Addr{
				Kind: bpf.AddrLocalEP, Identity: uint32(e.Identity), Ifindex: uint32(e.IfIndex), EpId: uint32(e.ID),
			}, true
		}
	}
	if slices.Contains(v.Routers, ip) {
		return bpf.Addr{Kind: bpf.AddrGateway, Identity: uint32(state.IdentityHost)}, true
	}
	if len(v.Tables.Devices.ByIndex("ip", s)) > 0 {
		return bpf.Addr{Kind: bpf.AddrLocalNode, Identity: uint32(state.IdentityHost)}, true
	}
	for _, n := range v.Tables.Nodes.ByIndex("ip", s) {
		if n.Local {
			if slices.Contains(n.RouterIPs, ip) {
				continue // not ours any more: v.Routers are
			}
			return bpf.Addr{Kind: bpf.AddrLocalNode, Identity: uint32(state.IdentityHost)}, true
		}
		tunnel, ok := v.tunnel(n)
		if !ok {
			continue
		}
		out := bpf.Addr{Kind: bpf.AddrRemoteNode, Identity: uint32(state.IdentityRemoteNode), Vtep: tunnel}
		switch {
		case slices.Contains(n.RouterIPs, ip):
			out.Kind = bpf.AddrRemoteEP
		case v.isAPIServer(ip):
			out.Identity = uint32(state.IdentityKubeAPIServer)
		}
		return out, true
	}
	if r, ok := v.Tables.RemoteIPs.Get(ip); ok {
		for _, n := range v.Tables.Nodes.ByIndex("ip", r.NodeIP.String()) {
			if tunnel, ok := v.tunnel(n); ok && !n.Local {
				return bpf.Addr{Kind: bpf.AddrRemoteEP, Identity: uint32(r.Identity), Vtep: tunnel}, true
			}
		}
	}
	for _, n := range v.Tables.Nodes.ByIndex("healthip", s) {
		if tunnel, ok := v.tunnel(n); ok && !n.Local {
			return bpf.Addr{Kind: bpf.AddrRemoteEP, Identity: uint32(state.IdentityHealth), Vtep: tunnel}, true
		}
	}
	if v.isAPIServer(ip) {
		return bpf.Addr{Kind: bpf.AddrCIDR, Identity: uint32(state.IdentityKubeAPIServer)}, true
	}
	return bpf.Addr{}, false
}

// tunnel is the number of the tunnel endpoint of another node.
func (v View) tunnel(n state.Node) (uint32, bool) {
	t, ok := v.Tables.Tunnels.Get(n.Addr(v.Underlay6))
	return t.Index, ok
}

func (v View) isAPIServer(ip netip.Addr) bool {
	for _, s := range v.Tables.EndpointSlices.ByIndex("service", apiServer.String()) {
		for _, e := range s.Endpoints {
			if slices.Contains(e.Addresses, ip) {
				return true
			}
		}
	}
	return false
}

// CIDROfNode are the keys of map cidr that a node touches.
func (View) CIDROfNode(n state.Node) []bpf.CidrKey {
	out := make([]bpf.CidrKey, 0, len(n.PodCIDRs))
	for _, p := range n.PodCIDRs {
		out = append(out, bpf.CIDR(p))
	}
	return out
}

// CIDROfTunnel are the keys of the ranges behind a tunnel endpoint.
func (v View) CIDROfTunnel(t state.Tunnel) []bpf.CidrKey {
	var out []bpf.CidrKey
	for _, n := range v.Tables.Nodes.ByIndex("ip", t.IP.String()) {
		out = append(out, v.CIDROfNode(n)...)
	}
	return out
}

// CIDRStatic are the keys that no row touches.
func (v View) CIDRStatic() []bpf.CidrKey {
	out := make([]bpf.CidrKey, 0, len(v.NoMasquerade))
	for _, p := range v.NoMasquerade {
		out = append(out, bpf.CIDR(p))
	}
	return out
}

// CIDR says what a range is: pods of a node, or a part of the outside that is not masqueraded.
func (v View) CIDR(key bpf.CidrKey) (bpf.Cidr, bool) {
	prefix := bpf.FromCIDR(key)
	for _, n := range v.Tables.Nodes.ByIndex("podcidr", prefix.String()) {
		if n.Local {
			return bpf.Cidr{Kind: bpf.CIDRPodLocal}, true
		}
		if tunnel, ok := v.tunnel(n); ok {
			return bpf.Cidr{Kind: bpf.CIDRPod, Vtep: tunnel}, true
		}
	}
	if slices.ContainsFunc(v.NoMasquerade, func(p netip.Prefix) bool { return p.Masked() == prefix }) {
		return bpf.Cidr{Kind: bpf.CIDRIdentity, Flags: bpf.CIDRNoMasq}, true
	}
	return bpf.Cidr{}, false
}

// VtepKeys is the key of map vtep that a tunnel endpoint touches.
func VtepKeys(t state.Tunnel) []uint32 { return []uint32{t.Index} }

// Vtep is the tunnel endpoint of a number.
func (v View) Vtep(index uint32) (bpf.Vtep, bool) {
	for _, t := range v.Tables.Tunnels.ByIndex("index", strconv.Itoa(int(index))) {
		return bpf.Vtep{Ip: bpf.IP(t.IP)}, true
	}
	return bpf.Vtep{}, false
}

// DevKeys is the key of map dev that a device touches.
func DevKeys(d state.Device) []uint32 { return []uint32{uint32(d.Index)} }

// Dev is what programs know of a device: above all the addresses that pods' packets get there.
func (v View) Dev(ifindex uint32) (bpf.Dev, bool) {
	devices := v.Tables.Devices.ByIndex("ifindex", strconv.Itoa(int(ifindex)))
	if len(devices) == 0 {
		return bpf.Dev{}, false
	}
	d := devices[0]
	out := bpf.Dev{Mtu: uint32(d.MTU)}
	if d.L3 {
		out.Flags |= bpf.DevL3
	} else if len(d.MAC) == 6 {
		out.Mac = [6]uint8(d.MAC)
	}
	if a := v.masquerade(d, false); v.Masquerade4 && a.IsValid() {
		out.Masq4 = a.As4()
	}
	if a := v.masquerade(d, true); v.Masquerade6 && a.IsValid() {
		out.Masq6 = a.As16()
	}
	return out, true
}

// masquerade is the node's internal address if the device has it, else the device's first.
func (v View) masquerade(d state.Device, v6 bool) netip.Addr {
	var first netip.Addr
	for _, p := range d.Addrs {
		a := p.Addr()
		if a.Is6() != v6 {
			continue
		}
		for _, n := range v.Tables.Nodes.ByIndex("ip", a.String()) {
			if n.Local && slices.Contains(n.InternalIPs, a) {
				return a
			}
		}
		if !first.IsValid() {
			first = a
		}
	}
	return first
}

// RouteOfEndpoint are the prefixes of the routes to a pod.
func (View) RouteOfEndpoint(e state.Endpoint) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range []netip.Addr{e.IPv4, e.IPv6} {
		if a.IsValid() {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// RouteOfNode are the prefixes of the routes to a node's pods.
func (View) RouteOfNode(n state.Node) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(n.PodCIDRs))
	for _, p := range n.PodCIDRs {
		out = append(out, p.Masked())
	}
	return out
}

// RouteOfDevice are the prefixes of the routes that a device may lead to: those of all nodes.
func (v View) RouteOfDevice(state.Device) []netip.Prefix {
	if v.Tunnel {
		return nil
	}
	return v.Routes()
}

// Routes are the prefixes of the routes to all nodes' pods.
func (v View) Routes() []netip.Prefix {
	var out []netip.Prefix
	for _, n := range v.Tables.Nodes.All() {
		out = append(out, v.RouteOfNode(n)...)
	}
	return out
}

// Route is how the host stack reaches a pod of this node or the pods of another one. What is left
// of this node's own range is unreachable.
func (v View) Route(p netip.Prefix) (state.Route, bool) {
	src := v.router(p.Addr().Is6())
	if p.IsSingleIP() {
		for _, e := range v.Tables.Endpoints.ByIndex("ip", p.Addr().String()) {
			if e.IfIndex > 0 && e.State != state.EndpointDisconnecting {
				return state.Route{Index: e.IfIndex, Src: src}, true
			}
		}
	}
	nodes := v.Tables.Nodes.ByIndex("podcidr", p.String())
	switch {
	case len(nodes) == 0:
		return state.Route{}, false
	case nodes[0].Local:
		return state.Route{}, true
	}
	if v.Tunnel {
		tunnel, ok := v.Tables.OwnDevices.Get(state.VXLANDevice)
		return state.Route{Index: tunnel.Index, Src: src, MTU: v.TunnelMTU}, ok
	}
	return v.direct(nodes[0], p.Addr().Is6())
}

// direct is the route to the pods of a node that is on a link of this one. Others are reached by
// whatever routes the network gives the node.
func (v View) direct(n state.Node, v6 bool) (state.Route, bool) {
	via := n.Addr(v6)
	if !v.DirectRoutes || !via.IsValid() {
		return state.Route{}, false
	}
	var on state.Device
	for _, d := range v.Tables.Devices.All() {
		if slices.ContainsFunc(d.Addrs, func(p netip.Prefix) bool { return !p.IsSingleIP() && p.Masked().Contains(via) }) {
			if on.Index == 0 || d.Index < on.Index {
				on = d
			}
		}
	}
	if on.Index == 0 {
		return state.Route{}, false
	}
	return state.Route{Index: on.Index, Via: via}, true
}

// Unrouted are the nodes whose pods this node has no route to, although it should: they are not on
// one link with it.
func (v View) Unrouted() []string {
	var out []string
	if v.Tunnel || !v.DirectRoutes {
		return nil
	}
	for name, n := range v.Tables.Nodes.All() {
		for _, p := range n.PodCIDRs {
			if _, ok := v.direct(n, p.Addr().Is6()); !ok && !n.Local && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out
}

func (v View) router(v6 bool) netip.Addr {
	for _, a := range v.Routers {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// NeighbourKeys are the neighbour entries of a pod.
func NeighbourKeys(e state.Endpoint) []state.NeighbourKey {
	var out []state.NeighbourKey
	for _, a := range []netip.Addr{e.IPv4, e.IPv6} {
		if a.IsValid() && e.IfIndex > 0 {
			out = append(out, state.NeighbourKey{Index: e.IfIndex, IP: a})
		}
	}
	return out
}

// Neighbour is the MAC address of a pod.
func (v View) Neighbour(k state.NeighbourKey) ([6]byte, bool) {
	for _, e := range v.Tables.Endpoints.ByIndex("ip", k.IP.String()) {
		if e.IfIndex == k.Index && len(e.MAC) == 6 && e.State != state.EndpointDisconnecting {
			return [6]byte(e.MAC), true
		}
	}
	return [6]byte{}, false
}
