// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ErrNoInotify says that the machine allows too few inotify instances for one more cluster. Without
// them kubelets and proxies wait for ever.
var ErrNoInotify = errors.New("too few inotify instances")

// inotifyPerNode is what the programs of a node take, with room for a few pods.
const inotifyPerNode = 16

// checkInotify wants enough inotify instances for a number of nodes. proc is where procfs is.
func checkInotify(proc string, nodes int) error {
	const limitFile = "sys/fs/inotify/max_user_instances"
	text, err := os.ReadFile(filepath.Join(proc, limitFile))
	if err != nil {
		return nil // a kernel without such a limit
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("read %s: %w", limitFile, err)
	}
	used := 0
	fds, err := filepath.Glob(filepath.Join(proc, "[0-9]*/fd/*"))
	if err != nil {
		return err
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == "anon_inode:inotify" {
			used++
		}
	}
	if need := used + nodes*inotifyPerNode; need > limit {
		return fmt.Errorf("%w: %d of %d are in use and %d nodes take up to %d: run \"sysctl -w fs.inotify.max_user_instances=%d\"",
			ErrNoInotify, used, limit, nodes, nodes*inotifyPerNode, max(1024, 2*need))
	}
	return nil
}
