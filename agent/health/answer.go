// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/net/bpf"

	"lash.internal/lash/agent/state"
)

// Port is the UDP port of the endpoint at which the probe asks.
const Port = 4240

// maxPings is how many pings a second are answered: whoever may send them shares the agent's CPU time.
const maxPings = 1000

// Offsets and numbers of the headers that are read here.
const (
	ethLen     = 14
	ip4Len     = 20
	ip6Len     = 40
	etherIPv4  = 0x0800
	etherIPv6  = 0x86dd
	protoICMP  = 1
	protoUDP   = 17
	protoICMP6 = 58
	answerTTL  = 64
	maxFrame   = 16 << 10
)

// Self is who the endpoint is.
type Self struct {
	MAC        [6]byte
	IPv4, IPv6 netip.Addr // invalid: none
}

// NewSelf is the endpoint behind a device, with at most one address a family. Its MAC address differs
// from the device's, of which the kernel would take packets.
func NewSelf(peer state.OwnDevice, addrs []netip.Addr) Self {
	s := Self{MAC: peer.MAC}
	s.MAC[5] ^= 1
	for _, a := range addrs {
		if a.Is4() {
			s.IPv4 = a
		} else {
			s.IPv6 = a
		}
	}
	return s
}

// Row is the endpoint as the loops that program the kernel want it.
func (s Self) Row(number uint16, device state.OwnDevice) state.Endpoint {
	return state.Endpoint{
		ID: number, IfName: device.Name, IfIndex: device.Index, MAC: s.MAC[:], NodeMAC: slices.Clone(device.MAC[:]),
		IPv4: s.IPv4, IPv6: s.IPv6, Identity: state.IdentityHealth, Labels: []string{"reserved:health"}, State: state.EndpointReady,
	}
}

// Questions is the filter for what the probe sends: UDP of one of the node's own addresses. It has a
// socket of its own, which no packets of others can fill.
func Questions(of []netip.Addr) []bpf.Instruction {
	out := []bpf.Instruction{bpf.LoadAbsolute{Off: 12, Size: 2}}
	for _, a := range of {
		typ, next, src := uint32(etherIPv4), uint32(ethLen+9), uint32(ethLen+12)
		if a.Is6() {
			typ, next, src = etherIPv6, ethLen+6, ethLen+8
		}
		var words []bpf.Instruction
		for b := a.AsSlice(); len(b) > 0; b, src = b[4:], src+4 {
			words = append(words, bpf.LoadAbsolute{Off: src, Size: 4}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(b)})
		}
		test := slices.Concat([]bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: typ}, bpf.LoadAbsolute{Off: next, Size: 1}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoUDP},
		}, words, []bpf.Instruction{bpf.RetConstant{Val: maxFrame}, bpf.LoadAbsolute{Off: 12, Size: 2}})
		for i, ins := range test { // what is not so leads to the next address
			if j, ok := ins.(bpf.JumpIf); ok {
				j.SkipTrue = uint8(len(test) - i - 2)
				test[i] = j
			}
		}
		out = append(out, test...)
	}
	return append(out, bpf.RetConstant{})
}

// Pings is the filter for ICMP of both families.
func Pings() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: etherIPv4, SkipTrue: 2},
		bpf.LoadAbsolute{Off: ethLen + 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoICMP, SkipTrue: 4, SkipFalse: 3},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: etherIPv6, SkipTrue: 2},
		bpf.LoadAbsolute{Off: ethLen + 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoICMP6, SkipTrue: 1},
		bpf.RetConstant{},
		bpf.RetConstant{Val: maxFrame},
	}
}

// Serve answers what conn brings, one frame a read, until ctx ends or conn breaks.
func (s Self) Serve(ctx context.Context, conn io.ReadWriteCloser) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	buf := make([]byte, maxFrame)
	var second int64
	var answered int
	for {
		n, err := conn.Read(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		reply, ping, ok := s.answer(buf[:n])
		if !ok {
			continue
		}
		if ping {
			if now := time.Now().Unix(); now != second {
				second, answered = now, 0
			}
			if answered++; answered > maxPings {
				continue
			}
		}
		if _, err := conn.Write(reply); err != nil && ctx.Err() == nil {
			return fmt.Errorf("send: %w", err)
		}
	}
}

