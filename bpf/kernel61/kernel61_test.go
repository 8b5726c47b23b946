// SPDX-License-Identifier: Apache-2.0

// Package kernel61 runs the program tests of bpf/test and those of attaching on the oldest kernel that
// is supported: Debian's 6.1, emulated by QEMU. It skips where QEMU or the kernel package cannot be
// had.
package kernel61

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
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
	bootLimit   = 20 * time.Minute
)

// wanted are the modules that the tests need: the kernel package has them apart. What they depend on
// comes with them.
var wanted = []string{"veth", "vxlan", "bridge", "cls_bpf", "sch_ingress"}

// packages are the test binaries that run on the kernel, besides bpf/test, which runs first.
var packages = []string{"agent/datapath/attach", "agent/datapath/selftest", "agent/datapath/upgrade"}

// kernel returns the kernel image and the modules in the order in which they load. They are taken
// from the Debian archive once and kept in the user's cache.
func kernel(t *testing.T) (image string, modules []string) {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skipf("no cache directory: %v", err)
	}
	dir := filepath.Join(cache, "lash", "kernel61")
	if image, modules = cached(dir); image != "" {
		return image, modules
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
	if err := pickModules(dir); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(filepath.Join(dir, "lib"))
	if image, modules = cached(dir); image == "" {
		t.Fatal("the kernel package has no kernel")
	}
	return image, modules
}

// cached returns what is in the cache; an empty image means that it is not complete.
func cached(dir string) (image string, modules []string) {
	images, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-6.1.*"))
	modules, _ = filepath.Glob(filepath.Join(dir, "modules", "*.ko"))
	if len(images) == 0 || len(modules) < len(wanted) {
		return "", nil
	}
	return images[0], modules
}

// pickModules copies the modules that are wanted out of an unpacked kernel package, with numbers in
// front of their names that give the order.
func pickModules(dir string) error {
	files := map[string]string{}
	err := filepath.WalkDir(filepath.Join(dir, "lib", "modules"), func(path string, _ os.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			files[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		return err
	}
	to := filepath.Join(dir, "modules")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	done := map[string]bool{}
	var pick func(name string) error
	pick = func(name string) error {
		if done[name] {
			return nil
		}
		done[name] = true
		data, err := os.ReadFile(files[name])
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		needs, err := dependencies(data)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, n := range needs {
			if err := pick(n); err != nil {
				return err
			}
		}
		copied, _ := filepath.Glob(filepath.Join(to, "*.ko"))
		return os.WriteFile(filepath.Join(to, fmt.Sprintf("%02d-%s.ko", len(copied), name)), data, 0o644)
	}
	for _, name := range wanted {
		if err := pick(name); err != nil {
			return err
		}
	}
	return nil
}

// dependencies are the names of the modules that a module needs, from its section .modinfo.
func dependencies(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Split(string(info), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}

// archive is an initial file system in the format that cpio calls newc.
type archive struct {
	bytes.Buffer
	folders map[string]bool
}

// add adds a file and the folders above it.
func (a *archive) add(name string, mode uint32, data []byte) {
	a.folder(filepath.Dir(name))
	entry(a, name, mode, data)
}

func (a *archive) folder(name string) {
	if name == "." || a.folders[name] {
		return
	}
	a.folder(filepath.Dir(name))
	a.folders[name] = true
	entry(a, name, 0o040755, nil)
}

// program adds a program of this machine with the libraries that it is linked with.
func (a *archive) program(t *testing.T, name string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		t.Skipf("libraries of %s: %v", path, err)
	}
	files := map[string]string{"bin/" + name: path}
	for _, f := range strings.Fields(string(out)) {
		if filepath.IsAbs(f) {
			files[strings.TrimPrefix(f, "/")] = f
		}
	}
	for to, from := range files {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		a.add(to, executable, data)
	}
}

const executable, plain = 0o100755, 0o100644

// entry writes one file of an initial file system, in the format cpio calls newc.
func entry(w io.Writer, name string, mode uint32, data []byte) {
	fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	pad(w, 110+len(name)+1)
	w.Write(data)
	pad(w, len(data))
}

func pad(w io.Writer, n int) { w.Write(make([]byte, (4-n%4)%4)) }

// TestPrograms boots the kernel with a test binary as its first process, which runs the others.
func TestPrograms(t *testing.T) {
	if testing.Short() {
		t.Skip("emulation takes minutes")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	image, modules := kernel(t)
	dir := t.TempDir()
	fs := &archive{folders: map[string]bool{}}
	for _, d := range []string{"proc", "sys", "dev", "tmp", "run"} {
		fs.folder(d)
	}
	fs.add("init", executable, compile(t, dir, "bpf/test"))
	for _, p := range packages {
		fs.add("tests/"+strings.ReplaceAll(p, "/", "-"), executable, compile(t, dir, p))
	}
	for _, m := range modules {
		data, err := os.ReadFile(m)
		if err != nil {
			t.Fatal(err)
		}
		fs.add("modules/"+filepath.Base(m), plain, data)
	}
	fs.program(t, "ip")
	entry(fs, "TRAILER!!!", 0, nil)
	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, fs.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, qemu, "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "1536",
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

// compile builds the test binary of a package.
func compile(t *testing.T, dir, pkg string) []byte {
	t.Helper()
	binary := filepath.Join(dir, "test")
	build := exec.Command("go", "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", binary, "lash.internal/lash/"+pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	data, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
