// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

var (
	ip     = netip.MustParseAddr
	prefix = netip.MustParsePrefix
	mac    = net.HardwareAddr{2, 0, 0, 0, 0, 1}
)

// world is a node with two peers, a pod here and one on worker.
func world(t *testing.T) (View, *Tunnels) {
	t.Helper()
	tables := state.NewTables()
	tx := tables.DB.WriteTxn()
	tables.Nodes.Insert(tx, state.Node{
		Name: "self", Local: true, InternalIPs: []netip.Addr{ip("172.31.1.11")},
		RouterIPs: []netip.Addr{ip("10.244.0.1")}, PodCIDRs: []netip.Prefix{prefix("10.244.0.0/24")},
	})
	tables.Nodes.Insert(tx, state.Node{
		Name: "worker", InternalIPs: []netip.Addr{ip("172.31.1.12"), ip("fd31::12")},
		RouterIPs: []netip.Addr{ip("10.244.1.1")}, PodCIDRs: []netip.Prefix{prefix("10.244.1.0/24"), prefix("fd00:1::/64")},
		HealthIPs: []netip.Addr{ip("10.244.1.253"), ip("fd00:1::fffd")},
	})
	tables.Nodes.Insert(tx, state.Node{Name: "api", InternalIPs: []netip.Addr{ip("172.31.1.13")}})
	tables.Devices.Insert(tx, state.Device{
		Name: "eth0", Index: 2, MAC: mac, MTU: 1500,
		Addrs: []netip.Prefix{prefix("192.0.2.1/24"), prefix("172.31.1.11/24"), prefix("fd31::11/64")},
	})
	tables.OwnDevices.Insert(tx, state.OwnDevice{Name: state.VXLANDevice, Index: 4})
	tables.Endpoints.Insert(tx, state.Endpoint{
		ID: 7, IfIndex: 10, IPv4: ip("10.244.0.7"), IPv6: ip("fd00::7"), Identity: 300, MAC: mac, NodeMAC: mac, State: state.EndpointReady,
	})
	tables.RemoteIPs.Insert(tx, state.RemoteIP{IP: ip("10.244.1.9"), NodeIP: ip("172.31.1.12"), Identity: 400})
	tables.RemoteIPs.Insert(tx, state.RemoteIP{IP: ip("10.244.0.7"), NodeIP: ip("172.31.1.12"), Identity: 401}) // out of date
	tables.RemoteIPs.Insert(tx, state.RemoteIP{IP: ip("10.244.5.9"), NodeIP: ip("172.31.1.99"), Identity: 402}) // node not known yet
	tables.EndpointSlices.Insert(tx, state.EndpointSlice{
		Name: apiServer, Service: apiServer, Endpoints: []state.SliceEndpoint{{Addresses: []netip.Addr{ip("172.31.1.13"), ip("198.51.100.1")}}},
	})
	tx.Commit()
	tunnels := NewTunnels(tables, false, map[uint32]bpf.Vtep{5: {Ip: bpf.IP(ip("172.31.1.12"))}}, slog.New(slog.DiscardHandler))
	tunnels.update(true, true)
	v := View{
		Tables: tables, Tunnel: true, TunnelMTU: 1450, Routers: []netip.Addr{ip("10.244.0.1")}, Masquerade4: true,
		NoMasquerade: []netip.Prefix{prefix("10.0.0.0/8")},
		Vip:          func(a netip.Addr) bool { return a == ip("10.96.0.1") || a == ip("172.31.1.11") },
	}
	return v, tunnels
}

