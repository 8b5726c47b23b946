// SPDX-License-Identifier: Apache-2.0

// Package ipam gives pods of this node their addresses, out of the node's pod CIDRs.
//
//	pod CIDR    10.244.1.0/24
//	.0          network, never given away
//	.1          router: cilium_host, reserved from the start
//	.2 .. .252  pods, next-fit; a released address rests before it is used again
//	.254        source of what comes from outside to pods of other nodes (TakeSNAT)
//	.253        the node's health endpoint (TakeHealth)
//	.255        last address, never given away
//
// Where the CIDRs come from (the Node object or the operator's cluster pool) is not its business.
package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Errors of Pool.
var (
	ErrExhausted = errors.New("address pool is exhausted")
	ErrInUse     = errors.New("address is in use")
	ErrOutside   = errors.New("address is not in the node's pod CIDRs")
	ErrTooSmall  = errors.New("pod CIDR is too small")
)

// Rest is how long a released address is left alone while others are free, so that late packets
// and stale entries elsewhere do not reach its next owner.
const Rest = 2 * time.Minute

// RouterOwner, SNATOwner and HealthOwner own the node's own addresses in Pool.Usage.
const (
	RouterOwner = "router"
	SNATOwner   = "snat"
	HealthOwner = "health"
)

// Bounds of TakeSNAT and TakeHealth: a family with fewer usable addresses gives none away, and the
// highest one that is given away is this far from the start.
const (
	ownLeast = 16
	ownMost  = 0xfffe
)

// Pool hands out addresses. It is safe for concurrent use.
type Pool struct {
	now func() time.Time

	mu     sync.Mutex
	v4, v6 *family
}

type family struct {
	ranges  []span
	router  netip.Addr
	snat    netip.Addr // invalid: none
	health  netip.Addr // invalid: none
	owners  map[netip.Addr]string
	resting []rest // oldest first
	asleep  map[netip.Addr]struct{}
	cursor  uint64 // offset of the next candidate over all ranges
	size    uint64 // usable addresses of all ranges
}

// span is the usable part of one CIDR: size addresses from prefix+1.
type span struct {
	prefix netip.Prefix
	size   uint64
}

type rest struct {
	addr  netip.Addr
	since time.Time
}

// New makes a pool of the CIDRs, IPv4, IPv6 or both, and reserves the first usable address of the
// first CIDR of each family for the router.
func New(cidrs []netip.Prefix) (*Pool, error) { return newPool(cidrs, time.Now) }

func newPool(cidrs []netip.Prefix, now func() time.Time) (*Pool, error) {
	p := &Pool{now: now}
	for _, c := range cidrs {
		c = c.Masked()
		bits := c.Addr().BitLen() - c.Bits()
		if bits < 2 {
			return nil, fmt.Errorf("%s: %w: it needs at least 4 addresses", c, ErrTooSmall)
		}
		f := &p.v4
		if c.Addr().Is6() {
			f = &p.v6
		}
		if *f == nil {
			*f = &family{owners: map[netip.Addr]string{}, asleep: map[netip.Addr]struct{}{}}
		}
		s := span{prefix: c, size: 1<<min(bits, 62) - 2}
		(*f).ranges = append((*f).ranges, s)
		(*f).size += s.size
	}
	if p.v4 == nil && p.v6 == nil {
		return nil, errors.New("no pod CIDR: cannot give pods addresses")
	}
	for _, f := range []*family{p.v4, p.v6} {
		if f != nil {
			f.router = f.at(0)
			f.owners[f.router] = RouterOwner
			f.cursor = 1
		}
	}
	return p, nil
}

// at returns the usable address of an offset over all ranges.
func (f *family) at(off uint64) netip.Addr {
	for _, s := range f.ranges {
		if off < s.size {
			return add(s.prefix.Addr(), off+1)
		}
		off -= s.size
	}
	return netip.Addr{}
}

