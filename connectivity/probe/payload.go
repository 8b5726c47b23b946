// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
)

const (
	// udpMagic starts a datagram that asks for SEEN and HOST; they come back in the first
	// udpHeader bytes.
	udpMagic  = "lash-probe?"
	udpHeader = 192
	greeting  = "lash-echo"
)

// payload returns n bytes that differ between probes and between offsets, so that an answer that
// was put together from the wrong pieces is noticed.
func payload(n int) []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], rand.Uint64())
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails
	return b
}

// askHeader marks a datagram as one that wants to know SEEN and HOST; too small ones stay as they are.
func askHeader(b []byte) {
	if len(b) >= udpHeader {
		copy(b, udpMagic)
	}
}

// answerHeader fills in a marked datagram on its way back.
func answerHeader(b []byte, seen, host string) {
	if len(b) < udpHeader || !bytes.HasPrefix(b, []byte(udpMagic)) {
		return
	}
	text := seen + " " + host + "\n"
	if len(udpMagic)+len(text) > udpHeader {
		return
	}
	copy(b[len(udpMagic):], text)
}

// readHeader checks an answer against what was sent and reads SEEN and HOST from it.
func readHeader(sent, got []byte, res *Result) error {
	if len(sent) != len(got) {
		return fmt.Errorf("%w: sent %d bytes, got %d", errCorrupt, len(sent), len(got))
	}
	skip := 0
	if len(sent) >= udpHeader {
		skip = udpHeader
		head := string(got[len(udpMagic):udpHeader])
		if line, _, ok := strings.Cut(head, "\n"); ok {
			res.Seen, res.Host, _ = strings.Cut(line, " ")
		}
	}
	if at := differ(sent[skip:], got[skip:]); at >= 0 {
		return fmt.Errorf("%w: byte %d of %d differs", errCorrupt, at+skip, len(sent))
	}
	return nil
}

func differ(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if i >= len(b) || a[i] != b[i] {
			return i
		}
	}
	return len(a)
}
