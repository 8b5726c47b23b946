// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/kube/ciliumio"
	"lash.internal/lash/agent/state"
)

const (
	fieldManager   = "cilium-agent"
	requestTimeout = 10 * time.Second
	// auditEvery is how often every written object is compared again, whether or not an event
	// asked for it.
	auditEvery = 5 * time.Minute
)

// What this node writes, as status output names it.
const (
	writeCiliumNode     = "ciliumnode"
	writeNodeCondition  = "node-condition"
	writeCiliumEndpoint = "ciliumendpoint"
)

// writeKey names one object that this node writes.
type writeKey struct {
	kind string
	name state.Name
}

// WriterHealth is the state of one kind of written objects.
type WriterHealth struct {
	Kind     string
	Writes   int
	Failures int       // attempts, since the start
	Pending  int       // objects whose newest attempt failed
	Error    string    // of one of these
	Since    time.Time // of the oldest of these
	FailedAt time.Time // of the newest failure
}

type failure struct {
	text  string
	since time.Time
}

// writers keeps the objects that describe this node as the tables say. It is level-triggered: a
// key is compared with the newest known object and written only when they differ; a failure is
// tried again after 0.1 to 30 s.
type writers struct {
	s     *Source
	queue workqueue.TypedRateLimitingInterface[writeKey]

	mu      sync.Mutex
	kinds   map[string]*WriterHealth // without what follows from failing
	failing map[writeKey]failure
}

func newWriters(s *Source) *writers {
	limit := workqueue.NewTypedItemExponentialFailureRateLimiter[writeKey](100*time.Millisecond, 30*time.Second)
	return &writers{
		s: s, queue: workqueue.NewTypedRateLimitingQueue(limit),
		kinds: map[string]*WriterHealth{}, failing: map[writeKey]failure{},
	}
}

func (w *writers) pokeNode() {
	w.queue.Add(writeKey{kind: writeCiliumNode})
	w.queue.Add(writeKey{kind: writeNodeCondition})
}

func (w *writers) pokeEndpoint(n state.Name) {
	w.queue.Add(writeKey{kind: writeCiliumEndpoint, name: n})
}

func (w *writers) health() []WriterHealth {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]WriterHealth, 0, len(w.kinds))
	for _, k := range slices.Sorted(maps.Keys(w.kinds)) {
		h := *w.kinds[k]
		first := writeKey{}
		for key, f := range w.failing {
			if key.kind != k {
				continue
			}
			h.Pending++
			if h.Since.IsZero() || f.since.Before(h.Since) {
				h.Since = f.since
			}
			if name := key.name.String(); h.Pending == 1 || name < first.name.String() {
				first, h.Error = key, f.text
			}
		}
		out = append(out, h)
	}
	return out
}

func (w *writers) note(key writeKey, wrote bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.kinds[key.kind]
	if h == nil {
		h = &WriterHealth{Kind: key.kind}
		w.kinds[key.kind] = h
	}
	if wrote {
		h.Writes++
	}
	if err == nil {
		delete(w.failing, key)
		return
	}
	h.Failures++
	h.FailedAt = time.Now()
	f := w.failing[key]
	if f.since.IsZero() {
		f.since = h.FailedAt
	}
	f.text = err.Error()
	w.failing[key] = f
}

func (w *writers) run(ctx context.Context) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for w.one(ctx) {
			}
		})
	}
	wg.Go(func() { w.watchEndpoints(ctx) })
	<-ctx.Done()
	w.queue.ShutDown()
	wg.Wait()
}

func (w *writers) one(ctx context.Context) bool {
	key, down := w.queue.Get()
	if down {
		return false
	}
	defer w.queue.Done(key)
	rctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var wrote bool
	var err error
	switch key.kind {
	case writeCiliumNode:
		wrote, err = w.writeNode(rctx)
	case writeNodeCondition:
		wrote, err = w.writeCondition(rctx)
	case writeCiliumEndpoint:
		wrote, err = w.writeEndpoint(rctx, key.name)
	}
	w.note(key, wrote, err)
	if err != nil && ctx.Err() == nil {
		if w.queue.NumRequeues(key) > 2 {
			w.s.log.Warn("cannot write Kubernetes object, will try again", "kind", key.kind, "name", key.name.String(), "error", err)
		}
		w.queue.AddRateLimited(key)
		return true
	}
	w.queue.Forget(key)
	return true
}

