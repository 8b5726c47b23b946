// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"

	"lash.internal/lash/agent/api"
)

var definitionsResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// ciliumResource is one of the kinds of cilium.io.
func ciliumResource(name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "cilium.io", Version: "v2", Resource: name}
}

// noSuchKind says whether the cluster does not know a kind.
func noSuchKind(err error) bool { return apierrors.IsNotFound(err) || meta.IsNoMatchError(err) }

// cleanAPI removes what agents and operator have written into the API server. It returns what it
// keeps on purpose, in words.
func cleanAPI(ctx context.Context, c *Cluster, taint string, keepCRDs bool) (kept []string, err error) {
	for _, name := range api.CustomResources {
		if err := deleteAll(ctx, c.Dynamic.Resource(ciliumResource(name))); err != nil {
			return nil, fmt.Errorf("removing the objects of %s.cilium.io: %w", name, err)
		}
	}
	err = c.Clientset.CoordinationV1().Leases(c.Namespace).Delete(ctx, api.OperatorLease, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("removing lease %s: %w", api.OperatorLease, err)
	}
	nodes, err := c.Clientset.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing nodes: %w", err)
	}
	for i := range nodes.Items {
		if err := cleanNodeObject(ctx, c, &nodes.Items[i], taint); err != nil {
			return nil, err
		}
	}
	definitions := c.Dynamic.Resource(definitionsResource)
	for _, name := range api.CustomResources {
		name += ".cilium.io"
		crd, err := definitions.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return kept, fmt.Errorf("definition %s: %w", name, err)
		}
		if keepCRDs {
			kept = append(kept, "custom resource definition "+name)
			continue
		}
		if err := deleteAndWait(ctx, definitions, crd.GetName(), crd.GetUID()); err != nil {
			return kept, fmt.Errorf("removing definition %s: %w", name, err)
		}
	}
	return kept, nil
}

// deleteAll deletes all objects of a kind, in all namespaces. A kind that is not known has none.
func deleteAll(ctx context.Context, r dynamic.NamespaceableResourceInterface) error {
	for _, each := range []bool{false, true} { // at once, then what that has left
		l, err := r.List(ctx, metav1.ListOptions{})
		if noSuchKind(err) {
			return nil
		}
		if err != nil {
			return err
		}
		spaces := map[string]bool{}
		for i := range l.Items {
			o := &l.Items[i]
			spaces[o.GetNamespace()] = true
			if !each {
				continue
			}
			if err := of(r, o.GetNamespace()).Delete(ctx, o.GetName(), metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("%s: %w", o.GetName(), err)
			}
		}
		if each {
			return nil
		}
		for ns := range spaces {
			if err := of(r, ns).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return err
			}
		}
	}
	return nil
}

func of(r dynamic.NamespaceableResourceInterface, namespace string) dynamic.ResourceInterface {
	if namespace == "" {
		return r
	}
	return r.Namespace(namespace)
}

// deleteAndWait deletes one object and waits until it is gone.
func deleteAndWait(ctx context.Context, r dynamic.ResourceInterface, name string, uid types.UID) error {
	w, err := r.Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()})
	if err != nil {
		return err
	}
	defer w.Stop()
	if err := r.Delete(ctx, name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(uid))}); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("it is still being removed: %w", ctx.Err())
		case ev, open := <-w.ResultChan():
			if !open {
				_, err := r.Get(ctx, name, metav1.GetOptions{})
				if apierrors.IsNotFound(err) {
					return nil
				}
				return errors.Join(errors.New("the watch on its removal has ended"), err)
			}
			if ev.Type == watch.Deleted {
				return nil
			}
		}
	}
}

// ownCondition says whether a node condition is the one that agents and operator set.
func ownCondition(c corev1.NodeCondition) bool {
	return c.Type == corev1.NodeNetworkUnavailable && c.Reason == api.NetworkUp
}

// cleanNodeObject takes our condition and our taint off a Node.
func cleanNodeObject(ctx context.Context, c *Cluster, n *corev1.Node, taint string) error {
	nodes := c.Clientset.CoreV1().Nodes()
	if slices.ContainsFunc(n.Status.Conditions, ownCondition) {
		// The list is merged by type.
		patch := fmt.Sprintf(`{"status":{"conditions":[{"$patch":"delete","type":%q}]}}`, corev1.NodeNetworkUnavailable)
		if _, err := nodes.Patch(ctx, n.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
			return fmt.Errorf("taking condition %s off node %s: %w", corev1.NodeNetworkUnavailable, n.Name, err)
		}
	}
	keep := slices.DeleteFunc(slices.Clone(n.Spec.Taints), func(t corev1.Taint) bool { return t.Key == taint })
	if len(keep) == len(n.Spec.Taints) {
		return nil
	}
	patch, err := json.Marshal([]map[string]any{
		{"op": "test", "path": "/spec/taints", "value": n.Spec.Taints}, // nobody else has changed the list
		{"op": "replace", "path": "/spec/taints", "value": keep},
	})
	if err != nil {
		return fmt.Errorf("taint of node %s: %w", n.Name, err)
	}
	if _, err := nodes.Patch(ctx, n.Name, types.JSONPatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("taking taint %s off node %s: %w", taint, n.Name, err)
	}
	return nil
}

// Trace is one thing of ours in the API server.
type Trace struct {
	Kind string `json:"kind"`
	Name string `json:"name"` // namespace/name, or name
	Ours string `json:"ours"` // why it counts as ours
}

