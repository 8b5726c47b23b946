// SPDX-License-Identifier: Apache-2.0

package api

import "time"

// States of a component.
const (
	StateOk       = "Ok"
	StateWarning  = "Warning"
	StateFailure  = "Failure"
	StateDisabled = "Disabled"
)

// StatusResponse is the agent's account of itself (GET /v1/healthz). A component that the agent
// does not have is nil, not an empty value.
type StatusResponse struct {
	Attachments           *AttachmentStatus     `json:"attachments,omitempty"`
	AttachMode            string                `json:"attach-mode,omitempty"`
	BandwidthManager      *BandwidthManager     `json:"bandwidth-manager,omitempty"`
	BPFMaps               *BPFMapStatus         `json:"bpf-maps,omitempty"`
	Cilium                *Status               `json:"cilium,omitempty"`
	ClientID              int64                 `json:"client-id,omitempty"`
	ClockSource           *ClockSource          `json:"clock-source,omitempty"`
	Cluster               *ClusterStatus        `json:"cluster,omitempty"`
	ClusterMesh           *ClusterMeshStatus    `json:"cluster-mesh,omitempty"`
	CNIChaining           *CNIChainingStatus    `json:"cni-chaining,omitempty"`
	CNIFile               *Status               `json:"cni-file,omitempty"`
	ContainerRuntime      *Status               `json:"container-runtime,omitempty"`
	Controllers           []Controller          `json:"controllers,omitempty"`
	Datapath              *DatapathStatus       `json:"datapath,omitempty"`
	DatapathMode          string                `json:"datapath-mode,omitempty"`
	DatapathProbe         *Status               `json:"datapath-probe,omitempty"`
	ConfiguredMode        string                `json:"configured-datapath-mode,omitempty"`
	Encryption            *EncryptionStatus     `json:"encryption,omitempty"`
	HostFirewall          *HostFirewall         `json:"host-firewall,omitempty"`
	Hubble                *HubbleStatus         `json:"hubble,omitempty"`
	IdentityRange         *IdentityRange        `json:"identity-range,omitempty"`
	IPAM                  *IPAMStatus           `json:"ipam,omitempty"`
	IPv4BigTCP            *BigTCP               `json:"ipv4-big-tcp,omitempty"`
	IPv6BigTCP            *BigTCP               `json:"ipv6-big-tcp,omitempty"`
	KubeProxyReplacement  *KubeProxyReplacement `json:"kube-proxy-replacement,omitempty"`
	Kubernetes            *K8sStatus            `json:"kubernetes,omitempty"`
	Kvstore               *Status               `json:"kvstore,omitempty"`
	Masquerading          *Masquerading         `json:"masquerading,omitempty"`
	NodeMonitor           *MonitorStatus        `json:"nodeMonitor,omitempty"`
	Routing               *Routing              `json:"routing,omitempty"`
	SRv6                  *SRv6                 `json:"srv6,omitempty"`
	Stale                 map[string]time.Time  `json:"stale,omitempty"`
	NetworkPolicyWarnings []string              `json:"network-policy-warnings,omitempty"`
}

// AttachmentStatus says which programs are attached to the node.
type AttachmentStatus struct {
	// Generation names the set of programs in use. Adopted says that the agent found them in the
	// kernel when it started, and did not load them.
	Generation string `json:"generation"`
	Adopted    bool   `json:"adopted"`
	// Devices and Sockets count hooks with a program of the agent, Behind those of devices that
	// still have one of another generation, Foreign programs of others on the same hooks.
	Devices int `json:"devices"`
	Sockets int `json:"sockets"`
	Behind  int `json:"behind"`
	Foreign int `json:"foreign"`
	// Repairs counts hooks that had lost their program and got it back, DeviceRepairs the times
	// that one of the node's devices had to be made right, since the agent started.
	Repairs       uint64    `json:"repairs"`
	DeviceRepairs uint64    `json:"device-repairs"`
	LastAudit     time.Time `json:"last-audit,omitzero"`
}

