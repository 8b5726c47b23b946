// SPDX-License-Identifier: Apache-2.0

package ctgc

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"lash.internal/lash/bpf"
)

func TestLimits(t *testing.T) {
	const syn, ack = 0x02, 0x10
	for _, c := range []struct {
		name  string
		f     flow
		limit time.Duration
		tight time.Duration
	}{
		{"TCP without an answer", flow{proto: 6, tcpO: syn}, time.Minute, time.Minute},
		{"TCP picked up in the middle", flow{proto: 6, tcpO: ack, flags: bpf.CtPickedUp}, 5 * time.Minute, 5 * time.Minute},
		{"TCP established", flow{proto: 6, tcpO: syn | ack, tcpR: syn | ack, twoWay: true}, 8000 * time.Second, time.Hour},
		{"TCP half closed", flow{proto: 6, tcpO: syn | ack | tcpFIN, tcpR: ack, twoWay: true}, 2 * time.Minute, 30 * time.Second},
		{"TCP closed", flow{proto: 6, tcpO: tcpFIN, tcpR: tcpFIN, twoWay: true}, 10 * time.Second, 2500 * time.Millisecond},
		{"TCP reset", flow{proto: 6, tcpO: syn, tcpR: tcpRST, twoWay: true}, 10 * time.Second, 2500 * time.Millisecond},
		{"UDP one way", flow{proto: 17}, 30 * time.Second, 15 * time.Second},
		{"UDP both ways", flow{proto: 17, twoWay: true}, 2 * time.Minute, time.Minute},
		{"DNS answered", flow{proto: 17, dns: true, twoWay: true}, 10 * time.Second, 5 * time.Second},
		{"DNS not answered", flow{proto: 17, dns: true}, 30 * time.Second, 15 * time.Second},
		{"echo", flow{proto: 1, twoWay: true}, 10 * time.Second, 10 * time.Second},
		{"echo, IPv6", flow{proto: 58}, 10 * time.Second, 10 * time.Second},
		{"SCTP", flow{proto: 132}, 10 * time.Minute, 10 * time.Minute},
	} {
		if a, b := c.f.limit(relaxed), c.f.limit(tight); a != c.limit || b != c.tight {
			t.Errorf("%s: %v and %v when full, want %v and %v", c.name, a, b, c.limit, c.tight)
		}
	}
}

// TestFillingTableIsNotLeftToItsInterval: a table that fills faster than sweeps come is swept before its
// time, and what has ended then has the less time the less room there is.
func TestFillingTableIsNotLeftToItsInterval(t *testing.T) {
	tb := newTables(t)
	max := float64(tb.maps.Ct4.MaxEntries())
	come := func(share float64) {
		t.Helper()
		each := make([]uint64, ebpf.MustPossibleCPU())
		if err := tb.maps.Settled.Lookup(uint32(0), &each); err != nil {
			t.Fatal(err)
		}
		each[len(each)-1] += uint64(share * max)
		if err := tb.maps.Settled.Put(uint32(0), each); err != nil {
			t.Fatal(err)
		}
	}
	closed := func(port uint16, ago time.Duration) bpf.Ct4Key {
		t.Helper()
		k := bpf.Ct4Key{A: addr4("10.1.0.1"), B: addr4("10.1.1.2"), Pa: bpf.Port(port), Pb: bpf.Port(80), Proto: protoTCP}
		v := bpf.Ct4{C: bpf.Ct{Seen: tb.now - uint32(ago>>bpf.SeenShift), Flags: bpf.CtConfirmed, TcpO: tcpFIN, TcpR: tcpFIN}}
		if err := tb.maps.Ct4.Put(&k, &v); err != nil {
			t.Fatal(err)
		}
		return k
	}
	there := func(k bpf.Ct4Key) bool {
		var v bpf.Ct4
		return tb.maps.Ct4.Lookup(&k, &v) == nil
	}
	for _, c := range []struct {
		come        float64
		early       bool
		gone, stays time.Duration
	}{
		{come: 0.5, gone: 11 * time.Second, stays: 9 * time.Second},
		{come: 0.8, early: true, gone: 3 * time.Second, stays: 2 * time.Second},
		{come: 1.5, early: true, gone: 1100 * time.Millisecond, stays: 900 * time.Millisecond},
	} {
		come(c.come)
		if got := tb.filling(); got != c.early {
			t.Errorf("%v of the table came: sweep before its time %v, want %v", c.come, got, c.early)
		}
		gone, stays := closed(1, c.gone), closed(2, c.stays)
		if err := tb.Sweep(false); err != nil {
			t.Fatal(err)
		}
		if there(gone) || !there(stays) {
			t.Errorf("%v of the table came: ended %v ago: there %v; %v ago: there %v", c.come, c.gone, there(gone), c.stays, there(stays))
		}
		if tb.filling() {
			t.Error("swept again at once")
		}
	}
}