func TestAddr(t *testing.T) {
	v, _ := world(t)
	api, ok := v.Tables.Tunnels.Get(ip("172.31.1.13"))
	if !ok {
		t.Fatal("api has no tunnel")
	}
	for _, c := range []struct {
		addr string
		want bpf.Addr
	}{
		{"10.244.0.7", bpf.Addr{Kind: bpf.AddrLocalEP, Identity: 300, Ifindex: 10, EpId: 7}},
		{"fd00::7", bpf.Addr{Kind: bpf.AddrLocalEP, Identity: 300, Ifindex: 10, EpId: 7}},
		{"10.244.0.1", bpf.Addr{Kind: bpf.AddrGateway, Identity: 1}},
		{"172.31.1.11", bpf.Addr{Kind: bpf.AddrLocalNode, Identity: 1, Flags: bpf.AddrHasSvc}},
		{"192.0.2.1", bpf.Addr{Kind: bpf.AddrLocalNode, Identity: 1}},
		{"172.31.1.12", bpf.Addr{Kind: bpf.AddrRemoteNode, Identity: 6, Vtep: 5}},
		{"fd31::12", bpf.Addr{Kind: bpf.AddrRemoteNode, Identity: 6, Vtep: 5}},
		{"10.244.1.1", bpf.Addr{Kind: bpf.AddrRemoteEP, Identity: 6, Vtep: 5}},
		{"172.31.1.13", bpf.Addr{Kind: bpf.AddrRemoteNode, Identity: 7, Vtep: api.Index}},
		{"10.244.1.9", bpf.Addr{Kind: bpf.AddrRemoteEP, Identity: 400, Vtep: 5}},
		{"10.244.1.253", bpf.Addr{Kind: bpf.AddrRemoteEP, Identity: 4, Vtep: 5}},
		{"fd00:1::fffd", bpf.Addr{Kind: bpf.AddrRemoteEP, Identity: 4, Vtep: 5}},
		{"10.96.0.1", bpf.Addr{Kind: bpf.AddrVIP, Flags: bpf.AddrHasSvc}},
		{"198.51.100.1", bpf.Addr{Kind: bpf.AddrCIDR, Identity: 7}},
		{"10.244.5.9", bpf.Addr{}},
		{"10.244.0.8", bpf.Addr{}},
	} {
		got, ok := v.Addr(AddrKey(ip(c.addr)))
		if got != c.want || ok != (c.want != bpf.Addr{}) {
			t.Errorf("%s: %+v %v instead of %+v", c.addr, got, ok, c.want)
		}
	}
}

// TestHealthEndpoint is known to programs as what is reached through its device; a pod is not.
func TestHealthEndpoint(t *testing.T) {
	v, _ := world(t)
	tx := v.Tables.DB.WriteTxn()
	v.Tables.Endpoints.Insert(tx, state.Endpoint{
		ID: 8, IfIndex: 11, IPv4: ip("10.244.0.253"), Identity: state.IdentityHealth, MAC: mac, NodeMAC: mac, State: state.EndpointReady,
	})
	tx.Commit()
	for index, want := range map[uint32]uint32{10: 0, 11: bpf.EPPeerHere} {
		if e, ok := v.Ep(index); !ok || e.Flags != want {
			t.Errorf("device %d: %+v, %v", index, e, ok)
		}
	}
	worker, _ := v.Tables.Nodes.Get("worker")
	if keys := v.AddrOfNode(worker); !slices.Contains(keys, AddrKey(ip("10.244.1.253"))) {
		t.Errorf("a change of the node does not touch its health endpoint: %v", keys)
	}
}

// TestPings are answered at addresses that only a Service has.
func TestPings(t *testing.T) {
	v, _ := world(t)
	v.Vip = func(netip.Addr) bool { return true }
	v.Ping = func(a netip.Addr) bool { return a != ip("10.96.0.1") }
	for addr, want := range map[string]uint16{
		"198.51.100.77": bpf.AddrHasSvc | bpf.AddrEcho, "10.96.0.1": bpf.AddrHasSvc, "172.31.1.11": bpf.AddrHasSvc, "10.244.0.7": bpf.AddrHasSvc,
	} {
		if got, _ := v.Addr(AddrKey(ip(addr))); got.Flags != want {
			t.Errorf("%s has flags %#x, want %#x", addr, got.Flags, want)
		}
	}
}

