// SPDX-License-Identifier: Apache-2.0

// Package testbed is what tests and measurements in a cluster share: a namespace of their own that is
// always removed again, and pods that are placed, waited for and explained when they do not run.
package testbed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// ErrForeign is about a namespace that is not ours to remove.
var ErrForeign = errors.New("not made by")

// Bed makes and removes namespaces. A label says that one was made by it.
type Bed struct {
	Client       kubernetes.Interface
	Label, Value string
	Maker        string // what makes them, for messages: "a connectivity test"
	Flag         string // that chooses another name, for messages
	Say          func(format string, args ...any)
}

// Make creates a namespace, with the label; one that an earlier run left behind is removed first.
func (b Bed) Make(ctx context.Context, obj *corev1.Namespace) error {
	if obj.Labels == nil {
		obj.Labels = map[string]string{}
	}
	obj.Labels[b.Label] = b.Value
	for {
		_, err := b.Client.CoreV1().Namespaces().Create(ctx, obj, metav1.CreateOptions{})
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
		b.Say("Removing namespace %s, which an earlier run left behind", obj.Name)
		if err := b.Remove(ctx, obj.Name); err != nil {
			return err
		}
	}
}

// Remove deletes a namespace and waits until it is gone. One that was not made here is left alone.
func (b Bed) Remove(ctx context.Context, name string) error {
	c := b.Client.CoreV1().Namespaces()
	old, err := c.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read namespace %s: %w", name, err)
	}
	if old.Labels[b.Label] != b.Value {
		return fmt.Errorf("namespace %s exists and was %w %s (it lacks the label %s=%s): choose another with %s",
			name, ErrForeign, b.Maker, b.Label, b.Value, b.Flag)
	}
	w, err := c.Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()})
	if err != nil {
		return fmt.Errorf("watch namespace %s: %w", name, err)
	}
	defer w.Stop()
	now := int64(0)
	// Pods first and without grace: the namespace's controller would give each its 30 s.
	_ = b.Client.CoreV1().Pods(name).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
	if err := c.Delete(ctx, name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(old.UID))}); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		if !apierrors.IsConflict(err) {
			return fmt.Errorf("delete namespace %s: %w", name, err)
		}
	}
	for {
		if _, err := c.Get(ctx, name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			return nil
		}
		select {
		case ev, open := <-w.ResultChan():
			if !open {
				return b.Remove(ctx, name)
			}
			if ev.Type == watch.Deleted {
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("namespace %s is still being removed: %w", name, ctx.Err())
		}
	}
}

// PodReady says whether a pod serves.
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

// PodProblem says what keeps a pod from being ready, in the words of its container states.
func PodProblem(p *corev1.Pod) string {
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if w := s.State.Waiting; w != nil && w.Reason != "PodInitializing" {
			return strings.TrimSpace(fmt.Sprintf("container %s waits: %s %s", s.Name, w.Reason, w.Message))
		}
		if t := s.State.Terminated; t != nil && t.ExitCode != 0 {
			return strings.TrimSpace(fmt.Sprintf("container %s ended with code %d: %s %s", s.Name, t.ExitCode, t.Reason, t.Message))
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Status != corev1.ConditionTrue && c.Message != "" {
			return c.Message
		}
	}
	return "phase " + string(p.Status.Phase)
}

// OnNode pins a pod to one of some nodes by name, whatever labels they have.
func OnNode(names ...string) *corev1.Affinity {
	var terms []corev1.NodeSelectorTerm
	for _, n := range names {
		terms = append(terms, corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{
			{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{n}},
		}})
	}
	return &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: terms},
	}}
}

// FollowPods lists the pods of a namespace and follows their changes until done says so or ctx ends.
func FollowPods(ctx context.Context, client kubernetes.Interface, namespace, labels string, done func([]corev1.Pod) bool) error {
	c := client.CoreV1().Pods(namespace)
	for {
		list, err := c.List(ctx, metav1.ListOptions{LabelSelector: labels})
		if err != nil {
			return err
		}
		if done(list.Items) {
			return nil
		}
		w, err := c.Watch(ctx, metav1.ListOptions{LabelSelector: labels, ResourceVersion: list.ResourceVersion})
		if err != nil {
			return err
		}
		err = followWatch(ctx, w, list.Items, done)
		w.Stop()
		if !errors.Is(err, errWatchClosed) {
			return err
		}
	}
}

var errWatchClosed = errors.New("watch closed")

func followWatch(ctx context.Context, w watch.Interface, pods []corev1.Pod, done func([]corev1.Pod) bool) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case ev, open := <-w.ResultChan():
			if !open || ev.Type == watch.Error {
				return errWatchClosed
			}
			p, ok := ev.Object.(*corev1.Pod)
			if !ok {
				continue
			}
			i := slices.IndexFunc(pods, func(o corev1.Pod) bool { return o.Name == p.Name })
			switch {
			case ev.Type == watch.Deleted && i >= 0:
				pods = slices.Delete(pods, i, i+1)
			case ev.Type == watch.Deleted:
			case i >= 0:
				pods[i] = *p
			default:
				pods = append(pods, *p)
			}
			if done(pods) {
				return nil
			}
		}
	}
}
