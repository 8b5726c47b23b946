// SPDX-License-Identifier: Apache-2.0

package test

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"lash.internal/lash/bpf"
)

// TestFlowsMove: the flows of the generation before go on in new tables, translated as they were.
func TestFlowsMove(t *testing.T) {
	both(t, nil, func(t *testing.T, old *bench) {
		services := func(b *bench) {
			backends := make([]netip.AddrPort, 0, 8)
			for i := range 8 {
				backends = append(backends, netip.AddrPortFrom(b.addr("10.0.2.1", "fd00:10:2::1"), 8080+uint16(i)))
			}
			b.service(1, 80, unix.IPPROTO_TCP, 1, backends[:1]...)
			for i, a := range backends { // one address, so that each has an id of its own
				b.put("backend", uint32(100+i), bpf.Backend{Ip: bpf.IP(a.Addr()), Port: bpf.Port(a.Port()), Proto: unix.IPPROTO_TCP, State: bpf.BackendActive})
			}
			b.put("slot", uint32(1), bpf.Slots{BackendId: [16]uint32{100, 101, 102, 103, 104, 105, 106, 107}})
			b.put("svc", uint32(1), bpf.Svc{BlkAll: bpf.SlotsPerElem | 8<<bpf.SvcBlockShift, Gen: 1})
		}
		services(old)
		// Masquerade, answered: in the main tier. A Service, not answered: in the other.
		out := packet{src: old.podA(), dst: host{ip: old.world()}, udp: udp(clientPrt, 123)}
		port := look(t, old.run("nd_to", out.bytes(t)).pkt).src.Port()
		in := packet{src: host{ip: old.world()}, dst: host{ip: old.node()}, reply: true, udp: udp(123, port)}
		old.run("nd_from", in.bytes(t))
		ack := func(s, d uint16) *layers.TCP {
			return &layers.TCP{SrcPort: layers.TCPPort(s), DstPort: layers.TCPPort(d), ACK: true, Seq: 8, Window: 1000}
		}
		ask := func(b *bench, flags func(s, d uint16) *layers.TCP) uint16 {
			return look(t, b.run("pod_from", packet{src: b.podA(), dst: host{ip: b.vip()}, tcp: flags(clientPrt, 80)}.bytes(t)).pkt).dst.Port()
		}
		chosen := ask(old, syn)
		old.run("pod_from", packet{src: old.podA(), dst: host{ip: old.remotePod()}, tcp: syn(clientPrt, 81)}.bytes(t)) // nothing more of it

		b := newBenchAfter(t, old.v6, nil, old)
		services(b)
		r := b.run("nd_from", in.bytes(t))
		if back := look(t, r.pkt); back.dst.Addr() != b.podA().ip || back.dst.Port() != clientPrt {
			t.Errorf("the reply goes to %s", back.dst)
		}
		if got := look(t, b.run("nd_to", out.bytes(t)).pkt).src.Port(); got != port {
			t.Errorf("the next packet leaves from port %d, want %d", got, port)
		}
		for range 4 {
			if got := ask(b, ack); got != chosen {
				t.Errorf("the connection goes on to backend port %d, want %d", got, chosen)
			}
		}
		// A port that a flow of the tables before has is taken.
		other := packet{src: b.podB(), dst: host{ip: b.world()}, udp: udp(port, 123)}
		if got := look(t, b.run("nd_to", other.bytes(t)).pkt).src.Port(); got == port {
			t.Errorf("two flows leave from port %d", port)
		}
		// What no packet has moved the agent moves.
		fresh, confirmed := old.entries()
		if fresh+confirmed == 0 {
			t.Fatal("nothing is left to move")
		}
		b.moveAll(old)
		if f, c := old.entries(); f+c != 0 {
			t.Errorf("%d entries are left in the tables before", f+c)
		}
		if f, c := b.entries(); f+c != fresh+confirmed+2 { // and the two halves of podB's flow
			t.Errorf("%d entries, want %d", f+c, fresh+confirmed+2)
		}
		if got := ask(b, ack); got != chosen {
			t.Errorf("after the move the connection goes on to backend port %d, want %d", got, chosen)
		}
	})
}

// moveAll has the program take over every flow of the tables before.
func (b *bench) moveAll(old *bench) {
	b.t.Helper()
	name, v6 := "ct4", uint32(0)
	if b.v6 {
		name, v6 = "ct6", 1
	}
	for tier, m := range []string{name, name + "_new"} {
		from := old.coll.Maps[m]
		var last any
		n := uint32(0)
		for {
			key, err := from.NextKeyBytes(last)
			if err != nil {
				b.t.Fatal(err)
			}
			if key == nil {
				break
			}
			it := bpf.GcItem{Tier: uint8(tier)}
			copy(it.Key[:], key)
			b.put("gc_batch", n, it)
			n++
			last = key
		}
		var out bpf.GcExpire
		if _, err := b.coll.Programs["ct_move"].Run(runContext(bpf.GcExpire{Count: n, V6: v6}, &out)); err != nil {
			b.t.Fatal(err)
		}
		if out.Deleted != n {
			b.t.Errorf("%s: %d of %d moved", m, out.Deleted, n)
		}
	}
}
