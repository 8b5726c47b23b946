// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
)

// Attributes and types of linux/rtnetlink.h that syscall names otherwise or lacks.
const (
	rtaMetrics = 8
	rtaxMTU    = 2
)

// route is one entry of the main or the local table.
type route struct {
	dst      netip.Prefix
	gateway  netip.Addr
	src      netip.Addr
	oif      int
	mtu      int
	priority uint32
	typ      byte
}

// runRoute finds the route that covers Target the way the kernel would without rules: longest
// prefix, then lowest metric.
func runRoute(p Probe, res *Result) error {
	dst, err := netip.ParseAddr(hostOf(p.Target))
	if err != nil {
		return fmt.Errorf("route needs an address: %w", err)
	}
	dst = dst.Unmap()
	family := syscall.AF_INET
	if dst.Is6() {
		family = syscall.AF_INET6
	}
	rib, err := syscall.NetlinkRIB(syscall.RTM_GETROUTE, family)
	if err != nil {
		return fmt.Errorf("read the routes: %w", err)
	}
	msgs, err := syscall.ParseNetlinkMessage(rib)
	if err != nil {
		return fmt.Errorf("read the routes: %w", err)
	}
	var best *route
	for _, m := range msgs {
		r, ok := parseRoute(m, dst.Is6())
		if !ok || !r.dst.Contains(dst) {
			continue
		}
		if best == nil || r.dst.Bits() > best.dst.Bits() || (r.dst.Bits() == best.dst.Bits() && r.priority < best.priority) {
			best = &r
		}
	}
	if best == nil {
		return fmt.Errorf("no route to %s: %w", dst, syscall.ENETUNREACH)
	}
	res.Answers = []string{best.String()}
	res.MTU = best.mtu
	return nil
}

func parseRoute(m syscall.NetlinkMessage, v6 bool) (route, bool) {
	if m.Header.Type != syscall.RTM_NEWROUTE || len(m.Data) < syscall.SizeofRtMsg {
		return route{}, false
	}
	bits, table, typ := int(m.Data[1]), m.Data[4], m.Data[7]
	if table != syscall.RT_TABLE_MAIN && table != syscall.RT_TABLE_LOCAL {
		return route{}, false
	}
	zero := netip.IPv4Unspecified()
	if v6 {
		zero = netip.IPv6Unspecified()
	}
	r := route{dst: netip.PrefixFrom(zero, bits), typ: typ}
	attrs, err := syscall.ParseNetlinkRouteAttr(&m)
	if err != nil {
		return route{}, false
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case syscall.RTA_DST:
			if ip, ok := netip.AddrFromSlice(a.Value); ok {
				r.dst = netip.PrefixFrom(ip, bits)
			}
		case syscall.RTA_GATEWAY:
			r.gateway, _ = netip.AddrFromSlice(a.Value)
		case syscall.RTA_PREFSRC:
			r.src, _ = netip.AddrFromSlice(a.Value)
		case syscall.RTA_OIF:
			r.oif = int(u32(a.Value))
		case syscall.RTA_PRIORITY:
			r.priority = u32(a.Value)
		case rtaMetrics:
			r.mtu = metric(a.Value, rtaxMTU)
		}
	}
	return r, true
}

func u32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// metric finds one value in the nested attribute RTA_METRICS.
func metric(b []byte, which uint16) int {
	for len(b) >= 8 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 8 || size > len(b) {
			return 0
		}
		if binary.NativeEndian.Uint16(b[2:]) == which {
			return int(u32(b[4:]))
		}
		b = b[(size+3)&^3:]
	}
	return 0
}

// String writes the route the way `ip route` does.
func (r route) String() string {
	s := r.dst.String()
	if r.dst.Bits() == 0 {
		s = "default"
	}
	switch r.typ {
	case syscall.RTN_LOCAL:
		s = "local " + s
	case syscall.RTN_BLACKHOLE:
		s = "blackhole " + s
	case syscall.RTN_UNREACHABLE:
		s = "unreachable " + s
	}
	if r.gateway.IsValid() {
		s += " via " + r.gateway.String()
	}
	if r.oif != 0 {
		name := strconv.Itoa(r.oif)
		if i, err := net.InterfaceByIndex(r.oif); err == nil {
			name = i.Name
		}
		s += " dev " + name
	}
	if r.src.IsValid() {
		s += " src " + r.src.String()
	}
	if r.mtu != 0 {
		s += " mtu " + strconv.Itoa(r.mtu)
	}
	return s
}
