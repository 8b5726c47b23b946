// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"math/bits"
	"net/netip"
	"sync/atomic"
	"time"

	"lash.internal/lash/bpf"
)

// hostPorts is map hostback: the ports of backends whose address is one of this node's own. A port
// stays there when no backend has it any more, until no flow needs it: replies of connections that
// outlive their backend are translated too.
type hostPorts struct {
	words   array[uint64]
	local   func(netip.Addr) bool
	now     func() time.Time
	uses    map[uint32]int       // backends by bit of the array
	resting map[uint32]time.Time // bits that no backend has, and since when
}

// bit is where a backend's port is in the array; false for protocols that have no bits.
func (b *backend) bit() (uint32, bool) {
	port := uint32(bpf.Port(b.port))
	switch b.proto {
	case protoTCP:
		return port, true
	case protoUDP:
		return bpf.HostbackWords*64 + port, true
	}
	return 0, false
}

// add is called before programs may choose a backend.
func (h *hostPorts) add(b *backend) {
	bit, ok := b.bit()
	if !ok || !h.local(bpf.FromIP(b.ip)) {
		return
	}
	b.host = true
	h.uses[bit]++
	delete(h.resting, bit)
	h.set(bit)
}

// remove is called when programs can no longer choose it.
func (h *hostPorts) remove(b *backend) {
	if !b.host {
		return
	}
	b.host = false
	bit, _ := b.bit()
	if h.uses[bit]--; h.uses[bit] > 0 {
		return
	}
	delete(h.uses, bit)
	h.resting[bit] = h.now()
}

// rest finds the bits that no backend has.
func (h *hostPorts) rest() {
	for i := range uint32(2 * bpf.HostbackWords) {
		for w := h.words.load(i); w != 0; w &= w - 1 {
			bit := i*64 + uint32(bits.TrailingZeros64(w))
			if _, known := h.resting[bit]; !known && h.uses[bit] == 0 {
				h.resting[bit] = h.now()
			}
		}
	}
}

func (h *hostPorts) set(bit uint32) {
	w := h.words.at(bit / 64)
	if v := atomic.LoadUint64(w); v>>(bit%64)&1 == 0 {
		atomic.StoreUint64(w, v|1<<(bit%64))
	}
}

// repair sets the bits that are missing. Others only cost programs a look.
func (h *hostPorts) repair() {
	for bit := range h.uses {
		h.set(bit)
	}
}

// AddressesChanged looks again which backends have an address of this node.
func (t *Target) AddressesChanged() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	h := &t.host
	clear(h.uses)
	for _, b := range t.byID {
		if b != nil {
			if b.host = false; !b.gone {
				h.add(b)
			}
		}
	}
	h.rest()
}

// Ports is a set of ports: those of TCP, then those of UDP, as in map hostback.
type Ports = [2 * bpf.HostbackWords]uint64

// ReleasePorts makes programs forget ports of backends that are gone. used are the ports of the flows
// there were at a time after since.
func (t *Target) ReleasePorts(since time.Time, used *Ports) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	h := &t.host
	for bit, at := range h.resting {
		// A packet under way may still begin a flow to a backend that has just gone.
		if since.Sub(at) < holdID || used[bit/64]>>(bit%64)&1 != 0 {
			continue
		}
		delete(h.resting, bit)
		w := h.words.at(bit / 64)
		atomic.StoreUint64(w, atomic.LoadUint64(w)&^(1<<(bit%64)))
	}
}
