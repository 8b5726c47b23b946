// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"lash.internal/lash/bpf"
)

func tunnelID(id uint32) func(*skb) { return func(s *skb) { s.Cb[0] = id } }

// TestSameNode: the first packet makes an entry and goes straight into the other pod; the reply
// confirms the flow.
func TestSameNode(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		r := b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.podB().ip}, tcp: syn(clientPrt, 80)}.bytes(t))
		b.expect("SYN", r, actRedirect, byPeer, podBDev)
		s := look(t, r.pkt)
		if s.ttl != 63 || s.dstMAC != b.podB().mac.String() || s.srcMAC != gatewayMAC.String() {
			t.Errorf("SYN left as %+v", s)
		}
		if n, c := b.entries(); n != 1 || c != 0 {
			t.Errorf("after the SYN %d new and %d confirmed entries, want 1 and 0", n, c)
		}
		b.at(b.podB())
		back := syn(80, clientPrt)
		back.ACK = true
		r = b.run("pod_from", packet{src: b.podB(), dst: host{ip: b.podA().ip}, tcp: back}.bytes(t))
		b.expect("SYN-ACK", r, actRedirect, byPeer, podBDev)
		if n, c := b.entries(); n != 0 || c != 1 {
			t.Errorf("after the SYN-ACK %d new and %d confirmed entries, want 0 and 1", n, c)
		}
		ev := b.events()
		if len(ev) != 2 || ev[0].Subtype != bpf.TraceToEndpoint || ev[0].Reason != bpf.ReasonNew ||
			ev[0].SrcId != idA || ev[0].DstId != idB || ev[1].Reason != bpf.ReasonReply {
			t.Errorf("events %+v", ev)
		}
		if b.metric(0, bpf.MetricEgress) != 2 || b.metric(0, bpf.MetricIngress) != 2 {
			t.Errorf("forwarded packets are not counted")
		}
	})
}

// TestPeerHere: an endpoint whose other end is in the node's own namespace, where the kernel hands
// nothing over in one go, gets packets of pods and of other nodes through its device, once.
func TestPeerHere(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		e := bpf.Ep{Identity: bpf.IdentityHealth, EpId: 9, Ifindex: podBDev, Flags: bpf.EPPeerHere}
		copy(e.Mac[:], b.podB().mac)
		copy(e.NodeMac[:], gatewayMAC)
		b.put("ep", uint32(podBDev), e)
		b.who(b.podB().ip, bpf.Addr{Kind: bpf.AddrLocalEP, Identity: bpf.IdentityHealth, Ifindex: podBDev, EpId: 9})
		r := b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.podB().ip}, udp: udp(clientPrt, 80)}.bytes(t))
		b.expect("of a pod", r, actRedirect, byHere, podBDev)
		if s := look(t, r.pkt); s.ttl != 63 || s.dstMAC != b.podB().mac.String() || s.srcMAC != gatewayMAC.String() {
			t.Errorf("left as %+v", s)
		}
		again := b.run("pod_to", r.pkt, func(s *skb) { s.Mark = r.mark })
		if again.act != actNext || again.rec.Helper != 0 {
			t.Errorf("at its device again: action %d, left by %d", again.act, again.rec.Helper)
		}
		r = b.run("ov_from", packet{src: host{ip: b.remotePod()}, dst: host{ip: b.podB().ip}, udp: udp(clientPrt, 80)}.bytes(t),
			tunnelID(idRemote))
		b.expect("of another node", r, actRedirect, byHere, podBDev)
		if ev := b.events(); len(ev) != 2 || ev[0].Subtype != bpf.TraceToEndpoint || ev[0].DstId != bpf.IdentityHealth {
			t.Errorf("events %+v", ev)
		}
		if b.metric(0, bpf.MetricEgress) != 1 || b.metric(0, bpf.MetricIngress) != 2 {
			t.Errorf("forwarded packets are not counted")
		}
	})
}

