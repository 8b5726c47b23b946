// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"net"
	"net/netip"

	"lash.internal/lash/agent/state"
)

// Link is the veth pair of an endpoint as the datapath made it.
type Link struct {
	HostName  string
	HostIndex int
	HostMAC   net.HardwareAddr
	// PeerName is the pod's end while it is still in the node's network namespace.
	PeerName string
	PodMAC   net.HardwareAddr
	// MTU is that of both ends, RouteMTU that of the pod's routes to everything but its node.
	MTU      int
	RouteMTU int
}

// Datapath is what the server needs from the kernel side.
type Datapath interface {
	// CreateLink makes a new veth pair, the host end up, the pod's end in the pod's namespace if that
	// can be. An older pair of that name is deleted first.
	CreateLink(ctx context.Context, ep state.Endpoint) (Link, error)
	// HasLink returns the index of an existing host end.
	HasLink(hostName string) (index int, ok bool)
	// Publish returns when the kernel holds everything that follows from the endpoint's row as of
	// revision rev: attachments, map entries, host routes, neighbours.
	Publish(ctx context.Context, ep state.Endpoint, rev state.Revision) error
	// DeleteLink removes a pair and its attachments, a missing one without error. It does not wait
	// for the kernel to finish.
	DeleteLink(ctx context.Context, hostName string) error
}

// Addresses gives out pod addresses.
type Addresses interface {
	Allocate(owner string) (v4, v6 netip.Addr, err error)
	Reserve(owner string, a netip.Addr) error
	// Release takes the addresses of a pod back and does not wait. done is called when nothing of the
	// pod is left that the next one with them could meet.
	Release(done func(), addrs ...netip.Addr)
	Router4() netip.Addr
	Router6() netip.Addr
}

// Identities turns pods into identities.
type Identities interface {
	Labels(pod state.Pod, ns state.Namespace) []string
	Allocate(ctx context.Context, set []string) (state.IdentityID, error)
}

// Objects reads from the API server itself, for when a watch has not brought an object yet.
type Objects interface {
	Pod(ctx context.Context, name state.Name) (state.Pod, bool, error)
	Namespace(ctx context.Context, name string) (state.Namespace, bool, error)
}
