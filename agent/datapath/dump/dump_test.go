// SPDX-License-Identifier: Apache-2.0

package dump

import (
	"errors"
	"io/fs"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"lash.internal/lash/bpf"
)

// kernelMaps creates the named maps as the programs declare them, but small.
func kernelMaps(t *testing.T, names ...string) map[string]*ebpf.Map {
	t.Helper()
	spec, err := bpf.LoadTc()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*ebpf.Map{}
	for _, n := range names {
		ms := spec.Maps[n]
		if ms == nil {
			t.Fatalf("no map %s", n)
		}
		ms = ms.Copy()
		ms.MaxEntries = min(ms.MaxEntries, 64)
		m, err := ebpf.NewMap(ms)
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, fs.ErrPermission) {
			t.Skipf("cannot create maps: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		out[n] = m
	}
	return out
}

func put(t *testing.T, m *ebpf.Map, k, v any) {
	t.Helper()
	if err := m.Put(k, v); err != nil {
		t.Fatal(err)
	}
}

func text(t *testing.T, d *Maps, name string) string {
	t.Helper()
	m, err := d.Map(name)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range m.Cache {
		b.WriteString(e.Key + " | " + e.Value + "\n")
	}
	return b.String()
}

func TestAddressesReadAsIPCacheAndTunnels(t *testing.T) {
	m := kernelMaps(t, "addr", "cidr", "vtep")
	put(t, m["vtep"], uint32(1), bpf.Vtep{Ip: bpf.IP(netip.MustParseAddr("172.18.0.3"))})
	put(t, m["addr"], bpf.AddrKey{Ip: bpf.IP(netip.MustParseAddr("10.244.1.7"))}, bpf.Addr{Kind: bpf.AddrRemoteEP, Identity: 4711, Vtep: 1})
	put(t, m["addr"], bpf.AddrKey{Ip: bpf.IP(netip.MustParseAddr("fd00::5"))}, bpf.Addr{Kind: bpf.AddrLocalEP, Identity: 300})
	put(t, m["addr"], bpf.AddrKey{Ip: bpf.IP(netip.MustParseAddr("10.96.0.1"))}, bpf.Addr{Kind: bpf.AddrVIP})
	put(t, m["cidr"], bpf.CIDR(netip.MustParsePrefix("10.244.1.0/24")), bpf.Cidr{Kind: bpf.CIDRPod, Vtep: 1})
	d := New(m)
	want := "10.244.1.0/24 | identity=0 encryptkey=0 tunnelendpoint=172.18.0.3 flags=hastunnel\n" +
		"10.244.1.7/32 | identity=4711 encryptkey=0 tunnelendpoint=172.18.0.3 flags=hastunnel\n" +
		"fd00::5/128 | identity=300 encryptkey=0 tunnelendpoint=0.0.0.0 flags=<none>\n"
	if got := text(t, d, "view:ipcache"); got != want {
		t.Errorf("ipcache:\n%swant:\n%s", got, want)
	}
	if got, want := text(t, d, "view:tunnel"), "10.244.1.0/24 | 172.18.0.3\n"; got != want {
		t.Errorf("tunnel: %q, want %q", got, want)
	}
	all, err := d.Maps()
	if err != nil || len(all) != 3 || all[0].Name != "addr" || all[0].Entries != 3 {
		t.Errorf("maps: %+v, %v", all, err)
	}
}

func TestServicesReadAsFrontendsAndBackends(t *testing.T) {
	m := kernelMaps(t, "front", "svc", "slot", "backend")
	put(t, m["front"], bpf.FrontKey{Ip: bpf.IP(netip.MustParseAddr("10.96.0.1")), Port: bpf.Port(443), Proto: 6}, bpf.Front{SvcId: 7})
	put(t, m["svc"], uint32(7), bpf.Svc{BlkAll: 15 | 2<<bpf.SvcBlockShift})
	put(t, m["slot"], uint32(0), bpf.Slots{BackendId: [16]uint32{15: 3}})
	put(t, m["slot"], uint32(1), bpf.Slots{BackendId: [16]uint32{0: 4}})
	for id, ip := range map[uint32]string{3: "172.18.0.2", 4: "172.18.0.3"} {
		put(t, m["backend"], id, bpf.Backend{Ip: bpf.IP(netip.MustParseAddr(ip)), Port: bpf.Port(6443), Proto: 6, State: bpf.BackendActive})
	}
	put(t, m["front"], bpf.FrontKey{Ip: bpf.IP(netip.MustParseAddr("fd00:10::1")), Port: bpf.Port(53), Proto: 17}, bpf.Front{SvcId: 8})
	for view, want := range map[string]string{
		"view:lb": "10.96.0.1:443/TCP (0) | 0.0.0.0:0 (7) (0) [ClusterIP, non-routable]\n" +
			"10.96.0.1:443/TCP (1) | 172.18.0.2:6443/TCP (7) (1)\n" +
			"10.96.0.1:443/TCP (2) | 172.18.0.3:6443/TCP (7) (2)\n" +
			"[fd00:10::1]:53/UDP (0) | [::]:0 (8) (0) [ClusterIP, non-routable]\n",
		"view:lb-revnat":   "7 | 10.96.0.1:443\n8 | [fd00:10::1]:53\n",
		"view:lb-backends": "3 | 172.18.0.2:6443/TCP (active)\n4 | 172.18.0.3:6443/TCP (active)\n",
	} {
		if got := text(t, New(m), view); got != want {
			t.Errorf("%s: got:\n%swant:\n%s", view, got, want)
		}
	}
}

func TestLocalEndpointsAreListedByAddress(t *testing.T) {
	m := kernelMaps(t, "ep", "addr")
	put(t, m["ep"], uint32(9), bpf.Ep{EpId: 12, Identity: 300, Ifindex: 9, Ipv4: [4]byte{10, 1, 1, 7}, Ipv6: bpf.IP(netip.MustParseAddr("fd00::7")), Mac: [6]byte{2, 0, 0, 0, 0, 1}, NodeMac: [6]byte{2, 0, 0, 0, 0, 2}})
	put(t, m["addr"], bpf.AddrKey{Ip: bpf.IP(netip.MustParseAddr("192.0.2.1"))}, bpf.Addr{Kind: bpf.AddrLocalNode, Identity: 1})
	info := "id=12 sec_id=300 flags=0x0000 ifindex=9 mac=02:00:00:00:00:01 nodemac=02:00:00:00:00:02\n"
	if got, want := text(t, New(m), "view:endpoint"), "10.1.1.7 | "+info+"192.0.2.1 | (localhost)\nfd00::7 | "+info; got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}

func TestConnectionsReadFromTheirOriginator(t *testing.T) {
	c := connection{
		a: netip.MustParseAddrPort("10.0.0.1:80"), b: netip.MustParseAddrPort("10.0.0.2:40000"), proto: 6, table: "ct4",
		ct: bpf.Ct{Seen: 1000, Flags: bpf.CtConfirmed, TcpO: 0x1b, TcpR: 0x13, SrcId: 300, DstId: 301, SvcId: 5},
	}
	local := map[netip.Addr]bool{netip.MustParseAddr("10.0.0.2"): true}
	e := c.entry(1000+2861, local) // 2861 units are just over 3 s
	if want := "TCP OUT 10.0.0.2:40000 -> 10.0.0.1:80"; e.Key != want {
		t.Errorf("key %q, want %q", e.Key, want)
	}
	if e.Fields["idle"] != "2.999s" && e.Fields["idle"] != "3s" {
		t.Errorf("idle %q", e.Fields["idle"])
	}
	if want := "RxFlagsSeen=0x13 TxFlagsSeen=0x1b "; !strings.Contains(e.Value, want) {
		t.Errorf("value %q, want %q", e.Value, want)
	}
	if want := "Flags=0x0002 [ RxClosing TxClosing SeenNonSyn Confirmed ] RevNAT=5 SourceSecurityID=300 DestinationSecurityID=301 "; !strings.Contains(e.Value, want) {
		t.Errorf("value %q, want %q", e.Value, want)
	}
	// From elsewhere: what the originator sends is what this node receives.
	c.ct.Flags = bpf.CtOrigA
	if e := c.entry(1000, local); e.Key != "TCP IN 10.0.0.1:80 -> 10.0.0.2:40000" || !strings.Contains(e.Value, "RxFlagsSeen=0x1b TxFlagsSeen=0x13 ") {
		t.Errorf("%s %s", e.Key, e.Value)
	}
}

func TestConnectionTablesAreReadInWhole(t *testing.T) {
	m := kernelMaps(t, "ct4", "ct4_new", "metrics")
	k := bpf.Ct4Key{A: bpf.IP4(netip.MustParseAddr("10.0.0.1")), B: bpf.IP4(netip.MustParseAddr("10.0.0.2")), Pa: bpf.Port(80), Pb: bpf.Port(40000), Proto: 17}
	put(t, m["ct4"], k, bpf.Ct4{})
	k.Pb = bpf.Port(40001)
	put(t, m["ct4_new"], k, bpf.Ct4{})
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	perCPU := make([]bpf.Metrics, cpus)
	perCPU[0] = bpf.Metrics{Packets: 2, Bytes: 200}
	perCPU[cpus-1].Packets++
	put(t, m["metrics"], bpf.MetricsKey{Reason: 133, Dir: bpf.MetricIngress, Line: 12, File: 1}, perCPU)
	d := New(m)
	if got := strings.Count(text(t, d, "view:ct"), "UDP IN"); got != 2 {
		t.Errorf("%d connections, want 2", got)
	}
	tr, err := d.Traffic()
	if err != nil || len(tr) != 1 || tr[0].Reason != "Policy denied" || !tr[0].Ingress || tr[0].Packets != perCPU[0].Packets+perCPU[cpus-1].Packets*min(1, uint64(cpus-1)) {
		t.Errorf("traffic %+v, %v", tr, err)
	}
}

func TestUnknownMapIsNotFound(t *testing.T) {
	if _, err := New(nil).Map("nat"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if m, err := New(nil).Map("view:ct"); err != nil || m.Cache == nil {
		t.Errorf("a view without maps: %+v, %v", m, err)
	}
}
