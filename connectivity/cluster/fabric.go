// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// bridgeName is the bridge inside the fabric's namespace.
const bridgeName = "fabric"

// handle opens netlink in the machine's network namespace.
func (m *machine) handle() (*netlink.Handle, netns.NsHandle, error) {
	ns, err := netns.GetFromPid(m.holder)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: network namespace: %w", m.name, err)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return nil, 0, fmt.Errorf("%s: netlink: %w", m.name, err)
	}
	return h, ns, nil
}

// buildFabric makes the bridge. It has an address, so that nodes have a gateway. As there is no
// way out of the fabric, the gateway answers with "unreachable", and connections fail at once.
func (m *machine) buildFabric(subnets []Subnet) error {
	h, ns, err := m.handle()
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	if err := setUp(h, "lo"); err != nil {
		return err
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name = bridgeName
	if err := h.LinkAdd(bridge); err != nil {
		return fmt.Errorf("fabric: bridge: %w", err)
	}
	if err := setUp(h, bridgeName); err != nil {
		return err
	}
	for _, s := range subnets {
		if err := addAddr(h, bridgeName, netip.PrefixFrom(s.Gateway, s.Prefix.Bits())); err != nil {
			return err
		}
	}
	return nil
}

// plug connects a machine to the fabric: port is the name of the bridge's side.
func (fabric *machine) plug(m *machine, port string, n Node, subnets []Subnet) error {
	fh, fns, err := fabric.handle()
	if err != nil {
		return err
	}
	defer fns.Close()
	defer fh.Close()
	h, ns, err := m.handle()
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()

	bridge, err := fh.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("fabric: %w", err)
	}
	veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}
	veth.Name = port
	veth.MasterIndex = bridge.Attrs().Index
	if err := fh.LinkAdd(veth); err != nil {
		return fmt.Errorf("%s: veth: %w", m.name, err)
	}
	if err := setUp(fh, port); err != nil {
		return err
	}
	for _, link := range []string{"lo", "eth0"} {
		if err := setUp(h, link); err != nil {
			return err
		}
	}
	for i, s := range subnets {
		if err := addAddr(h, "eth0", netip.PrefixFrom(n.Addresses[i], s.Prefix.Bits())); err != nil {
			return err
		}
		eth0, err := h.LinkByName("eth0")
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		route := &netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.IP(s.Gateway.AsSlice())}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("%s: default route: %w", m.name, err)
		}
	}
	return nil
}

func setUp(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	return nil
}

func addAddr(h *netlink.Handle, name string, p netip.Prefix) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{
		IP: net.IP(p.Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD // all addresses here are ours: usable at once
	}
	if err := h.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("address %s on %s: %w", p, name, err)
	}
	return nil
}

// nodeSettings are the settings of the network that a machine routes with.
func nodeSettings(role Role, v6 bool) map[string]string {
	s := map[string]string{}
	if role != RoleExternal {
		s["net/ipv4/ip_forward"] = "1"
		if v6 {
			s["net/ipv6/conf/all/forwarding"] = "1"
		}
	}
	if v6 {
		s["net/ipv6/conf/all/disable_ipv6"] = "0"
		s["net/ipv6/conf/default/disable_ipv6"] = "0"
		s["net/ipv6/conf/lo/disable_ipv6"] = "0"
	}
	return s
}

// routePods adds static routes to the other nodes' pods: what --cni ptp has for a network.
func (m *machine) routePods(pods map[netip.Prefix]netip.Addr) error {
	h, ns, err := m.handle()
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	for p, via := range pods {
		route := &netlink.Route{
			Dst: &net.IPNet{IP: net.IP(p.Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
			Gw:  net.IP(via.AsSlice()),
		}
		if err := h.RouteReplace(route); err != nil {
			return fmt.Errorf("%s: route %s via %s: %w", m.name, p, via, err)
		}
	}
	return nil
}
