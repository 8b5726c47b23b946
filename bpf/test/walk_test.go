// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"lash.internal/lash/bpf"
)

// Actions that programs return.
const (
	actNext     = 0xffffffff
	actDrop     = 2
	actRedirect = 7
)

// How a packet left, as programs record it in test_rec.
const (
	byStack  = 1
	byPeer   = 2
	byDevice = 3
	byTunnel = 5
	byHere   = 7
)

const (
	here      = 1 // the loopback device: what test runs take as the device of a packet
	vxlanDev  = 77
	peerVtep  = 3
	podADev   = here
	podBDev   = 22
	idA       = 1001
	idB       = 1002
	idRemote  = 1003
	loopMAC   = "00:00:00:00:00:00"
	clientPrt = 40000
)

// bench runs single programs on single packets.
type bench struct {
	t    *testing.T
	v6   bool
	coll *ebpf.Collection
	ns   *namespace
}

type host struct {
	ip  netip.Addr
	mac net.HardwareAddr
}

func mac(s string) net.HardwareAddr { m, _ := net.ParseMAC(s); return m }

// The addresses of the bench, one family at a time.
func (b *bench) addr(v4, v6 string) netip.Addr {
	if b.v6 {
		return netip.MustParseAddr(v6)
	}
	return netip.MustParseAddr(v4)
}

func (b *bench) podA() host {
	return host{b.addr("10.0.1.11", "fd00:10:1::11"), mac("02:00:00:00:00:0a")}
}

func (b *bench) podB() host {
	return host{b.addr("10.0.1.12", "fd00:10:1::12"), mac("02:00:00:00:00:0b")}
}
func (b *bench) remotePod() netip.Addr { return b.addr("10.0.2.11", "fd00:10:2::11") }
func (b *bench) node() netip.Addr      { return b.addr("192.168.0.1", "fd00:1::1") }
func (b *bench) router() netip.Addr    { return b.addr("10.0.1.1", "fd00:10:1::1") }
func (b *bench) snatAddr() netip.Addr  { return b.addr("10.0.1.254", "fd00:10:1::fffe") }
func (b *bench) world() netip.Addr     { return b.addr("203.0.113.9", "2001:db8::9") }
func (b *bench) vip() netip.Addr       { return b.addr("10.96.0.10", "fd00:96::10") }

var gatewayMAC = mac("02:00:00:00:00:01")

// both runs a test for each family on a fresh set of maps.
func both(t *testing.T, conf func(*bpf.Config), f func(t *testing.T, b *bench)) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, v6 := range []bool{false, true} {
		t.Run(family(v6), func(t *testing.T) { f(t, newBench(t, v6, conf)) })
	}
}

func newBench(t *testing.T, v6 bool, conf func(*bpf.Config)) *bench {
	t.Helper()
	return newBenchAfter(t, v6, conf, nil)
}

// newBenchAfter is a bench whose flow tables come after those of another one: its flows move here.
func newBenchAfter(t *testing.T, v6 bool, conf func(*bpf.Config), before *bench) *bench {
	t.Helper()
	b := &bench{t: t, v6: v6, ns: newNamespace(t, "bench")}
	spec, err := bpf.LoadTc()
	if err != nil {
		t.Fatal(err)
	}
	gc, err := bpf.LoadGc()
	if err != nil {
		t.Fatal(err)
	}
	shrink(spec)
	shrink(gc)
	c := bpf.DefaultConfig()
	c.Test = true
	c.Router4, c.Router6 = netip.MustParseAddr("10.0.1.1"), netip.MustParseAddr("fd00:10:1::1")
	c.SNATAddr4, c.SNATAddr6 = netip.MustParseAddr("10.0.1.254"), netip.MustParseAddr("fd00:10:1::fffe")
	if conf != nil {
		conf(&c)
	}
	spec.Maps["maglev"].MaxEntries = 1 + (c.MaglevSize+1)/2
	prev := map[string]*ebpf.Map{}
	if before != nil {
		c.FlowsMove = true
		for _, name := range []string{"ct4", "ct4_new", "ct6", "ct6_new"} {
			m := before.coll.Maps[name]
			prev[name+"_prev"] = m
			for _, ms := range []*ebpf.MapSpec{spec.Maps[name+"_prev"], gc.Maps[name+"_prev"]} {
				ms.MaxEntries, ms.Flags = m.MaxEntries(), m.Flags() // whatever tables of before had, as on a node
			}
		}
	}
	if err := c.Apply(spec); err != nil {
		t.Fatal(err)
	}
	if b.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: prev}); err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(b.coll.Close)
	shared := map[string]*ebpf.Map{}
	for name := range gc.Maps {
		if m := b.coll.Maps[name]; m != nil {
			shared[name] = m
		}
	}
	g, err := ebpf.NewCollectionWithOptions(gc, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	for name, p := range g.Programs {
		b.coll.Programs[name] = p
		delete(g.Programs, name)
	}
	b.coll.Maps["gc_batch"] = g.Maps["gc_batch"]
	delete(g.Maps, "gc_batch")
	g.Close()
	b.fill()
	return b
}

