// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"net/netip"
	"slices"

	"lash.internal/lash/agent/state"
)

// hostPorts says whether the HostPorts of a pod are open: it has its network and has not ended.
func hostPorts(p state.Pod) bool {
	return len(p.HostPorts) > 0 && !p.HostNetwork && p.Phase != "Succeeded" && p.Phase != "Failed"
}

func podIP(p state.Pod, v6 bool) (netip.Addr, bool) {
	for _, a := range p.IPs {
		if a.Is6() == v6 {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// HostPorts are the frontends that a pod of this node asks for.
func (v View) HostPorts(p state.Pod) []state.Frontend {
	if !v.Enabled || !hostPorts(p) {
		return nil
	}
	var out []state.Frontend
	for _, h := range p.HostPorts {
		for _, a := range v.hostAddrs(p, h) {
			out = append(out, state.Frontend{Addr: a, Port: h.HostPort, Protocol: h.Protocol})
		}
	}
	return out
}

// hostAddrs are the addresses at which a HostPort is open; unspecified: at all of the node.
func (v View) hostAddrs(p state.Pod, h state.HostPort) []netip.Addr {
	if !balanced(h.Protocol) {
		return nil
	}
	var out []netip.Addr
	for _, v6 := range []bool{false, true} {
		ip, ok := podIP(p, v6)
		if !ok || !v.family(ip) || h.HostIP.IsValid() && h.HostIP.Is6() != v6 {
			continue
		}
		if h.HostIP.IsValid() {
			out = append(out, h.HostIP)
		} else {
			out = append(out, anywhere(v6))
		}
	}
	return out
}

// HostPortAddrs are the addresses at which a pod has HostPorts, each once.
func (v View) HostPortAddrs(p state.Pod) []netip.Addr {
	var out []netip.Addr
	for _, f := range v.HostPorts(p) {
		if !slices.Contains(out, f.Addr) {
			out = append(out, f.Addr)
		}
	}
	return out
}

// HostPortAt says whether an address of this node has HostPorts.
func (v View) HostPortAt(a netip.Addr) bool {
	if !v.Enabled || !v.family(a) {
		return false
	}
	for _, p := range v.Tables.Pods.All() {
		for _, at := range v.HostPortAddrs(p) {
			if at == a || at == anywhere(a.Is6()) {
				return true
			}
		}
	}
	return false
}

// hostPort says what stands behind a HostPort. A Service goes before pods; of several pods one that
// stays goes before one that ends, then the oldest has it, then the first by name.
func (v View) hostPort(f state.Frontend) (state.Balance, bool) {
	var owner state.Pod
	var to netip.AddrPort
	for _, p := range v.Tables.Pods.ByIndex("hostport", state.PortKey(f.Port, f.Protocol)) {
		if !slices.Contains(v.HostPorts(p), f) || to.IsValid() && !before(p, owner) {
			continue
		}
		for _, h := range p.HostPorts {
			if h.HostPort == f.Port && h.Protocol == f.Protocol && slices.Contains(v.hostAddrs(p, h), f.Addr) {
				ip, _ := podIP(p, f.Addr.Is6())
				owner, to = p, netip.AddrPortFrom(ip, h.ContainerPort)
				break
			}
		}
	}
	if !to.IsValid() || v.Tables.Services.Any("outside", outsideKey(f), func(s state.Service) bool {
		_, claims := v.clusterIP(s, f.Addr.Is6())
		return claims
	}) {
		return state.Balance{}, false
	}
	return state.Balance{Type: state.FrontHostPort, All: []netip.AddrPort{to}}, true
}

func before(a, b state.Pod) bool {
	if a.Terminating != b.Terminating {
		return b.Terminating
	}
	return cmp.Or(cmp.Compare(a.Created, b.Created), cmp.Compare(a.Name.String(), b.Name.String())) < 0
}
