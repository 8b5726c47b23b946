// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	nl "github.com/vishvananda/netlink"

	"lash.internal/lash/agent/config"
	"lash.internal/lash/agent/datapath/attach"
	"lash.internal/lash/agent/datapath/dump"
	"lash.internal/lash/agent/datapath/maps"
	"lash.internal/lash/agent/datapath/netlink"
	"lash.internal/lash/agent/datapath/testnode"
	"lash.internal/lash/agent/health"
	"lash.internal/lash/agent/ipam"
	"lash.internal/lash/agent/node"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// TestProbeAsksThroughThePrograms has the real programs on a node's own endpoint: both families answer,
// with flows that the programs have entered, and nothing answers when the programs do not know the
// endpoint, or have no device to it.
func TestProbeAsksThroughThePrograms(t *testing.T) {
	root := testnode.New(t)
	ctx := t.Context()
	pool, err := ipam.New([]netip.Prefix{netip.MustParsePrefix("10.244.7.0/24"), netip.MustParsePrefix("fd00:10:244:7::/64")})
	if err != nil {
		t.Fatal(err)
	}
	pool.TakeHealth(nil, nil)
	sysctls, err := netlink.NewSysctls(filepath.Join(t.TempDir(), "sysctl.json"), "/proc/thread-self/root/proc/sys/net", "/proc/sys/net")
	if err != nil {
		t.Fatal(err)
	}
	plan := netlink.Plan{IPv4: true, IPv6: true, Addrs: pool.Own(), UnderlayMTU: 1500, Health: true}
	if _, err := netlink.Ensure(plan, sysctls); err != nil {
		t.Fatal(err)
	}
	own := func(name string) state.OwnDevice {
		l, err := nl.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return state.OwnDevice{Name: name, Index: l.Attrs().Index, MAC: [6]byte(l.Attrs().HardwareAddr)}
	}
	device := own(state.HealthDevice)
	n := startAgent(t, root, device.Index, "1", false, false)
	end := sync.OnceFunc(n.stop)
	defer end()
	self := health.NewSelf(own(state.HealthPeer), pool.Health())
	row := self.Row(1, device)
	tx := n.tables.DB.WriteTxn()
	n.tables.Endpoints.Insert(tx, row)
	tx.Commit()

	// What the loops make of the row.
	v := node.View{Tables: n.tables, Routers: pool.Own()}
	eps, err1 := maps.Target[uint32, bpf.Ep](n.kernel.maps, "ep")
	addrs, err2 := maps.Target[bpf.AddrKey, bpf.Addr](n.kernel.maps, "addr")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	var errs []error
	for _, k := range node.EpKeys(row) {
		ep, _ := v.Ep(k)
		errs = append(errs, eps.Set(ctx, k, ep))
	}
	for _, a := range append(pool.Own(), pool.Health()...) {
		who, _ := v.Addr(node.AddrKey(a))
		errs = append(errs, addrs.Set(ctx, node.AddrKey(a), who))
	}
	for _, k := range node.NeighbourKeys(row) {
		mac, _ := v.Neighbour(k)
		errs = append(errs, netlink.Neighbours{}.Set(ctx, k, mac))
	}
	for _, p := range v.RouteOfEndpoint(row) {
		r, _ := v.Route(p)
		errs = append(errs, netlink.Routes{}.Set(ctx, p, r))
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if have, err := netlink.HealthAddrs(); err != nil || len(have) != 2 {
		t.Errorf("the next start finds addresses %v, %v", have, err)
	}
	conn, err := netlink.OpenPackets(netlink.HealthPeer, health.Questions(pool.Routers()))
	if err != nil {
		t.Fatal(err)
	}
	serving, stop := context.WithCancel(ctx)
	served := make(chan error)
	go func() { served <- self.Serve(serving, conn) }()

	ask := func(to netip.Addr, patience time.Duration) error {
		asking, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return health.Ask(pool.Routers())(asking, to)
	}
	good := func(when string) {
		t.Helper()
		for _, a := range pool.Health() {
			if err := ask(a, 20*time.Second); err != nil {
				t.Errorf("%s: %s: %v", when, a, err)
			}
		}
	}
	bad := func(when string) {
		t.Helper()
		for _, a := range pool.Health() {
			if err := ask(a, 100*time.Millisecond); err == nil {
				t.Errorf("%s: %s answers", when, a)
			}
		}
	}
	good("as it should be")
	flows, err := dump.New(n.kernel.maps.All()).Map("ct4")
	if err != nil || len(flows.Cache) != 1 {
		t.Errorf("the programs have entered the flows %+v, %v", flows.Cache, err)
	}
	if err := eps.Delete(ctx, uint32(device.Index)); err != nil {
		t.Fatal(err)
	}
	bad("unknown to the programs")
	ep, _ := v.Ep(uint32(device.Index))
	if err := eps.Set(ctx, uint32(device.Index), ep); err != nil {
		t.Fatal(err)
	}
	good("known again")

	// Without its programs the kernel's routes would do.
	n.probe = &probe{a: n.Agent, number: 1}
	if err := n.probe.passed(); err != nil {
		t.Errorf("attached: %v", err)
	}
	end()
	if err := attach.Clean(root); err != nil {
		t.Fatal(err)
	}
	good("without programs")
	if err := n.probe.passed(); err == nil || !strings.Contains(err.Error(), "past the programs: pod_from is not on lxc_health") {
		t.Errorf("without programs: %v", err)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := nl.LinkSetDown(&nl.Device{LinkAttrs: nl.LinkAttrs{Index: device.Index}}); err != nil {
		t.Fatal(err)
	}
	bad("down")
}

// TestProbeDecidesReadiness: a node that serves is ready when its probe is good, and says why it is not.
// What load balancers and status ask of the start itself does not follow the probe.
func TestProbeDecidesReadiness(t *testing.T) {
	a := &Agent{cfg: &config.Config{}}
	if err := a.Ready(); err != nil {
		t.Errorf("without a probe: %v", err)
	}
	if s := a.probeStatus(); s.State != "Disabled" || s.Msg != "enable-endpoint-health-checking is false" {
		t.Errorf("switched off: %+v", s)
	}
	a.cfg.EndpointHealthChecking = true
	if s := a.probeStatus(); s.State != "Disabled" || !strings.Contains(s.Msg, "no address") {
		t.Errorf("without an address: %+v", s)
	}
	a.probe = &probe{Probe: &health.Probe{}}
	if err := a.Ready(); err == nil || err.Error() != "datapath probe: no answer yet" {
		t.Errorf("before the first answer: %v", err)
	}
	if err := a.serving(); err != nil {
		t.Errorf("the node is not served: %v", err)
	}
	if s := a.probeStatus(); s.State != "Warning" {
		t.Errorf("status before the first answer: %+v", s)
	}
	a.setPhase(errors.New("waiting"))
	if err := a.Ready(); err == nil || err.Error() != "waiting" {
		t.Errorf("while it starts: %v", err)
	}
}