func TestIdleOverTheWrapOfTheClock(t *testing.T) {
	if d := idle(0xffffff00, 0x100); d != 0x200<<bpf.SeenShift {
		t.Errorf("over the wrap: %v", d)
	}
	if d := idle(1000, 990); d != 0 {
		t.Errorf("a packet after the clock was read: %v", d)
	}
}

func TestIntervalAdapts(t *testing.T) {
	for _, c := range []struct {
		last, want  time.Duration
		share, fill float64
	}{
		{time.Minute, 90 * time.Second, 0, 0.1},
		{time.Minute, time.Minute, 0.1, 0.1},
		{time.Minute, 30 * time.Second, 0.5, 0.1},
		{6 * time.Second, 5 * time.Second, 0.5, 0.1},
		{4 * time.Minute, 5 * time.Minute, 0, 0},
		{4 * time.Minute, 5 * time.Second, 0, 0.8},
	} {
		if got := nextInterval(c.last, c.share, c.fill); got != c.want {
			t.Errorf("after %v, %v deleted, %v full: %v, want %v", c.last, c.share, c.fill, got, c.want)
		}
	}
}

// tables are the real maps and programs.
type tables struct {
	*Collector
	t   testing.TB
	now uint32
}

func newTables(t testing.TB) *tables {
	t.Helper()
	spec, err := bpf.LoadGc()
	if err != nil {
		t.Fatal(err)
	}
	if err := bpf.DefaultConfig().Apply(spec); err != nil {
		t.Fatal(err)
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	coll, err := ebpf.NewCollection(spec)
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, fs.ErrPermission) {
		t.Skipf("cannot load programs: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(coll.Close)
	out := &tables{t: t, now: 10_000_000}
	out.Collector = New(Maps{
		Ct4: coll.Maps["ct4"], Ct4New: coll.Maps["ct4_new"], Ct6: coll.Maps["ct6"], Ct6New: coll.Maps["ct6_new"],
		Batch: coll.Maps["gc_batch"], Settled: coll.Maps["settled"],
	}, Programs{Expire: coll.Programs["ct_expire"], Purge: coll.Programs["ct_purge"]}, slog.New(slog.DiscardHandler))
	out.Collector.now = func() (uint32, error) { return out.now, nil }
	return out
}

func ago(now uint32, d time.Duration) uint32 { return now - uint32(d>>bpf.SeenShift) }

func addr4(s string) uint32 { return bpf.IP4(netip.MustParseAddr(s)) }

// pair4 adds both halves of a UDP flow through a Service.
func (tb *tables) pair4(fwd, rev *ebpf.Map, port uint16, fwdIdle, revIdle time.Duration) (f, r bpf.Ct4Key) {
	tb.t.Helper()
	client, vip, pod := addr4("10.1.0.1"), addr4("10.96.0.10"), addr4("10.1.1.2")
	fv := bpf.Ct4{C: bpf.Ct{Kind: bpf.CtFwd, Seen: ago(tb.now, fwdIdle), Flags: bpf.CtConfirmed}, Saddr: client, Daddr: pod, Sport: bpf.Port(port), Dport: bpf.Port(8080)}
	rv := bpf.Ct4{C: bpf.Ct{Kind: bpf.CtRev, Seen: ago(tb.now, revIdle), Flags: bpf.CtConfirmed}, Saddr: vip, Daddr: client, Sport: bpf.Port(80), Dport: bpf.Port(port)}
	udp := &bpf.Ct4Key{Proto: 17}
	f, r = twin4(udp, &rv), twin4(udp, &fv)
	for _, e := range []struct {
		m *ebpf.Map
		k bpf.Ct4Key
		v bpf.Ct4
	}{{fwd, f, fv}, {rev, r, rv}} {
		if err := e.m.Put(&e.k, &e.v); err != nil {
			tb.t.Fatal(err)
		}
	}
	return f, r
}

func has(t testing.TB, m *ebpf.Map, k any) bool {
	t.Helper()
	v, err := m.LookupBytes(k)
	if err != nil {
		t.Fatal(err)
	}
	return v != nil
}

func TestSweepLooksAtBothHalves(t *testing.T) {
	tb := newTables(t)
	m := tb.maps
	busyF, busyR := tb.pair4(m.Ct4, m.Ct4, 1000, 10*time.Minute, time.Second)
	deadF, deadR := tb.pair4(m.Ct4, m.Ct4New, 1001, 10*time.Minute, 3*time.Minute)
	if err := tb.Sweep(false); err != nil {
		t.Fatal(err)
	}
	if !has(t, m.Ct4, busyF) || !has(t, m.Ct4, busyR) {
		t.Error("a flow with packets in one direction was deleted")
	}
	if has(t, m.Ct4, deadF) || has(t, m.Ct4New, deadR) {
		t.Error("an idle flow is still there")
	}
	if s := tb.Stats(false); s.Deleted != 2 || s.Alive != 2 || s.Runs != 1 {
		t.Errorf("counted %+v", s)
	}
}

// TestSweepOfMany has more flows than fit a batch, of IPv6.
func TestSweepOfMany(t *testing.T) {
	tb := newTables(t)
	const n = 3000
	for i := range n {
		k := bpf.Ct6Key{A: [16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)}, B: [16]byte{0: 0xfe}, Proto: 6}
		v := bpf.Ct6{C: bpf.Ct{Seen: ago(tb.now, 20*time.Second), Flags: bpf.CtConfirmed}}
		if i%3 == 0 {
			v.C.TcpO, v.C.TcpR = tcpFIN, tcpFIN
		}
		if err := tb.maps.Ct6.Put(&k, &v); err != nil {
			t.Fatal(err)
		}
	}
	if err := tb.Sweep(true); err != nil {
		t.Fatal(err)
	}
	if s := tb.Stats(true); s.Deleted != n/3 || s.Alive != n-n/3 {
		t.Errorf("counted %+v", s)
	}
}

// TestAFlowThatMovedStays changes an entry between the look and the deletion.
func TestAFlowThatMovedStays(t *testing.T) {
	tb := newTables(t)
	k := bpf.Ct4Key{A: 1, B: 2, Proto: 17}
	if err := tb.maps.Ct4.Put(&k, &bpf.Ct4{C: bpf.Ct{Seen: 500}}); err != nil {
		t.Fatal(err)
	}
	n, err := tb.expire(false, []bpf.GcItem{item(&k, &bpf.Ct{Seen: 499}, 0)})
	if err != nil || n != 0 || !has(t, tb.maps.Ct4, k) {
		t.Errorf("deleted %d, %v", n, err)
	}
	n, err = tb.expire(false, []bpf.GcItem{item(&k, &bpf.Ct{Seen: 500}, 0)})
	if err != nil || n != 1 || has(t, tb.maps.Ct4, k) {
		t.Errorf("deleted %d, %v", n, err)
	}
}

// TestPurge takes one address, then many of both families at once.
func TestPurge(t *testing.T) {
	tb := newTables(t)
	m := tb.maps
	f, r := tb.pair4(m.Ct4, m.Ct4New, 1000, 0, 0)
	if err := tb.Purge(netip.MustParseAddr("10.1.9.9"), netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	if !has(t, m.Ct4, f) || !has(t, m.Ct4New, r) {
		t.Error("flows of another address are gone")
	}
	if err := tb.Purge(netip.MustParseAddr("10.1.1.2")); err != nil {
		t.Fatal(err)
	}
	if has(t, m.Ct4, f) || has(t, m.Ct4New, r) {
		t.Error("flows of the address are still there")
	}
	if s := tb.Stats(false); s.Purged != 2 {
		t.Errorf("counted %+v", s)
	}
	ip6 := func(i int) netip.Addr { return netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)}) }
	const n = 700
	addrs := []netip.Addr{netip.MustParseAddr("10.96.0.10")} // of the translated packet
	for i := range n {
		if i%2 == 0 {
			addrs = append(addrs, ip6(i))
		}
		if err := m.Ct6New.Put(bpf.Ct6Key{A: ip6(i).As16(), B: [16]byte{0: 0xfe}, Proto: 6}, bpf.Ct6{Saddr: ip6(n + i).As16()}); err != nil {
			t.Fatal(err)
		}
	}
	addrs = append(addrs, ip6(n+1)) // in a field that means nothing in a flow without translation
	f, r = tb.pair4(m.Ct4New, m.Ct4, 1000, 0, 0)
	if err := tb.Purge(addrs...); err != nil {
		t.Fatal(err)
	}
	if has(t, m.Ct4New, f) || has(t, m.Ct4, r) {
		t.Error("flows of IPv4 are still there")
	}
	for i := range n {
		if left := has(t, m.Ct6New, bpf.Ct6Key{A: ip6(i).As16(), B: [16]byte{0: 0xfe}, Proto: 6}); left != (i%2 == 1) {
			t.Fatalf("flow %d: left %v", i, left)
		}
	}
	if s := tb.Stats(true); s.Purged != n/2 {
		t.Errorf("counted %+v", s)
	}
}

