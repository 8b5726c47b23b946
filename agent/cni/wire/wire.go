// SPDX-License-Identifier: Apache-2.0

// Package wire is what the CNI plugin and the agent say to each other over the agent's socket.
// It imports the standard library only: the plugin is started for every pod and must be small.
package wire

import "net/netip"

// Paths under the agent's socket; all take POST with a JSON body.
const (
	PathAdd    = "/v1/cni/add"
	PathReady  = "/v1/cni/ready"
	PathDel    = "/v1/cni/del"
	PathCheck  = "/v1/cni/check"
	PathStatus = "/v1/cni/status"
	PathGC     = "/v1/cni/gc"
)

// Where the two sides meet.
const (
	Socket   = "/var/run/cilium/cilium.sock"
	QueueDir = "/var/run/cilium/deleteQueue"
	// QueueSuffix ends the names of complete files of the queue.
	QueueSuffix = ".delete"
)

// Error codes of the CNI specification 1.1 in use here, and our own from 100 up.
const (
	CodeBadConfig    = 7
	CodeTryAgain     = 11
	CodeUnavailable  = 50 // cannot serve ADD
	CodeLimited      = 51 // cannot serve ADD, and existing pods may have limited connectivity
	CodeUnknown      = 100
	CodePool         = 101 // no free address
	CodeBrokenAttach = 102 // CHECK found a difference
)

// Attachment names one interface of one sandbox.
type Attachment struct {
	ContainerID  string `json:"containerID"`
	IfName       string `json:"ifName"`
	Netns        string `json:"netns,omitempty"`
	NetnsCookie  uint64 `json:"netnsCookie,omitempty"`
	PodNamespace string `json:"podNamespace,omitempty"`
	PodName      string `json:"podName,omitempty"`
	PodUID       string `json:"podUID,omitempty"`
}

// Interface is the answer to add and check: what the plugin configures inside the pod.
type Interface struct {
	EndpointID uint16 `json:"endpointID"`
	// HostName stays on the node, PeerName goes into the pod and becomes Attachment.IfName.
	HostName  string    `json:"hostName"`
	HostMAC   string    `json:"hostMAC"`
	PeerName  string    `json:"peerName"`
	PodMAC    string    `json:"podMAC"`
	MTU       int       `json:"mtu"`
	RouteMTU  int       `json:"routeMTU"`
	Addresses []Address `json:"addresses"`
}

// Address is one address of the pod and the router that it reaches everything through.
type Address struct {
	IP      netip.Addr `json:"ip"`
	Gateway netip.Addr `json:"gateway"`
}

// GCRequest lists what is to stay.
type GCRequest struct {
	Valid []Attachment `json:"valid"`
}

// Error is the body of every answer that is not 200.
type Error struct {
	Code    uint   `json:"code"`
	Message string `json:"message"`
	Details string `json:"details,omitempty"`
	// Wait says that the plugin itself may ask again in a moment.
	Wait bool `json:"wait,omitempty"`
}

func (e *Error) Error() string { return e.Message }
