// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/datapath/feature"
	"lash.internal/lash/agent/datapath/loader"
	bpfmaps "lash.internal/lash/agent/datapath/maps"
	"lash.internal/lash/bpf"
)

// node gives the test a network namespace and a bpffs of its own and returns the bpffs.
func node(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	// The thread is not unlocked: it ends with the goroutine, and its namespaces with it.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		t.Skipf("no new namespaces: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := unix.Mount("bpf", root, "bpf", 0, ""); err != nil {
		t.Skipf("no bpffs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	if _, err := feature.Probe(); err != nil {
		t.Skipf("kernel: %v", err)
	}
	return root
}

func load(t *testing.T, root string, cfg bpf.Config) (*loader.Programs, *bpfmaps.Set) {
	t.Helper()
	specs, err := loader.Read()
	if err != nil {
		t.Fatal(err)
	}
	set, err := specs.OpenMaps(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(set.Close)
	p, err := specs.Load(root, set, cfg, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, set
}

func veth(t *testing.T) int {
	t.Helper()
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lxc1"}, PeerName: "peer1"}
	if err := netlink.LinkAdd(v); err != nil {
		t.Fatal(err)
	}
	l, err := netlink.LinkByName("lxc1")
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Index
}

// attached returns the ids of the programs on a hook as the kernel has them.
func attached(t *testing.T, h Hook, useTCX bool) []ebpf.ProgramID {
	t.Helper()
	if !useTCX {
		dev, err := netlink.LinkByIndex(h.Ifindex)
		if err != nil {
			t.Fatal(err)
		}
		f, err := ownFilter(dev, h.Egress)
		if err != nil || f == nil {
			return nil
		}
		return []ebpf.ProgramID{ebpf.ProgramID(f.Id)}
	}
	at := ebpf.AttachTCXIngress
	if h.Egress {
		at = ebpf.AttachTCXEgress
	}
	q, err := link.QueryPrograms(link.QueryOptions{Target: h.Ifindex, Attach: at})
	if err != nil {
		t.Fatal(err)
	}
	var out []ebpf.ProgramID
	for _, p := range q.Programs {
		out = append(out, p.ID)
	}
	return out
}

// TestDeviceHooksOverRestartAndUpgrade attaches, starts again over the same node, changes the
// configuration, loses the device, and cleans up, with both ways of attaching.
func TestDeviceHooksOverRestartAndUpgrade(t *testing.T) {
	for name, useTCX := range map[string]bool{"tcx": true, "cls_bpf": false} {
		t.Run(name, func(t *testing.T) {
			root := node(t)
			ctx := context.Background()
			index := veth(t)
			in, out := Hook{index, false}, Hook{index, true}
			want := map[Hook]string{in: "pod_from", out: "pod_to"}

			cfg := bpf.DefaultConfig()
			p1, _ := load(t, root, cfg)
			tc := New(root, p1, feature.Set{TCX: useTCX}, nil).TC()
			if got, err := tc.Load(ctx); err != nil || len(got) != 0 {
				t.Fatalf("fresh node holds %v, %v", got, err)
			}
			for h, n := range want {
				if err := tc.Set(ctx, h, n); err != nil {
					t.Fatal(err)
				}
			}
			before := attached(t, in, useTCX)
			if len(before) != 1 {
				t.Fatalf("%d programs on the hook, want 1", len(before))
			}

			// Another agent, same configuration: everything is as it should be already.
			p2, set := load(t, root, cfg)
			if !p2.Adopted || len(set.Created) != 0 {
				t.Errorf("adopted %v, created maps %v: want nothing loaded", p2.Adopted, set.Created)
			}
			tc = New(root, p2, feature.Set{TCX: useTCX}, nil).TC()
			if got, err := tc.Load(ctx); err != nil || !maps.Equal(got, want) {
				t.Errorf("after a restart: %v, %v, want %v", got, err, want)
			}

			// Another configuration: the programs are replaced on the same hooks.
			cfg.TunnelPort++
			p3, _ := load(t, root, cfg)
			tc = New(root, p3, feature.Set{TCX: useTCX}, nil).TC()
			if got, _ := tc.Load(ctx); got[in] != other {
				t.Errorf("a program of the old generation shows as %q, want %q", got[in], other)
			}
			for h, n := range want {
				if err := tc.Set(ctx, h, n); err != nil {
					t.Fatal(err)
				}
			}
			after := attached(t, in, useTCX)
			if len(after) != 1 || after[0] == before[0] {
				t.Errorf("programs %v before and %v after the upgrade, want one other", before, after)
			}
			if err := p3.Retire(); err != nil {
				t.Fatal(err)
			}
			if gens, _ := os.ReadDir(filepath.Join(root, "lash", "gen")); len(gens) != 1 {
				t.Errorf("%d generations pinned, want 1", len(gens))
			}

			// The device goes: nothing is left of its hooks.
			l, err := netlink.LinkByIndex(index)
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.LinkDel(l); err != nil {
				t.Fatal(err)
			}
			if got, err := tc.Load(ctx); err != nil || len(got) != 0 {
				t.Errorf("hooks of a device that is gone: %v, %v", got, err)
			}
			if err := tc.Delete(ctx, in); err != nil {
				t.Errorf("delete of a hook that is gone: %v", err)
			}

			in.Ifindex = veth(t)
			if err := tc.Set(ctx, in, "nd_from"); err != nil {
				t.Fatal(err)
			}
			if err := Clean(root); err != nil {
				t.Fatal(err)
			}
			// The kernel lets go of a link a moment after its last reference is gone.
			for deadline := time.Now().Add(5 * time.Second); len(attached(t, in, useTCX)) != 0; runtime.Gosched() {
				if time.Now().After(deadline) {
					t.Fatal("still attached after clean")
				}
			}
			if _, err := os.Stat(filepath.Join(root, "lash")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("pins after clean: %v", err)
			}
		})
	}
}

// cgroupRoot makes a cgroup of the test's own and returns it.
func cgroupRoot(t *testing.T) string {
	t.Helper()
	for _, base := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		var st unix.Statfs_t
		if unix.Statfs(base, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		dir, err := os.MkdirTemp(base, "lash-test-")
		if err != nil {
			t.Skipf("no cgroup: %v", err)
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
		return dir
	}
	t.Skip("no cgroup2")
	return ""
}

// TestSocketHooks attaches to a cgroup, moves to another, and starts again.
func TestSocketHooks(t *testing.T) {
	path, moved := cgroupRoot(t), cgroupRoot(t)
	root := node(t)
	ctx := context.Background()
	p, _ := load(t, root, bpf.DefaultConfig())
	a := New(root, p, feature.Set{TCX: true}, nil)
	names := p.Socket()
	if len(names) != 8 {
		t.Errorf("socket programs %v, want 8", names)
	}
	count := func(path string) int {
		d, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		q, err := link.QueryPrograms(link.QueryOptions{Target: int(d.Fd()), Attach: ebpf.AttachCGroupInet4Connect})
		if err != nil {
			t.Fatal(err)
		}
		return len(q.Programs)
	}
	for _, dir := range []string{path, moved, moved} { // the last time, nothing changes
		c := a.Cgroup(dir)
		for _, n := range names {
			if err := c.Set(ctx, n, n); err != nil {
				t.Fatal(err)
			}
		}
		got, err := c.Load(ctx)
		if err != nil || len(got) != len(names) || got["sock_connect4"] != "sock_connect4" {
			t.Errorf("hooks %v, %v", got, err)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); count(path) != 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("still attached to the old cgroup")
		}
	}
	if n := count(moved); n != 1 {
		t.Errorf("%d programs on the new cgroup, want 1", n)
	}
	if err := a.Cgroup(moved).Delete(ctx, "sock_connect4"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); count(moved) != 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("still attached after delete")
		}
	}
}