// TestSpoof: a pod sends with its own address or not at all.
func TestSpoof(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		r := b.run("pod_from", packet{src: host{b.podB().ip, b.podA().mac}, dst: host{ip: b.world()}, udp: udp(1, 2)}.bytes(t))
		b.expect("spoofed", r, actDrop, 0, 0)
		if n, c := b.entries(); n+c != 0 {
			t.Errorf("%d entries of a dropped packet", n+c)
		}
		if got := b.metric(bpf.DropInvalidSourceIP, bpf.MetricEgress); got != 1 {
			t.Errorf("counted %d drops, want 1", got)
		}
		if ev := b.events(); len(ev) != 1 || ev[0].Type != bpf.EvtDrop || ev[0].Subtype != bpf.DropInvalidSourceIP || ev[0].EpId != 1 {
			t.Errorf("events %+v", ev)
		}
	})
}

// TestTunnel: pods of other nodes are reached through the tunnel with the sender's identity, also
// those known by their range only; what comes out of it goes into the pod.
func TestTunnel(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		unheard := b.addr("10.0.2.99", "fd00:10:2::99")
		for _, dst := range []netip.Addr{b.remotePod(), unheard} {
			r := b.run("pod_from", packet{src: b.podA(), dst: host{ip: dst}, udp: udp(1000, 2000)}.bytes(t))
			b.expect("to "+dst.String(), r, actRedirect, byTunnel, vxlanDev)
			if r.rec.TunId != idA || bpf.FromIP(r.rec.TunIp) != netip.MustParseAddr("192.168.0.2") {
				t.Errorf("tunnel key %d to %s", r.rec.TunId, bpf.FromIP(r.rec.TunIp))
			}
			if look(t, r.pkt).src.Addr() != b.podA().ip {
				t.Errorf("%s: source was changed", dst)
			}
		}
		r := b.run("ov_from", packet{src: host{ip: b.remotePod()}, dst: host{ip: b.podA().ip}, udp: udp(2000, 1000)}.bytes(t), tunnelID(idRemote))
		b.expect("reply", r, actRedirect, byPeer, podADev)
		if s := look(t, r.pkt); s.ttl != 63 || s.dstMAC != b.podA().mac.String() {
			t.Errorf("reply left as %+v", s)
		}
		if _, c := b.entries(); c != 1 {
			t.Errorf("the reply did not confirm the flow")
		}
		r = b.run("ov_from", packet{src: host{ip: b.remotePod()}, dst: host{ip: b.podA().ip}, udp: udp(3, 4)}.bytes(t), tunnelID(bpf.IdentityHost))
		b.expect("host identity on the wire", r, actDrop, 0, 0)
		if b.metric(bpf.DropInvalidIdentity, bpf.MetricIngress) != 1 {
			t.Errorf("host identity on the wire is not counted")
		}
	})
}

// TestHostToRemote: what the host stack routes into the tunnel device gets a key there.
func TestHostToRemote(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		r := b.run("ov_to", packet{src: host{ip: b.router()}, dst: host{ip: b.remotePod()}, tcp: syn(1000, 80)}.bytes(t))
		b.expect("to the tunnel", r, actNext, byStack, 0)
		if r.rec.TunId != bpf.IdentityRemoteNode {
			t.Errorf("identity %d on the wire, want %d", r.rec.TunId, bpf.IdentityRemoteNode)
		}
		back := syn(80, 1000)
		back.ACK = true
		r = b.run("ov_from", packet{src: host{ip: b.remotePod()}, dst: host{ip: b.router()}, tcp: back}.bytes(t), tunnelID(idRemote))
		b.expect("reply", r, actNext, byStack, 0)
	})
}

