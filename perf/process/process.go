// SPDX-License-Identifier: Apache-2.0

// Package process says what a process holds and uses of its machine, out of proc(5).
package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ticksPerSecond is USER_HZ, in which proc(5) gives times; it is 100 on every architecture that Go has.
const ticksPerSecond = 100

// Time is the processor time that a process has used (proc(5), fields 14 and 15 of stat).
func Time(pid int) (time.Duration, error) {
	f, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	return ticks(f[11]) + ticks(f[12]), nil
}

// TimeWithChildren is Time and what those of its children used that have ended (fields 16 and 17).
func TimeWithChildren(pid int) (time.Duration, error) {
	f, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	return ticks(f[11]) + ticks(f[12]) + ticks(f[13]) + ticks(f[14]), nil
}

func ticks(n uint64) time.Duration { return time.Duration(n) * time.Second / ticksPerSecond }

// statFields are the fields of /proc/PID/stat from the state (field 3) on, as far as they are numbers.
func statFields(pid int) ([]uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	_, rest, ok := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return nil, fmt.Errorf("process %d: /proc/%d/stat has another form", pid, pid)
	}
	out := make([]uint64, len(fields))
	for i, f := range fields {
		out[i], _ = strconv.ParseUint(f, 10, 64) // some fields are letters or negative; nobody asks for them
	}
	return out, nil
}

// StatusField is a size in bytes out of /proc/PID/status.
func StatusField(text, name string) (float64, error) {
	for line := range strings.SplitSeq(text, "\n") {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", name, err)
			}
			return kb * 1024, nil
		}
	}
	return 0, fmt.Errorf("/proc/PID/status has no %s", name)
}

// MappedMaps is how much of a process's resident memory are BPF maps (smaps in proc(5)).
func MappedMaps(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	var sum float64
	inMap := false
	for line := range strings.SplitSeq(string(text), "\n") {
		switch name, _, _ := strings.Cut(line, " "); {
		case name != "" && !strings.HasSuffix(name, ":"):
			inMap = strings.Contains(line, "bpf-map")
		case inMap && name == "Rss:":
			kb, err := StatusField(line, "Rss")
			if err != nil {
				return 0, err
			}
			sum += kb
		}
	}
	return sum, nil
}

// Maps sums up the BPF maps that a process has open, each once, as the kernel counts them.
func Maps(pid int) (bytes float64, number int, err error) {
	dir := fmt.Sprintf("/proc/%d/fdinfo", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("maps of process %d: %w", pid, err)
	}
	seen := map[string]bool{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		info := map[string]string{}
		for line := range strings.SplitSeq(string(text), "\n") {
			if name, value, ok := strings.Cut(line, ":"); ok {
				info[name] = strings.TrimSpace(value)
			}
		}
		id := info["map_id"]
		if id == "" || seen[id] {
			continue
		}
		seen[id] = true
		n, err := strconv.ParseFloat(info["memlock"], 64)
		if err != nil {
			return 0, 0, fmt.Errorf("memory of map %s: %w", id, err)
		}
		bytes += n
	}
	if len(seen) == 0 {
		return 0, 0, fmt.Errorf("process %d has no BPF map open", pid)
	}
	return bytes, len(seen), nil
}

// Started is when a process was started, to a tick.
func Started(pid int) (time.Time, error) {
	f, err := statFields(pid)
	if err != nil {
		return time.Time{}, err
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return time.Time{}, fmt.Errorf("uptime: %w", err)
	}
	now := time.Now()
	first, _, _ := strings.Cut(string(uptime), " ")
	up, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("uptime: %w", err)
	}
	age := time.Duration(up*float64(time.Second)) - ticks(f[19])
	return now.Add(-age), nil
}
