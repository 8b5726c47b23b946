// SPDX-License-Identifier: Apache-2.0

package bpf

import "crypto/sha256"

// MapABI is the number that pin names of maps end in, CtABI that of the flow tables. Raise CtABI with
// each change of the tables' layout or flags and keep the old form in include/ct_prev.h: programs read tables
// of the number before.
const (
	MapABI = 1
	CtABI  = 2
)

// Digest identifies the compiled objects.
func Digest() [sha256.Size]byte {
	h := sha256.New()
	for _, b := range [][]byte{_TcBytes, _SockBytes, _GcBytes} {
		h.Write(b)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
