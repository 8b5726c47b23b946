// SPDX-License-Identifier: Apache-2.0

package ctgc

import (
	"errors"
	"io/fs"
	"log/slog"
	"testing"

	"github.com/cilium/ebpf"

	"lash.internal/lash/bpf"
)

// TestMove takes flows out of a table before; what is in the new one already stays as it is.
func TestMove(t *testing.T) {
	spec, err := bpf.LoadGc()
	if err != nil {
		t.Fatal(err)
	}
	cfg := bpf.DefaultConfig()
	cfg.FlowsMove = true
	if err := cfg.Apply(spec); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"ct4_prev", "ct4"} {
		spec.Maps[n].MaxEntries = 3000
	}
	coll, err := ebpf.NewCollection(spec)
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, fs.ErrPermission) {
		t.Skipf("needs root: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer coll.Close()
	old, now := coll.Maps["ct4_prev"], coll.Maps["ct4"]
	key := func(i int) bpf.Ct4Key { return bpf.Ct4Key{A: 1, B: uint32(i), Proto: 17} }
	put := func(m *ebpf.Map, i int, seen uint32) {
		if err := m.Put(key(i), bpf.Ct4{C: bpf.Ct{Seen: seen}}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2500 { // more than one batch
		put(old, i, 10)
	}
	put(now, 7, 20) // a packet has moved it
	c := New(Maps{Batch: coll.Maps["gc_batch"]}, Programs{Move: coll.Programs["ct_move"]}, slog.New(slog.DiscardHandler))
	n, err := c.Move("ct4_prev", old)
	if err != nil || n != 2500 {
		t.Fatalf("moved %d: %v", n, err)
	}
	var v bpf.Ct4
	for i, want := range map[int]uint32{0: 10, 7: 20, 2499: 10} {
		if err := now.Lookup(key(i), &v); err != nil || v.C.Seen != want {
			t.Errorf("flow %d: %d, %v", i, v.C.Seen, err)
		}
		if err := old.Lookup(key(i), &v); !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Errorf("flow %d is in the table before: %v", i, err)
		}
	}
	for i := 3000; i < 6000; i++ {
		put(old, i, 10)
	}
	if n, err := c.Move("ct4_prev", old); !errors.Is(err, ErrNotMoved) || n != 500 {
		t.Errorf("into a full table: %d, %v", n, err)
	}
}
