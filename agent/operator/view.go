// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"lash.internal/lash/agent/kube/ciliumio"
)

// kind names a set of objects whose changes a loop can be woken by.
type kind int

const (
	kindNode kind = iota
	kindAgentPod
	kindCiliumNode
)

// view is the operator's picture of the cluster.
type view struct {
	pods       cache.Store // trimmed
	nodes      cache.Store
	ciliums    cache.Store // CiliumNodes
	endpoints  cache.Store
	identities cache.Store

	namespace string
	stops     []func()
	mu        sync.Mutex
	wakes     map[kind][]chan struct{}
}

// trimPod keeps of a pod what the loops look at: the cache holds every pod of the cluster.
func trimPod(obj any) (any, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	t := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: p.Name, Namespace: p.Namespace, UID: p.UID, Labels: p.Labels,
		DeletionTimestamp: p.DeletionTimestamp, ResourceVersion: p.ResourceVersion,
	}}
	t.Spec.NodeName, t.Spec.HostNetwork = p.Spec.NodeName, p.Spec.HostNetwork
	t.Status.Phase, t.Status.StartTime = p.Status.Phase, p.Status.StartTime
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			t.Status.Conditions = append(t.Status.Conditions, c)
		}
	}
	return t, nil
}

func trimMeta(obj any) (any, error) {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		u.SetManagedFields(nil)
	}
	return obj, nil
}

// newView watches everything and returns when the first full set of everything is there.
func newView(ctx context.Context, o *Operator) (*view, error) {
	ctx, cancel := context.WithCancel(ctx)
	v := &view{namespace: o.cfg.KubernetesNamespace, wakes: map[kind][]chan struct{}{}}
	core := informers.NewSharedInformerFactory(o.client.Kubernetes, 0)
	dyn := dynamicinformer.NewDynamicSharedInformerFactory(o.client.Dynamic, 0)
	v.stops = append(v.stops, func() {
		cancel()
		core.Shutdown()
		dyn.Shutdown()
	})
	pods, nodes := core.Core().V1().Pods().Informer(), core.Core().V1().Nodes().Informer()
	cnodes, ceps, ids := dyn.ForResource(ciliumio.Nodes).Informer(), dyn.ForResource(ciliumio.Endpoints).Informer(), dyn.ForResource(ciliumio.Identities).Informer()
	v.pods, v.nodes, v.ciliums, v.endpoints, v.identities = pods.GetStore(), nodes.GetStore(), cnodes.GetStore(), ceps.GetStore(), ids.GetStore()
	var errs []error
	note := func(err error) { errs = append(errs, err) }
	note(pods.SetTransform(trimPod))
	for _, i := range []cache.SharedIndexInformer{nodes, cnodes, ceps, ids} {
		note(i.SetTransform(trimMeta))
	}
	watch := func(i cache.SharedIndexInformer, k func(any) (kind, bool)) {
		poke := func(obj any) {
			if k, ok := k(obj); ok {
				v.poke(k)
			}
		}
		_, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: poke, UpdateFunc: func(_, n any) { poke(n) }, DeleteFunc: poke})
		note(err)
	}
	watch(pods, func(obj any) (kind, bool) {
		p, ok := obj.(*corev1.Pod)
		return kindAgentPod, ok && v.isAgent(p)
	})
	watch(nodes, func(any) (kind, bool) { return kindNode, true })
	watch(cnodes, func(any) (kind, bool) { return kindCiliumNode, true })
	if err := errors.Join(errs...); err != nil {
		v.stop()
		return nil, fmt.Errorf("watch objects: %w", err)
	}
	core.Start(ctx.Done())
	dyn.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), pods.HasSynced, nodes.HasSynced, cnodes.HasSynced, ceps.HasSynced, ids.HasSynced) {
		v.stop()
		return nil, fmt.Errorf("watch objects: %w", context.Cause(ctx))
	}
	return v, nil
}

func (v *view) stop() {
	for _, s := range v.stops {
		s()
	}
}

// subscribe returns a channel that receives after a change of any of the kinds.
func (v *view) subscribe(kinds ...kind) <-chan struct{} {
	ch := make(chan struct{}, 1)
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, k := range kinds {
		v.wakes[k] = append(v.wakes[k], ch)
	}
	return ch
}

func (v *view) poke(k kind) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, ch := range v.wakes[k] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (v *view) isAgent(p *corev1.Pod) bool {
	return p.Namespace == v.namespace && p.Labels["k8s-app"] == "cilium"
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil
		}
	}
	return false
}

// agents returns the ready agent pods by node.
func (v *view) agents() map[string]*corev1.Pod {
	out := map[string]*corev1.Pod{}
	for _, obj := range v.pods.List() {
		if p, ok := obj.(*corev1.Pod); ok && v.isAgent(p) && ready(p) {
			out[p.Spec.NodeName] = p
		}
	}
	return out
}

func (v *view) pod(namespace, name string) *corev1.Pod {
	obj, ok, err := v.pods.GetByKey(namespace + "/" + name)
	if err != nil || !ok {
		return nil
	}
	p, _ := obj.(*corev1.Pod)
	return p
}

func (v *view) node(name string) *corev1.Node {
	obj, ok, err := v.nodes.GetByKey(name)
	if err != nil || !ok {
		return nil
	}
	n, _ := obj.(*corev1.Node)
	return n
}
