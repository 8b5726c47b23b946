// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// readBatch is how many entries one system call reads.
const readBatch = 1024

// Each calls f with every entry of a map that has one value a key. An entry of a hash that is written
// or deleted meanwhile may be missed or given twice.
func Each[K, V any](m *ebpf.Map, f func(K, V)) error {
	n := min(int(m.MaxEntries()), readBatch)
	keys, values := make([]K, n), make([]V, n)
	var cursor ebpf.MapBatchCursor
	for first := true; ; first = false {
		got, err := m.BatchLookup(&cursor, keys, values, nil)
		if errors.Is(err, unix.ENOSPC) {
			// The entries of one bucket are more than fit; it comes again.
			keys, values = make([]K, 2*len(keys)), make([]V, 2*len(values))
			continue
		}
		if errors.Is(err, ebpf.ErrNotSupported) && first {
			return oneByOne(m, f)
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for i := range got {
			f(keys[i], values[i])
		}
		if err != nil {
			return nil // that was the last
		}
	}
}

func oneByOne[K, V any](m *ebpf.Map, f func(K, V)) error {
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		f(k, v)
	}
	return it.Err()
}
