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
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/datapath/feature"
	"lash.internal/lash/agent/datapath/loader"
	bpfmaps "lash.internal/lash/agent/datapath/maps"
	"lash.internal/lash/agent/datapath/testnode"
	"lash.internal/lash/bpf"
)

func load(t *testing.T, root string, cfg bpf.Config, features string) (*loader.Programs, *bpfmaps.Set) {
	t.Helper()
	specs, err := loader.Read()
	if err != nil {
		t.Fatal(err)
	}
	set, err := specs.OpenMaps(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(set.Close)
	p, err := specs.Load(root, set, cfg, features, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	if err := p.Accept(); err != nil {
		t.Fatal(err)
	}
	return p, set
}

// attacher starts an Attacher over the node as an agent does it, which knows all generations.
func attacher(t *testing.T, root string, p *loader.Programs, useTCX bool) *Attacher {
	t.Helper()
	specs, err := loader.Read()
	if err != nil {
		t.Fatal(err)
	}
	gens, err := specs.Generations(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, g := range gens {
			g.Close()
		}
	})
	a, err := New(Options{BPFRoot: root, TCX: useTCX, Generations: gens, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}, p)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// byLinks and byFilters are the programs on a hook as the kernel has them.
func byLinks(t *testing.T, h Hook) []ebpf.ProgramID {
	t.Helper()
	q, err := link.QueryPrograms(link.QueryOptions{Target: h.Ifindex, Attach: h.tcx()})
	if errors.Is(err, unix.EINVAL) {
		return nil // a kernel without tcx
	}
	if err != nil {
		t.Fatal(err)
	}
	var out []ebpf.ProgramID
	for _, p := range q.Programs {
		out = append(out, p.ID)
	}
	return out
}

func byFilters(t *testing.T, h Hook) []ebpf.ProgramID {
	t.Helper()
	all, err := netlink.FilterList(device(h.Ifindex), parent(h.Egress))
	if err != nil {
		t.Fatal(err)
	}
	var out []ebpf.ProgramID
	for _, f := range all {
		if b, ok := f.(*netlink.BpfFilter); ok {
			out = append(out, ebpf.ProgramID(b.Id))
		}
	}
	return out
}

// eventually waits for what the kernel does a moment after it was asked.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !cond(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// ways are the back ends that the kernel has.
func ways(t *testing.T) map[string]bool {
	t.Helper()
	f, err := feature.Probe()
	if err != nil {
		t.Skipf("kernel: %v", err)
	}
	out := map[string]bool{"cls_bpf": false}
	if f.TCX {
		out["tcx"] = true
	}
	return out
}

func mustLoad(t *testing.T, a *Attacher) map[Hook]Program {
	t.Helper()
	got, err := a.Hooks().Load(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// put attaches the current generation's programs.
func put(t *testing.T, a *Attacher, names map[Hook]string) map[Hook]Program {
	t.Helper()
	want := map[Hook]Program{}
	for h, n := range names {
		want[h] = a.Of(n)
		if err := a.Hooks().Set(context.Background(), h, want[h]); err != nil {
			t.Fatal(err)
		}
	}
	return want
}

// TestDeviceHooksOverRestartAndUpgrade attaches, starts again over the same node, changes the
// configuration, loses the device, and cleans up, with both ways of attaching.
func TestDeviceHooksOverRestartAndUpgrade(t *testing.T) {
	for name, useTCX := range ways(t) {
		t.Run(name, func(t *testing.T) {
			root := testnode.New(t)
			ctx := context.Background()
			attached := byFilters
			if useTCX {
				attached = byLinks
			}
			index := testnode.Veth(t, "lxc1")
			in, out := Hook{index, false}, Hook{index, true}
			names := map[Hook]string{in: "nd_from", out: "nd_to"}

			cfg := bpf.DefaultConfig()
			p1, _ := load(t, root, cfg, "")
			a := attacher(t, root, p1, useTCX)
			if got := mustLoad(t, a); len(got) != 0 {
				t.Fatalf("fresh node holds %v", got)
			}
			want := put(t, a, names)
			before := attached(t, in)
			if len(before) != 1 {
				t.Fatalf("%d programs on the hook, want 1", len(before))
			}

			// Another agent, same configuration: everything is as it should be already.
			p2, set := load(t, root, cfg, "")
			if !p2.Adopted || len(set.Created) != 0 {
				t.Errorf("adopted %v, created maps %v: want nothing loaded", p2.Adopted, set.Created)
			}
			a = attacher(t, root, p2, useTCX)
			if got := mustLoad(t, a); !maps.Equal(got, want) {
				t.Errorf("after a restart: %v, want %v", got, want)
			}

			// Another configuration: the programs are replaced on the same hooks, but not before
			// that is allowed.
			cfg.TunnelPort++
			p3, _ := load(t, root, cfg, "")
			a = attacher(t, root, p3, useTCX)
			old := mustLoad(t, a)
			if st := a.State(); st.Hooks != 2 || st.Behind != 2 {
				t.Errorf("state before the upgrade %+v", st)
			}
			if old[in] != (Program{"nd_from", p1.Hash}) || !a.Satisfies(old[in], a.Of("nd_from")) || a.Satisfies(old[in], a.Of("nd_to")) {
				t.Errorf("a program of the old generation shows as %v", old[in])
			}
			a.Release()
			if a.Satisfies(old[in], a.Of("nd_from")) {
				t.Error("a program of the old generation is good enough after the release")
			}
			put(t, a, names)
			after := attached(t, in)
			if len(after) != 1 || after[0] == before[0] {
				t.Errorf("programs %v before and %v after the upgrade, want one other", before, after)
			}
			if st := a.State(); st.Repairs != 0 || st.Handover || st.Hooks != 2 || st.Behind != 0 {
				t.Errorf("state after an upgrade %+v", st)
			}
			if err := p3.Retire(); err != nil {
				t.Fatal(err)
			}
			if gens, _ := os.ReadDir(filepath.Join(root, "lash", "gen")); len(gens) != 1 {
				t.Errorf("%d generations pinned, want 1", len(gens))
			}

			// And back again, while the agent runs.
			a.Use(p1)
			put(t, a, names)
			if now := attached(t, in); !slices.Equal(now, before) {
				t.Errorf("programs %v after going back, want %v", now, before)
			}

			// The device goes: nothing is left of its hooks.
			l, err := netlink.LinkByIndex(index)
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.LinkDel(l); err != nil {
				t.Fatal(err)
			}
			if got := mustLoad(t, a); len(got) != 0 {
				t.Errorf("hooks of a device that is gone: %v", got)
			}
			if err := a.Hooks().Delete(ctx, in); err != nil {
				t.Errorf("delete of a hook that is gone: %v", err)
			}

			in.Ifindex = testnode.Veth(t, "lxc1")
			put(t, a, map[Hook]string{in: "nd_from"})
			if err := Clean(root); err != nil {
				t.Fatal(err)
			}
			if left := attached(t, in); len(left) != 0 {
				t.Errorf("still attached after clean: %v", left)
			}
			if _, err := os.Stat(filepath.Join(root, "lash")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("pins after clean: %v", err)
			}
			if q := qdiscs(t, in.Ifindex); slices.Contains(q, "clsact") {
				t.Errorf("qdiscs after clean: %v", q)
			}
		})
	}
}

func qdiscs(t *testing.T, index int) []string {
	t.Helper()
	all, err := netlink.QdiscList(device(index))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, q := range all {
		out = append(out, q.Type())
	}
	return out
}

// TestLostAttachmentIsRepaired takes the program off a hook behind the agent's back: the audit sees
// it, and what puts it back counts it.
func TestLostAttachmentIsRepaired(t *testing.T) {
	for name, useTCX := range ways(t) {
		t.Run(name, func(t *testing.T) {
			root := testnode.New(t)
			p, _ := load(t, root, bpf.DefaultConfig(), "")
			a := attacher(t, root, p, useTCX)
			h := Hook{Ifindex: testnode.Veth(t, "lxc1")}
			want := put(t, a, map[Hook]string{h: "nd_from"})
			for i, lose := range []func() error{
				func() error { return os.RemoveAll(filepath.Join(root, "lash", "link")) },
				func() error {
					if useTCX {
						l, err := link.LoadPinnedLink(filepath.Join(root, "lash", "link", h.String()), nil)
						if err != nil {
							return err
						}
						defer l.Close()
						return l.Detach()
					}
					return netlink.QdiscDel(clsact(h.Ifindex))
				},
			} {
				if !useTCX && i == 0 {
					continue // filters have no pins
				}
				before := a.State().Repairs
				if err := lose(); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the audit sees a program that is gone", func() bool { return len(mustLoad(t, a)) == 0 })
				eventually(t, "not attached again", func() bool { // the kernel first has to let go of the old link
					return a.Hooks().Set(context.Background(), h, a.Of("nd_from")) == nil
				})
				if got := mustLoad(t, a); !maps.Equal(got, want) {
					t.Errorf("after the repair: %v", got)
				}
				if n := a.State().Repairs; n != before+1 {
					t.Errorf("%d repairs counted, want %d", n, before+1)
				}
			}
		})
	}
}

// counter is a program of somebody else that counts packets and gives them on.
func counter(t *testing.T) (*ebpf.Program, func() uint64) {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, 0),
			asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Imm(asm.R1, 1),
			asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
			asm.Mov.Imm(asm.R0, -1).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, func() uint64 {
		var n uint64
		if err := m.Lookup(uint32(0), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
}

// TestForeignPrograms puts programs of somebody else on a hook before and after ours: they stay
// over everything that we do there, and both see a packet that ours gives on.
func TestForeignPrograms(t *testing.T) {
	for name, useTCX := range ways(t) {
		t.Run(name, func(t *testing.T) {
			root := testnode.New(t)
			index := testnode.Veth(t, "eth9")
			h := Hook{Ifindex: index}
			before, seenBefore := counter(t)
			after, seenAfter := counter(t)
			foreign := func(p *ebpf.Program, prio uint16, handle uint32) {
				if useTCX {
					l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: p, Attach: ebpf.AttachTCXIngress})
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { l.Close() })
					return
				}
				_ = netlink.QdiscAdd(clsact(index))
				err := netlink.FilterAdd(&netlink.BpfFilter{
					FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: parent(false), Handle: handle, Priority: prio, Protocol: unix.ETH_P_ALL},
					Fd:          p.FD(), Name: "foreign", DirectAction: true,
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			foreign(before, 1, 1)
			cfg := bpf.DefaultConfig()
			p1, _ := load(t, root, cfg, "")
			a := attacher(t, root, p1, useTCX)
			put(t, a, map[Hook]string{h: "nd_from"})
			foreign(after, filterPriority, filterHandle+1)
			cfg.TunnelPort++
			p2, _ := load(t, root, cfg, "")
			a = attacher(t, root, p2, useTCX)
			a.Release()
			put(t, a, map[Hook]string{h: "nd_from"})
			mustLoad(t, a)
			if n := a.State().Foreign; useTCX && n != 2 {
				t.Errorf("%d foreign programs seen, want 2", n)
			}

			// What arrives on the hook is what the other end of the pair sends.
			for _, n := range []string{"eth9", "peth9"} {
				l, err := netlink.LinkByName(n)
				if err != nil {
					t.Fatal(err)
				}
				if err := netlink.LinkSetUp(l); err != nil {
					t.Fatal(err)
				}
			}
			frame(t, "peth9")
			eventually(t, "foreign programs see what ours give on", func() bool { return seenBefore() > 0 && seenAfter() > 0 })

			if err := Clean(root); err != nil {
				t.Fatal(err)
			}
			left := byFilters(t, h)
			if useTCX {
				left = byLinks(t, h)
			}
			if len(left) != 2 {
				t.Errorf("%d programs left, want the two of somebody else", len(left))
			}
		})
	}
}

// frame sends an ARP request out of a device.
func frame(t *testing.T, dev string) {
	t.Helper()
	l, err := netlink.LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	b := make([]byte, 60)
	copy(b, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 8, 6})
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Halen: 6}); err != nil {
		t.Fatal(err)
	}
}

// TestPlaceTaken has somebody else at the very place of our filter, and a qdisc of another kind.
func TestPlaceTaken(t *testing.T) {
	root := testnode.New(t)
	p, _ := load(t, root, bpf.DefaultConfig(), "")
	a := attacher(t, root, p, false)
	taken, _ := counter(t)
	index := testnode.Veth(t, "lxc1")
	h := Hook{Ifindex: index}
	if err := netlink.QdiscAdd(clsact(index)); err != nil {
		t.Fatal(err)
	}
	theirs := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: parent(false), Handle: filterHandle, Priority: filterPriority, Protocol: unix.ETH_P_ALL},
		Fd:          taken.FD(), Name: "agent_x", DirectAction: true,
	}
	if err := netlink.FilterAdd(theirs); err != nil {
		t.Fatal(err)
	}
	put(t, a, map[Hook]string{h: "nd_from"})
	if n := len(byFilters(t, h)); n != 2 {
		t.Errorf("%d filters, want theirs and ours", n)
	}
	if err := Clean(root); err != nil {
		t.Fatal(err)
	}
	if n := len(byFilters(t, h)); n != 1 || !slices.Contains(qdiscs(t, index), "clsact") {
		t.Errorf("%d filters and qdiscs %v after clean, want theirs and its clsact", n, qdiscs(t, index))
	}

	p, _ = load(t, root, bpf.DefaultConfig(), "")
	a = attacher(t, root, p, false)
	other := Hook{testnode.Veth(t, "lxc2"), true}
	err := netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: other.Ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}})
	if err != nil {
		t.Fatal(err)
	}
	err = a.Hooks().Set(context.Background(), other, a.Of("nd_to"))
	if err == nil || !strings.Contains(err.Error(), "ingress qdisc of somebody else") {
		t.Errorf("attaching behind an ingress qdisc: %v", err)
	}
}

