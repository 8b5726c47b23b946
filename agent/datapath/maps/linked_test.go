// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"lash.internal/lash/agent/datapath/testnode"
	"lash.internal/lash/bpf"
)

// openLinked opens small linked maps only.
func openLinked(t *testing.T, root string, sizes map[string]uint32) *Set {
	t.Helper()
	spec, err := bpf.LoadTc()
	if err != nil {
		t.Fatal(err)
	}
	for name, ms := range spec.Maps {
		if !slices.Contains(linked, name) {
			delete(spec.Maps, name)
			continue
		}
		ms.MaxEntries = min(ms.MaxEntries, 64)
	}
	s, err := Open(root, sizes, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

var (
	anyFront = bpf.FrontKey{Ip: bpf.IP(netip.MustParseAddr("10.96.0.1")), Port: bpf.Port(80), Proto: 6}
	anyRange = bpf.SrcrangeKey{Plen: 32 + 96 + 8, SvcId: 7, Ip: bpf.IP(netip.MustParseAddr("10.0.0.0"))}
)

func fillLinked(t *testing.T, s *Set) {
	t.Helper()
	for name, kv := range map[string][2]any{
		"front": {anyFront, bpf.Front{SvcId: 7}}, "svc": {uint32(7), bpf.Svc{Gen: 3}},
		"slot": {uint32(1), bpf.Slots{BackendId: [16]uint32{5}}}, "backend": {uint32(5), bpf.Backend{Gen: 9}},
		"srcrange": {anyRange, uint32(1)},
	} {
		if err := s.Of(name).Put(kv[0], kv[1]); err != nil {
			t.Fatal(err)
		}
	}
}

func checkLinked(t *testing.T, s *Set, what string) {
	t.Helper()
	var f bpf.Front
	var v bpf.Svc
	var sl bpf.Slots
	var b bpf.Backend
	var one uint32
	for name, kv := range map[string][2]any{
		"front": {anyFront, &f}, "svc": {uint32(7), &v}, "slot": {uint32(1), &sl}, "backend": {uint32(5), &b}, "srcrange": {anyRange, &one},
	} {
		if err := s.Of(name).Lookup(kv[0], kv[1]); err != nil {
			t.Fatalf("%s: map %s: %v", what, name, err)
		}
	}
	if f.SvcId != 7 || v.Gen != 3 || sl.BackendId[0] != 5 || b.Gen != 9 || one != 1 {
		t.Errorf("%s: maps hold %+v, %+v, %+v, %+v, %d", what, f, v, sl, b, one)
	}
}

// TestLinkedMapsChangeTogether resizes one of them: all are new, hold what they held, and the former
// ones stay for programs of before.
func TestLinkedMapsChangeTogether(t *testing.T) {
	root := testnode.BPFFS(t)
	first := openLinked(t, root, nil)
	fillLinked(t, first)
	next := openLinked(t, root, map[string]uint32{"maglev": 100})
	if n := next.Of("maglev").MaxEntries(); n != 100 {
		t.Errorf("map maglev has %d elements", n)
	}
	if got := slices.Sorted(slices.Values(next.Replaced)); !slices.Equal(got, slices.Sorted(slices.Values(linked))) {
		t.Errorf("replaced %v", got)
	}
	checkLinked(t, next, "after the change")
	if err := next.Of("front").Delete(anyFront); err != nil {
		t.Fatal(err)
	}
	checkLinked(t, first, "what programs of before use")
	if !next.Diverged() {
		t.Error("programs of before could go on over maps that are no longer theirs")
	}
	if err := next.Commit(); err != nil {
		t.Fatal(err)
	}
	if again := openLinked(t, root, map[string]uint32{"maglev": 100}); len(again.Created) != 0 || again.Diverged() {
		t.Errorf("created %v, diverged %v", again.Created, again.Diverged())
	}
}

// TestPaddingGoes finds backends of a version that had padding at their end.
func TestPaddingGoes(t *testing.T) {
	root := testnode.BPFFS(t)
	first := openLinked(t, root, nil)
	fillLinked(t, first)
	wide := first.Of("backend")
	spec, err := bpf.LoadTc()
	if err != nil {
		t.Fatal(err)
	}
	ms := spec.Maps["backend"]
	ms.MaxEntries, ms.ValueSize, ms.Value = 64, wide.ValueSize()+8, nil
	old, err := ebpf.NewMap(ms)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	for id, gen := range map[uint32]uint16{0: 2, 5: 9, 63: 4} {
		if err := old.Put(id, struct {
			bpf.Backend
			Pad [8]uint8
		}{Backend: bpf.Backend{Gen: gen}}); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(Dir(root), pinName("backend"))
	if err := errors.Join(os.Remove(path), old.Pin(path)); err != nil {
		t.Fatal(err)
	}
	next := openLinked(t, root, nil)
	checkLinked(t, next, "without padding")
	var all []uint16
	for _, id := range []uint32{0, 5, 6, 63} {
		var b bpf.Backend
		if err := next.Of("backend").Lookup(id, &b); err != nil {
			t.Fatal(err)
		}
		all = append(all, b.Gen)
	}
	if !slices.Equal(all, []uint16{2, 9, 0, 4}) {
		t.Errorf("generations of backends: %v", all)
	}
}

func TestLinkedMapsGoBackTogether(t *testing.T) {
	root := testnode.BPFFS(t)
	fillLinked(t, openLinked(t, root, nil))
	next := openLinked(t, root, map[string]uint32{"svc": 200, "backend": 32})
	checkLinked(t, next, "after the change")
	if err := next.Revert(); err != nil {
		t.Fatal(err)
	}
	back := openLinked(t, root, nil)
	checkLinked(t, back, "after the way back")
	if len(back.Created) != 0 || back.Of("svc").MaxEntries() != 64 {
		t.Errorf("created %v, %d elements", back.Created, back.Of("svc").MaxEntries())
	}
}

// TestInterruptedChange ends a change of size after each of its steps. The next start finds a set
// that fits together.
func TestInterruptedChange(t *testing.T) {
	root := testnode.BPFFS(t)
	steps := exchange(slices.Sorted(slices.Values(linked)))
	for n := range len(steps) + 1 {
		if err := os.RemoveAll(Dir(root)); err != nil {
			t.Fatal(err)
		}
		sizes := map[string]uint32{}
		for _, name := range linked {
			sizes[name] = 64
		}
		first := openLinked(t, root, sizes)
		fillLinked(t, first)
		spec, err := bpf.LoadTc()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range linked {
			ms := spec.Maps[name]
			ms.MaxEntries = 128
			if err := first.remake(name, ms, first.Of(name)); err != nil {
				t.Fatal(err)
			}
		}
		for _, move := range steps[:n] {
			if err := os.Rename(filepath.Join(Dir(root), move[0]), filepath.Join(Dir(root), move[1])); err != nil {
				t.Fatal(err)
			}
		}
		if n == len(steps) {
			for _, name := range linked {
				sizes[name] = 128
			}
		}
		s := openLinked(t, root, sizes)
		checkLinked(t, s, "afterwards")
		if len(s.Created) != 0 {
			t.Errorf("after %d steps: created %v", n, s.Created)
		}
		if left, _ := filepath.Glob(filepath.Join(Dir(root), "*"+aside)); len(left) != 0 {
			t.Errorf("after %d steps: %v are left", n, left)
		}
		first.Close()
		s.Close()
	}
}
