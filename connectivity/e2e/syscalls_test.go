// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// Commands of bpf(2) that change what others use (linux/bpf.h).
var bpfWrites = map[uint32]string{
	2: "MAP_UPDATE_ELEM", 3: "MAP_DELETE_ELEM", 8: "PROG_ATTACH", 9: "PROG_DETACH",
	26: "MAP_UPDATE_BATCH", 27: "MAP_DELETE_BATCH", 28: "LINK_CREATE", 29: "LINK_UPDATE", 34: "LINK_DETACH",
}

// bpfCalls counts the bpf system calls of every process, by process and command, until the test ends.
func bpfCalls(t *testing.T) *ebpf.Map {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("knows where amd64 keeps the arguments of a system call")
	}
	const (
		nrBPF = 321
		rdi   = 112 // of struct pt_regs
	)
	calls, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: 65536})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { calls.Close() })
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.RawTracepoint, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R1, asm.R6, 8, asm.DWord),
		asm.JNE.Imm(asm.R1, nrBPF, "out"),
		asm.LoadMem(asm.R3, asm.R6, 0, asm.DWord),
		asm.Add.Imm(asm.R3, rdi),
		asm.Mov.Reg(asm.R1, asm.R10),
		asm.Add.Imm(asm.R1, -8),
		asm.Mov.Imm(asm.R2, 8),
		asm.FnProbeReadKernel.Call(),
		asm.FnGetCurrentPidTgid.Call(),
		asm.RSh.Imm(asm.R0, 32),
		asm.LoadMem(asm.R1, asm.R10, -8, asm.DWord),
		asm.StoreMem(asm.R10, -16, asm.R0, asm.Word), // process
		asm.StoreMem(asm.R10, -12, asm.R1, asm.Word), // command
		asm.LoadMapPtr(asm.R1, calls.FD()),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, -16),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "first"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Ja.Label("out"),
		asm.Mov.Imm(asm.R1, 1).WithSymbol("first"),
		asm.StoreMem(asm.R10, -8, asm.R1, asm.DWord),
		asm.LoadMapPtr(asm.R1, calls.FD()),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, -16),
		asm.Mov.Reg(asm.R3, asm.R10),
		asm.Add.Imm(asm.R3, -8),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnMapUpdateElem.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return(),
	}})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { prog.Close() })
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sys_enter", Program: prog})
	if err != nil {
		t.Skipf("no tracepoint of system calls: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	return calls
}

// nothingChanged replaces an agent and looks at what its successor writes: nothing. Programs and links
// stay the very same, and the arrays of Services byte for byte.
func (c *cluster) nothingChanged(t *testing.T) {
	// Nothing else may change meanwhile: no pod comes or goes.
	c.kubectl("-n", "kube-system", "wait", "--for=condition=Available", "deploy/coredns", "--timeout=90s")
	look := func() string {
		return c.node("worker", "sh", "-ec", `for l in $(find /sys/fs/bpf/lash/link -type f | sort); do bpftool -j link show pinned $l | jq -c '[.id,.prog_id]'; done
for m in svc slot backend front addr ep cidr vtep dev ct4 ct6; do
bpftool map show pinned /sys/fs/bpf/lash/maps/${m}_v1 | head -1
case $m in ct4|ct6) ;; *) bpftool map dump pinned /sys/fs/bpf/lash/maps/${m}_v1 | sort | sha256sum;; esac; done`)
	}
	before := look()
	calls := bpfCalls(t)
	out := c.processes("worker", "^cilium-agent ", "kill -9 $p && echo killed $p")
	if strings.Count(out, "killed") != 1 {
		t.Fatalf("agent of worker: %q", out)
	}
	c.ready(t)
	pid, err := strconv.ParseUint(strings.TrimSpace(c.processes("worker", "^cilium-agent ", "echo $p")), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	if after := look(); after != before {
		t.Errorf("changed:\n%s\n---\n%s", before, after)
	}
	var writes []string
	total := uint64(0)
	var key [8]byte
	var n uint64
	for it := calls.Iterate(); it.Next(&key, &n); {
		if uint64(binary.NativeEndian.Uint32(key[:])) != pid {
			continue
		}
		total += n
		if name := bpfWrites[binary.NativeEndian.Uint32(key[4:])]; name != "" {
			writes = append(writes, fmt.Sprintf("%s %d", name, n))
		}
	}
	slices.Sort(writes)
	if total == 0 {
		t.Errorf("no bpf call of process %d was seen", pid)
	}
	if len(writes) > 0 {
		t.Errorf("the agent that starts over an unchanged node writes: %v", writes)
	}
}