// TestService: the packet goes to the backend, the reply comes from the Service, and the entry
// answers for both without asking the Service again.
func TestServicePath(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		b.service(1, 80, unix.IPPROTO_TCP, 1, netip.AddrPortFrom(b.podB().ip, 8080))
		r := b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.vip()}, tcp: syn(clientPrt, 80)}.bytes(t))
		b.expect("SYN", r, actRedirect, byPeer, podBDev)
		if s := look(t, r.pkt); s.dst != netip.AddrPortFrom(b.podB().ip, 8080) || s.src != netip.AddrPortFrom(b.podA().ip, clientPrt) {
			t.Errorf("SYN left as %s -> %s", s.src, s.dst)
		}
		b.service(1, 80, unix.IPPROTO_TCP, 1)
		ack := syn(clientPrt, 80)
		ack.SYN, ack.ACK = false, true
		r = b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.vip()}, tcp: ack}.bytes(t))
		b.expect("ACK", r, actRedirect, byPeer, podBDev)
		b.at(b.podB())
		back := syn(8080, clientPrt)
		back.ACK = true
		r = b.run("pod_from", packet{src: b.podB(), dst: host{ip: b.podA().ip}, tcp: back}.bytes(t))
		b.expect("SYN-ACK", r, actRedirect, byPeer, podBDev)
		if s := look(t, r.pkt); s.src != netip.AddrPortFrom(b.vip(), 80) || s.dst != netip.AddrPortFrom(b.podA().ip, clientPrt) {
			t.Errorf("SYN-ACK left as %s -> %s", s.src, s.dst)
		}
		if n, c := b.entries(); n != 0 || c != 2 {
			t.Errorf("%d new and %d confirmed entries, want 0 and 2", n, c)
		}
	})
}

// TestLoopback: a pod behind its own Service sees another address than its own.
func TestLoopback(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		b.service(1, 53, unix.IPPROTO_UDP, 1, netip.AddrPortFrom(b.podA().ip, 5353))
		r := b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.vip()}, udp: udp(clientPrt, 53)}.bytes(t))
		b.expect("request", r, actRedirect, byPeer, podADev)
		s := look(t, r.pkt)
		if s.src.Addr() == b.podA().ip || s.dst != netip.AddrPortFrom(b.podA().ip, 5353) {
			t.Errorf("request left as %s -> %s", s.src, s.dst)
		}
		r = b.run("pod_from", packet{src: b.podA(), dst: host{ip: s.src.Addr()}, udp: udp(5353, s.src.Port())}.bytes(t))
		b.expect("reply", r, actRedirect, byPeer, podADev)
		if s := look(t, r.pkt); s.src != netip.AddrPortFrom(b.vip(), 53) || s.dst != netip.AddrPortFrom(b.podA().ip, clientPrt) {
			t.Errorf("reply left as %s -> %s", s.src, s.dst)
		}
	})
}

// TestBackendLost: a UDP flow chooses again when its backend is gone.
func TestBackendLost(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		b.service(1, 53, unix.IPPROTO_UDP, 1, netip.AddrPortFrom(b.podB().ip, 53))
		request := packet{src: b.podA(), dst: host{ip: b.vip()}, udp: udp(clientPrt, 53)}.bytes(t)
		b.expect("before", b.run("pod_from", request), actRedirect, byPeer, podBDev)
		b.service(1, 53, unix.IPPROTO_UDP, 2, netip.AddrPortFrom(b.remotePod(), 53))
		gone := uint32(binary.BigEndian.Uint16(b.podB().ip.AsSlice()[len(b.podB().ip.AsSlice())-2:]))
		b.put("backend", gone, bpf.Backend{State: bpf.BackendGone})
		b.expect("after", b.run("pod_from", request), actRedirect, byTunnel, vxlanDev)
	})
}

// TestReject: nothing behind a Service is said at once.
func TestReject(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		b.service(1, 80, unix.IPPROTO_TCP, 1)
		b.service(2, 53, unix.IPPROTO_UDP, 1)
		r := b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.vip()}, tcp: syn(clientPrt, 80), data: []byte{}}.bytes(t))
		b.expect("TCP", r, actRedirect, byDevice, here)
		s := look(t, r.pkt)
		if s.tcp == nil || !s.tcp.RST || !s.tcp.ACK || s.tcp.Ack != 8 || s.src != netip.AddrPortFrom(b.vip(), 80) {
			t.Errorf("TCP was answered by %s %+v", s.src, s.tcp)
		}
		r = b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.vip()}, udp: udp(clientPrt, 53)}.bytes(t))
		b.expect("UDP", r, actRedirect, byDevice, here)
		s = look(t, r.pkt)
		typ, code := uint8(3), uint8(3)
		if b.v6 {
			typ, code = 1, 4
		}
		if s.icmpType != typ || s.icmpCode != code || s.src.Addr() != b.router() || s.dst.Addr() != b.podA().ip {
			t.Errorf("UDP was answered by %+v", s)
		}
	})
}

