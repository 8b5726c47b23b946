// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// daemonGroup is the leaf of a node's group in the unified hierarchy that holds the node's own
// daemons. Pods live beside it, so that the node's group itself never holds a process, which
// the unified hierarchy demands of a group that hands controllers to its children.
const daemonGroup = "system"

// cgroups is where the machine's control group hierarchies are mounted.
type cgroups struct {
	v1      []string // mount points of the v1 hierarchies, empty on a machine without them
	unified string   // mount point of the unified hierarchy
}

// findCgroups reads the mount table in mountinfo format (proc(5)).
func findCgroups(mountinfo string) (cgroups, error) {
	var c cgroups
	sc := bufio.NewScanner(strings.NewReader(mountinfo))
	for sc.Scan() {
		head, tail, ok := strings.Cut(sc.Text(), " - ")
		fields, kind := strings.Fields(head), strings.Fields(tail)
		if !ok || len(fields) < 5 || len(kind) == 0 {
			continue
		}
		root, point := fields[3], fields[4]
		switch {
		case root != "/" || !strings.HasPrefix(point, "/sys/fs/cgroup"):
		case kind[0] == "cgroup":
			c.v1 = append(c.v1, point)
		case kind[0] == "cgroup2":
			c.unified = point
		}
	}
	if err := sc.Err(); err != nil {
		return c, fmt.Errorf("mount table: %w", err)
	}
	if c.unified == "" {
		return c, errors.New("no unified control group hierarchy (cgroup2) is mounted below /sys/fs/cgroup")
	}
	slices.Sort(c.v1)
	c.v1 = slices.Compact(c.v1)
	return c, nil
}

func machineCgroups() (cgroups, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return cgroups{}, fmt.Errorf("mount table: %w", err)
	}
	return findCgroups(string(table))
}

// create makes the group in every hierarchy. It changes nothing outside the new group.
func (c cgroups) create(group string) error {
	for _, hierarchy := range c.v1 {
		dir := filepath.Join(hierarchy, group)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("control group: %w", err)
		}
		// A new cpuset is empty and takes no process until it has processors and memory.
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(hierarchy, name))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, name), value, 0o644)
			}
			if err != nil {
				return fmt.Errorf("control group: %w", err)
			}
		}
	}
	if err := os.MkdirAll(filepath.Join(c.unified, group, daemonGroup), 0o755); err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	return c.delegate(filepath.Join(c.unified, group))
}

// delegate hands all controllers that the group has to its children. In a hybrid setup the
// unified hierarchy has none, and this does nothing.
func (c cgroups) delegate(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	for _, controller := range strings.Fields(string(have)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644); err != nil {
			return fmt.Errorf("control group: controller %s: %w", controller, err)
		}
	}
	return nil
}

// joinThread moves the calling thread into the group of every v1 hierarchy; what it starts is
// born there. The unified hierarchy is joined at clone time instead, see daemonDir.
func (c cgroups) joinThread(group string) error {
	tid := []byte(strconv.Itoa(unix.Gettid()))
	for _, hierarchy := range c.v1 {
		if err := os.WriteFile(filepath.Join(hierarchy, group, "tasks"), tid, 0o644); err != nil {
			return fmt.Errorf("control group: %w", err)
		}
	}
	return nil
}

// daemonDir is the folder of the unified hierarchy where the node's daemons start.
func (c cgroups) daemonDir(group string) string {
	return filepath.Join(c.unified, group, daemonGroup)
}

// kill ends every process of the group and of its children, and waits until they are gone.
func (c cgroups) kill(group string, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		left := 0
		for _, hierarchy := range append([]string{c.unified}, c.v1...) {
			n, err := killTree(filepath.Join(hierarchy, group))
			if err != nil {
				return err
			}
			left += n
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("control group %s: %d processes do not end", group, left)
		}
		if err := c.waitChange(group, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// waitChange blocks until the population of the group changes, at most for d.
func (c cgroups) waitChange(group string, d time.Duration) error {
	f, err := os.Open(filepath.Join(c.unified, group, "cgroup.events"))
	if err != nil {
		time.Sleep(d) // no such group: only a v1 hierarchy, which has nothing to wait on, holds processes
		return nil
	}
	defer f.Close()
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
	if _, err := unix.Poll(fds, int(d.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("control group events: %w", err)
	}
	return nil
}

// killTree sends SIGKILL to all processes below dir and returns how many there were.
func killTree(dir string) (int, error) {
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() || d.Name() != "cgroup.procs" {
			return err
		}
		procs, err := os.ReadFile(path)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil
			}
			return err
		}
		for _, field := range strings.Fields(string(procs)) {
			pid, err := strconv.Atoi(field)
			if err != nil || pid <= 1 || pid == os.Getpid() {
				continue
			}
			n++
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return n, fmt.Errorf("control group: %w", err)
	}
	return n, nil
}

// remove deletes the group and its children from every hierarchy. The group must be empty.
func (c cgroups) remove(group string) error {
	var errs []error
	for _, hierarchy := range append([]string{c.unified}, c.v1...) {
		errs = append(errs, removeTree(filepath.Join(hierarchy, group)))
	}
	return errors.Join(errs...)
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	// The kernel takes a moment to let go of processes that have just ended.
	for try := 0; ; try++ {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || try >= 100 {
			return fmt.Errorf("control group %s: %w", dir, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
