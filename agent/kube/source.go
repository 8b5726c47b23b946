// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lash.internal/lash/agent/kube/ciliumio"
	"lash.internal/lash/agent/state"
)

// SourceOptions says what a Source mirrors and writes.
type SourceOptions struct {
	NodeName string
	// ClusterPool: the operator gives this node its pod CIDRs; otherwise Kubernetes does.
	ClusterPool bool
	// IPv4 and IPv6 are the families that pods have.
	IPv4, IPv6 bool
	// SetNodeCondition writes NetworkUnavailable=False once the agent is ready.
	SetNodeCondition bool
	// BootID is this boot of the machine; empty: as the kubelet reports it.
	BootID string
	Log    *slog.Logger
}

// Source connects the API server with the state tables, in both directions.
type Source struct {
	c      *Client
	o      SourceOptions
	t      *state.Tables
	log    *slog.Logger
	nodes  *nodeJoin
	ceps   *endpointSink
	count  *counter
	first  []*feed // needed before the others can be understood
	then   []*feed
	writes *writers

	routers, healthIPs atomic.Pointer[[]netip.Addr]
	ready              atomic.Bool
}

// NewSource registers the Source as initializer of every table it fills.
func NewSource(c *Client, t *state.Tables, o SourceOptions) *Source {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	s := &Source{c: c, o: o, t: t, log: o.Log, count: &counter{log: o.Log}}
	s.writes = newWriters(s)
	s.nodes = newNodeJoin(t.DB, t.Nodes, o.NodeName, o.ClusterPool, s.writes.pokeNode)
	s.ceps = newEndpointSink(t.DB, t.RemoteIPs, s.isLocal, s.writes.pokeEndpoint)
	k, d := c.Kubernetes, c.Dynamic
	s.first = []*feed{
		typedFeed("nodes", k.CoreV1().Nodes(), "", &corev1.Node{}, k, s.nodes.nodeSink()),
		dynamicFeed(d, ciliumio.Nodes, "", s.nodes.ciliumSink()),
		typedFeed("namespaces", k.CoreV1().Namespaces(), "", &corev1.Namespace{}, k,
			newMirror(t.DB, t.Namespaces, "kubernetes", namespaceRow, clusterKey)),
		typedFeed("services", k.CoreV1().Services(metav1.NamespaceAll), "", &corev1.Service{}, k,
			newMirror(t.DB, t.Services, "kubernetes", serviceRow, nameOf)),
		typedFeed("endpointslices", k.DiscoveryV1().EndpointSlices(metav1.NamespaceAll), "", &discoveryv1.EndpointSlice{}, k,
			newMirror(t.DB, t.EndpointSlices, "kubernetes", sliceRow, nameOf)),
		typedFeed("pods", k.CoreV1().Pods(metav1.NamespaceAll), "spec.nodeName="+o.NodeName, &corev1.Pod{}, k,
			newMirror(t.DB, t.Pods, "kubernetes", podRow, nameOf)),
		dynamicFeed(d, ciliumio.Identities, "", newMirror(t.DB, t.Identities, "ciliumidentity", identityRow, identityKey).amongOthers()),
		typedFeed("networkpolicies", k.NetworkingV1().NetworkPolicies(metav1.NamespaceAll), "", &networkingv1.NetworkPolicy{}, k, s.count),
	}
	s.then = []*feed{dynamicFeed(d, ciliumio.Endpoints, "", s.ceps)}
	return s
}

// isLocal says whether an address is one of this node's.
func (s *Source) isLocal(a netip.Addr) bool {
	n, ok := s.t.Nodes.Get(s.o.NodeName)
	return ok && (slices.Contains(n.InternalIPs, a) || slices.Contains(n.ExternalIPs, a))
}

// Run mirrors and writes until ctx is done, and returns when all its goroutines have ended.
func (s *Source) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, f := range s.first {
		wg.Go(func() { f.run(ctx) })
	}
	wg.Go(func() { s.writes.run(ctx) })
	// Whose endpoint a CiliumEndpoint is can be told only once this node's addresses are known.
	if _, err := s.waitLocal(ctx, func(n state.Node) bool { return len(n.InternalIPs) > 0 }, "an InternalIP in the status of the Node"); err != nil {
		return
	}
	for _, f := range s.then {
		wg.Go(func() { f.run(ctx) })
	}
}

// waitLocal waits until the local node's row satisfies ok and logs what it waits for.
func (s *Source) waitLocal(ctx context.Context, ok func(state.Node) bool, what string) (state.Node, error) {
	remind := time.NewTicker(10 * time.Second)
	defer remind.Stop()
	for {
		changed := s.t.Nodes.Watch()
		if n, have := s.t.Nodes.Get(s.o.NodeName); have && ok(n) {
			return n, nil
		}
		select {
		case <-ctx.Done():
			return state.Node{}, fmt.Errorf("waiting for %s %s: %w", what, s.o.NodeName, ctx.Err())
		case <-changed:
		case <-remind.C:
			s.log.Warn("still waiting for "+what, "node", s.o.NodeName, "api", s.problems(), "operator", s.operatorError())
		}
	}
}

