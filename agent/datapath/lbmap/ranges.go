// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"lash.internal/lash/agent/datapath/maps"
	"lash.internal/lash/bpf"
)

// rangeKey is the key of map srcrange for a prefix.
func rangeKey(id uint32, p netip.Prefix) bpf.SrcrangeKey {
	k := bpf.CIDR(p)
	return bpf.SrcrangeKey{Plen: k.Plen, SvcId: id, Ip: k.Ip}
}

// readRanges brings what we believe to be in map srcrange up to date.
func (t *Target) readRanges() error {
	ranges := map[uint32][]netip.Prefix{}
	err := maps.Each(t.srcrange, func(k bpf.SrcrangeKey, _ uint32) {
		ranges[k.SvcId] = append(ranges[k.SvcId], bpf.FromCIDR(bpf.CidrKey{Plen: k.Plen, Ip: k.Ip}))
	})
	if err != nil {
		return fmt.Errorf("read source ranges: %w", err)
	}
	for _, ps := range ranges {
		slices.SortFunc(ps, netip.Prefix.Compare)
	}
	t.ranges = ranges
	return nil
}

// addRanges writes the ranges of a Service port that map srcrange lacks.
func (t *Target) addRanges(id uint32, want []netip.Prefix) error {
	have := t.ranges[id]
	if slices.Equal(have, want) {
		return nil
	}
	there := prefixes(have)
	for _, p := range want {
		if !p.IsValid() || p != p.Masked() {
			return fmt.Errorf("source range %s: has bits beyond its length", p)
		}
		if there[p] {
			continue
		}
		k := rangeKey(id, p)
		if err := t.srcrange.Put(&k, uint32(1)); err != nil {
			return fmt.Errorf("write source range %s: %w", p, err)
		}
		there[p] = true
		have = append(have, p)
		t.ranges[id] = have
	}
	return nil
}

// keepRanges removes all other ranges of a Service port.
func (t *Target) keepRanges(id uint32, want []netip.Prefix) error {
	have := t.ranges[id]
	if len(have) == 0 || slices.Equal(have, want) {
		return nil
	}
	keep := prefixes(want)
	var left []netip.Prefix
	for i, p := range have {
		if keep[p] {
			left = append(left, p)
			continue
		}
		k := rangeKey(id, p)
		if err := t.srcrange.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.ranges[id] = append(left, have[i:]...)
			return fmt.Errorf("delete source range %s: %w", p, err)
		}
	}
	if len(left) == 0 {
		delete(t.ranges, id)
		return nil
	}
	slices.SortFunc(left, netip.Prefix.Compare)
	t.ranges[id] = left
	return nil
}

// sameRanges says whether map srcrange has what a Service port wants.
func (t *Target) sameRanges(id uint32, want []netip.Prefix) bool {
	have := t.ranges[id]
	if len(have) != len(want) {
		return false
	}
	if slices.Equal(have, want) {
		return true
	}
	there := prefixes(have)
	for _, p := range want {
		if !there[p] {
			return false
		}
	}
	return true
}

func prefixes(in []netip.Prefix) map[netip.Prefix]bool {
	out := make(map[netip.Prefix]bool, len(in))
	for _, p := range in {
		out[p] = true
	}
	return out
}