// watchEndpoints turns changes of the tables that CiliumEndpoints are made of into keys, and repeats
// all of them now and then.
func (w *writers) watchEndpoints(ctx context.Context) {
	t := w.s.t.Endpoints
	eps, pods := t.Changes(), w.s.t.Pods.Changes()
	defer eps.Close()
	defer pods.Close()
	node := ""
	audit := time.NewTicker(auditEvery)
	defer audit.Stop()
	_, ready := t.Initialized()
	for {
		changes, moreEps := eps.Next()
		for _, c := range changes {
			if c.Row.Pod.Name != "" {
				w.pokeEndpoint(c.Row.Pod)
			}
		}
		podChanges, morePods := pods.Next()
		for _, c := range podChanges {
			w.pokeEndpoint(c.Key)
		}
		moved := w.s.t.Nodes.Watch()
		if ip := w.nodeIP(); ip != node {
			node = ip
			w.pokeAll()
		}
		select {
		case <-ctx.Done():
			return
		case <-moreEps:
		case <-morePods:
		case <-moved:
		case <-ready:
			ready = nil
			w.pokeAll()
		case <-audit.C:
			w.pokeAll()
		}
	}
}

func (w *writers) pokeAll() {
	w.pokeNode()
	for _, n := range w.s.ceps.ownNames() {
		w.pokeEndpoint(n)
	}
	for _, e := range w.s.t.Endpoints.All() {
		if e.Pod.Name != "" {
			w.pokeEndpoint(e.Pod)
		}
	}
}

// wantNode fills the parts of a CiliumNode that this agent owns into have.
func (w *writers) wantNode(n *corev1.Node, have ciliumio.Node) ciliumio.Node {
	o := w.s.o
	have.Name = o.NodeName
	have.Labels = n.Labels
	if n.UID != "" {
		have.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}
	}
	have.Spec.BootID = o.BootID
	if have.Spec.BootID == "" {
		have.Spec.BootID = n.Status.NodeInfo.BootID
	}
	have.Spec.Addresses = nil
	for _, a := range n.Status.Addresses {
		if t := string(a.Type); t == ciliumio.InternalIP || t == ciliumio.ExternalIP {
			have.Spec.Addresses = append(have.Spec.Addresses, ciliumio.NodeAddress{Type: t, IP: a.Address})
		}
	}
	if r := w.s.routers.Load(); r != nil {
		for _, a := range *r {
			have.Spec.Addresses = append(have.Spec.Addresses, ciliumio.NodeAddress{Type: ciliumio.CiliumInternalIP, IP: a.String()})
		}
	}
	if h := w.s.healthIPs.Load(); h != nil {
		have.Spec.Health = ciliumio.HealthAddressing{}
		for _, a := range *h {
			if a.Is4() {
				have.Spec.Health.IPv4 = a.String()
			} else {
				have.Spec.Health.IPv6 = a.String()
			}
		}
	}
	if !o.ClusterPool {
		have.Spec.IPAM.PodCIDRs = nil
		for _, p := range podCIDRs(n) {
			have.Spec.IPAM.PodCIDRs = append(have.Spec.IPAM.PodCIDRs, p.String())
		}
	}
	return have
}

