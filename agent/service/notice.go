// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"lash.internal/lash/agent/state"
)

// Notice is what of a Service is not honoured, in a word and in sentences. The zero value: nothing.
type Notice struct{ Reason, Message string }

// Global is what is the same for all Services of the cluster, for Judge.
type Global struct {
	// Mode is bpf-lb-mode, Algorithm bpf-lb-algorithm.
	Mode, Algorithm string
	// NodePortMin and NodePortMax are node-port-range.
	NodePortMin, NodePortMax uint16
}

// Judge says what a Service asks for that it does not get. It reads nothing but the Services.
func (v View) Judge(name state.Name, g Global) (Notice, bool) {
	s, ok := v.Tables.Services.Get(name)
	services, _ := v.Tables.Services.Initialized()
	if !ok || !services || !v.ours(s) {
		return Notice{}, false
	}
	var out Notice
	add := func(reason string, messages ...string) {
		for _, m := range messages {
			out.Reason = cmp.Or(out.Reason, reason)
			out.Message = strings.TrimPrefix(out.Message+"; "+m, "; ")
		}
	}
	add("AddressInUse", v.lost(s)...)
	add("AddressFamily", v.strayed(s)...)
	add("SourceRanges", v.closed(s)...)
	add("PortRange", outOfRange(s, g)...)
	add("PortTranslation", untranslated(s)...)
	add("UnsupportedAnnotation", annotations(s, g)...)
	return out, out.Reason != ""
}

// lost are the frontends that another Service has.
func (v View) lost(s state.Service) []string {
	var out []string
	for _, f := range v.Claims(s) {
		if slices.Contains(s.ClusterIPs, f.Addr) || f.Addr.IsUnspecified() || v.holds(s, f) {
			continue
		}
		holder, _, found := v.primary(f)
		for _, o := range v.Tables.Services.ByIndex("outside", outsideKey(f)) {
			if _, claims := v.clusterIP(o, f.Addr.Is6()); !found && claims && v.holds(o, f) {
				holder, found = o, true
			}
		}
		out = append(out, fmt.Sprintf("%s is served for Service %s, which was there before", f, holder.Name))
	}
	return out
}

// strayed are addresses of a family in which the Service has no ClusterIP.
func (v View) strayed(s state.Service) []string {
	var out []string
	for _, a := range s.OutsideIPs() {
		if _, ok := v.clusterIP(s, a.Is6()); ok {
			continue
		}
		if !v.family(a) {
			out = append(out, fmt.Sprintf("address %s is not served: pods have no %s", a, familyName(a)))
			continue
		}
		out = append(out, fmt.Sprintf("address %s is not served: the Service has no %s ClusterIP; add the family to spec.ipFamilies", a, familyName(a)))
	}
	return out
}

func familyName(a netip.Addr) string {
	if a.Is6() {
		return "IPv6"
	}
	return "IPv4"
}

// closed are the addresses of a load balancer that no range of sources opens.
func (v View) closed(s state.Service) []string {
	if !s.Restricted || v.AnySource {
		return nil
	}
	var out []string
	for _, a := range s.LoadBalancerIPs {
		if _, ok := v.clusterIP(s, a.Is6()); ok && !slices.ContainsFunc(s.SourceRanges, func(p netip.Prefix) bool { return p.Addr().Is6() == a.Is6() }) {
			out = append(out, fmt.Sprintf("nobody may use %s: spec.loadBalancerSourceRanges has no %s range", a, familyName(a)))
		}
	}
	return out
}

// outOfRange are NodePorts that nodes do not look at, since the API server gives out others than they
// are told.
func outOfRange(s state.Service, g Global) []string {
	var out []string
	for _, p := range s.Ports {
		if p.NodePort != 0 && (p.NodePort < g.NodePortMin || p.NodePort > g.NodePortMax) {
			out = append(out, fmt.Sprintf("NodePort %d/%s is not served to callers outside: it is not in %d-%d; set nodePort.range as kube-apiserver has it",
				p.NodePort, p.Protocol, g.NodePortMin, g.NodePortMax))
		}
	}
	return out
}

// untranslated are ports of SCTP that would have to become another: its checksum covers them and cannot
// be mended.
func untranslated(s state.Service) []string {
	var out []string
	for _, p := range s.Ports {
		if p.Protocol != "SCTP" {
			continue
		}
		if p.TargetPort != 0 && p.TargetPort != p.Port {
			out = append(out, fmt.Sprintf("port %d/SCTP is not served: the pods' port %d is another, and ports of SCTP are not translated", p.Port, p.TargetPort))
		}
		if p.NodePort != 0 && p.TargetPort != 0 && p.TargetPort != p.NodePort {
			out = append(out, fmt.Sprintf("NodePort %d/SCTP is not served: the pods' port %d is another, and ports of SCTP are not translated; "+
				"with type LoadBalancer, allocateLoadBalancerNodePorts: false leaves it out", p.NodePort, p.TargetPort))
		}
	}
	return out
}

// idle are the values of annotations that ask for nothing beyond what is so anyway.
var idle = map[string][]string{
	"global": {"false"}, "global-service": {"false"}, "shared": {"true", "false"}, "shared-service": {"true", "false"},
	"affinity": {"none"}, "service-affinity": {"none"}, "global-sync-endpoint-slices": {"false"},
	"src-ranges-policy": {"allow"}, "proxy-delegation": {"none"}, "lb-l7": {"disabled"}, "topology-aware-hints": {"auto", "Auto"},
}

// annotations are those that ask for what Services cannot have one by one.
func annotations(s state.Service, g Global) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(s.Annotations)) {
		i := slices.IndexFunc(state.ServiceAnnotations, func(p string) bool { return strings.HasPrefix(k, p) })
		if i < 0 {
			continue
		}
		name, value := strings.TrimPrefix(k, state.ServiceAnnotations[i]), s.Annotations[k]
		switch {
		case slices.Contains(idle[name], value):
		case name == "lb-algorithm" && value == g.Algorithm, name == "forwarding-mode" && value == g.Mode:
		case name == "lb-algorithm":
			out = append(out, fmt.Sprintf("annotation %s=%s is not honoured: the algorithm is %s for all Services (loadBalancer.algorithm)", k, value, g.Algorithm))
		case name == "forwarding-mode":
			out = append(out, fmt.Sprintf("annotation %s=%s is not honoured: the mode is %s for all Services (loadBalancer.mode)", k, value, g.Mode))
		default:
			out = append(out, fmt.Sprintf("annotation %s=%s is not honoured", k, value))
		}
	}
	return out
}

// Rivals are the Services that ask for a frontend, by name.
func (v View) Rivals(f state.Frontend) []state.Name {
	var out []state.Name
	if !f.Addr.IsUnspecified() {
		for _, s := range v.Tables.Services.ByIndex("outside", outsideKey(f)) {
			out = append(out, s.Name)
		}
	}
	return out
}
