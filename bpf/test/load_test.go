// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"

	"lash.internal/lash/bpf"
)

// maxVerified is the budget of instructions that the verifier may visit in one program.
const maxVerified = 15000

// TestBudget loads every program and holds it to the budget.
func TestBudget(t *testing.T) {
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){
		"tc": bpf.LoadTc, "sock": bpf.LoadSock, "gc": bpf.LoadGc,
	} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		shrink(spec)
		if err := bpf.DefaultConfig().Apply(spec); err != nil {
			t.Fatal(err)
		}
		for _, p := range spec.Programs {
			_ = p
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
			Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
		})
		if err != nil {
			var ve *ebpf.VerifierError
			if errors.As(err, &ve) {
				t.Fatalf("%s: %+v", name, ve)
			}
			t.Fatalf("%s: %v", name, err)
		}
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
		coll.Close()
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
