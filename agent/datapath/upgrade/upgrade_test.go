// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"lash.internal/lash/agent/datapath/attach"
	"lash.internal/lash/agent/datapath/feature"
	"lash.internal/lash/agent/datapath/loader"
	"lash.internal/lash/agent/datapath/maps"
	"lash.internal/lash/agent/datapath/selftest"
	"lash.internal/lash/agent/datapath/testnode"
	"lash.internal/lash/bpf"
)

// build is the objects of a version, changed from the real ones.
func build(t *testing.T, version string, change func(tc *ebpf.CollectionSpec)) *loader.Specs {
	t.Helper()
	tc, err1 := bpf.LoadTc()
	sock, err2 := bpf.LoadSock()
	gc, err3 := bpf.LoadGc()
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(tc)
	}
	return loader.New(sha256.Sum256([]byte(version)),
		loader.Object{Name: "tc", Spec: tc}, loader.Object{Name: "sock", Spec: sock}, loader.Object{Name: "gc", Spec: gc})
}

// node is a node over several starts of an agent.
type node struct {
	t    *testing.T
	root string
	tcx  bool
	hook attach.Hook
}

func newNode(t *testing.T) *node {
	root := testnode.New(t)
	f, err := feature.Probe()
	if err != nil {
		t.Skipf("kernel: %v", err)
	}
	return &node{t, root, f.TCX, attach.Hook{Ifindex: testnode.Veth(t, "lxc1")}}
}

func (n *node) start(specs *loader.Specs) (*Choice, *maps.Set, error) {
	n.t.Helper()
	set, err := specs.OpenMaps(n.root, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(set.Close)
	c, err := Choose(Options{
		BPFRoot: n.root, Specs: specs, Maps: set, Config: bpf.DefaultConfig(), Log: slog.New(slog.NewTextHandler(n.t.Output(), nil)),
	})
	if err == nil {
		n.t.Cleanup(c.Close)
	}
	return c, set, err
}

// serve puts the programs of a choice on the node's hook.
func (n *node) serve(c *Choice) *attach.Attacher {
	n.t.Helper()
	a, err := attach.New(attach.Options{BPFRoot: n.root, TCX: n.tcx, Generations: c.Others()}, c.Programs)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := a.Hooks().Set(context.Background(), n.hook, a.Of("pod_from")); err != nil {
		n.t.Fatal(err)
	}
	return a
}

func (n *node) pinned() []string {
	n.t.Helper()
	var out []string
	for _, dir := range []string{"gen", "maps"} {
		entries, err := os.ReadDir(filepath.Join(n.root, "lash", dir))
		if err != nil {
			n.t.Fatal(err)
		}
		for _, e := range entries {
			out = append(out, dir+"/"+e.Name())
		}
	}
	return out
}

// unloadable is what the verifier refuses, wrong what does the wrong thing.
func unloadable(tc *ebpf.CollectionSpec) {
	tc.Programs["ov_to"].Instructions = asm.Instructions{asm.Return()}
}

func wrong(tc *ebpf.CollectionSpec) {
	tc.Programs["ov_to"].Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}
}

// otherLayout gives a map that is filled from the API another layout.
func otherLayout(tc *ebpf.CollectionSpec) {
	tc.Maps["dev"].MaxEntries *= 2
}

// TestUpgrade goes from one version to the next: the old one serves until it is forgotten.
func TestUpgrade(t *testing.T) {
	n := newNode(t)
	first, _, err := n.start(build(t, "1", nil))
	if err != nil || first.Previous != nil || first.Problem != nil || len(first.Others()) != 0 {
		t.Fatalf("fresh node: %+v, %v", first, err)
	}
	n.serve(first)
	again, _, err := n.start(build(t, "1", nil))
	if err != nil || !again.Programs.Adopted || again.Previous != nil || len(again.Others()) != 0 {
		t.Errorf("same version: %+v, %v", again, err)
	}

	second, set, err := n.start(build(t, "2", otherLayout))
	if err != nil || second.Programs.Adopted || second.Previous == nil || second.Previous.Hash != first.Programs.Hash {
		t.Fatalf("next version: %+v, %v", second, err)
	}
	if !slices.Equal(set.Replaced, []string{"dev"}) {
		t.Errorf("maps replaced: %v, want dev", set.Replaced)
	}
	if known := second.Known(); len(known) != 2 || len(known[first.Programs.Hash]) == 0 {
		t.Errorf("known programs: %v", known)
	}
	// An agent that dies here leaves both, and the next one chooses the same.
	third, _, err := n.start(build(t, "2", otherLayout))
	if err != nil || !third.Programs.Adopted || third.Previous == nil || third.Previous.Hash != first.Programs.Hash {
		t.Errorf("killed in between: %+v, %v", third, err)
	}
	n.serve(second)
	if err := second.Retire(); err != nil {
		t.Fatal(err)
	}
	if p := n.pinned(); slices.Contains(p, "gen/"+first.Programs.Hash) || slices.Contains(p, "maps/dev_v1_old") {
		t.Errorf("still pinned: %v", p)
	}
}

