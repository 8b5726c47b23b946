// SPDX-License-Identifier: Apache-2.0

package netlink

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	nl "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"lash.internal/lash/agent/state"
)

// node gives the test a network namespace of its own with a device eth0.
func node(t *testing.T) *Sysctls {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if _, err := netns.New(); err != nil {
		t.Skipf("no new network namespace: %v", err)
	}
	err := nl.LinkAdd(&nl.Veth{LinkAttrs: nl.LinkAttrs{Name: "eth0", MTU: 1500}, PeerName: "vethX"})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"eth0", "vethX"} {
		if err := SetUp(name); err != nil {
			t.Fatal(err)
		}
	}
	addAddr(t, "172.31.1.11/24")
	// The test's own /proc/sys/net follows the thread's namespace.
	s, err := NewSysctls(filepath.Join(t.TempDir(), "sysctl.json"), "/proc/thread-self/root/proc/sys/net", "/proc/sys/net")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func addAddr(t *testing.T, cidr string) {
	t.Helper()
	eth0, err := nl.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	a, err := nl.ParseAddr(cidr)
	if err != nil {
		t.Fatal(err)
	}
	if err := nl.AddrAdd(eth0, a); err != nil {
		t.Fatal(err)
	}
}

func plan() Plan {
	return Plan{
		IPv4: true, IPv6: true, Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.1"), netip.MustParseAddr("fd00:10:244::1")},
		UnderlayMTU: 1500, Tunnel: true, TunnelPort: 8472,
	}
}

