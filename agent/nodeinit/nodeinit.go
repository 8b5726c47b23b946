// SPDX-License-Identifier: Apache-2.0

// Package nodeinit holds the steps that run once on a node, in short init containers with more
// rights than the agent: mount the BPF and the cgroup2 file system where they are missing, put the
// CNI plugin into place, and, when Lash is uninstalled, take everything away again. Every step may
// run any number of times.
package nodeinit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// MountBPF mounts bpffs at path unless one is there, and remembers it in the state folder.
func MountBPF(path, stateDir string) (done bool, err error) {
	ok, err := isFS(path, unix.BPF_FS_MAGIC)
	if err != nil || ok {
		return false, err
	}
	if err := remember(stateDir, path); err != nil {
		return false, err
	}
	if err := unix.Mount("bpffs", path, "bpf", 0, ""); err != nil {
		return false, fmt.Errorf("mount bpffs at %s: %w", path, err)
	}
	return true, nil
}

// MountCgroup makes the node's cgroup2 hierarchy visible at path unless it is. It binds the
// hierarchy that the node itself has mounted below hostCgroup (the node's /sys/fs/cgroup): a new
// mount from within a container would show that container's own part of the hierarchy only. The
// mount is remembered in the state folder.
func MountCgroup(path, hostCgroup, stateDir string) (done bool, err error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return false, fmt.Errorf("folder for cgroup2: %w", err)
	}
	ok, err := isFS(path, unix.CGROUP2_SUPER_MAGIC)
	if err != nil || ok {
		return false, err
	}
	for _, from := range []string{hostCgroup, filepath.Join(hostCgroup, "unified")} {
		ok, err := isFS(from, unix.CGROUP2_SUPER_MAGIC)
		if errors.Is(err, fs.ErrNotExist) || (err == nil && !ok) {
			continue
		}
		if err != nil {
			return false, err
		}
		if err := remember(stateDir, path); err != nil {
			return false, err
		}
		if err := unix.Mount(from, path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return false, fmt.Errorf("bind %s at %s: %w", from, path, err)
		}
		return true, nil
	}
	return false, fmt.Errorf("no cgroup2 hierarchy at %s nor at %s/unified: the node has to mount one, "+
		"socket-level load balancing needs it", hostCgroup, hostCgroup)
}

func isFS(path string, magic int64) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return st.Type == magic, nil
}

// InstallCNI copies the CNI plugin from to to, by a temporary file beside it and a rename, so that
// a runtime never executes half a file. A copy that is the same already is left alone.
func InstallCNI(from, to string) (done bool, err error) {
	want, err := os.ReadFile(from)
	if err != nil {
		return false, fmt.Errorf("CNI plugin in the image: %w", err)
	}
	if have, err := os.ReadFile(to); err == nil && bytes.Equal(have, want) {
		return false, os.Chmod(to, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return false, fmt.Errorf("folder for the CNI plugin: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(to), "."+filepath.Base(to)+"-*")
	if err != nil {
		return false, fmt.Errorf("CNI plugin: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = io.Copy(tmp, bytes.NewReader(want))
	if err == nil {
		err = tmp.Chmod(0o755)
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), to)
	}
	if err != nil {
		return false, fmt.Errorf("write CNI plugin %s: %w", to, err)
	}
	return true, nil
}

// Network is the name of our network in the CNI configuration.
const Network = "cilium"

// Traces are the files that Lash leaves on a node, apart from what is in the kernel.
type Traces struct {
	CNIConf   string // the network configuration, removed first so that no new pod uses it
	CNIPlugin string
	// Results is the folder in which the runtime remembers what the plugin has answered; those of
	// our network are of no use without the plugin, and nobody would ever remove them.
	Results string
	Folders []string // state and run-time folders; their contents go, a mount point stays
}

// Clean takes Lash off the node: first the CNI configuration, then what is in the kernel by
// cleanKernel, then the other files. It goes on after an error and returns all of them.
func Clean(ctx context.Context, t Traces, cleanKernel func(context.Context) error) error {
	var errs []error
	for _, f := range []string{t.CNIConf, t.CNIPlugin} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, cleanKernel(ctx))
	if results, err := filepath.Glob(filepath.Join(t.Results, Network+"-*")); err == nil && t.Results != "" {
		for _, f := range results {
			if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	for _, dir := range t.Folders {
		errs = append(errs, emptyDir(dir))
	}
	return errors.Join(errs...)
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var own unix.Stat_t
	if err := unix.Stat(dir, &own); err != nil {
		return &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	var errs []error
	for _, e := range entries {
		if e.Name() == ledger {
			continue // what is mounted is still mounted
		}
		path := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil && st.Dev != own.Dev {
			continue // another file system is mounted here, such as the node's cgroup2 hierarchy
		}
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}