// WaitNode waits until the local node and its addresses are known.
func (s *Source) WaitNode(ctx context.Context) (state.Node, error) {
	return s.waitLocal(ctx, func(n state.Node) bool { return len(n.InternalIPs) > 0 }, "an InternalIP in the status of the Node")
}

// WaitPodCIDRs waits until this node has a pod CIDR for each enabled family and returns them, one
// or more a family, in the order of the node's object.
func (s *Source) WaitPodCIDRs(ctx context.Context) ([]netip.Prefix, error) {
	what := "spec.podCIDRs (ipam: kubernetes; set by the controller manager with --allocate-node-cidrs) of Node"
	if s.o.ClusterPool {
		what = "spec.ipam.podCIDRs (ipam: cluster-pool; set by cilium-operator) of CiliumNode"
	}
	n, err := s.waitLocal(ctx, func(n state.Node) bool {
		v4 := slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is4() })
		v6 := slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() })
		return (v4 || !s.o.IPv4) && (v6 || !s.o.IPv6)
	}, what)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, p := range n.PodCIDRs {
		if (p.Addr().Is4() && s.o.IPv4) || (p.Addr().Is6() && s.o.IPv6) {
			out = append(out, p)
		}
	}
	return out, nil
}

// SetHealthIPs publishes the addresses of the health endpoint in this node's CiliumNode; none: it has
// none.
func (s *Source) SetHealthIPs(addrs ...netip.Addr) {
	a := slices.Clone(addrs)
	s.healthIPs.Store(&a)
	s.writes.pokeNode()
}

// SetRouterIPs publishes the addresses of cilium_host in this node's CiliumNode.
func (s *Source) SetRouterIPs(addrs ...netip.Addr) {
	a := slices.Clone(addrs)
	s.routers.Store(&a)
	s.writes.pokeNode()
}

// SetReady says that this node's datapath works: the node condition is written.
func (s *Source) SetReady(ready bool) {
	s.ready.Store(ready)
	s.writes.pokeNode()
}

// NetworkPolicies returns the number of NetworkPolicies in the cluster. They are not enforced.
func (s *Source) NetworkPolicies() int { return s.count.len() }

// Health lists the mirrored resources and how their watches fare.
func (s *Source) Health() []Health {
	var out []Health
	for _, f := range slices.Concat(s.first, s.then) {
		out = append(out, f.snapshot())
	}
	return out
}

func (s *Source) problems() string {
	var out []string
	for _, h := range s.Health() {
		if h.Error != "" {
			out = append(out, h.Resource+": "+h.Error)
		}
	}
	return strings.Join(out, "; ")
}

// WriterHealth lists the writers of Kubernetes objects and their last errors.
func (s *Source) WriterHealth() []WriterHealth { return s.writes.health() }

// operatorError is why the operator could not give this node pod CIDRs, empty when it could or has
// not tried.
func (s *Source) operatorError() string {
	_, c := s.nodes.localNode()
	if c == nil {
		return ""
	}
	return c.Status.IPAM.OperatorStatus.Error
}

// counter counts objects of a kind that is not enforced and says so when there are any.
type counter struct {
	log *slog.Logger
	mu  sync.Mutex
	set map[state.Name]struct{}
}

func (c *counter) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.set)
}

func (c *counter) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := len(c.set)
	if c.set == nil {
		c.set = map[state.Name]struct{}{}
	}
	f()
	if n := len(c.set); n > 0 && n != before {
		c.log.Warn("network policies exist and are not enforced", "count", n)
	}
}

// Add implements cache.ReflectorStore.
func (c *counter) Add(obj any) error { return c.Update(obj) }

// Update implements cache.ReflectorStore.
func (c *counter) Update(obj any) error {
	c.change(func() {
		if n, ok := nameOf(obj); ok {
			c.set[n] = struct{}{}
		}
	})
	return nil
}

// Delete implements cache.ReflectorStore.
func (c *counter) Delete(obj any) error {
	c.change(func() {
		if n, ok := nameOf(obj); ok {
			delete(c.set, n)
		}
	})
	return nil
}

// Replace implements cache.ReflectorStore.
func (c *counter) Replace(objs []any, _ string) error {
	c.change(func() {
		clear(c.set)
		for _, o := range objs {
			if n, ok := nameOf(o); ok {
				c.set[n] = struct{}{}
			}
		}
	})
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to do again.
func (c *counter) Resync() error { return nil }