// add returns a+n. The host part of a is zero and n fits into it.
func add(a netip.Addr, n uint64) netip.Addr {
	if a.Is4() {
		b := a.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
		return netip.AddrFrom4(b)
	}
	b := a.As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+n)
	return netip.AddrFrom16(b)
}

// usable says whether the pool may give a to a pod.
func (f *family) usable(a netip.Addr) bool {
	for _, s := range f.ranges {
		if s.prefix.Contains(a) {
			return a != s.prefix.Addr() && a != add(s.prefix.Addr(), s.size+1) && a != f.router
		}
	}
	return false
}

func (f *family) next(now time.Time) (netip.Addr, bool) {
	for len(f.resting) > 0 && now.Sub(f.resting[0].since) >= Rest {
		f.wake()
	}
	if uint64(len(f.owners)+len(f.asleep)) < f.size {
		for {
			a := f.at(f.cursor % f.size)
			f.cursor = (f.cursor + 1) % f.size
			_, used := f.owners[a]
			_, sleeps := f.asleep[a]
			if !used && !sleeps {
				return a, true
			}
		}
	}
	if len(f.resting) > 0 {
		a := f.resting[0].addr
		f.wake()
		return a, true
	}
	return netip.Addr{}, false
}

func (f *family) wake() {
	delete(f.asleep, f.resting[0].addr)
	f.resting = f.resting[1:]
}

func (f *family) release(a netip.Addr, now time.Time) {
	if owner, ok := f.owners[a]; !ok || owner == RouterOwner || owner == SNATOwner || owner == HealthOwner {
		return
	}
	delete(f.owners, a)
	f.asleep[a] = struct{}{}
	f.resting = append(f.resting, rest{a, now})
}

func (f *family) cidrs() string {
	var out []string
	for _, s := range f.ranges {
		out = append(out, s.prefix.String())
	}
	return strings.Join(out, ", ")
}

// Routers returns the router addresses, one a family.
func (p *Pool) Routers() []netip.Addr {
	var out []netip.Addr
	for _, f := range []*family{p.v4, p.v6} {
		if f != nil {
			out = append(out, f.router)
		}
	}
	return out
}

// Router4 returns the IPv4 router address, invalid without IPv4.
func (p *Pool) Router4() netip.Addr { return routerOf(p.v4) }

// Router6 returns the IPv6 router address, invalid without IPv6.
func (p *Pool) Router6() netip.Addr { return routerOf(p.v6) }

func routerOf(f *family) netip.Addr {
	if f == nil {
		return netip.Addr{}
	}
	return f.router
}

// TakeSNAT reserves an address of each family that nothing else of the node sends from: one of have,
// those of an earlier run, if it can, else the highest that is not one of pods, which those of an earlier
// run have. A family that is too small for it, or full, goes without. It is called once.
func (p *Pool) TakeSNAT(have, pods []netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range []*family{p.v4, p.v6} {
		if f != nil {
			f.snat = f.take(SNATOwner, have, pods)
		}
	}
}

// take gives owner the first of have that is free, else the highest address that is. None of others is.
func (f *family) take(owner string, have, others []netip.Addr) netip.Addr {
	if f.size < ownLeast {
		return netip.Addr{}
	}
	free := func(a netip.Addr) bool {
		_, owned := f.owners[a]
		return !owned && f.usable(a) && !slices.Contains(others, a)
	}
	if i := slices.IndexFunc(have, free); i >= 0 {
		f.owners[have[i]] = owner
		return have[i]
	}
	for off := min(f.size, ownMost) - 1; off > 0; off-- {
		if a := f.at(off); free(a) {
			f.owners[a] = owner
			return a
		}
	}
	return netip.Addr{}
}

// TakeHealth reserves an address of each family for the health endpoint, by the rules of TakeSNAT. It is
// called once.
func (p *Pool) TakeHealth(have, pods []netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range []*family{p.v4, p.v6} {
		if f != nil {
			f.health = f.take(HealthOwner, have, pods)
		}
	}
}

