// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"lash.internal/lash/agent/config"
)

// errPoolExhausted says that no subnet is left for a node.
var errPoolExhausted = errors.New("cluster pool is exhausted")

// subnets cuts parents into subnets of one size and remembers who has which.
type subnets struct {
	parents []netip.Prefix
	bits    int
	owner   map[netip.Prefix]string
	cursor  uint64
}

func newSubnets(parents []netip.Prefix, bits int) (*subnets, error) {
	if err := config.CheckPool(parents, bits); err != nil {
		return nil, err
	}
	s := &subnets{bits: bits, owner: map[netip.Prefix]string{}}
	for _, p := range parents {
		s.parents = append(s.parents, p.Masked())
	}
	return s, nil
}

// count is the number of subnets of a parent.
func (s *subnets) count(p netip.Prefix) uint64 { return 1 << min(s.bits-p.Bits(), 62) }

// at returns the i-th subnet over all parents.
func (s *subnets) at(i uint64) netip.Prefix {
	for _, p := range s.parents {
		if n := s.count(p); i >= n {
			i -= n
			continue
		}
		return netip.PrefixFrom(shifted(p.Addr(), i, p.Addr().BitLen()-s.bits), s.bits)
	}
	return netip.Prefix{}
}

// shifted returns a + n<<shift; the bits of n fall on zeros of a.
func shifted(a netip.Addr, n uint64, shift int) netip.Addr {
	b := a.As16()
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	if shift >= 64 {
		hi |= n << (shift - 64)
	} else {
		lo |= n << shift
		if shift > 0 {
			hi |= n >> (64 - shift)
		}
	}
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	out := netip.AddrFrom16(b)
	if a.Is4() {
		return out.Unmap()
	}
	return out
}

// occupy notes that a node has a subnet. It fails when that overlaps one of another node; a
// subnet outside the pools is noted too, so that a pool that grows over it does not give it away.
func (s *subnets) occupy(node string, p netip.Prefix) error {
	p = p.Masked()
	for have, who := range s.owner {
		if who != node && have.Overlaps(p) {
			return fmt.Errorf("pod CIDR %s overlaps %s of node %s", p, have, who)
		}
	}
	s.owner[p] = node
	return nil
}

// allocate gives a node a subnet of its own.
func (s *subnets) allocate(node string) (netip.Prefix, error) {
	var total uint64
	for _, p := range s.parents {
		total += s.count(p)
	}
	// Free subnets are found within as many steps as there are taken ones, more or less.
	for i := range min(total, uint64(len(s.owner))*uint64(len(s.parents)+1)+1<<16) {
		p := s.at((s.cursor + i) % total)
		if s.free(p) {
			s.owner[p] = node
			s.cursor = (s.cursor + i + 1) % total
			return p, nil
		}
	}
	var names []string
	for _, p := range s.parents {
		names = append(names, p.String())
	}
	return netip.Prefix{}, fmt.Errorf("%w: all %d subnets /%d of %s are given to nodes", errPoolExhausted, total, s.bits, strings.Join(names, ", "))
}

func (s *subnets) free(p netip.Prefix) bool {
	if _, taken := s.owner[p]; taken {
		return false
	}
	for have := range s.owner {
		if have.Bits() != s.bits && have.Overlaps(p) {
			return false
		}
	}
	return true
}

// release takes back all subnets of a node.
func (s *subnets) release(node string) {
	for p, who := range s.owner {
		if who == node {
			delete(s.owner, p)
		}
	}
}

// of returns the subnets of a node.
func (s *subnets) of(node string) []netip.Prefix {
	var out []netip.Prefix
	for p, who := range s.owner {
		if who == node {
			out = append(out, p)
		}
	}
	return out
}