// TestFlagsOfNodes: NodePorts hold at the addresses of all nodes where they are open, HostPorts at those
// of this node.
func TestFlagsOfNodes(t *testing.T) {
	v, _ := world(t)
	v.Vip = nil
	v.NodePort = func(a netip.Addr) bool { return a.Is4() }
	v.HostPort = func(a netip.Addr) bool { return a != ip("192.0.2.1") }
	for addr, want := range map[string]uint16{
		"172.31.1.11": bpf.AddrNodePort | bpf.AddrHasSvc,
		"192.0.2.1":   bpf.AddrNodePort,
		"fd31::11":    bpf.AddrHasSvc,
		"172.31.1.12": bpf.AddrNodePort,
		"fd31::12":    0,
		"10.244.0.1":  0, // the router's
		"10.244.1.1":  0,
		"10.244.0.7":  0,
		"10.244.1.9":  0,
	} {
		if got, ok := v.Addr(AddrKey(ip(addr))); !ok || got.Flags != want {
			t.Errorf("%s has flags %#x, want %#x (%+v)", addr, got.Flags, want, got)
		}
	}
	if got, ok := v.Addr(AddrKey(ip("203.0.113.1"))); ok {
		t.Errorf("an address that nobody has: %+v", got)
	}
	for at, want := range map[string]int{"0.0.0.0": 4, "::": 1, "192.0.2.1": 1} {
		if got := v.AddrAt(ip(at)); len(got) != want {
			t.Errorf("%d keys for %s, want %d", len(got), at, want)
		}
	}
}

func TestCIDRsAndRoutes(t *testing.T) {
	v, _ := world(t)
	for _, c := range []struct {
		prefix string
		cidr   bpf.Cidr
		route  state.Route
		routed bool
	}{
		{"10.244.1.0/24", bpf.Cidr{Kind: bpf.CIDRPod, Vtep: 5}, state.Route{Index: 4, Src: ip("10.244.0.1"), MTU: 1450}, true},
		{"fd00:1::/64", bpf.Cidr{Kind: bpf.CIDRPod, Vtep: 5}, state.Route{Index: 4, MTU: 1450}, true},
		{"10.244.0.0/24", bpf.Cidr{Kind: bpf.CIDRPodLocal}, state.Route{}, true},
		{"10.244.0.7/32", bpf.Cidr{}, state.Route{Index: 10, Src: ip("10.244.0.1")}, true},
		{"10.0.0.0/8", bpf.Cidr{Kind: bpf.CIDRIdentity, Flags: bpf.CIDRNoMasq}, state.Route{}, false},
		{"10.244.0.8/32", bpf.Cidr{}, state.Route{}, false},
	} {
		if got, ok := v.CIDR(bpf.CIDR(prefix(c.prefix))); got != c.cidr || ok != (c.cidr != bpf.Cidr{}) {
			t.Errorf("cidr %s: %+v %v instead of %+v", c.prefix, got, ok, c.cidr)
		}
		if got, ok := v.Route(prefix(c.prefix)); got != c.route || ok != c.routed {
			t.Errorf("route %s: %+v %v instead of %+v", c.prefix, got, ok, c.route)
		}
	}
}

// TestNativeRoutes wants routes over the link to the nodes that are on one, and the others named.
func TestNativeRoutes(t *testing.T) {
	v, _ := world(t)
	v.Tunnel, v.DirectRoutes = false, true
	tx := v.Tables.DB.WriteTxn()
	v.Tables.Nodes.Insert(tx, state.Node{
		Name: "far", InternalIPs: []netip.Addr{ip("198.51.100.9")}, PodCIDRs: []netip.Prefix{prefix("10.244.9.0/24")},
	})
	tx.Commit()
	for p, want := range map[string]state.Route{
		"10.244.1.0/24": {Index: 2, Via: ip("172.31.1.12")},
		"fd00:1::/64":   {Index: 2, Via: ip("fd31::12")},
		"10.244.9.0/24": {},
	} {
		if got, ok := v.Route(prefix(p)); got != want || ok != (want != state.Route{}) {
			t.Errorf("route %s: %+v %v instead of %+v", p, got, ok, want)
		}
	}
	if got := v.Unrouted(); !slices.Equal(got, []string{"far"}) {
		t.Errorf("unrouted: %v", got)
	}
	v.DirectRoutes = false
	if got, ok := v.Route(prefix("10.244.1.0/24")); ok {
		t.Errorf("without direct routes: %+v", got)
	}
	if got := v.Unrouted(); got != nil {
		t.Errorf("without direct routes nobody is missed: %v", got)
	}
}

