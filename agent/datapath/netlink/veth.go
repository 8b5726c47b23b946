// SPDX-License-Identifier: Apache-2.0

package netlink

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"

	nl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// runDir is the other name of varRunDir.
const runDir = "/run/"

// varRunDir is where the agent's container has the node's network namespaces; a variable for tests.
var varRunDir = "/var/run/"

// Veth is the pair of devices between a pod and its node.
type Veth struct {
	HostName  string
	HostIndex int
	HostMAC   net.HardwareAddr
	PeerName  string // pod's end, where the CNI plugin has to move and rename it
	PodMAC    net.HardwareAddr
	MTU       int
}

// Peer says where the pod's end of a pair belongs: a file of the pod's network namespace and the name
// that the device has there.
type Peer struct{ Netns, Name string }

// CreateVeth makes the pair of hostName, both ends down, in place of an older pair of that name. The
// pod's end is made where it belongs: moving and renaming a device has the kernel wait, tens of
// milliseconds for each pod, one after the other. Where that cannot be, as the namespace's file is not
// to be seen from here or has a device of that name already, it is made in the node's namespace under
// another name, and the CNI plugin moves it.
func CreateVeth(hostName string, peer Peer, mtu int, v4, v6 bool, s *Sysctls) (Veth, error) {
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
	pair := &nl.Veth{
		LinkAttrs:        nl.LinkAttrs{Name: hostName, HardwareAddr: hostMAC, MTU: mtu, TxQLen: 1000},
		PeerName:         v.PeerName,
		PeerHardwareAddr: podMAC,
	}
	if !createInside(*pair, peer) {
		if err := nl.LinkAdd(pair); err != nil {
			return Veth{}, fmt.Errorf("create %s: %w", hostName, err)
		}
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

// createInside makes a pair with the peer in its namespace, under its name there. The answer is whether
// that was possible.
func createInside(pair nl.Veth, peer Peer) bool {
	if peer.Netns == "" || peer.Name == "" {
		return false
	}
	ns, err := openNetns(peer.Netns)
	if err != nil {
		return false
	}
	defer ns.Close()
	pair.PeerName, pair.PeerNamespace = peer.Name, nl.NsFd(ns.Fd())
	return nl.LinkAdd(&pair) == nil
}

// openNetns opens the file of a network namespace. On nodes /var/run is another name of /run, and who
// calls the plugin may use either; the agent's container has the first only.
func openNetns(path string) (*os.File, error) {
	ns, err := os.Open(path)
	if other, ok := strings.CutPrefix(path, runDir); ok && errors.Is(err, fs.ErrNotExist) {
		ns, err = os.Open(varRunDir + other)
	}
	return ns, err
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
