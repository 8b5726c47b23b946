// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"lash.internal/lash/bpf"
)

const (
	byNeighbour = 4
	nodePort    = 31000
	remoteNode  = 4 // tunnel endpoint of the other node, whose own address is meant
)

// ready lets packets leave the bench's node by a default route, and opens NodePorts on its addresses
// and on those of another node.
func (b *bench) ready() {
	b.t.Helper()
	b.ns.ip("link set lo up")
	b.ns.ip("link add out type veth peer name outside")
	b.ns.ip("link set out up")
	b.ns.ip("link set outside up")
	b.ns.ip("addr add %s/24 dev out", b.addr("192.168.0.1", "fd00:1::1"))
	if b.v6 {
		b.ns.sysctl("ipv6/conf/all/forwarding", "1")
		b.ns.ip("-6 route add default via fd00:1::fe dev out")
	} else {
		b.ns.sysctl("ipv4/ip_forward", "1")
		b.ns.ip("route add default via 192.168.0.254 dev out")
	}
	b.who(b.node(), bpf.Addr{Kind: bpf.AddrLocalNode, Identity: bpf.IdentityHost, Flags: bpf.AddrNodePort})
	b.who(b.otherNode(), bpf.Addr{Kind: bpf.AddrRemoteNode, Identity: bpf.IdentityRemoteNode, Vtep: remoteNode, Flags: bpf.AddrNodePort})
	b.put("vtep", uint32(remoteNode), bpf.Vtep{Ip: bpf.IP(netip.MustParseAddr("192.168.0.2"))})
}

func (b *bench) otherNode() netip.Addr { return b.addr("192.168.0.2", "fd00:1::2") }
func (b *bench) lbIP() netip.Addr      { return b.addr("198.51.100.7", "2001:db8:7::7") }

// any is the address that stands for those of all nodes.
func (b *bench) any() netip.Addr { return b.addr("0.0.0.0", "::") }

// behind are the backends of a Service: those of the whole cluster and those of this node.
type behind struct {
	all, local []netip.AddrPort
	svc        bpf.Svc // flags and the like
}

// port publishes a Service port; fronts are added with front.
func (b *bench) port(id uint32, proto uint8, s behind) {
	b.t.Helper()
	write := func(elem uint32, list []netip.AddrPort) uint64 {
		var sl bpf.Slots
		for i, a := range list {
			bid := 100*id + uint32(a.Addr().As16()[15])
			sl.BackendId[i] = bid
			b.put("backend", bid, bpf.Backend{Ip: bpf.IP(a.Addr()), Port: bpf.Port(a.Port()), Proto: proto, State: bpf.BackendActive})
		}
		b.put("slot", elem, sl)
		return uint64(elem*bpf.SlotsPerElem) | uint64(len(list))<<bpf.SvcBlockShift
	}
	s.svc.BlkAll, s.svc.BlkLocal = write(2*id, s.all), write(2*id+1, s.local)
	b.put("svc", id, s.svc)
}

func (b *bench) front(id uint32, at netip.AddrPort, proto uint8, flags uint32) {
	b.t.Helper()
	b.put("front", bpf.FrontKey{Ip: bpf.IP(at.Addr()), Port: bpf.Port(at.Port()), Proto: proto}, bpf.Front{SvcId: id, Flags: flags})
}

const outsideNodePort = bpf.FrontOutside | bpf.FrontNodePort<<bpf.FrontTypeShift

// dial sends the first packet of a client outside.
func (b *bench) dial(to netip.Addr, sport, dport uint16) outcome {
	return b.run("nd_from", packet{src: host{ip: b.world()}, dst: host{ip: to}, tcp: syn(sport, dport)}.bytes(b.t))
}

func ackOf(sport, dport uint16) packet {
	p := packet{tcp: syn(sport, dport)}
	p.tcp.SYN, p.tcp.ACK = false, true
	return p
}

