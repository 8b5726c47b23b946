// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"

	"lash.internal/lash/agent/kube/ciliumio"
	"lash.internal/lash/agent/state"
)

// ErrTaken says that an identity number already stands for some label set.
var ErrTaken = errors.New("identity number is taken")

// IdentityStore reads and writes CiliumIdentity objects.
type IdentityStore struct{ c *Client }

// Identities returns the store of identities.
func (c *Client) Identities() *IdentityStore { return &IdentityStore{c: c} }

// objectLabels are the labels of a CiliumIdentity object: those of source k8s that Kubernetes
// accepts as labels.
func objectLabels(list []string) map[string]string {
	out := map[string]string{}
	for _, l := range list {
		rest, ok := strings.CutPrefix(l, "k8s:")
		if !ok {
			continue
		}
		k, v, _ := strings.Cut(rest, "=")
		if len(validation.IsQualifiedName(k)) == 0 && len(validation.IsValidLabelValue(v)) == 0 {
			out[k] = v
		}
	}
	return out
}

// securityLabels turns "source:key=value" into the map of the object.
func securityLabels(list []string) map[string]string {
	out := make(map[string]string, len(list))
	for _, l := range list {
		k, v, _ := strings.Cut(l, "=")
		out[k] = v
	}
	return out
}

// Get returns the label set of a number, from the API server itself; ok is false when the number
// is free.
func (s *IdentityStore) Get(ctx context.Context, id state.IdentityID) (set []string, ok bool, err error) {
	u, err := s.c.Dynamic.Resource(ciliumio.Identities).Get(ctx, strconv.Itoa(int(id)), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("get CiliumIdentity %d: %w", id, err)
	}
	var ci ciliumio.Identity
	if err := ciliumio.FromUnstructured(u, &ci); err != nil {
		return nil, false, err
	}
	return labelList(ci.SecurityLabels), true, nil
}

// Find returns the numbers that stand for exactly this label set, ascending, from the API server
// itself.
func (s *IdentityStore) Find(ctx context.Context, set []string) ([]state.IdentityID, error) {
	sel := labels.SelectorFromSet(objectLabels(set)).String()
	list, err := s.c.Dynamic.Resource(ciliumio.Identities).List(ctx, metav1.ListOptions{LabelSelector: sel})
	if err != nil {
		return nil, fmt.Errorf("list CiliumIdentities of %s: %w", strings.Join(set, ","), err)
	}
	var out []state.IdentityID
	for i := range list.Items {
		var ci ciliumio.Identity
		if err := ciliumio.FromUnstructured(&list.Items[i], &ci); err != nil {
			return nil, err
		}
		id, err := strconv.ParseUint(ci.Name, 10, 32)
		if err == nil && maps.Equal(ci.SecurityLabels, securityLabels(set)) {
			out = append(out, state.IdentityID(id))
		}
	}
	slices.Sort(out)
	return out, nil
}

// Create claims a number for a label set. The error is ErrTaken when the number is in use.
func (s *IdentityStore) Create(ctx context.Context, id state.IdentityID, set []string) error {
	ci := &ciliumio.Identity{SecurityLabels: securityLabels(set)}
	ci.Name = strconv.Itoa(int(id))
	ci.Labels = objectLabels(set)
	u, err := ciliumio.ToUnstructured(ci)
	if err != nil {
		return err
	}
	_, err = s.c.Dynamic.Resource(ciliumio.Identities).Create(ctx, u, metav1.CreateOptions{FieldManager: fieldManager})
	if apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create CiliumIdentity %d: %w", id, ErrTaken)
	}
	if err != nil {
		return fmt.Errorf("create CiliumIdentity %d: %w", id, err)
	}
	return nil
}

// Pod returns a pod from the API server itself, for when the watch has not brought it yet.
func (c *Client) Pod(ctx context.Context, name state.Name) (state.Pod, bool, error) {
	p, err := c.Kubernetes.CoreV1().Pods(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return state.Pod{}, false, nil
	}
	if err != nil {
		return state.Pod{}, false, fmt.Errorf("get pod %s: %w", name, err)
	}
	return PodRow(p), true, nil
}

// Namespace returns a namespace from the API server itself.
func (c *Client) Namespace(ctx context.Context, name string) (state.Namespace, bool, error) {
	n, err := c.Kubernetes.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return state.Namespace{}, false, nil
	}
	if err != nil {
		return state.Namespace{}, false, fmt.Errorf("get namespace %s: %w", name, err)
	}
	return state.Namespace{Name: n.Name, Labels: n.Labels}, true, nil
}
