// SPDX-License-Identifier: Apache-2.0

// Package maps owns the BPF maps that outlive the agent: it creates them once, pins them under
// <bpf-root>/lash/maps and finds them again after a restart. Map is the reconcile target that a
// hash or trie of such a set makes.
package maps

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"lash.internal/lash/bpf"
)

// ephemeral maps belong to a generation of programs and are not pinned.
var ephemeral = []string{"scratch", "test_rec"}

// kept are the maps, beside the flow tables, whose content must survive: a pinned one keeps its size.
var kept = []string{"skrev"}

// ErrNoMap means that a map of that name does not exist.
var ErrNoMap = errors.New("no such map")

// Set is the open maps by name.
type Set struct {
	maps map[string]*ebpf.Map
	// Created lists the maps that did not exist, or not in a form that can be used.
	Created []string
	// Replaced lists those of Created that existed in another form. The former ones stay pinned
	// beside them, for programs that still use them, until Commit or Revert.
	Replaced []string
	// Lost lists tables that were left over in a form that no flow can be taken over from.
	Lost   []string
	dir    string
	undone map[string]string // pin of a replaced table that is its former self's again on Revert
}

// replaced ends the pin name of a map that stands beside its successor.
const replaced = "_old"

// Dir is where the maps are pinned.
func Dir(bpfRoot string) string { return filepath.Join(bpfRoot, "lash", "maps") }

func pinName(name string) string {
	abi := bpf.MapABI
	if isTable(strings.TrimSuffix(name, prevSuffix)) {
		abi = bpf.CtABI
	}
	return fmt.Sprintf("%s_v%d", name, abi)
}

func isTable(name string) bool { return slices.Contains(tables, name) }

// Open opens or creates every map that the specs declare and that is not private to a program.
// sizes are the numbers of entries that maps should have: flow tables without one keep theirs, others
// get what the specs say. The specs are changed so that they fit maps that exist with another size.
func Open(bpfRoot string, sizes map[string]uint32, specs ...*ebpf.CollectionSpec) (*Set, error) {
	dir := Dir(bpfRoot)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("pin directory: %w", err)
	}
	s := &Set{maps: map[string]*ebpf.Map{}, dir: dir, undone: map[string]string{}}
	together := map[string]*ebpf.MapSpec{}
	for _, spec := range specs {
		for name, ms := range spec.Maps {
			if n := sizes[name]; n > 0 && !isTable(name) {
				ms.MaxEntries = n
			}
			if slices.Contains(linked, name) {
				together[name] = ms
			}
		}
	}
	if err := s.replaceLinked(together); err != nil {
		return nil, err
	}
	for _, spec := range specs {
		for name, ms := range spec.Maps {
			if !Shared(name) {
				continue
			}
			m := s.maps[name]
			if m == nil {
				var err error
				if isTable(name) {
					m, err = s.openTable(dir, name, ms, spec.Maps[name+prevSuffix], sizes[name])
				} else {
					m, err = s.open(filepath.Join(dir, pinName(name)), name, ms)
				}
				if err != nil {
					s.Close()
					return nil, fmt.Errorf("map %s: %w", name, err)
				}
				s.maps[name] = m
			}
			ms.MaxEntries = m.MaxEntries()
		}
	}
	slices.Sort(s.Created)
	return s, nil
}

// Shared says whether a map of a collection is shared by all programs and pinned.
func Shared(name string) bool {
	return name != "" && name[0] != '.' && !slices.Contains(ephemeral, name) && !strings.HasSuffix(name, prevSuffix)
}

func (s *Set) open(path, name string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	switch {
	case err == nil:
		want := *spec
		if slices.Contains(kept, name) {
			want.MaxEntries = m.MaxEntries()
		}
		if err := want.Compatible(m); err == nil {
			return m, nil
		} else if slices.Contains(kept, name) {
			m.Close()
			return nil, fmt.Errorf("pinned at %s in another form: %w", path, err)
		}
		// Its content is rebuilt from the API; the programs that use the old one go on with it
		// until they are replaced.
		m.Close()
		if err := os.Remove(path + replaced); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("old pin: %w", err)
		}
		if err := os.Rename(path, path+replaced); err != nil {
			return nil, fmt.Errorf("old pin: %w", err)
		}
		s.Replaced = append(s.Replaced, name)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open pin: %w", err)
	}
	return s.create(path, name, spec, 0)
}

