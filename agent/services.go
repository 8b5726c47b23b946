// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net/netip"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/datapath/lbmap"
	"lash.internal/lash/agent/reconcile"
	"lash.internal/lash/agent/rest"
	"lash.internal/lash/agent/service"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// services is how Services get into the kernel. With kube-proxy in charge nothing is wanted, and
// what an earlier configuration left is removed.
type services struct {
	a     *Agent
	view  service.View
	maps  *lbmap.Target
	chain *reconcile.Chain
}

func newServices(a *Agent) (*services, error) {
	k, t := a.kernel, a.tables
	target, err := lbmap.Open(lbmap.Maps{Front: k.mapOf("front"), Svc: k.mapOf("svc"), Slot: k.mapOf("slot"), Backend: k.mapOf("backend")})
	if err != nil {
		return nil, err
	}
	v := service.View{
		Tables: t, Enabled: a.cfg.KubeProxyReplacement, IPv4: a.cfg.IPv4, IPv6: a.cfg.IPv6, NodeName: a.cfg.NodeName,
	}
	loop := reconcile.Keyed("services", target, v.Want,
		reconcile.FromTable(t.Services, v.Frontends), reconcile.FromTable(t.EndpointSlices, v.FrontendsOfSlice)).
		Equal(state.Balance.Satisfies)
	return &services{a: a, view: v, maps: target, chain: reconcile.NewChain("services", a.log, loop)}, nil
}

func (s *services) vip(ip netip.Addr) bool                  { return s.view.VIP(ip) }
func (s *services) vipKeys(row state.Service) []bpf.AddrKey { return s.view.AddrKeys(row) }
func (s *services) chains() []*reconcile.Chain              { return []*reconcile.Chain{s.chain} }
func (s *services) collect(context.Context) error           { return nil }

// list is the Services with the numbers that the kernel has for them.
func (s *services) list() []api.Service { return rest.ServicesOf(s.a.tables) }

// close lets go of the maps; Services go on working.
func (s *services) close() error { return s.maps.Close() }