func (b *bench) fill() {
	b.put("cfg", uint32(0), switches())
	b.endpoint(podADev, b.podA(), idA)
	b.endpoint(podBDev, b.podB(), idB)
	b.who(b.node(), bpf.Addr{Kind: bpf.AddrLocalNode, Identity: bpf.IdentityHost})
	b.who(b.router(), bpf.Addr{Kind: bpf.AddrGateway, Identity: bpf.IdentityHost})
	b.who(b.snatAddr(), bpf.Addr{Kind: bpf.AddrGateway, Identity: bpf.IdentityHost})
	b.who(b.remotePod(), bpf.Addr{Kind: bpf.AddrRemoteEP, Identity: idRemote, Vtep: peerVtep})
	b.put("vtep", uint32(peerVtep), bpf.Vtep{Ip: bpf.IP(netip.MustParseAddr("192.168.0.2"))})
	b.put("cidr", bpf.CIDR(netip.MustParsePrefix("10.0.2.0/24")), bpf.Cidr{Kind: bpf.CIDRPod, Vtep: peerVtep})
	b.put("cidr", bpf.CIDR(netip.MustParsePrefix("fd00:10:2::/64")), bpf.Cidr{Kind: bpf.CIDRPod, Vtep: peerVtep})
	b.put("dev", uint32(here), bpf.Dev{
		Masq4: [4]byte{192, 168, 0, 1}, Masq6: netip.MustParseAddr("fd00:1::1").As16(), Mtu: 1500,
	})
}

func switches() bpf.RunCfg {
	return bpf.RunCfg{ReportInterval: 4768, DropRate: 1000, TraceRate: 1000, VxlanIfindex: vxlanDev}
}

func (b *bench) put(m string, k, v any) {
	b.t.Helper()
	if err := b.coll.Maps[m].Put(k, v); err != nil {
		b.t.Fatalf("map %s: %v", m, err)
	}
}

func (b *bench) who(ip netip.Addr, a bpf.Addr) {
	b.t.Helper()
	b.put("addr", bpf.AddrKey{Ip: bpf.IP(ip)}, a)
}

// endpoint puts a pod behind a device.
func (b *bench) endpoint(dev uint32, h host, id uint32) {
	b.t.Helper()
	e := bpf.Ep{Identity: id, EpId: id - 1000, Ifindex: dev}
	copy(e.Mac[:], h.mac)
	copy(e.NodeMac[:], gatewayMAC)
	if b.v6 {
		e.Ipv6 = h.ip.As16()
	} else {
		e.Ipv4 = h.ip.As4()
	}
	b.put("ep", dev, e)
	b.who(h.ip, bpf.Addr{Kind: bpf.AddrLocalEP, Identity: id, Ifindex: dev, EpId: id - 1000})
}

// at moves the bench behind another pod: its packets now enter here.
func (b *bench) at(pod host) {
	b.t.Helper()
	if pod.ip == b.podA().ip {
		b.endpoint(here, b.podA(), idA)
		b.endpoint(podBDev, b.podB(), idB)
		return
	}
	b.endpoint(here, b.podB(), idB)
	b.endpoint(podBDev, b.podA(), idA)
}