// TestMasquerade: what the stack forwards for a pod leaves with the node's address; the reply, and
// an error about the flow, find the pod.
func TestMasquerade(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		for _, echo := range []bool{false, true} {
			out := packet{src: b.podA(), dst: host{ip: b.world()}}
			if echo {
				out.echo = 77
			} else {
				out.udp = udp(clientPrt, 123)
			}
			r := b.run("nd_to", out.bytes(t))
			b.expect("out", r, actNext, byStack, 0)
			s := look(t, r.pkt)
			port := s.src.Port()
			if echo {
				port = s.icmpID
			}
			if s.src.Addr() != b.node() || port < 49152 {
				t.Fatalf("left from %s port %d", s.src.Addr(), port)
			}
			in := packet{src: host{ip: b.world()}, dst: host{ip: b.node()}, reply: true, echo: port}
			if !echo {
				in.udp = udp(123, port)
			}
			r = b.run("nd_from", in.bytes(t))
			// the stack forwarded the first packet, so it gets the reply
			b.expect("reply", r, actNext, byStack, 0)
			back := look(t, r.pkt)
			if back.dst.Addr() != b.podA().ip || (!echo && back.dst.Port() != clientPrt) || (echo && back.icmpID != 77) {
				t.Errorf("reply goes to %s id %d", back.dst, back.icmpID)
			}
			quoted(t, b, r.pkt, s, echo)
		}
	})
}

// quoted sends an ICMP error about a masqueraded packet.
func quoted(t *testing.T, b *bench, _ []byte, sent shape, echo bool) {
	t.Helper()
	gw := b.addr("203.0.113.1", "2001:db8::1")
	p := packet{src: host{ip: b.node()}, dst: host{ip: b.world()}, echo: sent.icmpID}
	if !echo {
		p.udp = udp(sent.src.Port(), 123)
	}
	inner := p.bytes(t)[14:]
	e := packet{src: host{ip: gw}, dst: host{ip: b.node()}, echo: 0}.bytes(t)
	l3 := 14 + 20
	if b.v6 {
		l3 = 14 + 40
	}
	e = append(e[:l3+8], inner...)
	e[l3], e[l3+1] = 3, 4
	if b.v6 {
		e[l3], e[l3+1] = 2, 0
		binary.BigEndian.PutUint16(e[14+4:], uint16(len(e)-l3))
	} else {
		binary.BigEndian.PutUint16(e[14+2:], uint16(len(e)-14))
		binary.BigEndian.PutUint16(e[14+10:], 0)
		binary.BigEndian.PutUint16(e[14+10:], sum(e[14:l3], 0))
	}
	binary.BigEndian.PutUint32(e[l3+4:], 1400)
	binary.BigEndian.PutUint16(e[l3+2:], 0)
	start := uint32(0)
	if b.v6 {
		start = partial(e[14+8:14+40]) + uint32(len(e)-l3) + 58
	}
	binary.BigEndian.PutUint16(e[l3+2:], sum(e[l3:], start))
	r := b.run("nd_from", e)
	b.expect("error", r, actNext, byStack, 0)
	s := look(t, r.pkt)
	if s.src.Addr() != gw || s.dst.Addr() != b.podA().ip {
		t.Errorf("the error goes %s -> %s", s.src.Addr(), s.dst.Addr())
	}
	at, ports := 12, 20
	if b.v6 {
		at, ports = 8, 40
	}
	src, _ := netip.AddrFromSlice(s.icmpRest[at : at+len(b.podA().ip.AsSlice())])
	if src != b.podA().ip {
		t.Errorf("the error quotes source %s, want the pod", src)
	}
	if !b.v6 && sum(s.icmpRest[:20], 0) != 0 {
		t.Errorf("wrong checksum in the quoted header")
	}
	want, got := uint16(clientPrt), binary.BigEndian.Uint16(s.icmpRest[ports:])
	if echo {
		want, got = 77, binary.BigEndian.Uint16(s.icmpRest[ports+4:])
	}
	if got != want {
		t.Errorf("the error quotes port %d, want %d", got, want)
	}
}

