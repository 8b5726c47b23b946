// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const mega = 1e6 // bytes, as everywhere in the report

// ticksPerSecond is USER_HZ, in which proc(5) gives times; it is 100 on every architecture that Go has.
const ticksPerSecond = 100

// agentOn is the agent's pod on the worker.
func (k *kube) agentOn(ctx context.Context) (pod, error) {
	worker, _, err := k.nodes()
	if err != nil {
		return pod{}, err
	}
	pods, err := k.podsOf(ctx, "kube-system", "cilium-agent", false, "-l", "k8s-app=cilium", "--field-selector", "spec.nodeName="+worker+",status.phase=Running")
	if err != nil {
		return pod{}, err
	}
	if len(pods) != 1 {
		return pod{}, fmt.Errorf("%d agents run on %s, not one", len(pods), worker)
	}
	for _, p := range pods {
		return p, nil
	}
	return pod{}, nil
}

// measureIdle takes what the agent holds, and the processor time that it uses while nothing happens.
func (b *run) measureIdle(ctx context.Context, k *kube) error {
	p, err := k.agentOn(ctx)
	if err != nil {
		return err
	}
	before, err := processTime(p.pid)
	if err != nil {
		return err
	}
	start := time.Now()
	b.say("watching the idle agent for %s", b.o.Idle)
	select {
	case <-time.After(b.o.Idle):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := processTime(p.pid)
	if err != nil {
		return err
	}
	wall := time.Since(start)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return fmt.Errorf("memory of the agent: %w", err)
	}
	rss, err := statusField(string(status), "VmRSS")
	if err != nil {
		return err
	}
	anon, err := statusField(string(status), "RssAnon")
	if err != nil {
		return err
	}
	maps, number, err := mapMemory(p.pid)
	if err != nil {
		return err
	}
	mapped, err := mappedMaps(p.pid)
	if err != nil {
		return err
	}
	return b.figures(
		Figure{
			Name: "agent, resident memory, idle", Unit: "MB", Values: []float64{(rss - mapped) / mega}, Goal: 40,
			Note: fmt.Sprintf("%.1f MB of it are its own, the rest are pages of its program file; %.1f MB of BPF maps that it has mapped are counted with the maps", anon/mega, mapped/mega),
		},
		Figure{
			Name: "agent, processor time, idle", Unit: "% of a processor", Values: []float64{100 * float64(after-before) / float64(wall)}, Goal: 0.2,
			Note: fmt.Sprintf("over %s", b.o.Idle),
		},
		Figure{Name: "BPF maps, memory at default sizes", Unit: "MB", Values: []float64{maps / mega}, Goal: 60, Note: fmt.Sprintf("%d maps, as the kernel counts them", number)},
	)
}

// processTime is the processor time that a process has used (proc(5), fields 14 and 15 of stat).
func processTime(pid int) (time.Duration, error) {
	f, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	return ticks(f[11]) + ticks(f[12]), nil
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

// statusField is a size in bytes out of /proc/PID/status.
func statusField(text, name string) (float64, error) {
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

// mappedMaps is how much of a process's resident memory are BPF maps (smaps in proc(5)).
func mappedMaps(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, fmt.Errorf("memory of the agent: %w", err)
	}
	var sum float64
	inMap := false
	for line := range strings.SplitSeq(string(text), "\n") {
		switch name, _, _ := strings.Cut(line, " "); {
		case name != "" && !strings.HasSuffix(name, ":"):
			inMap = strings.Contains(line, "bpf-map")
		case inMap && name == "Rss:":
			kb, err := statusField(line, "Rss")
			if err != nil {
				return 0, err
			}
			sum += kb
		}
	}
	return sum, nil
}

// mapMemory sums up the BPF maps that a process has open, each once, as the kernel counts them.
func mapMemory(pid int) (bytes float64, number int, err error) {
	dir := fmt.Sprintf("/proc/%d/fdinfo", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("maps of the agent: %w", err)
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
		return 0, 0, errors.New("the agent has no BPF map open")
	}
	return bytes, len(seen), nil
}

// readyLine finds the agent's report of readiness in its log.
var readyLine = regexp.MustCompile(`(?m)^time=(\S+) .*msg=ready .*\badopted=(true|false)`)

// starts measures how long an agent takes from its start to readiness, each time in a new pod: first
// with its programs in place, then on a node from which everything was removed.
func (b *run) measureStarts(ctx context.Context, k *kube) error {
	var times []float64
	for i := range b.o.Starts {
		took, adopted, err := k.restart(ctx)
		if err != nil {
			return err
		}
		if !adopted {
			return errors.New("an agent that was restarted did not adopt the programs that it found")
		}
		times = append(times, took.Seconds())
		b.say("agent start %d of %d: %s", i+1, b.o.Starts, took)
	}
	if err := b.figures(Figure{Name: "agent, start to ready, programs adopted", Unit: "s", Values: times, Goal: 0.4}); err != nil {
		return err
	}
	if _, err := k.kubectl(ctx, "-n", "kube-system", "set", "env", "ds/cilium", "-c", "clean-cilium-state", "CILIUM_BPF_STATE=true"); err != nil {
		return err
	}
	if _, err := k.kubectl(ctx, "-n", "kube-system", "rollout", "status", "ds/cilium", "--timeout=180s"); err != nil {
		return err
	}
	times = nil
	for i := range b.o.Starts {
		took, adopted, err := k.restart(ctx)
		if err != nil {
			return err
		}
		if adopted {
			return errors.New("an agent found programs on a node that had been cleaned")
		}
		times = append(times, took.Seconds())
		b.say("agent start %d of %d on a clean node: %s", i+1, b.o.Starts, took)
	}
	return b.figures(Figure{Name: "agent, start to ready, clean node", Unit: "s", Values: times, Goal: 2, Note: "programs loaded, maps and devices made anew"})
}

// restart replaces the worker's agent and tells how long the new one took.
func (k *kube) restart(ctx context.Context) (took time.Duration, adopted bool, err error) {
	old, err := k.agentOn(ctx)
	if err != nil {
		return 0, false, err
	}
	if _, err := k.kubectl(ctx, "-n", "kube-system", "delete", "pod", old.name, "--wait=true"); err != nil {
		return 0, false, err
	}
	if _, err := k.kubectl(ctx, "-n", "kube-system", "rollout", "status", "ds/cilium", "--timeout=120s"); err != nil {
		return 0, false, err
	}
	p, err := k.agentOn(ctx)
	if err != nil {
		return 0, false, err
	}
	log, err := k.kubectl(ctx, "-n", "kube-system", "logs", p.name, "-c", "cilium-agent")
	if err != nil {
		return 0, false, err
	}
	m := readyLine.FindSubmatch(log)
	if m == nil {
		return 0, false, fmt.Errorf("the log of %s does not say that it is ready", p.name)
	}
	ready, err := time.Parse(time.RFC3339Nano, string(m[1]))
	if err != nil {
		return 0, false, fmt.Errorf("log of %s: %w", p.name, err)
	}
	started, err := startOf(p.pid)
	if err != nil {
		return 0, false, err
	}
	return ready.Sub(started).Round(time.Millisecond), string(m[2]) == "true", nil
}

// startOf is when a process was started, to a tick.
func startOf(pid int) (time.Time, error) {
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
