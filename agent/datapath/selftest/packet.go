// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Numbers of protocols, and lengths of headers in bytes.
const (
	icmp4, tcp, udp, icmp6 = 1, 6, 17, 58

	ethLen, ip4Len, ip6Len, tcpLen, udpLen, icmpLen = 14, 20, 40, 20, 8, 8
)

// TCP flags.
const (
	fin, syn, ack = 0x01, 0x02, 0x10
)

// packet is what a canned packet says; Ethernet addresses are fixed.
type packet struct {
	src, dst netip.AddrPort // of an echo request, the source port is its id
	proto    byte
	flags    byte // TCP
	ttl      byte // 0: 64
	icmpType byte
	noFrag   bool
	payload  int // bytes
}

// bytes is the frame, with right checksums.
func (p packet) bytes() []byte {
	l4 := make([]byte, p.payload+map[byte]int{tcp: tcpLen, udp: udpLen, icmp4: icmpLen, icmp6: icmpLen}[p.proto])
	at := 0 // of the checksum
	switch p.proto {
	case tcp:
		binary.BigEndian.PutUint16(l4, p.src.Port())
		binary.BigEndian.PutUint16(l4[2:], p.dst.Port())
		binary.BigEndian.PutUint32(l4[4:], 7)
		l4[12], l4[13] = tcpLen/4<<4, p.flags
		binary.BigEndian.PutUint16(l4[14:], 1000)
		at = 16
	case udp:
		binary.BigEndian.PutUint16(l4, p.src.Port())
		binary.BigEndian.PutUint16(l4[2:], p.dst.Port())
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
		at = 6
	default:
		l4[0] = p.icmpType
		binary.BigEndian.PutUint16(l4[4:], p.src.Port())
		at = 2
	}
	ttl := p.ttl
	if ttl == 0 {
		ttl = 64
	}
	out := make([]byte, ethLen, ethLen+ip6Len+len(l4))
	copy(out, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2})
	if p.src.Addr().Is4() {
		out[12] = 8 // 0x0800
		ip := make([]byte, ip4Len)
		ip[0], ip[8], ip[9] = 0x45, ttl, p.proto
		binary.BigEndian.PutUint16(ip[2:], uint16(ip4Len+len(l4)))
		if p.noFrag {
			ip[6] = 0x40
		}
		copy(ip[12:], p.src.Addr().AsSlice())
		copy(ip[16:], p.dst.Addr().AsSlice())
		binary.BigEndian.PutUint16(ip[10:], ^fold(add(0, ip)))
		out = append(out, ip...)
	} else {
		out[12], out[13] = 0x86, 0xdd
		ip := make([]byte, ip6Len)
		ip[0], ip[6], ip[7] = 0x60, p.proto, ttl
		binary.BigEndian.PutUint16(ip[4:], uint16(len(l4)))
		copy(ip[8:], p.src.Addr().AsSlice())
		copy(ip[24:], p.dst.Addr().AsSlice())
		out = append(out, ip...)
	}
	binary.BigEndian.PutUint16(l4[at:], ^fold(add(pseudo(p.src.Addr(), p.dst.Addr(), p.proto, len(l4)), l4)))
	return append(out, l4...)
}

// add adds bytes to an Internet checksum (RFC 1071) that is not folded yet.
func add(sum uint32, b []byte) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// pseudo is the part of a transport checksum that comes from the IP header; ICMP over IPv4 has none.
func pseudo(src, dst netip.Addr, proto byte, length int) uint32 {
	if proto == icmp4 {
		return 0
	}
	return add(add(uint32(proto)+uint32(length), src.AsSlice()), dst.AsSlice())
}

// seen is what a frame says.
type seen struct {
	packet
	dstMAC [6]byte
	mtu    uint16 // of an ICMP error
}

var errShort = errors.New("cut off")

// parse reads a frame and holds it to its checksums.
func parse(b []byte) (seen, error) {
	var s seen
	if len(b) < ethLen+ip4Len {
		return s, errShort
	}
	copy(s.dstMAC[:], b)
	var src, dst netip.Addr
	var l4 []byte
	switch {
	case b[12] == 8 && b[13] == 0:
		ip := b[ethLen : ethLen+ip4Len]
		total := int(binary.BigEndian.Uint16(ip[2:]))
		if total < ip4Len || len(b) < ethLen+total {
			return s, errShort
		}
		if fold(add(0, ip)) != 0xffff {
			return s, errors.New("wrong checksum of the IPv4 header")
		}
		src, dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
		s.ttl, s.proto, l4 = ip[8], ip[9], b[ethLen+ip4Len:ethLen+total]
	case len(b) >= ethLen+ip6Len:
		ip := b[ethLen : ethLen+ip6Len]
		total := int(binary.BigEndian.Uint16(ip[4:]))
		if len(b) < ethLen+ip6Len+total {
			return s, errShort
		}
		src, dst = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
		s.ttl, s.proto, l4 = ip[7], ip[6], b[ethLen+ip6Len:ethLen+ip6Len+total]
	default:
		return s, errShort
	}
	if len(l4) < icmpLen || (s.proto == tcp && len(l4) < tcpLen) {
		return s, errShort
	}
	if fold(add(pseudo(src, dst, s.proto, len(l4)), l4)) != 0xffff {
		return s, fmt.Errorf("wrong checksum of protocol %d", s.proto)
	}
	var sport, dport uint16
	switch s.proto {
	case tcp, udp:
		sport, dport = binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
		if s.proto == tcp {
			s.flags = l4[13]
		}
	default:
		s.icmpType, sport, s.mtu = l4[0], binary.BigEndian.Uint16(l4[4:]), binary.BigEndian.Uint16(l4[6:])
	}
	s.src, s.dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return s, nil
}
