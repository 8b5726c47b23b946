// SPDX-License-Identifier: Apache-2.0

// Package netlink is the agent's side of the kernel's devices, addresses, routes, neighbours and
// sysctls: the devices that Lash makes (cilium_host and cilium_net, cilium_vxlan, lxc_health and
// cilium_health, lxc*), the
// Targets for routes and neighbours, and the watcher that turns the node's own devices into rows.
// It works in the network namespace of the calling process.
package netlink

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/state"
)

// Names of the devices that Lash makes.
const (
	HostDevice  = state.HostDevice
	NetDevice   = state.NetDevice
	VXLANDevice = state.VXLANDevice

	HealthDevice = state.HealthDevice
	HealthPeer   = state.HealthPeer
	// PodPrefix begins the name of a pod's host-side device.
	PodPrefix = "lxc"
)

// RouteProtocol is the origin that marks a route as ours (rtm_protocol).
const RouteProtocol = 76

// Overheads of VXLAN in bytes: outer IP header, UDP (8), VXLAN (8) and inner Ethernet (14).
const (
	overhead4 = 20 + 8 + 8 + 14
	overhead6 = 40 + 8 + 8 + 14
)

// ErrMTU says that the underlay is too small to carry pods' packets.
var ErrMTU = errors.New("mtu too small")

// TunnelMTU is the largest packet of a pod that fits the tunnel over an underlay of the given MTU.
func TunnelMTU(underlay int, v6 bool) (int, error) {
	mtu, least := underlay-overhead4, 576
	if v6 {
		mtu, least = underlay-overhead6, 1280
	}
	if mtu < least {
		return 0, fmt.Errorf("%w: %d bytes of the underlay leave %d for pods, at least %d are needed", ErrMTU, underlay, mtu, least)
	}
	return mtu, nil
}

// NetnsCookie returns the cookie of the current network namespace (SO_NETNS_COOKIE), the number
// that programs see for sockets of the node itself.
func NetnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("SO_NETNS_COOKIE: %w", err)
	}
	return cookie, nil
}

func toIPNet(p netip.Prefix) *net.IPNet {
	a := p.Addr()
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(p.Bits(), a.BitLen())}
}

func fromIPNet(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	bits, size := n.Mask.Size()
	a = a.Unmap()
	if size == 128 && a.Is4() {
		bits -= 96
	}
	return netip.PrefixFrom(a, bits), true
}

func fromIP(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
