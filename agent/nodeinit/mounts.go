// SPDX-License-Identifier: Apache-2.0

package nodeinit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/file"
	"lash.internal/lash/agent/rootfs"
)

// ledger is the file in the state folder that lists the mount points that Lash has mounted on. The
// state folder and the mounts both go with a restart of the node.
const ledger = "mounts.json"

// Mounted lists the mount points that Lash has mounted on.
func Mounted(stateDir string) ([]string, error) {
	var out []string
	err := file.ReadJSON(filepath.Join(stateDir, ledger), &out)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list of mounts: %w", err)
	}
	return out, nil
}

// remember adds a mount point to the ledger. It comes before the mount: a mount that is not in the
// ledger would stay for ever.
func remember(stateDir, path string) error {
	all, err := Mounted(stateDir)
	if err != nil {
		return err
	}
	path = filepath.Clean(path)
	if slices.Contains(all, path) {
		return nil
	}
	b, err := json.Marshal(append(all, path))
	if err != nil {
		return fmt.Errorf("list of mounts: %w", err)
	}
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return fmt.Errorf("list of mounts: %w", err)
	}
	if err := file.Write(filepath.Join(stateDir, ledger), b, 0o600); err != nil {
		return fmt.Errorf("list of mounts: %w", err)
	}
	return nil
}

// kinds of file systems that Lash mounts.
var mountKinds = []int64{unix.BPF_FS_MAGIC, unix.CGROUP2_SUPER_MAGIC}

// used says whether somebody has pins in a BPF file system. The kernel itself puts two files there.
func used(bpffs string) bool {
	entries, err := os.ReadDir(bpffs)
	return err == nil && slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() != "maps.debug" && e.Name() != "progs.debug" })
}

// Leave is the last step of a removal: it unmounts what Lash has mounted and removes the folders
// that are empty then. Paths are the node's, seen below root, where unmounting has to reach the
// node. A BPF file system in which others have pins stays; kept says so.
func Leave(root, stateDir string, folders []string) (kept []string, err error) {
	points, err := Mounted(filepath.Join(root, stateDir))
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range points {
		at := filepath.Join(root, p)
		var st unix.Statfs_t
		if unix.Statfs(at, &st) != nil || !slices.Contains(mountKinds, st.Type) {
			continue // not mounted any more
		}
		if st.Type == unix.BPF_FS_MAGIC && used(at) {
			kept = append(kept, p)
			continue
		}
		if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
			continue
		}
		folders = append(folders, p)
	}
	if len(errs) > 0 {
		return kept, errors.Join(errs...)
	}
	if err := os.Remove(filepath.Join(root, stateDir, ledger)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return kept, fmt.Errorf("list of mounts: %w", err)
	}
	// A folder that holds something, or on which others have mounted, stays. Twice, since one may be
	// in another by way of a link.
	folders = append(folders, stateDir)
	slices.Sort(folders)
	for range 2 {
		for _, dir := range slices.Backward(folders) {
			if at, err := rootfs.Path(root, dir); err == nil {
				_ = unix.Rmdir(at)
			}
		}
	}
	return kept, nil
}
