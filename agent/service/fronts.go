// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"net/netip"
	"slices"

	"lash.internal/lash/agent/state"
)

// anywhere stands for the addresses of a node.
func anywhere(v6 bool) netip.Addr {
	if v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// fronts are the frontends of a Service port beside its primary one, as far as no other has a better
// claim to them.
func (v View) fronts(s state.Service, p state.ServicePort, v6 bool) []state.Front {
	var out []state.Front
	add := func(f state.Front) {
		if f.Outside = true; v.holds(s, f.Frontend) {
			out = append(out, f)
		}
	}
	if p.NodePort != 0 {
		add(state.Front{Frontend: state.Frontend{Addr: anywhere(v6), Port: p.NodePort, Protocol: p.Protocol}, Type: state.FrontNodePort})
	}
	for _, a := range s.OutsideIPs() {
		if a.Is6() != v6 || !v.family(a) {
			continue
		}
		f := state.Front{Frontend: state.Frontend{Addr: a, Port: p.Port, Protocol: p.Protocol}, Type: state.FrontExternalIP}
		// An address that is both is a load balancer's: the ranges of sources are not to be gone around.
		if slices.Contains(s.LoadBalancerIPs, a) {
			f.Type, f.Sources = state.FrontLoadBalancer, s.Restricted && !v.AnySource
		}
		add(f)
	}
	slices.SortFunc(out, func(a, b state.Front) int { return a.Compare(b.Frontend) })
	return out
}

// holds says whether a Service that claims a frontend has it: a ClusterIP goes before everything
// else, then the oldest Service has it, of equally old ones the first by name.
func (v View) holds(s state.Service, f state.Frontend) bool {
	if !f.Addr.IsUnspecified() {
		if _, _, taken := v.primary(f); taken {
			return false
		}
	}
	return !v.Tables.Services.Any("outside", outsideKey(f), func(o state.Service) bool {
		_, claims := v.clusterIP(o, f.Addr.Is6())
		return claims && cmp.Or(cmp.Compare(o.Created, s.Created), cmp.Compare(o.Name.Namespace, s.Name.Namespace), cmp.Compare(o.Name.Name, s.Name.Name)) < 0
	})
}

// outsideKey is the key of a frontend in the index "outside" of Services.
func outsideKey(f state.Frontend) string {
	if f.Addr.IsUnspecified() {
		return state.PortKey(f.Port, f.Protocol)
	}
	return f.String()
}

// Claims are all frontends that a Service asks for, whether it gets them or not.
func (v View) Claims(s state.Service) []state.Frontend {
	out := v.Primaries(s)
	for _, v6 := range []bool{false, true} {
		if _, ok := v.clusterIP(s, v6); !ok {
			continue
		}
		for _, p := range s.Ports {
			if p.NodePort != 0 {
				out = append(out, state.Frontend{Addr: anywhere(v6), Port: p.NodePort, Protocol: p.Protocol})
			}
			for _, a := range s.OutsideIPs() {
				if a.Is6() == v6 && v.family(a) {
					out = append(out, state.Frontend{Addr: a, Port: p.Port, Protocol: p.Protocol})
				}
			}
		}
	}
	return slices.Clip(out)
}

// Touched are the primary frontends that bear on who has a frontend: those of all Services that claim
// it, and itself, if it is one or a pod's HostPort.
func (v View) Touched(f state.Frontend) []state.Frontend {
	var out []state.Frontend
	if !f.Addr.IsUnspecified() || v.Tables.Pods.Any("hostport", outsideKey(f), func(state.Pod) bool { return true }) {
		out = append(out, f)
	}
	for _, s := range v.Tables.Services.ByIndex("outside", outsideKey(f)) {
		a, ok := v.clusterIP(s, f.Addr.Is6())
		if !ok {
			continue
		}
		for _, p := range s.Ports {
			if p.Protocol == f.Protocol && (p.NodePort == f.Port && f.Addr.IsUnspecified() || p.Port == f.Port && !f.Addr.IsUnspecified()) {
				out = append(out, state.Frontend{Addr: a, Port: p.Port, Protocol: p.Protocol})
			}
		}
	}
	return out
}
