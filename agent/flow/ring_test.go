// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/bpf"
)

// kernelMap creates a map, or skips the test where that is not allowed.
func kernelMap(t *testing.T, spec *ebpf.MapSpec) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(spec)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, ebpf.ErrNotSupported) {
		t.Skipf("cannot create maps: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// writer is a program that puts one record into the ring.
func writer(t *testing.T, ring *ebpf.Map, record []byte) *ebpf.Program {
	t.Helper()
	n := len(record)
	var ins asm.Instructions
	for i := 0; i < n; i += 8 {
		ins = append(ins,
			asm.LoadImm(asm.R0, int64(binary.NativeEndian.Uint64(record[i:])), asm.DWord),
			asm.StoreMem(asm.R10, int16(i-n), asm.R0, asm.DWord))
	}
	ins = append(ins,
		asm.LoadMapPtr(asm.R1, ring.FD()), asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, int32(-n)),
		asm.Mov.Imm(asm.R3, int32(n)), asm.Mov.Imm(asm.R4, 1), // 1: do not wake the reader
		asm.FnRingbufOutput.Call(), asm.Mov.Imm(asm.R0, 0), asm.Return())
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: ins, License: "GPL"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestEventsComeThroughTheRing(t *testing.T) {
	ring := kernelMap(t, &ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: 4096})
	budget := kernelMap(t, &ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: uint32(binary.Size(bpf.EvtBudget{})), MaxEntries: 1})
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	losses := make([]bpf.EvtBudget, cpus)
	losses[0].LostRing = 4
	if err := budget.Put(uint32(0), losses); err != nil {
		t.Fatal(err)
	}
	prog := writer(t, ring, raw(bpf.Event{Type: 1, Subtype: 133, EpId: 7, File: 1, Line: 12}, nil))

	m := New(ring, budget, nil, nil, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	ch := m.Subscribe(ctx)
	go func() { done <- m.Run(ctx) }()
	if _, err := prog.Run(&ebpf.RunOptions{Data: make([]byte, 64)}); err != nil {
		t.Fatal(err)
	}
	var drop, lost bool
	for ev := range ch {
		drop = drop || (ev.Type == api.MonitorDrop && ev.Reason == "Policy denied" && ev.Source == 7 && ev.Line == 12)
		lost = lost || (ev.Type == api.MonitorLost && ev.Lost == 4)
		if drop && lost {
			break
		}
	}
	if st := m.Ring(); st.Lost != 4 || st.CPUs != int64(cpus) {
		t.Errorf("ring: %+v", st)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("monitor: %v", err)
	}
	if _, open := <-m.Subscribe(context.Background()); open {
		t.Error("a stopped monitor takes listeners")
	}
}
