// SPDX-License-Identifier: Apache-2.0

package netlink

import (
	"context"
	"log/slog"
	"net"
	"runtime"
	"testing"
	"time"

	nl "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"lash.internal/lash/agent/state"
)

// TestKeeperRepairs takes the devices of a node away one by one, while the agent runs.
func TestKeeperRepairs(t *testing.T) {
	s := node(t)
	tables := state.NewTables()
	k, err := NewKeeper(tables, plan(), s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if ok, _ := tables.OwnDevices.Initialized(); !ok || tables.OwnDevices.Len() != 3 {
		t.Fatalf("%d devices have rows, want 3 and a complete table", tables.OwnDevices.Len())
	}
	ns, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	repaired := make(chan struct{}, 16)
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- k.Run(ctx, func() { repaired <- struct{}{} })
	}()
	link := func(name string) nl.Link {
		l, err := nl.LinkByName(name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return l
	}
	asPlanned := func() bool {
		for _, name := range []string{HostDevice, NetDevice, VXLANDevice} {
			l, err := nl.LinkByName(name)
			if err != nil || l.Attrs().Flags&net.FlagUp == 0 || l.Attrs().MTU != plan().UnderlayMTU {
				return false
			}
			v, ok := l.(*nl.Vxlan)
			if (name == VXLANDevice) != ok || (ok && !v.FlowBased) {
				return false
			}
		}
		addrs, err := nl.AddrList(link(HostDevice), nl.FAMILY_V4)
		return err == nil && len(addrs) == 1 && fromIP(addrs[0].IP) == plan().Addrs[0]
	}
	for _, c := range []struct {
		what  string
		spoil func() error
		fresh string // device that is another one afterwards
	}{
		{"tunnel deleted", func() error { return nl.LinkDel(link(VXLANDevice)) }, VXLANDevice},
		{"pair deleted", func() error { return nl.LinkDel(link(HostDevice)) }, HostDevice},
		{"other end deleted", func() error { return nl.LinkDel(link(NetDevice)) }, NetDevice},
		{"tunnel down", func() error { return nl.LinkSetDown(link(VXLANDevice)) }, ""},
		{"MTU", func() error { return nl.LinkSetMTU(link(HostDevice), 1400) }, ""},
		{"address gone", func() error {
			list, err := nl.AddrList(link(HostDevice), nl.FAMILY_V4)
			if err != nil {
				return err
			}
			return nl.AddrDel(link(HostDevice), &list[0])
		}, ""},
		{"tunnel renamed", func() error {
			l := link(VXLANDevice)
			if err := nl.LinkSetDown(l); err != nil {
				return err
			}
			for range 5 { // the keeper brings it up, and old kernels do not rename what is up
				if err = nl.LinkSetName(l, "other"); err == nil {
					return nil
				}
				_ = nl.LinkSetDown(l)
			}
			return err
		}, ""},
		{"another kind in its place", func() error {
			if err := nl.LinkDel(link(VXLANDevice)); err != nil {
				return err
			}
			if err := nl.LinkAdd(&nl.Vxlan{LinkAttrs: nl.LinkAttrs{Name: VXLANDevice}, VxlanId: 7, Port: 4789}); err != nil {
				t.Log("the keeper was faster:", err)
			}
			return nil
		}, VXLANDevice},
	} {
		name := c.fresh
		if name == "" {
			name = VXLANDevice
		}
		before := link(name).Attrs().Index
		if err := c.spoil(); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		deadline := time.After(20 * time.Second)
		for right := false; !right; {
			select {
			case <-repaired:
			case <-deadline:
				t.Fatalf("%s: not repaired", c.what)
			}
			right = asPlanned()
		}
		row, _ := tables.OwnDevices.Get(name)
		now := link(name)
		if row.Index != now.Attrs().Index || (c.fresh != "" && row.Index == before) {
			t.Errorf("%s: row has index %d, device %d, before %d", c.what, row.Index, now.Attrs().Index, before)
		}
	}
	if n, err := k.State(); n < 8 || err != nil {
		t.Errorf("%d repairs counted, error %v", n, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
