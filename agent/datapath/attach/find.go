// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
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
			there, err := OnDevice(h)
			if err != nil && !errors.Is(err, ErrNoDevice) {
				return nil, err
			}
			if slices.ContainsFunc(there, func(s Seen) bool { return slices.Contains(ids, s.ID) }) {
				out = append(out, d.Attrs().Name)
				break
			}
		}
	}
	return out, nil
}
