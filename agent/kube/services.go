// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"lash.internal/lash/agent/state"
)

// ServiceHonored is the type of the condition that is False, and there at all, while a Service asks
// for something that it does not get.
const ServiceHonored = "lash.internal/Honored"

// ServiceMirror returns what keeps the table of Services equal to what the API server has, until its
// context ends.
func ServiceMirror(c *Client, t *state.Tables) func(context.Context) {
	return typedFeed("services", c.Kubernetes.CoreV1().Services(metav1.NamespaceAll), "", &corev1.Service{}, c.Kubernetes,
		newMirror(t.DB, t.Services, "kubernetes", serviceRow, nameOf)).run
}

// SetServiceNotice says on a Service what of it is not honoured, in a condition and an event.
func (c *Client) SetServiceNotice(ctx context.Context, s state.Service, reason, message string) error {
	now := metav1.NewTime(time.Now())
	err := c.patchServiceCondition(ctx, s.Name, metav1.Condition{
		Type: ServiceHonored, Status: metav1.ConditionFalse, Reason: reason, Message: message, LastTransitionTime: now,
	})
	if err != nil {
		return err
	}
	return c.Warn(ctx, Warning{
		Kind: "Service", Namespace: s.Name.Namespace, Name: s.Name.Name, UID: s.UID, Reason: reason, Message: message, Component: "cilium-operator",
	})
}

// ClearServiceNotice takes the condition away. A Service that is gone needs none.
func (c *Client) ClearServiceNotice(ctx context.Context, name state.Name) error {
	return c.patchServiceCondition(ctx, name, map[string]string{"$patch": "delete", "type": ServiceHonored})
}

func (c *Client) patchServiceCondition(ctx context.Context, name state.Name, condition any) error {
	body, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []any{condition}}})
	if err != nil {
		return fmt.Errorf("encode condition: %w", err)
	}
	_, err = c.Kubernetes.CoreV1().Services(name.Namespace).Patch(ctx, name.Name, types.StrategicMergePatchType, body, metav1.PatchOptions{FieldManager: "cilium-operator"}, "status")
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("condition %s of Service %s: %w", ServiceHonored, name, err)
	}
	return nil
}