// answer makes the answer to a frame, in its place: to a UDP datagram to Port what came, to an echo
// request its reply. Others have none, nor have fragments and packets with options.
func (s Self) answer(frame []byte) (reply []byte, ping, ok bool) {
	if len(frame) < ethLen || [6]byte(frame[:6]) != s.MAC {
		return nil, false, false
	}
	var l4 []byte
	header := ethLen
	switch packet := frame[ethLen:]; binary.BigEndian.Uint16(frame[12:]) {
	case etherIPv4:
		l4, ping, ok = s.answer4(packet)
		header += ip4Len
	case etherIPv6:
		l4, ping, ok = s.answer6(packet)
		header += ip6Len
	}
	if !ok {
		return nil, false, false
	}
	swap(frame[:6], frame[6:12])
	return frame[:header+len(l4)], ping, true
}

func (s Self) answer4(p []byte) (l4 []byte, ping, ok bool) {
	if len(p) < ip4Len || p[0] != 4<<4|ip4Len/4 || !s.IPv4.Is4() || [4]byte(p[16:20]) != s.IPv4.As4() {
		return nil, false, false
	}
	total := int(binary.BigEndian.Uint16(p[2:]))
	if fragment := binary.BigEndian.Uint16(p[6:]) &^ 0x4000; total < ip4Len || total > len(p) || fragment != 0 {
		return nil, false, false
	}
	l4 = p[ip4Len:total]
	swap(p[12:16], p[16:20])
	p[8] = answerTTL
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], checksum(sum(0, p[:ip4Len])))
	switch {
	case p[9] == protoUDP && datagram(l4):
		binary.BigEndian.PutUint16(l4[6:], nonzero(checksum(sum(pseudo(p[12:20], len(l4), protoUDP), l4))))
		return l4, false, true
	case p[9] == protoICMP && len(l4) >= 8 && l4[0] == 8 && l4[1] == 0:
		l4[0], l4[2], l4[3] = 0, 0, 0
		binary.BigEndian.PutUint16(l4[2:], checksum(sum(0, l4)))
		return l4, true, true
	}
	return nil, false, false
}

func (s Self) answer6(p []byte) (l4 []byte, ping, ok bool) {
	if len(p) < ip6Len || p[0]>>4 != 6 || !s.IPv6.Is6() || [16]byte(p[24:40]) != s.IPv6.As16() {
		return nil, false, false
	}
	size := int(binary.BigEndian.Uint16(p[4:]))
	if ip6Len+size > len(p) {
		return nil, false, false
	}
	l4 = p[ip6Len : ip6Len+size]
	swap(p[8:24], p[24:40])
	p[7] = answerTTL
	switch {
	case p[6] == protoUDP && datagram(l4):
		binary.BigEndian.PutUint16(l4[6:], nonzero(checksum(sum(pseudo(p[8:40], size, protoUDP), l4))))
		return l4, false, true
	case p[6] == protoICMP6 && size >= 8 && l4[0] == 128 && l4[1] == 0:
		l4[0], l4[2], l4[3] = 129, 0, 0
		binary.BigEndian.PutUint16(l4[2:], checksum(sum(pseudo(p[8:40], size, protoICMP6), l4)))
		return l4, true, true
	}
	return nil, false, false
}

// datagram turns a UDP datagram to Port round, without its checksum. What came may have none yet: on the
// way through a pair of devices nobody makes it.
func datagram(l4 []byte) bool {
	if len(l4) < 8 || int(binary.BigEndian.Uint16(l4[4:])) != len(l4) || binary.BigEndian.Uint16(l4[2:]) != Port {
		return false
	}
	swap(l4[0:2], l4[2:4])
	l4[6], l4[7] = 0, 0
	return true
}

func swap(a, b []byte) {
	for i := range a {
		a[i], b[i] = b[i], a[i]
	}
}

// sum adds words in network order, as the checksum of RFC 1071 wants them.
func sum(acc uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		acc += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		acc += uint32(b[0]) << 8
	}
	return acc
}

// pseudo is the sum of the header that UDP and ICMPv6 have in their checksums beside themselves.
func pseudo(addrs []byte, size, proto int) uint32 { return sum(uint32(size)+uint32(proto), addrs) }

func checksum(acc uint32) uint16 {
	for acc > 0xffff {
		acc = acc>>16 + acc&0xffff
	}
	return ^uint16(acc)
}

// nonzero is the checksum of a datagram: 0 means that it has none.
func nonzero(sum uint16) uint16 {
	if sum == 0 {
		return 0xffff
	}
	return sum
}