// synAck is the answer to a SYN.
func synAck(from host, to netip.Addr, sport, dport uint16) packet {
	p := packet{src: from, dst: host{ip: to}, tcp: syn(sport, dport)}
	p.tcp.ACK = true
	return p
}

// TestNodePortLocalBackend: a pod here gets the client's packets with the client's address; the client
// gets answers from the address that it has called.
func TestNodePortLocalBackend(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		b.ready()
		b.port(1, unix.IPPROTO_TCP, behind{all: []netip.AddrPort{netip.AddrPortFrom(b.podB().ip, 8080)}})
		b.front(1, netip.AddrPortFrom(b.any(), nodePort), unix.IPPROTO_TCP, outsideNodePort)
		r := b.dial(b.node(), clientPrt, nodePort)
		b.expect("SYN", r, actRedirect, byPeer, podBDev)
		if s := look(t, r.pkt); s.src != netip.AddrPortFrom(b.world(), clientPrt) || s.dst != netip.AddrPortFrom(b.podB().ip, 8080) || s.ttl != 63 {
			t.Errorf("SYN left as %+v", s)
		}
		b.at(b.podB())
		r = b.run("pod_from", synAck(b.podB(), b.world(), 8080, clientPrt).bytes(t))
		b.expect("SYN-ACK", r, actRedirect, byNeighbour, 0)
		if s := look(t, r.pkt); s.src != netip.AddrPortFrom(b.node(), nodePort) || s.dst != netip.AddrPortFrom(b.world(), clientPrt) {
			t.Errorf("SYN-ACK left as %s -> %s", s.src, s.dst)
		}
		b.at(b.podA())
		b.port(1, unix.IPPROTO_TCP, behind{}) // what is under way does not ask again
		p := ackOf(clientPrt, nodePort)
		p.src, p.dst = host{ip: b.world()}, host{ip: b.node()}
		b.expect("ACK", b.run("nd_from", p.bytes(t)), actRedirect, byPeer, podBDev)
		// ports without a Service are the host's
		b.expect("another port", b.dial(b.node(), clientPrt, nodePort+1), actNext, 0, 0)
		b.expect("SSH", b.dial(b.node(), clientPrt, 22), actNext, 0, 0)
	})
}

// TestNodePortRemoteBackend: with a backend on another node the client's packets travel on from an
// address of this node, and the answers come back here.
func TestNodePortRemoteBackend(t *testing.T) {
	for _, tunnel := range []bool{true, false} {
		t.Run(fmt.Sprintf("tunnel %v", tunnel), func(t *testing.T) {
			both(t, func(c *bpf.Config) { c.Tunnel = tunnel }, func(t *testing.T, b *bench) {
				b.ready()
				b.put("dev", uint32(b.ns.ifindex("out")), bpf.Dev{
					Masq4: [4]byte{192, 168, 0, 1}, Masq6: netip.MustParseAddr("fd00:1::1").As16(), Mtu: 1500,
				})
				b.port(1, unix.IPPROTO_TCP, behind{all: []netip.AddrPort{netip.AddrPortFrom(b.remotePod(), 8080)}})
				b.front(1, netip.AddrPortFrom(b.any(), nodePort), unix.IPPROTO_TCP, outsideNodePort)
				r := b.dial(b.node(), clientPrt, nodePort)
				if tunnel {
					b.expect("SYN", r, actRedirect, byTunnel, vxlanDev)
				} else {
					b.expect("SYN", r, actRedirect, byNeighbour, 0)
				}
				s := look(t, r.pkt)
				if s.src != netip.AddrPortFrom(b.snatAddr(), clientPrt) || s.dst != netip.AddrPortFrom(b.remotePod(), 8080) {
					t.Fatalf("SYN left as %s -> %s", s.src, s.dst)
				}
				if tunnel && r.rec.TunId != bpf.IdentityWorld {
					t.Errorf("SYN left with identity %d", r.rec.TunId)
				}
				hook, how := "ov_from", []func(*skb){tunnelID(idRemote)}
				if !tunnel {
					hook, how = "nd_from", nil
				}
				r = b.run(hook, synAck(host{ip: b.remotePod()}, b.snatAddr(), 8080, s.src.Port()).bytes(t), how...)
				b.expect("SYN-ACK", r, actRedirect, byNeighbour, 0)
				if s := look(t, r.pkt); s.src != netip.AddrPortFrom(b.node(), nodePort) || s.dst != netip.AddrPortFrom(b.world(), clientPrt) {
					t.Errorf("SYN-ACK left as %s -> %s", s.src, s.dst)
				}
				if n, c := b.entries(); n != 0 || c != 2 {
					t.Errorf("%d new and %d confirmed entries, want 0 and 2", n, c)
				}
				// an answer to nothing is refused by the host
				stray := b.run(hook, synAck(host{ip: b.remotePod()}, b.snatAddr(), 8080, s.src.Port()+1).bytes(t), how...)
				if stray.act != actNext {
					t.Errorf("stray SYN-ACK: action %d", int32(stray.act))
				}
			})
		})
	}
}

