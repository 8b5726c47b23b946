// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/cache"
	netutils "k8s.io/utils/net"

	"lash.internal/lash/agent/kube/ciliumio"
	"lash.internal/lash/agent/state"
)

// objectOf unwraps the last known state of an object whose deletion was missed.
func objectOf(obj any) any {
	if d, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		return d.Obj
	}
	return obj
}

func nameOf(obj any) (state.Name, bool) {
	m, ok := objectOf(obj).(metav1.Object)
	if !ok {
		return state.Name{}, false
	}
	return state.Name{Namespace: m.GetNamespace(), Name: m.GetName()}, true
}

// parseAddrs keeps the addresses that parse, in order.
func parseAddrs(in ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range in {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// parsePrefixes keeps the prefixes that parse, in order and masked.
func parsePrefixes(in []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range in {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

func podRow(obj any) (state.Name, state.Pod, bool) {
	p, ok := objectOf(obj).(*corev1.Pod)
	if !ok {
		return state.Name{}, state.Pod{}, false
	}
	r := PodRow(p)
	return r.Name, r, true
}

// PodRow gives a pod as a row.
func PodRow(p *corev1.Pod) state.Pod {
	r := state.Pod{
		Name:           state.Name{Namespace: p.Namespace, Name: p.Name},
		UID:            string(p.UID),
		Labels:         p.Labels,
		Annotations:    p.Annotations,
		ServiceAccount: p.Spec.ServiceAccountName,
		HostNetwork:    p.Spec.HostNetwork,
		Phase:          string(p.Status.Phase),
		Terminating:    p.DeletionTimestamp != nil,
		Created:        unixTime(p.CreationTimestamp),
	}
	for _, ip := range p.Status.PodIPs {
		r.IPs = append(r.IPs, parseAddrs(ip.IP)...)
	}
	containers := slices.Clone(p.Spec.Containers)
	for _, c := range p.Spec.InitContainers {
		// A restartable init container serves for as long as the pod lives.
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	for _, c := range containers {
		for _, port := range c.Ports {
			if port.Name != "" {
				r.NamedPorts = append(r.NamedPorts, state.NamedPort{Name: port.Name, Port: uint16(port.ContainerPort), Protocol: protocol(port.Protocol)})
			}
			if port.HostPort != 0 && !p.Spec.HostNetwork {
				hp := state.HostPort{HostPort: uint16(port.HostPort), ContainerPort: uint16(port.ContainerPort), Protocol: protocol(port.Protocol)}
				if a, err := netip.ParseAddr(port.HostIP); err == nil && !a.IsUnspecified() {
					hp.HostIP = a.Unmap()
				}
				r.HostPorts = append(r.HostPorts, hp)
			}
		}
	}
	return r
}

func protocol(p corev1.Protocol) string {
	if p == "" {
		return string(corev1.ProtocolTCP)
	}
	return string(p)
}

func namespaceRow(obj any) (string, state.Namespace, bool) {
	n, ok := objectOf(obj).(*corev1.Namespace)
	if !ok {
		return "", state.Namespace{}, false
	}
	return n.Name, state.Namespace{Name: n.Name, Labels: n.Labels}, true
}

func clusterKey(obj any) (string, bool) {
	n, ok := nameOf(obj)
	return n.Name, ok
}

func serviceRow(obj any) (state.Name, state.Service, bool) {
	s, ok := objectOf(obj).(*corev1.Service)
	if !ok {
		return state.Name{}, state.Service{}, false
	}
	r := state.Service{
		Name:                 state.Name{Namespace: shared(s.Namespace), Name: s.Name},
		UID:                  string(s.UID),
		Type:                 shared(string(s.Spec.Type)),
		Headless:             s.Spec.ClusterIP == corev1.ClusterIPNone || hasKey(s.Labels, corev1.IsHeadlessService),
		ClusterIPs:           parseAddrs(s.Spec.ClusterIPs...),
		ExternalIPs:          parseAddrs(s.Spec.ExternalIPs...),
		ExternalTrafficLocal: s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		InternalTrafficLocal: s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
		HealthCheckNodePort:  uint16(s.Spec.HealthCheckNodePort),
		Restricted:           len(s.Spec.LoadBalancerSourceRanges) > 0,
		SourceRanges:         sourceRanges(s.Spec.LoadBalancerSourceRanges),
		PublishNotReady:      s.Spec.PublishNotReadyAddresses,
		ProxyName:            s.Labels["service.kubernetes.io/service-proxy-name"],
		Annotations:          serviceAnnotations(s.Annotations),
		Created:              unixTime(s.CreationTimestamp),
	}
	if len(r.ClusterIPs) == 0 {
		r.ClusterIPs = parseAddrs(s.Spec.ClusterIP)
	}
	for _, in := range s.Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
			r.LoadBalancerIPs = append(r.LoadBalancerIPs, parseAddrs(in.IP)...)
		}
	}
	for _, c := range s.Status.Conditions {
		if c.Type == ServiceHonored && c.Status == metav1.ConditionFalse {
			r.Notice = c.Message
		}
	}
	for _, p := range s.Spec.Ports {
		port := state.ServicePort{Name: shared(p.Name), Protocol: shared(protocol(p.Protocol)), Port: uint16(p.Port), NodePort: uint16(p.NodePort)}
		if p.TargetPort.Type == intstr.Int {
			// An absent one is that of the Service.
			port.TargetPort = uint16(cmp.Or(p.TargetPort.IntVal, p.Port))
		}
		r.Ports = append(r.Ports, port)
	}
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		r.SessionAffinitySecs = uint32(corev1.DefaultClientIPServiceAffinitySeconds)
		if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			r.SessionAffinitySecs = uint32(*c.ClientIP.TimeoutSeconds)
		}
	}
	if s.Spec.LoadBalancerClass != nil {
		r.LoadBalancerClass = *s.Spec.LoadBalancerClass
	}
	if s.Spec.TrafficDistribution != nil {
		r.TrafficDistribution = *s.Spec.TrafficDistribution
	}
	return r.Name, r, true
}

// sourceRanges reads ranges as the API server admits them: it has let old objects keep spaces around
// a range and leading zeros in it.
func sourceRanges(in []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range in {
		if _, n, err := netutils.ParseCIDRSloppy(strings.TrimSpace(s)); err == nil {
			a, _ := netip.AddrFromSlice(n.IP)
			bits, _ := n.Mask.Size()
			out = append(out, netip.PrefixFrom(a, bits))
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// unixTime is 0 for the zero time.
func unixTime(t metav1.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func hasKey(m map[string]string, key string) bool {
	_, ok := m[key]
	return ok
}

// sliceRow is the row of a slice. One that is marked headless is not for who serves Services.
func sliceRow(obj any) (state.Name, state.EndpointSlice, bool) {
	s, ok := objectOf(obj).(*discoveryv1.EndpointSlice)
	if !ok || s.AddressType == discoveryv1.AddressTypeFQDN || s.Labels[discoveryv1.LabelServiceName] == "" || hasKey(s.Labels, corev1.IsHeadlessService) {
		return state.Name{}, state.EndpointSlice{}, false
	}
	r := state.EndpointSlice{
		Name:    state.Name{Namespace: shared(s.Namespace), Name: s.Name},
		Service: state.Name{Namespace: shared(s.Namespace), Name: s.Labels[discoveryv1.LabelServiceName]},
		IPv6:    s.AddressType == discoveryv1.AddressTypeIPv6,
	}
	for _, p := range s.Ports {
		if p.Port == nil {
			continue
		}
		port := state.SlicePort{Protocol: string(corev1.ProtocolTCP), Port: uint16(*p.Port)}
		if p.Name != nil {
			port.Name = shared(*p.Name)
		}
		if p.Protocol != nil {
			port.Protocol = shared(string(*p.Protocol))
		}
		r.Ports = append(r.Ports, port)
	}
	for _, e := range s.Endpoints {
		ep := state.SliceEndpoint{Addresses: parseAddrs(e.Addresses...), NodeName: shared(deref(e.NodeName)), Zone: shared(deref(e.Zone))}
		// An absent condition counts as true for ready and serving, as false for terminating
		// (source: the EndpointConditions API documentation).
		ep.Ready = e.Conditions.Ready == nil || *e.Conditions.Ready
		ep.Serving = ep.Ready
		if e.Conditions.Serving != nil {
			ep.Serving = *e.Conditions.Serving
		}
		ep.Terminating = e.Conditions.Terminating != nil && *e.Conditions.Terminating
		if e.Hints != nil {
			for _, z := range e.Hints.ForZones {
				ep.ForZones = append(ep.ForZones, shared(z.Name))
			}
			for _, n := range e.Hints.ForNodes {
				ep.ForNodes = append(ep.ForNodes, shared(n.Name))
			}
		}
		r.Endpoints = append(r.Endpoints, ep)
	}
	return r.Name, r, true
}

// shared is a string that many rows have, kept once.
func shared(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}

// serviceAnnotations are those that somebody reads.
func serviceAnnotations(in map[string]string) map[string]string {
	var out map[string]string
	for k, v := range in {
		if slices.ContainsFunc(state.ServiceAnnotations, func(p string) bool { return strings.HasPrefix(k, p) }) {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = v
		}
	}
	return out
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func identityKey(obj any) (state.IdentityID, bool) {
	n, ok := nameOf(obj)
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(n.Name, 10, 32)
	return state.IdentityID(id), err == nil
}

func identityRow(obj any) (state.IdentityID, state.Identity, bool) {
	id, ok := identityKey(obj)
	if !ok {
		return 0, state.Identity{}, false
	}
	var ci ciliumio.Identity
	if err := ciliumio.FromUnstructured(objectOf(obj), &ci); err != nil {
		return 0, state.Identity{}, false
	}
	return id, state.Identity{ID: id, Labels: labelList(ci.SecurityLabels), UID: string(ci.UID)}, true
}

// labelList turns source:key -> value into sorted source:key=value.
func labelList(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for k, v := range m {
		if v == "" && !isKubernetesLabel(k) {
			out = append(out, k)
			continue
		}
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return out
}

func isKubernetesLabel(k string) bool { return len(k) > 4 && k[:4] == "k8s:" }
