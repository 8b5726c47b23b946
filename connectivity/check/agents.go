// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"lash.internal/lash/agent/api"
)

// agentHealth asks every agent how it is.
func agentHealth() Scenario {
	return Scenario{
		Test: "health", Name: "agent-health",
		Do: func(ctx context.Context, e *Env) []ActionResult {
			out := make([]ActionResult, len(e.Nodes))
			var wg sync.WaitGroup
			for i, n := range e.Nodes {
				wg.Go(func() { out[i] = e.agentHealth(ctx, n) })
			}
			wg.Wait()
			return out
		},
	}
}

func (e *Env) agentHealth(ctx context.Context, n Node) ActionResult {
	name := "agent of node " + n.Name
	if !n.Ready() {
		return done(name, "%s", n.Problem)
	}
	text, err := e.inAgent(ctx, n.Name, "cilium", "status", "--brief")
	if err != nil {
		return done(name, "cilium status --brief: %s", strings.TrimSpace(text+" "+err.Error()))
	}
	if t := strings.TrimSpace(text); t != "OK" {
		return done(name, "cilium status --brief says %q", t)
	}
	return done(name, "")
}

// expectedDrops are reasons that a healthy network has as well: garbage from outside, policy, and
// requests to Services without backend or for others.
var expectedDrops = []string{
	"Policy denied", "Policy denied by denylist", "Unsupported L2 protocol", "Unsupported L3 protocol",
	"Stale or unroutable IP", "Authentication required", "Service backend not found",
	"Unsupported protocol for NAT masquerade", "Invalid source ip", "Unknown L3 target address",
	"Host datapath not ready", "Unknown ICMPv4 code", "Unknown ICMPv6 code", "Forbidden ICMPv6 message",
	"No egress gateway found", "Denied by LB src range check",
}

// dropCounters is the number of dropped packets by node and reason.
type dropCounters map[string]map[string]float64

// readDrops reads the counters of every agent; a node that does not answer is left out.
func (e *Env) readDrops(ctx context.Context) dropCounters {
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex
		out = dropCounters{}
	)
	for _, n := range e.Nodes {
		if !n.Ready() {
			continue
		}
		wg.Go(func() {
			text, err := e.inAgent(ctx, n.Name, "cilium", "metrics", "list", "-o", "json")
			var list []api.Metric
			if err != nil || json.Unmarshal([]byte(text), &list) != nil {
				return
			}
			c := map[string]float64{}
			for _, m := range list {
				if m.Name == "cilium_drop_count_total" {
					c[m.Labels["reason"]] += m.Value
				}
			}
			mu.Lock()
			out[n.Name] = c
			mu.Unlock()
		})
	}
	wg.Wait()
	return out
}

// unexpectedDrops compares the counters of every node with what they were before the tests.
func unexpectedDrops() Scenario {
	return Scenario{
		Test: "no-unexpected-packet-drops", Name: "no-unexpected-packet-drops", Last: true,
		Do: func(ctx context.Context, e *Env) []ActionResult {
			after := e.readDrops(ctx)
			var out []ActionResult
			for _, node := range sortedKeys(after) {
				name := "drops on node " + node
				before, ok := e.drops[node]
				if !ok {
					out = append(out, done(name, "the counters could not be read before the tests"))
					continue
				}
				if found := newDrops(before, after[node]); len(found) > 0 {
					r := done(name, "packets were dropped: %s", strings.Join(found, ", "))
					r.Evidence = e.dropsOn(node)
					out = append(out, r)
					continue
				}
				out = append(out, done(name, ""))
			}
			return out
		},
	}
}

func newDrops(before, after map[string]float64) []string {
	var out []string
	for _, reason := range sortedKeys(after) {
		if n := after[reason] - before[reason]; n > 0 && !slices.Contains(expectedDrops, reason) {
			out = append(out, fmt.Sprintf("%q %.0f times", reason, n))
		}
	}
	return out
}

// dropsOn lists what the agent of a node reported, without the expected reasons.
func (e *Env) dropsOn(node string) []string {
	if e.watch == nil {
		return nil
	}
	e.watch.mu.Lock()
	defer e.watch.mu.Unlock()
	var out []string
	for _, d := range e.watch.drops {
		if d.node == node && !slices.Contains(expectedDrops, d.event.Reason) && len(out) < maxLines {
			out = append(out, "drop: "+d.String())
		}
	}
	return out
}
