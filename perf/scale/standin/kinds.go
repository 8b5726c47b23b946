// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
)

// kind is a kind of objects that the server has.
type kind struct {
	schema.GroupVersionResource
	name       string // of the kind
	namespaced bool
	custom     bool // travels as JSON only
	transient  bool // accepted and forgotten
}

var kinds = []kind{
	{core("nodes"), "Node", false, false, false},
	{core("namespaces"), "Namespace", false, false, false},
	{core("pods"), "Pod", true, false, false},
	{core("services"), "Service", true, false, false},
	{core("configmaps"), "ConfigMap", true, false, false},
	{core("secrets"), "Secret", true, false, false},
	{core("events"), "Event", true, false, true},
	{of("discovery.k8s.io", "v1", "endpointslices"), "EndpointSlice", true, false, false},
	{of("networking.k8s.io", "v1", "networkpolicies"), "NetworkPolicy", true, false, false},
	{of("networking.k8s.io", "v1", "servicecidrs"), "ServiceCIDR", false, false, false},
	{of("coordination.k8s.io", "v1", "leases"), "Lease", true, false, false},
	{of("events.k8s.io", "v1", "events"), "Event", true, false, true},
	{of("authorization.k8s.io", "v1", "selfsubjectaccessreviews"), "SelfSubjectAccessReview", false, false, true},
	{of("cilium.io", "v2", "ciliumnodes"), "CiliumNode", false, true, false},
	{of("cilium.io", "v2", "ciliumidentities"), "CiliumIdentity", false, true, false},
	{of("cilium.io", "v2", "ciliumendpoints"), "CiliumEndpoint", true, true, false},
}

func core(resource string) schema.GroupVersionResource { return of("", "v1", resource) }

func of(group, version, resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: resource}
}

func (k kind) gvk() schema.GroupVersionKind { return k.GroupVersion().WithKind(k.name) }

// kindOf is the kind of a typed object.
func kindOf(obj runtime.Object) (kind, error) {
	gvks, _, err := scheme.Scheme.ObjectKinds(obj)
	if err != nil {
		return kind{}, fmt.Errorf("kind of object: %w", err)
	}
	for _, gvk := range gvks {
		if i := slices.IndexFunc(kinds, func(k kind) bool { return k.gvk() == gvk }); i >= 0 {
			return kinds[i], nil
		}
	}
	return kind{}, fmt.Errorf("no objects of kind %v are kept here", gvks)
}
