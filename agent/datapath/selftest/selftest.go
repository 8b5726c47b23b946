// SPDX-License-Identifier: Apache-2.0

// Package selftest runs canned packets through programs before they are attached anywhere: the
// programs as this kernel has taken them, with the constants of this node, over maps of their own.
//
// The kernel runs a test packet in the network namespace of the caller. An agent has no right to
// make another one, so the packets are chosen so that no route of the node bears on them: none is
// sent out by the node's routing, and every address comes from the ranges for documentation.
package selftest

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"lash.internal/lash/agent/datapath/loader"
	"lash.internal/lash/bpf"
)

// ErrFailed says that programs do not do with packets what they should.
var ErrFailed = errors.New("self-test failed")

// What programs return (enum of the kernel's traffic control), and how a packet leaves, as they
// record it (enum fwd_how of bpf/lib/pkt.h).
const (
	actNext     = 0xffffffff
	actDrop     = 2
	actRedirect = 7

	untouched = 0
	byStack   = 1
	byPeer    = 2
	byDevice  = 3
	byTunnel  = 5
)

// Devices and numbers of the test's world.
const (
	here      = 1 // the loopback device: where test packets come from
	podBDev   = 22
	tunnelDev = 23
	idA       = 1001
	idB       = 1002
	idRemote  = 1003
	vtep      = 3
	service   = 1
	dead      = 2 // a Service without backends
	markDone  = 0x0300
)

var podBMAC = [6]byte{2, 0, 0, 0, 0, 0x0b}

// bench is one family's world.
type bench struct {
	cfg  bpf.Config
	v6   bool
	s    *loader.Scratch
	errs []error
	sent int
}

// Run loads the objects over scratch maps and sends the packets that concern the configuration. It
// returns how many it sent; the error wraps ErrFailed when one did not do what it should.
func Run(specs *loader.Specs, cfg bpf.Config) (sent int, err error) {
	s, err := specs.Scratch(cfg)
	if err != nil {
		return 0, fmt.Errorf("self-test: load: %w", err)
	}
	defer s.Close()
	var errs []error
	for _, v6 := range []bool{false, true} {
		if (v6 && !cfg.IPv6) || (!v6 && !cfg.IPv4) {
			continue
		}
		b := &bench{cfg: cfg, v6: v6, s: s}
		if err := b.fill(); err != nil {
			return sent, fmt.Errorf("self-test: %w", err)
		}
		b.pods()
		if cfg.Tunnel {
			b.tunnel()
		} else {
			b.native()
		}
		b.host()
		b.errors()
		if cfg.KubeProxyReplacement {
			b.services()
		}
		if (v6 && cfg.Masquerade6) || (!v6 && cfg.Masquerade4) {
			b.masquerade()
		}
		b.purge()
		sent += b.sent
		errs = append(errs, b.errs...)
	}
	if err := errors.Join(errs...); err != nil {
		return sent, fmt.Errorf("%w: %w", ErrFailed, err)
	}
	return sent, nil
}

func (b *bench) addr(v4, v6 string) netip.Addr {
	if b.v6 {
		return netip.MustParseAddr(v6)
	}
	return netip.MustParseAddr(v4)
}

func (b *bench) podA() netip.Addr   { return b.addr("192.0.2.11", "2001:db8:1::11") }
func (b *bench) podB() netip.Addr   { return b.addr("192.0.2.12", "2001:db8:1::12") }
func (b *bench) remote() netip.Addr { return b.addr("198.51.100.11", "2001:db8:2::11") }
func (b *bench) node() netip.Addr   { return b.addr("192.0.2.1", "2001:db8:1::1") }
func (b *bench) vip() netip.Addr    { return b.addr("192.0.2.53", "2001:db8:53::1") }
func (b *bench) world() netip.Addr  { return b.addr("203.0.113.9", "2001:db8:9::9") }

func (b *bench) router() netip.Addr {
	if b.v6 {
		return b.cfg.Router6
	}
	return b.cfg.Router4
}

