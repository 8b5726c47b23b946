// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"lash.internal/lash/bpf"
)

// TestEncapsulated looks at what pods of one node send to another through the tunnel: the programs
// write the outer headers, and what the device does where they cannot is the same on the wire.
func TestEncapsulated(t *testing.T) {
	f := newFabric(t, options{nodes: 2})
	f.serveAll()
	a, b := f.nodes[0], f.nodes[1]
	from, to := a.pods[0], b.pods[0]
	wire := b.listen("eth0")
	send := func(v6 bool, ecn int) []byte {
		t.Helper()
		if err := from.sendECN(to.addr(v6), ecn); err != nil {
			t.Fatalf("%s: %v\n%s", family(v6), err, f.drops())
		}
		return b.outer(wire, from.addr(v6))
	}
	ports := map[uint16]bool{}
	for _, v6 := range []bool{false, true} {
		for ecn, want := range []byte{0, 1, 2, 2} {
			p := send(v6, ecn)
			if p[1] != want {
				t.Errorf("%s: congestion bits %d become %d outside, want %d", family(v6), ecn, p[1], want)
			}
			ports[binary.BigEndian.Uint16(p[20:])] = true
			checkOuter(t, p, a, b, from)
		}
	}
	if len(ports) < 2 {
		t.Errorf("all flows have one outer source port: %v", ports)
	}
	if n := a.sent("cilium_vxlan"); n != 0 {
		t.Errorf("the device of the tunnel has sent %d packets", n)
	}

	// A node that is reached by IPv6 has the device do it.
	a.put("vtep", uint32(b.id), bpf.Vtep{Ip: bpf.IP(b.ip6())})
	for _, v6 := range []bool{false, true} {
		if _, err := from.udp(to.addr(v6), echoPort, 1000); err != nil {
			t.Errorf("%s over IPv6: %v\n%s", family(v6), err, f.drops())
		}
	}
	if a.sent("cilium_vxlan") == 0 {
		t.Error("the device of the tunnel has sent nothing over IPv6")
	}
}

// checkOuter compares the outer headers with what the tunnel needs (RFC 7348).
func checkOuter(t *testing.T, p []byte, a, b *node, from *pod) {
	t.Helper()
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	if sum != 0xffff {
		t.Errorf("the outer checksum is wrong: % x", p[:20])
	}
	src, dst := netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
	if src != a.ip4() || dst != b.ip4() || p[8] != 64 || p[6]&0x40 != 0 {
		t.Errorf("outer header from %s to %s, TTL %d, flags %#x", src, dst, p[8], p[6])
	}
	total, udp := int(binary.BigEndian.Uint16(p[2:])), int(binary.BigEndian.Uint16(p[24:]))
	if total != len(p) || udp != total-20 || p[26] != 0 || p[27] != 0 {
		t.Errorf("%d bytes: outer length %d, UDP length %d, UDP checksum % x", len(p), total, udp, p[26:28])
	}
	if id := binary.BigEndian.Uint32(p[32:]) >> 8; p[28] != 8 || id != uint32(1000+from.id) {
		t.Errorf("flags %#x, network id %d, want %d", p[28], id, 1000+from.id)
	}
}

// sendECN sends one datagram with congestion bits to the echo server and waits for the answer.
func (n *namespace) sendECN(to netip.Addr, ecn int) error {
	return n.do(func() error {
		c, err := net.Dial("udp", netip.AddrPortFrom(to, echoPort).String())
		if err != nil {
			return err
		}
		defer c.Close()
		if to.Is4() {
			err = ipv4.NewConn(c).SetTOS(ecn)
		} else {
			err = ipv6.NewConn(c).SetTrafficClass(ecn)
		}
		if err != nil {
			return err
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 256))
		return err
	})
}

// listen receives every IPv4 packet that arrives on a device.
func (n *namespace) listen(dev string) int {
	n.t.Helper()
	fd := -1
	n.must(func() error {
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		proto := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_IP))
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(proto)); err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience.Seconds())}); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: i.Index})
	})
	n.t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// outer waits for a packet of the tunnel that carries one from an address, and returns it from its
// outer IPv4 header on.
func (n *namespace) outer(fd int, from netip.Addr) []byte {
	n.t.Helper()
	buf := make([]byte, 65536)
	for {
		k, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			n.t.Fatalf("no packet of the tunnel from %s: %v", from, err)
		}
		p := buf[:k]
		if k < 50+28 || p[9] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(p[22:]) != 8472 {
			continue
		}
		at := 50 + 12
		if from.Is6() {
			at = 50 + 8
		}
		if got, ok := netip.AddrFromSlice(p[at : at+from.BitLen()/8]); ok && got == from {
			return p
		}
	}
}

// sent is how many packets a device has sent, as proc(5) has it.
func (n *namespace) sent(dev string) (packets int) {
	n.t.Helper()
	n.must(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			name, counters, ok := strings.Cut(strings.TrimSpace(line), ":")
			if fields := strings.Fields(counters); ok && name == dev && len(fields) > 9 {
				packets, err = strconv.Atoi(fields[9])
				return err
			}
		}
		return fmt.Errorf("no device %s", dev)
	})
	return packets
}
