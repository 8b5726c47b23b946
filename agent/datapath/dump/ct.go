// SPDX-License-Identifier: Apache-2.0

package dump

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/datapath/ctgc"
	"lash.internal/lash/bpf"
)

var ctKinds = []string{"PLAIN", "FWD", "REV"}

var ctFlags = []struct {
	bit  uint16
	name string
}{
	{bpf.CtConfirmed, "Confirmed"},
	{bpf.CtViaStack, "ViaStack"},
	{bpf.CtLoopback, "LBLoopback"},
	{bpf.CtTunnel, "FromTunnel"},
	{bpf.CtPickedUp, "PickedUp"},
	{bpf.CtService, "Service"},
	{bpf.CtMasq, "Masquerade"},
	{bpf.CtSettled, "Settled"},
}

// tick is now in the unit of struct ct.
func tick() uint32 { return uint32(uint64(uptime()) >> bpf.SeenShift) }

// connection is one entry of either family.
type connection struct {
	a, b   netip.AddrPort
	proto  uint8
	ct     bpf.Ct
	xs, xd netip.AddrPort // what the packet gets
	table  string
	twin   *bpf.Ct // the other half of a translated flow
}

// ends are the originator of the connection and the other side.
func (c connection) ends() (from, to netip.AddrPort) {
	if c.ct.Flags&bpf.CtOrigA != 0 {
		return c.a, c.b
	}
	return c.b, c.a
}

// pair is a tuple without direction.
type pair struct {
	a, b  netip.AddrPort
	proto uint8
}

func pairOf(a, b netip.AddrPort, proto uint8) pair {
	if b.Compare(a) < 0 {
		a, b = b, a
	}
	return pair{a, b, proto}
}

// Flags of TCP (source: RFC 9293).
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
)

// idle is the time since seen.
func idle(seen, now uint32) time.Duration {
	d := max(int32(now-seen), 0) // a packet may have come after now was read
	return (time.Duration(d) << bpf.SeenShift).Truncate(time.Millisecond)
}

// entry prints a connection from its originator to the other side, as users of Cilium know it: SVC
// is what a Service is asked for, OUT begins on this node, IN elsewhere. now is in the unit of struct
// ct; local says which addresses are of this node.
func (c connection) entry(now uint32, local map[netip.Addr]bool) api.MapEntry {
	from, to := c.ends()
	dir, tx, rx := "OUT", c.ct.TcpO, c.ct.TcpR
	switch {
	case c.ct.Kind == bpf.CtFwd && c.ct.Flags&bpf.CtService != 0:
		dir = "SVC"
	case !local[from.Addr()]:
		dir, tx, rx = "IN", rx, tx // what comes in is received
	}
	var flags []string
	for _, f := range []struct {
		on   bool
		name string
	}{
		{rx&(tcpFIN|tcpRST) != 0, "RxClosing"},
		{tx&(tcpFIN|tcpRST) != 0, "TxClosing"},
		{(tx|rx)&^tcpSYN != 0, "SeenNonSyn"},
	} {
		if f.on {
			flags = append(flags, f.name)
		}
	}
	for _, f := range ctFlags {
		if c.ct.Flags&f.bit != 0 {
			flags = append(flags, f.name)
		}
	}
	var halves []*bpf.Ct
	if c.twin != nil {
		halves = append(halves, c.twin)
	}
	remaining := ctgc.Remaining(now, c.proto, bpf.Port(c.a.Port()), bpf.Port(c.b.Port()), &c.ct, halves...)
	seconds := func(d time.Duration) int64 { return int64(d.Truncate(time.Second).Seconds()) }
	bytes := (uint64(c.ct.KibFwd) + uint64(c.ct.KibRev)) << 10
	f := map[string]string{
		"protocol": protoName(c.proto), "direction": dir, "kind": word(ctKinds, c.ct.Kind),
		"source": from.String(), "destination": to.String(), "table": c.table,
		"idle": idle(c.ct.Seen, now).String(), "remaining": fmt.Sprint(seconds(remaining)), "flags": strings.Join(flags, " "),
		"bytes": fmt.Sprint(bytes), "kib_tx": fmt.Sprint(c.ct.KibFwd), "kib_rx": fmt.Sprint(c.ct.KibRev),
		"source_identity": fmt.Sprint(c.ct.SrcId), "destination_identity": fmt.Sprint(c.ct.DstId),
		"service": fmt.Sprint(c.ct.SvcId), "backend": fmt.Sprint(c.ct.BackendId),
	}
	v := fmt.Sprintf("expires=%d Bytes=%d RxFlagsSeen=0x%02x TxFlagsSeen=0x%02x LastReport=%d Flags=0x%04x [ %s ] RevNAT=%d SourceSecurityID=%d DestinationSecurityID=%d BackendID=%d Idle=%s Table=%s",
		seconds(uptime()+remaining), bytes, rx, tx, seconds(uptime()-idle(c.ct.Report, now)), c.ct.Flags, f["flags"],
		c.ct.SvcId, c.ct.SrcId, c.ct.DstId, c.ct.BackendId, f["idle"], c.table)
	if c.ct.Kind != bpf.CtPlain {
		f["translated"] = c.xs.String() + " -> " + c.xd.String()
	}
	return api.MapEntry{
		Key:   fmt.Sprintf("%s %s %s -> %s", f["protocol"], dir, from, to),
		Value: v, Fields: f,
	}
}