// TestLostPin has links of ours that lost their pins and that something else keeps: they are taken
// up again, or, without the right to that, ours comes before them and the programs are told.
func TestLostPin(t *testing.T) {
	if !ways(t)["tcx"] {
		t.Skip("the kernel has no tcx")
	}
	root := testnode.New(t)
	p, _ := load(t, root, bpf.DefaultConfig(), "")
	a := attacher(t, root, p, true)
	h := Hook{Ifindex: testnode.Veth(t, "lxc1")}
	pin := filepath.Join(root, "lash", "link", h.String())
	lose := func() link.Link {
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		if err := os.Remove(pin); err != nil {
			t.Fatal(err)
		}
		return l
	}
	put(t, a, map[Hook]string{h: "nd_from"})
	lose()
	if got := mustLoad(t, a); len(got) != 0 {
		t.Fatalf("a link without pin is seen: %v", got)
	}
	put(t, a, map[Hook]string{h: "nd_from"})
	if n := len(byLinks(t, h)); n != 1 || a.State().Repairs != 1 {
		t.Errorf("%d programs, %d repairs, want the one link taken up", n, a.State().Repairs)
	}

	// Without CAP_SYS_ADMIN a link cannot be opened by its number.
	allowed := a.byID
	a.byID = func(link.ID) (link.Link, error) { return nil, unix.EPERM }
	orphan := lose()
	want := put(t, a, map[Hook]string{h: "nd_from"})
	if got := mustLoad(t, a); !maps.Equal(got, want) || len(byLinks(t, h)) != 1 || len(a.State().Unpinned) != 1 || a.Handover() {
		t.Errorf("hooks %v, %d programs, state %+v: want the link that is there, and word of it", got, len(byLinks(t, h)), a.State())
	}
	cfg := bpf.DefaultConfig()
	cfg.TunnelPort++
	p, _ = load(t, root, cfg, "")
	a.Use(p)
	put(t, a, map[Hook]string{h: "nd_from"})
	mustLoad(t, a)
	st := a.State()
	if len(byLinks(t, h)) != 2 || len(st.Twins) != 1 || len(st.Unpinned) != 0 || !strings.Contains(st.Twins[0], "bpftool link detach") || !a.Handover() {
		t.Errorf("%d programs, handover %v, state %+v: want the second link to be seen and told", len(byLinks(t, h)), a.Handover(), st)
	}
	own, info, err := open(pin)
	if err != nil || own == nil {
		t.Fatal(err)
	}
	own.Close()
	q, err := link.QueryPrograms(link.QueryOptions{Target: h.Ifindex, Attach: h.tcx()})
	if err != nil {
		t.Fatal(err)
	}
	if first, _ := q.Programs[0].LinkID(); first != info.ID {
		t.Error("ours does not come first")
	}

	a.byID = allowed
	mustLoad(t, a)
	if len(byLinks(t, h)) != 1 || len(a.State().Twins) != 0 || a.Handover() {
		t.Errorf("%d programs, state %+v: want the second link gone", len(byLinks(t, h)), a.State())
	}
	if info, err := orphan.Info(); err != nil || info.TCX().Ifindex != 0 {
		t.Errorf("the second link is still attached: %+v, %v", info, err)
	}
}