func TestMasqueradeUsesTheNodesOwnAddress(t *testing.T) {
	v, _ := world(t)
	d, ok := v.Dev(2)
	if !ok || d.Masq4 != ip("172.31.1.11").As4() || d.Masq6 != [16]byte{} {
		t.Errorf("dev: %+v %v", d, ok)
	}
}

func TestPodOfARemovedEndpointIsNowhere(t *testing.T) {
	v, _ := world(t)
	e, _ := v.Tables.Endpoints.Get(7)
	e.State = state.EndpointDisconnecting
	tx := v.Tables.DB.WriteTxn()
	v.Tables.Endpoints.Insert(tx, e)
	v.Tables.RemoteIPs.Delete(tx, e.IPv4)
	tx.Commit()
	if got, ok := v.Addr(AddrKey(e.IPv4)); ok {
		t.Errorf("addr: %+v", got)
	}
	if _, ok := v.Ep(10); ok {
		t.Error("ep is wanted")
	}
	if _, ok := v.Route(netip.PrefixFrom(e.IPv4, 32)); ok {
		t.Error("route is wanted")
	}
	if _, ok := v.Neighbour(state.NeighbourKey{Index: 10, IP: e.IPv4}); ok {
		t.Error("neighbour is wanted")
	}
}

func TestTunnelNumbersAreKeptAndRest(t *testing.T) {
	v, tunnels := world(t)
	now := time.Now()
	tunnels.now = func() time.Time { return now }
	tx := v.Tables.DB.WriteTxn()
	worker, _ := v.Tables.Nodes.Get("worker")
	v.Tables.Nodes.Delete(tx, "worker")
	tx.Commit()
	tunnels.update(false, false)
	if _, ok := v.Tables.Tunnels.Get(ip("172.31.1.12")); !ok {
		t.Fatal("released before the nodes are complete")
	}
	tunnels.update(false, true)
	if _, ok := v.Tables.Tunnels.Get(ip("172.31.1.12")); ok {
		t.Fatal("not released")
	}
	for i := range 6 {
		worker.Name, worker.InternalIPs = string(rune('a'+i)), []netip.Addr{netip.AddrFrom4([4]byte{172, 31, 2, byte(i)})}
		v.Tables.Nodes.Insert(tx, worker)
	}
	tx.Commit()
	tunnels.update(false, true)
	seen := map[uint32]bool{}
	for addr, tn := range v.Tables.Tunnels.All() {
		if tn.Index == 5 || tn.Index == 0 || seen[tn.Index] {
			t.Errorf("%s has number %d", addr, tn.Index)
		}
		seen[tn.Index] = true
	}
}

func TestTunnelsRunCompletesTheTable(t *testing.T) {
	v, _ := world(t)
	tables := state.NewTables()
	deliver := tables.Nodes.RegisterInitializer("test")
	tunnels := NewTunnels(tables, false, nil, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { tunnels.Run(ctx); close(done) }()
	_, ready := tables.Tunnels.Initialized()
	tx := tables.DB.WriteTxn()
	for _, n := range v.Tables.Nodes.All() {
		tables.Nodes.Insert(tx, n)
	}
	deliver(tx)
	tx.Commit()
	select {
	case <-ready:
	case <-time.After(10 * time.Second):
		t.Fatal("tunnels are never complete")
	}
	if tables.Tunnels.Len() != 2 {
		t.Errorf("%d tunnels", tables.Tunnels.Len())
	}
	cancel()
	<-done
}
