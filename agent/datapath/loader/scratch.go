// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"lash.internal/lash/agent/datapath/maps"
	"lash.internal/lash/bpf"
)

// Sizes of scratch maps: entries, and bytes of the event ring.
const (
	scratchEntries = 1024
	scratchRing    = 64 << 10
)

// Scratch is a generation over maps of its own, which are small and pinned nowhere. Its programs do
// what those of the real one do, and record where they send a packet.
type Scratch struct {
	Programs map[string]*ebpf.Program
	Maps     map[string]*ebpf.Map
}

// Scratch loads all objects with the constants of cfg.
func (s *Specs) Scratch(cfg bpf.Config) (*Scratch, error) {
	cfg.Test = true
	cfg.Encap = false // whether there is a way to another node is not for a test to say
	out := &Scratch{Programs: map[string]*ebpf.Program{}, Maps: map[string]*ebpf.Map{}}
	for _, o := range s.objs {
		if err := out.add(o, cfg); err != nil {
			out.Close()
			return nil, fmt.Errorf("object %s: %w", o.Name, err)
		}
	}
	return out, nil
}

func (s *Scratch) add(o Object, cfg bpf.Config) error {
	spec := o.Spec.Copy()
	if err := cfg.Apply(spec); err != nil {
		return err
	}
	shared := map[string]*ebpf.Map{}
	for name, m := range spec.Maps {
		if m.Type == ebpf.RingBuf {
			m.MaxEntries = scratchRing
		} else {
			m.MaxEntries = min(m.MaxEntries, scratchEntries)
		}
		if have := s.Maps[name]; have != nil && maps.Shared(name) {
			shared[name] = have
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return err
	}
	defer coll.Close()
	for name, p := range coll.Programs {
		if s.Programs[name] != nil {
			return errors.New("program " + name + " is in two objects")
		}
		s.Programs[name] = p
		delete(coll.Programs, name)
	}
	for name, m := range coll.Maps {
		if s.Maps[name] == nil {
			s.Maps[name] = m
			delete(coll.Maps, name)
		}
	}
	return nil
}

// Close closes programs and maps, which ends them.
func (s *Scratch) Close() {
	for _, p := range s.Programs {
		p.Close()
	}
	for _, m := range s.Maps {
		m.Close()
	}
}
