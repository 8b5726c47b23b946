// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lash.internal/lash/perf/process"
)

// describe reads what the machine is and notes how it is measured on.
func (b *run) describe(ctx context.Context) (*Machine, error) {
	m, err := Describe(ctx, map[string][]string{"lash": {filepath.Join(b.o.Bin, "lash"), "version", "--client"}})
	if err != nil {
		return nil, err
	}
	m.IPv6, m.Rounds, m.Seconds = b.o.IPv6, b.o.Rounds, int(b.o.Length/time.Second)
	m.ClientCPU, m.ServerCPU, m.Congestion, m.Command = b.o.ClientCPU, b.o.ServerCPU, congestion, b.o.Command
	return m, nil
}

// Describe reads what the machine is. Programs are asked for their versions by the command lines given,
// beside those that every measurement names.
func Describe(ctx context.Context, programs map[string][]string) (*Machine, error) {
	m := &Machine{Processors: runtime.NumCPU(), Versions: map[string]string{}}
	var un unix.Utsname
	if err := unix.Uname(&un); err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(un.Release[:])
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, fmt.Errorf("processor: %w", err)
	}
	m.Processor = valueOf(string(cpu), "model name")
	mem, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	if total, err := process.StatusField(string(mem), "MemTotal"); err == nil {
		m.MemoryMB = int(total / mega)
	}
	if clock, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource"); err == nil {
		m.Clock = strings.TrimSpace(string(clock))
	}
	if m.Load, err = Load(); err != nil {
		return nil, err
	}
	asked := map[string][]string{"iptables": {"iptables", "--version"}, "iproute2": {"ip", "-V"}}
	maps.Copy(asked, programs)
	for name, args := range asked {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).Output(); err == nil {
			first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
			m.Versions[name] = first
		}
	}
	m.Versions["go"] = runtime.Version()
	if out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").Output(); err == nil {
		m.Versions["commit"] = strings.TrimSpace(string(out))
	}
	return m, nil
}

// Load is the machine's load average of the last minute.
func Load() (float64, error) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, fmt.Errorf("load: %w", err)
	}
	first, _, _ := strings.Cut(string(text), " ")
	return strconv.ParseFloat(first, 64)
}

// valueOf is the first "name : value" of a text.
func valueOf(text, name string) string {
	for line := range strings.SplitSeq(text, "\n") {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// helpRuns is how often `lash --help` is timed.
const helpRuns = 20

// measureSizes takes the sizes of programs and image, and the time of `lash --help`.
func (b *run) measureSizes(ctx context.Context, imageFile string) error {
	size := map[string]float64{}
	for _, name := range []string{"lash", "lash-agent", "lash-cni"} {
		st, err := os.Stat(filepath.Join(b.o.Bin, name))
		if err != nil {
			return fmt.Errorf("program: %w", err)
		}
		size[name] = float64(st.Size()) / mega
	}
	plain, packed, err := imageSize(imageFile)
	if err != nil {
		return err
	}
	lash := filepath.Join(b.o.Bin, "lash")
	var help []float64
	for range helpRuns {
		start := time.Now()
		if err := exec.CommandContext(ctx, lash, "--help").Run(); err != nil {
			return fmt.Errorf("lash --help: %w", err)
		}
		help = append(help, time.Since(start).Seconds())
	}
	one := func(v float64) []float64 { return []float64{v} }
	return b.figures(
		Figure{Name: "lash, size without the image inside", Unit: "MB", Values: one(size["lash"] - size["lash-agent"] - size["lash-cni"]), Goal: 75, Note: fmt.Sprintf("%.1f MB with it", size["lash"])},
		Figure{Name: "lash-agent, size", Unit: "MB", Values: one(size["lash-agent"])},
		Figure{Name: "CNI plugin, size", Unit: "MB", Values: one(size["lash-cni"]), Goal: 5},
		Figure{Name: "image, compressed", Unit: "MB", Values: one(packed), Goal: 25, Note: fmt.Sprintf("%.1f MB unpacked", plain)},
		Figure{Name: "`lash --help`", Unit: "s", Values: help, Goal: 0.15},
	)
}

// imageSize is the size of an image archive in MB, as it is and compressed as registries have it.
func imageSize(file string) (plain, packed float64, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, 0, fmt.Errorf("image: %w", err)
	}
	defer f.Close()
	var n counter
	zip := gzip.NewWriter(&n)
	raw, err := io.Copy(zip, f)
	if err == nil {
		err = zip.Close()
	}
	if err != nil {
		return 0, 0, fmt.Errorf("image: %w", err)
	}
	return float64(raw) / mega, float64(n) / mega, nil
}

type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}