// TestUselessUpgrade comes with programs that the kernel refuses or that fail the self-test: the old
// ones go on. On a fresh node there is nothing that could.
func TestUselessUpgrade(t *testing.T) {
	for name, spoil := range map[string]func(*ebpf.CollectionSpec){"refused": unloadable, "fails the self-test": wrong} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			if _, _, err := n.start(build(t, "2", spoil)); err == nil {
				t.Fatal("a fresh node takes them")
			}
			if p := n.pinned(); slices.ContainsFunc(p, func(s string) bool { return strings.HasPrefix(s, "gen/") }) {
				t.Errorf("pinned: %v", p)
			}
			good, _, err := n.start(build(t, "1", nil))
			if err != nil {
				t.Fatal(err)
			}
			n.serve(good)
			before := n.pinned()
			for range 2 { // the agent may be restarted any number of times
				c, _, err := n.start(build(t, "2", spoil))
				if err != nil || c.Problem == nil || c.Programs.Hash != good.Programs.Hash || c.Previous != nil {
					t.Fatalf("%+v, %v", c, err)
				}
				if isTest := errors.Is(c.Problem, selftest.ErrFailed); isTest != (name == "fails the self-test") || !strings.Contains(c.Problem.Error(), "ov_to") {
					t.Errorf("problem %v", c.Problem)
				}
				a := n.serve(c)
				if got, err := a.Hooks().Load(context.Background()); err != nil || got[n.hook] != (attach.Program{Name: "pod_from", Generation: good.Programs.Hash}) {
					t.Errorf("hooks %v, %v", got, err)
				}
				if err := c.Retire(); err != nil {
					t.Error(err)
				}
			}
			if after := n.pinned(); !slices.Equal(before, after) {
				t.Errorf("pinned %v, before %v", after, before)
			}
			repaired, _, err := n.start(build(t, "3", nil))
			if err != nil || repaired.Problem != nil || repaired.Previous == nil {
				t.Errorf("the version after: %+v, %v", repaired, err)
			}
		})
	}
}

// TestStandby comes with programs that are of no use and maps of another layout: nothing is touched.
func TestStandby(t *testing.T) {
	n := newNode(t)
	good, _, err := n.start(build(t, "1", nil))
	if err != nil {
		t.Fatal(err)
	}
	n.serve(good)
	before := n.pinned()
	_, _, err = n.start(build(t, "2", func(tc *ebpf.CollectionSpec) { unloadable(tc); otherLayout(tc) }))
	if !errors.Is(err, ErrStandby) || !strings.Contains(err.Error(), "ov_to") {
		t.Errorf("error %v", err)
	}
	if after := n.pinned(); !slices.Equal(before, after) {
		t.Errorf("pinned %v, before %v", after, before)
	}
	again, _, err := n.start(build(t, "1", nil))
	if err != nil || !again.Programs.Adopted {
		t.Errorf("the version of before: %+v, %v", again, err)
	}
}

// TestRollBack goes back to the generation of before.
func TestRollBack(t *testing.T) {
	n := newNode(t)
	first, _, err := n.start(build(t, "1", nil))
	if err != nil {
		t.Fatal(err)
	}
	n.serve(first)
	second, _, err := n.start(build(t, "2", nil))
	if err != nil {
		t.Fatal(err)
	}
	a := n.serve(second)
	expire, err := second.Programs.Get("ct_expire")
	if err != nil {
		t.Fatal(err)
	}
	second.RollBack(errors.New("hooks refuse"))
	if second.Programs.Hash != first.Programs.Hash || second.Previous != nil || second.Problem == nil || len(second.Known()) != 2 {
		t.Errorf("after going back: %+v", second)
	}
	a.Use(second.Programs)
	if err := a.Hooks().Set(context.Background(), n.hook, a.Of("pod_from")); err != nil {
		t.Fatal(err)
	}
	got, err := a.Hooks().Load(context.Background())
	if err != nil || got[n.hook].Generation != first.Programs.Hash {
		t.Errorf("hooks %v, %v", got, err)
	}
	if err := second.Retire(); err != nil {
		t.Fatal(err)
	}
	if p := n.pinned(); !slices.Contains(p, "gen/"+first.Programs.Hash) {
		t.Errorf("pinned: %v", p)
	}
	// Who has taken a program of the generation that was given up can go on with it.
	if _, err := expire.Info(); err != nil {
		t.Error(err)
	}
	third, _, err := n.start(build(t, "2", nil))
	if err != nil || third.Programs.Adopted || third.Previous == nil {
		t.Errorf("another attempt: %+v, %v", third, err)
	}
}
