// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"

	"lash.internal/lash/bpf"
)

// maxVerified is the budget of instructions that the verifier may visit in one program.
const maxVerified = 20000

// TestBudget loads every program, with what may make it larger, and holds it to the budget.
func TestBudget(t *testing.T) {
	for name, change := range map[string]func(*bpf.Config){
		"default":           func(*bpf.Config) {},
		"native":            func(c *bpf.Config) { c.Tunnel = false },
		"beside kube-proxy": func(c *bpf.Config) { c.KubeProxyReplacement = false },
		"hybrid and maglev": func(c *bpf.Config) { c.LBMode, c.MaglevSize = bpf.LBHybrid, 16381 },
		"flows move":        func(c *bpf.Config) { c.FlowsMove = true },
	} {
		t.Run(name, func(t *testing.T) {
			conf := bpf.DefaultConfig()
			change(&conf)
			for object, load := range map[string]func() (*ebpf.CollectionSpec, error){
				"tc": bpf.LoadTc, "sock": bpf.LoadSock, "gc": bpf.LoadGc,
			} {
				budget(t, object, load, conf)
			}
		})
	}
}

func budget(t *testing.T, object string, load func() (*ebpf.CollectionSpec, error), conf bpf.Config) {
	t.Helper()
	spec, err := load()
	if err != nil {
		t.Fatal(err)
	}
	shrink(spec)
	if err := conf.Apply(spec); err != nil {
		t.Fatal(err)
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
	})
	if err != nil {
		if ve, ok := errors.AsType[*ebpf.VerifierError](err); ok {
			t.Fatalf("%s: %+v", object, ve)
		}
		t.Fatalf("%s: %v", object, err)
	}
	defer coll.Close()
	for n, p := range coll.Programs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		verified, _ := info.VerifiedInstructions()
		xl, _ := info.TranslatedSize()
		jit, _ := info.JitedSize()
		t.Logf("%s: verified %d, xlated %d insns, jited %d bytes", n, verified, xl/8, jit)
		if verified > maxVerified {
			t.Errorf("%s: verifier visits %d instructions, budget is %d", n, verified, maxVerified)
		}
	}
}

// shrink makes maps small, so that tests do not take the memory of a node.
func shrink(spec *ebpf.CollectionSpec) {
	for _, m := range spec.Maps {
		if m.MaxEntries > 4096 && m.Type != ebpf.RingBuf && m.Type != ebpf.Array {
			m.MaxEntries = 4096
		}
	}
}
