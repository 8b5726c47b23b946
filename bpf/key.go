// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
)

// cidrPrefix is the part of a CidrKey that stands before the address and always matches in full.
const cidrPrefix = 32

// IP returns an address as the maps have it: 16 bytes, IPv4 as ::ffff:a.b.c.d. The zero Addr gives
// zeros.
func IP(a netip.Addr) [16]byte {
	if !a.IsValid() {
		return [16]byte{}
	}
	return a.As16()
}

// FromIP is the inverse of IP: IPv4 for mapped addresses, the zero Addr for zeros.
func FromIP(ip [16]byte) netip.Addr {
	if ip == [16]byte{} {
		return netip.Addr{}
	}
	return netip.AddrFrom16(ip).Unmap()
}

// IP4 returns an IPv4 address as a word in network order, as in Ct4Key.
func IP4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

// FromIP4 is the inverse of IP4.
func FromIP4(w uint32) netip.Addr {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], w)
	return netip.AddrFrom4(b)
}

// Port converts a port between host and network order; it is its own inverse.
func Port(p uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], p)
	return binary.NativeEndian.Uint16(b[:])
}

// CIDR returns the key of map cidr for a prefix.
func CIDR(p netip.Prefix) CidrKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return CidrKey{Plen: uint32(cidrPrefix + bits), Ip: IP(p.Masked().Addr())}
}

// FromCIDR is the inverse of CIDR.
func FromCIDR(k CidrKey) netip.Prefix {
	bits := int(k.Plen) - cidrPrefix
	a := netip.AddrFrom16(k.Ip)
	if a.Is4In6() {
		a, bits = a.Unmap(), bits-96
	}
	return netip.PrefixFrom(a, bits)
}
