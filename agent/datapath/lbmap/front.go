// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"lash.internal/lash/agent/datapath/maps"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// Numbers of protocols (source: IANA protocol numbers).
const (
	protoTCP  = 6
	protoUDP  = 17
	protoSCTP = 132
)

var protocols = map[string]uint8{"TCP": protoTCP, "UDP": protoUDP, "SCTP": protoSCTP}

// frontTypes are the types of frontends at their numbers (enum front_type).
var frontTypes = []state.FrontType{
	bpf.FrontClusterIP:    state.FrontClusterIP,
	bpf.FrontNodePort:     state.FrontNodePort,
	bpf.FrontExternalIP:   state.FrontExternalIP,
	bpf.FrontLoadBalancer: state.FrontLoadBalancer,
	bpf.FrontHostPort:     state.FrontHostPort,
}

// entry is one element of map front.
type entry struct {
	key bpf.FrontKey
	val bpf.Front
}

func frontKey(f state.Frontend) (bpf.FrontKey, error) {
	k := bpf.FrontKey{Ip: bpf.IP(f.Addr), Port: bpf.Port(f.Port), Proto: protocols[f.Protocol]}
	if k.Proto == 0 {
		return k, fmt.Errorf("frontend %s: protocol has to be TCP, UDP or SCTP", f)
	}
	if !f.Addr.IsValid() {
		return k, fmt.Errorf("frontend %s: has no address", f)
	}
	return k, nil
}

// ours says whether a key is of this target.
func ours(k bpf.FrontKey) bool {
	return k.Cluster == 0 && (k.Proto == protoTCP || k.Proto == protoUDP || k.Proto == protoSCTP)
}

// frontend is the inverse of frontKey.
func frontend(k bpf.FrontKey) state.Frontend {
	f := state.Frontend{Addr: netip.AddrFrom16(k.Ip).Unmap(), Port: bpf.Port(k.Port)}
	switch k.Proto {
	case protoTCP:
		f.Protocol = "TCP"
	case protoUDP:
		f.Protocol = "UDP"
	case protoSCTP:
		f.Protocol = "SCTP"
	}
	return f
}

// flagsOf are the flags of a frontend in map front.
func flagsOf(f state.Front, primary bool) (uint32, error) {
	kind := slices.Index(frontTypes, f.Type)
	if kind < 0 {
		return 0, fmt.Errorf("frontend %s: no such type %q", f.Frontend, f.Type)
	}
	flags := uint32(kind) << bpf.FrontTypeShift
	if primary {
		flags |= bpf.FrontPrimary
	}
	if f.Outside {
		flags |= bpf.FrontOutside
	}
	if f.Sources {
		flags |= bpf.FrontSources
	}
	if f.Type == state.FrontHostPort && f.Addr.IsUnspecified() {
		flags |= bpf.FrontThisNode
	}
	return flags, nil
}

// frontOf is the inverse of flagsOf; false for what flagsOf never gives.
func frontOf(e entry) (state.Front, bool) {
	f := state.Front{Outside: e.val.Flags&bpf.FrontOutside != 0, Sources: e.val.Flags&bpf.FrontSources != 0}
	f.Frontend = frontend(e.key)
	kind := e.val.Flags >> bpf.FrontTypeShift
	if int(kind) >= len(frontTypes) {
		return f, false
	}
	f.Type = frontTypes[kind]
	flags, err := flagsOf(f, e.val.Flags&bpf.FrontPrimary != 0)
	return f, err == nil && flags == e.val.Flags
}

// primary is the frontend by which the agent knows a Service port.
func primary(f state.Frontend, kind state.FrontType) state.Front {
	if kind == "" {
		kind = state.FrontClusterIP
	}
	return state.Front{Frontend: f, Type: kind, Outside: kind != state.FrontClusterIP}
}

