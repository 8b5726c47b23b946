// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"strconv"

	"lash.internal/lash/agent/state"
)

// healthPort is where load balancers ask a node for a Service; 0: nowhere.
func (v View) healthPort(s state.Service) uint16 {
	if !v.HealthChecks || !v.ours(s) || !s.ExternalTrafficLocal {
		return 0
	}
	return s.HealthCheckNodePort
}

// HealthPorts is the port at which the node answers for a Service, if there is one.
func (v View) HealthPorts(s state.Service) []uint16 {
	if p := v.healthPort(s); p != 0 {
		return []uint16{p}
	}
	return nil
}

// HealthPortsOfSlice is the port at which the node answers for the Service of a slice.
func (v View) HealthPortsOfSlice(sl state.EndpointSlice) []uint16 {
	s, _ := v.Tables.Services.Get(sl.Service)
	return v.HealthPorts(s)
}

// HealthAddrsOfDevice are the addresses of a device at which the node answers.
func (v View) HealthAddrsOfDevice(d state.Device) []netip.Addr {
	var out []netip.Addr
	for _, p := range d.Addrs {
		if len(v.NodePortAddresses) > 0 && v.NodePortOpen(p.Addr()) {
			out = append(out, p.Addr())
		}
	}
	return out
}

// HealthCheckAt are the keys of health checks at a port: where NodePorts are open, or everywhere.
func (v View) HealthCheckAt(port uint16) []netip.AddrPort {
	if len(v.NodePortAddresses) == 0 {
		return []netip.AddrPort{netip.AddrPortFrom(netip.IPv6Unspecified(), port)}
	}
	var out []netip.AddrPort
	for _, d := range v.Tables.Devices.All() {
		for _, a := range v.HealthAddrsOfDevice(d) {
			out = append(out, netip.AddrPortFrom(a, port))
		}
	}
	return out
}

// HealthChecksOn are the keys of all health checks at an address.
func (v View) HealthChecksOn(a netip.Addr) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range v.Tables.Services.All() {
		for _, p := range v.HealthPorts(s) {
			out = append(out, netip.AddrPortFrom(a, p))
		}
	}
	return out
}

// HealthCheck is what the node answers at an address and port: how many endpoints of the Service it
// has that are ready. Those that terminate do not count, so that a load balancer turns away from
// them. Of two families the one with more counts.
func (v View) HealthCheck(at netip.AddrPort) (state.HealthCheck, bool) {
	services, _ := v.Tables.Services.Initialized()
	endpoints, _ := v.Tables.EndpointSlices.Initialized()
	if !services || !endpoints {
		return state.HealthCheck{}, false
	}
	if len(v.NodePortAddresses) == 0 != at.Addr().IsUnspecified() || !at.Addr().IsUnspecified() && !v.onDevice(at.Addr()) {
		return state.HealthCheck{}, false
	}
	for _, s := range v.Tables.Services.ByIndex("healthport", strconv.Itoa(int(at.Port()))) {
		if v.healthPort(s) == 0 {
			continue
		}
		ready := map[bool]map[netip.Addr]bool{false: {}, true: {}}
		for _, sl := range v.Tables.EndpointSlices.ByIndex("service", s.Name.String()) {
			for _, e := range sl.Endpoints {
				if v.local(e) && (e.Ready || s.PublishNotReady) {
					for _, a := range e.Addresses {
						ready[a.Is6()][a] = true
					}
				}
			}
		}
		return state.HealthCheck{Service: s.Name, LocalEndpoints: max(len(ready[false]), len(ready[true]))}, true
	}
	return state.HealthCheck{}, false
}

// onDevice says whether the node has an address, and NodePorts are open there.
func (v View) onDevice(a netip.Addr) bool {
	return v.NodePortOpen(a) && v.Tables.Devices.Any("ip", a.String(), func(state.Device) bool { return true })
}
