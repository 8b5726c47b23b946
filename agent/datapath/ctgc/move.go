// SPDX-License-Identifier: Apache-2.0

package ctgc

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"

	"lash.internal/lash/bpf"
)

// ErrNotMoved means that flows stay in the table before because the new one has no room for them.
// Programs go on finding them there.
var ErrNotMoved = errors.New("flows do not fit into the new table")

// Move empties a table that the generation of programs before used and returns how many flows have
// moved. Its name tells family and tier: ct4_prev, ct4_new_prev, ct6_prev, ct6_new_prev. No program
// may write to it any more.
func (c *Collector) Move(name string, m *ebpf.Map) (uint64, error) {
	var moved uint64
	for {
		items, err := keys(m, strings.Contains(name, "_new"))
		if err != nil || len(items) == 0 {
			return moved, err
		}
		n, err := c.each(func(p Programs) *ebpf.Program { return p.Move }, strings.HasPrefix(name, "ct6"), items)
		moved += n
		if err != nil {
			return moved, fmt.Errorf("move flows of %s: %w", name, err)
		}
		if n == 0 {
			return moved, fmt.Errorf("%s: %w", name, ErrNotMoved)
		}
	}
}

// keys reads the keys of a table whose values may have a form of their own.
func keys(m *ebpf.Map, fresh bool) ([]bpf.GcItem, error) {
	var out []bpf.GcItem
	var last any
	for {
		key, err := m.NextKeyBytes(last)
		if err != nil {
			return nil, fmt.Errorf("read keys: %w", err)
		}
		if key == nil || len(out) >= int(m.MaxEntries()) {
			return out, nil
		}
		var it bpf.GcItem
		if fresh {
			it.Tier = 1
		}
		copy(it.Key[:], key)
		out = append(out, it)
		last = key
	}
}
