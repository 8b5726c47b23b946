// SPDX-License-Identifier: Apache-2.0

package nodeinit

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// ownMounts gives the test a mount namespace of its own and an empty file system in it.
func ownMounts(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Skipf("no new mount namespace: %v", err)
	}
	if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("tmpfs", root, "tmpfs", 0, "")); err != nil {
		t.Skipf("no mounts: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) }) // on the same thread
	for _, d := range []string{"bpf", "run/lash", "run/cilium/cgroupv2"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestWhatWasMountedIsUnmountedAndNothingElse(t *testing.T) {
	root := ownMounts(t)
	bpf, state := filepath.Join(root, "bpf"), filepath.Join(root, "run/lash")
	for i, want := range []bool{true, false} {
		if done, err := MountBPF(bpf, state); err != nil || done != want {
			t.Fatalf("run %d: %v, %v", i, done, err)
		}
	}
	if got, err := Mounted(state); err != nil || !slices.Equal(got, []string{bpf}) {
		t.Fatalf("remembered %q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(state, "other"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := emptyDir(state); err != nil {
		t.Fatal(err)
	}
	if got, _ := Mounted(state); len(got) != 1 {
		t.Fatal("cleaning the state forgot what is mounted")
	}
	// Others use the file system by now.
	if err := os.Mkdir(filepath.Join(bpf, "theirs"), 0o700); err != nil {
		t.Fatal(err)
	}
	folders := []string{filepath.Join(root, "run/cilium")}
	if kept, err := Leave("/", state, folders); err != nil || !slices.Equal(kept, []string{bpf}) {
		t.Errorf("kept %q, %v", kept, err)
	}
	if ok, _ := isFS(bpf, unix.BPF_FS_MAGIC); !ok {
		t.Error("a file system that others use was unmounted")
	}
}

func TestLeaveRemovesEmptyFolders(t *testing.T) {
	root := ownMounts(t)
	bpf, state := filepath.Join(root, "bpf"), filepath.Join(root, "run/lash")
	if _, err := MountBPF(bpf, state); err != nil {
		t.Fatal(err)
	}
	theirs := filepath.Join(root, "run/cilium/cgroupv2") // of the node's owner
	if err := unix.Mount("tmpfs", theirs, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	folders := []string{filepath.Join(root, "run/cilium")}
	if kept, err := Leave("/", state, folders); err != nil || len(kept) > 0 {
		t.Errorf("kept %q, %v", kept, err)
	}
	for path, want := range map[string]bool{bpf: false, state: false, theirs: true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v, wanted there: %v", path, err, want)
		}
	}
	if err := unix.Unmount(theirs, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Leave("/", state, append(folders, theirs)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(root, "run/cilium")); err == nil {
		t.Error("an empty folder stays")
	}
}

func TestABrokenLedgerIsAnError(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ledger), []byte(`["half`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Mounted(dir); err == nil {
		t.Error("half a ledger was read")
	}
	if err := remember(dir, "/x"); err == nil {
		t.Error("half a ledger was written over")
	}
}
