// SPDX-License-Identifier: Apache-2.0

package state

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// IdentityID is a numeric security identity; the reserved numbers are Cilium's.
type IdentityID uint32

// Reserved identities (source: Cilium's identity model).
const (
	IdentityUnknown       IdentityID = 0
	IdentityHost          IdentityID = 1
	IdentityWorld         IdentityID = 2
	IdentityUnmanaged     IdentityID = 3
	IdentityHealth        IdentityID = 4
	IdentityInit          IdentityID = 5
	IdentityRemoteNode    IdentityID = 6
	IdentityKubeAPIServer IdentityID = 7
	IdentityIngress       IdentityID = 8
	IdentityWorldIPv4     IdentityID = 9
	IdentityWorldIPv6     IdentityID = 10
	// IdentityMinimal and IdentityMaximal bound the identities that are allocated to pods.
	IdentityMinimal IdentityID = 256
	IdentityMaximal IdentityID = 65535
)

// Name is a namespaced Kubernetes name.
type Name struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Node is one node of the cluster, the local one included. It joins what the Node and the
// CiliumNode object say.
type Node struct {
	Name   string
	Local  bool
	UID    string
	Labels map[string]string
	// InternalIPs are the node's addresses towards its peers, primary family first.
	InternalIPs []netip.Addr
	// ExternalIPs are further addresses of the node.
	ExternalIPs []netip.Addr
	// RouterIPs are the addresses of cilium_host (CiliumInternalIP): the router's, one a family, then
	// those that it sends with what comes from outside.
	RouterIPs []netip.Addr
	// HealthIPs are the addresses that the node's own health is asked at, at most one a family.
	HealthIPs []netip.Addr
	// PodCIDRs are the ranges that the node gives its pods addresses from.
	PodCIDRs []netip.Prefix
	// Leaving says that the node is about to be deleted, so that load balancers should send nothing
	// new to it.
	Leaving bool
	// BootID changes when the node reboots.
	BootID string
}