// NodeReport is the agent's status together with the endpoints of its node: what a client wants
// that pays for each question.
type NodeReport struct {
	StatusResponse
	Endpoints []Endpoint `json:"endpoints"`
}

// Status is the state of one component with a message.
type Status struct {
	State string `json:"state"`
	Msg   string `json:"msg,omitempty"`
}

// K8sStatus is the connection to the API server.
type K8sStatus struct {
	State       string   `json:"state"`
	Msg         string   `json:"msg,omitempty"`
	APIVersions []string `json:"k8s-api-versions,omitempty"`
}

// BandwidthManager says whether pod bandwidth is limited.
type BandwidthManager struct {
	Enabled           bool     `json:"enabled"`
	CongestionControl string   `json:"congestionControl,omitempty"`
	Devices           []string `json:"devices,omitempty"`
}

// BPFMapStatus lists the maps and their sizes.
type BPFMapStatus struct {
	DynamicSizeRatio float64      `json:"dynamic-size-ratio"`
	Maps             []BPFMapSize `json:"maps"`
}

// BPFMapSize is the capacity of one map and how many entries it holds.
type BPFMapSize struct {
	Name    string `json:"name"`
	Size    int64  `json:"size"`
	Entries int64  `json:"entries"` // -1: not counted
	Type    string `json:"type,omitempty"`
}

// Fill is the share of the map that is in use, from 0 to 1; ok is false where that says nothing:
// entries are not counted, or old ones make room for new ones.
func (m BPFMapSize) Fill() (share float64, ok bool) {
	if m.Entries < 0 || m.Size <= 0 || m.Type == "LRUHash" {
		return 0, false
	}
	return float64(m.Entries) / float64(m.Size), true
}

// DatapathStatus is what the agent has in the kernel, read from the kernel.
type DatapathStatus struct {
	MTU         *MTUStatus   `json:"mtu,omitempty"`
	Attachments []Attachment `json:"attachments"`
	Drops       []DropCount  `json:"drops"`
}

// MTUStatus is the largest packet, in bytes, between nodes and of a pod.
type MTUStatus struct {
	Underlay int `json:"underlay"`
	Pod      int `json:"pod"`
}

// States of an attachment.
const (
	AttachmentOK      = "ok"
	AttachmentBehind  = "behind" // the program is there, of another generation
	AttachmentMissing = "missing"
	AttachmentUnknown = "unknown"
)

// Attachment is one hook, the program that belongs there, and whether it is there.
type Attachment struct {
	Device    string `json:"device"`          // or the cgroup's path
	Direction string `json:"direction"`       // ingress, egress, socket
	Owner     string `json:"owner,omitempty"` // pod, namespace/name; empty for the node
	Program   string `json:"program"`
	State     string `json:"state"`
	Error     string `json:"error,omitempty"` // why the state is not ok
	// Others are further programs on the hook, in the order in which they run.
	Others []string `json:"others,omitempty"`
}

// DropCount counts the packets that were dropped for one reason.
type DropCount struct {
	Reason    string `json:"reason"`
	Direction string `json:"direction"` // ingress, egress
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"`
}

// ClockSource is the clock that programs use: "ktime" or "jiffies".
type ClockSource struct {
	Mode  string `json:"mode"`
	Hertz int64  `json:"hertz,omitempty"`
}

// ClusterStatus lists the nodes that the agent knows.
type ClusterStatus struct {
	CiliumHealth *Status `json:"ciliumHealth,omitempty"`
	Nodes        []Node  `json:"nodes,omitempty"`
	Self         string  `json:"self,omitempty"`
}

// Node is one node of the cluster.
type Node struct {
	Name               string          `json:"name"` // cluster/node
	PrimaryAddress     *NodeAddressing `json:"primary-address,omitempty"`
	HealthEndpoint     *NodeAddressing `json:"health-endpoint-address,omitempty"`
	SecondaryAddresses []NodeAddress   `json:"secondary-addresses,omitempty"`
	Source             string          `json:"source,omitempty"`
}

