// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// counted are the controllers whose groups a wake-up or a packet pays for, the more the deeper the
// group is.
var counted = []string{"cpu", "cpuacct", "cpuset", "memory"}

// GroupsOf are the control groups, as folders, in which another process is scheduled and accounted as
// the given one is, so that a bare path can be compared with that of a pod. In a hybrid set-up, where
// the unified hierarchy has no controllers, its group is left out: there it only carries programs that
// look at sockets, which a bare path must not have.
func GroupsOf(pid int) ([]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mount table: %w", err)
	}
	member, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, fmt.Errorf("control groups of process %d: %w", pid, err)
	}
	return groupsOf(string(table), string(member))
}

// Hierarchy is where the control groups of a controller are mounted, or those of the unified hierarchy
// for "unified"; empty when they are nowhere.
func Hierarchy(controller string) (string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("mount table: %w", err)
	}
	mounts, err := hierarchies(string(table))
	return mounts[controller], err
}

// hierarchies reads the mount table in mountinfo format (proc(5)): where each controller is, and
// "unified".
func hierarchies(mountinfo string) (map[string]string, error) {
	mounts := map[string]string{}
	sc := bufio.NewScanner(strings.NewReader(mountinfo))
	for sc.Scan() {
		head, rest, ok := strings.Cut(sc.Text(), " - ")
		fields, kind := strings.Fields(head), strings.Fields(rest)
		if !ok || len(fields) < 5 || len(kind) < 3 || fields[3] != "/" {
			continue
		}
		switch kind[0] {
		case "cgroup2":
			mounts["unified"] = fields[4]
		case "cgroup":
			for _, option := range strings.Split(kind[2], ",") {
				mounts[option] = fields[4]
			}
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("mount table: %w", err)
	}
	return mounts, nil
}

// groupsOf reads the mount table in mountinfo format (proc(5)) and the lines of /proc/PID/cgroup
// (cgroups(7)).
func groupsOf(mountinfo, member string) ([]string, error) {
	mounts, err := hierarchies(mountinfo)
	if err != nil {
		return nil, err
	}
	var v1, v2 []string
	for _, line := range strings.Split(strings.TrimSpace(member), "\n") {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 {
			return nil, fmt.Errorf("control group %q: want NUMBER:CONTROLLERS:PATH", line)
		}
		controllers, path := parts[1], parts[2]
		if controllers == "" {
			if at, ok := mounts["unified"]; ok {
				v2 = append(v2, filepath.Join(at, path))
			}
			continue
		}
		for _, c := range strings.Split(controllers, ",") {
			dir := filepath.Join(mounts[c], path)
			if slices.Contains(counted, c) && mounts[c] != "" && !slices.Contains(v1, dir) {
				v1 = append(v1, dir)
			}
		}
	}
	if len(v1) > 0 {
		return v1, nil
	}
	return v2, nil
}
