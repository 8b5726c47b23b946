// SPDX-License-Identifier: Apache-2.0

package rest

import (
	"cmp"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/state"
)

// Status is the agent's account of itself. Components that this agent lacks stay nil.
func (s *Server) Status() api.StatusResponse {
	cfg := s.src.Settings
	out := api.StatusResponse{
		AttachMode:       cfg.AttachMode,
		BandwidthManager: &api.BandwidthManager{},
		Cilium:           s.ownState(),
		ClockSource:      &api.ClockSource{Mode: "ktime"},
		Cluster:          s.cluster(),
		ClusterMesh:      &api.ClusterMeshStatus{Clusters: []string{}},
		CNIChaining:      &api.CNIChainingStatus{Mode: "none"},
		DatapathMode:     "veth",
		ConfiguredMode:   "veth",
		Encryption:       &api.EncryptionStatus{Mode: "Disabled"},
		HostFirewall:     &api.HostFirewall{Mode: "Disabled"},
		Hubble:           &api.HubbleStatus{State: api.StateDisabled},
		IdentityRange: &api.IdentityRange{
			MinIdentity: int64(state.IdentityMinimal), MaxIdentity: int64(state.IdentityMaximal),
		},
		IPv4BigTCP:   &api.BigTCP{},
		IPv6BigTCP:   &api.BigTCP{},
		Kvstore:      &api.Status{State: api.StateDisabled},
		Masquerading: s.masquerading(),
		Routing:      s.routing(),
		SRv6:         &api.SRv6{},
	}
	if s.src.Attachments != nil {
		a := s.src.Attachments()
		out.Attachments = &a
	}
	if s.src.Probe != nil {
		p := s.src.Probe()
		out.DatapathProbe = &p
	}
	if s.src.KubeProxyReplacement != nil {
		out.KubeProxyReplacement = s.src.KubeProxyReplacement()
	}
	if s.src.Kubernetes != nil {
		k := s.src.Kubernetes()
		out.Kubernetes = &k
	}
	if s.src.IPAM != nil {
		i := s.src.IPAM()
		out.IPAM = &i
	}
	if s.src.CNIFile != nil {
		c := s.src.CNIFile()
		out.CNIFile = &c
	}
	if s.src.Controllers != nil {
		out.Controllers = s.src.Controllers()
		slices.SortFunc(out.Controllers, func(a, b api.Controller) int { return cmp.Compare(a.Name, b.Name) })
	}
	if s.src.Events != nil {
		r := s.src.Events.Ring()
		out.NodeMonitor = &r
	}
	if s.src.Maps != nil {
		if maps, err := s.src.Maps.Maps(); err == nil {
			out.BPFMaps = &api.BPFMapStatus{Maps: []api.BPFMapSize{}}
			for _, m := range maps {
				out.BPFMaps.Maps = append(out.BPFMaps.Maps, api.BPFMapSize{Name: m.Name, Size: m.MaxEntries, Entries: m.Entries, Type: m.Type})
			}
		}
	}
	if s.src.Datapath != nil {
		out.Datapath = s.src.Datapath()
		out.Datapath.Drops = s.drops()
	}
	if s.src.NetworkPolicies != nil {
		if n := s.src.NetworkPolicies(); n > 0 {
			out.NetworkPolicyWarnings = []string{fmt.Sprintf("%d NetworkPolicies exist and are not enforced", n)}
		}
	}
	return out
}

// drops sums the dropped packets up by reason and direction, most first.
func (s *Server) drops() []api.DropCount {
	out := []api.DropCount{}
	if s.src.Traffic == nil {
		return out
	}
	counts, err := s.src.Traffic()
	if err != nil {
		s.src.Log.Warn("drops not counted", "error", err)
		return out
	}
	for k, x := range sumTraffic(counts) {
		if k.reason != "" {
			out = append(out, api.DropCount{Reason: k.reason, Direction: strings.ToLower(k.direction()), Packets: x.Packets, Bytes: x.Bytes})
		}
	}
	slices.SortFunc(out, func(a, b api.DropCount) int {
		return cmp.Or(-cmp.Compare(a.Packets, b.Packets), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Direction, b.Direction))
	})
	return out
}

