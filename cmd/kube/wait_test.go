// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"
)

// TestMain checks that no goroutine stays.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func agents(ready int32) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "cilium", Namespace: "kube-system"},
		Status:     appsv1.DaemonSetStatus{DesiredNumberScheduled: 3, UpdatedNumberScheduled: 3, NumberReady: ready},
	}
}

// TestWaitFollowsChanges until the condition holds, and over the end of a watch.
func TestWaitFollowsChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := fake.NewClientset()
		c := &Client{Clientset: set}
		done := make(chan error)
		go func() { done <- c.WaitDaemonSet(t.Context(), "kube-system", "cilium") }()
		synctest.Wait()
		for _, ready := range []int32{0, 2, 3} {
			select {
			case err := <-done:
				t.Fatalf("%d ready: %v", ready, err)
			default:
			}
			var err error
			if ready == 0 {
				_, err = set.AppsV1().DaemonSets("kube-system").Create(t.Context(), agents(0), metav1.CreateOptions{})
			} else {
				_, err = set.AppsV1().DaemonSets("kube-system").UpdateStatus(t.Context(), agents(ready), metav1.UpdateOptions{})
			}
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestWaitTellsTheLastState when its time is up, and the error of a list that is refused.
func TestWaitTellsTheLastState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := fake.NewClientset(agents(2))
		c := &Client{Clientset: set}
		ctx, cancel := WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := c.WaitDaemonSet(ctx, "kube-system", "cilium")
		if !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "DaemonSet cilium: 2 of 3 pods are ready") {
			t.Errorf("got %v", err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		if err := c.WaitDaemonSet(ctx, "kube-system", "cilium"); !errors.Is(err, context.Canceled) || errors.Is(err, ErrTimeout) {
			t.Errorf("after an interrupt: %v", err)
		}
		set.PrependReactor("list", "daemonsets", func(ktesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "daemonsets"}, "", errors.New("no role"))
		})
		if err := c.Explain(c.WaitDaemonSet(t.Context(), "kube-system", "cilium")); !errors.Is(err, ErrForbidden) {
			t.Errorf("without permission: %v", err)
		}
	})
}

// TestWaitDoesNotHammer a server whose watches end at once.
func TestWaitDoesNotHammer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := fake.NewClientset(agents(2))
		set.PrependWatchReactor("daemonsets", func(ktesting.Action) (bool, watch.Interface, error) {
			w := watch.NewFake()
			w.Stop()
			return true, w, nil
		})
		ctx, cancel := WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := (&Client{Clientset: set}).WaitDaemonSet(ctx, "kube-system", "cilium"); !errors.Is(err, ErrTimeout) {
			t.Errorf("got %v", err)
		}
		if n := len(set.Actions()); n < 20 || n > 200 {
			t.Errorf("%d requests in a minute", n)
		}
	})
}

func TestReadiness(t *testing.T) {
	one := int32(1)
	lag := agents(3)
	lag.Generation = 2
	rolling := agents(3)
	rolling.Status.UpdatedNumberScheduled = 1
	for want, got := range map[string]func() (bool, string){
		"DaemonSet cilium: rollout has not started":               func() (bool, string) { return DaemonSetReady(lag) },
		"DaemonSet cilium: rolling out - 1 out of 3 pods updated": func() (bool, string) { return DaemonSetReady(rolling) },
		"DaemonSet cilium: 0 of 0 pods are ready": func() (bool, string) {
			return DaemonSetReady(&appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "cilium"}})
		},
		"Deployment x: rolling out - 0 out of 1 pods updated": func() (bool, string) {
			return DeploymentReady(&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "x"}})
		},
		"Deployment x: 0 of 1 pods are available": func() (bool, string) {
			return DeploymentReady(&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "x"}, Spec: appsv1.DeploymentSpec{Replicas: &one}, Status: appsv1.DeploymentStatus{UpdatedReplicas: 1}})
		},
	} {
		if ok, state := got(); ok || state != want {
			t.Errorf("%v %q, want %q", ok, state, want)
		}
	}
	p := &corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
	if !PodReady(p) {
		t.Error("a ready pod")
	}
	if p.DeletionTimestamp = (&metav1.Time{Time: time.Unix(1, 0)}); PodReady(p) {
		t.Error("a pod that ends")
	}
}
