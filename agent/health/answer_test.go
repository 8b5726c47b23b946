// SPDX-License-Identifier: Apache-2.0

package health

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/net/bpf"

	"lash.internal/lash/agent/state"
)

var (
	asker4, asker6 = netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("fd00:10:244:1::1")
	self           = NewSelf(state.OwnDevice{MAC: [6]byte{2, 0, 0, 0, 0, 8}},
		[]netip.Addr{netip.MustParseAddr("10.244.1.253"), netip.MustParseAddr("fd00:10:244:1::fffd")})
)

// question is a frame to the endpoint.
type question struct {
	v6      bool
	src     netip.Addr // zero: the asker
	dst     netip.Addr // zero: the endpoint
	port    uint16     // zero: Port
	echo    bool
	code    uint8
	frag    bool
	options bool
	mac     net.HardwareAddr // nil: the endpoint's
	size    int
}

func (q question) bytes(t *testing.T) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: self.MAC[:], EthernetType: layers.EthernetTypeIPv4}
	if q.mac != nil {
		eth.DstMAC = q.mac
	}
	port := q.port
	if port == 0 {
		port = Port
	}
	if !q.src.IsValid() {
		q.src = asker4
		if q.v6 {
			q.src = asker6
		}
	}
	if !q.dst.IsValid() {
		q.dst = self.IPv4
		if q.v6 {
			q.dst = self.IPv6
		}
	}
	payload := gopacket.Payload(bytes.Repeat([]byte{7}, q.size))
	udp := &layers.UDP{SrcPort: 40000, DstPort: layers.UDPPort(port)}
	list := []gopacket.SerializableLayer{eth}
	if q.v6 {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, HopLimit: 9, NextHeader: layers.IPProtocolUDP, SrcIP: q.src.AsSlice(), DstIP: q.dst.AsSlice()}
		list = append(list, ip)
		if q.echo {
			ip.NextHeader = layers.IPProtocolICMPv6
			icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, q.code)}
			_ = icmp.SetNetworkLayerForChecksum(ip)
			list = append(list, icmp, &layers.ICMPv6Echo{Identifier: 5, SeqNumber: 6})
		} else {
			_ = udp.SetNetworkLayerForChecksum(ip)
			list = append(list, udp)
		}
	} else {
		ip := &layers.IPv4{Version: 4, TTL: 9, Protocol: layers.IPProtocolUDP, SrcIP: q.src.AsSlice(), DstIP: q.dst.AsSlice(), Flags: layers.IPv4DontFragment}
		if q.frag {
			ip.Flags = layers.IPv4MoreFragments
		}
		if q.options {
			ip.Options = []layers.IPv4Option{{OptionType: 1}}
		}
		list = append(list, ip)
		if q.echo {
			ip.Protocol = layers.IPProtocolICMPv4
			list = append(list, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, q.code), Id: 5, Seq: 6})
		} else {
			_ = udp.SetNetworkLayerForChecksum(ip)
			list = append(list, udp)
		}
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append(list, payload)...)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

func TestAnswer(t *testing.T) {
	for _, q := range []question{
		{size: 16},
		{size: 15},
		{size: 0},
		{v6: true, size: 16},
		{v6: true, size: 15},
		{echo: true, size: 56},
		{echo: true, size: 33},
		{v6: true, echo: true, size: 56},
		{v6: true, echo: true, size: 33},
	} {
		frame := append(q.bytes(t), 0, 0, 0) // as padded by a device
		if !q.echo {
			udp := ethLen + ip4Len
			if q.v6 {
				udp = ethLen + ip6Len
			}
			frame[udp+6], frame[udp+7] = 0x12, 0x34 // as on a pair of devices, where nobody makes it
		}
		reply, ping, ok := self.answer(frame)
		if !ok || ping != q.echo {
			t.Errorf("%+v: ping %v, answered %v", q, ping, ok)
			continue
		}
		// The same, made by another: the way back, and the type of a reply.
		p := gopacket.NewPacket(reply, layers.LayerTypeEthernet, gopacket.Default)
		if p.ErrorLayer() != nil {
			t.Errorf("%+v: %v in % x", q, p.ErrorLayer().Error(), reply)
			continue
		}
		if l := p.LinkLayer().LinkFlow(); l.Src() != layers.NewMACEndpoint(self.MAC[:]) || l.Dst() != layers.NewMACEndpoint(net.HardwareAddr{2, 0, 0, 0, 0, 1}) {
			t.Errorf("%+v: from %s to %s", q, l.Src(), l.Dst())
		}
		from, to := self.IPv4, asker4
		if q.v6 {
			from, to = self.IPv6, asker6
		}
		if n := p.NetworkLayer().NetworkFlow(); n.Src().String() != from.String() || n.Dst().String() != to.String() {
			t.Errorf("%+v: from %s to %s", q, n.Src(), n.Dst())
		}
		for _, l := range p.Layers() {
			if c, ok := l.(interface {
				SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
			}); ok {
				_ = c.SetNetworkLayerForChecksum(p.NetworkLayer())
			}
		}
		if err, bad := p.VerifyChecksums(); err != nil || len(bad) > 0 {
			t.Errorf("%+v: checksums %+v, %v", q, bad, err)
		}
		switch {
		case !q.echo:
			u, _ := p.TransportLayer().(*layers.UDP)
			if u == nil || u.SrcPort != Port || u.DstPort != 40000 || len(u.Payload) != q.size || u.Checksum == 0 {
				t.Errorf("%+v: %+v", q, u)
			}
		case q.v6:
			i, _ := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
			if i == nil || i.TypeCode.Type() != layers.ICMPv6TypeEchoReply || len(i.Payload) != q.size+4 {
				t.Errorf("%+v: %+v", q, i)
			}
		default:
			i, _ := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
			if i == nil || i.TypeCode.Type() != layers.ICMPv4TypeEchoReply || i.Id != 5 || i.Seq != 6 || len(i.Payload) != q.size {
				t.Errorf("%+v: %+v", q, i)
			}
		}
	}
}

