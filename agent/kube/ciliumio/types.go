// SPDX-License-Identifier: Apache-2.0

// Package ciliumio holds the kinds of API group cilium.io that the node program and its operator
// read and write. Only the fields in use are declared; writers change objects with Apply, so that
// fields of others survive.
package ciliumio

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group and Version of all kinds here.
const (
	Group   = "cilium.io"
	Version = "v2"
)

// Resources of the group, for the dynamic client.
var (
	Identities = schema.GroupVersionResource{Group: Group, Version: Version, Resource: "ciliumidentities"}
	Endpoints  = schema.GroupVersionResource{Group: Group, Version: Version, Resource: "ciliumendpoints"}
	Nodes      = schema.GroupVersionResource{Group: Group, Version: Version, Resource: "ciliumnodes"}
)

// Identity is a CiliumIdentity: its name is the number, SecurityLabels the label set as
// source:key -> value.
type Identity struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	SecurityLabels    map[string]string `json:"security-labels"`
}

// Endpoint is a CiliumEndpoint, named as its pod.
type Endpoint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Status            EndpointStatus `json:"status,omitempty"`
}

// EndpointStatus is what the owning node says of an endpoint.
type EndpointStatus struct {
	ID                  int64                `json:"id,omitempty"`
	ExternalIdentifiers *ExternalIdentifiers `json:"external-identifiers,omitempty"`
	Identity            *EndpointIdentity    `json:"identity,omitempty"`
	Networking          *EndpointNetworking  `json:"networking,omitempty"`
	Encryption          EndpointEncryption   `json:"encryption,omitempty"`
	Policy              *EndpointPolicy      `json:"policy,omitempty"`
	State               string               `json:"state,omitempty"`
	NamedPorts          []NamedPort          `json:"named-ports,omitempty"`
}

// ExternalIdentifiers are the names that others have for an endpoint.
type ExternalIdentifiers struct {
	CNIAttachmentID string `json:"cni-attachment-id,omitempty"`
	ContainerID     string `json:"container-id,omitempty"`
	K8sNamespace    string `json:"k8s-namespace,omitempty"`
	K8sPodName      string `json:"k8s-pod-name,omitempty"`
	PodName         string `json:"pod-name,omitempty"`
}

// EndpointIdentity is the security identity of an endpoint.
type EndpointIdentity struct {
	ID     int64    `json:"id,omitempty"`
	Labels []string `json:"labels,omitempty"`
}

// EndpointNetworking says where an endpoint is.
type EndpointNetworking struct {
	Addressing []AddressPair `json:"addressing"`
	Node       string        `json:"node,omitempty"` // address of the node
}

// AddressPair is an endpoint's addresses.
type AddressPair struct {
	IPv4 string `json:"ipv4,omitempty"`
	IPv6 string `json:"ipv6,omitempty"`
}

// EndpointEncryption is the key index of the endpoint's node.
type EndpointEncryption struct {
	Key int64 `json:"key,omitempty"`
}

// EndpointPolicy is the state of policy enforcement, each direction apart.
type EndpointPolicy struct {
	Ingress *PolicyDirection `json:"ingress,omitempty"`
	Egress  *PolicyDirection `json:"egress,omitempty"`
}

// PolicyDirection is the state of policy enforcement of one direction.
type PolicyDirection struct {
	Enforcing bool   `json:"enforcing"`
	State     string `json:"state,omitempty"`
}

// NamedPort is a named container port.
type NamedPort struct {
	Name     string `json:"name"`
	Port     int64  `json:"port"`
	Protocol string `json:"protocol"`
}

// Node is a CiliumNode.
type Node struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              NodeSpec   `json:"spec"`
	Status            NodeStatus `json:"status,omitempty"`
}

// NodeSpec is what a node's agent and the operator agree on.
type NodeSpec struct {
	InstanceID string           `json:"instance-id,omitempty"`
	BootID     string           `json:"bootid,omitempty"`
	Addresses  []NodeAddress    `json:"addresses,omitempty"`
	Health     HealthAddressing `json:"health,omitzero"`
	IPAM       NodeIPAM         `json:"ipam,omitempty"`
}

// HealthAddressing is where the node's own health is asked at.
type HealthAddressing struct {
	IPv4 string `json:"ipv4,omitempty"`
	IPv6 string `json:"ipv6,omitempty"`
}

// NodeAddress types; the first three are Kubernetes' words.
const (
	InternalIP       = "InternalIP"
	ExternalIP       = "ExternalIP"
	Hostname         = "Hostname"
	CiliumInternalIP = "CiliumInternalIP"
)

// NodeAddress is one address of a node.
type NodeAddress struct {
	Type string `json:"type,omitempty"`
	IP   string `json:"ip,omitempty"`
}

// NodeIPAM is the node's share of the pod address space.
type NodeIPAM struct {
	PodCIDRs []string `json:"podCIDRs,omitempty"`
}

// NodeStatus is what the operator reports back.
type NodeStatus struct {
	IPAM NodeIPAMStatus `json:"ipam,omitempty"`
}

// NodeIPAMStatus carries the operator's error, such as an exhausted pool.
type NodeIPAMStatus struct {
	OperatorStatus OperatorStatus `json:"operator-status,omitempty"`
}

// OperatorStatus is the outcome of the operator's last attempt.
type OperatorStatus struct {
	Error string `json:"error,omitempty"`
}

// kindOf gives the kind that a type carries on the wire.
func kindOf(obj any) string {
	switch obj.(type) {
	case *Identity:
		return "CiliumIdentity"
	case *Endpoint:
		return "CiliumEndpoint"
	case *Node:
		return "CiliumNode"
	}
	return ""
}

// FromUnstructured fills obj (*Identity, *Endpoint or *Node) from an object of the dynamic client.
func FromUnstructured(in any, obj any) error {
	u, ok := in.(*unstructured.Unstructured)
	if !ok {
		return fmt.Errorf("object is %T, not unstructured", in)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, obj); err != nil {
		return fmt.Errorf("decode %s %s: %w", u.GetKind(), u.GetName(), err)
	}
	return nil
}

// Apply lays the changes that were made to a decoded object on top of the object itself: before is
// what FromUnstructured gave, after what it became. Fields that are not declared here stay as they
// are, also inside of declared ones; lists are replaced as a whole.
func Apply(u *unstructured.Unstructured, before, after any) (*unstructured.Unstructured, error) {
	old, err := ToUnstructured(before)
	if err != nil {
		return nil, err
	}
	next, err := ToUnstructured(after)
	if err != nil {
		return nil, err
	}
	out := u.DeepCopy()
	overlay(out.Object, old.Object, next.Object)
	return out, nil
}

// overlay makes in m the changes that lead from old to next.
func overlay(m, old, next map[string]any) {
	for k := range old {
		if _, ok := next[k]; !ok {
			delete(m, k)
		}
	}
	for k, v := range next {
		inner, ok := v.(map[string]any)
		have, had := m[k].(map[string]any)
		if !ok || !had {
			m[k] = v
			continue
		}
		was, _ := old[k].(map[string]any)
		overlay(have, was, inner)
	}
}

// ToUnstructured gives obj (*Identity, *Endpoint or *Node) in the form the dynamic client wants,
// with apiVersion and kind set.
func ToUnstructured(obj any) (*unstructured.Unstructured, error) {
	kind := kindOf(obj)
	if kind == "" {
		return nil, fmt.Errorf("%T is no kind of %s", obj, Group)
	}
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", kind, err)
	}
	u := &unstructured.Unstructured{Object: m}
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: Group, Version: Version, Kind: kind})
	unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
	return u, nil
}