// TestPorts: two pods with one source port get two ports of the node.
func TestPorts(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		used := map[uint16]bool{}
		for _, pod := range []host{b.podA(), b.podB()} {
			r := b.run("nd_to", packet{src: pod, dst: host{ip: b.world()}, udp: udp(50000, 123)}.bytes(t))
			used[look(t, r.pkt).src.Port()] = true
		}
		if len(used) != 2 || !used[50000] {
			t.Errorf("ports %v, want 50000 and another", used)
		}
	})
}

// TestHostTraffic: what is the host's own stays untouched and leaves no trace.
func TestHostTraffic(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		for prog, p := range map[string]packet{
			"nd_to":   {src: host{ip: b.node()}, dst: host{ip: b.world()}, tcp: syn(50000, 80)},
			"nd_from": {src: host{ip: b.world()}, dst: host{ip: b.node()}, tcp: syn(80, 50000)},
		} {
			in := p.bytes(t)
			r := b.run(prog, in)
			b.expect(prog, r, actNext, 0, 0)
			if string(in) != string(r.pkt) {
				t.Errorf("%s changed a packet of the host", prog)
			}
		}
		if n, c := b.entries(); n+c != 0 {
			t.Errorf("%d entries of host traffic", n+c)
		}
	})
}

// TestViaStack: where Services are kube-proxy's, what it may translate crosses the host stack both
// ways, and only that.
func TestViaStack(t *testing.T) {
	both(t, func(c *bpf.Config) { c.KubeProxyReplacement = false }, func(t *testing.T, b *bench) {
		r := b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.vip()}, tcp: syn(clientPrt, 80)}.bytes(t))
		b.expect("to the Service", r, actNext, byStack, 0)
		// kube-proxy has translated it and the stack routed it to the other pod
		b.at(b.podB())
		r = b.run("pod_to", packet{src: host{ip: b.podA().ip}, dst: host{ip: b.podB().ip}, tcp: syn(clientPrt, 8080)}.bytes(t))
		b.expect("at the backend", r, actNext, byStack, 0)
		back := syn(8080, clientPrt)
		back.ACK = true
		r = b.run("pod_from", packet{src: b.podB(), dst: host{ip: b.podA().ip}, tcp: back}.bytes(t))
		b.expect("reply", r, actNext, byStack, 0)
		b.at(b.podA())
		r = b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.podB().ip}, tcp: syn(clientPrt+1, 8080)}.bytes(t))
		b.expect("direct", r, actRedirect, byPeer, podBDev)
	})
}

// TestTTL: the last hop is answered.
func TestTTL(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		r := b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.podB().ip}, ttl: 1, udp: udp(1, 2)}.bytes(t))
		b.expect("TTL 1", r, actRedirect, byDevice, here)
		s, want := look(t, r.pkt), uint8(11)
		if b.v6 {
			want = 3
		}
		if s.icmpType != want || s.dst.Addr() != b.podA().ip || s.src.Addr() != b.router() {
			t.Errorf("answered by %+v", s)
		}
	})
}

// TestTooBig: what does not fit the tunnel is said to the sender, who may have segments in flight
// that fit though the packet is large.
func TestTooBig(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		p := packet{src: b.podA(), dst: host{ip: b.remotePod()}, tcp: syn(1, 2), dontFragment: true, data: make([]byte, 1450)}
		r := b.run("pod_from", p.bytes(t))
		b.expect("too big", r, actRedirect, byDevice, here)
		s := look(t, r.pkt)
		mtu := binary.BigEndian.Uint16(r.pkt[len(r.pkt)-len(s.icmpRest)-2:])
		if (!b.v6 && (s.icmpType != 3 || s.icmpCode != 4)) || (b.v6 && s.icmpType != 2) || mtu != 1450 {
			t.Errorf("answered by type %d code %d MTU %d", s.icmpType, s.icmpCode, mtu)
		}
		p.data = make([]byte, 3000)
		r = b.run("pod_from", p.bytes(t), func(s *skb) { s.GsoSize, s.GsoSegs = 1300, 3 })
		b.expect("segments that fit", r, actRedirect, byTunnel, vxlanDev)
	})
}