// TestSilence: what is not for the endpoint, or cannot be answered without more of it, has no answer;
// frames that end anywhere break nothing.
func TestSilence(t *testing.T) {
	other := netip.MustParseAddr("10.244.1.252")
	for _, q := range []question{
		{mac: net.HardwareAddr{2, 0, 0, 0, 0, 8}},
		{mac: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
		{dst: other},
		{v6: true, dst: netip.MustParseAddr("ff02::1")},
		{port: 53},
		{v6: true, port: 53},
		{echo: true, code: 1},
		{frag: true},
		{options: true},
		{echo: true, options: true},
	} {
		if _, _, ok := self.answer(q.bytes(t)); ok {
			t.Errorf("%+v is answered", q)
		}
	}
	only4 := NewSelf(state.OwnDevice{MAC: [6]byte{2, 0, 0, 0, 0, 8}}, []netip.Addr{self.IPv4})
	if _, _, ok := only4.answer(question{v6: true}.bytes(t)); ok {
		t.Error("IPv6 is answered without an address")
	}
	for _, q := range []question{{size: 49}, {v6: true, size: 49}, {echo: true, size: 49}, {v6: true, echo: true, size: 49}} {
		whole := q.bytes(t)
		for n := range whole {
			if _, _, ok := self.answer(bytes.Clone(whole[:n])); ok {
				t.Errorf("%d of %d bytes of %+v are answered", n, len(whole), q)
			}
		}
	}
}

// TestFilters: one socket is for the probe's own questions, the other for pings.
func TestFilters(t *testing.T) {
	vm := func(f []bpf.Instruction) *bpf.VM {
		v, err := bpf.NewVM(f)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	questions, pings, none := vm(Questions([]netip.Addr{asker4, asker6})), vm(Pings()), vm(Questions(nil))
	pod4, pod6 := netip.MustParseAddr("10.244.1.7"), netip.MustParseAddr("fd00:10:244:1::7")
	for _, c := range []struct {
		frame          []byte
		question, ping bool
	}{
		{question{}.bytes(t), true, false},
		{question{v6: true}.bytes(t), true, false},
		{question{src: pod4}.bytes(t), false, false},
		{question{v6: true, src: pod6}.bytes(t), false, false},
		{question{echo: true}.bytes(t), false, true},
		{question{v6: true, echo: true, src: pod6}.bytes(t), false, true},
		{append(make([]byte, 12), 0x08, 0x06), false, false}, // ARP
	} {
		for name, want := range map[string]struct {
			vm *bpf.VM
			is bool
		}{"questions": {questions, c.question}, "pings": {pings, c.ping}, "none": {none, false}} {
			n, err := want.vm.Run(c.frame)
			if err != nil || (n > 0) != want.is {
				t.Errorf("%s: %d, %v of % x", name, n, err, c.frame)
			}
		}
	}
}

// wire is a device: frames that it receives, and those that were sent.
type wire struct {
	in  chan []byte
	out chan []byte
}

func (w wire) Read(b []byte) (int, error) {
	f, ok := <-w.in
	if !ok {
		return 0, io.EOF
	}
	return copy(b, f), nil
}

func (w wire) Write(b []byte) (int, error) {
	w.out <- bytes.Clone(b)
	return len(b), nil
}

func (w wire) Close() error { return nil }

// TestPingsAreLimited: a pod that floods the endpoint gets a limited share of the agent; what the probe
// asks is answered all the same.
func TestPingsAreLimited(t *testing.T) {
	w := wire{make(chan []byte), make(chan []byte, 100*maxPings)}
	done := make(chan error)
	go func() { done <- self.Serve(context.Background(), w) }()
	const sent = 20 * maxPings // far more than a second's worth, however long it takes
	ping := question{echo: true}.bytes(t)
	for range sent {
		w.in <- bytes.Clone(ping)
	}
	w.in <- question{size: 16}.bytes(t)
	close(w.in)
	if err := <-done; err == nil {
		t.Error("the end of the device is no error")
	}
	if n := len(w.out); n < maxPings || n == sent+1 {
		t.Errorf("%d of %d answered", n, sent+1)
	}
	var last []byte
	for len(w.out) > 0 {
		last = <-w.out
	}
	if p := gopacket.NewPacket(last, layers.LayerTypeEthernet, gopacket.Default); p.Layer(layers.LayerTypeUDP) == nil {
		t.Error("the probe's question is not answered")
	}
}
