// SPDX-License-Identifier: Apache-2.0

// Package rootfs finds paths of a node's file system where a process sees it below a folder of its
// own: symbolic links lead to where they lead on the node.
package rootfs

import (
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Path is the path, for this process, of what the node calls path and what is seen below root. A
// last element that is a symbolic link is followed, too. The error is fs.ErrNotExist where there is
// nothing.
func Path(root, path string) (string, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(fd)
	at, err := unix.Openat2(fd, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return "", &fs.PathError{Op: "open in " + root, Path: path, Err: err}
	}
	defer unix.Close(at)
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", at))
	if err != nil {
		return "", fmt.Errorf("path of %s in %s: %w", path, root, err)
	}
	return real, nil
}
