// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"time"

	"lash.internal/lash/perf/process"
)

const mega = 1e6 // bytes, as everywhere in the report

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
	before, err := process.Time(p.pid)
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
	after, err := process.Time(p.pid)
	if err != nil {
		return err
	}
	wall := time.Since(start)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return fmt.Errorf("memory of the agent: %w", err)
	}
	rss, err := process.StatusField(string(status), "VmRSS")
	if err != nil {
		return err
	}
	anon, err := process.StatusField(string(status), "RssAnon")
	if err != nil {
		return err
	}
	maps, number, err := process.Maps(p.pid)
	if err != nil {
		return err
	}
	mapped, err := process.MappedMaps(p.pid)
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
	started, err := process.Started(p.pid)
	if err != nil {
		return 0, false, err
	}
	return ready.Sub(started).Round(time.Millisecond), string(m[2]) == "true", nil
}
