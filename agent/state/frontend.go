// SPDX-License-Identifier: Apache-2.0

package state

import (
	"cmp"
	"net/netip"
	"slices"
)

// Frontend is where a Service port is reached. The unspecified address of a family stands for the
// addresses of a node on which NodePorts are open.
type Frontend struct {
	Addr     netip.Addr
	Port     uint16
	Protocol string // TCP, UDP or SCTP
}

// String returns the frontend as address:port/protocol.
func (f Frontend) String() string {
	return netip.AddrPortFrom(f.Addr, f.Port).String() + "/" + f.Protocol
}

// Compare orders frontends by address, port and protocol.
func (f Frontend) Compare(other Frontend) int {
	return cmp.Or(f.Addr.Compare(other.Addr), cmp.Compare(f.Port, other.Port), cmp.Compare(f.Protocol, other.Protocol))
}

// FrontType says what makes a frontend exist, with Cilium's words for them.
type FrontType string

// Types of a frontend.
const (
	FrontClusterIP    FrontType = "ClusterIP"
	FrontNodePort     FrontType = "NodePort"
	FrontExternalIP   FrontType = "ExternalIPs"
	FrontLoadBalancer FrontType = "LoadBalancer"
	FrontHostPort     FrontType = "HostPort"
)

// Front is a frontend with what it says to programs.
type Front struct {
	Frontend
	Type FrontType
	// Outside says that callers outside the cluster may use it.
	Outside bool
	// Sources says that only callers in Balance.SourceRanges may use it.
	Sources bool
}

// Balance is what stands behind the frontends of one Service port, of one family. The loop knows it by
// one of them, its primary frontend: the ClusterIP, or the only one of a HostPort. The backends are
// sorted and have the frontends' protocol.
type Balance struct {
	// Type is that of the primary frontend.
	Type FrontType
	// Fronts are the other frontends, sorted by Frontend.Compare.
	Fronts []Front
	// All gets new connections. Empty means: refuse them.
	All []netip.AddrPort
	// Local is the part of All on this node, or what this node has in its place. It is kept only
	// if one of the policies, or another node that sends packets on as they came (DSR), uses it.
	Local []netip.AddrPort
	// InternalLocal and ExternalLocal say that callers inside or outside get Local instead of All.
	InternalLocal, ExternalLocal bool
	// AffinitySecs is how long a client keeps its backend; 0: it does not.
	AffinitySecs uint32
	// SourceRanges are who may use the frontends with Sources, masked, sorted, of the family only.
	SourceRanges []netip.Prefix
	// Draining keep the connections that they have and get no new ones.
	Draining []netip.AddrPort
	// KeepLast says that an empty All is not believed as long as there were backends before.
	KeepLast bool
	// Damaged is never wanted: what is there cannot be read and has to be written anew.
	Damaged bool
}

// Satisfies says whether b is what want asks for.
func (b Balance) Satisfies(want Balance) bool {
	if b.Damaged != want.Damaged {
		return false
	}
	if want.KeepLast && len(want.All) == 0 && len(b.All) > 0 {
		return true
	}
	return b.Type == want.Type && slices.Equal(b.Fronts, want.Fronts) &&
		b.InternalLocal == want.InternalLocal && b.ExternalLocal == want.ExternalLocal &&
		b.AffinitySecs == want.AffinitySecs && slices.Equal(b.SourceRanges, want.SourceRanges) &&
		slices.Equal(b.All, want.All) && slices.Equal(b.Local, want.Local) && slices.Equal(b.Draining, want.Draining)
}

// HealthCheck is what a node answers to a load balancer that asks for a Service.
type HealthCheck struct {
	Service Name
	// LocalEndpoints are the addresses on this node that are ready.
	LocalEndpoints int
}
