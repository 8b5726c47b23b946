// SPDX-License-Identifier: Apache-2.0

package state

import (
	"net/netip"
	"slices"
)

// Frontend is what clients of a Service connect to.
type Frontend struct {
	Addr     netip.Addr
	Port     uint16
	Protocol string // TCP or UDP
}

// String returns the frontend as address:port/protocol.
func (f Frontend) String() string {
	return netip.AddrPortFrom(f.Addr, f.Port).String() + "/" + f.Protocol
}

// Balance is what stands behind a frontend. The backends are sorted and have the frontend's
// protocol.
type Balance struct {
	// All gets new connections. Empty means: refuse them.
	All []netip.AddrPort
	// Local is the part of All on this node, or what this node has in its place. It is kept only
	// if InternalLocal says that it is used instead of All.
	Local         []netip.AddrPort
	InternalLocal bool
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
	return b.InternalLocal == want.InternalLocal && slices.Equal(b.All, want.All) &&
		slices.Equal(b.Local, want.Local) && slices.Equal(b.Draining, want.Draining)
}