// NodeAddressing holds one address a family.
type NodeAddressing struct {
	IPv4 *NodeAddress `json:"ipv4,omitempty"`
	IPv6 *NodeAddress `json:"ipv6,omitempty"`
}

// NodeAddress is an address of a node and the range that its pods get addresses from.
type NodeAddress struct {
	Enabled     bool   `json:"enabled"`
	IP          string `json:"ip,omitempty"`
	AllocRange  string `json:"alloc-range,omitempty"`
	AddressType string `json:"address-type,omitempty"`
}

// ClusterMeshStatus lists connected clusters.
type ClusterMeshStatus struct {
	Clusters []string `json:"clusters"`
}

// CNIChainingStatus is "none" unless another plugin comes first.
type CNIChainingStatus struct {
	Mode string `json:"mode"`
}

// Controller is one background loop of the agent.
type Controller struct {
	Name          string                   `json:"name"`
	UUID          string                   `json:"uuid,omitempty"`
	Configuration *ControllerConfiguration `json:"configuration,omitempty"`
	Status        ControllerStatus         `json:"status"`
}

// ControllerConfiguration says how a controller is retried.
type ControllerConfiguration struct {
	ErrorRetry     bool   `json:"error-retry"`
	ErrorRetryBase string `json:"error-retry-base,omitempty"` // Go duration
	Interval       string `json:"interval,omitempty"`         // Go duration
}

// ControllerStatus counts a controller's runs.
type ControllerStatus struct {
	ConsecutiveFailureCount int64     `json:"consecutive-failure-count"`
	FailureCount            int64     `json:"failure-count"`
	SuccessCount            int64     `json:"success-count"`
	LastFailureMsg          string    `json:"last-failure-msg,omitempty"`
	LastFailureTimestamp    time.Time `json:"last-failure-timestamp,omitzero"`
	LastSuccessTimestamp    time.Time `json:"last-success-timestamp,omitzero"`
	// Entries is the number of things that the loop keeps; Pending those that it has yet to write.
	Entries int64 `json:"entries,omitempty"`
	Pending int64 `json:"pending,omitempty"`
}

// EncryptionStatus is the encryption between nodes.
type EncryptionStatus struct {
	Mode string `json:"mode"` // Disabled, IPsec, Wireguard
	Msg  string `json:"msg,omitempty"`
}

// HostFirewall says whether policies act on the node itself.
type HostFirewall struct {
	Mode    string   `json:"mode"` // Disabled, Enabled
	Devices []string `json:"devices,omitempty"`
}

// HubbleStatus is the state of flow observation.
type HubbleStatus struct {
	State string `json:"state"`
	Msg   string `json:"msg,omitempty"`
}

// IdentityRange bounds the identities that are given to pods.
type IdentityRange struct {
	MinIdentity int64 `json:"min-identity"`
	MaxIdentity int64 `json:"max-identity"`
}

// IPAMStatus lists the addresses in use.
type IPAMStatus struct {
	Status      string            `json:"status,omitempty"`
	Allocations map[string]string `json:"allocations,omitempty"` // address -> owner
	IPv4        []string          `json:"ipv4,omitempty"`
	IPv6        []string          `json:"ipv6,omitempty"`
}

// BigTCP is the state of jumbo segments of one family.
type BigTCP struct {
	Enabled bool  `json:"enabled"`
	MaxGRO  int64 `json:"maxGRO,omitempty"`
	MaxGSO  int64 `json:"maxGSO,omitempty"`
}

// KubeProxyReplacement describes the service part.
type KubeProxyReplacement struct {
	Mode                string       `json:"mode"` // True, False
	Devices             []string     `json:"devices,omitempty"`
	DeviceList          []KPRDevice  `json:"deviceList,omitempty"`
	DirectRoutingDevice string       `json:"directRoutingDevice,omitempty"`
	Features            *KPRFeatures `json:"features,omitempty"`
}

// KPRDevice is a device that Services are reachable on.
type KPRDevice struct {
	Name string   `json:"name"`
	IP   []string `json:"ip"`
}

