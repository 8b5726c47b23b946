// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"sync"

	"lash.internal/lash/agent/kube"
	"lash.internal/lash/agent/reconcile"
	"lash.internal/lash/agent/service"
	"lash.internal/lash/agent/state"
)

// notices say on Services what they ask for and do not get: the reconcile target of conditions.
type notices struct {
	client *kube.Client
	tables *state.Tables
}

// Load reads the conditions that are there.
func (n notices) Load(context.Context) (map[state.Name]service.Notice, error) {
	out := map[state.Name]service.Notice{}
	for name, s := range n.tables.Services.All() {
		if s.Notice != "" {
			out[name] = service.Notice{Message: s.Notice}
		}
	}
	return out, nil
}

// Set writes a condition and tells of it in an event.
func (n notices) Set(ctx context.Context, name state.Name, v service.Notice) error {
	s, ok := n.tables.Services.Get(name)
	if !ok {
		return nil
	}
	return n.client.SetServiceNotice(ctx, s, v.Reason, v.Message)
}

// Delete takes the condition away.
func (n notices) Delete(ctx context.Context, name state.Name) error {
	return n.client.ClearServiceNotice(ctx, name)
}

// judgeServices follows the Services until ctx ends.
func (o *Operator) judgeServices(ctx context.Context) {
	t := state.NewTables()
	v := service.View{Tables: t, Enabled: o.cfg.KubeProxyReplacement, IPv4: o.cfg.IPv4, IPv6: o.cfg.IPv6, AnySource: !o.cfg.SourceRangeCheck}
	g := service.Global{
		Mode: string(o.cfg.LBMode), Algorithm: o.cfg.LBAlgorithm, NodePortMin: o.cfg.NodePortMin, NodePortMax: o.cfg.NodePortMax,
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	mirror := kube.ServiceMirror(o.client, t)
	wg.Go(func() { mirror(ctx) })
	for ok, ready := t.Services.Initialized(); !ok; ok, ready = t.Services.Initialized() {
		select {
		case <-ctx.Done():
			return
		case <-ready:
		}
	}
	// The conditions of before are known now; the loop begins with them.
	judge := func(name state.Name) (service.Notice, bool) { return v.Judge(name, g) }
	reconcile.NewChain("services", o.log, reconcile.Keyed("service-conditions", notices{o.client, t}, judge,
		reconcile.FromTable(t.Services, func(s state.Service) []state.Name { return []state.Name{s.Name} }),
		reconcile.Via(reconcile.FromTable(t.Services, v.Claims), v.Rivals)).
		Equal(func(a, b service.Notice) bool { return a.Message == b.Message })).Run(ctx)
}
