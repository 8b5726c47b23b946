// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/kube"
)

// readiness opens nodes to pods once their agent is ready.
type readiness struct {
	o *Operator
	v *view
}

func (r *readiness) run(ctx context.Context) error {
	var errs []error
	for name := range r.v.agents() {
		n := r.v.node(name)
		if n == nil {
			continue
		}
		if r.o.cfg.RemoveNodeTaints && len(withoutTaint(n.Spec.Taints, r.o.cfg.NotReadyTaint)) != len(n.Spec.Taints) {
			errs = append(errs, r.untaint(ctx, name))
		}
		if r.o.cfg.SetCiliumIsUp && !networkUp(n) {
			errs = append(errs, kube.PatchNodeCondition(ctx, r.o.client, name))
		}
	}
	return errors.Join(errs...)
}

// withoutTaint drops the taint of a key, whatever its value and effect.
func withoutTaint(in []corev1.Taint, key string) []corev1.Taint {
	out := make([]corev1.Taint, 0, len(in))
	for _, t := range in {
		if t.Key != key {
			out = append(out, t)
		}
	}
	return out
}

func networkUp(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable {
			return c.Status == corev1.ConditionFalse && c.Reason == api.NetworkUp
		}
	}
	return false
}

// untaint writes the list of taints anew; the patch fails when somebody else changed the list in
// between, and the loop tries again.
func (r *readiness) untaint(ctx context.Context, name string) error {
	api := r.o.client.Kubernetes.CoreV1().Nodes()
	n, err := api.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("taint of node %s: %w", name, err)
	}
	keep := withoutTaint(n.Spec.Taints, r.o.cfg.NotReadyTaint)
	if len(keep) == len(n.Spec.Taints) {
		return nil
	}
	patch, err := json.Marshal([]map[string]any{
		{"op": "test", "path": "/spec/taints", "value": n.Spec.Taints},
		{"op": "replace", "path": "/spec/taints", "value": keep},
	})
	if err != nil {
		return fmt.Errorf("taint of node %s: %w", name, err)
	}
	if _, err := api.Patch(ctx, name, types.JSONPatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("take taint %s off node %s: %w", r.o.cfg.NotReadyTaint, name, err)
	}
	r.o.log.Info("taint removed, the agent is ready", "node", name, "taint", strings.TrimSpace(r.o.cfg.NotReadyTaint))
	return nil
}
