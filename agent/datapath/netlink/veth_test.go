// SPDX-License-Identifier: Apache-2.0

package netlink

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	nl "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// podNamespace is a network namespace of a pod: its file, and what looks into it.
func podNamespace(t *testing.T) (string, *nl.Handle) {
	t.Helper()
	type made struct {
		f   *os.File
		err error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{err: err}
			return
		}
		f, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		done <- made{f, err}
	}()
	m := <-done
	if m.err != nil {
		t.Fatal(m.err)
	}
	t.Cleanup(func() { m.f.Close() })
	h, err := nl.NewHandleAt(netns.NsHandle(m.f.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return fmt.Sprintf("/proc/self/fd/%d", m.f.Fd()), h
}

// TestPodsEndIsMadeInside wants the pod's end in the pod's namespace, down and under its name, and in
// the node's namespace where that cannot be.
func TestPodsEndIsMadeInside(t *testing.T) {
	s := node(t)
	file, pod := podNamespace(t)
	v, err := CreateVeth("lxc0123456789ab", Peer{Netns: file, Name: "eth0"}, 1500, true, true, s)
	if err != nil {
		t.Fatal(err)
	}
	l, err := pod.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if a := l.Attrs(); a.HardwareAddr.String() != v.PodMAC.String() || a.MTU != 1500 || a.Flags&1 != 0 || a.ParentIndex != v.HostIndex {
		t.Errorf("the pod's end: %+v", a)
	}
	for name, peer := range map[string]Peer{
		"taken": {Netns: file, Name: "eth0"}, "no file": {Netns: "/nowhere", Name: "eth0"}, "no wish": {},
	} {
		v, err := CreateVeth("lxc00000000000b", peer, 1500, true, true, s)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, ok := Index(v.PeerName); !ok {
			t.Errorf("%s: the pod's end is not here", name)
		}
	}
}

// TestOtherNameOfRun finds a namespace that the runtime calls by the name that the container lacks.
func TestOtherNameOfRun(t *testing.T) {
	before := varRunDir
	varRunDir = t.TempDir() + "/"
	t.Cleanup(func() { varRunDir = before })
	if err := os.WriteFile(varRunDir+"of-a-test-only", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ns, err := openNetns("/run/of-a-test-only")
	if err != nil {
		t.Fatal(err)
	}
	ns.Close()
	if ns, err := openNetns("/proc/of-a-test-only"); err == nil {
		ns.Close()
		t.Error("another folder is taken for it")
	}
}
