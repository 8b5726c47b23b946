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

// Probe asks the kernel. The error joins a MissingError for each thing that is required and not
// there.
func Probe() (Set, error) {
	var errs []error
	need := func(what, since string, err error) {
		if errors.Is(err, ebpf.ErrNotSupported) {
			errs = append(errs, &MissingError{what, since, err})
		} else if err != nil {
			errs = append(errs, fmt.Errorf("probe %s: %w", what, err))
		}
	}
	need("BPF ring buffers", "5.8", features.HaveMapType(ebpf.RingBuf))
	need("BPF prefix tries", "4.11", features.HaveMapType(ebpf.LPMTrie))
	need("classifier programs", "4.1", features.HaveProgramType(ebpf.SchedCLS))
	need("programs at socket addresses", "4.17", features.HaveProgramType(ebpf.CGroupSockAddr))
	need("programs run by system calls", "5.14", features.HaveProgramType(ebpf.Syscall))
	need("bpf_redirect_peer", "5.10", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRedirectPeer))
	need("bpf_redirect_neigh", "5.10", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRedirectNeigh))
	need("bpf_ktime_get_coarse_ns", "5.11", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnKtimeGetCoarseNs))
	need("bpf_loop", "5.17", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnLoop))
	need("bpf_set_retval", "5.18", features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnSetRetval))
	if err := errors.Join(errs...); err != nil {
		return Set{}, err
	}
	// Interface 1 is the loopback device of every network namespace.
	_, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress})
	return Set{TCX: err == nil}, nil
}