// fill writes the maps.
func (b *bench) fill() error {
	var errs []error
	put := func(m string, k, v any) {
		if b.s.Maps[m] == nil {
			errs = append(errs, fmt.Errorf("no map %s", m))
		} else if err := b.s.Maps[m].Put(k, v); err != nil {
			errs = append(errs, fmt.Errorf("map %s: %w", m, err))
		}
	}
	who := func(a netip.Addr, v bpf.Addr) { put("addr", bpf.AddrKey{Ip: bpf.IP(a)}, v) }
	put("cfg", uint32(0), bpf.RunCfg{DropRate: 1000, TraceRate: 1000, TraceEvery: 1, VxlanIfindex: tunnelDev})
	for _, p := range []struct {
		dev, id uint32
		ip      netip.Addr
		mac     [6]byte
	}{{here, idA, b.podA(), [6]byte{2, 0, 0, 0, 0, 0x0a}}, {podBDev, idB, b.podB(), podBMAC}} {
		e := bpf.Ep{Identity: p.id, EpId: p.id - 1000, Ifindex: p.dev, Mac: p.mac, NodeMac: [6]byte{2, 0, 0, 0, 0, 1}}
		if b.v6 {
			e.Ipv6 = p.ip.As16()
		} else {
			e.Ipv4 = p.ip.As4()
		}
		put("ep", p.dev, e)
		who(p.ip, bpf.Addr{Kind: bpf.AddrLocalEP, Identity: p.id, Ifindex: p.dev, EpId: p.id - 1000})
	}
	who(b.node(), bpf.Addr{Kind: bpf.AddrLocalNode, Identity: bpf.IdentityHost})
	who(b.remote(), bpf.Addr{Kind: bpf.AddrRemoteEP, Identity: idRemote, Vtep: vtep})
	put("vtep", uint32(vtep), bpf.Vtep{Ip: bpf.IP(netip.MustParseAddr("203.0.113.2"))})
	put("dev", uint32(here), bpf.Dev{
		Masq4: [4]byte{192, 0, 2, 1}, Masq6: netip.MustParseAddr("2001:db8:1::1").As16(), Mtu: 1500,
	})
	who(b.vip(), bpf.Addr{Kind: bpf.AddrVIP, Flags: bpf.AddrHasSvc, Identity: bpf.IdentityWorld})
	put("front", bpf.FrontKey{Ip: bpf.IP(b.vip()), Port: bpf.Port(53), Proto: udp}, bpf.Front{SvcId: service})
	put("front", bpf.FrontKey{Ip: bpf.IP(b.vip()), Port: bpf.Port(80), Proto: tcp}, bpf.Front{SvcId: dead})
	put("backend", uint32(1), bpf.Backend{Ip: bpf.IP(b.podB()), Port: bpf.Port(5353), Proto: udp, State: bpf.BackendActive})
	put("slot", uint32(service), bpf.Slots{BackendId: [bpf.SlotsPerElem]uint32{1}})
	put("svc", uint32(service), bpf.Svc{BlkAll: service*bpf.SlotsPerElem | 1<<bpf.SvcBlockShift})
	put("svc", uint32(dead), bpf.Svc{})
	return errors.Join(errs...)
}

// context is the head of struct __sk_buff.
type context struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTci, VlanProto, Priority uint32
	IngressIfindex, Ifindex, TcIndex                                                      uint32
	Cb                                                                                    [5]uint32
}

// outcome is what has become of a packet.
type outcome struct {
	act  uint32
	rec  bpf.TestRec
	pkt  seen
	same bool // the bytes are those that went in
}

// send runs one packet through a program. what names the case; of the packet that comes out only
// what says that it is IP is looked at.
func (b *bench) send(what, prog string, frame []byte, in context) (outcome, bool) {
	b.sent++
	fail := func(err error) (outcome, bool) {
		b.fail(what, "%s: %w", prog, err)
		return outcome{}, false
	}
	p, recs := b.s.Programs[prog], b.s.Maps["test_rec"]
	if p == nil || recs == nil {
		return fail(errors.New("no such program"))
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fail(err)
	}
	if err := recs.Put(uint32(0), make([]bpf.TestRec, cpus)); err != nil {
		return fail(err)
	}
	o := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: in}
	act, err := p.Run(&o)
	if err != nil {
		return fail(err)
	}
	out := outcome{act: act, same: string(o.DataOut) == string(frame)}
	var all []bpf.TestRec
	if err := recs.Lookup(uint32(0), &all); err != nil {
		return fail(err)
	}
	for _, r := range all {
		if r.Helper != 0 {
			out.rec = r
		}
	}
	if act != actDrop && len(o.DataOut) > ethLen && (o.DataOut[12] == 8 || o.DataOut[12] == 0x86) && o.DataOut[13] != 6 {
		if out.pkt, err = parse(o.DataOut); err != nil {
			return fail(err)
		}
	}
	return out, true
}

func (b *bench) fail(what, format string, args ...any) {
	family := "IPv4"
	if b.v6 {
		family = "IPv6"
	}
	b.errs = append(b.errs, fmt.Errorf("%s, %s: %w", what, family, fmt.Errorf(format, args...)))
}

// expect sends a packet and compares what the program does with it. check sees what came out.
func (b *bench) expect(what, prog string, frame []byte, in context, act, how, oif uint32, check func(outcome) bool) {
	r, ok := b.send(what, prog, frame, in)
	switch {
	case !ok:
	case r.act != act || (act != actDrop && (r.rec.Helper != how || (how != byStack && r.rec.Ifindex != oif))):
		b.fail(what, "%s returned %d and recorded way %d to device %d, want %d, %d, %d", prog, int32(r.act), r.rec.Helper, r.rec.Ifindex, int32(act), how, oif)
	case check != nil && !check(r):
		b.fail(what, "%s let out %+v %+v", prog, r.pkt, r.rec)
	}
}