func (w *writers) writeNode(ctx context.Context) (bool, error) {
	n, seen := w.s.nodes.localNode()
	if n == nil {
		return false, nil
	}
	// Until the datapath has its router addresses, an object of an earlier run stays as it is.
	if seen != nil && w.s.routers.Load() == nil {
		return false, nil
	}
	if seen != nil && equality.Semantic.DeepEqual(w.wantNode(n, *seen), *seen) {
		return false, nil
	}
	api := w.s.c.Dynamic.Resource(ciliumio.Nodes)
	u, err := api.Get(ctx, w.s.o.NodeName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		obj, err := ciliumio.ToUnstructured(ptr(w.wantNode(n, ciliumio.Node{})))
		if err != nil {
			return false, err
		}
		if _, err = api.Create(ctx, obj, metav1.CreateOptions{FieldManager: fieldManager}); err != nil {
			return false, fmt.Errorf("create CiliumNode %s: %w", w.s.o.NodeName, err)
		}
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("get CiliumNode %s: %w", w.s.o.NodeName, err)
	}
	if w.s.routers.Load() == nil {
		return false, nil // an object of an earlier run that the watch has not brought yet
	}
	var have ciliumio.Node
	if err := ciliumio.FromUnstructured(u, &have); err != nil {
		return false, err
	}
	want := w.wantNode(n, have)
	if equality.Semantic.DeepEqual(want, have) {
		return false, nil
	}
	obj, err := ciliumio.Apply(u, &have, &want)
	if err != nil {
		return false, err
	}
	if _, err := api.Update(ctx, obj, metav1.UpdateOptions{FieldManager: fieldManager}); err != nil {
		return false, fmt.Errorf("update CiliumNode %s: %w", w.s.o.NodeName, err)
	}
	return true, nil
}

func ptr[T any](v T) *T { return &v }

// NodeCondition returns the condition that says that the node's network works.
func NodeCondition(now time.Time) corev1.NodeCondition {
	return corev1.NodeCondition{
		Type:               corev1.NodeNetworkUnavailable,
		Status:             corev1.ConditionFalse,
		Reason:             api.NetworkUp,
		Message:            "Cilium is running on this node",
		LastTransitionTime: metav1.NewTime(now),
		LastHeartbeatTime:  metav1.NewTime(now),
	}
}

func (w *writers) writeCondition(ctx context.Context) (bool, error) {
	if !w.s.o.SetNodeCondition || !w.s.ready.Load() {
		return false, nil
	}
	n, _ := w.s.nodes.localNode()
	if n == nil {
		return false, nil
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable && c.Status == corev1.ConditionFalse && c.Reason == api.NetworkUp {
			return false, nil
		}
	}
	if err := PatchNodeCondition(ctx, w.s.c, n.Name); err != nil {
		return false, err
	}
	return true, nil
}

// PatchNodeCondition sets NetworkUnavailable=False on a node.
func PatchNodeCondition(ctx context.Context, c *Client, node string) error {
	body, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{NodeCondition(time.Now())}}})
	if err != nil {
		return fmt.Errorf("encode node condition: %w", err)
	}
	if _, err := c.Kubernetes.CoreV1().Nodes().PatchStatus(ctx, node, body); err != nil {
		return fmt.Errorf("set NetworkUnavailable=False on node %s: %w", node, err)
	}
	return nil
}

// endpointOf returns the local endpoint of a pod that should have a CiliumEndpoint; of several
// (a sandbox was made anew) the youngest.
func (w *writers) endpointOf(name state.Name) (state.Endpoint, bool) {
	var best state.Endpoint
	found := false
	for _, e := range w.s.t.Endpoints.ByIndex("pod", name.String()) {
		if e.Identity == state.IdentityUnknown || e.State == state.EndpointDisconnecting {
			continue
		}
		if !found || e.CreatedUnixMs > best.CreatedUnixMs {
			best, found = e, true
		}
	}
	return best, found
}

