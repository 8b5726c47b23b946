// SPDX-License-Identifier: Apache-2.0

package rest

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/state"
)

// reserved labels by number; source: Cilium's identity model.
var reserved = map[state.IdentityID][]string{
	state.IdentityHost:          {"reserved:host"},
	state.IdentityWorld:         {"reserved:world"},
	state.IdentityUnmanaged:     {"reserved:unmanaged"},
	state.IdentityHealth:        {"reserved:health"},
	state.IdentityInit:          {"reserved:init"},
	state.IdentityRemoteNode:    {"reserved:remote-node"},
	state.IdentityKubeAPIServer: {"reserved:kube-apiserver", "reserved:remote-node"},
	state.IdentityIngress:       {"reserved:ingress"},
	state.IdentityWorldIPv4:     {"reserved:world-ipv4"},
	state.IdentityWorldIPv6:     {"reserved:world-ipv6"},
}

// LabelsHash is the SHA-256 of a sorted label list, each label as "source:key=value;".
func LabelsHash(labels []string) string {
	h := sha256.New()
	for _, l := range labels {
		if !strings.Contains(l, "=") {
			l += "="
		}
		h.Write([]byte(l + ";"))
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (s *Server) endpoints() []api.Endpoint {
	out := []api.Endpoint{}
	for _, ep := range s.src.Tables.Endpoints.All() {
		out = append(out, s.endpointModel(ep))
	}
	slices.SortFunc(out, func(a, b api.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func (s *Server) endpointModel(ep state.Endpoint) api.Endpoint {
	st := &api.EndpointStatus{
		State: string(ep.State),
		ExternalIdentifiers: &api.EndpointIdentifiers{
			ContainerID:  ep.ContainerID,
			K8sNamespace: ep.Pod.Namespace,
			K8sPodName:   ep.Pod.Name,
		},
		Labels: &api.LabelStatus{SecurityRelevant: labelTexts(ep.Labels)},
		Networking: &api.EndpointNetworking{
			ContainerIfName: ep.ContainerIf,
			HostMAC:         ep.NodeMAC.String(),
			MAC:             ep.MAC.String(),
			InterfaceIndex:  int64(ep.IfIndex),
			InterfaceName:   ep.IfName,
			Addressing:      []api.AddressPair{{IPv4: addrText(ep.IPv4), IPv6: addrText(ep.IPv6)}},
		},
		Policy: &api.EndpointPolicy{
			Realized: &api.PolicyState{ID: int64(ep.Identity), PolicyEnabled: "none"},
			Spec:     &api.PolicyState{ID: int64(ep.Identity), PolicyEnabled: "none"},
		},
		Health: endpointHealth(ep.State),
	}
	if ep.ContainerID != "" {
		st.ExternalIdentifiers.CNIAttachmentID = ep.ContainerID + ":" + ep.ContainerIf
	}
	if ep.Pod.Name != "" {
		st.ExternalIdentifiers.PodName = ep.Pod.String()
	}
	for _, p := range ep.NamedPorts {
		st.NamedPorts = append(st.NamedPorts, api.NamedPort(p))
	}
	if ep.Identity != state.IdentityUnknown {
		id := s.identityModel(ep.Identity, ep.Labels)
		st.Identity = &id
	}
	return api.Endpoint{ID: int64(ep.ID), Spec: &api.EndpointSpec{}, Status: st}
}

func endpointHealth(st state.EndpointState) *api.EndpointHealth {
	h := &api.EndpointHealth{BPF: "Pending", Policy: "Disabled", OverallHealth: "Pending", Connected: true}
	switch st {
	case state.EndpointReady:
		h.BPF, h.OverallHealth = "OK", "OK"
	case state.EndpointDisconnecting:
		h.BPF, h.OverallHealth, h.Connected = "Disabled", "Disabled", false
	case state.EndpointWaitingForIdentity, state.EndpointRestoring:
		h.BPF, h.OverallHealth = "Bootstrap", "Bootstrap"
	case state.EndpointRegenerating:
	}
	return h
}

// endpoint finds an endpoint by number or by a prefixed name.
func (s *Server) endpoint(id string) (api.Endpoint, error) {
	kind, name, prefixed := strings.Cut(id, ":")
	if !prefixed {
		kind, name = "cilium-local", id
	}
	t := s.src.Tables.Endpoints
	var rows []state.Endpoint
	switch kind {
	case "cilium-local":
		n, err := strconv.ParseUint(name, 10, 16)
		if err != nil {
			return api.Endpoint{}, badRequest{fmt.Sprintf("invalid endpoint id %q", name)}
		}
		if ep, ok := t.Get(uint16(n)); ok {
			rows = append(rows, ep)
		}
	case "container-id":
		rows = t.ByIndex("container", name)
	case "cni-attachment-id":
		cid, ifname, _ := strings.Cut(name, ":")
		for _, ep := range t.ByIndex("container", cid) {
			if ifname == "" || ep.ContainerIf == ifname {
				rows = append(rows, ep)
			}
		}
	case "pod-name", "cep-name":
		rows = t.ByIndex("pod", name)
	case "ipv4", "ipv6":
		rows = t.ByIndex("ip", name)
	default:
		return api.Endpoint{}, badRequest{fmt.Sprintf("unknown endpoint prefix %q", kind)}
	}
	if len(rows) == 0 {
		return api.Endpoint{}, notFound{"no endpoint " + id}
	}
	return s.endpointModel(rows[0]), nil
}

func (s *Server) identityModel(id state.IdentityID, fallback []string) api.Identity {
	labels := fallback
	if row, ok := s.src.Tables.Identities.Get(id); ok {
		labels = row.Labels
	} else if l, ok := reserved[id]; ok {
		labels = l
	}
	labels = labelTexts(labels)
	return api.Identity{ID: int64(id), Labels: labels, LabelsSHA256: LabelsHash(labels)}
}

// identities lists reserved and allocated identities that have all of want.
func (s *Server) identities(want []string) []api.Identity {
	refs := map[state.IdentityID]int64{}
	for _, ep := range s.src.Tables.Endpoints.All() {
		refs[ep.Identity]++
	}
	ids := map[state.IdentityID]bool{}
	for id := range reserved {
		ids[id] = true
	}
	for id := range s.src.Tables.Identities.All() {
		ids[id] = true
	}
	out := []api.Identity{}
	for id := range ids {
		m := s.identityModel(id, nil)
		m.RefCount = refs[id]
		if hasLabels(m.Labels, want) {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b api.Identity) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// hasLabels says whether every wanted label ("key", "key=value", with or without "source:") is there.
func hasLabels(have, want []string) bool {
	for _, w := range want {
		if !slices.ContainsFunc(have, func(l string) bool {
			_, bare, _ := strings.Cut(l, ":")
			key, _, _ := strings.Cut(bare, "=")
			return l == w || bare == w || key == w || "any:"+bare == w
		}) {
			return false
		}
	}
	return true
}

func (s *Server) identity(text string) (api.Identity, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return api.Identity{}, badRequest{fmt.Sprintf("invalid identity %q", text)}
	}
	id := state.IdentityID(n)
	if _, ok := s.src.Tables.Identities.Get(id); !ok && reserved[id] == nil {
		return api.Identity{}, notFound{"no identity " + text}
	}
	return s.identityModel(id, nil), nil
}

// ips says who every known address is.
func (s *Server) ips() []api.IPEntry {
	byAddr := map[netip.Prefix]api.IPEntry{}
	put := func(a netip.Addr, e api.IPEntry) {
		if !a.IsValid() {
			return
		}
		p := netip.PrefixFrom(a, a.BitLen())
		e.CIDR = p.String()
		byAddr[p] = e
	}
	local := ""
	apiServers := apiServerAddrs(s.src.Tables)
	for a := range apiServers {
		put(a, api.IPEntry{Identity: int64(state.IdentityKubeAPIServer), Metadata: &api.IPMetadata{Source: "kube-apiserver"}})
	}
	for _, n := range s.src.Tables.Nodes.All() {
		id, source := state.IdentityRemoteNode, "custom-resource"
		hostIP := addrText(firstAddr(n.InternalIPs))
		if n.Local {
			id, source, local = state.IdentityHost, "local", hostIP
		}
		for _, a := range slices.Concat(n.InternalIPs, n.ExternalIPs, n.RouterIPs) {
			e := api.IPEntry{Identity: int64(id), HostIP: hostIP, Metadata: &api.IPMetadata{Source: source}}
			if apiServers[a] && !n.Local {
				e.Identity, e.Metadata.Source = int64(state.IdentityKubeAPIServer), "kube-apiserver"
			}
			put(a, e)
		}
	}
	for _, r := range s.src.Tables.RemoteIPs.All() {
		put(r.IP, api.IPEntry{
			Identity: int64(r.Identity), HostIP: addrText(r.NodeIP),
			Metadata: &api.IPMetadata{Name: r.Pod.Name, Namespace: r.Pod.Namespace, Source: "custom-resource"},
		})
	}
	for _, ep := range s.src.Tables.Endpoints.All() {
		e := api.IPEntry{
			Identity: int64(ep.Identity), HostIP: local,
			Metadata: &api.IPMetadata{Name: ep.Pod.Name, Namespace: ep.Pod.Namespace, Source: "local"},
		}
		put(ep.IPv4, e)
		put(ep.IPv6, e)
	}
	keys := make([]netip.Prefix, 0, len(byAddr))
	for p := range byAddr {
		keys = append(keys, p)
	}
	slices.SortFunc(keys, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	out := make([]api.IPEntry, 0, len(keys))
	for _, p := range keys {
		out = append(out, byAddr[p])
	}
	return out
}

// apiServerAddrs are the addresses that the API server publishes of itself.
func apiServerAddrs(t *state.Tables) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, sl := range t.EndpointSlices.ByIndex("service", "default/kubernetes") {
		for _, ep := range sl.Endpoints {
			for _, a := range ep.Addresses {
				out[a] = true
			}
		}
	}
	return out
}

// services lists frontends, of one namespace or Service if the query asks for that.
func (s *Server) services(q url.Values) ([]api.Service, error) {
	out := []api.Service{}
	if s.src.Services == nil {
		return out, nil
	}
	all, err := s.src.Services()
	if err != nil {
		return nil, err
	}
	for _, x := range all {
		if (!q.Has("namespace") || q.Get("namespace") == x.Spec.Flags.Namespace) && (!q.Has("name") || q.Get("name") == x.Spec.Flags.Name) {
			out = append(out, x)
		}
	}
	return out, nil
}

// labelTexts are sorted labels as people read them, never nil.
func labelTexts(in []string) []string {
	out := state.LabelTexts(in)
	slices.Sort(out)
	return out
}

func firstAddr(in []netip.Addr) netip.Addr {
	if len(in) == 0 {
		return netip.Addr{}
	}
	return in[0]
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