// apiAudit collects traces in the API server.
type apiAudit struct {
	c *Cluster

	mu     sync.Mutex
	traces []Trace
	kept   []Trace
	failed map[string]string
}

func (a *apiAudit) add(kind, namespace, name, why string) {
	if namespace != "" {
		name = namespace + "/" + name
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	t := Trace{Kind: kind, Name: name, Ours: why}
	if !slices.Contains(a.traces, t) {
		a.traces = append(a.traces, t)
	}
}

func (a *apiAudit) fail(what string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed[what] = err.Error()
}

// run looks at everything. Kinds that cannot be listed are failures and do not end it.
func (a *apiAudit) run(ctx context.Context, taint string) {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, check := range []func(context.Context){
		a.workloads, a.leases, a.releases,
		func(ctx context.Context) { a.nodes(ctx, taint) },
		a.definitions,
	} {
		g.Go(func() error { check(gctx); return nil })
	}
	lists, err := discovery.ServerPreferredResources(a.c.Clientset.Discovery())
	if err != nil { // what could be discovered is in lists
		a.fail("kinds of the API server", err)
	}
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			continue
		}
		for _, r := range l.APIResources {
			if !slices.Contains(r.Verbs, "list") || r.Name == "events" || r.Name == "componentstatuses" {
				continue
			}
			g.Go(func() error { a.chartObjects(gctx, gv.WithResource(r.Name), r.Kind); return nil })
		}
	}
	_ = g.Wait() // no check returns an error
	byName := func(x, y Trace) int { return strings.Compare(x.Kind+" "+x.Name, y.Kind+" "+y.Name) }
	slices.SortFunc(a.traces, byName)
	slices.SortFunc(a.kept, byName)
}

// chartObjects finds the objects of one kind that our chart has made.
func (a *apiAudit) chartObjects(ctx context.Context, r schema.GroupVersionResource, kind string) {
	l, err := a.c.Dynamic.Resource(r).List(ctx, metav1.ListOptions{LabelSelector: "helm.sh/chart"})
	if err != nil {
		if !noSuchKind(err) && !apierrors.IsMethodNotSupported(err) {
			a.fail("listing "+r.GroupResource().String(), err)
		}
		return
	}
	for i := range l.Items {
		o := &l.Items[i]
		if strings.HasPrefix(o.GetLabels()["helm.sh/chart"], "lash-") {
			a.add(kind, o.GetNamespace(), o.GetName(), "made by the chart")
		}
	}
}

// workloads finds pods of ours.
func (a *apiAudit) workloads(ctx context.Context) {
	l, err := a.c.Clientset.CoreV1().Pods(a.c.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		a.fail("listing pods", err)
		return
	}
	for i := range l.Items {
		p := &l.Items[i]
		switch {
		case p.Labels["k8s-app"] == "cilium", p.Labels["io.cilium/app"] == "operator":
			a.add("Pod", p.Namespace, p.Name, "an agent or an operator")
		case p.Labels[nodePodLabel] == "lash-cleaner":
			a.add("Pod", p.Namespace, p.Name, "cleans a node")
		}
	}
}

func (a *apiAudit) leases(ctx context.Context) {
	_, err := a.c.Clientset.CoordinationV1().Leases(a.c.Namespace).Get(ctx, api.OperatorLease, metav1.GetOptions{})
	switch {
	case err == nil:
		a.add("Lease", a.c.Namespace, api.OperatorLease, "held by the operator")
	case !apierrors.IsNotFound(err):
		a.fail("leases", err)
	}
}

func (a *apiAudit) releases(context.Context) {
	rel, err := Existing(a.c)
	switch {
	case err != nil:
		a.fail("Helm release", err)
	case rel != nil && Ours(rel):
		a.add("Release", a.c.Namespace, a.c.Release, "Helm release in state "+rel.Info.Status.String())
	}
}

func (a *apiAudit) nodes(ctx context.Context, taint string) {
	l, err := a.c.Clientset.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		a.fail("listing nodes", err)
		return
	}
	for i := range l.Items {
		n := &l.Items[i]
		if slices.ContainsFunc(n.Status.Conditions, ownCondition) {
			a.add("Node", "", n.Name, fmt.Sprintf("condition %s with reason %s", corev1.NodeNetworkUnavailable, api.NetworkUp))
		}
		if slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == taint }) {
			a.add("Node", "", n.Name, "taint "+taint)
		}
	}
}

// definitions finds our kinds, which are kept on purpose, and their objects, which are not.
func (a *apiAudit) definitions(ctx context.Context) {
	for _, name := range api.CustomResources {
		_, err := a.c.Dynamic.Resource(definitionsResource).Get(ctx, name+".cilium.io", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			a.fail("definition "+name+".cilium.io", err)
			continue
		}
		a.mu.Lock()
		a.kept = append(a.kept, Trace{"CustomResourceDefinition", name + ".cilium.io", "a kind of ours"})
		a.mu.Unlock()
		l, err := a.c.Dynamic.Resource(ciliumResource(name)).List(ctx, metav1.ListOptions{})
		if err != nil {
			a.fail("objects of "+name+".cilium.io", err)
			continue
		}
		for i := range l.Items {
			a.add(l.Items[i].GetKind(), l.Items[i].GetNamespace(), l.Items[i].GetName(), "written by an agent")
		}
	}
}
