// SPDX-License-Identifier: Apache-2.0

// Package kernel61 runs the program tests of bpf/test on the oldest kernel that is supported:
// Debian's 6.1, emulated by QEMU. It skips where QEMU or the kernel package cannot be had.
package kernel61

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	metaPackage = "linux-image-cloud-amd64"
	bootLimit   = 5 * time.Minute
)

// kernel returns the kernel image, taken from the Debian archive once and kept in the user's cache.
func kernel(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skipf("no cache directory: %v", err)
	}
	dir := filepath.Join(cache, "lash", "kernel61")
	if found, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-6.1.*")); len(found) > 0 {
		return found[0]
	}
	out, err := exec.Command("apt-cache", "depends", metaPackage).Output()
	if err != nil {
		t.Skipf("no kernel package: apt-cache: %v", err)
	}
	var name string
	for _, f := range strings.Fields(string(out)) {
		if strings.HasPrefix(f, "linux-image-6.1.") {
			name = f
		}
	}
	if name == "" {
		t.Skipf("%s does not depend on a 6.1 kernel here", metaPackage)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	get := exec.Command("apt-get", "download", name)
	get.Dir = dir
	if out, err := get.CombinedOutput(); err != nil {
		t.Skipf("kernel package cannot be had: %v: %s", err, out)
	}
	debs, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
	for _, deb := range debs {
		if out, err := exec.Command("dpkg-deb", "-x", deb, dir).CombinedOutput(); err != nil {
			t.Fatalf("unpack %s: %v: %s", deb, err, out)
		}
		os.Remove(deb)
	}
	os.RemoveAll(filepath.Join(dir, "lib"))
	found, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-6.1.*"))
	if len(found) == 0 {
		t.Fatal("the kernel package has no kernel")
	}
	return found[0]
}

// entry writes one file of an initial file system, in the format cpio calls newc.
func entry(w io.Writer, name string, mode uint32, data []byte) {
	fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	pad(w, 110+len(name)+1)
	w.Write(data)
	pad(w, len(data))
}

func pad(w io.Writer, n int) { w.Write(make([]byte, (4-n%4)%4)) }

// TestPrograms boots the kernel with the test binary as its only process.
func TestPrograms(t *testing.T) {
	if testing.Short() {
		t.Skip("emulation takes a minute")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	image := kernel(t)
	dir := t.TempDir()
	binary := filepath.Join(dir, "init")
	build := exec.Command("go", "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", binary, "lash.internal/lash/bpf/test")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	data, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	var fs bytes.Buffer
	const directory, program = 0o040755, 0o100755
	for _, d := range []string{"proc", "sys", "dev", "tmp"} {
		entry(&fs, d, directory, nil)
	}
	entry(&fs, "init", program, data)
	entry(&fs, "TRAILER!!!", 0, nil)
	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, fs.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, qemu, "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "1024",
		"-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio", "-kernel", image, "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off").CombinedOutput()
	if err != nil {
		t.Fatalf("qemu: %v\n%s", err, out)
	}
	t.Logf("%s", out)
	if !bytes.Contains(out, []byte("lash-tests-exit=0")) {
		t.Error("the tests failed on kernel 6.1")
	}
}
