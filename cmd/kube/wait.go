// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// ErrTimeout is a wait that ran out; the error around it holds the last state seen.
var ErrTimeout = errors.New("timed out")

// Source lists and watches one kind of object; T is the object, L its list.
type Source[L runtime.Object] interface {
	List(ctx context.Context, opts metav1.ListOptions) (L, error)
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

// Wait lists the objects that opts select, then follows their changes until cond says that it is
// done. cond sees all objects each time and returns, when not done, a short description of what
// is missing. When ctx ends first, the error matches ErrTimeout and holds the last description.
func Wait[L runtime.Object, T any](ctx context.Context, src Source[L], opts metav1.ListOptions, cond func([]T) (done bool, state string)) error {
	state := "nothing seen yet"
	for {
		begun := time.Now()
		done, err := waitOnce(ctx, src, opts, func(all []T) bool {
			var ok bool
			ok, state = cond(all)
			return ok
		})
		switch {
		case done:
			return nil
		case ctx.Err() != nil:
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("%w: %s", ErrTimeout, state)
			}
			return ctx.Err()
		case err != nil:
			return err
		}
		// A server or a proxy may end watches as soon as they begin.
		if rest := watchLeast - time.Since(begun); rest > 0 {
			t := time.NewTimer(rest)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
			}
		}
	}
}

// watchLeast is the least time between two lists.
const watchLeast = time.Second

// waitOnce lists and watches until done, or until the watch ends (the server closes watches now
// and then; the caller starts over).
func waitOnce[L runtime.Object, T any](ctx context.Context, src Source[L], opts metav1.ListOptions, cond func([]T) bool) (bool, error) {
	list, err := src.List(ctx, opts)
	if err != nil {
		return false, err
	}
	objs, err := meta.ExtractList(list)
	if err != nil {
		return false, err
	}
	items := map[string]T{}
	put := func(o runtime.Object) {
		m, err1 := meta.Accessor(o)
		if t, ok := o.(any).(*T); ok && err1 == nil {
			items[m.GetNamespace()+"/"+m.GetName()] = *t
		}
	}
	all := func() []T {
		out := make([]T, 0, len(items))
		for _, t := range items {
			out = append(out, t)
		}
		return out
	}
	for _, o := range objs {
		put(o)
	}
	if cond(all()) {
		return true, nil
	}
	lm, err := meta.ListAccessor(list)
	if err != nil {
		return false, err
	}
	opts.ResourceVersion = lm.GetResourceVersion()
	w, err := src.Watch(ctx, opts)
	if err != nil {
		return false, err
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return false, nil
		case ev, open := <-w.ResultChan():
			if !open || ev.Type == watch.Error {
				return false, nil
			}
			if ev.Type == watch.Deleted {
				if m, err := meta.Accessor(ev.Object); err == nil {
					delete(items, m.GetNamespace()+"/"+m.GetName())
				}
			} else {
				put(ev.Object)
			}
			if cond(all()) {
				return true, nil
			}
		}
	}
}

func named(name string) metav1.ListOptions {
	return metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()}
}

// WaitDaemonSet waits until every pod of a DaemonSet is of the current generation and ready.
func (c *Client) WaitDaemonSet(ctx context.Context, namespace, name string) error {
	return Wait(ctx, c.Clientset.AppsV1().DaemonSets(namespace), named(name), func(all []appsv1.DaemonSet) (bool, string) {
		if len(all) == 0 {
			return false, fmt.Sprintf("DaemonSet %s/%s does not exist", namespace, name)
		}
		return DaemonSetReady(&all[0])
	})
}

// DaemonSetReady says whether all pods of d are current and ready, and otherwise what is missing.
func DaemonSetReady(d *appsv1.DaemonSet) (bool, string) {
	s := d.Status
	switch {
	case s.ObservedGeneration < d.Generation:
		return false, fmt.Sprintf("DaemonSet %s: rollout has not started", d.Name)
	case s.UpdatedNumberScheduled < s.DesiredNumberScheduled:
		return false, fmt.Sprintf("DaemonSet %s: rolling out - %d out of %d pods updated", d.Name, s.UpdatedNumberScheduled, s.DesiredNumberScheduled)
	case s.NumberReady < s.DesiredNumberScheduled, s.DesiredNumberScheduled == 0:
		return false, fmt.Sprintf("DaemonSet %s: %d of %d pods are ready", d.Name, s.NumberReady, s.DesiredNumberScheduled)
	}
	return true, ""
}

// WaitDeployment waits until every replica of a Deployment is current and available.
func (c *Client) WaitDeployment(ctx context.Context, namespace, name string) error {
	return Wait(ctx, c.Clientset.AppsV1().Deployments(namespace), named(name), func(all []appsv1.Deployment) (bool, string) {
		if len(all) == 0 {
			return false, fmt.Sprintf("Deployment %s/%s does not exist", namespace, name)
		}
		return DeploymentReady(&all[0])
	})
}

// DeploymentReady says whether all replicas of d are current and available, and otherwise what is
// missing.
func DeploymentReady(d *appsv1.Deployment) (bool, string) {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s := d.Status
	switch {
	case s.ObservedGeneration < d.Generation:
		return false, fmt.Sprintf("Deployment %s: rollout has not started", d.Name)
	case s.UpdatedReplicas < want:
		return false, fmt.Sprintf("Deployment %s: rolling out - %d out of %d pods updated", d.Name, s.UpdatedReplicas, want)
	case s.AvailableReplicas < want:
		return false, fmt.Sprintf("Deployment %s: %d of %d pods are available", d.Name, s.AvailableReplicas, want)
	}
	return true, ""
}

// WaitPods waits until cond is true of the pods that a label selector selects.
func (c *Client) WaitPods(ctx context.Context, namespace, selector string, cond func([]corev1.Pod) (done bool, state string)) error {
	return Wait(ctx, c.Clientset.CoreV1().Pods(namespace), metav1.ListOptions{LabelSelector: selector}, cond)
}

// PodReady says whether a pod runs and reports itself ready.
func PodReady(p *corev1.Pod) bool {
	if p.DeletionTimestamp != nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// WithTimeout is context.WithTimeout, where 0 means no limit.
func WithTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}