// TestPurgeOfFlowsThatMove has somebody send to an address while it is purged.
func TestPurgeOfFlowsThatMove(t *testing.T) {
	tb := newTables(t)
	k := bpf.Ct4Key{A: addr4("10.1.1.2"), B: addr4("10.1.2.2"), Proto: 17}
	if err := tb.maps.Ct4.Put(&k, &bpf.Ct4{C: bpf.Ct{Seen: 500}}); err != nil {
		t.Fatal(err)
	}
	f := tb.family4()
	f.ct = func(v *bpf.Ct4) *bpf.Ct { // as it was before the last packet
		v.C.Seen = 499
		return &v.C
	}
	gone := netip.MustParseAddr("10.1.1.2")
	err := purge(tb.Collector, f, map[uint32]netip.Addr{bpf.IP4(gone): gone}, func(k *bpf.Ct4Key, _ *bpf.Ct4) [4]uint32 { return [4]uint32{k.A, k.B} })
	if err != nil || has(t, tb.maps.Ct4, k) || tb.Stats(false).Purged != 1 {
		t.Errorf("left %v, %v", has(t, tb.maps.Ct4, k), err)
	}
}

// BenchmarkPurge removes addresses from tables that hold so many flows, one at a time and many at once.
func BenchmarkPurge(b *testing.B) {
	for _, flows := range []int{0, 50000} {
		for _, addrs := range []int{1, 50} {
			b.Run(fmt.Sprintf("%d flows, %d addresses", flows, addrs), func(b *testing.B) {
				tb := newTables(b)
				for i := range flows {
					if err := tb.maps.Ct4.Put(bpf.Ct4Key{A: uint32(i), B: 7, Proto: 6}, bpf.Ct4{C: bpf.Ct{Seen: tb.now, Flags: bpf.CtConfirmed}}); err != nil {
						b.Fatal(err)
					}
				}
				var gone []netip.Addr
				for i := range addrs {
					gone = append(gone, netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), netip.AddrFrom16([16]byte{0xfd, 15: byte(i)}))
				}
				for b.Loop() {
					if err := tb.Purge(gone...); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func TestFlush(t *testing.T) {
	tb := newTables(t)
	m := tb.maps
	tb.pair4(m.Ct4, m.Ct4New, 1000, 0, 0)
	k6, v6 := bpf.Ct6Key{Proto: 6}, bpf.Ct6{}
	if err := m.Ct6.Put(&k6, &v6); err != nil {
		t.Fatal(err)
	}
	for _, want := range []uint64{3, 0} {
		if n, err := tb.Flush(); err != nil || n != want {
			t.Errorf("flushed %d, %v; want %d", n, err, want)
		}
	}
}

// TestPortsOfTranslatedFlows are told of after each sweep: of flows in use, in both tiers and families.
func TestPortsOfTranslatedFlows(t *testing.T) {
	tb := newTables(t)
	m := tb.maps
	tb.pair4(m.Ct4, m.Ct4, 1000, 10*time.Minute, time.Second)
	tb.pair4(m.Ct4, m.Ct4New, 1001, 10*time.Minute, 10*time.Minute)
	for _, e := range []struct {
		port uint16
		kind uint8
	}{{6443, bpf.CtRev}, {7000, bpf.CtPlain}, {7001, bpf.CtFwd}} {
		k := bpf.Ct6Key{A: [16]byte{0: 0xfd}, B: [16]byte{0: 0xfe}, Pa: bpf.Port(e.port), Pb: bpf.Port(50000), Proto: 6}
		if err := m.Ct6New.Put(&k, &bpf.Ct6{C: bpf.Ct{Kind: e.kind, Seen: tb.now}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tb.Sweep(false), tb.Sweep(true)); err != nil {
		t.Fatal(err)
	}
	var got []int
	for i, w := range tb.ports {
		for bit := range 64 {
			if w>>bit&1 != 0 {
				got = append(got, i*64+bit)
			}
		}
	}
	const udp = bpf.HostbackWords * 64
	if want := []int{6443, 50000, udp + 1000, udp + 8080}; !slices.Equal(got, want) {
		t.Errorf("ports %v, want %v", got, want)
	}
}