// TestNodePortWithoutAddress: without an address that is there for it, the client's packets travel on from
// the node's.
func TestNodePortWithoutAddress(t *testing.T) {
	none := func(c *bpf.Config) { c.Tunnel, c.SNATAddr4, c.SNATAddr6 = false, netip.Addr{}, netip.Addr{} }
	both(t, none, func(t *testing.T, b *bench) {
		b.ready()
		b.put("dev", uint32(b.ns.ifindex("out")), bpf.Dev{
			Masq4: [4]byte{192, 168, 0, 1}, Masq6: netip.MustParseAddr("fd00:1::1").As16(), Mtu: 1500,
		})
		b.port(1, unix.IPPROTO_TCP, behind{all: []netip.AddrPort{netip.AddrPortFrom(b.remotePod(), 8080)}})
		b.front(1, netip.AddrPortFrom(b.any(), nodePort), unix.IPPROTO_TCP, outsideNodePort)
		r := b.dial(b.node(), clientPrt, nodePort)
		b.expect("SYN", r, actRedirect, byNeighbour, 0)
		s := look(t, r.pkt)
		if s.src.Addr() != b.node() || s.src.Port() < 49152 {
			t.Fatalf("SYN left as %s -> %s", s.src, s.dst)
		}
		r = b.run("nd_from", synAck(host{ip: b.remotePod()}, b.node(), 8080, s.src.Port()).bytes(t))
		b.expect("SYN-ACK", r, actRedirect, byNeighbour, 0)
		if s := look(t, r.pkt); s.src != netip.AddrPortFrom(b.node(), nodePort) || s.dst != netip.AddrPortFrom(b.world(), clientPrt) {
			t.Errorf("SYN-ACK left as %s -> %s", s.src, s.dst)
		}
	})
}

// TestNodePortHostBackend: a backend with an address of this node gets the packets by the host stack,
// and its answers become the Service's where they leave.
func TestNodePortHostBackend(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		b.ready()
		b.port(1, unix.IPPROTO_TCP, behind{all: []netip.AddrPort{netip.AddrPortFrom(b.node(), 8443)}})
		b.front(1, netip.AddrPortFrom(b.any(), nodePort), unix.IPPROTO_TCP, outsideNodePort)
		r := b.dial(b.node(), clientPrt, nodePort)
		b.expect("SYN", r, actNext, byStack, 0)
		if s := look(t, r.pkt); s.dst != netip.AddrPortFrom(b.node(), 8443) || s.src != netip.AddrPortFrom(b.world(), clientPrt) {
			t.Errorf("SYN goes to the host as %s -> %s", s.src, s.dst)
		}
		back := synAck(host{ip: b.node()}, b.world(), 8443, clientPrt).bytes(t)
		if s := look(t, b.run("nd_to", back).pkt); s.src.Port() != 8443 {
			t.Errorf("port %d is changed though no backend is known there", s.src.Port())
		}
		b.put("hostback", uint32(8443/64), uint64(1)<<(8443%64))
		r = b.run("nd_to", back)
		b.expect("SYN-ACK", r, actNext, byStack, 0)
		if s := look(t, r.pkt); s.src != netip.AddrPortFrom(b.node(), nodePort) {
			t.Errorf("SYN-ACK left from %s", s.src)
		}
	})
}

