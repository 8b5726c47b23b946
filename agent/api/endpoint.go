// SPDX-License-Identifier: Apache-2.0

package api

// Endpoint is a pod interface of the node (GET /v1/endpoint).
type Endpoint struct {
	ID     int64           `json:"id"`
	Spec   *EndpointSpec   `json:"spec,omitempty"`
	Status *EndpointStatus `json:"status,omitempty"`
}

// EndpointSpec is what a client asked for.
type EndpointSpec struct {
	LabelConfiguration *LabelConfiguration `json:"label-configuration,omitempty"`
}

// LabelConfiguration holds labels that a user added.
type LabelConfiguration struct {
	User []string `json:"user,omitempty"`
}

// EndpointStatus is what the agent made of it.
type EndpointStatus struct {
	ExternalIdentifiers *EndpointIdentifiers `json:"external-identifiers,omitempty"`
	Health              *EndpointHealth      `json:"health,omitempty"`
	Identity            *Identity            `json:"identity,omitempty"`
	Labels              *LabelStatus         `json:"labels,omitempty"`
	NamedPorts          []NamedPort          `json:"namedPorts,omitempty"`
	Networking          *EndpointNetworking  `json:"networking,omitempty"`
	Policy              *EndpointPolicy      `json:"policy,omitempty"`
	State               string               `json:"state"`
}

// EndpointIdentifiers are the names that others know the endpoint by.
type EndpointIdentifiers struct {
	CNIAttachmentID string `json:"cni-attachment-id,omitempty"`
	ContainerID     string `json:"container-id,omitempty"`
	ContainerName   string `json:"container-name,omitempty"`
	K8sNamespace    string `json:"k8s-namespace,omitempty"`
	K8sPodName      string `json:"k8s-pod-name,omitempty"`
	PodName         string `json:"pod-name,omitempty"` // namespace/name
}

// EndpointHealth sums the endpoint up: OK, Bootstrap, Pending, Warning, Failure or Disabled.
type EndpointHealth struct {
	BPF           string `json:"bpf"`
	Policy        string `json:"policy"`
	Connected     bool   `json:"connected"`
	OverallHealth string `json:"overallHealth"`
}

// LabelStatus splits the labels by what they are for.
type LabelStatus struct {
	SecurityRelevant []string `json:"security-relevant"`
	Derived          []string `json:"derived,omitempty"`
	Disabled         []string `json:"disabled,omitempty"`
}

// NamedPort is a named container port.
type NamedPort struct {
	Name     string `json:"name"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
}

// EndpointNetworking holds addresses and devices.
type EndpointNetworking struct {
	Addressing      []AddressPair `json:"addressing"`
	ContainerIfName string        `json:"container-interface-name,omitempty"`
	HostMAC         string        `json:"host-mac,omitempty"`
	MAC             string        `json:"mac,omitempty"`
	InterfaceIndex  int64         `json:"interface-index,omitempty"`
	InterfaceName   string        `json:"interface-name,omitempty"`
}

// AddressPair is one address a family.
type AddressPair struct {
	IPv4 string `json:"ipv4,omitempty"`
	IPv6 string `json:"ipv6,omitempty"`
}

// EndpointPolicy is the policy in force.
type EndpointPolicy struct {
	Realized            *PolicyState `json:"realized,omitempty"`
	Spec                *PolicyState `json:"spec,omitempty"`
	ProxyPolicyRevision int64        `json:"proxy-policy-revision"`
}

// PolicyState says which directions are limited: none, ingress, egress or both.
type PolicyState struct {
	ID             int64  `json:"id"`
	PolicyEnabled  string `json:"policy-enabled"`
	PolicyRevision int64  `json:"policy-revision"`
}

// Identity is a number and the labels that it stands for (GET /v1/identity).
type Identity struct {
	ID           int64    `json:"id"`
	Labels       []string `json:"labels"`
	LabelsSHA256 string   `json:"labelsSHA256,omitempty"`
	RefCount     int64    `json:"refcount,omitempty"` // local endpoints of the identity
}

// IPEntry says who an address or range is (GET /v1/ip).
type IPEntry struct {
	CIDR       string      `json:"cidr"`
	Identity   int64       `json:"identity"`
	HostIP     string      `json:"hostIP,omitempty"`
	EncryptKey int64       `json:"encryptKey"`
	Metadata   *IPMetadata `json:"metadata,omitempty"`
}

// IPMetadata says where an IPEntry comes from.
type IPMetadata struct {
	Name      string `json:"name,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Source    string `json:"source"` // local, k8s, custom-resource, agent-local, generated
}