// KPRFeatures lists what the service part does. NodePort is never nil: clients rely on it.
type KPRFeatures struct {
	Annotations           []string                  `json:"annotations"`
	BPFSocketLBHostnsOnly bool                      `json:"bpfSocketLBHostnsOnly"`
	ClusterIP             *EnabledFeature           `json:"clusterIP,omitempty"`
	ExternalIPs           EnabledFeature            `json:"externalIPs"`
	GracefulTermination   EnabledFeature            `json:"gracefulTermination"`
	HostPort              EnabledFeature            `json:"hostPort"`
	HostReachableServices HostReachableServices     `json:"hostReachableServices"`
	LoadBalancer          EnabledFeature            `json:"loadBalancer"`
	NAT46X64              NAT46X64Feature           `json:"nat46X64"`
	NodePort              NodePortFeature           `json:"nodePort"`
	SessionAffinity       EnabledFeature            `json:"sessionAffinity"`
	SocketLB              EnabledFeature            `json:"socketLB"`
	SocketLBTracing       EnabledFeature            `json:"socketLBTracing"`
	Extra                 map[string]EnabledFeature `json:"extra,omitempty"`
}

// EnabledFeature is a feature that is on or off.
type EnabledFeature struct {
	Enabled bool `json:"enabled"`
}

// HostReachableServices lists the protocols of the socket hooks.
type HostReachableServices struct {
	Enabled   bool     `json:"enabled"`
	Protocols []string `json:"protocols,omitempty"`
}

// NAT46X64Feature is translation between the families.
type NAT46X64Feature struct {
	Enabled bool           `json:"enabled"`
	Service EnabledFeature `json:"service"`
	Gateway EnabledFeature `json:"gateway"`
}

// NodePortFeature describes NodePort Services.
type NodePortFeature struct {
	Enabled      bool   `json:"enabled"`
	Mode         string `json:"mode,omitempty"`      // SNAT, DSR, Hybrid
	Algorithm    string `json:"algorithm,omitempty"` // Random, Maglev
	Acceleration string `json:"acceleration,omitempty"`
	DSRMode      string `json:"dsrMode,omitempty"`
	LutSize      int64  `json:"lutSize,omitempty"`
	PortMin      int64  `json:"portMin,omitempty"`
	PortMax      int64  `json:"portMax,omitempty"`
}

// Masquerading says whose addresses are hidden behind the node's.
type Masquerading struct {
	Enabled             bool                   `json:"enabled"`
	Mode                string                 `json:"mode,omitempty"` // BPF, iptables
	EnabledProtocols    *MasqueradingProtocols `json:"enabledProtocols,omitempty"`
	IPMasqAgent         bool                   `json:"ip-masq-agent"`
	SnatExclusionCIDR   string                 `json:"snat-exclusion-cidr,omitempty"`
	SnatExclusionCIDRv4 string                 `json:"snat-exclusion-cidr-v4,omitempty"`
	SnatExclusionCIDRv6 string                 `json:"snat-exclusion-cidr-v6,omitempty"`
	Devices             []string               `json:"devices,omitempty"`
}

// MasqueradingProtocols holds one switch a family.
type MasqueradingProtocols struct {
	IPv4 bool `json:"ipv4"`
	IPv6 bool `json:"ipv6"`
}

// MonitorStatus describes the ring that events come through.
type MonitorStatus struct {
	CPUs     int64 `json:"cpus"`
	NPages   int64 `json:"npages"`
	PageSize int64 `json:"pagesize"` // bytes
	Lost     int64 `json:"lost"`
	Unknown  int64 `json:"unknown"`
}

// Routing says how packets travel between nodes and inside one.
type Routing struct {
	InterHost      string `json:"inter-host-routing-mode"` // Native, Tunnel
	IntraHost      string `json:"intra-host-routing-mode"` // BPF, Legacy
	TunnelProtocol string `json:"tunnel-protocol,omitempty"`
}

// SRv6 is the state of segment routing.
type SRv6 struct {
	Enabled bool `json:"enabled"`
}
