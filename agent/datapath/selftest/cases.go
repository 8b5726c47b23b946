// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"net/netip"

	"github.com/cilium/ebpf"

	"lash.internal/lash/bpf"
)

const (
	port = 40000 // of clients
	far  = 8080  // of servers
	none = 0     // no device

	testRunMax = 3000 // bytes: the kernel takes test packets of less than a page
)

func at(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }

// icmp says a number of ICMP in the family's own terms.
func (b *bench) icmp(v4, v6 byte) byte {
	if b.v6 {
		return v6
	}
	return v4
}

func (b *bench) echo(src, dst netip.Addr, id uint16) packet {
	return packet{src: at(src, id), dst: at(dst, 0), proto: b.icmp(icmp4, icmp6), icmpType: b.icmp(8, 128), payload: 8}
}

// pods are packets between pods of this node, and such as no pod may send.
func (b *bench) pods() {
	a, z := at(b.podA(), port), at(b.podB(), far)
	open := packet{src: a, dst: z, proto: tcp, flags: syn}
	b.expect("pod to pod", "pod_from", open.bytes(), context{}, actRedirect, byPeer, podBDev, func(o outcome) bool {
		return o.pkt.ttl == 63 && o.pkt.dstMAC == podBMAC && o.pkt.src == a && o.pkt.dst == z
	})
	more := packet{src: a, dst: z, proto: tcp, flags: ack, payload: 100}
	b.expect("pod to pod, second packet", "pod_from", more.bytes(), context{}, actRedirect, byPeer, podBDev, nil)
	b.expect("ping between pods", "pod_from", b.echo(b.podA(), b.podB(), 77).bytes(), context{}, actRedirect, byPeer, podBDev, nil)
	spoofed := packet{src: at(b.podB(), port), dst: z, proto: udp, payload: 10}
	b.expect("foreign source address", "pod_from", spoofed.bytes(), context{}, actDrop, untouched, none, nil)
	group := packet{src: a, dst: at(b.addr("224.0.0.5", "ff0e::5"), port), proto: udp, payload: 10}
	b.expect("multicast", "pod_from", group.bytes(), context{}, actDrop, untouched, none, nil)
	b.expect("cut off", "pod_from", open.bytes()[:ethLen+b.headers()+4], context{}, actDrop, untouched, none, nil)
	arp := make([]byte, 60)
	arp[12], arp[13] = 8, 6
	b.expect("ARP", "pod_from", arp, context{}, actNext, untouched, none, func(o outcome) bool { return o.same })
}

func (b *bench) headers() int {
	if b.v6 {
		return ip6Len
	}
	return ip4Len
}

// tunnel are packets to and from other nodes.
func (b *bench) tunnel() {
	a, z := at(b.podA(), port), at(b.remote(), far)
	open := packet{src: a, dst: z, proto: udp, payload: 100}
	b.expect("pod to other node", "pod_from", open.bytes(), context{}, actRedirect, byTunnel, tunnelDev, func(o outcome) bool {
		return o.rec.TunId == idA && bpf.FromIP(o.rec.TunIp) == netip.MustParseAddr("203.0.113.2") && o.pkt.ttl == 63
	})
	back := packet{src: z, dst: a, proto: udp, payload: 100}
	prog, in := b.fromNode(idRemote)
	b.expect("reply from other node", prog, back.bytes(), in, actRedirect, byPeer, here, nil)
	fresh := packet{src: z, dst: at(b.podB(), far), proto: tcp, flags: syn}
	b.expect("other node to pod", prog, fresh.bytes(), in, actRedirect, byPeer, podBDev, func(o outcome) bool { return o.pkt.dstMAC == podBMAC })
	in.Cb[0] = bpf.IdentityHost
	b.expect("host identity from the wire", prog, fresh.bytes(), in, actDrop, untouched, none, nil)
	out := packet{src: at(b.node(), port), dst: z, proto: tcp, flags: syn}
	b.expect("host to other node", "ov_to", out.bytes(), context{}, actNext, byStack, none, func(o outcome) bool { return o.rec.TunId == bpf.IdentityRemoteNode })
	b.expect("decided before", "ov_to", open.bytes(), context{Mark: markDone}, actNext, untouched, none, func(o outcome) bool { return o.same })
}

// native are packets from other nodes without a tunnel. Those to other nodes go where the routes of the
// node say, so they are no test.
func (b *bench) native() {
	fresh := packet{src: at(b.remote(), port), dst: at(b.podB(), far), proto: tcp, flags: syn}
	b.expect("other node to pod", "nd_from", fresh.bytes(), context{}, actRedirect, byPeer, podBDev, func(o outcome) bool {
		return o.pkt.dstMAC == podBMAC && o.pkt.ttl == 63
	})
}

// fromNode is the program that packets of other nodes meet first, and what tells it their identity.
func (b *bench) fromNode(identity uint32) (prog string, in context) {
	if b.cfg.Tunnel {
		return "ov_from", context{Cb: [5]uint32{identity}} // a test run has no tunnel key
	}
	return "nd_from", context{}
}

