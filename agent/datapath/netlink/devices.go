// SPDX-License-Identifier: Apache-2.0

package netlink

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	nl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Plan says which devices the node needs.
type Plan struct {
	IPv4, IPv6  bool
	Addrs       []netip.Addr // of cilium_host
	UnderlayMTU int          // of the device that leads to the other nodes
	Tunnel      bool         // whether there is a tunnel
	TunnelPort  uint16       // UDP
	Health      bool         // whether there is a health endpoint
}

// Devices are the interface indexes of what Ensure made; VXLAN is 0 without a tunnel.
type Devices struct {
	Host, Net, VXLAN int
}

// Ensure makes cilium_host with cilium_net, cilium_vxlan if there is a tunnel, and lxc_health with
// cilium_health if there is a health endpoint, as the plan says. What is right already is not touched,
// so that a restart changes nothing.
func Ensure(p Plan, s *Sysctls) (Devices, error) {
	m := maker{Plan: p, sysctls: s}
	return m.ensure()
}

// HostAddrs returns the global addresses that cilium_host has, none if there is no such device.
func HostAddrs() ([]netip.Addr, error) {
	var none nl.LinkNotFoundError
	link, err := nl.LinkByName(HostDevice)
	if errors.As(err, &none) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	have, err := nl.AddrList(link, nl.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, h := range have {
		if a := fromIP(h.IP); !a.IsLinkLocalUnicast() {
			out = append(out, a)
		}
	}
	return out, nil
}

// maker makes the devices of a plan and says what it had to do.
type maker struct {
	Plan
	sysctls *Sysctls
	known   map[string]made // what an earlier run made, by name
	changes []string        // in words
}

// made is by what a device is known again that was renamed: its random address makes sure that the
// index does not belong to another one by now.
type made struct {
	index int
	mac   [6]byte
}

func madeOf(l nl.Link) made {
	m := made{index: l.Attrs().Index}
	copy(m.mac[:], l.Attrs().HardwareAddr)
	return m
}

func (m *maker) changed(format string, args ...any) {
	m.changes = append(m.changes, fmt.Sprintf(format, args...))
}

func (m *maker) ensure() (Devices, error) {
	var d Devices
	known := map[string]made{}
	know := func(l nl.Link) int {
		known[l.Attrs().Name] = madeOf(l)
		return l.Attrs().Index
	}
	host, peer, err := m.host()
	if err != nil {
		return d, fmt.Errorf("%s: %w", HostDevice, err)
	}
	d.Host, d.Net = know(host), know(peer)
	if m.Tunnel {
		vxlan, err := m.vxlan()
		if err != nil {
			return d, fmt.Errorf("%s: %w", VXLANDevice, err)
		}
		d.VXLAN = know(vxlan)
	} else if err := removeVXLAN(); err != nil {
		return d, fmt.Errorf("%s: %w", VXLANDevice, err)
	}
	if m.Health {
		health, peer, err := m.health()
		if err != nil {
			return d, fmt.Errorf("%s: %w", HealthDevice, err)
		}
		know(health)
		know(peer)
	} else if err := removeHealth(); err != nil {
		return d, fmt.Errorf("%s: %w", HealthDevice, err)
	}
	m.known = known
	return d, nil
}

// find returns the device of a name, nil when there is none. A device that had the name when it was
// made, and has another one now, gets it back.
func (m *maker) find(name string) (nl.Link, error) {
	link, err := byName(name)
	known, ok := m.known[name]
	if err != nil || link != nil || !ok {
		return link, err
	}
	link, err = nl.LinkByIndex(known.index)
	if _, gone := errors.AsType[nl.LinkNotFoundError](err); gone {
		return nil, nil
	}
	if err != nil || madeOf(link) != known {
		return nil, err
	}
	was := link.Attrs().Name
	err = nl.LinkSetName(link, name)
	if errors.Is(err, unix.EBUSY) { // kernels before 6.2 rename only what is down
		err = errors.Join(nl.LinkSetDown(link), nl.LinkSetName(link, name))
	}
	if err != nil {
		return nil, fmt.Errorf("rename from %s: %w", was, err)
	}
	m.changed("%s was called %s", name, was)
	return byName(name)
}

// pair returns a pair of devices of this namespace, made anew where one of them is missing or has
// another peer.
func (m *maker) pair(name, peerName string) (link, peer nl.Link, err error) {
	if link, err = m.find(name); err != nil {
		return nil, nil, err
	}
	if _, isVeth := link.(*nl.Veth); link != nil && !isVeth {
		return nil, nil, errors.New("there is a device of this name that is no veth: remove it")
	}
	if peer, err = m.find(peerName); err != nil {
		return nil, nil, err
	}
	if link != nil && (peer == nil || peer.Attrs().Index != link.Attrs().ParentIndex) {
		if err := nl.LinkDel(link); err != nil {
			return nil, nil, fmt.Errorf("replace, as %s is not its peer: %w", peerName, err)
		}
		link = nil
	}
	if link != nil {
		return link, peer, nil
	}
	mac, peerMAC, err := newMACs()
	if err != nil {
		return nil, nil, err
	}
	err = nl.LinkAdd(&nl.Veth{
		LinkAttrs:        nl.LinkAttrs{Name: name, HardwareAddr: mac, MTU: m.UnderlayMTU, TxQLen: 1000},
		PeerName:         peerName,
		PeerHardwareAddr: peerMAC,
	})
	if err != nil {
		return nil, nil, err
	}
	m.changed("made %s and %s", name, peerName)
	link, err1 := nl.LinkByName(name)
	peer, err2 := nl.LinkByName(peerName)
	return link, peer, errors.Join(err1, err2)
}

func (m *maker) host() (link, peer nl.Link, err error) {
	if link, peer, err = m.pair(HostDevice, NetDevice); err != nil {
		return nil, nil, err
	}
	for _, l := range []nl.Link{peer, link} {
		if err := m.sysctls.device(l.Attrs().Name, m.IPv4, m.IPv6); err != nil {
			return nil, nil, err
		}
		if err := m.ready(l); err != nil {
			return nil, nil, err
		}
	}
	return link, peer, m.addrs(link, m.Addrs...)
}

// health makes the pair of the health endpoint. Its other end is for the agent alone: the kernel has no
// address there and asks and answers nothing.
func (m *maker) health() (link, peer nl.Link, err error) {
	if link, peer, err = m.pair(HealthDevice, HealthPeer); err != nil {
		return nil, nil, err
	}
	if err := m.sysctls.silent(HealthPeer); err != nil {
		return nil, nil, err
	}
	if peer.Attrs().RawFlags&unix.IFF_NOARP == 0 {
		if err := nl.LinkSetARPOff(peer); err != nil {
			return nil, nil, err
		}
	}
	if err := m.sysctls.device(HealthDevice, m.IPv4, m.IPv6); err != nil {
		return nil, nil, err
	}
	return link, peer, errors.Join(m.ready(peer), m.ready(link))
}

// removeHealth removes the health endpoint of an agent that had one.
func removeHealth() error {
	link, err := byName(HealthDevice)
	if link == nil {
		return err
	}
	if _, ok := link.(*nl.Veth); !ok {
		return nil // of this name, but none of ours
	}
	return nl.LinkDel(link)
}

// addrs makes the given addresses, the invalid ones left out, the only global ones of link.
func (m *maker) addrs(link nl.Link, addrs ...netip.Addr) error {
	want := map[netip.Addr]bool{}
	for _, a := range addrs {
		if a.IsValid() {
			want[a] = true
		}
	}
	have, err := nl.AddrList(link, nl.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, h := range have {
		a := fromIP(h.IP)
		switch {
		case a.IsLinkLocalUnicast():
		case want[a]:
			delete(want, a)
		default:
			if err := nl.AddrDel(link, &h); err != nil {
				return fmt.Errorf("remove address %s: %w", a, err)
			}
			m.changed("took %s off %s", a, link.Attrs().Name)
		}
	}
	for a := range want {
		addr := &nl.Addr{IPNet: toIPNet(netip.PrefixFrom(a, a.BitLen()))}
		if a.Is4() {
			addr.Scope = int(nl.SCOPE_LINK)
		} else {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := nl.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
		m.changed("gave %s to %s", a, link.Attrs().Name)
	}
	return nil
}

func (m *maker) vxlan() (nl.Link, error) {
	link, err := m.find(VXLANDevice)
	if err != nil {
		return nil, err
	}
	if v, ok := link.(*nl.Vxlan); link != nil && (!ok || !v.FlowBased || v.Port != int(m.TunnelPort)) {
		if err := nl.LinkDel(link); err != nil {
			return nil, fmt.Errorf("replace: %w", err)
		}
		link = nil
	}
	if link == nil {
		mac, _, err := newMACs()
		if err != nil {
			return nil, err
		}
		err = nl.LinkAdd(&nl.Vxlan{
			LinkAttrs: nl.LinkAttrs{Name: VXLANDevice, HardwareAddr: mac, MTU: m.UnderlayMTU, TxQLen: 1000},
			FlowBased: true,
			Port:      int(m.TunnelPort),
		})
		if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("UDP port %d is taken by another VXLAN device (set tunnelPort): %w", m.TunnelPort, err)
		}
		if err != nil {
			return nil, err
		}
		m.changed("made %s", VXLANDevice)
		if link, err = nl.LinkByName(VXLANDevice); err != nil {
			return nil, err
		}
	}
	// There is nobody to ask for a link address behind a tunnel: the programs set where to.
	if link.Attrs().RawFlags&unix.IFF_NOARP == 0 {
		if err := nl.LinkSetARPOff(link); err != nil {
			return nil, err
		}
	}
	if err := m.sysctls.device(VXLANDevice, m.IPv4, m.IPv6); err != nil {
		return nil, err
	}
	return link, m.ready(link)
}

// removeVXLAN removes the tunnel device of an agent that had one.
func removeVXLAN() error {
	link, err := byName(VXLANDevice)
	if link == nil {
		return err
	}
	if v, ok := link.(*nl.Vxlan); !ok || !v.FlowBased {
		return nil // of this name, but none of ours
	}
	return nl.LinkDel(link)
}

// ready gives link the MTU of the plan and brings it up, each only if it is not so.
func (m *maker) ready(link nl.Link) error {
	name := link.Attrs().Name
	if m.UnderlayMTU > 0 && link.Attrs().MTU != m.UnderlayMTU {
		if err := nl.LinkSetMTU(link, m.UnderlayMTU); err != nil {
			return fmt.Errorf("mtu %d: %w", m.UnderlayMTU, err)
		}
		m.changed("gave %s MTU %d", name, m.UnderlayMTU)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := nl.LinkSetUp(link); err != nil {
			return fmt.Errorf("up: %w", err)
		}
		m.changed("brought %s up", name)
	}
	return nil
}

// byName returns nil without an error when there is no such device.
func byName(name string) (nl.Link, error) {
	link, err := nl.LinkByName(name)
	if _, missing := errors.AsType[nl.LinkNotFoundError](err); missing {
		return nil, nil
	}
	return link, err
}

// newMACs returns two random unicast, locally administered addresses. Setting an address
// explicitly keeps udev from changing it later.
func newMACs() (a, b net.HardwareAddr, err error) {
	buf := make([]byte, 12)
	if _, err := rand.Read(buf); err != nil {
		return nil, nil, err
	}
	buf[0], buf[6] = buf[0]&^1|2, buf[6]&^1|2
	return buf[:6:6], buf[6:], nil
}

// Ours says whether Lash makes devices of a name.
func Ours(name string) bool { return ours(name) }

func ours(name string) bool {
	return name == HostDevice || name == NetDevice || name == VXLANDevice || name == HealthPeer || isEndpointDevice(name)
}

// isEndpointDevice knows the host sides of pods and of the health endpoint.
func isEndpointDevice(name string) bool { return name == HealthDevice || isPodDevice(name) }

// isPodDevice knows lxc and twelve hexadecimal digits, so that containers of LXC are not ours.
func isPodDevice(name string) bool {
	hex, ok := strings.CutPrefix(name, PodPrefix)
	return ok && len(hex) == 12 && strings.Trim(hex, "0123456789abcdef") == ""
}

// Clean removes all devices that Lash makes; addresses, routes and neighbours go with them.
func Clean() error {
	links, err := nl.LinkList()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		name := l.Attrs().Name
		if name == NetDevice || name == HealthPeer || !ours(name) {
			continue // the former go with their peers
		}
		if err := nl.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("delete %s: %w", name, err))
		}
	}
	return errors.Join(append(errs, cleanRoutes())...)
}
