// SPDX-License-Identifier: Apache-2.0

package pinroot

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/datapath/testnode"
	"lash.internal/lash/bpf"
)

// options are those of a node on which programs are attached at the given places.
func options(root, dir string, attached ...string) Options {
	return Options{BPFRoot: root, StateDir: dir, Attached: func([]ebpf.ProgramID) ([]string, error) { return attached, nil }}
}

func own(t *testing.T, o Options) *Root {
	t.Helper()
	r, err := Own(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

var programs = map[string][]ebpf.ProgramID{"g1": {7, 8}, "g0": {3}}

// TestOneOwner starts a second agent on the node.
func TestOneOwner(t *testing.T) {
	root := testnode.BPFFS(t)
	first := own(t, options(root, t.TempDir()))
	_, err := Own(options(root, t.TempDir()))
	if !errors.Is(err, ErrOwned) || !strings.Contains(err.Error(), root) {
		t.Errorf("second owner: %v", err)
	}
	if _, err := Lock(root); !errors.Is(err, ErrOwned) {
		t.Errorf("cleaning while an agent runs: %v", err)
	}
	first.Close()
	own(t, options(root, t.TempDir()))
}

// TestNotBPFFS has an ordinary folder where the BPF file system should be.
func TestNotBPFFS(t *testing.T) {
	dir := t.TempDir()
	_, err := Own(options(dir, t.TempDir()))
	if !errors.Is(err, ErrNoBPFFS) || !strings.Contains(err.Error(), "bpf-root") || !strings.Contains(err.Error(), "mount -t bpf") {
		t.Errorf("ordinary folder: %v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
	if _, err := Own(options(filepath.Join(dir, "none"), t.TempDir())); err == nil || !strings.Contains(err.Error(), "bpf-root") {
		t.Errorf("no folder: %v", err)
	}
}

// TestRestart finds what the last agent has noted.
func TestRestart(t *testing.T) {
	root, dir := testnode.BPFFS(t), t.TempDir()
	r := own(t, options(root, dir))
	if len(r.Lost) != 0 || r.Check() != nil {
		t.Errorf("fresh node: %v, %v", r.Lost, r.Check())
	}
	if err := r.Note("g1", programs, nil); err != nil {
		t.Fatal(err)
	}
	r.Close()
	r = own(t, options(root, dir, "lxc1"))
	if len(r.Lost) != 3 || r.Lost[0] != 3 {
		t.Errorf("programs %v", r.Lost)
	}
}

// TestConstantsAreKept over a restart, for as long as their generation may be attached.
func TestConstantsAreKept(t *testing.T) {
	root, dir := testnode.BPFFS(t), t.TempDir()
	r := own(t, options(root, dir))
	if err := r.Note("g1", programs, map[string]bpf.Config{"g1": {MaglevSize: 251}}); err != nil {
		t.Fatal(err)
	}
	r.Close()
	r = own(t, options(root, dir))
	if err := r.Note("g1", programs, nil); err != nil {
		t.Fatal(err)
	}
	if c, ok := r.Constants("g1"); !ok || c.MaglevSize != 251 {
		t.Errorf("constants %+v, %t", c, ok)
	}
	if err := r.Note("g2", map[string][]ebpf.ProgramID{"g2": {9}}, nil); err != nil {
		t.Fatal(err)
	}
	if c, ok := r.Constants("g1"); ok {
		t.Errorf("constants of a generation that is gone: %+v", c)
	}
}

// TestMountedOver hides the pins behind another BPF file system: while programs that are pinned in
// the hidden one are attached, an agent that starts refuses, and one that runs notices. When nothing
// of the former is left, it starts afresh.
func TestMountedOver(t *testing.T) {
	root, dir := testnode.BPFFS(t), t.TempDir()
	r := own(t, options(root, dir))
	if err := r.Note("g1", programs, nil); err != nil {
		t.Fatal(err)
	}
	testnode.Mount(t, root)
	if err := r.Check(); !errors.Is(err, ErrOther) {
		t.Errorf("while it runs: %v", err)
	}
	r.Close()
	_, err := Own(options(root, dir, "lxc1", "eth0"))
	if !errors.Is(err, ErrOther) || !strings.Contains(err.Error(), "lxc1") || !strings.Contains(err.Error(), "unmount") {
		t.Errorf("with programs attached: %v", err)
	}
	if err := unix.Unmount(root, 0); err != nil {
		t.Fatal(err)
	}
	r = own(t, options(root, dir, "lxc1", "eth0"))
	if err := r.Check(); err != nil {
		t.Errorf("visible again: %v", err)
	}
	r.Close()
	testnode.Mount(t, root)
	r = own(t, options(root, dir))
	if err := r.Check(); err != nil {
		t.Errorf("nothing left of the former: %v", err)
	}
	r.Close()
	if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if _, err := Own(options(root, dir)); !errors.Is(err, ErrNoBPFFS) {
		t.Errorf("no file system at all: %v", err)
	}
}

// TestOtherNode starts an agent in another network namespace over the pins of a node.
func TestOtherNode(t *testing.T) {
	root, dir := testnode.BPFFS(t), t.TempDir()
	r := own(t, options(root, dir))
	if err := r.Note("g1", programs, nil); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no new namespace: %v", err)
	}
	if _, err := Own(options(root, dir)); !errors.Is(err, ErrNamespace) {
		t.Errorf("other network namespace: %v", err)
	}
}

// TestBrokenState starts over a state file that was cut off, or that is of another boot.
func TestBrokenState(t *testing.T) {
	root, dir := testnode.BPFFS(t), t.TempDir()
	path := filepath.Join(dir, "state.json")
	r := own(t, options(root, dir))
	if err := r.Note("g1", programs, nil); err != nil {
		t.Fatal(err)
	}
	r.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	o := options(root, dir, "lxc1")
	o.Log = slog.New(slog.NewTextHandler(&said, nil))
	if err := os.WriteFile(path, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	r = own(t, o)
	if !strings.Contains(said.String(), "state.json.broken") || len(r.Lost) != 0 {
		t.Errorf("said %q, programs %v", said.String(), r.Lost)
	}
	r.Close()
	said.Reset()
	own(t, o).Close()
	if said.Len() > 0 {
		t.Errorf("the file was not made again: %q", said.String())
	}

	other := bytes.Replace(whole, []byte(r.state.BootID), []byte("another-boot"), 1)
	if err := os.WriteFile(path, other, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := own(t, o); len(r.Lost) != 0 {
		t.Errorf("programs of another boot: %v", r.Lost)
	}
}

// TestNoRoom has a state folder that cannot be written.
func TestNoRoom(t *testing.T) {
	root, dir := testnode.BPFFS(t), t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k,nr_inodes=2"); err != nil {
		t.Skipf("no tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	r := own(t, options(root, dir))
	before, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	err = r.Note("g1", programs, nil)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "state.json") {
		t.Errorf("full disk: %v", err)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, "state.json")); !bytes.Equal(before, after) {
		t.Errorf("the old state is damaged: %q", after)
	}
	r.Close()
	var said bytes.Buffer
	o := options(root, dir)
	o.Log = slog.New(slog.NewTextHandler(&said, nil))
	own(t, o)
	if !strings.Contains(said.String(), "no space left") {
		t.Errorf("a start on a full disk says %q", said.String())
	}
}