// Commit forgets the maps that were replaced, in this start or an earlier one.
func (s *Set) Commit() error {
	old, err := filepath.Glob(filepath.Join(s.dir, "*"+replaced))
	if err != nil {
		return err
	}
	for _, path := range old {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// Diverged says whether programs of before run over maps that are no longer in their place.
func (s *Set) Diverged() bool {
	old, _ := filepath.Glob(filepath.Join(s.dir, "*"+replaced)) // the pattern is valid
	return len(old) > 0 || len(s.Replaced) > 0 || len(s.Moving()) > 0
}

// Revert puts the maps that were replaced back into their place, as programs of before are to go on
// with them, and closes the set.
func (s *Set) Revert() error {
	s.Close()
	var errs []error
	for _, name := range s.Replaced {
		path := filepath.Join(s.dir, pinName(name))
		if old, table := s.undone[name]; table {
			errs = append(errs, os.Remove(path), os.Rename(filepath.Join(s.dir, pinName(name+prevSuffix)), old))
			continue
		}
		errs = append(errs, os.Remove(path), os.Rename(path+replaced, path))
	}
	return errors.Join(errs...)
}

// OpenPinned opens the maps of a node without creating any, for reading and cleaning.
func OpenPinned(bpfRoot string) (*Set, error) {
	entries, err := os.ReadDir(Dir(bpfRoot))
	if err != nil {
		return nil, fmt.Errorf("pinned maps: %w", err)
	}
	s := &Set{maps: map[string]*ebpf.Map{}}
	for _, e := range entries {
		name, _, _ := strings.Cut(e.Name(), "_v")
		if e.Name() != pinName(name) {
			continue // of another version
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(Dir(bpfRoot), e.Name()), nil)
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("map %s: %w", e.Name(), err)
		}
		s.maps[name] = m
	}
	return s, nil
}

// Get returns the map of a name; ErrNoMap when there is none. It stays open until the set closes.
func (s *Set) Get(name string) (*ebpf.Map, error) {
	m := s.maps[name]
	if m == nil {
		return nil, fmt.Errorf("%w: %s", ErrNoMap, name)
	}
	return m, nil
}

// Of is Get for a map that every object declares; nil when it is missing.
func (s *Set) Of(name string) *ebpf.Map { return s.maps[name] }

// All returns the maps by name, for those who show them.
func (s *Set) All() map[string]*ebpf.Map { return maps.Clone(s.maps) }

// Names lists the maps, sorted.
func (s *Set) Names() []string {
	out := make([]string, 0, len(s.maps))
	for n := range s.maps {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// Replacements returns the maps that a collection of spec is to use instead of its own, and changes
// the spec so that it fits them.
func (s *Set) Replacements(spec *ebpf.CollectionSpec) map[string]*ebpf.Map {
	out := map[string]*ebpf.Map{}
	for name, ms := range spec.Maps {
		if m := s.maps[name]; m != nil {
			out[name], ms.MaxEntries, ms.Flags = m, m.MaxEntries(), m.Flags()
		} else if strings.HasSuffix(name, prevSuffix) {
			ms.MaxEntries = 1 // a placeholder
		}
	}
	return out
}

// Close closes all maps. The pins stay.
func (s *Set) Close() {
	for _, m := range s.maps {
		m.Close()
	}
}

// Map is a hash or trie map as a reconcile target.
type Map[K comparable, V any] struct{ m *ebpf.Map }

// Target returns the map of a name as a target. K and V must be its key and value types.
func Target[K comparable, V any](s *Set, name string) (Map[K, V], error) {
	m, err := s.Get(name)
	return Map[K, V]{m}, err
}

// Load reads all entries.
func (t Map[K, V]) Load(context.Context) (map[K]V, error) {
	out := map[K]V{}
	err := Each(t.m, func(k K, v V) { out[k] = v })
	return out, err
}

// Set writes one entry; readers see the old or the new value.
func (t Map[K, V]) Set(_ context.Context, k K, v V) error { return t.m.Update(&k, &v, ebpf.UpdateAny) }

// Delete removes one entry.
func (t Map[K, V]) Delete(_ context.Context, k K) error {
	if err := t.m.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// Array is an array map as a reconcile target: zero elements count as absent.
type Array[V comparable] struct{ m *ebpf.Map }

// ArrayTarget returns the array of a name as a target.
func ArrayTarget[V comparable](s *Set, name string) (Array[V], error) {
	m, err := s.Get(name)
	return Array[V]{m}, err
}

// Load reads all elements that are not zero.
func (t Array[V]) Load(context.Context) (map[uint32]V, error) {
	out := map[uint32]V{}
	var zero V
	err := Each(t.m, func(i uint32, v V) {
		if v != zero {
			out[i] = v
		}
	})
	return out, err
}

// Set writes one element.
func (t Array[V]) Set(_ context.Context, k uint32, v V) error {
	return t.m.Update(&k, &v, ebpf.UpdateAny)
}

// Delete zeroes one element.
func (t Array[V]) Delete(_ context.Context, k uint32) error {
	var zero V
	return t.m.Update(&k, &zero, ebpf.UpdateAny)
}
