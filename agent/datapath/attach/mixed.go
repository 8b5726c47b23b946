// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"maps"
	"strings"

	"github.com/cilium/ebpf"
)

// mixed attaches to the devices of pods by filters and to all others by tcx links. A tcx link costs a
// grace period of RCU, which the kernel waits for under its lock of all devices; a filter costs none, and
// nothing but a device's own programs is ever on the device of a pod. A hook that has a link keeps it.
type mixed struct {
	links   *tcx
	filters *filters
}

// forPods says whether a program is one that the devices of pods have.
func forPods(name string) bool { return strings.HasPrefix(name, "pod_") }

func (m mixed) list() (map[Hook]ebpf.ProgramID, error) {
	out, err := m.filters.list()
	if err != nil {
		return nil, err
	}
	links, err := m.links.list()
	if err != nil {
		return nil, err
	}
	maps.Copy(out, links)
	return out, nil
}

func (m mixed) put(h Hook, prog *ebpf.Program, name string) (bool, error) {
	if !forPods(name) {
		return m.links.put(h, prog, name)
	}
	has, err := m.links.has(h)
	if err != nil {
		return false, err
	}
	if has {
		return m.links.put(h, prog, name)
	}
	return m.filters.put(h, prog, name)
}

func (m mixed) remove(h Hook) error {
	return errors.Join(m.links.remove(h), m.filters.remove(h))
}