// service publishes one port with backends.
func (b *bench) service(id uint32, port uint16, proto uint8, gen uint32, backends ...netip.AddrPort) {
	b.t.Helper()
	b.who(b.vip(), bpf.Addr{Kind: bpf.AddrVIP, Flags: bpf.AddrHasSvc})
	b.put("front", bpf.FrontKey{Ip: bpf.IP(b.vip()), Port: bpf.Port(port), Proto: proto}, bpf.Front{SvcId: id})
	var s bpf.Slots
	for i, a := range backends {
		bid := uint32(binary.BigEndian.Uint16(a.Addr().AsSlice()[len(a.Addr().AsSlice())-2:]))
		s.BackendId[i] = bid
		b.put("backend", bid, bpf.Backend{Ip: bpf.IP(a.Addr()), Port: bpf.Port(a.Port()), Proto: proto, State: bpf.BackendActive})
	}
	b.put("slot", id, s)
	b.put("svc", id, bpf.Svc{BlkAll: uint64(id*bpf.SlotsPerElem) | uint64(len(backends))<<bpf.SvcBlockShift, Gen: gen})
}

// skb is the part of struct __sk_buff that a test run takes.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTci, VlanProto, Priority uint32
	IngressIfindex, Ifindex, TcIndex                                                      uint32
	Cb                                                                                    [5]uint32
	Hash, TcClassid, Data, DataEnd, NapiID, Family, RemoteIP4, LocalIP4                   uint32
	RemoteIP6, LocalIP6                                                                   [4]uint32
	RemotePort, LocalPort, DataMeta                                                       uint32
	FlowKeys, Tstamp                                                                      uint64
	WireLen, GsoSegs                                                                      uint32
	Sk                                                                                    uint64
	GsoSize                                                                               uint32
	TstampType                                                                            uint32
	Hwtstamp                                                                              uint64
}

type outcome struct {
	act  uint32
	pkt  []byte
	rec  bpf.TestRec
	mark uint32
}

// run sends one packet through a program.
func (b *bench) run(prog string, pkt []byte, change ...func(*skb)) outcome {
	b.t.Helper()
	cpus := ebpf.MustPossibleCPU()
	b.put("test_rec", uint32(0), make([]bpf.TestRec, cpus))
	var in, out skb
	for _, c := range change {
		c(&in)
	}
	o := ebpf.RunOptions{Data: pkt, DataOut: make([]byte, len(pkt)+256), Context: &in, ContextOut: &out}
	var act uint32
	b.ns.must(func() error {
		var err error
		act, err = b.coll.Programs[prog].Run(&o)
		return err
	})
	var recs []bpf.TestRec
	if err := b.coll.Maps["test_rec"].Lookup(uint32(0), &recs); err != nil {
		b.t.Fatal(err)
	}
	r := outcome{act: act, pkt: o.DataOut, mark: out.Mark}
	for _, rec := range recs {
		if rec.Helper != 0 {
			r.rec = rec
		}
	}
	b.checksums(r.pkt)
	return r
}

// checksums fails the test if a packet's checksums are wrong.
func (b *bench) checksums(pkt []byte) {
	b.t.Helper()
	p := gopacket.NewPacket(pkt, layers.LayerTypeEthernet, gopacket.Default)
	frag := false
	if ip, ok := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4); ok {
		frag = ip.Flags&layers.IPv4MoreFragments != 0 || ip.FragOffset != 0
		if sum(ip.Contents, 0) != 0 {
			b.t.Errorf("wrong IPv4 header checksum: % x", pkt)
		}
	}
	if p.Layer(layers.LayerTypeIPv6Fragment) != nil {
		frag = true
	}
	if frag {
		return
	}
	n := p.NetworkLayer()
	if n == nil {
		return
	}
	pseudo := func(proto uint8, l int) uint32 {
		buf := append(append([]byte{}, n.NetworkFlow().Src().Raw()...), n.NetworkFlow().Dst().Raw()...)
		buf = append(buf, byte(l>>8), byte(l), 0, proto)
		return partial(buf)
	}
	payload := n.LayerPayload()
	switch {
	case p.Layer(layers.LayerTypeTCP) != nil:
		if sum(payload, pseudo(6, len(payload))) != 0 {
			b.t.Errorf("wrong TCP checksum: % x", pkt)
		}
	case p.Layer(layers.LayerTypeUDP) != nil:
		if binary.BigEndian.Uint16(payload[6:]) != 0 && sum(payload, pseudo(17, len(payload))) != 0 {
			b.t.Errorf("wrong UDP checksum: % x", pkt)
		}
	case p.Layer(layers.LayerTypeICMPv4) != nil:
		if sum(payload, 0) != 0 {
			b.t.Errorf("wrong ICMP checksum: % x", pkt)
		}
	case p.Layer(layers.LayerTypeICMPv6) != nil:
		if sum(payload, pseudo(58, len(payload))) != 0 {
			b.t.Errorf("wrong ICMPv6 checksum: % x", pkt)
		}
	}
}