// TestChangeOver goes from one way of attaching to the other and back on a node with hooks: until
// the new program is live on a hook, the old one stays.
func TestChangeOver(t *testing.T) {
	if !ways(t)["tcx"] {
		t.Skip("the kernel has no tcx")
	}
	root := testnode.New(t)
	ctx := context.Background()
	index := testnode.Veth(t, "lxc1")
	in, out := Hook{index, false}, Hook{index, true}
	names := map[Hook]string{in: "nd_from", out: "nd_to"}
	wanted := func(Hook) bool { return true }
	count := func() (links, filters int) {
		for h := range names {
			links, filters = links+len(byLinks(t, h)), filters+len(byFilters(t, h))
		}
		return links, filters
	}
	p, _ := load(t, root, bpf.DefaultConfig(), "tcx")
	put(t, attacher(t, root, p, true), names)
	for _, useTCX := range []bool{false, true, false, true} {
		features := map[bool]string{true: "tcx", false: ""}[useTCX]
		p, _ := load(t, root, bpf.DefaultConfig(), features)
		a := attacher(t, root, p, useTCX)
		if !a.Handover() {
			t.Fatal("the programs are not told that there will be two")
		}
		got := mustLoad(t, a)
		if len(got) != 2 || !a.Satisfies(got[in], a.Of("nd_from")) {
			t.Fatalf("hooks as the other way has left them: %v", got)
		}
		a.Release()
		if err := a.Hooks().Set(ctx, in, a.Of("nd_from")); err != nil {
			t.Fatal(err)
		}
		if err := a.Finish(wanted); err == nil || !strings.Contains(err.Error(), out.String()) {
			t.Errorf("finished though %s has no new program: %v", out, err)
		}
		if links, filters := count(); links+filters != 2 {
			t.Errorf("%d links and %d filters, want one on each hook", links, filters)
		}
		want := put(t, a, names)
		if err := a.Finish(wanted); err != nil {
			t.Fatal(err)
		}
		if links, filters := count(); (links == 2) != useTCX || (filters == 0) != useTCX || links+filters != 2 {
			t.Errorf("tcx %v: %d links and %d filters", useTCX, links, filters)
		}
		if got := mustLoad(t, a); !maps.Equal(got, want) || a.Handover() || a.State().Repairs != 0 {
			t.Errorf("after the change: %v, state %+v", got, a.State())
		}
		if !slices.Contains(qdiscs(t, index), "clsact") {
			t.Errorf("tcx %v: qdiscs %v, want ours to stay", useTCX, qdiscs(t, index))
		}
	}
	if err := Clean(root); err != nil {
		t.Fatal(err)
	}
	if links, filters := count(); links+filters != 0 || slices.Contains(qdiscs(t, index), "clsact") {
		t.Errorf("after clean: %d links, %d filters, qdiscs %v", links, filters, qdiscs(t, index))
	}
}

