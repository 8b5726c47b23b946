// SPDX-License-Identifier: Apache-2.0

package status

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"lash.internal/lash/agent/api"
)

var identitiesResource = schema.GroupVersionResource{Group: "cilium.io", Version: "v2", Resource: "ciliumidentities"}

// ErrNoIdentity means that a number stands for no identity of the cluster.
var ErrNoIdentity = errors.New("no such identity")

// ErrNotInstalled means that the cluster does not know the kind CiliumIdentity.
var ErrNotInstalled = errors.New("the cluster has no CiliumIdentity objects: the network is not installed (run `lash install`)")

// reserved identities have fixed numbers; source: Cilium's identity model.
var reserved = []api.Identity{
	{ID: 1, Labels: []string{"reserved:host"}},
	{ID: 2, Labels: []string{"reserved:world"}},
	{ID: 3, Labels: []string{"reserved:unmanaged"}},
	{ID: 4, Labels: []string{"reserved:health"}},
	{ID: 5, Labels: []string{"reserved:init"}},
	{ID: 6, Labels: []string{"reserved:remote-node"}},
	{ID: 7, Labels: []string{"reserved:kube-apiserver", "reserved:remote-node"}},
	{ID: 8, Labels: []string{"reserved:ingress"}},
	{ID: 9, Labels: []string{"reserved:world-ipv4"}},
	{ID: 10, Labels: []string{"reserved:world-ipv6"}},
}

// Identities lists the reserved identities and those of the cluster's CiliumIdentity objects that
// sel selects, by number. sel sees labels without their source ("app", "io.kubernetes.pod.namespace").
func Identities(ctx context.Context, c dynamic.Interface, sel labels.Selector) ([]api.Identity, error) {
	l, err := c.Resource(identitiesResource).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil, ErrNotInstalled
	}
	if err != nil {
		return nil, err
	}
	all := slices.Clone(reserved)
	for i := range l.Items {
		id, err := identityOf(&l.Items[i])
		if err != nil {
			return nil, err
		}
		all = append(all, id)
	}
	out := make([]api.Identity, 0, len(all))
	for _, id := range all {
		if sel == nil || sel.Matches(labelSet(id.Labels)) {
			id.LabelsSHA256 = labelsHash(id.Labels)
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(a, b api.Identity) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// Identity returns one identity by number.
func Identity(ctx context.Context, c dynamic.Interface, number int64) (api.Identity, error) {
	for _, r := range reserved {
		if r.ID == number {
			r.LabelsSHA256 = labelsHash(r.Labels)
			return r, nil
		}
	}
	o, err := c.Resource(identitiesResource).Get(ctx, strconv.FormatInt(number, 10), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		// A missing object and a missing kind are the same answer.
		if _, err := c.Resource(identitiesResource).List(ctx, metav1.ListOptions{Limit: 1}); apierrors.IsNotFound(err) {
			return api.Identity{}, ErrNotInstalled
		}
		return api.Identity{}, fmt.Errorf("%w: %d", ErrNoIdentity, number)
	}
	if err != nil {
		return api.Identity{}, err
	}
	id, err := identityOf(o)
	id.LabelsSHA256 = labelsHash(id.Labels)
	return id, err
}

func identityOf(o *unstructured.Unstructured) (api.Identity, error) {
	n, err := strconv.ParseInt(o.GetName(), 10, 64)
	if err != nil {
		return api.Identity{}, fmt.Errorf("name of a CiliumIdentity: %w", err)
	}
	m, _, err := unstructured.NestedStringMap(o.Object, "security-labels")
	if err != nil {
		return api.Identity{}, fmt.Errorf("labels of CiliumIdentity %d: %w", n, err)
	}
	id := api.Identity{ID: n, Labels: make([]string, 0, len(m))}
	for k, v := range m {
		if v != "" {
			k += "=" + v
		}
		id.Labels = append(id.Labels, k)
	}
	slices.Sort(id.Labels)
	return id, nil
}

// labelSet is the form that selectors take: without the source, key to value.
func labelSet(in []string) labels.Set {
	set := labels.Set{}
	for _, l := range in {
		if _, bare, ok := strings.Cut(l, ":"); ok {
			l = bare
		}
		k, v, _ := strings.Cut(l, "=")
		set[k] = v
	}
	return set
}

func labelsHash(in []string) string {
	h := sha256.New()
	for _, l := range in {
		if !strings.Contains(l, "=") {
			l += "="
		}
		h.Write([]byte(l + ";"))
	}
	return hex.EncodeToString(h.Sum(nil))
}
