// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"fmt"
	"net/netip"

	"lash.internal/lash/bpf"
)

// endpoint is the address, port and protocol of a backend, as the maps have them.
type endpoint struct {
	ip    [16]byte
	port  uint16
	proto uint8
}

func endpointOf(a netip.AddrPort, proto uint8) endpoint {
	return endpoint{bpf.IP(a.Addr()), bpf.Port(a.Port()), proto}
}

func (e endpoint) addr() netip.AddrPort {
	return netip.AddrPortFrom(bpf.FromIP(e.ip), bpf.Port(e.port))
}

// backend is one element of map backend.
type backend struct {
	endpoint
	gen      uint16
	gone     bool
	host     bool // its address is one of this node's own
	id       uint32
	active   int32  // lists that have it
	draining int32  // Services that let it finish
	mark     uint32 // see Target.marked
}

func (b *backend) state() uint8 {
	switch {
	case b.active > 0:
		return bpf.BackendActive
	case b.draining > 0:
		return bpf.BackendTerminating
	}
	return bpf.BackendGone
}

func (b *backend) element() bpf.Backend {
	return bpf.Backend{Ip: b.ip, Port: b.port, Proto: b.proto, State: b.state(), Gen: b.gen}
}

// acquire returns the backend of an endpoint and says whether nothing used it before. One that
// went lately gets its number again, with a new generation: it may be somebody else by now.
func (t *Target) acquire(e endpoint) (b *backend, isNew bool, err error) {
	b = t.byID.at(t.byAddr[e]) // nobody has number 0
	if b != nil && !b.gone {
		return b, false, nil
	}
	if b != nil && t.backendIDs.reserve(b.id) {
		b.gone = false
		b.gen++
		t.host.add(b)
		return b, true, nil
	}
	id, err := t.backendIDs.alloc(t.now())
	if err != nil {
		return nil, false, fmt.Errorf("backend number: %w", err)
	}
	if last := t.byID.at(id); last != nil && t.byAddr[last.endpoint] == id {
		delete(t.byAddr, last.endpoint)
	}
	b = &backend{endpoint: e, id: id, gen: t.backends.at(id).Gen + 1}
	t.byAddr[e] = id
	t.byID.put(id, b)
	t.host.add(b)
	return b, true, nil
}

// retire says that a backend is gone and lets its number rest.
func (t *Target) retire(b *backend) {
	b.gone, b.active, b.draining = true, 0, 0
	t.backends.store(b.id, b.element())
	t.host.remove(b)
	t.backendIDs.put(b.id, t.now())
}

// dropOrphans ends what was there at the start and that nobody has asked for since. Such backends
// may have been draining: their flows get the time that numbers rest.
func (t *Target) dropOrphans() {
	if t.swept || t.now().Sub(t.opened) < holdID {
		return
	}
	t.swept = true
	bump := false
	for _, b := range t.orphans {
		if !b.gone && b.state() == bpf.BackendGone {
			t.retire(b)
			bump = true
		}
	}
	t.orphans = nil
	for id := range t.ranges {
		if t.owners.at(id) == nil {
			// What cannot be removed now is when the number is given out.
			_ = t.keepRanges(id, nil)
		}
	}
	if !bump {
		return
	}
	for _, r := range t.records {
		if r.id != 0 {
			t.bump(r.id)
		}
	}
}

// newEpoch begins a set of marked backends.
func (t *Target) newEpoch(lists ...[]*backend) {
	t.epoch++
	for _, l := range lists {
		for _, b := range l {
			b.mark = t.epoch
		}
	}
}

// marked says whether a backend is in the set.
func (t *Target) marked(b *backend) bool { return b.mark == t.epoch }