// ownState says whether the agent serves its node.
func (s *Server) ownState() *api.Status {
	msg := fmt.Sprintf("%s (Lash %s)", api.CiliumVersion, api.Version)
	if s.src.Ready != nil {
		if err := s.src.Ready(); err != nil {
			return &api.Status{State: api.StateFailure, Msg: msg + ": " + err.Error()}
		}
	}
	if s.src.Warnings != nil {
		if w := s.src.Warnings(); len(w) > 0 {
			return &api.Status{State: api.StateWarning, Msg: msg + ": " + strings.Join(w, "; ")}
		}
	}
	return &api.Status{State: api.StateOk, Msg: msg}
}

func (s *Server) cluster() *api.ClusterStatus {
	out := &api.ClusterStatus{Nodes: []api.Node{}}
	cluster := cmp.Or(s.src.Settings.ClusterName, "default")
	if s.src.Tables == nil {
		return out
	}
	for _, n := range s.src.Tables.Nodes.All() {
		m := api.Node{Name: cluster + "/" + n.Name, Source: "custom-resource", PrimaryAddress: &api.NodeAddressing{}}
		if n.Local {
			out.Self = m.Name
			m.Source = "local"
		}
		for _, v6 := range []bool{false, true} {
			a := n.Addr(v6)
			if !a.IsValid() {
				continue
			}
			na := &api.NodeAddress{Enabled: true, IP: a.String(), AddressType: "InternalIP", AllocRange: rangeOf(n.PodCIDRs, v6)}
			if v6 {
				m.PrimaryAddress.IPv6 = na
			} else {
				m.PrimaryAddress.IPv4 = na
			}
		}
		for _, a := range n.HealthIPs {
			if m.HealthEndpoint == nil {
				m.HealthEndpoint = &api.NodeAddressing{}
			}
			na := &api.NodeAddress{Enabled: true, IP: a.String()}
			if a.Is6() {
				m.HealthEndpoint.IPv6 = na
			} else {
				m.HealthEndpoint.IPv4 = na
			}
		}
		for _, a := range n.RouterIPs {
			m.SecondaryAddresses = append(m.SecondaryAddresses,
				api.NodeAddress{Enabled: true, IP: a.String(), AddressType: "CiliumInternalIP"})
		}
		out.Nodes = append(out.Nodes, m)
	}
	slices.SortFunc(out.Nodes, func(a, b api.Node) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func rangeOf(all []netip.Prefix, v6 bool) string {
	for _, p := range all {
		if p.Addr().Is6() == v6 {
			return p.String()
		}
	}
	return ""
}

func (s *Server) routing() *api.Routing {
	r := &api.Routing{InterHost: "Tunnel", IntraHost: "BPF", TunnelProtocol: s.src.Settings.TunnelProtocol}
	if s.src.Settings.RoutingMode == "native" {
		r.InterHost, r.TunnelProtocol = "Native", ""
	}
	return r
}

func (s *Server) masquerading() *api.Masquerading {
	cfg := s.src.Settings
	m := &api.Masquerading{
		Enabled:             cfg.MasqueradeIPv4 || cfg.MasqueradeIPv6,
		EnabledProtocols:    &api.MasqueradingProtocols{IPv4: cfg.MasqueradeIPv4, IPv6: cfg.MasqueradeIPv6},
		SnatExclusionCIDRv4: cfg.NativeRoutingCIDR,
	}
	if m.Enabled {
		m.Mode = "BPF"
		m.Devices = s.devices()
	}
	return m
}

// devices are the names of the devices that lead out of the node.
func (s *Server) devices() []string {
	var out []string
	if s.src.Tables == nil {
		return out
	}
	for _, d := range s.src.Tables.Devices.All() {
		out = append(out, d.Name)
	}
	slices.Sort(out)
	return out
}

func (s *Server) config() api.Config {
	cfg := api.Config{Options: map[string]string{}, NodeName: s.src.Settings.NodeName, Daemon: VersionInfo()}
	for k, v := range s.src.Settings.Options {
		// A value that names a secret has no place in an answer.
		if strings.Contains(k, "password") || strings.Contains(k, "secret") {
			continue
		}
		cfg.Options[k] = v
	}
	return cfg
}

// VersionInfo describes the running program.
func VersionInfo() api.VersionInfo {
	return api.VersionInfo{
		Version: api.CiliumVersion, Lash: api.Version, Revision: api.Revision,
		GoRuntimeVersion: runtime.Version(), Arch: runtime.GOOS + "/" + runtime.GOARCH,
	}
}