// TestOutsideRefused says what happens to callers from outside that get no backend.
func TestOutsideRefused(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		b.ready()
		b.front(1, netip.AddrPortFrom(b.any(), nodePort), unix.IPPROTO_TCP, outsideNodePort)
		b.port(1, unix.IPPROTO_TCP, behind{})
		r := b.dial(b.node(), clientPrt, nodePort)
		b.expect("without backends", r, actRedirect, byDevice, here)
		if s := look(t, r.pkt); s.tcp == nil || !s.tcp.RST || s.src != netip.AddrPortFrom(b.node(), nodePort) || s.dst.Addr() != b.world() {
			t.Errorf("answered by %+v", s)
		}
		local := behind{all: []netip.AddrPort{netip.AddrPortFrom(b.remotePod(), 8080)}, svc: bpf.Svc{Flags: bpf.SvcExternalLocal}}
		b.port(1, unix.IPPROTO_TCP, local)
		b.expect("Local, backends elsewhere", b.dial(b.node(), clientPrt, nodePort), actDrop, 0, 0)
		r = b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.node()}, tcp: syn(clientPrt, nodePort)}.bytes(t))
		b.expect("a pod is not outside", r, actRedirect, byTunnel, vxlanDev)

		b.who(b.vip(), bpf.Addr{Kind: bpf.AddrVIP, Flags: bpf.AddrHasSvc})
		b.front(1, netip.AddrPortFrom(b.vip(), 80), unix.IPPROTO_TCP, bpf.FrontPrimary)
		b.port(1, unix.IPPROTO_TCP, behind{all: []netip.AddrPort{netip.AddrPortFrom(b.podB().ip, 8080)}})
		b.expect("ClusterIP", b.dial(b.vip(), clientPrt, 80), actDrop, 0, 0)
		if n := b.metric(bpf.DropIsClusterIP, bpf.MetricIngress); n != 1 {
			t.Errorf("%d drops for a ClusterIP, want 1", n)
		}
		b.expect("unused port of a Service's address", b.dial(b.vip(), clientPrt, 81), actDrop, 0, 0)
		// a HostPort holds on this node only
		b.front(1, netip.AddrPortFrom(b.any(), 4000), unix.IPPROTO_TCP, bpf.FrontOutside|bpf.FrontThisNode|bpf.FrontHostPort<<bpf.FrontTypeShift)
		b.expect("HostPort that the address is not known to have", b.dial(b.node(), clientPrt, 4000), actNext, 0, 0)
		b.who(b.node(), bpf.Addr{Kind: bpf.AddrLocalNode, Identity: bpf.IdentityHost, Flags: bpf.AddrNodePort | bpf.AddrHasSvc})
		b.expect("HostPort", b.dial(b.node(), clientPrt, 4000), actRedirect, byPeer, podBDev)
		r = b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.otherNode()}, tcp: syn(clientPrt, 4000)}.bytes(t))
		if s := look(t, r.pkt); s.dst != netip.AddrPortFrom(b.otherNode(), 4000) {
			t.Errorf("the same port of another node leads to %s", s.dst)
		}
	})
}

