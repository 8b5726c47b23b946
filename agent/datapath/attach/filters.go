// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Our filters have this place among those of a device, and a name that starts like this.
const (
	filterPriority = 50
	filterHandle   = 0x50
	filterPrefix   = "lash_"
)

// filters is the device hooks by cls_bpf filters, for kernels without tcx links.
type filters struct{ *Attacher }

func parent(egress bool) uint32 {
	if egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

// ownFilter returns our filter on a side of a device, nil when there is none.
func ownFilter(dev netlink.Link, egress bool) (*netlink.BpfFilter, error) {
	all, err := netlink.FilterList(dev, parent(egress))
	if err != nil {
		return nil, fmt.Errorf("filters of %s: %w", dev.Attrs().Name, err)
	}
	for _, f := range all {
		b, ok := f.(*netlink.BpfFilter)
		if ok && b.Priority == filterPriority && b.Handle == filterHandle && strings.HasPrefix(b.Name, filterPrefix) {
			return b, nil
		}
	}
	return nil, nil
}

// Load looks at all devices.
func (f filters) Load(context.Context) (map[Hook]string, error) {
	devs, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("devices: %w", err)
	}
	out := map[Hook]string{}
	for _, dev := range devs {
		for _, egress := range []bool{false, true} {
			own, err := ownFilter(dev, egress)
			if err != nil {
				return nil, err
			}
			if own != nil {
				out[Hook{dev.Attrs().Index, egress}] = f.nameOf(ebpf.ProgramID(own.Id))
			}
		}
	}
	return out, nil
}

// Set replaces the filter in one step.
func (f filters) Set(_ context.Context, h Hook, name string) error {
	prog, err := f.programs.Get(name)
	if err != nil {
		return err
	}
	dev, err := netlink.LinkByIndex(h.Ifindex)
	if err != nil {
		return fmt.Errorf("device %d: %w", h.Ifindex, err)
	}
	if own, err := ownFilter(dev, h.Egress); err == nil && own != nil && f.nameOf(ebpf.ProgramID(own.Id)) == name {
		return nil
	}
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: h.Ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	// Others use the same qdisc, so it is never replaced and never removed.
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("qdisc of %s: %w", dev.Attrs().Name, err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: h.Ifindex, Parent: parent(h.Egress), Handle: filterHandle,
			Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: prog.FD(), Name: filterPrefix + name, DirectAction: true,
	}
	if err := netlink.FilterReplace(filter); err != nil {
		return fmt.Errorf("filter %s on %s: %w", name, dev.Attrs().Name, err)
	}
	return nil
}

// Delete removes the filter; with its device it is gone already.
func (f filters) Delete(_ context.Context, h Hook) error {
	dev, err := netlink.LinkByIndex(h.Ifindex)
	if err != nil {
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		return fmt.Errorf("device %d: %w", h.Ifindex, err)
	}
	return removeFilter(dev, h.Egress)
}

func removeFilter(dev netlink.Link, egress bool) error {
	own, err := ownFilter(dev, egress)
	if err != nil || own == nil {
		return err
	}
	if err := netlink.FilterDel(own); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove filter from %s: %w", dev.Attrs().Name, err)
	}
	return nil
}

func cleanFilters() error {
	devs, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("devices: %w", err)
	}
	var errs []error
	for _, dev := range devs {
		errs = append(errs, removeFilter(dev, false), removeFilter(dev, true))
	}
	return errors.Join(errs...)
}
