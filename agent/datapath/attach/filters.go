// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// FilterPrefix starts the name of every filter of ours.
const FilterPrefix = "lash_"

// Our filters have this place among those of a device. Where somebody else has the handle, the next
// is taken.
const (
	filterPriority = 50
	filterHandle   = 0x50
	filterHandles  = 8
)

// filters attaches to devices by cls_bpf filters in direct-action mode. Their qdisc stays when they
// go: the kernel stops a device for an instant, and drops what would leave through it, when a qdisc
// is added or removed. Clean removes those that we have made, as a folder in the BPF file system
// remembers (<bpf-root>/lash/clsact/if<index>), and that nothing else is in.
type filters struct {
	*Attacher
	marks string
	// only says which programs, by name, are looked at; nil: all.
	only func(program string) bool

	mu    sync.Mutex
	known map[Hook]bool // hooks that may have a filter of ours; nil: all devices have to be asked
}

func parent(egress bool) uint32 {
	if egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

// device stands for one in requests that need nothing but the index.
func device(index int) netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

// at lists the BPF filters on a hook that have our priority: ours, nil if there is none, and the
// handles that others have.
func at(h Hook) (own *netlink.BpfFilter, taken map[uint32]bool, err error) {
	all, err := netlink.FilterList(device(h.Ifindex), parent(h.Egress))
	if errors.Is(err, unix.ENODEV) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("filters on %s: %w", h, err)
	}
	taken = map[uint32]bool{}
	for _, f := range all {
		if f.Attrs().Priority != filterPriority {
			continue
		}
		if b, ok := f.(*netlink.BpfFilter); ok && own == nil && b.DirectAction && strings.HasPrefix(b.Name, FilterPrefix) {
			own = b
			continue
		}
		taken[f.Attrs().Handle] = true
	}
	return own, taken, nil
}

// list asks the devices for our filters: all that can have one the first time, later those that had
// one.
func (f *filters) list() (map[Hook]ebpf.ProgramID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known == nil {
		qdiscs, err := netlink.QdiscList(nil)
		if err != nil {
			return nil, fmt.Errorf("qdiscs: %w", err)
		}
		f.known = map[Hook]bool{}
		for _, q := range qdiscs {
			if q.Type() == "clsact" {
				index := q.Attrs().LinkIndex
				f.known[Hook{index, false}], f.known[Hook{index, true}] = true, true
			}
		}
		if err := f.forgetMarks(); err != nil {
			return nil, err
		}
	}
	out := map[Hook]ebpf.ProgramID{}
	for h := range f.known {
		own, _, err := at(h)
		if err != nil {
			return nil, err
		}
		if own != nil && (f.only == nil || f.only(strings.TrimPrefix(own.Name, FilterPrefix))) {
			out[h] = ebpf.ProgramID(own.Id)
		} else {
			delete(f.known, h)
		}
	}
	return out, nil
}

