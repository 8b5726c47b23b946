// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"time"
)

// archive is a zip file that never grows beyond its budget. Each file is compressed before it is
// known whether there is room for it, and written through at once.
type archive struct {
	mu    sync.Mutex
	w     *zip.Writer
	time  time.Time
	max   int64
	size  int64 // bytes written, with what the directory at the end will take
	files int
}

// summaryRoom is what is kept of the budget for the summary, in bytes.
const summaryRoom = 64 << 10

// headRoom is what one entry takes beside its data and twice its name, in bytes; source: the format's
// local header and directory entry.
const headRoom = 30 + 46

// endRoom is the end of the directory.
const endRoom = 22

func newArchive(w io.Writer, most int64, now time.Time) *archive {
	return &archive{w: zip.NewWriter(w), max: most, size: endRoom, time: now}
}

// add writes a file, or returns errNoRoom.
func (a *archive) add(name string, data []byte) error {
	return a.write(name, data, a.max-min(summaryRoom, a.max/2))
}

// summary writes the last file, for which room was kept.
func (a *archive) summary(name string, data []byte) error {
	err := a.write(name, data, a.max)
	if errors.Is(err, errNoRoom) { // thousands of failures: the first ones tell
		cut := data[:min(len(data), int(a.max/4))]
		err = a.write(name, append(cut[:len(cut):len(cut)], "\n(cut: there is no room for more)\n"...), a.max)
	}
	return err
}

func (a *archive) write(name string, data []byte, most int64) error {
	var packed bytes.Buffer
	z, err := flate.NewWriter(&packed, flate.DefaultCompression)
	if err != nil {
		return fmt.Errorf("compress %s: %w", name, err)
	}
	if _, err := z.Write(data); err != nil {
		return fmt.Errorf("compress %s: %w", name, err)
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("compress %s: %w", name, err)
	}
	needs := int64(packed.Len()) + headRoom + 2*int64(len(name))
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.size+needs > most {
		return errNoRoom
	}
	h := &zip.FileHeader{
		Name: name, Method: zip.Deflate, CRC32: crc32.ChecksumIEEE(data),
		CompressedSize64: uint64(packed.Len()), UncompressedSize64: uint64(len(data)),
	}
	h.SetMode(0o600)
	h.SetModTime(a.time) //nolint:staticcheck // CreateRaw takes the time from these fields only
	f, err := a.w.CreateRaw(h)
	if err == nil {
		_, err = f.Write(packed.Bytes())
	}
	if err == nil {
		err = a.w.Flush()
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	a.size += needs
	a.files++
	return nil
}

func (a *archive) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.w.Close(); err != nil {
		return fmt.Errorf("close the archive: %w", err)
	}
	return nil
}