// TestFragments: later fragments follow the first; without it they have no ports and are dropped.
func TestFragments(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		if b.v6 {
			t.Skip("the traffic test has fragments of IPv6")
		}
		b.service(1, 53, unix.IPPROTO_UDP, 1, netip.AddrPortFrom(b.podB().ip, 5353))
		first := packet{src: b.podA(), dst: host{ip: b.vip()}, udp: udp(clientPrt, 53), more: true, fragID: 9, data: make([]byte, 1000)}
		later := first
		later.more, later.fragOff = false, 126
		r := b.run("pod_from", later.bytes(t))
		b.expect("early", r, actDrop, 0, 0)
		if b.metric(bpf.DropFragNotFound, bpf.MetricEgress) != 1 {
			t.Error("the early fragment is not counted")
		}
		b.expect("first", b.run("pod_from", first.bytes(t)), actRedirect, byPeer, podBDev)
		r = b.run("pod_from", later.bytes(t))
		b.expect("later", r, actRedirect, byPeer, podBDev)
		if dst := netip.AddrFrom4([4]byte(r.pkt[30:34])); dst != b.podB().ip {
			t.Errorf("the later fragment goes to %s", dst)
		}
	})
}

// TestZeroChecksum: UDP over IPv4 without checksum stays without.
func TestZeroChecksum(t *testing.T) {
	b := newBench(t, false, nil)
	b.service(1, 53, unix.IPPROTO_UDP, 1, netip.AddrPortFrom(b.podB().ip, 5353))
	r := b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.vip()}, udp: udp(clientPrt, 53), noUDPSum: true}.bytes(t))
	if got := binary.BigEndian.Uint16(r.pkt[40:]); got != 0 {
		t.Errorf("checksum became %#x", got)
	}
}

// TestReopen: a SYN on a finished flow starts a new one.
func TestReopen(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		b.service(1, 80, unix.IPPROTO_TCP, 1, netip.AddrPortFrom(b.podB().ip, 8080))
		open := packet{src: b.podA(), dst: host{ip: b.vip()}, tcp: syn(clientPrt, 80)}.bytes(t)
		b.run("pod_from", open)
		b.at(b.podB())
		fin := syn(8080, clientPrt)
		fin.SYN, fin.ACK, fin.RST = false, true, true
		b.run("pod_from", packet{src: b.podB(), dst: host{ip: b.podA().ip}, tcp: fin}.bytes(t))
		b.at(b.podA())
		b.service(1, 80, unix.IPPROTO_TCP, 1, netip.AddrPortFrom(b.remotePod(), 8080))
		b.expect("second SYN", b.run("pod_from", open), actRedirect, byTunnel, vxlanDev)
	})
}

// TestPickUp: a flow that is already under way goes on.
func TestPickUp(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		ack := syn(clientPrt, 80)
		ack.SYN, ack.ACK = false, true
		b.expect("ACK", b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.podB().ip}, tcp: ack}.bytes(t)), actRedirect, byPeer, podBDev)
		if n, _ := b.entries(); n != 1 {
			t.Errorf("%d entries, want 1", n)
		}
		rst := syn(clientPrt+1, 80)
		rst.SYN, rst.RST = false, true
		b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.podB().ip}, tcp: rst}.bytes(t))
		if n, _ := b.entries(); n != 1 {
			t.Errorf("a reset made an entry")
		}
	})
}

// TestPurge: nothing of an address stays, translated or not.
func TestPurge(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		b.service(1, 80, unix.IPPROTO_TCP, 1, netip.AddrPortFrom(b.podB().ip, 8080))
		b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.vip()}, tcp: syn(clientPrt, 80)}.bytes(t))
		b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.podB().ip}, tcp: syn(clientPrt, 81)}.bytes(t))
		b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.remotePod()}, tcp: syn(clientPrt, 82)}.bytes(t))
		var out bpf.GcPurge
		if _, err := b.coll.Programs["ct_purge"].Run(runContext(bpf.GcPurge{Ip: bpf.IP(b.podB().ip)}, &out)); err != nil {
			t.Fatal(err)
		}
		if n, _ := b.entries(); n != 1 {
			t.Errorf("%d entries left, want 1", n)
		}
		if out.Deleted != 3 {
			t.Errorf("deleted %d, want 3", out.Deleted)
		}
	})
}