// TestSourceRanges: only who is in the ranges reaches the address, and NodePorts do not care.
func TestSourceRanges(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		b.ready()
		b.who(b.lbIP(), bpf.Addr{Kind: bpf.AddrVIP, Flags: bpf.AddrHasSvc})
		b.port(1, unix.IPPROTO_TCP, behind{all: []netip.AddrPort{netip.AddrPortFrom(b.podB().ip, 8080)}})
		b.front(1, netip.AddrPortFrom(b.lbIP(), 80), unix.IPPROTO_TCP, bpf.FrontOutside|bpf.FrontSources|bpf.FrontLoadBalancer<<bpf.FrontTypeShift)
		b.front(1, netip.AddrPortFrom(b.any(), nodePort), unix.IPPROTO_TCP, outsideNodePort)
		b.expect("outside of the ranges", b.dial(b.lbIP(), clientPrt, 80), actDrop, 0, 0)
		if n := b.metric(bpf.DropNotInSrcRange, bpf.MetricIngress); n != 1 {
			t.Errorf("%d drops counted, want 1", n)
		}
		b.expect("NodePort", b.dial(b.node(), clientPrt, nodePort), actRedirect, byPeer, podBDev)
		p := netip.PrefixFrom(b.world(), b.addrLen(24, 64)).Masked()
		k := bpf.CIDR(p)
		b.put("srcrange", bpf.SrcrangeKey{Plen: k.Plen, SvcId: 1, Ip: k.Ip}, uint32(1))
		b.expect("within", b.dial(b.lbIP(), clientPrt, 80), actRedirect, byPeer, podBDev)
	})
}

// pingData is of an odd length, and long enough for a frame without padding.
var pingData = []byte("a payload that is of an odd length, whatever else")

// TestPings: the address of a load balancer answers them, to callers outside and to pods; that of a
// ClusterIP does not.
func TestPings(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		b.ready()
		b.who(b.lbIP(), bpf.Addr{Kind: bpf.AddrVIP, Flags: bpf.AddrHasSvc | bpf.AddrEcho})
		b.who(b.vip(), bpf.Addr{Kind: bpf.AddrVIP, Flags: bpf.AddrHasSvc})
		ask := func(hook string, from host, to netip.Addr, ttl uint8) outcome {
			return b.run(hook, packet{src: from, dst: host{ip: to}, echo: 77, ttl: ttl, data: pingData}.bytes(t))
		}
		typ := uint8(0)
		if b.v6 {
			typ = 129
		}
		for hook, from := range map[string]host{"nd_from": {ip: b.world()}, "pod_from": b.podA()} {
			r := ask(hook, from, b.lbIP(), 3)
			dev := uint32(here)
			if hook == "pod_from" {
				dev = podADev
			}
			b.expect("a load balancer, "+hook, r, actRedirect, byDevice, dev)
			b.checksums(r.pkt)
			s := look(t, r.pkt)
			if s.icmpType != typ || s.icmpCode != 0 || s.icmpID != 77 || s.src.Addr() != b.lbIP() || s.dst.Addr() != from.ip || s.ttl != 64 {
				t.Errorf("%s: answered by %+v", hook, s)
			}
			if !bytes.HasSuffix(r.pkt, pingData) {
				t.Errorf("%s: the payload is not what was sent", hook)
			}
		}
		b.expect("a ClusterIP", ask("nd_from", host{ip: b.world()}, b.vip(), 64), actDrop, 0, 0)
		if s := look(t, ask("pod_from", b.podA(), b.vip(), 64).pkt); s.icmpType == typ && s.src.Addr() == b.vip() {
			t.Errorf("a ClusterIP answers a pod: %+v", s)
		}
		r := b.run("nd_from", packet{src: host{ip: b.world()}, dst: host{ip: b.lbIP()}, echo: 77, reply: true}.bytes(t))
		b.expect("an answer is not answered", r, actDrop, 0, 0)
		if fresh, confirmed := b.entries(); fresh+confirmed > 0 {
			t.Errorf("%d entries were made for pings", fresh+confirmed)
		}
	})
}

func (b *bench) addrLen(v4, v6 int) int {
	if b.v6 {
		return v6
	}
	return v4
}

