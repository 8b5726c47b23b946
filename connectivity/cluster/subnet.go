// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// subnetCount is how many clusters can exist side by side.
const subnetCount = 256

// Host numbers inside a node subnet.
const (
	hostGateway   = 1
	hostFirstNode = 11
	hostExternal  = 200
)

// nodeSubnets are the fabric's subnets of the index-th cluster.
func nodeSubnets(index int, v4, v6 bool) []Subnet {
	var out []Subnet
	if v4 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 31, byte(index), 0}), 24)
		out = append(out, Subnet{Prefix: p, Gateway: hostAddr(p, hostGateway)})
	}
	if v6 { // a unique local prefix of our own
		p := netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x6c, 0x61, 0x73, 0x68, 0, 0, byte(index)}), 64)
		out = append(out, Subnet{Prefix: p, Gateway: hostAddr(p, hostGateway)})
	}
	return out
}

// hostAddr is the n-th address of p; n is below 256.
func hostAddr(p netip.Prefix, n int) netip.Addr {
	raw := p.Masked().Addr().AsSlice()
	for i, carry := len(raw)-1, n; i >= 0 && carry > 0; i-- {
		carry += int(raw[i])
		raw[i] = byte(carry)
		carry >>= 8
	}
	a, _ := netip.AddrFromSlice(raw)
	return a
}

// freeIndex is the first index that no cluster uses and whose subnets are apart from taken.
func freeIndex(clusters []*Cluster, taken []netip.Prefix, v4, v6 bool) (int, error) {
	used := map[int]bool{}
	for _, c := range clusters {
		if len(c.Nodes) > 0 {
			used[c.Index] = true
		}
	}
next:
	for i := range subnetCount {
		if used[i] {
			continue
		}
		for _, s := range nodeSubnets(i, v4, v6) {
			for _, t := range taken {
				if s.Prefix.Overlaps(t) {
					continue next
				}
			}
		}
		return i, nil
	}
	return 0, errors.New("no free subnet for the nodes: 172.31.0.0/16 is in use by other clusters or by this machine's routes")
}

// machineRoutes are the destinations, other than the default, that this machine has routes for.
func machineRoutes() ([]netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	var out []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP)
		ones, _ := r.Dst.Mask.Size()
		if ok && ones > 0 {
			addr = addr.Unmap()
			out = append(out, netip.PrefixFrom(addr, ones))
		}
	}
	return out, nil
}

// plan lays out the cluster's machines and their addresses.
func (c *Cluster) plan(workers int) {
	add := func(suffix string, role Role, host int) {
		n := Node{Name: c.FullName() + "-" + suffix, Role: role}
		for _, s := range c.Subnets {
			n.Addresses = append(n.Addresses, hostAddr(s.Prefix, host))
		}
		c.Nodes = append(c.Nodes, n)
	}
	add("control-plane", RoleControlPlane, hostFirstNode)
	for i := range workers {
		suffix := "worker"
		if i > 0 {
			suffix = fmt.Sprintf("worker%d", i+1)
		}
		add(suffix, RoleWorker, hostFirstNode+1+i)
	}
	add("external", RoleExternal, hostExternal)
	add("fabric", RoleFabric, hostGateway)
}

// mustPrefix parses a prefix that has been checked before; a bad one overlaps nothing.
func mustPrefix(s string) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
