// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// pass is a program of somebody else.
func pass(t *testing.T, name string) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.LoadImm(asm.R0, -1, asm.DWord), asm.Return()},
	})
	if err != nil {
		t.Skipf("no BPF here: %v", err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// TestLookFindsEverybodysPrograms attaches in both ways to one side of a device.
func TestLookFindsEverybodysPrograms(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if _, err := netns.New(); err != nil {
		t.Skipf("no new network namespace: %v", err)
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b"}); err != nil {
		t.Fatal(err)
	}
	dev, err := netlink.LinkByName("a")
	if err != nil {
		t.Fatal(err)
	}
	in, out := Hook{dev.Attrs().Index, false}, Hook{dev.Attrs().Index, true}
	if seen, err := OnDevice(in); err != nil || len(seen) != 0 {
		t.Errorf("a fresh device: %v, %v", seen, err)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: in.Ifindex, Program: pass(t, "mine"), Attach: ebpf.AttachTCXIngress})
	if err != nil {
		t.Skipf("no tcx: %v", err)
	}
	defer l.Close()
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: in.Ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}, QdiscType: "clsact",
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: in.Ifindex, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 7, Protocol: unix.ETH_P_ALL},
		Fd:          pass(t, "theirs").FD(), Name: "their_filter", DirectAction: true,
	}
	if err := errors.Join(netlink.QdiscAdd(qdisc), netlink.FilterAdd(filter)); err != nil {
		t.Fatal(err)
	}
	seen, err := OnDevice(in)
	if err != nil || len(seen) != 2 || seen[0].Name != "mine" || seen[0].How != ByTCX || seen[1].Name != "their_filter" || seen[1].How != ByFilter {
		t.Errorf("ingress: %v, %v", seen, err)
	}
	if seen, err = OnDevice(out); err != nil || len(seen) != 0 {
		t.Errorf("egress: %v, %v", seen, err)
	}
	if err := netlink.LinkDel(dev); err != nil {
		t.Fatal(err)
	}
	if _, err = OnDevice(in); !errors.Is(err, ErrNoDevice) {
		t.Errorf("a device that is gone: %v", err)
	}
}