// TestFileSystemHidden has another file system mounted over the pins: nothing is attached a second
// time.
func TestFileSystemHidden(t *testing.T) {
	for name, useTCX := range ways(t) {
		t.Run(name, func(t *testing.T) {
			root := testnode.New(t)
			p, _ := load(t, root, bpf.DefaultConfig(), "")
			a := attacher(t, root, p, useTCX)
			h := Hook{Ifindex: testnode.Veth(t, "lxc1")}
			put(t, a, map[Hook]string{h: "nd_from"})
			hidden := errors.New("hidden")
			a.check = func() error { return hidden }
			if _, err := a.Hooks().Load(context.Background()); !errors.Is(err, hidden) {
				t.Errorf("load: %v", err)
			}
			if err := a.Hooks().Set(context.Background(), h, a.Of("nd_from")); !errors.Is(err, hidden) {
				t.Errorf("set: %v", err)
			}
			if n := len(byLinks(t, h)) + len(byFilters(t, h)); n != 1 {
				t.Errorf("%d programs, want 1", n)
			}
			// The kernel still tells of what the pins hide.
			where, err := Find(p.IDs())
			if err != nil || !slices.Equal(where, []string{"lxc1"}) {
				t.Errorf("found on %v, %v", where, err)
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
	root := testnode.New(t)
	ctx := context.Background()
	p, _ := load(t, root, bpf.DefaultConfig(), "")
	a := attacher(t, root, p, true)
	names := a.Sockets()
	if len(names) != 10 {
		t.Errorf("socket programs %v, want 10", names)
	}
	countOf := func(path string, at ebpf.AttachType) int {
		d, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		q, err := link.QueryPrograms(link.QueryOptions{Target: int(d.Fd()), Attach: at})
		if err != nil {
			t.Fatal(err)
		}
		return len(q.Programs)
	}
	count := func(path string) int { return countOf(path, ebpf.AttachCGroupInet4Connect) }
	for _, dir := range []string{path, moved, moved} { // the last time, nothing changes
		c := a.Cgroup(dir)
		for _, n := range names {
			if err := c.Set(ctx, n, a.Of(n)); err != nil {
				t.Fatal(err)
			}
		}
		got, err := c.Load(ctx)
		if err != nil || len(got) != len(names) || got["sock_connect4"] != a.Of("sock_connect4") {
			t.Errorf("hooks %v, %v", got, err)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); count(path) != 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("still attached to the old cgroup")
		}
	}
	for _, at := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
		ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg, ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername,
		ebpf.AttachCGroupInet4PostBind, ebpf.AttachCGroupInet6PostBind,
	} {
		if n := countOf(moved, at); n != 1 {
			t.Errorf("%d programs of %v on the new cgroup, want 1", n, at)
		}
	}
	if err := a.Cgroup(moved).Delete(ctx, "sock_connect4"); err != nil {
		t.Fatal(err)
	}
	if count(moved) != 0 {
		t.Fatal("still attached after delete")
	}
}

// TestPodsHaveFilters: with tcx on the node's devices those of pods get filters, which cost no grace period
// of RCU; a pod that has links keeps them, and none of that is a change from one way to the other.
func TestPodsHaveFilters(t *testing.T) {
	if !ways(t)["tcx"] {
		t.Skip("the kernel has no tcx")
	}
	root := testnode.New(t)
	eth, pod, old := testnode.Veth(t, "eth"), testnode.Veth(t, "lxc1"), testnode.Veth(t, "lxc2")
	both := func(index int, in, out string) map[Hook]string {
		return map[Hook]string{{index, false}: in, {index, true}: out}
	}
	p, _ := load(t, root, bpf.DefaultConfig(), "tcx")
	a := attacher(t, root, p, true)
	a.main = newTCX(a) // as an agent did that gave links to pods too
	put(t, a, both(old, "pod_from", "pod_to"))

	a = attacher(t, root, p, true)
	put(t, a, both(eth, "nd_from", "nd_to"))
	put(t, a, both(pod, "pod_from", "pod_to"))
	put(t, a, both(old, "pod_from", "pod_to"))
	check := func(a *Attacher) {
		t.Helper()
		for index, filters := range map[int]int{eth: 0, pod: 1, old: 0} {
			for h := range both(index, "", "") {
				if l, f := len(byLinks(t, h)), len(byFilters(t, h)); f != filters || l != 1-filters {
					t.Errorf("%s: %d links and %d filters", h, l, f)
				}
			}
		}
		if got := mustLoad(t, a); len(got) != 6 || a.Handover() {
			t.Errorf("hooks %v, handover %v", got, a.Handover())
		}
	}
	check(a)
	check(attacher(t, root, p, true))

	// a device that goes leaves nothing that is remembered of it
	if err := netlink.LinkDel(device(pod)); err != nil {
		t.Fatal(err)
	}
	for h := range both(pod, "", "") {
		if err := a.Hooks().Delete(context.Background(), h); err != nil {
			t.Error(err)
		}
	}
	if marks, err := os.ReadDir(filepath.Join(root, "lash", "clsact")); err != nil || len(marks) != 0 {
		t.Errorf("remembered: %v, %v", marks, err)
	}
}
