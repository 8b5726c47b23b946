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

func balanced(protocol string) bool { return protocol == "TCP" || protocol == "UDP" }

// Frontends are the keys that a Service touches.
func (v View) Frontends(s state.Service) []state.Frontend {
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

// FrontendsOfSlice are the keys that a slice touches: those of its Service and family. A slice
// that comes before its Service touches none yet; the Service then brings them.
func (v View) FrontendsOfSlice(sl state.EndpointSlice) []state.Frontend {
	s, ok := v.Tables.Services.Get(sl.Service)
	if !ok {
		return nil
	}
	return slices.DeleteFunc(v.Frontends(s), func(f state.Frontend) bool { return f.Addr.Is6() != sl.IPv6 })
}

// AddrKeys are the keys of map addr that a Service touches.
func (v View) AddrKeys(s state.Service) []bpf.AddrKey {
	if !v.ours(s) {
		return nil
	}
	var out []bpf.AddrKey
	for _, a := range s.ClusterIPs {
		if v.family(a) {
			out = append(out, bpf.AddrKey{Ip: bpf.IP(a)})
		}
	}
	return out
}

// VIP says whether an address is that of a Service of ours.
func (v View) VIP(a netip.Addr) bool {
	if !v.family(a) {
		return false
	}
	return slices.ContainsFunc(v.Tables.Services.ByIndex("ip", a.String()), v.ours)
}

// Want says what stands behind a frontend. It says so only once both tables are complete: what the
// kernel has from before is better than a part of the truth.
func (v View) Want(f state.Frontend) (state.Balance, bool) {
	if !v.complete() {
		return state.Balance{}, false
	}
	s, name, ok := v.owner(f)
	if !ok {
		return state.Balance{}, false
	}
	c := v.candidates(s, name, f)
	b := state.Balance{All: c.pick(false), InternalLocal: s.InternalTrafficLocal, KeepLast: s.Name == apiServer}
	if s.InternalTrafficLocal {
		b.Local = c.pick(true)
	}
	for _, e := range c {
		if e.terminating && !slices.Contains(b.All, e.addr) && !slices.Contains(b.Local, e.addr) {
			b.Draining = append(b.Draining, e.addr)
		}
	}
	return b, true
}

func (v View) complete() bool {
	services, _ := v.Tables.Services.Initialized()
	endpoints, _ := v.Tables.EndpointSlices.Initialized()
	return services && endpoints
}

// owner returns the Service of a frontend and the name of its port. Should two Services claim it,
// the first by name has it.
func (v View) owner(f state.Frontend) (owner state.Service, port string, ok bool) {
	if !v.family(f.Addr) {
		return owner, "", false
	}
	for _, s := range v.Tables.Services.ByIndex("ip", f.Addr.String()) {
		if !v.ours(s) || ok && s.Name.String() > owner.Name.String() {
			continue
		}
		for _, p := range s.Ports {
			if p.Port == f.Port && p.Protocol == f.Protocol {
				owner, port, ok = s, p.Name, true
				break
			}
		}
	}
	return owner, port, ok
}

// candidate is one address that slices name for a port.
type candidate struct {
	addr                        netip.AddrPort
	local                       bool
	ready, serving, terminating bool
}

type candidates []candidate

// candidates collects the endpoints of a Service port, each address once and in order. While a
// slice is replaced an endpoint may be in two: what speaks for using it counts.
func (v View) candidates(s state.Service, port string, f state.Frontend) candidates {
	var out candidates
	for _, sl := range v.Tables.EndpointSlices.ByIndex("service", s.Name.String()) {
		if sl.IPv6 != f.Addr.Is6() {
			continue
		}
		for _, p := range sl.Ports {
			if p.Name != port || p.Protocol != f.Protocol || p.Port == 0 {
				continue
			}
			for _, e := range sl.Endpoints {
				for _, a := range e.Addresses {
					if a.Is6() != f.Addr.Is6() {
						continue
					}
					out = append(out, candidate{
						addr: netip.AddrPortFrom(a, p.Port), local: e.NodeName != "" && e.NodeName == v.NodeName,
						ready: e.Ready || s.PublishNotReady, serving: e.Serving, terminating: e.Terminating,
					})
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b candidate) int { return a.addr.Compare(b.addr) })
	merged := out[:0]
	for _, c := range out {
		if n := len(merged); n > 0 && merged[n-1].addr == c.addr {
			m := &merged[n-1]
			m.local, m.ready, m.serving = m.local || c.local, m.ready || c.ready, m.serving || c.serving
			m.terminating = m.terminating && c.terminating
			continue
		}
		merged = append(merged, c)
	}
	return merged
}

// pick returns the endpoints that get new connections: those that are ready, else those that still
// serve while they terminate.
func (c candidates) pick(local bool) []netip.AddrPort {
	var ready, last []netip.AddrPort
	for _, e := range c {
		switch {
		case local && !e.local:
		case e.ready:
			ready = append(ready, e.addr)
		case e.serving && e.terminating:
			last = append(last, e.addr)
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return last
}