// TestExpire: an entry goes when it is as the sweep saw it, not when a packet moved it.
func TestExpire(t *testing.T) {
	b := newBench(t, false, nil)
	b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.podB().ip}, tcp: syn(clientPrt, 80)}.bytes(t))
	var k bpf.Ct4Key
	var v bpf.Ct4
	if it := b.coll.Maps["ct4_new"].Iterate(); !it.Next(&k, &v) {
		t.Fatal("no entry")
	}
	item := bpf.GcItem{Seen: v.C.Seen - 1, Flags: v.C.Flags, Tier: 1}
	raw := make([]byte, 16)
	binary.NativeEndian.PutUint32(raw, k.A)
	binary.NativeEndian.PutUint32(raw[4:], k.B)
	binary.NativeEndian.PutUint16(raw[8:], k.Pa)
	binary.NativeEndian.PutUint16(raw[10:], k.Pb)
	raw[12], raw[13] = k.Proto, k.Zone
	copy(item.Key[:], raw)
	expire := func() bpf.GcExpire {
		b.put("gc_batch", uint32(0), item)
		var out bpf.GcExpire
		if _, err := b.coll.Programs["ct_expire"].Run(runContext(bpf.GcExpire{Count: 1}, &out)); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := expire(); out.Deleted != 0 {
		t.Error("an entry that had moved was deleted")
	}
	item.Seen = v.C.Seen
	if out := expire(); out.Deleted != 1 {
		t.Error("an idle entry was kept")
	}
	if n, _ := b.entries(); n != 0 {
		t.Errorf("%d entries left", n)
	}
}

// TestNeighbour: a pod that asks for its gateway gets the node's address.
func TestNeighbour(t *testing.T) {
	b := newBench(t, true, nil)
	p := packet{src: b.podA(), dst: host{ip: b.router()}, ttl: 255}.bytes(t)
	ns := append(p[:54:54], 135, 0, 0, 0, 0, 0, 0, 0)
	ns = append(ns, b.router().AsSlice()...)
	ns = append(ns, 1, 1)
	ns = append(ns, b.podA().mac...)
	binary.BigEndian.PutUint16(ns[18:], uint16(len(ns)-54))
	r := b.run("pod_from", ns)
	b.expect("solicitation", r, actRedirect, byDevice, here)
	s := look(t, r.pkt)
	if s.icmpType != uint8(layers.ICMPv6TypeNeighborAdvertisement) || s.src.Addr() != b.router() || s.dst.Addr() != b.podA().ip || s.dstMAC != b.podA().mac.String() {
		t.Errorf("answered by %+v", s)
	}
}

// TestHandover: while two programs of ours may stand behind each other at a hook, the second leaves
// alone what the first has handled. Outside of a handover, and at other hooks, the mark means
// nothing.
func TestHandover(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		const podTo, ndFrom = 0x0a00, 0x0d00
		in := packet{src: host{ip: b.node()}, dst: b.podA(), udp: udp(clientPrt, 53)}.bytes(t)
		marked := func(mark uint32) func(*skb) { return func(s *skb) { s.Mark = 0x70000 | mark } }
		r := b.run("pod_to", in, marked(0))
		b.expect("no handover", r, actNext, byStack, 0)
		if r.mark != 0x70000 {
			t.Errorf("mark %#x after a packet outside of a handover", r.mark)
		}
		b.expect("mark without handover", b.run("pod_to", in, marked(podTo)), actNext, byStack, 0)

		c := switches()
		c.Handover = 1
		b.put("cfg", uint32(0), c)
		r = b.run("pod_to", in, marked(0))
		b.expect("first program", r, actNext, byStack, 0)
		if r.mark != 0x70000|podTo {
			t.Errorf("mark %#x after the first program, want %#x", r.mark, 0x70000|podTo)
		}
		before := b.metric(0, bpf.MetricIngress)
		r = b.run("pod_to", in, marked(podTo))
		b.expect("second program", r, actNext, 0, 0)
		if r.mark != 0x70000 || b.metric(0, bpf.MetricIngress) != before {
			t.Errorf("the second program counted the packet again, or left mark %#x", r.mark)
		}
		b.expect("mark of another hook", b.run("pod_to", in, marked(ndFrom)), actNext, byStack, 0)
	})
}
