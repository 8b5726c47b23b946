// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"slices"

	"lash.internal/lash/agent/state"
)

// zoneLabel is where a node says which zone it is in (source: Kubernetes' well-known labels).
const zoneLabel = "topology.kubernetes.io/zone"

// candidate is one address that slices name for a port.
type candidate struct {
	addr                        netip.AddrPort
	local                       bool
	ready, serving, terminating bool
	forZones, forNodes          []string
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
						addr: netip.AddrPortFrom(a, p.Port), local: v.local(e),
						ready: e.Ready || s.PublishNotReady, serving: e.Serving, terminating: e.Terminating,
						forZones: e.ForZones, forNodes: e.ForNodes,
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
			if c.ready && !m.ready {
				m.forZones, m.forNodes = c.forZones, c.forNodes
			}
			m.local, m.ready, m.serving = m.local || c.local, m.ready || c.ready, m.serving || c.serving
			m.terminating = m.terminating && c.terminating
			continue
		}
		merged = append(merged, c)
	}
	return merged
}

func (v View) local(e state.SliceEndpoint) bool { return e.NodeName != "" && e.NodeName == v.NodeName }

// near is which of the ready endpoints are to be preferred here, nil when none is. The rules are
// kube-proxy's: hints, which the controller of EndpointSlices makes of trafficDistribution, count if
// every ready endpoint has them and one of them is for this node, or else for its zone.
func (v View) near(c candidates) func(candidate) bool {
	n, _ := v.Tables.Nodes.Get(v.NodeName)
	for _, h := range []struct {
		hints func(candidate) []string
		here  string
	}{
		{func(e candidate) []string { return e.forNodes }, v.NodeName},
		{func(e candidate) []string { return e.forZones }, n.Labels[zoneLabel]},
	} {
		if c.hinted(h.hints, h.here) {
			return func(e candidate) bool { return slices.Contains(h.hints(e), h.here) }
		}
	}
	return nil
}

// hinted says whether every ready endpoint has hints, and one of them names what.
func (c candidates) hinted(hints func(candidate) []string, what string) bool {
	found := false
	for _, e := range c {
		if !e.ready {
			continue
		}
		h := hints(e)
		if len(h) == 0 {
			return false
		}
		found = found || slices.Contains(h, what)
	}
	return found && what != ""
}

// pick returns the ready endpoints that match, all of them if match is nil.
func (c candidates) pick(match func(candidate) bool) []netip.AddrPort {
	return c.addrs(func(e candidate) bool { return e.ready && (match == nil || match(e)) })
}

// last returns the endpoints that stand in when none is ready: those that still serve while they
// terminate.
func (c candidates) last(match func(candidate) bool) []netip.AddrPort {
	return c.addrs(func(e candidate) bool { return !e.ready && e.serving && e.terminating && (match == nil || match(e)) })
}

func (c candidates) addrs(match func(candidate) bool) []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range c {
		if match(e) {
			out = append(out, e.addr)
		}
	}
	return out
}
