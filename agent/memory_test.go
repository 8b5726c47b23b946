// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestReadOnly picks what can be read from the file again, and nothing else.
func TestReadOnly(t *testing.T) {
	const maps = `00400000-01d3a000 r-xp 00000000 fe:00 1 /usr/bin/lash-agent
01d3a000-02f00000 r--p 0193a000 fe:00 1 /usr/bin/lash-agent
02f00000-03000000 rw-p 02b00000 fe:00 1 /usr/bin/lash-agent
03000000-03060000 rw-p 00000000 00:00 0
c000000000-c001000000 rw-p 00000000 00:00 0
7f0000000000-7f0000800000 rw-s 00000000 00:0f 9 anon_inode:bpf-map
7f0000800000-7f0000900000 r--s 00000000 fe:00 1 /usr/bin/lash-agent
7f0000900000-7f0000a00000 r--p 00000000 fe:00 2 /usr/bin/lash-agent-old
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]
`
	got, err := readOnly(strings.NewReader(maps), "/usr/bin/lash-agent")
	if want := []area{{0x400000, 0x1d3a000}, {0x1d3a000, 0x2f00000}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %x, %v, want %x", got, err, want)
	}
	if _, err := readOnly(strings.NewReader("nonsense\n"), "/x"); err == nil {
		t.Error("nonsense is read as areas")
	}
}

// TestProgramGoesOn drops the pages of the test's own program.
func TestProgramGoesOn(t *testing.T) {
	before := fileBacked(t)
	if err := dropProgramPages(); err != nil {
		t.Fatal(err)
	}
	if after := fileBacked(t); after >= before {
		t.Errorf("%s of the program's pages are in memory, before %s", after, before)
	}
}

// fileBacked is the line of /proc/self/status that counts pages of files, of a width that strings compare by.
func fileBacked(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "RssFile:")
	if !ok {
		t.Skip("the kernel does not count pages of files")
	}
	line, _, _ := strings.Cut(rest, "\n")
	return line
}