// translation prints what a half of a translated flow does to a packet; ok is false for other
// connections.
func (c connection) translation(now uint32) (e api.MapEntry, ok bool) {
	if c.ct.Kind == bpf.CtPlain {
		return e, false
	}
	from, to := c.ends()
	dir := "OUT"
	if c.ct.Kind == bpf.CtRev { // a reply goes the other way
		dir, from, to = "IN", to, from
	}
	f := map[string]string{
		"protocol": protoName(c.proto), "direction": dir, "source": from.String(), "destination": to.String(),
		"idle": idle(c.ct.Seen, now).String(), "masquerade": fmt.Sprint(c.ct.Flags&bpf.CtMasq != 0), "service": fmt.Sprint(c.ct.SvcId),
	}
	var parts []string
	if c.xs != from {
		f["xlate_src"] = c.xs.String()
		parts = append(parts, "XLATE_SRC "+c.xs.String())
	}
	if c.xd != to {
		f["xlate_dst"] = c.xd.String()
		parts = append(parts, "XLATE_DST "+c.xd.String())
	}
	return api.MapEntry{
		Key:   fmt.Sprintf("%s %s %s -> %s", f["protocol"], dir, from, to),
		Value: strings.Join(append(parts, "Idle="+f["idle"]), " "), Fields: f,
	}, true
}

// uptime is the time that the clock of connections has run.
func uptime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
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

// ctTables are the connection tables.
var ctTables = []string{"ct4", "ct4_new", "ct6", "ct6_new"}

// paired reads tables and joins the halves of translated flows.
func (d *Maps) paired(tables ...string) ([]connection, error) {
	var out []connection
	for _, t := range tables {
		conns, err := d.connections(t)
		if err != nil {
			return nil, err
		}
		out = append(out, conns...)
	}
	halves := map[pair]*bpf.Ct{}
	for i := range out {
		if c := &out[i]; c.ct.Kind != bpf.CtPlain {
			halves[pairOf(c.a, c.b, c.proto)] = &c.ct
		}
	}
	for i := range out {
		if c := &out[i]; c.ct.Kind != bpf.CtPlain {
			if h := halves[pairOf(c.xs, c.xd, c.proto)]; h != nil && h.Kind != c.ct.Kind {
				c.twin = h
			}
		}
	}
	return out, nil
}

// locals are the addresses of this node and of its pods.
func (d *Maps) locals() (map[netip.Addr]bool, error) {
	rows, err := read[bpf.AddrKey, bpf.Addr](d, "addr")
	out := map[netip.Addr]bool{}
	for _, e := range rows {
		switch e.val.Kind {
		case bpf.AddrLocalEP, bpf.AddrLocalNode, bpf.AddrGateway:
			out[bpf.FromIP(e.key.Ip)] = true
		}
	}
	return out, err
}

func (d *Maps) ctOf(tables ...string) func() ([]api.MapEntry, error) {
	return func() ([]api.MapEntry, error) {
		conns, err := d.paired(tables...)
		if err != nil {
			return nil, err
		}
		local, err := d.locals()
		if err != nil {
			return nil, err
		}
		now := tick()
		out := make([]api.MapEntry, 0, len(conns))
		for _, c := range conns {
			out = append(out, c.entry(now, local))
		}
		return sortEntries(out), nil
	}
}

// viewNAT lists the translations that are part of the connection tables.
func (d *Maps) viewNAT() ([]api.MapEntry, error) {
	conns, err := d.paired(ctTables...)
	now := tick()
	var out []api.MapEntry
	for _, c := range conns {
		if e, ok := c.translation(now); ok {
			out = append(out, e)
		}
	}
	return sortEntries(out), err
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
