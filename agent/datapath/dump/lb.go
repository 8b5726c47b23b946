// SPDX-License-Identifier: Apache-2.0

package dump

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/bpf"
)

// block takes a reference apart: base of the slots, and how many there are.
func block(v uint64) (base uint64, n int) {
	return v & (1<<bpf.SvcBlockShift - 1), int(v >> bpf.SvcBlockShift)
}

// backendStates are the words of enum backend_state.
var backendStates = []string{"gone", "active", "terminating"}

type frontend struct {
	addr  netip.AddrPort
	proto uint8
	id    uint32
	flags uint32
}

func (f frontend) String() string {
	return fmt.Sprintf("%s/%s", f.addr, protoName(f.proto))
}

func (d *Maps) frontends() ([]frontend, error) {
	rows, err := read[bpf.FrontKey, bpf.Front](d, "front")
	if err != nil {
		return nil, err
	}
	out := make([]frontend, 0, len(rows))
	for _, e := range rows {
		ip := bpf.FromIP(e.key.Ip)
		if !ip.IsValid() {
			ip = netip.IPv6Unspecified()
		}
		out = append(out, frontend{
			addr:  netip.AddrPortFrom(ip, bpf.Port(e.key.Port)),
			proto: e.key.Proto, id: e.val.SvcId, flags: e.val.Flags,
		})
	}
	slices.SortFunc(out, func(a, b frontend) int {
		return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.proto, b.proto))
	})
	return out, nil
}

func (d *Maps) fronts() ([]api.MapEntry, error) {
	fs, err := d.frontends()
	var out []api.MapEntry
	for _, f := range fs {
		out = append(out, api.MapEntry{Key: f.String(), Value: fmt.Sprintf("%d (%s)", f.id, f.kind())})
	}
	return out, err
}

// slotsOf reads the backend ids of a block.
func (d *Maps) slotsOf(v uint64) ([]uint32, error) {
	base, n := block(v)
	var out []uint32
	for i := range uint64(n) {
		idx := base + i
		s, err := at[bpf.Slots](d, "slot", uint32(idx/uint64(len(bpf.Slots{}.BackendId))))
		if err != nil {
			return out, err
		}
		out = append(out, s.BackendId[idx%uint64(len(s.BackendId))])
	}
	return out, nil
}

func backendAddr(b bpf.Backend) string {
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(bpf.FromIP(b.Ip), bpf.Port(b.Port)), protoName(b.Proto))
}

// viewLB joins frontends, blocks and backends. Slot 0 is the frontend itself. Where the Service has a
// block of its backends on this node, these are marked.
func (d *Maps) viewLB() ([]api.MapEntry, error) {
	fs, err := d.frontends()
	if err != nil {
		return nil, err
	}
	var out []api.MapEntry
	for _, f := range fs {
		svc, err := at[bpf.Svc](d, "svc", f.id)
		if err != nil {
			return nil, err
		}
		none := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
		if f.addr.Addr().Is6() {
			none = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
		}
		out = append(out, api.MapEntry{
			Key:   f.String() + " (0)",
			Value: fmt.Sprintf("%s (%d) (0) [%s]", none, f.id, f.words(svc)),
		})
		ids, err := d.slotsOf(svc.BlkAll)
		if err != nil {
			return nil, err
		}
		local, err := d.slotsOf(svc.BlkLocal)
		if err != nil {
			return nil, err
		}
		for _, id := range local { // it may have some that only callers on this node get
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
		for i, id := range ids {
			b, err := at[bpf.Backend](d, "backend", id)
			if err != nil {
				return nil, err
			}
			v := fmt.Sprintf("%s (%d) (%d)", backendAddr(b), f.id, i+1)
			if slices.Contains(local, id) {
				v += " [local]"
			}
			out = append(out, api.MapEntry{Key: fmt.Sprintf("%s (%d)", f, i+1), Value: v})
		}
	}
	return out, nil
}

func (d *Maps) viewRevNAT() ([]api.MapEntry, error) {
	fs, err := d.frontends()
	var out []api.MapEntry
	slices.SortStableFunc(fs, func(a, b frontend) int { return cmp.Compare(a.id, b.id) })
	for _, f := range fs {
		out = append(out, api.MapEntry{Key: fmt.Sprint(f.id), Value: f.addr.String()})
	}
	return out, err
}

func (d *Maps) svcs() ([]api.MapEntry, error) {
	fs, err := d.frontends()
	if err != nil {
		return nil, err
	}
	seen := map[uint32]bool{}
	var out []api.MapEntry
	for _, f := range fs {
		if seen[f.id] {
			continue
		}
		seen[f.id] = true
		s, err := at[bpf.Svc](d, "svc", f.id)
		if err != nil {
			return nil, err
		}
		base, n := block(s.BlkAll)
		lbase, ln := block(s.BlkLocal)
		out = append(out, api.MapEntry{
			Key: fmt.Sprint(f.id),
			Value: fmt.Sprintf("frontend=%s slots=%d+%d local=%d+%d maglev=%d affinity=%ds flags=0x%x gen=%d set=%d",
				f, base, n, lbase, ln, s.Maglev, s.AffinitySecs, s.Flags, s.Gen, s.SetGen),
		})
	}
	return out, nil
}

// backends lists the backends that the array holds, each once, by id.
func (d *Maps) backends() ([]api.MapEntry, error) {
	rows, err := read[uint32, bpf.Backend](d, "backend")
	var out []api.MapEntry
	for _, e := range rows {
		if e.val.State == bpf.BackendGone {
			continue
		}
		out = append(out, api.MapEntry{
			Key:   fmt.Sprint(e.key),
			Value: fmt.Sprintf("%s (%s)", backendAddr(e.val), word(backendStates, e.val.State)),
		})
	}
	return out, err
}

func (d *Maps) skrevs() ([]api.MapEntry, error) {
	rows, err := read[bpf.SkrevKey, bpf.Skrev](d, "skrev")
	var out []api.MapEntry
	for _, e := range rows {
		out = append(out, api.MapEntry{
			Key:   fmt.Sprintf("socket %d, %s", e.key.Cookie, netip.AddrPortFrom(bpf.FromIP(e.key.Ip), bpf.Port(e.key.Port))),
			Value: fmt.Sprintf("%s service=%d", netip.AddrPortFrom(bpf.FromIP(e.val.Ip), bpf.Port(e.val.Port)), e.val.SvcId),
		})
	}
	return sortEntries(out), err
}
