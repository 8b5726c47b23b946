// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"lash.internal/lash/agent/api"
)

// IP protocol numbers.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132
)

// Summarize reads the headers of a packet as far as it was captured. It starts at the Ethernet
// header, or at the IP header when l3 is set. Bytes that are no packet give a short text, never
// an error: a monitor shows what there is.
func Summarize(b []byte, l3 bool) *api.PacketSummary {
	s := &api.PacketSummary{}
	if len(b) == 0 {
		return s
	}
	etherType := uint16(0)
	if !l3 {
		if len(b) < 14 {
			s.Text = fmt.Sprintf("[%d bytes]", len(b))
			return s
		}
		s.L2 = &api.Pair{Src: net.HardwareAddr(b[6:12]).String(), Dst: net.HardwareAddr(b[0:6]).String()}
		etherType = binary.BigEndian.Uint16(b[12:])
		b = b[14:]
	} else {
		etherType = map[byte]uint16{4: 0x0800, 6: 0x86dd}[b[0]>>4]
	}
	switch etherType {
	case 0x0800:
		ipv4Summary(s, b)
	case 0x86dd:
		ipv6Summary(s, b)
	case 0x0806:
		arpSummary(s, b)
	default:
		s.Text = fmt.Sprintf("ethertype 0x%04x", etherType)
	}
	return s
}

func ipv4Summary(s *api.PacketSummary, b []byte) {
	if len(b) < 20 || int(b[0]&0xf)*4 < 20 {
		s.Text = "truncated IPv4"
		return
	}
	src, _ := netip.AddrFromSlice(b[12:16])
	dst, _ := netip.AddrFromSlice(b[16:20])
	frag := binary.BigEndian.Uint16(b[6:])
	rest := b[min(int(b[0]&0xf)*4, len(b)):]
	if frag&0x1fff != 0 {
		l4Text(s, src, dst, b[9], nil, true)
		return
	}
	l4Text(s, src, dst, b[9], rest, false)
}

// ipv6Summary walks at most 6 extension headers.
func ipv6Summary(s *api.PacketSummary, b []byte) {
	if len(b) < 40 {
		s.Text = "truncated IPv6"
		return
	}
	src, _ := netip.AddrFromSlice(b[8:24])
	dst, _ := netip.AddrFromSlice(b[24:40])
	next, rest, later := b[6], b[40:], false
	for range 6 {
		switch next {
		case 0, 43, 60, 135: // hop-by-hop, routing, destination, mobility
			if len(rest) < 8 {
				l4Text(s, src, dst, next, nil, later)
				return
			}
			n := (int(rest[1]) + 1) * 8
			next, rest = rest[0], rest[min(n, len(rest)):]
			continue
		case 44: // fragment
			if len(rest) < 8 {
				l4Text(s, src, dst, next, nil, later)
				return
			}
			later = binary.BigEndian.Uint16(rest[2:])&0xfff8 != 0
			next, rest = rest[0], rest[8:]
			if later {
				rest = nil
			}
			continue
		}
		break
	}
	l4Text(s, src, dst, next, rest, later)
}

func l4Text(s *api.PacketSummary, src, dst netip.Addr, proto uint8, b []byte, laterFragment bool) {
	s.L3 = &api.Pair{Src: src.String(), Dst: dst.String()}
	s.Proto = protoName(proto)
	a, z := src.String(), dst.String()
	switch {
	case laterFragment:
		s.Info = "fragment"
	case (proto == protoTCP || proto == protoUDP || proto == protoSCTP) && len(b) >= 4:
		sp, dp := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		s.L4 = &api.Pair{Src: strconv.Itoa(int(sp)), Dst: strconv.Itoa(int(dp))}
		a, z = netip.AddrPortFrom(src, sp).String(), netip.AddrPortFrom(dst, dp).String()
		if proto == protoTCP && len(b) >= 14 {
			s.Info = tcpFlags(b[13])
		}
	case (proto == protoICMP || proto == protoICMPv6) && len(b) >= 2:
		s.Info = icmpName(proto == protoICMPv6, b[0], b[1])
	}
	s.Text = strings.TrimSpace(a + " -> " + z + " " + s.Proto + " " + s.Info)
}

func protoName(p uint8) string {
	switch p {
	case protoICMP:
		return "icmp"
	case protoTCP:
		return "tcp"
	case protoUDP:
		return "udp"
	case protoICMPv6:
		return "icmpv6"
	case protoSCTP:
		return "sctp"
	}
	return "proto " + strconv.Itoa(int(p))
}

func tcpFlags(f uint8) string {
	names := []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"}
	var out []string
	for i, n := range names {
		if f&(1<<i) != 0 {
			out = append(out, n)
		}
	}
	return strings.Join(out, ", ")
}

func icmpName(v6 bool, typ, code uint8) string {
	names := map[uint8]string{0: "EchoReply", 3: "DestinationUnreachable", 8: "EchoRequest", 11: "TimeExceeded"}
	if v6 {
		names = map[uint8]string{
			1: "DestinationUnreachable", 2: "PacketTooBig", 3: "TimeExceeded", 128: "EchoRequest", 129: "EchoReply",
			133: "RouterSolicitation", 134: "RouterAdvertisement", 135: "NeighborSolicitation", 136: "NeighborAdvertisement",
		}
	}
	n, ok := names[typ]
	if !ok {
		return fmt.Sprintf("type %d code %d", typ, code)
	}
	if code != 0 {
		n += fmt.Sprintf("(%d)", code)
	}
	return n
}

func arpSummary(s *api.PacketSummary, b []byte) {
	s.Proto = "arp"
	if len(b) < 28 {
		s.Text = "truncated ARP"
		return
	}
	src, _ := netip.AddrFromSlice(b[14:18])
	dst, _ := netip.AddrFromSlice(b[24:28])
	s.L3 = &api.Pair{Src: src.String(), Dst: dst.String()}
	s.Info = "request"
	if binary.BigEndian.Uint16(b[6:]) == 2 {
		s.Info = "reply"
	}
	s.Text = fmt.Sprintf("%s -> %s arp %s", src, dst, s.Info)
}
