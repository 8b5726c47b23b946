// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// settleTime is how long a DNS pod and the agent of its node must have run before the pod counts
// as left over from another network.
const settleTime = 30 * time.Second

// unmanaged renews cluster DNS pods that were there before the agent: they are connected by
// another network, and nothing in the cluster works without them. Other pods are the user's to
// restart.
type unmanaged struct {
	o *Operator
	v *view
}

// leftOver says whether a DNS pod should be renewed: it has a network of its own, runs, has no
// CiliumEndpoint and is older than the agent of its node, which has been up for a while.
func leftOver(p, agent *corev1.Pod, hasEndpoint bool, now time.Time) bool {
	if p.Spec.HostNetwork || hasEndpoint || p.DeletionTimestamp != nil || p.Status.Phase != corev1.PodRunning {
		return false
	}
	if agent == nil || p.Status.StartTime == nil || agent.Status.StartTime == nil {
		return false
	}
	return p.Status.StartTime.Before(agent.Status.StartTime) && now.Sub(agent.Status.StartTime.Time) > settleTime
}

func (w *unmanaged) run(ctx context.Context) error {
	agents := w.v.agents()
	var errs []error
	for _, obj := range w.v.pods.List() {
		p, ok := obj.(*corev1.Pod)
		if !ok || p.Labels["k8s-app"] != "kube-dns" {
			continue
		}
		_, has, err := w.v.endpoints.GetByKey(p.Namespace + "/" + p.Name)
		if err != nil || !leftOver(p, agents[p.Spec.NodeName], has, w.o.now()) {
			continue
		}
		w.o.log.Info("DNS pod is older than the agent of its node, renewing it", "pod", p.Namespace+"/"+p.Name, "node", p.Spec.NodeName)
		err = w.o.client.Kubernetes.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			errs = append(errs, fmt.Errorf("renew pod %s/%s: %w", p.Namespace, p.Name, err))
		}
	}
	return errors.Join(errs...)
}
