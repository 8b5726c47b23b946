// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/netip"
	"reflect"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"lash.internal/lash/agent/kube/ciliumio"
	"lash.internal/lash/agent/state"
)

// nodeJoin keeps the Nodes table: one row for each Node or CiliumNode. What a node's own agent
// says of it (CiliumNode) goes before what Kubernetes says.
type nodeJoin struct {
	db          *state.DB
	table       *state.Table[string, state.Node]
	local       string
	clusterPool bool
	changed     func() // called after the local node changed, without locks

	mu     sync.Mutex
	nodes  map[string]*corev1.Node // trimmed
	cilium map[string]*ciliumio.Node
}

func newNodeJoin(db *state.DB, t *state.Table[string, state.Node], local string, clusterPool bool, changed func()) *nodeJoin {
	return &nodeJoin{
		db: db, table: t, local: local, clusterPool: clusterPool, changed: changed,
		nodes: map[string]*corev1.Node{}, cilium: map[string]*ciliumio.Node{},
	}
}

// localNode returns the local Node and CiliumNode as last seen, nil when not seen.
func (j *nodeJoin) localNode() (*corev1.Node, *ciliumio.Node) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.nodes[j.local], j.cilium[j.local]
}

func (j *nodeJoin) row(name string) (state.Node, bool) {
	n, c := j.nodes[name], j.cilium[name]
	if n == nil && c == nil {
		return state.Node{}, false
	}
	r := state.Node{Name: name, Local: name == j.local}
	if n != nil {
		r.UID = string(n.UID)
		r.Labels = n.Labels
		r.BootID = n.Status.NodeInfo.BootID
		r.Leaving = leaving(n)
		for _, a := range n.Status.Addresses {
			switch a.Type {
			case corev1.NodeInternalIP:
				r.InternalIPs = append(r.InternalIPs, parseAddrs(a.Address)...)
			case corev1.NodeExternalIP:
				r.ExternalIPs = append(r.ExternalIPs, parseAddrs(a.Address)...)
			}
		}
		if !j.clusterPool {
			r.PodCIDRs = podCIDRs(n)
		}
	}
	if c == nil {
		return r, true
	}
	if r.Labels == nil {
		r.Labels = c.Labels
	}
	if r.BootID == "" {
		r.BootID = c.Spec.BootID
	}
	if p := parsePrefixes(c.Spec.IPAM.PodCIDRs); len(p) > 0 && (j.clusterPool || name != j.local) {
		r.PodCIDRs = p
	}
	var internal, external []netip.Addr
	for _, a := range c.Spec.Addresses {
		switch a.Type {
		case ciliumio.InternalIP:
			internal = append(internal, parseAddrs(a.IP)...)
		case ciliumio.ExternalIP:
			external = append(external, parseAddrs(a.IP)...)
		case ciliumio.CiliumInternalIP:
			r.RouterIPs = append(r.RouterIPs, parseAddrs(a.IP)...)
		}
	}
	r.HealthIPs = parseAddrs(c.Spec.Health.IPv4, c.Spec.Health.IPv6)
	if len(internal) > 0 && (name != j.local || len(r.InternalIPs) == 0) {
		r.InternalIPs, r.ExternalIPs = internal, external
	}
	return r, true
}

// scaleDown is the taint that the cluster autoscaler gives to a node before it takes it away.
const scaleDown = "ToBeDeletedByClusterAutoscaler"

func leaving(n *corev1.Node) bool {
	return n.DeletionTimestamp != nil || slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == scaleDown })
}

func podCIDRs(n *corev1.Node) []netip.Prefix {
	if len(n.Spec.PodCIDRs) > 0 {
		return parsePrefixes(n.Spec.PodCIDRs)
	}
	return parsePrefixes([]string{n.Spec.PodCIDR})
}

