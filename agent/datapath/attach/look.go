// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoDevice is a hook whose device is gone.
var ErrNoDevice = errors.New("no such device")

// Ways of attaching a program.
const (
	ByTCX    = "tcx"
	ByFilter = "filter" // cls_bpf
	ByCgroup = "cgroup"
)

// Seen is a program on a hook, whoever has put it there.
type Seen struct {
	ID   ebpf.ProgramID
	Name string // as the kernel has it; empty without the right to ask for it (CAP_SYS_ADMIN)
	How  string
}

// String is the program for people.
func (s Seen) String() string {
	if s.Name == "" {
		return fmt.Sprintf("program %d (%s)", s.ID, s.How)
	}
	return fmt.Sprintf("%s (%s, id %d)", s.Name, s.How, s.ID)
}

// OnDevice lists the programs on one side of a device in the order in which packets meet them: tcx
// first, then the filters. The error is ErrNoDevice for a device that is gone.
func OnDevice(h Hook) ([]Seen, error) {
	out, err := query(h.Ifindex, h.tcx(), ByTCX)
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil, ErrNoDevice
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL): // a kernel without tcx
	case err != nil:
		return nil, fmt.Errorf("programs on %s: %w", h, err)
	}
	filters, err := netlink.FilterList(device(h.Ifindex), parent(h.Egress))
	if errors.Is(err, unix.ENODEV) {
		return nil, ErrNoDevice
	}
	if err != nil {
		return nil, fmt.Errorf("filters on %s: %w", h, err)
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok {
			out = append(out, Seen{ebpf.ProgramID(b.Id), b.Name, ByFilter})
		}
	}
	return out, nil
}

// OnCgroup lists the programs of one kind that are attached to the cgroup at path itself.
func OnCgroup(path string, at ebpf.AttachType) ([]Seen, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	defer dir.Close()
	out, err := query(int(dir.Fd()), at, ByCgroup)
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
		return nil, nil // a kernel without this kind
	}
	if err != nil {
		return nil, fmt.Errorf("programs on cgroup %s: %w", path, err)
	}
	return out, nil
}

func query(target int, at ebpf.AttachType, how string) ([]Seen, error) {
	res, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: at})
	if err != nil {
		return nil, err
	}
	var out []Seen
	for _, p := range res.Programs {
		out = append(out, Seen{p.ID, nameByID(p.ID), how})
	}
	return out, nil
}

// nameByID is the kernel's name of a program, empty where that may not be asked for.
func nameByID(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return info.Name
}

// Known says which program of ours has a number, be it of the current generation or another; ok is
// false for those of others.
func (a *Attacher) Known(id ebpf.ProgramID) (p Program, ok bool) { return a.programOf(id), a.ours(id) }

// Socket lists the programs on the cgroup at path itself, on the hook that a program of ours is for.
func (a *Attacher) Socket(path, name string) ([]Seen, error) {
	a.mu.Lock()
	at := a.programs.AttachType(name)
	a.mu.Unlock()
	return OnCgroup(path, at)
}
