// SPDX-License-Identifier: Apache-2.0

// Package testnode gives tests what a node has: a BPF file system and a network namespace of their
// own, which end with the test.
package testnode

import (
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// BPFFS moves the test into a mount namespace of its own and returns a folder with a BPF file
// system. The goroutine is bound to its thread from then on.
func BPFFS(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	// The thread is not unlocked: it ends with the goroutine, and its namespaces with it.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Skipf("no new mount namespace: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	Mount(t, root)
	t.Cleanup(func() {
		for unix.Unmount(root, unix.MNT_DETACH) == nil {
		}
	})
	return root
}

// Mount mounts a BPF file system, over what is there.
func Mount(t *testing.T, path string) {
	t.Helper()
	if err := unix.Mount("bpf", path, "bpf", 0, ""); err != nil {
		t.Skipf("no BPF file system: %v", err)
	}
}

// New moves the test into a mount and a network namespace of its own and returns a folder with a
// BPF file system.
func New(t *testing.T) string {
	t.Helper()
	root := BPFFS(t)
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no new network namespace: %v", err)
	}
	return root
}

// Go runs f in a goroutine that has the namespaces of the caller, and returns a channel that closes
// when it is done.
func Go(t *testing.T, f func()) <-chan struct{} {
	t.Helper()
	var spaces []int
	for _, kind := range []string{"mnt", "net"} {
		fd, err := unix.Open("/proc/thread-self/ns/"+kind, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		spaces = append(spaces, fd)
	}
	done, there := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_FS)
		for _, fd := range spaces {
			if err == nil {
				err = unix.Setns(fd, 0)
			}
			unix.Close(fd)
		}
		there <- err
		if err == nil {
			f()
		}
	}()
	if err := <-there; err != nil {
		t.Fatalf("namespaces of the test: %v", err)
	}
	return done
}

// Veth makes a pair of devices, name and p<name>, and returns the index of the first.
func Veth(t *testing.T, name string) int {
	t.Helper()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "p" + name}); err != nil {
		t.Fatal(err)
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Index
}
