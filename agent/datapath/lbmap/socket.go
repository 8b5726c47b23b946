// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"lash.internal/lash/bpf"
)

// Left returns a channel that closes with the next backend of UDP that leaves a Service.
func (t *Target) Left() <-chan struct{} { return t.left.Watch() }

// Outlived says whether a UDP socket of the node, known by its cookie, was connected by way of a Service
// to a backend that this Service does not have any more, not even one that is about to end.
func (t *Target) Outlived(cookie uint64, peer netip.AddrPort) (bool, error) {
	if t.skrev == nil {
		return false, nil
	}
	e := endpointOf(peer, protoUDP)
	var v bpf.Skrev
	err := t.skrev.Lookup(&bpf.SkrevKey{Cookie: cookie, Ip: e.ip, Port: e.port}, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil // its owner has chosen the peer
	}
	if err != nil {
		return false, fmt.Errorf("map skrev: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.owners.at(v.SvcId)
	if t.closed || r != nil && r.damaged {
		return false, nil
	}
	has := func(l []*backend) bool {
		return slices.ContainsFunc(l, func(b *backend) bool { return b.endpoint == e })
	}
	return r == nil || !has(r.all.backends) && !has(r.local.backends) && !has(r.draining), nil
}