// host are packets of the node itself.
func (b *bench) host() {
	in := packet{src: at(b.node(), port), dst: at(b.podA(), far), proto: tcp, flags: syn}
	b.expect("host to pod", "pod_to", in.bytes(), context{}, actNext, byStack, none, nil)
	out := packet{src: at(b.podA(), port), dst: at(b.node(), far), proto: tcp, flags: syn}
	b.expect("pod to host", "pod_from", out.bytes(), context{}, actNext, byStack, none, nil)
	own := packet{src: at(b.node(), port), dst: at(b.world(), 443), proto: tcp, flags: syn}
	b.expect("host to outside", "nd_to", own.bytes(), context{}, actNext, untouched, none, func(o outcome) bool { return o.same })
	their := packet{src: at(b.world(), 443), dst: at(b.node(), 22), proto: tcp, flags: syn}
	b.expect("outside to host", "nd_from", their.bytes(), context{}, actNext, untouched, none, func(o outcome) bool { return o.same })
}

// errors are packets that the programs answer themselves.
func (b *bench) errors() {
	fromRouter := func(o outcome) bool {
		return o.pkt.dst.Addr() == b.podA() && (!b.router().IsValid() || o.pkt.src.Addr() == b.router())
	}
	last := packet{src: at(b.podA(), port+1), dst: at(b.podB(), far), proto: udp, ttl: 1, payload: 10}
	b.expect("TTL used up", "pod_from", last.bytes(), context{}, actRedirect, byDevice, here, func(o outcome) bool {
		return fromRouter(o) && o.pkt.icmpType == b.icmp(11, 3)
	})
	if !b.cfg.Tunnel || b.cfg.TunnelMTU > testRunMax {
		return
	}
	big := packet{src: at(b.podA(), port+1), dst: at(b.remote(), far), proto: udp, noFrag: true, payload: int(b.cfg.TunnelMTU)}
	b.expect("too big for the tunnel", "pod_from", big.bytes(), context{}, actRedirect, byDevice, here, func(o outcome) bool {
		return fromRouter(o) && o.pkt.icmpType == b.icmp(3, 2) && uint32(o.pkt.mtu) == b.cfg.TunnelMTU
	})
}

// services are packets to a Service's address.
func (b *bench) services() {
	a, vip, backend := at(b.podA(), port+2), at(b.vip(), 53), at(b.podB(), 5353)
	ask := packet{src: a, dst: vip, proto: udp, payload: 30}
	b.expect("Service", "pod_from", ask.bytes(), context{}, actRedirect, byPeer, podBDev, func(o outcome) bool {
		return o.pkt.src == a && o.pkt.dst == backend
	})
	// The backend is on another node for this one packet, so that it can come in here.
	answer := packet{src: backend, dst: a, proto: udp, payload: 30}
	prog, in := b.fromNode(idB)
	b.expect("answer of a Service", prog, answer.bytes(), in, actRedirect, byPeer, here, func(o outcome) bool {
		return o.pkt.src == vip && o.pkt.dst == a
	})
	b.expect("Service without backends", "pod_from", packet{src: a, dst: at(b.vip(), 80), proto: tcp, flags: syn}.bytes(), context{},
		actRedirect, byDevice, here, func(o outcome) bool { return o.pkt.proto == tcp && o.pkt.flags&0x04 != 0 && o.pkt.dst == a })
}

// masquerade is a flow out of the cluster that the host stack forwards.
func (b *bench) masquerade() {
	a, w := at(b.podA(), port+3), at(b.world(), 443)
	var as netip.AddrPort
	b.expect("pod to outside", "nd_to", packet{src: a, dst: w, proto: tcp, flags: syn}.bytes(), context{}, actNext, byStack, none, func(o outcome) bool {
		as = o.pkt.src
		return as.Addr() == b.node() && as.Port() >= b.cfg.SNATMin && as.Port() <= b.cfg.SNATMax && o.pkt.dst == w
	})
	b.expect("answer from outside", "nd_from", packet{src: w, dst: as, proto: tcp, flags: syn | ack}.bytes(), context{}, actNext, byStack, none, func(o outcome) bool {
		return o.pkt.src == w && o.pkt.dst == a
	})
	b.expect("end of the flow", "nd_to", packet{src: a, dst: w, proto: tcp, flags: fin | ack}.bytes(), context{}, actNext, byStack, none, func(o outcome) bool {
		return o.pkt.src == as
	})
}

// purge removes the flows of a pod that the packets before have left.
func (b *bench) purge() {
	const what = "flows of a removed pod"
	p := b.s.Programs["ct_purge"]
	if p == nil {
		b.fail(what, "no program ct_purge")
		return
	}
	b.sent++
	in := bpf.GcPurge{Ip: bpf.IP(b.podA())}
	out := in
	if _, err := p.Run(&ebpf.RunOptions{Context: in, ContextOut: &out}); err != nil {
		b.fail(what, "ct_purge: %w", err)
	} else if out.Deleted == 0 {
		b.fail(what, "ct_purge deleted none")
	}
}