// TestAffinity: a client keeps its backend for as long as it may, and no longer than that is there.
func TestAffinity(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		b.ready()
		two := []netip.AddrPort{netip.AddrPortFrom(b.podB().ip, 8080), netip.AddrPortFrom(b.remotePod(), 8080)}
		s := behind{all: two, svc: bpf.Svc{AffinitySecs: 100}}
		b.port(1, unix.IPPROTO_TCP, s)
		b.front(1, netip.AddrPortFrom(b.any(), nodePort), unix.IPPROTO_TCP, outsideNodePort)
		chosen := func(first uint16) map[uint32]int {
			out := map[uint32]int{}
			for i := range uint16(24) {
				out[b.dial(b.node(), first+i, nodePort).rec.Helper]++
			}
			return out
		}
		if c := chosen(1000); len(c) != 1 {
			t.Errorf("a client with affinity gets to %v", c)
		}
		s.svc.AffinitySecs = 0
		b.port(1, unix.IPPROTO_TCP, s)
		if c := chosen(2000); len(c) != 2 {
			t.Errorf("a client without affinity gets to %v only", c)
		}
		// the other one goes; then the client's own
		s.svc.AffinitySecs = 100
		b.port(1, unix.IPPROTO_TCP, s)
		before := chosen(3000)
		for how := range before {
			gone := two[0]
			if how == byPeer {
				gone = two[1]
			}
			s.svc.SetGen, s.all = 1, []netip.AddrPort{two[0]}
			if gone == two[0] {
				s.all[0] = two[1]
			}
			b.port(1, unix.IPPROTO_TCP, s)
			if c := chosen(4000); c[how] != 24 {
				t.Errorf("client of %d gets to %v after the other backend has gone", how, c)
			}
			s.svc.SetGen, s.all = 2, []netip.AddrPort{gone}
			b.port(1, unix.IPPROTO_TCP, s)
			if c := chosen(5000); c[how] != 0 {
				t.Errorf("client stays at its backend, which gets nothing new: %v", c)
			}
		}
	})
}

// TestMaglev: what the table says holds for callers from outside, the same for the same flow.
func TestMaglev(t *testing.T) {
	both(t, func(c *bpf.Config) { c.MaglevSize, c.MaglevSeed = 3, 42 }, func(t *testing.T, b *bench) {
		b.ready()
		s := behind{all: []netip.AddrPort{netip.AddrPortFrom(b.podB().ip, 8080)}, svc: bpf.Svc{Maglev: 1}}
		b.port(2, unix.IPPROTO_TCP, behind{all: []netip.AddrPort{netip.AddrPortFrom(b.remotePod(), 8080)}})
		other := 200 + uint32(b.remotePod().As16()[15])
		b.port(1, unix.IPPROTO_TCP, s)
		b.front(1, netip.AddrPortFrom(b.any(), nodePort), unix.IPPROTO_TCP, outsideNodePort)
		// the table knows another backend than the block, so that it shows who chose
		b.put("maglev", uint32(1), bpf.Maglev{BackendId: [2]uint32{other, other}})
		b.put("maglev", uint32(2), bpf.Maglev{BackendId: [2]uint32{other, 0}})
		for i := range uint16(16) {
			b.expect("outside", b.dial(b.node(), 1000+i, nodePort), actRedirect, byTunnel, vxlanDev)
		}
		r := b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.node()}, tcp: syn(clientPrt, nodePort)}.bytes(t))
		b.expect("inside", r, actRedirect, byPeer, podBDev)
	})
}

