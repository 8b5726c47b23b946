// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"lash.internal/lash/agent/kube"
	"lash.internal/lash/agent/reconcile"
	"lash.internal/lash/agent/rest"
	"lash.internal/lash/agent/service"
	"lash.internal/lash/agent/state"
)

// notes is what users are told of pods and Services that this node cannot do everything for: by an event
// on the object, and in this agent's status.
type notes struct {
	chain    *reconcile.Chain // nothing waits for it
	subjects []*notesOf
}

// notesOf are those of one kind of object: the reconcile target of its events.
type notesOf struct {
	kind string
	want func(state.Name) (service.Notice, bool)
	uid  func(state.Name) (uid string, ok bool) // false: there is no such object
	warn func(context.Context, kube.Warning) error
	node string

	mu   sync.Mutex
	told map[state.Name]service.Notice // in an event
	seen map[state.Name]bool           // about which there has been something to tell
}

// newNotes joins what may be wrong with whom to tell. What is told again after a restart makes no second
// event.
func newNotes(a *Agent, warn func(context.Context, kube.Warning) error) *notes {
	t, v := a.tables, a.svc.view
	unheard := func() map[state.Name]service.Notice { return unanswered(a.svc.answers.Failures(), a.cfg.NodeName) }
	of := func(kind string) *notesOf {
		return &notesOf{kind: kind, warn: warn, node: a.cfg.NodeName, told: map[state.Name]service.Notice{}, seen: map[state.Name]bool{}}
	}
	pods, services := of("Pod"), of("Service")
	pods.want = v.JudgePod
	pods.uid = func(n state.Name) (string, bool) {
		p, ok := t.Pods.Get(n)
		return p.UID, ok
	}
	services.want = func(n state.Name) (service.Notice, bool) {
		v, ok := unheard()[n]
		return v, ok
	}
	services.uid = func(n state.Name) (string, bool) {
		s, ok := t.Services.Get(n)
		return s.UID, ok
	}
	return &notes{
		subjects: []*notesOf{pods, services},
		chain: reconcile.NewChain("events", a.log,
			reconcile.Keyed("pod-events", pods, pods.want,
				reconcile.FromTable(t.Pods, func(p state.Pod) []state.Name { return []state.Name{p.Name} }),
				reconcile.Via(reconcile.FromTable(t.Pods, v.HostPorts), v.PodsAt), reconcile.Via(reconcile.FromTable(t.Services, v.Claims), v.PodsAt)),
			reconcile.Whole("service-events", services, unheard, a.svc.answers.Changed())),
	}
}

// unanswered says which Services load balancers get no answer for, with kube-proxy's reason for it.
func unanswered(failures map[netip.AddrPort]rest.HealthFailure, node string) map[state.Name]service.Notice {
	out := map[state.Name]service.Notice{}
	for _, at := range slices.SortedFunc(maps.Keys(failures), netip.AddrPort.Compare) {
		f := failures[at]
		n := out[f.Service]
		if n.Message != "" {
			n.Message += "; "
		}
		n.Reason = "FailedToStartServiceHealthcheck"
		n.Message += fmt.Sprintf("node %s does not answer load balancers at healthCheckNodePort %d: %v", node, at.Port(), f.Err)
		out[f.Service] = n
	}
	return out
}

// list is what there is to tell now, for the status.
func (n *notes) list() []string {
	var out []string
	for _, s := range n.subjects {
		s.mu.Lock()
		seen := slices.Collect(maps.Keys(s.seen))
		s.mu.Unlock()
		for _, name := range seen {
			if v, ok := s.want(name); ok {
				out = append(out, fmt.Sprintf("%s %s: %s", s.kind, name, v.Message))
			}
		}
	}
	slices.Sort(out)
	return out
}

// Load gives what was told.
func (n *notesOf) Load(context.Context) (map[state.Name]service.Notice, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.told), nil
}

// Set tells it.
func (n *notesOf) Set(ctx context.Context, name state.Name, v service.Notice) error {
	uid, ok := n.uid(name)
	if !ok {
		return nil
	}
	n.mu.Lock()
	n.seen[name] = true // in this agent's status also while the API server is away
	n.mu.Unlock()
	err := n.warn(ctx, kube.Warning{
		Kind: n.kind, Namespace: name.Namespace, Name: name.Name, UID: uid, Reason: v.Reason, Message: v.Message,
		Component: "cilium-agent", Node: n.node,
	})
	if err == nil {
		n.mu.Lock()
		n.told[name] = v
		n.mu.Unlock()
	}
	return err
}

// Delete is for what is as it should be by now. Events stay and expire.
func (n *notesOf) Delete(_ context.Context, name state.Name) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.told, name)
	delete(n.seen, name)
	return nil
}
