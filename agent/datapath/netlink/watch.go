// SPDX-License-Identifier: Apache-2.0

package netlink

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	nl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/state"
)

// Watcher keeps the Devices table equal to the node's own devices.
type Watcher struct {
	tables   *state.Tables
	patterns []string
	nodeIPs  []netip.Addr
	log      *slog.Logger
	synced   func(*state.WriteTxn)
}

// NewWatcher returns a watcher of the devices that patterns name, by exact name or with a trailing
// +, which stands for any rest; with none, of all devices with a global address or a default route
// that are neither ours nor a container's. The device with one of nodeIPs is the direct routing
// device.
func NewWatcher(tables *state.Tables, patterns []string, nodeIPs []netip.Addr, log *slog.Logger) *Watcher {
	return &Watcher{
		tables: tables, patterns: patterns, nodeIPs: nodeIPs, log: log,
		synced: tables.Devices.RegisterInitializer("netlink"),
	}
}

// Run reads the devices, then follows the kernel's messages until ctx ends. It resynchronises when
// messages were lost.
func (w *Watcher) Run(ctx context.Context) error {
	for {
		err := w.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		w.log.Warn("device watch broken, starting again", "error", err)
	}
}

func (w *Watcher) follow(ctx context.Context) error {
	done := make(chan struct{})
	defer close(done)
	broken := make(chan error, 3)
	fail := func(err error) {
		select {
		case broken <- err:
		default:
		}
	}
	links, addrs, routes := make(chan nl.LinkUpdate, 64), make(chan nl.AddrUpdate, 64), make(chan nl.RouteUpdate, 64)
	if err := nl.LinkSubscribeWithOptions(links, done, nl.LinkSubscribeOptions{ErrorCallback: fail}); err != nil {
		return fmt.Errorf("subscribe to links: %w", err)
	}
	if err := nl.AddrSubscribeWithOptions(addrs, done, nl.AddrSubscribeOptions{ErrorCallback: fail}); err != nil {
		return fmt.Errorf("subscribe to addresses: %w", err)
	}
	if err := nl.RouteSubscribeWithOptions(routes, done, nl.RouteSubscribeOptions{ErrorCallback: fail}); err != nil {
		return fmt.Errorf("subscribe to routes: %w", err)
	}
	for {
		if err := w.resync(); err != nil {
			return err
		}
		relevant := false
		for !relevant {
			select {
			case <-ctx.Done():
				return nil
			case err := <-broken:
				return err
			case u, ok := <-links:
				if !ok {
					return net.ErrClosed
				}
				relevant = !ours(u.Attrs().Name)
			case u, ok := <-addrs:
				if !ok {
					return net.ErrClosed
				}
				// Each new pod's device gets one of the others, and a list of all takes the kernel's
				// lock of devices.
				relevant = !u.LinkAddress.IP.IsLinkLocalUnicast()
			case u, ok := <-routes:
				if !ok {
					return net.ErrClosed
				}
				relevant = u.Protocol != RouteProtocol && (u.Dst == nil || isDefault(u.Dst))
			}
		}
	}
}

func isDefault(n *net.IPNet) bool {
	ones, _ := n.Mask.Size()
	return ones == 0
}

// resync makes the table equal to what the kernel has now.
func (w *Watcher) resync() error {
	found, err := Detect(w.patterns, w.nodeIPs)
	if err != nil {
		return err
	}
	tx := w.tables.DB.WriteTxn()
	seen := map[string]bool{}
	for _, d := range found {
		seen[d.Name] = true
		if old, ok := w.tables.Devices.Get(d.Name); !ok || !reflect.DeepEqual(old, d) {
			w.tables.Devices.Insert(tx, d)
		}
	}
	for name := range w.tables.Devices.All() {
		if !seen[name] {
			w.tables.Devices.Delete(tx, name)
		}
	}
	w.synced(tx)
	tx.Commit()
	return nil
}

// Detect lists the node's devices as NewWatcher describes them, sorted by name.
func Detect(patterns []string, nodeIPs []netip.Addr) ([]state.Device, error) {
	links, err := nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	withDefault := map[int]bool{}
	for _, family := range []int{nl.FAMILY_V4, nl.FAMILY_V6} {
		routes, err := nl.RouteListFiltered(family, &nl.Route{Table: unix.RT_TABLE_MAIN}, nl.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if (r.Dst == nil || isDefault(r.Dst)) && r.LinkIndex > 0 {
				withDefault[r.LinkIndex] = true
			}
		}
	}
	var out []state.Device
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback != 0 || a.Flags&net.FlagUp == 0 || ours(a.Name) {
			continue
		}
		d := state.Device{
			Name: a.Name, Index: a.Index, MTU: a.MTU, MAC: slices.Clone(a.HardwareAddr), L3: len(a.HardwareAddr) == 0,
		}
		if d.Addrs, err = globalAddrs(l); err != nil {
			return nil, err
		}
		for _, p := range d.Addrs {
			d.DirectRouting = d.DirectRouting || slices.Contains(nodeIPs, p.Addr())
		}
		if wanted(d, patterns, a.MasterIndex != 0, withDefault[a.Index]) {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b state.Device) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func globalAddrs(l nl.Link) ([]netip.Prefix, error) {
	list, err := nl.AddrList(l, nl.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
	}
	var out []netip.Prefix
	for _, a := range list {
		if p, ok := fromIPNet(a.IPNet); ok && !p.Addr().IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
			out = append(out, p)
		}
	}
	return out, nil // in the kernel's order, primary addresses first
}

// containerDevices begin the names of devices that lead to containers, not out of the node.
var containerDevices = []string{"lxc", "veth", "cni", "docker", "br-", "kube-ipvs"}

func wanted(d state.Device, patterns []string, enslaved, hasDefault bool) bool {
	for _, p := range patterns {
		if prefix, any := strings.CutSuffix(p, "+"); p == d.Name || (any && strings.HasPrefix(d.Name, prefix)) {
			return true
		}
	}
	if d.DirectRouting {
		return true
	}
	if len(patterns) > 0 || enslaved {
		return false
	}
	for _, p := range containerDevices {
		if strings.HasPrefix(d.Name, p) {
			return false
		}
	}
	return hasDefault || len(d.Addrs) > 0
}