func partial(b []byte) uint32 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	return s
}

func sum(b []byte, start uint32) uint16 {
	s := partial(b) + start
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

// packet describes what to send; the zero value of a field means its usual value.
type packet struct {
	src, dst     host
	ttl          uint8
	tcp          *layers.TCP
	udp          *layers.UDP
	echo         uint16 // id of an echo request
	reply        bool   // echo reply
	more         bool   // fragments follow
	fragOff      uint16
	fragID       uint16
	dontFragment bool
	data         []byte
	noUDPSum     bool
}

// bytes serializes a packet with right checksums.
func (p packet) bytes(t *testing.T) []byte {
	t.Helper()
	if p.src.mac == nil {
		p.src.mac = mac(loopMAC)
	}
	if p.dst.mac == nil {
		p.dst.mac = gatewayMAC
	}
	if p.ttl == 0 {
		p.ttl = 64
	}
	eth := &layers.Ethernet{SrcMAC: p.src.mac, DstMAC: p.dst.mac}
	var ls []gopacket.SerializableLayer
	var nl gopacket.NetworkLayer
	proto := layers.IPProtocolUDP
	v6 := p.src.ip.Is6()
	switch {
	case p.tcp != nil:
		proto = layers.IPProtocolTCP
	case p.udp == nil && v6:
		proto = layers.IPProtocolICMPv6
	case p.udp == nil:
		proto = layers.IPProtocolICMPv4
	}
	if v6 {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, HopLimit: p.ttl, NextHeader: proto, SrcIP: p.src.ip.AsSlice(), DstIP: p.dst.ip.AsSlice()}
		nl = ip
		ls = append(ls, eth, ip)
	} else {
		eth.EthernetType = layers.EthernetTypeIPv4
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: p.ttl, Protocol: proto, Id: p.fragID, FragOffset: p.fragOff, SrcIP: p.src.ip.AsSlice(), DstIP: p.dst.ip.AsSlice()}
		if p.more {
			ip.Flags |= layers.IPv4MoreFragments
		}
		if p.dontFragment {
			ip.Flags |= layers.IPv4DontFragment
		}
		nl = ip
		ls = append(ls, eth, ip)
	}
	switch {
	case p.fragOff > 0:
	case p.tcp != nil:
		p.tcp.SetNetworkLayerForChecksum(nl)
		ls = append(ls, p.tcp)
	case p.udp != nil:
		p.udp.SetNetworkLayerForChecksum(nl)
		ls = append(ls, p.udp)
	case v6:
		typ := uint8(layers.ICMPv6TypeEchoRequest)
		if p.reply {
			typ = layers.ICMPv6TypeEchoReply
		}
		ic := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typ, 0)}
		ic.SetNetworkLayerForChecksum(nl)
		ls = append(ls, ic, &layers.ICMPv6Echo{Identifier: p.echo, SeqNumber: 1})
	default:
		typ := uint8(layers.ICMPv4TypeEchoRequest)
		if p.reply {
			typ = layers.ICMPv4TypeEchoReply
		}
		ls = append(ls, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, 0), Id: p.echo, Seq: 1})
	}
	if p.data == nil {
		p.data = []byte("some payload")
	}
	ls = append(ls, gopacket.Payload(p.data))
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	out := buf.Bytes()
	if p.noUDPSum {
		binary.BigEndian.PutUint16(out[14+20+6:], 0)
	}
	return out
}

func syn(sport, dport uint16) *layers.TCP {
	return &layers.TCP{SrcPort: layers.TCPPort(sport), DstPort: layers.TCPPort(dport), SYN: true, Seq: 7, Window: 1000}
}

func udp(sport, dport uint16) *layers.UDP {
	return &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
}

// shape is what tests ask about a packet that came out.
type shape struct {
	srcMAC, dstMAC string
	src, dst       netip.AddrPort
	ttl            uint8
	tcp            *layers.TCP
	icmpType       uint8
	icmpCode       uint8
	icmpID         uint16
	icmpRest       []byte
}