// forgetMarks drops what is remembered of devices, or qdiscs, that are gone.
func (f *filters) forgetMarks() error {
	marks, err := os.ReadDir(f.marks)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, m := range marks {
		if index, ok := deviceOf(m.Name()); ok && !f.known[Hook{index, false}] {
			if err := os.Remove(filepath.Join(f.marks, m.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *filters) mark(index int) string { return filepath.Join(f.marks, fmt.Sprintf("if%d", index)) }

func clsact(index int) *netlink.GenericQdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
}

// qdisc makes the qdisc of a device unless there is one.
func (f *filters) qdisc(index int) error {
	err := netlink.QdiscAdd(clsact(index))
	if errors.Is(err, unix.EEXIST) {
		return isClsact(index)
	}
	if err != nil {
		return fmt.Errorf("qdisc of device %d: %w", index, err)
	}
	if err := os.MkdirAll(f.mark(index), 0o700); err != nil {
		return fmt.Errorf("remember the qdisc of device %d: %w", index, err)
	}
	return nil
}

// isClsact refuses the older kind of qdisc, which would take a filter for packets that leave and run
// it on those that arrive.
func isClsact(index int) error {
	qdiscs, err := netlink.QdiscList(device(index))
	if err != nil {
		return fmt.Errorf("qdiscs of device %d: %w", index, err)
	}
	for _, q := range qdiscs {
		if q.Type() == "ingress" {
			return fmt.Errorf("device %d has an ingress qdisc of somebody else: make it a clsact qdisc", index)
		}
	}
	return nil
}

// put replaces the filter in one step, or makes it.
func (f *filters) put(h Hook, prog *ebpf.Program, name string) (bool, error) {
	own, taken, err := at(h)
	if err != nil {
		return false, err
	}
	id, err := idOf(prog)
	if err != nil {
		return false, err
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: h.Ifindex, Parent: parent(h.Egress), Handle: filterHandle,
			Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: prog.FD(), Name: FilterPrefix + name, DirectAction: true,
	}
	switch {
	case own != nil && ebpf.ProgramID(own.Id) == id:
		return false, nil
	case own != nil:
		filter.Handle = own.Handle
	default:
		if err := f.qdisc(h.Ifindex); err != nil {
			return false, err
		}
		for taken[filter.Handle] {
			if filter.Handle++; filter.Handle == filterHandle+filterHandles {
				return false, fmt.Errorf("filters of others on %s have priority %d and all handles from %#x on", h, filterPriority, filterHandle)
			}
		}
	}
	f.mu.Lock()
	if f.known != nil {
		f.known[h] = true
	}
	f.mu.Unlock()
	if err := netlink.FilterReplace(filter); err != nil {
		return false, fmt.Errorf("filter %s on %s: %w%s", name, h, err, explain(h))
	}
	return own == nil, nil
}

// explain says what others have on a device that keeps a filter of ours away.
func explain(h Hook) string {
	filters, err := netlink.FilterList(device(h.Ifindex), parent(h.Egress))
	if err != nil {
		return ""
	}
	for _, o := range filters {
		if o.Attrs().Priority == filterPriority && o.Type() != "bpf" {
			return fmt.Sprintf(" (a filter of kind %s has priority %d there)", o.Type(), filterPriority)
		}
	}
	return ""
}

// remove takes the filter off; with its device it is gone already.
func (f *filters) remove(h Hook) error {
	own, _, err := at(h)
	if err != nil {
		return err
	}
	if own != nil {
		if err := netlink.FilterDel(own); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove filter from %s: %w", h, err)
		}
	}
	f.mu.Lock()
	delete(f.known, h)
	f.mu.Unlock()
	if own == nil {
		return f.forget(h.Ifindex)
	}
	return nil
}

// forget drops what is remembered of a device if that is gone.
func (f *filters) forget(index int) error {
	_, err := netlink.LinkByIndex(index)
	if missing := (netlink.LinkNotFoundError{}); !errors.As(err, &missing) {
		return nil // it is there, or nobody can tell
	}
	if err := os.Remove(f.mark(index)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// dropQdisc removes the qdisc of a device that we have made and that nobody uses.
func (f *filters) dropQdisc(index int) error {
	if _, err := os.Stat(f.mark(index)); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, egress := range []bool{false, true} {
		left, err := netlink.FilterList(device(index), parent(egress))
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("filters of device %d: %w", index, err)
		}
		if len(left) > 0 {
			return nil
		}
	}
	err := netlink.QdiscDel(clsact(index))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove qdisc of device %d: %w", index, err)
	}
	return os.Remove(f.mark(index))
}

// clean removes all filters of ours.
func (f *filters) clean() error {
	all, err := f.list()
	if err != nil {
		return err
	}
	var errs []error
	for h := range all {
		errs = append(errs, f.remove(h))
	}
	marks, err := os.ReadDir(f.marks)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, m := range marks {
		if index, ok := deviceOf(m.Name()); ok {
			errs = append(errs, f.dropQdisc(index))
		}
	}
	return errors.Join(errs...)
}
