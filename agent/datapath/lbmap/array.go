// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// array is an array map in our own memory. Elements are multiples of 8 bytes.
type array[T any] struct {
	mem []byte
	len uint32
}

// mapInto maps the array of a name into memory.
func mapInto[T any](a *array[T], m *ebpf.Map, name string) error {
	var zero T
	size := unsafe.Sizeof(zero)
	if m == nil || m.Type() != ebpf.Array || uintptr(m.ValueSize()) != size || size%8 != 0 {
		return fmt.Errorf("map %s: not an array of %d bytes", name, size)
	}
	page := os.Getpagesize()
	bytes := (int(size)*int(m.MaxEntries()) + page - 1) / page * page
	mem, err := unix.Mmap(m.FD(), 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: map into memory: %w", name, err)
	}
	a.mem, a.len = mem, m.MaxEntries()
	return nil
}

// at returns the element i, which programs read at the same time: store by atomic operations.
func (a array[T]) at(i uint32) *T {
	var zero T
	return (*T)(unsafe.Pointer(&a.mem[uintptr(i)*unsafe.Sizeof(zero)]))
}

// store writes an element word by word, each at once.
func (a array[T]) store(i uint32, v T) {
	dst, src := unsafe.Pointer(a.at(i)), unsafe.Pointer(&v)
	for off := uintptr(0); off < unsafe.Sizeof(v); off += 8 {
		w := *(*uint64)(unsafe.Add(src, off))
		if p := (*uint64)(unsafe.Add(dst, off)); atomic.LoadUint64(p) != w {
			atomic.StoreUint64(p, w)
		}
	}
}

// load reads an element word by word, each at once.
func (a array[T]) load(i uint32) (v T) {
	dst, src := unsafe.Pointer(&v), unsafe.Pointer(a.at(i))
	for off := uintptr(0); off < unsafe.Sizeof(v); off += 8 {
		*(*uint64)(unsafe.Add(dst, off)) = atomic.LoadUint64((*uint64)(unsafe.Add(src, off)))
	}
	return v
}

func (a *array[T]) close() error {
	if a.mem == nil {
		return nil
	}
	mem := a.mem
	a.mem = nil
	return unix.Munmap(mem)
}