func look(t *testing.T, pkt []byte) shape {
	t.Helper()
	p := gopacket.NewPacket(pkt, layers.LayerTypeEthernet, gopacket.Default)
	var s shape
	if e, ok := p.LinkLayer().(*layers.Ethernet); ok {
		s.srcMAC, s.dstMAC = e.SrcMAC.String(), e.DstMAC.String()
	}
	var src, dst netip.Addr
	switch n := p.NetworkLayer().(type) {
	case *layers.IPv4:
		s.ttl = n.TTL
		src, _ = netip.AddrFromSlice(n.SrcIP)
		dst, _ = netip.AddrFromSlice(n.DstIP)
	case *layers.IPv6:
		s.ttl = n.HopLimit
		src, _ = netip.AddrFromSlice(n.SrcIP)
		dst, _ = netip.AddrFromSlice(n.DstIP)
	default:
		t.Fatalf("no IP packet: % x", pkt)
	}
	var sp, dp uint16
	if l, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP); ok {
		s.tcp, sp, dp = l, uint16(l.SrcPort), uint16(l.DstPort)
	}
	if l, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP); ok {
		sp, dp = uint16(l.SrcPort), uint16(l.DstPort)
	}
	if l := p.Layer(layers.LayerTypeICMPv4); l != nil {
		c := append(append([]byte{}, l.LayerContents()...), l.LayerPayload()...)
		s.icmpType, s.icmpCode, s.icmpID, s.icmpRest = c[0], c[1], binary.BigEndian.Uint16(c[4:]), c[8:]
	}
	if l := p.Layer(layers.LayerTypeICMPv6); l != nil {
		c := append(append([]byte{}, l.LayerContents()...), l.LayerPayload()...)
		s.icmpType, s.icmpCode, s.icmpID, s.icmpRest = c[0], c[1], binary.BigEndian.Uint16(c[4:]), c[8:]
	}
	s.src, s.dst = netip.AddrPortFrom(src, sp), netip.AddrPortFrom(dst, dp)
	return s
}

// entries counts conntrack entries in the tier of new flows and in the main tier.
func (b *bench) entries() (fresh, confirmed int) {
	b.t.Helper()
	name := "ct4"
	if b.v6 {
		name = "ct6"
	}
	count := func(m string) (n int) {
		size := b.coll.Maps[m].KeySize()
		k, v := make([]byte, size), make([]byte, b.coll.Maps[m].ValueSize())
		for it := b.coll.Maps[m].Iterate(); it.Next(&k, &v); {
			n++
		}
		return n
	}
	return count(name + "_new"), count(name)
}

// metric returns the packets counted for a reason and direction.
func (b *bench) metric(reason, dir uint8) (n uint64) {
	b.t.Helper()
	var k bpf.MetricsKey
	var v []bpf.Metrics
	if reason == 0 {
		if err := b.coll.Maps["forwarded"].Lookup(uint32(dir), &v); err != nil {
			b.t.Fatal(err)
		}
		for _, c := range v {
			n += c.Packets
		}
		return n
	}
	for it := b.coll.Maps["metrics"].Iterate(); it.Next(&k, &v); {
		if k.Reason != reason || k.Dir != dir {
			continue
		}
		for _, c := range v {
			n += c.Packets
		}
	}
	return n
}

// events drains the ring.
func (b *bench) events() []bpf.Event {
	b.t.Helper()
	r, err := ringbuf.NewReader(b.coll.Maps["events"])
	if err != nil {
		b.t.Fatal(err)
	}
	defer r.Close()
	var out []bpf.Event
	for r.AvailableBytes() > 0 {
		rec, err := r.Read()
		if err != nil {
			b.t.Fatal(err)
		}
		var e bpf.Event
		if err := binary.Read(bytes.NewReader(rec.RawSample), binary.NativeEndian, &e); err != nil {
			b.t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

func (b *bench) expect(what string, r outcome, act, how, dev uint32) {
	b.t.Helper()
	if r.act != act || r.rec.Helper != how || (dev != 0 && r.rec.Ifindex != dev) {
		b.t.Errorf("%s: action %d by %d to device %d, want %d by %d to %d", what,
			int32(r.act), r.rec.Helper, r.rec.Ifindex, int32(act), how, dev)
	}
}

// runContext makes the options of a program that takes and returns a structure.
func runContext(in, out any) *ebpf.RunOptions {
	return &ebpf.RunOptions{Context: in, ContextOut: out}
}
