// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"io/fs"
	stdmaps "maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// linked are maps whose entries refer to each other by number. When one of them needs another size or
// form, all are made anew with what they held: programs of before go on with a set that fits
// together, and the numbers that flows remember stay what they are.
var linked = []string{"front", "svc", "slot", "backend", "maglev", "srcrange"}

// aside ends the pin name of a map that is to take the place of its former self.
const aside = "_new"

// replaceLinked makes the linked maps anew if one that is pinned does not fit its specification.
// Either all change places or none: what a process that was killed has begun is undone first.
func (s *Set) replaceLinked(specs map[string]*ebpf.MapSpec) error {
	if err := s.undoLinked(); err != nil {
		return err
	}
	pinned := map[string]*ebpf.Map{}
	defer func() {
		for _, m := range pinned {
			m.Close()
		}
	}()
	fits := true
	for name, spec := range specs {
		m, err := ebpf.LoadPinnedMap(s.path(name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open pin of %s: %w", name, err)
		}
		pinned[name] = m
		fits = fits && spec.Compatible(m) == nil
	}
	if fits {
		return nil
	}
	for name := range pinned {
		if err := os.Remove(s.path(name) + replaced); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("old pin: %w", err)
		}
	}
	for name, old := range pinned {
		if err := s.remake(name, specs[name], old); err != nil {
			return errors.Join(fmt.Errorf("map %s: %w", name, err), s.undoLinked())
		}
	}
	for _, move := range exchange(slices.Sorted(stdmaps.Keys(pinned))) {
		if err := os.Rename(filepath.Join(s.dir, move[0]), filepath.Join(s.dir, move[1])); err != nil {
			return errors.Join(fmt.Errorf("old pin: %w", err), s.undoLinked())
		}
	}
	for name := range pinned {
		s.Replaced, s.Created = append(s.Replaced, name), append(s.Created, name)
	}
	return nil
}

// exchange are the pins to rename: all maps step aside, then their successors take their places.
func exchange(names []string) [][2]string {
	var out [][2]string
	for _, move := range [][2]string{{"", replaced}, {aside, ""}} {
		for _, name := range names {
			out = append(out, [2]string{pinName(name) + move[0], pinName(name) + move[1]})
		}
	}
	return out
}

func (s *Set) path(name string) string { return filepath.Join(s.dir, pinName(name)) }

// undoLinked puts the linked maps back into their places if not all have been replaced.
func (s *Set) undoLinked() error {
	begun := false
	for _, name := range linked {
		_, err := os.Stat(s.path(name) + aside)
		begun = begun || err == nil
	}
	if !begun {
		return nil
	}
	for _, name := range linked {
		path := s.path(name)
		if _, err := os.Stat(path + replaced); err != nil {
			continue // it is in its place
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("pin of %s: %w", name, err)
		}
		if err := os.Rename(path+replaced, path); err != nil {
			return fmt.Errorf("old pin of %s: %w", name, err)
		}
	}
	for _, name := range linked { // the last of these says that nothing is left to undo
		if err := os.Remove(s.path(name) + aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("new pin of %s: %w", name, err)
		}
	}
	return nil
}

// remake creates the successor of a map beside it.
func (s *Set) remake(name string, spec *ebpf.MapSpec, old *ebpf.Map) error {
	fresh := spec.Copy()
	fresh.Pinning = ebpf.PinNone
	m, err := ebpf.NewMap(fresh)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	defer m.Close()
	if err := copyEntries(m, old); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if err := m.Pin(s.path(name) + aside); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	return nil
}

// copyEntries copies what fits. Who owns the entries finds out what is missing. Values of another
// size differ in the padding at their end.
func copyEntries(to, from *ebpf.Map) error {
	if to.Type() != from.Type() || to.KeySize() != from.KeySize() {
		return nil // nobody could read them
	}
	if to.Type() == ebpf.Array {
		return copyElements(to, from)
	}
	if to.ValueSize() != from.ValueSize() {
		return nil
	}
	var k, v []byte
	it := from.Iterate()
	for it.Next(&k, &v) {
		err := to.Put(k, v)
		if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return it.Err()
}

// copyElements copies the elements of a mapped array, whose sizes are multiples of 8 bytes.
func copyElements(to, from *ebpf.Map) error {
	dst, err1 := to.Memory()
	src, err2 := from.Memory()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	old := make([]byte, src.Size())
	if _, err := src.ReadAt(old, 0); err != nil {
		return err
	}
	fresh := old[:min(len(old), int(dst.Size()))]
	if in, out := int(from.ValueSize()), int(to.ValueSize()); in != out {
		fresh = make([]byte, dst.Size())
		for i := range min(from.MaxEntries(), to.MaxEntries()) {
			n := int(i)
			copy(fresh[n*out:(n+1)*out], old[n*in:(n+1)*in])
		}
	}
	_, err := dst.WriteAt(fresh, 0)
	return err
}