// Addr returns the node's first internal address of a family, invalid when it has none.
func (n Node) Addr(v6 bool) netip.Addr {
	for _, a := range n.InternalIPs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// EndpointState is the life cycle of a local endpoint, with Cilium's words.
type EndpointState string

// States of an endpoint.
const (
	EndpointWaitingForIdentity EndpointState = "waiting-for-identity"
	EndpointRestoring          EndpointState = "restoring"
	EndpointRegenerating       EndpointState = "regenerating"
	EndpointReady              EndpointState = "ready"
	EndpointDisconnecting      EndpointState = "disconnecting"
)

// Endpoint is a pod interface of this node, or the one that the node's own health is asked at.
type Endpoint struct {
	ID            uint16 // unique on the node, kept over restarts
	Pod           Name
	PodUID        string
	ContainerID   string // sandbox
	ContainerIf   string // name inside the pod, "eth0"
	IfName        string // host side, lxc<12 hex>
	IfIndex       int
	NetnsCookie   uint64
	NetnsPath     string
	MAC           net.HardwareAddr // inside the pod
	NodeMAC       net.HardwareAddr // host side
	IPv4          netip.Addr
	IPv6          netip.Addr
	Identity      IdentityID
	Labels        []string // sorted "source:key=value" after the identity filter
	NamedPorts    []NamedPort
	State         EndpointState
	CreatedUnixMs int64
}

// IsHealth says that the endpoint is no pod but the one that the node's own health is asked at. Its
// other end is in the node's network namespace.
func (e Endpoint) IsHealth() bool { return e.Identity == IdentityHealth }

// NamedPort is a named container port of a pod.
type NamedPort struct {
	Name     string `json:"name"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"` // TCP, UDP or SCTP
}

// LabelTexts gives labels as people read them: a label without a value is "source:key".
func LabelTexts(labels []string) []string {
	out := make([]string, len(labels))
	for i, l := range labels {
		out[i] = strings.TrimSuffix(l, "=")
	}
	return out
}

// RemoteIP says who an address of another node's pod is. It comes from a CiliumEndpoint.
type RemoteIP struct {
	IP       netip.Addr
	Pod      Name
	NodeIP   netip.Addr // tunnel endpoint
	Identity IdentityID
}

// Identity is a number and the label set that it stands for.
type Identity struct {
	ID     IdentityID `json:"id"`
	Labels []string   `json:"labels"` // sorted "source:key=value"
	// UID and Created are of the CiliumIdentity object; empty for reserved identities.
	UID string `json:"-"`
}

// Pod is a pod of this node as the API server has it.
type Pod struct {
	Name           Name
	UID            string
	Labels         map[string]string
	Annotations    map[string]string
	ServiceAccount string
	HostNetwork    bool
	Phase          string
	IPs            []netip.Addr
	NamedPorts     []NamedPort
	HostPorts      []HostPort
	// Terminating says that the pod has been asked to end; Created is a Unix time in seconds.
	Terminating bool
	Created     int64
}

// HostPort is a container port that is published on the node's own addresses.
type HostPort struct {
	HostIP        netip.Addr // invalid: all
	HostPort      uint16
	ContainerPort uint16
	Protocol      string
}

// Namespace is a namespace and its labels.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// Service is a Kubernetes Service, as far as any feature needs it.
type Service struct {
	Name                 Name
	UID                  string
	Type                 string // ClusterIP, NodePort, LoadBalancer, ExternalName
	Headless             bool
	ClusterIPs           []netip.Addr
	ExternalIPs          []netip.Addr
	LoadBalancerIPs      []netip.Addr
	Ports                []ServicePort
	SessionAffinitySecs  uint32 // 0: none
	ExternalTrafficLocal bool
	InternalTrafficLocal bool
	HealthCheckNodePort  uint16
	// Restricted says that only SourceRanges may use the addresses of the load balancer; they may be
	// empty, of one family or of both.
	Restricted          bool
	SourceRanges        []netip.Prefix
	LoadBalancerClass   string
	PublishNotReady     bool
	TrafficDistribution string
	ProxyName           string            // label service.kubernetes.io/service-proxy-name
	Annotations         map[string]string // those with one of ServiceAnnotations, nil for none
	Created             int64             // Unix time in seconds
	// Notice is what a condition of the object says of wishes that are not met.
	Notice string
}

// ServiceAnnotations are the prefixes of the annotations that Cilium gives a meaning on Services.
var ServiceAnnotations = []string{"service.cilium.io/", "io.cilium/", "lbipam.cilium.io/"}

// ServicePort is one port of a Service.
type ServicePort struct {
	Name     string
	Protocol string // TCP, UDP or SCTP
	Port     uint16
	NodePort uint16
	// TargetPort is the pods' port, 0 where they know it by a name.
	TargetPort uint16
}

// EndpointSlice is one slice of a Service's backends.
type EndpointSlice struct {
	Name      Name
	Service   Name // from the label kubernetes.io/service-name
	IPv6      bool
	Ports     []SlicePort
	Endpoints []SliceEndpoint
}

// SlicePort is a port of a slice, joined to the Service port by Name.
type SlicePort struct {
	Name     string
	Protocol string
	Port     uint16
}

// SliceEndpoint is one backend address set with its conditions.
type SliceEndpoint struct {
	Addresses   []netip.Addr
	Ready       bool
	Serving     bool
	Terminating bool
	NodeName    string
	Zone        string
	ForZones    []string
	ForNodes    []string
}

// Device is a network device of this node that carries cluster or outside traffic.
type Device struct {
	Name  string
	Index int
	MAC   net.HardwareAddr
	MTU   int
	Addrs []netip.Prefix
	// L3 is set for devices without Ethernet header.
	L3 bool
	// DirectRouting marks the device that carries the node's own address.
	DirectRouting bool
}

// Names of the devices that Lash makes for the node.
const (
	HostDevice  = "cilium_host"
	NetDevice   = "cilium_net"
	VXLANDevice = "cilium_vxlan"
	// HealthDevice is the host side of the health endpoint, HealthPeer its other end.
	HealthDevice = "lxc_health"
	HealthPeer   = "cilium_health"
)

// OwnDevice is a device that Lash has made for the node, one of those above.
type OwnDevice struct {
	Name  string
	Index int // changes when the device is made again
	MAC   [6]byte
}

// Tunnel is a tunnel endpoint of another node and the number that programs know it by.
type Tunnel struct {
	IP    netip.Addr // of the node, in the family of the underlay
	Index uint32     // at least 1
}

// Route is where packets to a prefix go. The zero Index makes the prefix unreachable, which keeps
// packets to pods that do not exist from leaving by the default route.
type Route struct {
	Index int        // interface
	Via   netip.Addr // next hop; invalid: the destination is on the link
	Src   netip.Addr // preferred source of the node's own packets
	MTU   int        // bytes, 0: that of the interface
}

// NeighbourKey is an address on a pod's device.
type NeighbourKey struct {
	Index int // interface
	IP    netip.Addr
}

// Tables is the data model of the node program: every table there is.
type Tables struct {
	DB             *DB
	Nodes          *Table[string, Node]
	Endpoints      *Table[uint16, Endpoint]
	RemoteIPs      *Table[netip.Addr, RemoteIP]
	Identities     *Table[IdentityID, Identity]
	Pods           *Table[Name, Pod] // of this node
	Namespaces     *Table[string, Namespace]
	Services       *Table[Name, Service]
	EndpointSlices *Table[Name, EndpointSlice]
	Devices        *Table[string, Device]
	OwnDevices     *Table[string, OwnDevice]
	Tunnels        *Table[netip.Addr, Tunnel]
}

// NewTables creates the empty tables.
func NewTables() *Tables {
	db := New()
	return &Tables{
		DB: db,
		Nodes: NewTable(db, "nodes", func(r Node) string { return r.Name },
			Index[Node]{Name: "ip", Of: func(r Node) []string { return addrKeys(r.Addrs()...) }},
			Index[Node]{Name: "healthip", Of: func(r Node) []string { return addrKeys(r.HealthIPs...) }},
			Index[Node]{Name: "podcidr", Of: func(r Node) []string { return prefixKeys(r.PodCIDRs) }}),
		Endpoints: NewTable(db, "endpoints", func(r Endpoint) uint16 { return r.ID },
			Index[Endpoint]{Name: "pod", Of: func(r Endpoint) []string { return []string{r.Pod.String()} }},
			Index[Endpoint]{Name: "ip", Of: func(r Endpoint) []string { return addrKeys(r.IPv4, r.IPv6) }},
			Index[Endpoint]{Name: "ifindex", Of: func(r Endpoint) []string { return []string{strconv.Itoa(r.IfIndex)} }},
			Index[Endpoint]{Name: "container", Of: func(r Endpoint) []string { return []string{r.ContainerID} }}),
		RemoteIPs: NewTable(db, "remote-ips", func(r RemoteIP) netip.Addr { return r.IP },
			Index[RemoteIP]{Name: "node", Of: func(r RemoteIP) []string { return addrKeys(r.NodeIP) }},
			Index[RemoteIP]{Name: "pod", Of: func(r RemoteIP) []string { return []string{r.Pod.String()} }}),
		Identities: NewTable(db, "identities", func(r Identity) IdentityID { return r.ID },
			Index[Identity]{Name: "labels", Of: func(r Identity) []string { return []string{LabelsKey(r.Labels)} }}),
		Pods: NewTable(db, "pods", func(r Pod) Name { return r.Name },
			Index[Pod]{Name: "hostport", Of: hostPortKeys}),
		Namespaces: NewTable(db, "namespaces", func(r Namespace) string { return r.Name }),
		Services: NewTable(db, "services", func(r Service) Name { return r.Name },
			Index[Service]{Name: "ip", Of: func(r Service) []string { return addrKeys(r.ClusterIPs...) }},
			Index[Service]{Name: "externalip", Of: func(r Service) []string { return addrKeys(r.OutsideIPs()...) }},
			Index[Service]{Name: "outside", Of: outsideKeys},
			Index[Service]{Name: "healthport", Of: healthPortKeys}),
		EndpointSlices: NewTable(db, "endpointslices", func(r EndpointSlice) Name { return r.Name },
			Index[EndpointSlice]{Name: "service", Of: func(r EndpointSlice) []string { return []string{r.Service.String()} }}),
		Devices: NewTable(db, "devices", func(r Device) string { return r.Name },
			Index[Device]{Name: "ip", Of: func(r Device) []string { return prefixAddrs(r.Addrs) }},
			Index[Device]{Name: "ifindex", Of: func(r Device) []string { return []string{strconv.Itoa(r.Index)} }}),
		OwnDevices: NewTable(db, "own-devices", func(r OwnDevice) string { return r.Name }),
		Tunnels: NewTable(db, "tunnels", func(r Tunnel) netip.Addr { return r.IP },
			Index[Tunnel]{Name: "index", Of: func(r Tunnel) []string { return []string{strconv.Itoa(int(r.Index))} }}),
	}
}

// OutsideIPs are the addresses of the Service that are not ClusterIPs, each once.
func (s Service) OutsideIPs() []netip.Addr {
	if len(s.ExternalIPs) == 0 && len(s.LoadBalancerIPs) == 0 {
		return nil
	}
	all := slices.Concat(s.ExternalIPs, s.LoadBalancerIPs)
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// outsideKeys are the frontends of a Service that others may claim too: its NodePorts, by
// PortKey, and each port of its OutsideIPs, by Frontend.String.
func outsideKeys(s Service) []string {
	var out []string
	for _, p := range s.Ports {
		if p.NodePort != 0 {
			out = append(out, PortKey(p.NodePort, p.Protocol))
		}
		for _, a := range s.OutsideIPs() {
			out = append(out, Frontend{Addr: a, Port: p.Port, Protocol: p.Protocol}.String())
		}
	}
	return out
}

func healthPortKeys(s Service) []string {
	if s.HealthCheckNodePort == 0 {
		return nil
	}
	return []string{strconv.Itoa(int(s.HealthCheckNodePort))}
}

func hostPortKeys(p Pod) []string {
	var out []string
	for _, h := range p.HostPorts {
		out = append(out, PortKey(h.HostPort, h.Protocol))
	}
	return out
}

// PortKey is the one string that stands for a port and protocol.
func PortKey(port uint16, protocol string) string { return strconv.Itoa(int(port)) + "/" + protocol }

// LabelsKey is the one string that stands for a sorted label set.
func LabelsKey(labels []string) string { return strings.Join(labels, ";") }

// Addrs are all addresses of the node itself: internal, external and router addresses.
func (n Node) Addrs() []netip.Addr {
	return slices.Concat(n.InternalIPs, n.ExternalIPs, n.RouterIPs)
}

func prefixKeys(prefixes []netip.Prefix) []string {
	out := make([]string, 0, len(prefixes))
	for _, p := range prefixes {
		out = append(out, p.Masked().String())
	}
	return out
}

func prefixAddrs(prefixes []netip.Prefix) []string {
	out := make([]string, 0, len(prefixes))
	for _, p := range prefixes {
		out = append(out, p.Addr().String())
	}
	return out
}

func addrKeys(addrs ...netip.Addr) []string {
	out := make([]string, 0, len(addrs))
	for _, a := range addrs {
		if a.IsValid() {
			out = append(out, a.String())
		}
	}
	return slices.Clip(out)
}
