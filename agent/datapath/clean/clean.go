// SPDX-License-Identifier: Apache-2.0

// Package clean takes out of a node's kernel whatever Lash has put into it: attachments first, so
// that no packet meets half a datapath, then devices, then programs and maps, then sysctls.
package clean

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"lash.internal/lash/agent/datapath/attach"
	"lash.internal/lash/agent/datapath/netlink"
	"lash.internal/lash/agent/datapath/pinroot"
)

// stateDir is where the agent keeps what the sysctls were before.
const stateDir = "/run/lash"

// Kernel removes all of it, unless an agent runs on the node. It goes on after an error and returns
// all of them.
func Kernel(_ context.Context, bpfRoot string) error {
	root, err := pinroot.Lock(bpfRoot)
	switch {
	case errors.Is(err, pinroot.ErrNoBPFFS): // then nothing is pinned
	case err != nil:
		return err
	default:
		defer root.Close()
	}
	errs := []error{attach.Clean(bpfRoot), netlink.Clean()}
	s, err := netlink.NewSysctls(filepath.Join(stateDir, "sysctl.json"), "/host/proc/sys/net", "/proc/sys/net")
	if err == nil {
		err = s.Restore()
		if s.Broken != "" {
			err = errors.Join(err, fmt.Errorf("the sysctls that Lash has changed stay changed: the file of what they were before, %s, cannot be read", s.Broken))
		}
	}
	return errors.Join(append(errs, err)...)
}
