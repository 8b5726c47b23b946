// SPDX-License-Identifier: Apache-2.0

package dump

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/bpf"
)

// clockShift turns monotonic nanoseconds into the unit of struct ct.
const clockShift = 20

var ctKinds = []string{"PLAIN", "FWD", "REV"}

var ctFlags = []struct {
	bit  uint16
	name string
}{
	{bpf.CtConfirmed, "Confirmed"},
	{bpf.CtViaStack, "ViaStack"},
	{bpf.CtLoopback, "Loopback"},
	{bpf.CtTunnel, "Tunnel"},
	{bpf.CtPickedUp, "PickedUp"},
	{bpf.CtService, "Service"},
	{bpf.CtMasq, "Masquerade"},
	{bpf.CtSettled, "Settled"},
}

// tick is now in the unit of struct ct.
func tick() uint32 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts) != nil {
		return 0
	}
	return uint32(uint64(ts.Nano()) >> clockShift)
}

// connection is one entry of either family.
type connection struct {
	a, b   netip.AddrPort
	proto  uint8
	ct     bpf.Ct
	xs, xd netip.AddrPort // what the packet gets
	table  string
}

// entry prints a connection from its originator to the other side. now is in the unit of struct ct.
func (c connection) entry(now uint32) api.MapEntry {
	from, to := c.b, c.a
	if c.ct.Flags&bpf.CtOrigA != 0 {
		from, to = c.a, c.b
	}
	var flags []string
	for _, f := range ctFlags {
		if c.ct.Flags&f.bit != 0 {
			flags = append(flags, f.name)
		}
	}
	idle := time.Duration(uint64(now-c.ct.Seen)<<clockShift) * time.Nanosecond
	f := map[string]string{
		"protocol": protoName(c.proto), "kind": word(ctKinds, c.ct.Kind),
		"source": from.String(), "destination": to.String(), "table": c.table,
		"idle": idle.Truncate(time.Millisecond).String(), "flags": strings.Join(flags, " "),
		"kib_tx": fmt.Sprint(c.ct.KibFwd), "kib_rx": fmt.Sprint(c.ct.KibRev),
		"source_identity": fmt.Sprint(c.ct.SrcId), "destination_identity": fmt.Sprint(c.ct.DstId),
		"service": fmt.Sprint(c.ct.SvcId), "backend": fmt.Sprint(c.ct.BackendId),
	}
	v := fmt.Sprintf("idle=%s KiB=%d/%d TxFlagsSeen=0x%02x RxFlagsSeen=0x%02x Flags=0x%04x [ %s ] RevNAT=%d BackendID=%d SourceSecurityID=%d DestinationSecurityID=%d table=%s",
		f["idle"], c.ct.KibFwd, c.ct.KibRev, c.ct.TcpO, c.ct.TcpR, c.ct.Flags, f["flags"],
		c.ct.SvcId, c.ct.BackendId, c.ct.SrcId, c.ct.DstId, c.table)
	if c.ct.Kind != bpf.CtPlain {
		f["translated"] = c.xs.String() + " -> " + c.xd.String()
		v += " XLATE " + f["translated"]
	}
	return api.MapEntry{
		Key:   fmt.Sprintf("%s %s %s -> %s", f["protocol"], f["kind"], from, to),
		Value: v, Fields: f,
	}
}

func protoName(p uint8) string {
	switch p {
	case unix.IPPROTO_ICMP:
		return "ICMP"
	case unix.IPPROTO_TCP:
		return "TCP"
	case unix.IPPROTO_UDP:
		return "UDP"
	case unix.IPPROTO_ICMPV6:
		return "ICMPv6"
	case unix.IPPROTO_SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("PROTO-%d", p)
}

func (d *Maps) connections(table string) ([]connection, error) {
	var out []connection
	if strings.HasPrefix(table, "ct4") {
		rows, err := read[bpf.Ct4Key, bpf.Ct4](d, table)
		for _, e := range rows {
			out = append(out, connection{
				a:     netip.AddrPortFrom(bpf.FromIP4(e.key.A), bpf.Port(e.key.Pa)),
				b:     netip.AddrPortFrom(bpf.FromIP4(e.key.B), bpf.Port(e.key.Pb)),
				proto: e.key.Proto, ct: e.val.C, table: table,
				xs: netip.AddrPortFrom(bpf.FromIP4(e.val.Saddr), bpf.Port(e.val.Sport)),
				xd: netip.AddrPortFrom(bpf.FromIP4(e.val.Daddr), bpf.Port(e.val.Dport)),
			})
		}
		return out, err
	}
	rows, err := read[bpf.Ct6Key, bpf.Ct6](d, table)
	for _, e := range rows {
		out = append(out, connection{
			a:     netip.AddrPortFrom(netip.AddrFrom16(e.key.A), bpf.Port(e.key.Pa)),
			b:     netip.AddrPortFrom(netip.AddrFrom16(e.key.B), bpf.Port(e.key.Pb)),
			proto: e.key.Proto, ct: e.val.C, table: table,
			xs: netip.AddrPortFrom(netip.AddrFrom16(e.val.Saddr), bpf.Port(e.val.Sport)),
			xd: netip.AddrPortFrom(netip.AddrFrom16(e.val.Daddr), bpf.Port(e.val.Dport)),
		})
	}
	return out, err
}

func (d *Maps) ctOf(table string) func() ([]api.MapEntry, error) {
	return func() ([]api.MapEntry, error) {
		conns, err := d.connections(table)
		now := tick()
		out := make([]api.MapEntry, 0, len(conns))
		for _, c := range conns {
			out = append(out, c.entry(now))
		}
		return sortEntries(out), err
	}
}

func (d *Maps) viewCT() ([]api.MapEntry, error) {
	var out []api.MapEntry
	for _, table := range []string{"ct4", "ct4_new", "ct6", "ct6_new"} {
		e, err := d.ctOf(table)()
		if err != nil {
			return nil, err
		}
		out = append(out, e...)
	}
	return out, nil
}

func (d *Maps) frag4() ([]api.MapEntry, error) {
	rows, err := read[bpf.Frag4Key, bpf.Frag](d, "frag4")
	var out []api.MapEntry
	for _, e := range rows {
		out = append(out, fragEntry(bpf.FromIP4(e.key.Src), bpf.FromIP4(e.key.Dst), uint32(bpf.Port(e.key.Id)), e.key.Proto, e.val))
	}
	return sortEntries(out), err
}

func (d *Maps) frag6() ([]api.MapEntry, error) {
	rows, err := read[bpf.Frag6Key, bpf.Frag](d, "frag6")
	var out []api.MapEntry
	for _, e := range rows {
		out = append(out, fragEntry(netip.AddrFrom16(e.key.Src), netip.AddrFrom16(e.key.Dst), e.key.Id, e.key.Proto, e.val))
	}
	return sortEntries(out), err
}

func fragEntry(src, dst netip.Addr, id uint32, proto uint8, v bpf.Frag) api.MapEntry {
	return api.MapEntry{
		Key:   fmt.Sprintf("%s %s -> %s, 0x%x", protoName(proto), src, dst, id),
		Value: fmt.Sprintf("%d -> %d", bpf.Port(v.Sport), bpf.Port(v.Dport)),
	}
}

func (d *Maps) viewFrag() ([]api.MapEntry, error) {
	a, err := d.frag4()
	if err != nil {
		return nil, err
	}
	b, err := d.frag6()
	return append(a, b...), err
}