// TestDSR: the packet travels to the node of its backend as it came, and that one answers the client.
func TestDSR(t *testing.T) {
	both(t, func(c *bpf.Config) { c.LBMode = bpf.LBHybrid }, func(t *testing.T, b *bench) {
		b.ready()
		b.port(1, unix.IPPROTO_TCP, behind{all: []netip.AddrPort{netip.AddrPortFrom(b.remotePod(), 8080)}})
		b.front(1, netip.AddrPortFrom(b.any(), nodePort), unix.IPPROTO_TCP, outsideNodePort)
		b.port(2, unix.IPPROTO_UDP, behind{all: []netip.AddrPort{netip.AddrPortFrom(b.remotePod(), 8080)}})
		b.front(2, netip.AddrPortFrom(b.any(), nodePort), unix.IPPROTO_UDP, outsideNodePort)
		sent := func(what string, r outcome) {
			t.Helper()
			b.expect(what, r, actRedirect, byTunnel, vxlanDev)
			if s := look(t, r.pkt); r.rec.TunId != 0xfffffe || s.src != netip.AddrPortFrom(b.world(), clientPrt) || s.dst != netip.AddrPortFrom(b.node(), nodePort) {
				t.Errorf("%s left as %s -> %s, VNI %#x", what, s.src, s.dst, r.rec.TunId)
			}
		}
		sent("SYN", b.dial(b.node(), clientPrt, nodePort))
		b.port(1, unix.IPPROTO_TCP, behind{})
		p := ackOf(clientPrt, nodePort)
		p.src, p.dst = host{ip: b.world()}, host{ip: b.node()}
		sent("ACK", b.run("nd_from", p.bytes(t)))
		if n, c := b.entries(); n != 0 || c != 1 {
			t.Errorf("%d new and %d confirmed entries, want 0 and 1", n, c)
		}
		r := b.run("nd_from", packet{src: host{ip: b.world()}, dst: host{ip: b.node()}, udp: udp(clientPrt, nodePort)}.bytes(t))
		b.expect("UDP", r, actRedirect, byTunnel, vxlanDev)
		if s := look(t, r.pkt); s.src.Addr() != b.snatAddr() {
			t.Errorf("hybrid: UDP left from %s", s.src)
		}
	})
	// Whatever a node does with its own callers, it answers those of another one: while the mode is being
	// changed nodes differ, and flows outlast the change.
	for name, mode := range map[string]uint8{"dsr": bpf.LBDSR, "snat": bpf.LBSNAT} {
		t.Run(name, func(t *testing.T) {
			both(t, func(c *bpf.Config) { c.LBMode = mode }, answersSentOn)
		})
	}
}

// answersSentOn is the node of the backend.
func answersSentOn(t *testing.T, b *bench) {
	b.ready()
	b.port(1, unix.IPPROTO_TCP, behind{
		all:   []netip.AddrPort{netip.AddrPortFrom(b.podB().ip, 8080), netip.AddrPortFrom(b.remotePod(), 8080)},
		local: []netip.AddrPort{netip.AddrPortFrom(b.podB().ip, 8080)},
	})
	b.front(1, netip.AddrPortFrom(b.any(), nodePort), unix.IPPROTO_TCP, outsideNodePort)
	dsr := tunnelID(0xfffffe)
	r := b.run("ov_from", packet{src: host{ip: b.world()}, dst: host{ip: b.otherNode()}, tcp: syn(clientPrt, nodePort)}.bytes(t), dsr)
	b.expect("SYN", r, actRedirect, byPeer, podBDev)
	if s := look(t, r.pkt); s.src != netip.AddrPortFrom(b.world(), clientPrt) || s.dst != netip.AddrPortFrom(b.podB().ip, 8080) {
		t.Errorf("SYN left as %s -> %s", s.src, s.dst)
	}
	b.at(b.podB())
	r = b.run("pod_from", synAck(b.podB(), b.world(), 8080, clientPrt).bytes(t))
	b.expect("SYN-ACK", r, actRedirect, byNeighbour, 0)
	if s := look(t, r.pkt); s.src != netip.AddrPortFrom(b.otherNode(), nodePort) || s.dst != netip.AddrPortFrom(b.world(), clientPrt) {
		t.Errorf("SYN-ACK left as %s -> %s", s.src, s.dst)
	}
	b.expect("no such port", b.run("ov_from", packet{src: host{ip: b.world()}, dst: host{ip: b.otherNode()}, tcp: syn(clientPrt, nodePort+1)}.bytes(t), dsr), actDrop, 0, 0)
	r = b.run("ov_from", packet{src: host{ip: b.world()}, dst: host{ip: b.podA().ip}, tcp: syn(clientPrt, 80)}.bytes(t), dsr)
	b.expect("no Service", r, actDrop, 0, 0)
}