func (j *nodeJoin) put(w *state.WriteTxn, name string) {
	r, ok := j.row(name)
	old, had := j.table.Get(name)
	switch {
	case !ok && had:
		j.table.Delete(w, name)
	case ok && (!had || !reflect.DeepEqual(old, r)):
		j.table.Insert(w, r)
	}
}

// trimNode drops what changes with every heartbeat and what nobody reads.
func trimNode(n *corev1.Node) *corev1.Node {
	t := &corev1.Node{}
	t.Name, t.UID, t.Labels = n.Name, n.UID, n.Labels
	t.Spec.PodCIDR, t.Spec.PodCIDRs, t.Spec.ProviderID = n.Spec.PodCIDR, n.Spec.PodCIDRs, n.Spec.ProviderID
	t.Spec.Taints, t.DeletionTimestamp = n.Spec.Taints, n.DeletionTimestamp
	t.Status.Addresses = n.Status.Addresses
	t.Status.NodeInfo.BootID = n.Status.NodeInfo.BootID
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable {
			t.Status.Conditions = append(t.Status.Conditions, c)
		}
	}
	return t
}

// nodeSink feeds one of the two kinds into the join. set stores or (nil) removes the object.
type nodeSink struct {
	j      *nodeJoin
	synced func(w *state.WriteTxn)
	set    func(obj any) (name string, ok bool)
	forget func(name string)
	names  func() []string
}

func (j *nodeJoin) nodeSink() cache.ReflectorStore {
	return &nodeSink{
		j: j, synced: j.table.RegisterInitializer("node"),
		set: func(obj any) (string, bool) {
			n, ok := objectOf(obj).(*corev1.Node)
			if ok {
				j.nodes[n.Name] = trimNode(n)
				return n.Name, true
			}
			return "", false
		},
		forget: func(name string) { delete(j.nodes, name) },
		names:  func() []string { return keys(j.nodes) },
	}
}

func (j *nodeJoin) ciliumSink() cache.ReflectorStore {
	return &nodeSink{
		j: j, synced: j.table.RegisterInitializer("ciliumnode"),
		set: func(obj any) (string, bool) {
			var n ciliumio.Node
			if err := ciliumio.FromUnstructured(objectOf(obj), &n); err != nil {
				return "", false
			}
			n.ManagedFields = nil
			j.cilium[n.Name] = &n
			return n.Name, true
		},
		forget: func(name string) { delete(j.cilium, name) },
		names:  func() []string { return keys(j.cilium) },
	}
}

func keys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}

func (s *nodeSink) commit(names []string, synced bool) {
	w := s.j.db.WriteTxn()
	for _, n := range names {
		s.j.put(w, n)
	}
	if synced {
		s.synced(w)
	}
	w.Commit()
}

// Add implements cache.ReflectorStore.
func (s *nodeSink) Add(obj any) error { return s.Update(obj) }

// Update implements cache.ReflectorStore.
func (s *nodeSink) Update(obj any) error {
	s.j.mu.Lock()
	name, ok := s.set(obj)
	if ok {
		s.commit([]string{name}, false)
	}
	s.j.mu.Unlock()
	if ok && name == s.j.local {
		s.j.changed()
	}
	return nil
}

// Delete implements cache.ReflectorStore.
func (s *nodeSink) Delete(obj any) error {
	n, ok := nameOf(obj)
	if !ok {
		return nil
	}
	s.j.mu.Lock()
	s.forget(n.Name)
	s.commit([]string{n.Name}, false)
	s.j.mu.Unlock()
	if n.Name == s.j.local {
		s.j.changed()
	}
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *nodeSink) Replace(objs []any, _ string) error {
	s.j.mu.Lock()
	touched := s.names()
	for _, n := range touched {
		s.forget(n)
	}
	for _, obj := range objs {
		if name, ok := s.set(obj); ok {
			touched = append(touched, name)
		}
	}
	slices.Sort(touched)
	s.commit(slices.Compact(touched), true)
	s.j.mu.Unlock()
	s.j.changed()
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to do again.
func (s *nodeSink) Resync() error { return nil }