func TestEnsureIsIdempotentAndCleanLeavesNothing(t *testing.T) {
	s := node(t)
	first, err := Ensure(plan(), s)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Ensure(plan(), s)
	if err != nil || first != second {
		t.Fatalf("second run: %+v instead of %+v, %v", second, first, err)
	}
	link, err := nl.LinkByName(HostDevice)
	if err != nil {
		t.Fatal(err)
	}
	p := plan()
	p.Addrs[0] = netip.MustParseAddr("10.244.9.1")
	if _, err := Ensure(p, s); err != nil {
		t.Fatal(err)
	}
	addrs, _ := nl.AddrList(link, nl.FAMILY_V4)
	if len(addrs) != 1 || fromIP(addrs[0].IP) != p.Addrs[0] {
		t.Fatalf("addresses of %s: %v", HostDevice, addrs)
	}
	if v, _ := s.Get("ipv4/conf/" + VXLANDevice + "/rp_filter"); v != "0" {
		t.Errorf("rp_filter of %s is %s", VXLANDevice, v)
	}
	p.TunnelPort = 8473
	third, err := Ensure(p, s)
	if err != nil || third.VXLAN == first.VXLAN || third.Host != first.Host {
		t.Fatalf("new port: %+v, %v", third, err)
	}
	p.Tunnel = false
	native, err := Ensure(p, s)
	if _, left := Index(VXLANDevice); err != nil || native.VXLAN != 0 || left || native.Host != first.Host {
		t.Fatalf("without tunnel: %+v, %s is left: %v, %v", native, VXLANDevice, left, err)
	}
	if err := Clean(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{HostDevice, NetDevice, VXLANDevice} {
		if _, ok := Index(name); ok {
			t.Errorf("%s is left", name)
		}
	}
	if _, ok := Index("eth0"); !ok {
		t.Error("eth0 is gone")
	}
}

// TestHealthEndpointIsSilent: both ends are in the node's namespace, and the kernel does nothing at the
// second. Who has none any more has its devices removed.
func TestHealthEndpointIsSilent(t *testing.T) {
	s := node(t)
	p := plan()
	p.Health = true
	if _, err := Ensure(p, s); err != nil {
		t.Fatal(err)
	}
	link, err1 := nl.LinkByName(HealthDevice)
	peer, err2 := nl.LinkByName(HealthPeer)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if peer.Attrs().ParentIndex != link.Attrs().Index {
		t.Errorf("%s is not the other end of %s", HealthPeer, HealthDevice)
	}
	if v, _ := s.Get("ipv6/conf/" + HealthPeer + "/disable_ipv6"); v != "1" {
		t.Errorf("IPv6 of %s: disable_ipv6 is %s", HealthPeer, v)
	}
	if addrs, err := nl.AddrList(peer, nl.FAMILY_ALL); err != nil || len(addrs) > 0 {
		t.Errorf("%s has addresses %v, %v", HealthPeer, addrs, err)
	}
	found, err := Detect(nil, nil)
	if err != nil || len(found) != 1 || found[0].Name != "eth0" {
		t.Errorf("devices that lead out: %+v, %v", found, err)
	}
	m := maker{Plan: p, sysctls: s}
	if _, err := m.ensure(); err != nil || len(m.changes) > 0 {
		t.Errorf("a second run changes %v, %v", m.changes, err)
	}
	key := state.NeighbourKey{Index: link.Attrs().Index, IP: netip.MustParseAddr("10.244.0.253")}
	if err := (Neighbours{}).Set(context.Background(), key, [6]byte{2, 0, 0, 0, 0, 1}); err != nil {
		t.Fatal(err)
	}
	if have, err := (Neighbours{}).Load(context.Background()); err != nil || len(have) != 1 {
		t.Errorf("neighbours %v, %v", have, err)
	}
	if _, err := Ensure(plan(), s); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{HealthDevice, HealthPeer} {
		if _, left := Index(name); left {
			t.Errorf("%s is left", name)
		}
	}
	if _, err := Ensure(p, s); err != nil {
		t.Fatal(err)
	}
	if err := Clean(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{HealthDevice, HealthPeer, HostDevice} {
		if _, left := Index(name); left || !Ours(name) {
			t.Errorf("%s is left, or not ours", name)
		}
	}
}

func TestRoutesAndNeighbours(t *testing.T) {
	s := node(t)
	d, err := Ensure(plan(), s)
	if err != nil {
		t.Fatal(err)
	}
	v, err := CreateVeth("lxc0123456789ab", Peer{}, 1500, true, true, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := SetUp(v.HostName); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	want := map[netip.Prefix]state.Route{
		netip.MustParsePrefix("10.244.0.7/32"):       {Index: v.HostIndex},
		netip.MustParsePrefix("10.244.1.0/24"):       {Index: d.VXLAN, Src: netip.MustParseAddr("10.244.0.1"), MTU: 1450},
		netip.MustParsePrefix("10.244.0.0/24"):       {},
		netip.MustParsePrefix("fd00:10:244::7/128"):  {Index: v.HostIndex},
		netip.MustParsePrefix("fd00:10:244:1::/64"):  {Index: d.VXLAN, Src: netip.MustParseAddr("fd00:10:244::1"), MTU: 1450},
		netip.MustParsePrefix("fd00:10:244:0::/64"):  {},
		netip.MustParsePrefix("fd00:10:244:99::/64"): {Index: d.VXLAN},
	}
	var routes Routes
	for k, r := range want {
		if err := routes.Set(ctx, k, r); err != nil {
			t.Fatal(err)
		}
		if err := routes.Set(ctx, k, r); err != nil {
			t.Fatalf("again: %v", err)
		}
	}
	moved := netip.MustParsePrefix("fd00:10:244:99::/64")
	want[moved] = state.Route{Index: d.Host}
	if err := routes.Set(ctx, moved, want[moved]); err != nil {
		t.Fatal(err)
	}
	have, err := routes.Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(have) != len(want) {
		t.Errorf("routes: %v", have)
	}
	for k, r := range want {
		if have[k] != r {
			t.Errorf("%s: %+v instead of %+v", k, have[k], r)
		}
	}
	for k := range want {
		if err := routes.Delete(ctx, k); err != nil {
			t.Error(err)
		}
		if err := routes.Delete(ctx, k); err != nil {
			t.Errorf("deleting what is gone: %v", err)
		}
	}
	var neighbours Neighbours
	for _, ip := range []string{"10.244.0.7", "fd00:10:244::7"} {
		k := state.NeighbourKey{Index: v.HostIndex, IP: netip.MustParseAddr(ip)}
		mac := [6]byte(v.PodMAC)
		if err := neighbours.Set(ctx, k, mac); err != nil {
			t.Fatal(err)
		}
		if have, err := neighbours.Load(ctx); err != nil || have[k] != mac {
			t.Errorf("neighbour %s: %v, %v", ip, have, err)
		}
		for range 2 {
			if err := neighbours.Delete(ctx, k); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestSysctlsAreGivenBack(t *testing.T) {
	s := node(t)
	for path, v := range map[string]string{
		"ipv4/conf/all/rp_filter": "1", "ipv4/conf/eth0/rp_filter": "0", "ipv4/ip_local_reserved_ports": "8080,9000-9010",
		"ipv4/ip_forward": "0", "ipv6/conf/eth0/accept_ra": "1",
	} {
		if err := s.set(path, v); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // a restart must not remember our own values
		if err := s.Forwarding(true, true); err != nil {
			t.Fatal(err)
		}
		if err := s.NoGlobalReversePath(); err != nil {
			t.Fatal(err)
		}
		for _, r := range [][2]uint16{{49152, 65535}, {30000, 32767}, {9001, 9005}} {
			if err := s.ReservePorts(r[0], r[1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := func(values map[string]string) {
		t.Helper()
		for path, v := range values {
			if have, err := s.Get(path); err != nil || have != v {
				t.Errorf("%s is %q instead of %q (%v)", path, have, v, err)
			}
		}
	}
	want(map[string]string{
		"ipv4/conf/all/rp_filter": "0", "ipv4/conf/eth0/rp_filter": "1", "ipv4/ip_forward": "1",
		"ipv4/ip_local_reserved_ports": "8080,9000-9010,30000-32767,49152-65535", "ipv6/conf/all/forwarding": "1", "ipv6/conf/eth0/accept_ra": "2",
	})
	if err := s.Restore(); err != nil {
		t.Fatal(err)
	}
	want(map[string]string{
		"ipv4/conf/all/rp_filter": "1", "ipv4/conf/eth0/rp_filter": "0", "ipv4/ip_forward": "0",
		"ipv4/ip_local_reserved_ports": "8080,9000-9010", "ipv6/conf/eth0/accept_ra": "1",
	})
}

// TestHalfWrittenSysctls starts over a file of saved values that was cut off: it is put aside, and
// the agent works.
func TestHalfWrittenSysctls(t *testing.T) {
	s := node(t)
	if err := os.WriteFile(s.file, []byte(`{"ipv4/ip_fo`), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := NewSysctls(s.file, s.root)
	if err != nil || s.Broken == "" {
		t.Fatalf("broken file put aside as %q, %v", s.Broken, err)
	}
	if err := s.Forwarding(true, true); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(s.Broken); err != nil || string(b) != `{"ipv4/ip_fo` {
		t.Errorf("put aside: %q, %v", b, err)
	}
}

func TestDetect(t *testing.T) {
	s := node(t)
	if _, err := Ensure(plan(), s); err != nil {
		t.Fatal(err)
	}
	names := func(patterns ...string) (out []string) {
		devices, err := Detect(patterns, []netip.Addr{netip.MustParseAddr("172.31.1.11")})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range devices {
			out = append(out, d.Name)
			if d.Name == "eth0" && !d.DirectRouting {
				t.Error("eth0 has the node's address and is not the direct routing device")
			}
		}
		return out
	}
	for _, c := range []struct {
		patterns []string
		want     int
	}{{nil, 1}, {[]string{"eth+"}, 1}, {[]string{"vethX"}, 2}, {[]string{"ens+"}, 1}} {
		if got := names(c.patterns...); len(got) != c.want {
			t.Errorf("patterns %q: %v", c.patterns, got)
		}
	}
}

// watch runs a watcher of the node's devices and returns its table, and what waits for a condition
// on it.
func watch(t *testing.T) (*state.Tables, func(what string, cond func() bool)) {
	t.Helper()
	tables := state.NewTables()
	w := NewWatcher(tables, nil, nil, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	ns, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- w.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return tables, func(what string, cond func() bool) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for {
			changed := tables.Devices.Watch()
			if cond() {
				return
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatal(what)
			}
		}
	}
}

func TestWatcherFollowsAddresses(t *testing.T) {
	node(t)
	tables, wait := watch(t)
	has := func(n int) func() bool {
		return func() bool { d, ok := tables.Devices.Get("eth0"); return ok && len(d.Addrs) == n }
	}
	wait("eth0 has no address", has(1))
	if ok, _ := tables.Devices.Initialized(); !ok {
		t.Error("table is not initialized")
	}
	addAddr(t, "172.31.2.11/24")
	wait("eth0 does not get the second address", has(2))
}

// TestWatcherFollowsDevices renames a device, takes it away, makes it again, and adds another one.
func TestWatcherFollowsDevices(t *testing.T) {
	node(t)
	tables, wait := watch(t)
	index := func(name string) int { d, _ := tables.Devices.Get(name); return d.Index }
	wait("eth0 is not seen", func() bool { return index("eth0") != 0 })
	first := index("eth0")
	link, err := nl.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { return nl.LinkSetDown(link) },
		func() error { return nl.LinkSetName(link, "lan0") },
		func() error { return nl.LinkSetUp(link) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	wait("the new name is not seen", func() bool { return index("lan0") == first && index("eth0") == 0 })
	if err := nl.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	wait("the device that is gone is still there", func() bool { return tables.Devices.Len() == 0 })
	for _, name := range []string{"eth0", "eth1"} {
		if err := nl.LinkAdd(&nl.Veth{LinkAttrs: nl.LinkAttrs{Name: name}, PeerName: "p" + name}); err != nil {
			t.Fatal(err)
		}
		if err := SetUp(name); err != nil {
			t.Fatal(err)
		}
		l, err := nl.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		a, err := nl.ParseAddr(map[string]string{"eth0": "172.31.1.11/24", "eth1": "172.31.7.11/24"}[name])
		if err != nil {
			t.Fatal(err)
		}
		if err := nl.AddrAdd(l, a); err != nil {
			t.Fatal(err)
		}
		wait(name+" is not seen", func() bool { return index(name) == l.Attrs().Index })
	}
	if index("eth0") == first {
		t.Error("the device that was made again has the old index")
	}
}

func TestTunnelMTU(t *testing.T) {
	if mtu, err := TunnelMTU(1500, false); err != nil || mtu != 1450 {
		t.Errorf("IPv4: %d, %v", mtu, err)
	}
	if mtu, err := TunnelMTU(1500, true); err != nil || mtu != 1430 {
		t.Errorf("IPv6: %d, %v", mtu, err)
	}
	if _, err := TunnelMTU(1300, true); err == nil {
		t.Error("1300 bytes cannot carry IPv6 over IPv6")
	}
}