// Health returns the addresses that TakeHealth has reserved, at most one a family.
func (p *Pool) Health() []netip.Addr {
	var out []netip.Addr
	for _, f := range []*family{p.v4, p.v6} {
		if f != nil && f.health.IsValid() {
			out = append(out, f.health)
		}
	}
	return out
}

// SNAT returns the addresses that TakeSNAT has reserved, at most one a family.
func (p *Pool) SNAT() []netip.Addr {
	var out []netip.Addr
	for _, f := range []*family{p.v4, p.v6} {
		if f != nil && f.snat.IsValid() {
			out = append(out, f.snat)
		}
	}
	return out
}

// Own returns all addresses of the node itself: the router addresses, then those of SNAT.
func (p *Pool) Own() []netip.Addr { return append(p.Routers(), p.SNAT()...) }

// Allocate gives owner one address of each family of the pool, or none at all. The error is
// ErrExhausted when a family has none left.
func (p *Pool) Allocate(owner string) (v4, v6 netip.Addr, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if p.v4 != nil {
		var ok bool
		if v4, ok = p.v4.next(now); !ok {
			return netip.Addr{}, netip.Addr{}, fmt.Errorf("%w: all %d IPv4 addresses of %s are in use", ErrExhausted, p.v4.size, p.v4.cidrs())
		}
	}
	if p.v6 != nil {
		var ok bool
		if v6, ok = p.v6.next(now); !ok {
			return netip.Addr{}, netip.Addr{}, fmt.Errorf("%w: all %d IPv6 addresses of %s are in use", ErrExhausted, p.v6.size, p.v6.cidrs())
		}
		p.v6.owners[v6] = owner
	}
	if p.v4 != nil {
		p.v4.owners[v4] = owner
	}
	return v4, v6, nil
}

// Reserve gives owner a certain address, as a restored endpoint has it. The error is ErrOutside or
// ErrInUse.
func (p *Pool) Reserve(owner string, a netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.of(a)
	if f == nil || !f.usable(a) {
		return fmt.Errorf("reserve %s for %s: %w", a, owner, ErrOutside)
	}
	if have, ok := f.owners[a]; ok && have != owner {
		return fmt.Errorf("reserve %s for %s: %w by %s", a, owner, ErrInUse, have)
	}
	f.owners[a] = owner
	if _, ok := f.asleep[a]; ok {
		delete(f.asleep, a)
		f.resting = slices.DeleteFunc(f.resting, func(r rest) bool { return r.addr == a })
	}
	return nil
}

// Release takes addresses back; those that are not given away are ignored.
func (p *Pool) Release(addrs ...netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range addrs {
		if f := p.of(a); f != nil {
			f.release(a, p.now())
		}
	}
}

func (p *Pool) of(a netip.Addr) *family {
	switch {
	case a.Is4():
		return p.v4
	case a.Is6():
		return p.v6
	}
	return nil
}

// Usage is the fill of one family.
type Usage struct {
	Family    string       `json:"family"` // IPv4 or IPv6
	CIDRs     string       `json:"cidrs"`
	Capacity  uint64       `json:"capacity"`
	Allocated int          `json:"allocated"`
	Addresses []Allocation `json:"addresses"` // ascending
}

// Allocation is one address given away.
type Allocation struct {
	Addr  netip.Addr `json:"addr"`
	Owner string     `json:"owner"`
}

// Usage returns the fill of each family of the pool.
func (p *Pool) Usage() []Usage {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Usage
	for _, n := range []struct {
		name string
		f    *family
	}{{"IPv4", p.v4}, {"IPv6", p.v6}} {
		if n.f == nil {
			continue
		}
		u := Usage{Family: n.name, CIDRs: n.f.cidrs(), Capacity: n.f.size, Allocated: len(n.f.owners)}
		for _, a := range slices.SortedFunc(maps.Keys(n.f.owners), netip.Addr.Compare) {
			u.Addresses = append(u.Addresses, Allocation{Addr: a, Owner: n.f.owners[a]})
		}
		out = append(out, u)
	}
	return out
}