// Service is one frontend and its backends (GET /v1/service).
type Service struct {
	Spec   ServiceSpec    `json:"spec"`
	Status *ServiceStatus `json:"status,omitempty"`
}

// ServiceStatus is the frontend as it is in the kernel.
type ServiceStatus struct {
	Realized ServiceSpec `json:"realized"`
}

// ServiceSpec is a frontend address, its backends and its kind.
type ServiceSpec struct {
	ID       int64             `json:"id"`
	Frontend FrontendAddress   `json:"frontend-address"`
	Backends []BackendAddress  `json:"backend-addresses"`
	Flags    ServiceSpecFlags  `json:"flags"`
	Extra    map[string]string `json:"-"`
}

// FrontendAddress is what clients connect to.
type FrontendAddress struct {
	IP       string `json:"ip"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
	Scope    string `json:"scope,omitempty"` // external, internal
}

// BackendAddress is what serves it.
type BackendAddress struct {
	IP        string `json:"ip"`
	Port      uint16 `json:"port"`
	Protocol  string `json:"protocol,omitempty"`
	State     string `json:"state,omitempty"` // active, terminating, quarantined
	Weight    int64  `json:"weight,omitempty"`
	NodeName  string `json:"nodeName,omitempty"`
	Zone      string `json:"zone,omitempty"`
	Preferred bool   `json:"preferred,omitempty"`
}

// ServiceSpecFlags holds kind and name of a frontend.
type ServiceSpecFlags struct {
	Type                string `json:"type"` // ClusterIP, NodePort, LoadBalancer, ExternalIPs, HostPort
	Name                string `json:"name,omitempty"`
	Namespace           string `json:"namespace,omitempty"`
	Cluster             string `json:"cluster,omitempty"`
	TrafficPolicy       string `json:"trafficPolicy,omitempty"` // the former name of ExtTrafficPolicy
	ExtTrafficPolicy    string `json:"extTrafficPolicy,omitempty"`
	IntTrafficPolicy    string `json:"intTrafficPolicy,omitempty"`
	NatPolicy           string `json:"natPolicy,omitempty"`
	HealthCheckNodePort uint16 `json:"healthCheckNodePort,omitempty"`
}

// Flushed is the answer to DELETE /v1/flows.
type Flushed struct {
	Entries uint64 `json:"entries"`
}

// BPFMap is a map and, when asked for, its entries (GET /v1/map, GET /v1/map/NAME).
type BPFMap struct {
	Name       string     `json:"name"`
	Path       string     `json:"path,omitempty"` // pin
	Type       string     `json:"type,omitempty"`
	KeySize    int64      `json:"key-size,omitempty"`
	ValueSize  int64      `json:"value-size,omitempty"`
	MaxEntries int64      `json:"max-entries"`
	Entries    int64      `json:"entries"` // -1: not counted
	Cache      []MapEntry `json:"cache,omitempty"`
}

// MapEntry is one entry in readable form. Fields holds the same by field, for -o json.
type MapEntry struct {
	Key    string            `json:"key"`
	Value  string            `json:"value"`
	Fields map[string]string `json:"fields,omitempty"`
}

// TrafficCount is one counter of the datapath, summed over the CPUs.
type TrafficCount struct {
	Reason  string // text of a drop reason; empty for forwarded packets
	Ingress bool
	Packets uint64
	Bytes   uint64
}