func (w *writers) writeEndpoint(ctx context.Context, name state.Name) (bool, error) {
	have := w.s.ceps.own(name)
	ep, want := w.endpointOf(name)
	api := w.s.c.Dynamic.Resource(ciliumio.Endpoints).Namespace(name.Namespace)
	if !want {
		if ok, _ := w.s.t.Endpoints.Initialized(); have == nil || !ok {
			return false, nil
		}
		err := api.Delete(ctx, name.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &have.UID, ResourceVersion: &have.ResourceVersion}})
		// A conflict means that another node has taken the name over: not ours to delete.
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return false, fmt.Errorf("delete CiliumEndpoint %s: %w", name, err)
		}
		return err == nil, nil
	}
	if have != nil && equality.Semantic.DeepEqual(w.wantEndpoint(ep, *have), *have) {
		return false, nil
	}
	if w.nodeIP() == "" {
		return false, nil // of use to nobody; its turn comes with the address
	}
	if have != nil {
		if wrote, err := w.updateEndpoint(ctx, name, ep); !apierrors.IsNotFound(err) {
			return wrote, err
		}
	}
	obj, err := ciliumio.ToUnstructured(ptr(w.wantEndpoint(ep, ciliumio.Endpoint{})))
	if err != nil {
		return false, err
	}
	_, err = api.Create(ctx, obj, metav1.CreateOptions{FieldManager: fieldManager})
	if err == nil {
		return true, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return false, fmt.Errorf("create CiliumEndpoint %s: %w", name, err)
	}
	return w.updateEndpoint(ctx, name, ep)
}

func (w *writers) updateEndpoint(ctx context.Context, name state.Name, ep state.Endpoint) (bool, error) {
	api := w.s.c.Dynamic.Resource(ciliumio.Endpoints).Namespace(name.Namespace)
	u, err := api.Get(ctx, name.Name, metav1.GetOptions{})
	if err != nil {
		return false, fmt.Errorf("get CiliumEndpoint %s: %w", name, err)
	}
	var cur ciliumio.Endpoint
	if err := ciliumio.FromUnstructured(u, &cur); err != nil {
		return false, err
	}
	next := w.wantEndpoint(ep, cur)
	if equality.Semantic.DeepEqual(next, cur) {
		return false, nil
	}
	obj, err := ciliumio.ToUnstructured(&next)
	if err != nil {
		return false, err
	}
	if _, err := api.Update(ctx, obj, metav1.UpdateOptions{FieldManager: fieldManager}); err != nil {
		return false, fmt.Errorf("update CiliumEndpoint %s: %w", name, err)
	}
	return true, nil
}

func (w *writers) wantEndpoint(e state.Endpoint, have ciliumio.Endpoint) ciliumio.Endpoint {
	have.Name, have.Namespace = e.Pod.Name, e.Pod.Namespace
	if e.PodUID != "" {
		have.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: e.Pod.Name, UID: types.UID(e.PodUID)}}
	}
	if p, ok := w.s.t.Pods.Get(e.Pod); ok && len(p.Labels) > 0 {
		have.Labels = p.Labels
	}
	st := ciliumio.EndpointStatus{
		ID: int64(e.ID),
		ExternalIdentifiers: &ciliumio.ExternalIdentifiers{
			CNIAttachmentID: e.ContainerID + ":" + e.ContainerIf,
			ContainerID:     e.ContainerID,
			K8sNamespace:    e.Pod.Namespace,
			K8sPodName:      e.Pod.Name,
			PodName:         e.Pod.String(),
		},
		Identity:   &ciliumio.EndpointIdentity{ID: int64(e.Identity), Labels: state.LabelTexts(e.Labels)},
		Networking: &ciliumio.EndpointNetworking{Node: w.nodeIP()},
		Policy: &ciliumio.EndpointPolicy{
			Ingress: &ciliumio.PolicyDirection{State: "<status disabled>"},
			Egress:  &ciliumio.PolicyDirection{State: "<status disabled>"},
		},
		State: string(e.State),
	}
	st.Networking.Addressing = []ciliumio.AddressPair{{IPv4: addrString(e.IPv4), IPv6: addrString(e.IPv6)}}
	for _, p := range e.NamedPorts {
		st.NamedPorts = append(st.NamedPorts, ciliumio.NamedPort{Name: p.Name, Port: int64(p.Port), Protocol: p.Protocol})
	}
	have.Status = st
	return have
}

func addrString(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// nodeIP is the address that peers tunnel to: the IPv4 one when there is one.
func (w *writers) nodeIP() string {
	n, ok := w.s.t.Nodes.Get(w.s.o.NodeName)
	if !ok {
		return ""
	}
	if a := n.Addr(false); a.IsValid() {
		return a.String()
	}
	return addrString(n.Addr(true))
}
