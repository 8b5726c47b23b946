// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"lash.internal/lash/bpf"
)

// TestProgramsNeverSeeHalfAChange reads the arrays as programs do while Services change. What a
// reference leads to as long as it stands is whole: the Service's own backends, none of them gone.
func TestProgramsNeverSeeHalfAChange(t *testing.T) {
	f := newFixtureOf(t, map[string]uint32{"slot": bpf.SlotElems, "backend": 1024})
	lb, err := Open(f.Maps, Options{MaglevSize: testMaglev})
	if err != nil {
		t.Fatal(err)
	}
	defer lb.Close()
	var ids []uint32
	own := map[uint32][]endpoint{}
	for fr, forms := range changing() {
		if err := lb.Set(t.Context(), fr, forms[0]); err != nil {
			t.Fatal(err)
		}
		id, _ := lb.ID(fr)
		ids = append(ids, id)
		for _, a := range slices.Concat(forms[0].All, forms[1].All) {
			own[id] = append(own[id], endpointOf(a, protoTCP))
		}
	}
	var done atomic.Bool
	var readers sync.WaitGroup
	readers.Go(func() {
		for !done.Load() && !t.Failed() {
			for _, id := range ids {
				readAsPrograms(t, lb, id, own[id])
			}
		}
	})
	for i := range 3000 {
		for fr, forms := range changing() {
			if err := lb.Set(t.Context(), fr, forms[(i+1)%2]); err != nil {
				t.Error(err)
			}
		}
	}
	done.Store(true)
	readers.Wait()
}

func readAsPrograms(t *testing.T, lb *Target, id uint32, own []endpoint) {
	whole := func(backend uint32) bool {
		be := lb.backends.load(backend)
		return be.State != bpf.BackendGone && slices.Contains(own, endpoint{be.Ip, be.Port, be.Proto})
	}
	s := lb.svcs.at(id)
	gen := atomic.LoadUint32(&s.SetGen)
	same := func() bool { return atomic.LoadUint32(&s.SetGen) == gen } // every change here raises it
	for _, ref := range []*uint64{&s.BlkAll, &s.BlkLocal} {
		before := atomic.LoadUint64(ref)
		b, _ := unpack(before)
		for i := range b.count {
			backend := atomic.LoadUint32(lb.slot(b.base + i))
			if !whole(backend) && atomic.LoadUint64(ref) == before && same() {
				t.Errorf("a block of Service %d has backend %d, %+v", id, backend, *lb.backends.at(backend))
			}
		}
	}
	table := atomic.LoadUint64(&s.Maglev)
	for i := uint32(0); table != 0 && i < elems(testMaglev); i++ {
		w := lb.tables.words.at(uint32(table) + i)
		before := atomic.LoadUint64(w)
		if !whole(uint32(before)) && atomic.LoadUint64(w) == before && atomic.LoadUint64(&s.Maglev) == table && same() {
			t.Errorf("an entry of Service %d has backend %d, %+v", id, uint32(before), *lb.backends.at(uint32(before)))
		}
	}
	// Who is to get backends of this node has a list of them.
	if flags := atomic.LoadUint32(&s.Flags); flags != 0 && atomic.LoadUint64(&s.BlkLocal) == 0 && atomic.LoadUint32(&s.Flags) == flags && same() {
		t.Errorf("Service %d has flags %x and no list for them", id, flags)
	}
}
