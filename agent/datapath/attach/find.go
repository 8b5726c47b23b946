// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// Serving counts how many hooks of devices each program of ours serves, by either way. It is how
// the generation is found that the node lives on.
func Serving(bpfRoot string) (map[ebpf.ProgramID]int, error) {
	a := &Attacher{dir: linkDir(bpfRoot)}
	out := map[ebpf.ProgramID]int{}
	for _, b := range []backend{newTCX(a), &filters{Attacher: a, marks: filepath.Join(bpfRoot, "lash", "clsact")}} {
		ids, err := b.list()
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			out[id]++
		}
	}
	return out, nil
}

// Find asks the kernel, not the pins, on which devices programs of the given numbers are attached.
func Find(ids []ebpf.ProgramID) ([]string, error) {
	devs, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("devices: %w", err)
	}
	var out []string
	for _, d := range devs {
		for _, h := range []Hook{{d.Attrs().Index, false}, {d.Attrs().Index, true}} {
			var there []ebpf.ProgramID
			// A kernel without tcx has no such programs.
			if q, err := link.QueryPrograms(link.QueryOptions{Target: h.Ifindex, Attach: h.tcx()}); err == nil {
				for _, p := range q.Programs {
					there = append(there, p.ID)
				}
			}
			filters, err := netlink.FilterList(d, parent(h.Egress))
			if err != nil {
				return nil, fmt.Errorf("filters of %s: %w", d.Attrs().Name, err)
			}
			for _, f := range filters {
				if b, ok := f.(*netlink.BpfFilter); ok {
					there = append(there, ebpf.ProgramID(b.Id))
				}
			}
			if slices.ContainsFunc(there, func(id ebpf.ProgramID) bool { return slices.Contains(ids, id) }) {
				out = append(out, d.Attrs().Name)
				break
			}
		}
	}
	return out, nil
}
