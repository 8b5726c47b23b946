// SPDX-License-Identifier: Apache-2.0

package netlink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	nl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/state"
)

// Routes is the Target of the routes in the main table that carry RouteProtocol.
type Routes struct{}

// Load reads the routes that are ours.
func (Routes) Load(context.Context) (map[netip.Prefix]state.Route, error) {
	list, err := ownRoutes()
	if err != nil {
		return nil, err
	}
	out := map[netip.Prefix]state.Route{}
	for _, r := range list {
		if dst, ok := fromIPNet(r.Dst); ok {
			v := state.Route{Index: r.LinkIndex, Via: fromIP(r.Gw), Src: fromIP(r.Src), MTU: r.MTU}
			if r.Type == unix.RTN_UNREACHABLE {
				v.Index = 0
			}
			out[dst] = v
		}
	}
	return out, nil
}

func ownRoutes() ([]nl.Route, error) {
	var out []nl.Route
	for _, family := range []int{nl.FAMILY_V4, nl.FAMILY_V6} {
		list, err := nl.RouteListFiltered(family, &nl.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_MAIN},
			nl.RT_FILTER_PROTOCOL|nl.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		out = append(out, list...)
	}
	return out, nil
}

// HealthAddrs returns the addresses that have a route of ours to lxc_health, none if there is no such
// device.
func HealthAddrs() ([]netip.Addr, error) {
	index, ok := Index(HealthDevice)
	if !ok {
		return nil, nil
	}
	list, err := ownRoutes()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, r := range list {
		if dst, ok := fromIPNet(r.Dst); ok && r.LinkIndex == index && dst.IsSingleIP() {
			out = append(out, dst.Addr())
		}
	}
	return out, nil
}

func toRoute(dst netip.Prefix, v state.Route) *nl.Route {
	r := &nl.Route{Dst: toIPNet(dst), Protocol: RouteProtocol, Table: unix.RT_TABLE_MAIN, LinkIndex: v.Index, MTU: v.MTU}
	switch {
	case v.Index == 0:
		r.Type = unix.RTN_UNREACHABLE
	case v.Via.IsValid():
		r.Gw = v.Via.AsSlice()
	case dst.Addr().Is4():
		r.Scope = nl.SCOPE_LINK
	}
	if v.Src.IsValid() {
		r.Src = v.Src.AsSlice()
	}
	return r
}

// Set adds or replaces the route to dst.
func (Routes) Set(_ context.Context, dst netip.Prefix, v state.Route) error {
	if err := nl.RouteReplace(toRoute(dst, v)); err != nil {
		return fmt.Errorf("route %s: %w", dst, err)
	}
	// The kernel keeps an IPv6 route over another interface beside the new one.
	if dst.Addr().Is4() {
		return nil
	}
	list, err := nl.RouteListFiltered(nl.FAMILY_V6, &nl.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_MAIN, Dst: toIPNet(dst)},
		nl.RT_FILTER_PROTOCOL|nl.RT_FILTER_TABLE|nl.RT_FILTER_DST)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range list {
		unreachable := r.Type == unix.RTN_UNREACHABLE
		if unreachable == (v.Index == 0) && (unreachable || (r.LinkIndex == v.Index && fromIP(r.Gw) == v.Via)) {
			continue
		}
		if err := nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove old route %s: %w", dst, err)
		}
	}
	return nil
}

// Delete removes our route to dst.
func (Routes) Delete(_ context.Context, dst netip.Prefix) error {
	r := &nl.Route{Dst: toIPNet(dst), Protocol: RouteProtocol, Table: unix.RT_TABLE_MAIN}
	for range 4 { // IPv6 may hold several to one prefix
		if err := nl.RouteDel(r); errors.Is(err, unix.ESRCH) {
			return nil
		} else if err != nil {
			return fmt.Errorf("remove route %s: %w", dst, err)
		}
	}
	return nil
}

func cleanRoutes() error {
	list, err := ownRoutes()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range list {
		if err := nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Neighbours is the Target of the permanent neighbour entries on pods' devices: the MAC address of
// each pod, so that neither the host stack nor a program ever has to ask for it. The value is the
// MAC address as six bytes.
type Neighbours struct{}

// Load reads the permanent entries on all devices of pods.
func (Neighbours) Load(context.Context) (map[state.NeighbourKey][6]byte, error) {
	links, err := nl.LinkList()
	if err != nil {
		return nil, err
	}
	pods := map[int]bool{}
	for _, l := range links {
		if isEndpointDevice(l.Attrs().Name) {
			pods[l.Attrs().Index] = true
		}
	}
	out := map[state.NeighbourKey][6]byte{}
	for _, family := range []int{nl.FAMILY_V4, nl.FAMILY_V6} {
		list, err := nl.NeighList(0, family)
		if err != nil {
			return nil, fmt.Errorf("list neighbours: %w", err)
		}
		for _, n := range list {
			if n.State&nl.NUD_PERMANENT != 0 && pods[n.LinkIndex] && len(n.HardwareAddr) == 6 && !n.IP.IsMulticast() {
				out[state.NeighbourKey{Index: n.LinkIndex, IP: fromIP(n.IP)}] = [6]byte(n.HardwareAddr)
			}
		}
	}
	return out, nil
}

func neighbour(k state.NeighbourKey, mac [6]byte) *nl.Neigh {
	n := &nl.Neigh{LinkIndex: k.Index, State: nl.NUD_PERMANENT, IP: k.IP.AsSlice(), HardwareAddr: net.HardwareAddr(mac[:])}
	n.Family = nl.FAMILY_V4
	if k.IP.Is6() {
		n.Family = nl.FAMILY_V6
	}
	return n
}

// Set adds or replaces an entry.
func (Neighbours) Set(_ context.Context, k state.NeighbourKey, mac [6]byte) error {
	if err := nl.NeighSet(neighbour(k, mac)); err != nil {
		return fmt.Errorf("neighbour %s on interface %d: %w", k.IP, k.Index, err)
	}
	return nil
}

// Delete removes an entry; it is gone already when its device is.
func (Neighbours) Delete(_ context.Context, k state.NeighbourKey) error {
	err := nl.NeighDel(neighbour(k, [6]byte{}))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove neighbour %s on interface %d: %w", k.IP, k.Index, err)
	}
	return nil
}
