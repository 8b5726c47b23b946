// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"lash.internal/lash/agent/config"
	"lash.internal/lash/agent/datapath/ctgc"
	"lash.internal/lash/agent/datapath/lbmap"
	"lash.internal/lash/agent/datapath/netlink"
	"lash.internal/lash/agent/reconcile"
	"lash.internal/lash/agent/rest"
	"lash.internal/lash/agent/service"
	"lash.internal/lash/agent/state"
)

// services is how Services get into the kernel. With kube-proxy in charge nothing is wanted, and
// what an earlier configuration left is removed.
type services struct {
	a     *Agent
	view  service.View
	maps  *lbmap.Target
	chain *reconcile.Chain
	flows *ctgc.Collector

	sockets socketEnder

	answers *rest.HealthChecks
	health  *reconcile.Chain // nothing waits for it: a port that cannot be had is no reason not to serve
}

// serviceAudit is how often all of the Services in the kernel are compared with what they should be.
const serviceAudit = 30 * time.Minute

func newServices(a *Agent) (*services, error) {
	k, t := a.kernel, a.tables
	maps := lbmap.MapsOf(k.maps.Of)
	maps.Skrev = k.maps.Of("skrev")
	target, err := lbmap.Open(maps, lbmap.Options{
		Local: func(ip netip.Addr) bool {
			return slices.Contains(a.node.InternalIPs, ip) || len(t.Devices.ByIndex("ip", ip.String())) > 0
		},
		MaglevSize: k.constant.MaglevSize, MaglevSeed: k.constant.MaglevSeed,
	})
	if err != nil {
		return nil, err
	}
	v := a.serviceView()
	loop := reconcile.Keyed("services", target, v.Want,
		// A frontend that changes hands touches all Services and pods that claim it.
		reconcile.Via(reconcile.FromTable(t.Services, v.Claims), v.Touched),
		reconcile.FromTable(t.EndpointSlices, v.PrimariesOfSlice), reconcile.FromTable(t.Pods, v.HostPorts),
		reconcile.Via(reconcile.FromTable(t.Nodes, v.Local), v.PrimariesOfNode)).
		Equal(state.Balance.Satisfies).AuditEvery(serviceAudit)
	flows, err := newCollector(k, a.log)
	if err != nil {
		return nil, errors.Join(err, target.Close())
	}
	flows.Swept = func(start time.Time, ports *lbmap.Ports) {
		if len(k.maps.Moving()) == 0 { // flows in tables of before are not among them
			target.ReleasePorts(start, ports)
		}
	}
	if !v.Enabled {
		a.log.Info("Services are left to kube-proxy: kube-proxy-replacement is false")
	}
	sockets := socketEnder{list: netlink.ConnectedUDP, outlived: target.Outlived, left: target.Left, log: a.log}
	answers := rest.NewHealthChecks(a.serving)
	health := reconcile.Keyed("health-checks", answers, v.HealthCheck,
		reconcile.Via(reconcile.FromTable(t.Services, v.HealthPorts), v.HealthCheckAt),
		reconcile.Via(reconcile.FromTable(t.EndpointSlices, v.HealthPortsOfSlice), v.HealthCheckAt),
		reconcile.Via(reconcile.FromTable(t.Devices, v.HealthAddrsOfDevice), v.HealthChecksOn))
	if v.Enabled {
		if err := netlink.CanEndUDP(); err != nil {
			a.log.Warn(stuckSockets, "error", err)
			sockets.cannot = err
		}
	}
	return &services{
		sockets: sockets,
		a:       a, view: v, maps: target, chain: reconcile.NewChain("services", a.log, loop), flows: flows,
		answers: answers, health: reconcile.NewChain("health-checks", a.log, health),
	}, nil
}

// serviceView is what of the configuration bears on Services.
func (a *Agent) serviceView() service.View {
	c := a.cfg
	return service.View{
		Tables: a.tables, Enabled: c.KubeProxyReplacement, IPv4: c.IPv4, IPv6: c.IPv6, NodeName: c.NodeName,
		Direct: c.LBMode != config.LBSNAT, AnySource: !c.SourceRangeCheck, NodePortAddresses: c.NodePortAddresses,
		HealthChecks: c.HealthCheckNodePort,
	}
}

func (s *services) chains() []*reconcile.Chain        { return []*reconcile.Chain{s.chain} }
func (s *services) collect(ctx context.Context) error { return s.flows.Run(ctx) }

// followAddresses tells the maps when the node has got or lost an address: answers of backends with an
// address of the node are looked for where they leave it.
func (s *services) followAddresses(ctx context.Context) error {
	for {
		changed := s.a.tables.Devices.Watch()
		s.maps.AddressesChanged()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// newCollector joins the conntrack tables with the programs that work on them.
func newCollector(k *kernel, log *slog.Logger) (*ctgc.Collector, error) {
	progs, err := flowPrograms(k)
	if err != nil {
		return nil, err
	}
	return ctgc.New(ctgc.Maps{
		Ct4: k.maps.Of("ct4"), Ct4New: k.maps.Of("ct4_new"), Ct6: k.maps.Of("ct6"), Ct6New: k.maps.Of("ct6_new"),
		Batch: k.maps.Of("gc_batch"), Settled: k.maps.Of("settled"),
	}, progs, log), nil
}

// flowPrograms are those of the generation that runs.
func flowPrograms(k *kernel) (ctgc.Programs, error) {
	expire, err1 := k.choice.Programs.Get("ct_expire")
	purge, err2 := k.choice.Programs.Get("ct_purge")
	if err := errors.Join(err1, err2); err != nil {
		return ctgc.Programs{}, err
	}
	// A generation of before that goes on serving may lack it, and then has nothing to move.
	move, err := k.choice.Programs.Get("ct_move")
	if err != nil && len(k.maps.Moving()) > 0 {
		return ctgc.Programs{}, err
	}
	return ctgc.Programs{Expire: expire, Purge: purge, Move: move}, nil
}

// flush forgets all connections.
func (s *services) flush() (uint64, error) {
	if moving := s.a.kernel.maps.Moving(); len(moving) > 0 {
		return 0, fmt.Errorf("connections move to tables of another size or form (from %s): try again in a minute", strings.Join(moving, ", "))
	}
	return s.flows.Flush()
}

// close lets go of the maps; Services go on working.
func (s *services) close() {
	s.answers.Close()
	if err := s.maps.Close(); err != nil {
		s.a.log.Warn("maps stay mapped", "error", err)
	}
}
