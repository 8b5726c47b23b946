// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"lash.internal/lash/agent/crash"
	"lash.internal/lash/bpf"
)

// tables are the flow tables. Their flows survive a change of size or layout: the table that was in
// use is kept beside the new one under the name with the suffix, until its flows have moved.
var tables = []string{"ct4", "ct4_new", "ct6", "ct6_new"}

// prevSuffix is what programs call the table before.
const prevSuffix = "_prev"

// ErrLayout means that a pinned table has a form that no flow can be taken over from.
var ErrLayout = errors.New("form that this version does not know")

// openTable opens a flow table of the given size, or of the size that it has if that is 0. before is
// the specification of a table before.
func (s *Set) openTable(dir, name string, spec, before *ebpf.MapSpec, size uint32) (*ebpf.Map, error) {
	path, prevPath := filepath.Join(dir, pinName(name)), filepath.Join(dir, pinName(name+prevSuffix))
	if err := s.openPrev(prevPath, name+prevSuffix, before); err != nil {
		return nil, err
	}
	moving := s.maps[name+prevSuffix] != nil
	m, err := ebpf.LoadPinnedMap(path, nil)
	switch {
	case err == nil:
		want := *spec
		want.MaxEntries = m.MaxEntries()
		if err := want.Compatible(m); err != nil {
			m.Close()
			return nil, fmt.Errorf("pinned at %s in a %w: %w", path, ErrLayout, err)
		}
		if moving || size == 0 || size == m.MaxEntries() {
			return m, nil // one change after the other
		}
		m.Close()
		return s.replaceTable(path, path, prevPath, name, spec, before, size)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open pin: %w", err)
	}
	older := filepath.Join(dir, fmt.Sprintf("%s_v%d", name, bpf.CtABI-1))
	if _, err := os.Stat(older); err == nil && !moving {
		return s.replaceTable(older, path, prevPath, name, spec, before, size)
	}
	return s.create(path, name, spec, size)
}

// openPrev opens a table whose flows have not all moved yet.
func (s *Set) openPrev(path, name string, spec *ebpf.MapSpec) error {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pin: %w", err)
	}
	want := *spec
	want.MaxEntries, want.Flags = m.MaxEntries(), m.Flags() // whether its memory was taken at once does not matter
	if err := want.Compatible(m); err != nil {
		m.Close()
		s.Lost = append(s.Lost, name)
		return os.Remove(path)
	}
	s.maps[name] = m
	return nil
}

// replaceTable puts a new table in the place of the one pinned at old, which becomes the one before.
// Either all of it happens or nothing.
func (s *Set) replaceTable(old, path, prevPath, name string, spec, before *ebpf.MapSpec, size uint32) (*ebpf.Map, error) {
	if err := os.Rename(old, prevPath); err != nil {
		return nil, fmt.Errorf("keep the table before: %w", err)
	}
	crash.At(crash.Renamed)
	if err := s.openPrev(prevPath, name+prevSuffix, before); err != nil {
		return nil, errors.Join(err, os.Rename(prevPath, old))
	}
	prev := s.maps[name+prevSuffix]
	if size == 0 && prev != nil {
		size = prev.MaxEntries()
	}
	m, err := s.create(path, name, spec, size)
	if err == nil {
		s.Replaced = append(s.Replaced, name)
		s.undone[name] = old
		return m, nil
	}
	if prev != nil {
		prev.Close()
		delete(s.maps, name+prevSuffix)
		err = errors.Join(err, os.Rename(prevPath, old))
	}
	return nil, err
}

func (s *Set) create(path, name string, spec *ebpf.MapSpec, size uint32) (*ebpf.Map, error) {
	fresh := spec.Copy()
	fresh.Pinning = ebpf.PinNone
	if size > 0 {
		fresh.MaxEntries = size
	}
	m, err := ebpf.NewMap(fresh)
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	if err := m.Pin(path); err != nil {
		m.Close()
		return nil, fmt.Errorf("pin: %w", err)
	}
	s.Created = append(s.Created, name)
	return m, nil
}

// Moving lists the tables that flows have to move out of, sorted.
func (s *Set) Moving() []string {
	var out []string
	for name := range s.maps {
		if strings.HasSuffix(name, prevSuffix) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Moved forgets a table whose flows have moved. Programs that were loaded for it hold it until they go.
func (s *Set) Moved(name string) error {
	if m := s.maps[name]; m != nil {
		m.Close()
		delete(s.maps, name)
	}
	if err := os.Remove(filepath.Join(s.dir, pinName(name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin %s: %w", name, err)
	}
	return nil
}