// entries are the elements of map front for a Service port, the primary one first. It is written
// first and removed last: what an interrupted run leaves can be told by it.
func entries(id uint32, key bpf.FrontKey, b state.Balance) ([]entry, error) {
	out := make([]entry, 0, 1+len(b.Fronts))
	self := frontend(key)
	add := func(f state.Front, first bool) error {
		k, err := frontKey(f.Frontend)
		if err != nil {
			return err
		}
		if f.Protocol != self.Protocol || f.Addr.Is4() != self.Addr.Is4() {
			return fmt.Errorf("frontend %s: has another family or protocol than %s", f.Frontend, self)
		}
		if !first && slices.ContainsFunc(out, func(e entry) bool { return e.key == k }) {
			return fmt.Errorf("frontend %s: stands there twice", f.Frontend)
		}
		flags, err := flagsOf(f, first)
		out = append(out, entry{k, bpf.Front{SvcId: id, Flags: flags}})
		return err
	}
	if err := add(primary(self, b.Type), true); err != nil {
		return nil, err
	}
	for _, f := range b.Fronts {
		if err := add(f, false); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// outside says whether callers outside the cluster may use one of the frontends.
func outside(es []entry) bool {
	return slices.ContainsFunc(es, func(e entry) bool { return e.val.Flags&bpf.FrontOutside != 0 })
}

// readFronts brings what we believe to be in map front up to date.
func (t *Target) readFronts() error {
	n, same := 0, true
	err := maps.Each(t.front, func(k bpf.FrontKey, v bpf.Front) {
		if ours(k) {
			n++
			same = same && t.fronts[k] == v // a number is never 0
		}
	})
	if err != nil {
		return fmt.Errorf("read frontends: %w", err)
	}
	if same && n == len(t.fronts) {
		return nil
	}
	_, err = t.takeFronts()
	return err
}

// takeFronts believes what is in map front.
func (t *Target) takeFronts() ([]entry, error) {
	var es []entry
	err := maps.Each(t.front, func(k bpf.FrontKey, v bpf.Front) {
		if ours(k) {
			es = append(es, entry{k, v})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read frontends: %w", err)
	}
	t.fronts = make(map[bpf.FrontKey]bpf.Front, len(es))
	for _, e := range es {
		t.fronts[e.key] = e.val
	}
	return es, nil
}

// putFronts writes the elements that differ. One that belonged to another Service port is taken over.
func (t *Target) putFronts(es []entry) error {
	for _, e := range es {
		if t.fronts[e.key] == e.val {
			continue
		}
		if err := t.front.Update(&e.key, &e.val, ebpf.UpdateAny); err != nil {
			return fmt.Errorf("write frontend %s: %w", frontend(e.key), err)
		}
		t.fronts[e.key] = e.val
	}
	return nil
}

// outdate notes the elements of a Service port that it no longer wants: dropOutdated removes them.
func (t *Target) outdate(r *record, keep []entry) {
	for _, e := range r.fronts {
		if !slices.ContainsFunc(keep, func(k entry) bool { return k.key == e.key }) {
			t.outdated[r.id] = append(t.outdated[r.id], e.key)
		}
	}
}

// dropOutdated removes what outdate has noted, unless it is another's or to be kept.
func (t *Target) dropOutdated(id uint32, keep []entry) error {
	for len(t.outdated[id]) > 0 {
		keys := t.outdated[id]
		last := keys[len(keys)-1]
		kept := slices.ContainsFunc(keep, func(e entry) bool { return e.key == last })
		if !kept && t.holds(id, last) {
			if err := t.front.Delete(&last); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("delete frontend %s: %w", frontend(last), err)
			}
			delete(t.fronts, last)
		}
		t.outdated[id] = keys[:len(keys)-1]
	}
	delete(t.outdated, id)
	return nil
}

// holds says whether an element of map front leads to a number, or to none that we know.
func (t *Target) holds(id uint32, k bpf.FrontKey) bool {
	v, there := t.fronts[k]
	return there && (v.SvcId == id || t.owners.at(v.SvcId) == nil)
}
