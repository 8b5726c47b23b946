// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"net/netip"
	"sync/atomic"

	"lash.internal/lash/bpf"
)

// hostPorts is map hostback: the ports of backends whose address is one of this node's own.
type hostPorts struct {
	words array[uint64]
	local func(netip.Addr) bool
	uses  map[uint32]int // backends by bit of the array
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
	w := h.words.at(bit / 64)
	atomic.StoreUint64(w, atomic.LoadUint64(w)&^(1<<(bit%64)))
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
	var want [2 * bpf.HostbackWords]uint64
	for bit := range h.uses {
		want[bit/64] |= 1 << (bit % 64)
	}
	for i, v := range want {
		h.words.store(uint32(i), v)
	}
}
