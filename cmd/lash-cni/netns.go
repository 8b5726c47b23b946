// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/cni/wire"
)

// podNS is the pod's network namespace: a handle, a netlink socket inside it and its cookie.
type podNS struct {
	ns     netns.NsHandle
	nl     *netlink.Handle
	cookie uint64
}

func openNetns(path string) (*podNS, error) {
	if path == "" {
		return nil, errors.New("no network namespace given")
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	p := &podNS{ns: ns}
	if p.cookie, err = cookieOf(ns); err != nil {
		p.close()
		return nil, err
	}
	if p.nl, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE); err != nil {
		p.close()
		return nil, fmt.Errorf("netlink in %s: %w", path, err)
	}
	return p, nil
}

func (p *podNS) close() {
	if p.nl != nil {
		p.nl.Close()
	}
	_ = p.ns.Close()
}

// cookieOf asks a socket of the namespace for the number by which programs know it.
func cookieOf(ns netns.NsHandle) (uint64, error) {
	type answer struct {
		cookie uint64
		err    error
	}
	ch := make(chan answer)
	go func() {
		// The thread is not unlocked: it stays in the pod's namespace and ends with the goroutine.
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			ch <- answer{err: fmt.Errorf("enter network namespace: %w", err)}
			return
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			ch <- answer{err: fmt.Errorf("socket in network namespace: %w", err)}
			return
		}
		defer func() { _ = unix.Close(fd) }()
		c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if err != nil {
			err = fmt.Errorf("cookie of network namespace: %w", err)
		}
		ch <- answer{c, err}
	}()
	a := <-ch
	return a.cookie, a.err
}

// setup moves the pod's end in and configures it. Done twice it changes nothing.
func (p *podNS) setup(name string, itf wire.Interface) error {
	link, err := p.nl.LinkByName(name)
	if err == nil && link.Attrs().HardwareAddr.String() != itf.PodMAC {
		// Left by an ADD whose endpoint the agent no longer has.
		if err := p.nl.LinkDel(link); err != nil {
			return fmt.Errorf("remove stale interface: %w", err)
		}
		err = netlink.LinkNotFoundError{}
	}
	if err != nil {
		if link, err = p.moveIn(name, itf.PeerName); err != nil {
			return err
		}
	}
	if lo, err := p.nl.LinkByName("lo"); err == nil {
		if err := p.nl.LinkSetUp(lo); err != nil {
			return fmt.Errorf("loopback up: %w", err)
		}
	}
	for _, a := range itf.Addresses {
		if err := p.nl.AddrReplace(link, &netlink.Addr{IPNet: ipnet(a.IP), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("address %s: %w", a.IP, err)
		}
	}
	if err := p.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("interface up: %w", err)
	}
	hostMAC, err := net.ParseMAC(itf.HostMAC)
	if err != nil {
		return fmt.Errorf("address of the node's end: %w", err)
	}
	for _, a := range itf.Addresses {
		if err := p.routes(link.Attrs().Index, a, hostMAC, itf.RouteMTU); err != nil {
			return err
		}
	}
	return nil
}

func (p *podNS) moveIn(name, peer string) (netlink.Link, error) {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink on the node: %w", err)
	}
	defer host.Close()
	link, err := host.LinkByName(peer)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", peer, err)
	}
	if err := host.LinkSetNsFd(link, int(p.ns)); err != nil {
		return nil, fmt.Errorf("move %s into the pod: %w", peer, err)
	}
	moved, err := p.nl.LinkByName(peer)
	if err != nil {
		return nil, fmt.Errorf("interface %s in the pod: %w", peer, err)
	}
	if err := p.nl.LinkSetName(moved, name); err != nil {
		return nil, fmt.Errorf("rename %s to %s: %w", peer, name, err)
	}
	link, err = p.nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	return link, nil
}

// routes makes the router the only neighbour: a permanent entry, a route to it, all else through
// it.
func (p *podNS) routes(index int, a wire.Address, hostMAC net.HardwareAddr, mtu int) error {
	family := unix.AF_INET
	if a.IP.Is6() {
		family = unix.AF_INET6
	}
	if err := p.nl.NeighSet(&netlink.Neigh{
		LinkIndex: index, Family: family, State: netlink.NUD_PERMANENT,
		IP: a.Gateway.AsSlice(), HardwareAddr: hostMAC,
	}); err != nil {
		return fmt.Errorf("neighbour %s: %w", a.Gateway, err)
	}
	if err := p.nl.RouteReplace(&netlink.Route{LinkIndex: index, Dst: ipnet(a.Gateway), Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("route to %s: %w", a.Gateway, err)
	}
	dst := defaultNet(a.IP)
	if err := p.nl.RouteReplace(&netlink.Route{LinkIndex: index, Dst: &dst, Gw: a.Gateway.AsSlice(), Src: a.IP.AsSlice(), MTU: mtu}); err != nil {
		return fmt.Errorf("default route via %s: %w", a.Gateway, err)
	}
	return nil
}

func ipnet(a netip.Addr) *net.IPNet {
	n := hostNet(a)
	return &n
}

// remove deletes the pod's end, and with it the pair.
func (p *podNS) remove(name string) error {
	link, err := p.nl.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.nl.LinkDel(link)
}

// verify compares the pod's side with what setup makes.
func (p *podNS) verify(name string, itf wire.Interface) error {
	link, err := p.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s in the pod: %w", name, err)
	}
	if got := link.Attrs().HardwareAddr.String(); got != itf.PodMAC {
		return fmt.Errorf("interface %s has MAC %s, not %s", name, got, itf.PodMAC)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("interface %s is down", name)
	}
	addrs, err := p.nl.AddrList(link, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", name, err)
	}
	routes, err := p.nl.RouteList(link, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("routes of %s: %w", name, err)
	}
	neighs, err := p.nl.NeighList(link.Attrs().Index, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("neighbours of %s: %w", name, err)
	}
	for _, a := range itf.Addresses {
		if !hasAddr(addrs, a.IP) {
			return fmt.Errorf("interface %s lacks address %s", name, a.IP)
		}
		if !hasDefault(routes, a.Gateway) {
			return fmt.Errorf("interface %s lacks the default route via %s", name, a.Gateway)
		}
		if !hasNeigh(neighs, a.Gateway, itf.HostMAC) {
			return fmt.Errorf("interface %s lacks the neighbour %s at %s", name, a.Gateway, itf.HostMAC)
		}
	}
	return nil
}

func hasAddr(list []netlink.Addr, a netip.Addr) bool {
	for _, l := range list {
		if l.IP.Equal(a.AsSlice()) {
			return true
		}
	}
	return false
}

func hasDefault(list []netlink.Route, gw netip.Addr) bool {
	for _, r := range list {
		ones := 0
		if r.Dst != nil {
			ones, _ = r.Dst.Mask.Size()
		}
		if ones == 0 && r.Gw.Equal(gw.AsSlice()) {
			return true
		}
	}
	return false
}

func hasNeigh(list []netlink.Neigh, gw netip.Addr, mac string) bool {
	for _, n := range list {
		if n.IP.Equal(gw.AsSlice()) && n.HardwareAddr.String() == mac && n.State&netlink.NUD_PERMANENT != 0 {
			return true
		}
	}
	return false
}
