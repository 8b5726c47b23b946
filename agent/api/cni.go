// SPDX-License-Identifier: Apache-2.0

package api

// Paths of the CNI part of the agent's API; all are POST with a CNIRequest.
const (
	CNIAddPath    = "/v1/cni/add"
	CNIReadyPath  = "/v1/cni/ready"
	CNIDelPath    = "/v1/cni/del"
	CNICheckPath  = "/v1/cni/check"
	CNIStatusPath = "/v1/cni/status"
	CNIGCPath     = "/v1/cni/gc"
)

// CNIRequest is what the CNI plugin asks of the agent. Each verb uses the fields that it needs.
type CNIRequest struct {
	ContainerID  string `json:"containerID,omitempty"`
	Netns        string `json:"netns,omitempty"` // path on the host
	IfName       string `json:"ifName,omitempty"`
	PodNamespace string `json:"podNamespace,omitempty"`
	PodName      string `json:"podName,omitempty"`
	PodUID       string `json:"podUID,omitempty"`
	// NetnsCookie is SO_NETNS_COOKIE read inside the pod's namespace.
	NetnsCookie uint64 `json:"netnsCookie,omitempty"`
	// Attachments are the attachments that GC must keep.
	Attachments []CNIAttachment `json:"attachments,omitempty"`
}

// CNIAttachment names one interface of one sandbox.
type CNIAttachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// CNIAddResponse tells the plugin what to set up inside the pod's namespace. The host side is
// done already, programs included.
type CNIAddResponse struct {
	EndpointID uint16 `json:"endpointID"`
	// HostIf is the host's end of the pair; PeerIf the other end, to be moved and renamed.
	HostIf  string `json:"hostIf"`
	PeerIf  string `json:"peerIf"`
	HostMAC string `json:"hostMAC"`
	PodMAC  string `json:"podMAC"`
	// MTU of the pod's device and of its default route, in bytes.
	MTU      int `json:"mtu"`
	RouteMTU int `json:"routeMTU"`
	// RouteMTU6 is the route MTU of IPv6; 0 means RouteMTU.
	RouteMTU6 int         `json:"routeMTU6,omitempty"`
	IPs       []CNIPodIP  `json:"ips"`
	Routes    []CNIRoutes `json:"routes,omitempty"`
}

// CNIPodIP is an address of the pod and its next hop.
type CNIPodIP struct {
	Address string `json:"address"` // CIDR form with a full-length prefix
	Gateway string `json:"gateway"` // router address of the node
}

// CNIRoutes is a route inside the pod besides the default route.
type CNIRoutes struct {
	Dst string `json:"dst"`
	Via string `json:"via,omitempty"`
}

// CNI error codes of the specification that the agent answers with.
const (
	CNICodeUnknownContainer = 3
	CNICodeInvalidNetns     = 4
	CNICodeTryAgainLater    = 11
	CNICodeNotAvailable     = 50
	CNICodeInternal         = 999
)

// CNIError is the body of a failed CNI call.
type CNIError struct {
	Code    int    `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
}

func (e *CNIError) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}
