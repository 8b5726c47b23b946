// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"lash.internal/lash/agent/kube/ciliumio"
)

// collector deletes objects that nothing refers to any more. Each suspicion from the caches is
// checked against the API server before it is acted on, and the deletion holds only for the very
// object that was looked at.
type collector struct {
	o           *Operator
	v           *view
	unusedSince map[string]time.Time // identities, by name
}

func (c *collector) delete(ctx context.Context, gvr schema.GroupVersionResource, u *unstructured.Unstructured) error {
	uid, rv := u.GetUID(), u.GetResourceVersion()
	opts := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &rv}}
	var err error
	if ns := u.GetNamespace(); ns != "" {
		err = c.o.client.Dynamic.Resource(gvr).Namespace(ns).Delete(ctx, u.GetName(), opts)
	} else {
		err = c.o.client.Dynamic.Resource(gvr).Delete(ctx, u.GetName(), opts)
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete %s %s: %w", u.GetKind(), u.GetName(), err)
	}
	if err == nil {
		c.o.log.Info("object without a user deleted", "kind", u.GetKind(), "namespace", u.GetNamespace(), "name", u.GetName())
	}
	return nil
}

// nodes deletes CiliumNodes without a node.
func (c *collector) nodes(ctx context.Context) error {
	var errs []error
	for _, obj := range c.v.ciliums.List() {
		u, ok := obj.(*unstructured.Unstructured)
		if !ok || c.v.node(u.GetName()) != nil {
			continue
		}
		_, err := c.o.client.Kubernetes.CoreV1().Nodes().Get(ctx, u.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			err = c.delete(ctx, ciliumio.Nodes, u)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// ended says that a pod holds no network any more.
func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// endpoints deletes CiliumEndpoints whose pod is gone or has ended.
func (c *collector) endpoints(ctx context.Context) error {
	var errs []error
	for _, obj := range c.v.endpoints.List() {
		u, ok := obj.(*unstructured.Unstructured)
		if !ok {
			continue
		}
		if p := c.v.pod(u.GetNamespace(), u.GetName()); p != nil && !ended(p) {
			continue
		}
		p, err := c.o.client.Kubernetes.CoreV1().Pods(u.GetNamespace()).Get(ctx, u.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) || (err == nil && ended(p)) {
			err = c.delete(ctx, ciliumio.Endpoints, u)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// identities deletes identities that no CiliumEndpoint has had for a whole interval. An agent
// that takes one up again at this very moment makes it anew under the same number.
func (c *collector) identities(ctx context.Context) error {
	used := map[string]bool{}
	for _, obj := range c.v.endpoints.List() {
		var e ciliumio.Endpoint
		if err := ciliumio.FromUnstructured(obj, &e); err != nil {
			return err
		}
		if e.Status.Identity != nil {
			used[strconv.FormatInt(e.Status.Identity.ID, 10)] = true
		}
	}
	now := c.o.now()
	var errs []error
	alive, deleted := 0, 0
	seen := map[string]bool{}
	for _, obj := range c.v.identities.List() {
		u, ok := obj.(*unstructured.Unstructured)
		if !ok {
			continue
		}
		name := u.GetName()
		seen[name] = true
		since, idle := c.unusedSince[name]
		switch {
		case used[name]:
			delete(c.unusedSince, name)
			alive++
		case !idle:
			c.unusedSince[name] = now
			alive++
		case now.Sub(since) < c.o.cfg.IdentityGCInterval:
			alive++
		default:
			err := c.delete(ctx, ciliumio.Identities, u)
			if err == nil {
				delete(c.unusedSince, name)
				deleted++
			}
			errs = append(errs, err)
		}
	}
	for name := range c.unusedSince {
		if !seen[name] {
			delete(c.unusedSince, name)
		}
	}
	err := errors.Join(errs...)
	outcome := "success"
	if err != nil {
		outcome = "fail"
	}
	c.o.metrics.gcRuns.WithLabelValues(outcome).Inc()
	c.o.metrics.gcEntries.WithLabelValues("alive").Set(float64(alive))
	c.o.metrics.gcEntries.WithLabelValues("deleted").Set(float64(deleted))
	return err
}
