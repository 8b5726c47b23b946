// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

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
	owner, ok := v.hostPortOwner(f)
	if !ok {
		return state.Balance{}, false
	}
	if _, taken := v.hostPortService(f); taken {
		return state.Balance{}, false
	}
	for _, h := range owner.HostPorts {
		if h.HostPort == f.Port && h.Protocol == f.Protocol && slices.Contains(v.hostAddrs(owner, h), f.Addr) {
			ip, _ := podIP(owner, f.Addr.Is6())
			return state.Balance{Type: state.FrontHostPort, All: []netip.AddrPort{netip.AddrPortFrom(ip, h.ContainerPort)}}, true
		}
	}
	return state.Balance{}, false
}

// hostPortOwner is the pod that has a HostPort if no Service does.
func (v View) hostPortOwner(f state.Frontend) (owner state.Pod, ok bool) {
	for _, p := range v.Tables.Pods.ByIndex("hostport", state.PortKey(f.Port, f.Protocol)) {
		if slices.Contains(v.HostPorts(p), f) && (!ok || before(p, owner)) {
			owner, ok = p, true
		}
	}
	return owner, ok
}

// hostPortService is a Service that has the frontend of a HostPort.
func (v View) hostPortService(f state.Frontend) (state.Name, bool) {
	for _, s := range v.Tables.Services.ByIndex("outside", outsideKey(f)) {
		if _, claims := v.clusterIP(s, f.Addr.Is6()); claims {
			return s.Name, true
		}
	}
	return state.Name{}, false
}

// JudgePod says which HostPorts of a pod are not open. One that is about to end may lose them.
func (v View) JudgePod(name state.Name) (Notice, bool) {
	pods, _ := v.Tables.Pods.Initialized()
	services, _ := v.Tables.Services.Initialized()
	p, ok := v.Tables.Pods.Get(name)
	if !v.Enabled || !pods || !services || !ok || p.Terminating {
		return Notice{}, false
	}
	var out []string
	for _, f := range v.HostPorts(p) {
		if s, taken := v.hostPortService(f); taken {
			out = append(out, fmt.Sprintf("HostPort %s is not open: Service %s has it", f, s))
		} else if owner, _ := v.hostPortOwner(f); owner.Name != p.Name {
			out = append(out, fmt.Sprintf("HostPort %s is not open: pod %s has it, which was there before", f, owner.Name))
		}
	}
	if hostPorts(p) && len(p.IPs) > 0 {
		for _, h := range p.HostPorts {
			if h.HostIP.IsValid() && len(v.hostAddrs(p, h)) == 0 && balanced(h.Protocol) {
				out = append(out, fmt.Sprintf("HostPort %d/%s is not open at %s: the pod has no %s address", h.HostPort, h.Protocol, h.HostIP, familyName(h.HostIP)))
			}
		}
	}
	return Notice{Reason: "HostPortNotOpen", Message: strings.Join(out, "; ")}, len(out) > 0
}

// PodsAt are the pods that ask for a HostPort, by name.
func (v View) PodsAt(f state.Frontend) []state.Name {
	var out []state.Name
	for _, p := range v.Tables.Pods.ByIndex("hostport", state.PortKey(f.Port, f.Protocol)) {
		out = append(out, p.Name)
	}
	return out
}

func before(a, b state.Pod) bool {
	if a.Terminating != b.Terminating {
		return b.Terminating
	}
	return cmp.Or(cmp.Compare(a.Created, b.Created), cmp.Compare(a.Name.String(), b.Name.String())) < 0
}
