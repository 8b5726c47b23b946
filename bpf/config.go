// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// Modes of socket-level load balancing, for Config.SockLB.
const (
	SockLBOff    uint8 = 0
	SockLBAll    uint8 = 1 // TCP of pods, everything of the host
	SockLBHostNS uint8 = 2 // sockets of the host only
)

// Ways to reach a backend on another node, for Config.LBMode.
const (
	LBSNAT   uint8 = 0 // with an address of this node as the source
	LBDSR    uint8 = 1 // as it is, in the tunnel; the other node answers
	LBHybrid uint8 = 2 // TCP as LBDSR, the rest as LBSNAT
)

// Config holds the constants that programs are loaded with (include/consts.h). They belong to the
// node and are the same for every pod and device.
type Config struct {
	IPv4, IPv6 bool // pods have addresses of the family
	// KubeProxyReplacement says that Services are ours; else they are left to kube-proxy and what
	// it may translate crosses the host stack.
	KubeProxyReplacement bool
	SockLB               uint8
	// Tunnel says that pods of other nodes are reached through the tunnel; else by the node's routes.
	Tunnel bool
	// Encap says that programs write the outer headers of the tunnel themselves where they can, so that
	// packets do without the tunnel's device.
	Encap       bool
	Masquerade4 bool
	Masquerade6 bool
	TunnelPort  uint16 // UDP
	TunnelMTU   uint32 // largest packet of a pod that fits the tunnel
	// SNATMin and SNATMax bound the source ports of masqueraded flows, both inclusive. The range
	// has to be in net.ipv4.ip_local_reserved_ports.
	SNATMin, SNATMax uint16
	// SNATAddrMin and SNATAddrMax are the same for flows whose source becomes SNATAddr4 or SNATAddr6.
	SNATAddrMin, SNATAddrMax uint16
	// NodePortMin and NodePortMax bound the NodePorts, both inclusive.
	NodePortMin, NodePortMax uint16
	// BindProtect keeps processes of the host from NodePorts that are in use.
	BindProtect bool
	// LBMode is how packets from outside reach a backend on another node.
	LBMode uint8
	// MaglevSize is the number of entries of a Service's table, a prime; 0 chooses at random.
	// MaglevSeed is the same on every node.
	MaglevSize, MaglevSeed uint32
	// HostCookie is the cookie of the node's network namespace (SO_NETNS_COOKIE).
	HostCookie uint64
	// World4 and World6 are the identities of what is outside.
	World4, World6 uint32
	// Router4 and Router6 are the addresses of cilium_host, Node4 and Node6 those of the node on
	// the device that carries the tunnel. Loopback4 and Loopback6 stand for a pod that talks to
	// itself through a Service. An invalid address leaves the default.
	Router4, Node4, Loopback4 netip.Addr
	Router6, Node6, Loopback6 netip.Addr
	// SNATAddr4 and SNATAddr6 are the sources of what comes from outside to pods of other nodes: addresses
	// of this node's pod ranges. Without one it is the node's.
	SNATAddr4, SNATAddr6 netip.Addr
	// FlowsMove says that flows are still moving here from tables of another size or layout.
	FlowsMove bool
	// Test makes programs record redirects in map test_rec.
	Test bool
}

// DefaultConfig returns the constants as the objects have them.
func DefaultConfig() Config {
	return Config{
		IPv4: true, IPv6: true, KubeProxyReplacement: true, SockLB: SockLBAll, Tunnel: true,
		Masquerade4: true, Masquerade6: true, TunnelPort: 8472, TunnelMTU: 1450,
		SNATMin: 49152, SNATMax: 65535, SNATAddrMin: 1024, SNATAddrMax: 65535, NodePortMin: 30000, NodePortMax: 32767, BindProtect: true, World4: IdentityWorld, World6: IdentityWorld,
	}
}

// Apply sets the constants in a specification; those that its programs do not use are skipped.
func (c Config) Apply(spec *ebpf.CollectionSpec) error {
	values := map[string]any{
		"c_ipv4": flag(c.IPv4), "c_ipv6": flag(c.IPv6), "c_kpr": flag(c.KubeProxyReplacement),
		"c_sock_lb": c.SockLB, "c_masq4": flag(c.Masquerade4), "c_masq6": flag(c.Masquerade6),
		"c_test": flag(c.Test), "c_ct_prev": flag(c.FlowsMove), "c_tunnel": flag(c.Tunnel), "c_encap": flag(c.Encap),
		"c_tunnel_port": c.TunnelPort, "c_tunnel_mtu": c.TunnelMTU,
		"c_snat_min": c.SNATMin, "c_snat_max": c.SNATMax, "c_host_cookie": c.HostCookie,
		"c_snat_addr_min": c.SNATAddrMin, "c_snat_addr_max": c.SNATAddrMax,
		"c_node_port_min": c.NodePortMin, "c_node_port_max": c.NodePortMax,
		"c_lb_mode": c.LBMode, "c_bind_protect": flag(c.BindProtect), "c_maglev_size": c.MaglevSize, "c_maglev_seed": c.MaglevSeed,
		"c_world_id4": c.World4, "c_world_id6": c.World6,
	}
	addrs := map[string]netip.Addr{
		"c_router4": c.Router4, "c_router6": c.Router6, "c_node4": c.Node4, "c_node6": c.Node6,
		"c_loopback4": c.Loopback4, "c_loopback6": c.Loopback6, "c_snat_addr4": c.SNATAddr4, "c_snat_addr6": c.SNATAddr6,
	}
	for name, a := range addrs {
		switch {
		case !a.IsValid():
		case name[len(name)-1] == '4' && a.Is4():
			values[name] = a.As4()
		case name[len(name)-1] == '6' && a.Is6():
			values[name] = a.As16()
		default:
			return fmt.Errorf("constant %s: address %s is of the other family", name, a)
		}
	}
	for name, v := range values {
		vs := spec.Variables[name]
		if vs == nil {
			continue
		}
		if err := vs.Set(v); err != nil {
			return fmt.Errorf("constant %s: %w", name, err)
		}
	}
	return nil
}

func flag(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}
