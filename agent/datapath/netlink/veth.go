// SPDX-License-Identifier: Apache-2.0

package netlink

import (
	"errors"
	"fmt"
	"net"
	"strings"

	nl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Veth is the pair of devices between a pod and its node.
type Veth struct {
	HostName  string
	HostIndex int
	HostMAC   net.HardwareAddr
	PeerName  string // pod's end, until the CNI plugin moves and renames it
	PodMAC    net.HardwareAddr
	MTU       int
}

// CreateVeth makes the pair hostName and its peer in the node's namespace, both down, in place of
// an older pair of that name.
func CreateVeth(hostName string, mtu int, v4, v6 bool, s *Sysctls) (Veth, error) {
	if err := DeleteLink(hostName); err != nil {
		return Veth{}, err
	}
	hostMAC, podMAC, err := newMACs()
	if err != nil {
		return Veth{}, err
	}
	v := Veth{
		HostName: hostName, HostMAC: hostMAC, PodMAC: podMAC, MTU: mtu,
		PeerName: "tmp" + strings.TrimPrefix(hostName, PodPrefix),
	}
	err = nl.LinkAdd(&nl.Veth{
		LinkAttrs:        nl.LinkAttrs{Name: hostName, HardwareAddr: hostMAC, MTU: mtu, TxQLen: 1000},
		PeerName:         v.PeerName,
		PeerHardwareAddr: podMAC,
	})
	if err != nil {
		return Veth{}, fmt.Errorf("create %s: %w", hostName, err)
	}
	link, err := nl.LinkByName(hostName)
	if err != nil {
		return Veth{}, fmt.Errorf("%s: %w", hostName, err)
	}
	v.HostIndex = link.Attrs().Index
	if err := s.device(hostName, v4, v6); err != nil {
		return Veth{}, err
	}
	return v, nil
}

// SetUp brings a device up.
func SetUp(name string) error {
	link, err := nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	m := maker{}
	return m.ready(link)
}

// Index returns the interface index of a device of this namespace.
func Index(name string) (int, bool) {
	link, err := nl.LinkByName(name)
	if err != nil {
		return 0, false
	}
	return link.Attrs().Index, true
}

// DeleteLink removes a device, with its peer; a missing one is no error. The kernel takes some 20
// ms for it.
func DeleteLink(name string) error {
	link, err := byName(name)
	if err != nil || link == nil {
		return err
	}
	if err := nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}