// TestSourcePortsComeBack: when the ports to a backend are used up, flows that are over give theirs.
func TestSourcePortsComeBack(t *testing.T) {
	few := func(c *bpf.Config) { c.SNATAddrMin, c.SNATAddrMax = 2000, 2003 }
	both(t, few, func(t *testing.T, b *bench) {
		b.ready()
		b.port(1, unix.IPPROTO_TCP, behind{all: []netip.AddrPort{netip.AddrPortFrom(b.remotePod(), 8080)}})
		b.front(1, netip.AddrPortFrom(b.any(), nodePort), unix.IPPROTO_TCP, outsideNodePort)
		var ports []uint16
		for i := range uint16(4) {
			r := b.dial(b.node(), 1000+i, nodePort)
			b.expect("while there are ports", r, actRedirect, byTunnel, vxlanDev)
			ports = append(ports, look(t, r.pkt).src.Port())
		}
		b.expect("when there are none", b.dial(b.node(), 1010, nodePort), actDrop, 0, 0)
		reset := packet{src: host{ip: b.remotePod()}, dst: host{ip: b.snatAddr()}, tcp: syn(8080, ports[2])}
		reset.tcp.SYN, reset.tcp.RST = false, true
		b.run("ov_from", reset.bytes(t), tunnelID(idRemote))
		b.expect("at once", b.dial(b.node(), 1011, nodePort), actDrop, 0, 0)
		b.age(2000)
		r := b.dial(b.node(), 1012, nodePort)
		b.expect("a second after a flow has ended", r, actRedirect, byTunnel, vxlanDev)
		if p := look(t, r.pkt).src.Port(); p != ports[2] {
			t.Errorf("port %d, want that of the ended flow, %d", p, ports[2])
		}
	})
}

// TestSourcePortIsKept: a client has its own port at the backend.
func TestSourcePortIsKept(t *testing.T) {
	both(t, nil, func(t *testing.T, b *bench) {
		b.ready()
		b.port(1, unix.IPPROTO_TCP, behind{all: []netip.AddrPort{netip.AddrPortFrom(b.remotePod(), 8080)}})
		b.front(1, netip.AddrPortFrom(b.any(), nodePort), unix.IPPROTO_TCP, outsideNodePort)
		source := func(sport uint16) uint16 {
			r := b.dial(b.node(), sport, nodePort)
			b.expect("SYN", r, actRedirect, byTunnel, vxlanDev)
			out := look(t, r.pkt).src.Port()
			reset := packet{src: host{ip: b.remotePod()}, dst: host{ip: b.snatAddr()}, tcp: syn(8080, out)}
			reset.tcp.SYN, reset.tcp.RST = false, true
			b.run("ov_from", reset.bytes(t), tunnelID(idRemote))
			return out
		}
		for range 2 {
			for sport := uint32(1024); sport < 65536; sport += 797 {
				if got := source(uint16(sport)); got != uint16(sport) {
					t.Errorf("port %d became %d", sport, got)
				}
			}
			b.age(2000)
		}
	})
}

// age makes every entry of the flow tables older, in the unit of Ct.Seen.
func (b *bench) age(by uint32) {
	b.t.Helper()
	for _, name := range []string{"ct4", "ct4_new"} {
		var k bpf.Ct4Key
		var v bpf.Ct4
		for it := b.coll.Maps[name].Iterate(); it.Next(&k, &v); {
			v.C.Seen -= by
			b.put(name, k, v)
		}
	}
	for _, name := range []string{"ct6", "ct6_new"} {
		var k bpf.Ct6Key
		var v bpf.Ct6
		for it := b.coll.Maps[name].Iterate(); it.Next(&k, &v); {
			v.C.Seen -= by
			b.put(name, k, v)
		}
	}
}
