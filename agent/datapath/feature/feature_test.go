// SPDX-License-Identifier: Apache-2.0

package feature

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/cilium/ebpf"
)

// TestMissingFeaturesAreAllNamed: what the agent ends with on a kernel that lacks something, and
// what `lash status` then shows as its last words.
func TestMissingFeaturesAreAllNamed(t *testing.T) {
	yes := func() error { return nil }
	no := func() error { return fmt.Errorf("loop: %w", ebpf.ErrNotSupported) }
	err := check([]requirement{
		{"BPF ring buffers", "5.8", yes},
		{"bpf_loop", "5.17", no},
		{"bpf_set_retval", "5.18", no},
		{"classifier programs", "4.1", func() error { return fs.ErrPermission }},
	})
	want := "the kernel lacks bpf_loop (Linux 5.17 and newer have it): loop: not supported\n" +
		"the kernel lacks bpf_set_retval (Linux 5.18 and newer have it): loop: not supported\n" +
		"probe classifier programs: permission denied"
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	var missing *MissingError
	if !errors.As(err, &missing) || missing.Feature != "bpf_loop" || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("kinds of %v", err)
	}
	if err := check(nil); err != nil {
		t.Errorf("nothing required: %v", err)
	}
}

// TestThisKernel has what is required wherever the tests run, or says what it lacks.
func TestThisKernel(t *testing.T) {
	set, err := Probe()
	if errors.Is(err, fs.ErrPermission) {
		t.Skipf("not allowed to ask the kernel: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if mode := set.AttachMode(); (mode == "TCX") != set.TCX {
		t.Errorf("%+v is called %s", set, mode)
	}
}
