// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"lash.internal/lash/agent/datapath/testnode"
	"lash.internal/lash/bpf"
)

func open(t *testing.T, root string, sizes map[string]uint32) *Set {
	t.Helper()
	spec, err := bpf.LoadGc()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(root, sizes, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.Replacements(spec)
	for name := range s.All() {
		if spec.Maps[name].MaxEntries != s.Of(name).MaxEntries() {
			t.Errorf("the specification of %s does not fit its map", name)
		}
	}
	return s
}

// TestTableChangesItsSize keeps the table before until its flows have moved, and changes it once at a time.
func TestTableChangesItsSize(t *testing.T) {
	root := testnode.BPFFS(t)
	small := map[string]uint32{"ct4": 1000}
	first := open(t, root, small)
	if first.Of("ct4").MaxEntries() != 1000 || len(first.Moving()) != 0 {
		t.Fatalf("size %d, moving %v", first.Of("ct4").MaxEntries(), first.Moving())
	}
	flow := bpf.Ct4Key{A: 1, B: 2}
	if err := first.Of("ct4").Put(flow, bpf.Ct4{}); err != nil {
		t.Fatal(err)
	}
	if again := open(t, root, nil); again.Of("ct4").MaxEntries() != 1000 || len(again.Created) != 0 {
		t.Errorf("without a wish the size becomes %d, created %v", again.Of("ct4").MaxEntries(), again.Created)
	}
	large := open(t, root, map[string]uint32{"ct4": 4000})
	var v bpf.Ct4
	if large.Of("ct4").MaxEntries() != 4000 || !slices.Equal(large.Moving(), []string{"ct4_prev"}) {
		t.Fatalf("size %d, moving %v", large.Of("ct4").MaxEntries(), large.Moving())
	}
	if err := large.Of("ct4_prev").Lookup(flow, &v); err != nil {
		t.Errorf("the flow is not in the table before: %v", err)
	}
	// An agent that starts in the middle goes on with the same move, whatever the wish is now.
	middle := open(t, root, map[string]uint32{"ct4": 2000})
	if middle.Of("ct4").MaxEntries() != 4000 || !slices.Equal(middle.Moving(), []string{"ct4_prev"}) {
		t.Errorf("in the middle: size %d, moving %v", middle.Of("ct4").MaxEntries(), middle.Moving())
	}
	if err := middle.Moved("ct4_prev"); err != nil {
		t.Fatal(err)
	}
	if done := open(t, root, map[string]uint32{"ct4": 4000}); len(done.Moving()) != 0 || len(done.Created) != 0 {
		t.Errorf("afterwards: moving %v, created %v", done.Moving(), done.Created)
	}
}

// TestTablesOfTheVersionBefore took their memory at once: their flows move like those of a table of
// another size, and the size stays.
func TestTablesOfTheVersionBefore(t *testing.T) {
	root := testnode.BPFFS(t)
	if err := os.MkdirAll(Dir(root), 0o700); err != nil {
		t.Fatal(err)
	}
	spec, err := bpf.LoadGc()
	if err != nil {
		t.Fatal(err)
	}
	flow := bpf.Ct4Key{A: 1, B: 2}
	for _, name := range tables {
		ms := spec.Maps[name].Copy()
		ms.Flags, ms.MaxEntries = 0, 1000
		m, err := ebpf.NewMap(ms)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if name == "ct4" {
			if err := m.Put(flow, bpf.Ct4{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Pin(filepath.Join(Dir(root), name+"_v1")); err != nil {
			t.Fatal(err)
		}
	}
	next := open(t, root, nil)
	if got := next.Moving(); len(next.Lost) != 0 || !slices.Equal(got, []string{"ct4_new_prev", "ct4_prev", "ct6_new_prev", "ct6_prev"}) {
		t.Errorf("moving %v, lost %v", got, next.Lost)
	}
	var v bpf.Ct4
	if err := next.Of("ct4_prev").Lookup(flow, &v); err != nil {
		t.Errorf("the flow is not in the table before: %v", err)
	}
	if m := next.Of("ct4"); m.MaxEntries() != 1000 || m.Flags() == 0 {
		t.Errorf("%d entries, flags %#x", m.MaxEntries(), m.Flags())
	}
}

// TestRevertGivesTheTableBack is an upgrade that fails: the programs of before go on with their table.
func TestRevertGivesTheTableBack(t *testing.T) {
	root := testnode.BPFFS(t)
	first := open(t, root, map[string]uint32{"ct4": 1000})
	flow := bpf.Ct4Key{A: 1, B: 2}
	if err := first.Of("ct4").Put(flow, bpf.Ct4{}); err != nil {
		t.Fatal(err)
	}
	next := open(t, root, map[string]uint32{"ct4": 4000})
	if !slices.Equal(next.Replaced, []string{"ct4"}) {
		t.Errorf("replaced %v", next.Replaced)
	}
	if err := next.Revert(); err != nil {
		t.Fatal(err)
	}
	back := open(t, root, nil)
	var v bpf.Ct4
	if err := back.Of("ct4").Lookup(flow, &v); err != nil || back.Of("ct4").MaxEntries() != 1000 || len(back.Moving()) != 0 {
		t.Errorf("size %d, moving %v, flow %v", back.Of("ct4").MaxEntries(), back.Moving(), err)
	}
}

// TestTableOfAnotherForm is refused, and nothing of it is lost.
func TestTableOfAnotherForm(t *testing.T) {
	root := testnode.BPFFS(t)
	if err := os.MkdirAll(Dir(root), 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 10})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	path := filepath.Join(Dir(root), pinName("ct4"))
	if err := m.Pin(path); err != nil {
		t.Fatal(err)
	}
	spec, err := bpf.LoadGc()
	if err != nil {
		t.Fatal(err)
	}
	if s, err := Open(root, map[string]uint32{"ct4": 100}, spec); !errors.Is(err, ErrLayout) {
		t.Errorf("got %v, %v", s, err)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		t.Error("the table is gone")
	}
}
