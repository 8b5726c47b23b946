// SPDX-License-Identifier: Apache-2.0

// Package feature finds out what the running kernel can do by trying it. Kernel versions are never
// compared.
package feature

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// MissingError says that the kernel lacks something that the datapath cannot do without.
type MissingError struct {
	Feature string
	// Since is the kernel that brought it.
	Since string
	Err   error
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("the kernel lacks %s (Linux %s and newer have it): %v", e.Feature, e.Since, e.Err)
}

// Unwrap returns the error of the probe.
func (e *MissingError) Unwrap() error { return e.Err }

// Set is what the kernel can do beyond the minimum.
type Set struct {
	// TCX: attach to devices with links, else with cls_bpf filters.
	TCX bool
}

// String is the stable text form.
func (s Set) String() string {
	var out []string
	if s.TCX {
		out = append(out, "tcx")
	}
	return strings.Join(out, ",")
}

// AttachMode is the name that status output uses.
func (s Set) AttachMode() string {
	if s.TCX {
		return "TCX"
	}
	return "Legacy TC"
}

// requirement is something that the datapath cannot do without.
type requirement struct {
	what, since string
	probe       func() error
}

// requirements are asked for in this order.
var requirements = []requirement{
	{"BPF ring buffers", "5.8", func() error { return features.HaveMapType(ebpf.RingBuf) }},
	{"BPF prefix tries", "4.11", func() error { return features.HaveMapType(ebpf.LPMTrie) }},
	{"classifier programs", "4.1", func() error { return features.HaveProgramType(ebpf.SchedCLS) }},
	{"programs at socket addresses", "4.17", func() error { return features.HaveProgramType(ebpf.CGroupSockAddr) }},
	{"programs run by system calls", "5.14", func() error { return features.HaveProgramType(ebpf.Syscall) }},
	{"bpf_redirect_peer", "5.10", helper(ebpf.SchedCLS, asm.FnRedirectPeer)},
	{"bpf_redirect_neigh", "5.10", helper(ebpf.SchedCLS, asm.FnRedirectNeigh)},
	{"bpf_ktime_get_coarse_ns", "5.11", helper(ebpf.SchedCLS, asm.FnKtimeGetCoarseNs)},
	{"bpf_loop", "5.17", helper(ebpf.SchedCLS, asm.FnLoop)},
	{"bpf_set_retval", "5.18", helper(ebpf.CGroupSockAddr, asm.FnSetRetval)},
}

func helper(t ebpf.ProgramType, f asm.BuiltinFunc) func() error {
	return func() error { return features.HaveProgramHelper(t, f) }
}

// check asks for each requirement and joins what is wrong.
func check(list []requirement) error {
	var errs []error
	for _, r := range list {
		if err := r.probe(); errors.Is(err, ebpf.ErrNotSupported) {
			errs = append(errs, &MissingError{r.what, r.since, err})
		} else if err != nil {
			errs = append(errs, fmt.Errorf("probe %s: %w", r.what, err))
		}
	}
	return errors.Join(errs...)
}

// Probe asks the kernel. The error joins a MissingError for each thing that is required and not
// there.
func Probe() (Set, error) {
	if err := check(requirements); err != nil {
		return Set{}, err
	}
	// Interface 1 is the loopback device of every network namespace. A kernel without tcx does not
	// know the place.
	_, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress})
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return Set{}, fmt.Errorf("probe tcx: %w", err)
	}
	return Set{TCX: err == nil}, nil
}
