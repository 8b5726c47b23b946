// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"lash.internal/lash/connectivity/probe"
)

const (
	// maxExplained bounds the failures for which evidence is gathered: one for each kind of path.
	maxExplained = 12
	// maxLines bounds the lines of one piece of evidence.
	maxLines      = 8
	evidenceLimit = 20 * time.Second
)

// facts are the parts of the evidence that the diagnosis reasons with. A nil pointer means that
// the question could not be asked.
type facts struct {
	route      *string // from the source's node to the destination
	routeErr   string
	srcKnown   *bool // the source's address is in the address map of the destination's node
	dstKnown   *bool // and the other way round
	dstLocal   *bool // the destination is in the map of local endpoints of its node
	srcLocal   *bool
	frontend   *bool // the Service is in the map of its client's node
	reached    *bool // the destination's node has tracked the connection
	drops      []drop
	blindNodes []string
}

// explain gathers evidence for one failed action of each path and adds the diagnosis.
func (e *Env) explain(ctx context.Context, rep *Report) {
	ctx, cancel := context.WithTimeout(ctx, evidenceLimit)
	defer cancel()
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for t := range rep.Tests {
		for s := range rep.Tests[t].Scenarios {
			actions := rep.Tests[t].Scenarios[s].Actions
			for i := range actions {
				a := &actions[i]
				if a.OK || a.action == nil || a.broken || len(seen) >= maxExplained {
					continue
				}
				key := fmt.Sprintf("%s|%s|%s|%d", a.action.Path, a.action.From.Node, a.action.To, a.action.Family)
				if seen[key] {
					continue
				}
				seen[key] = true
				wg.Go(func() { e.gather(ctx, a) })
			}
		}
	}
	wg.Wait()
	rep.Diagnosis = e.diagnose(rep)
}

// gather fills in the evidence of one failed action.
func (e *Env) gather(ctx context.Context, r *ActionResult) {
	a := r.action
	src, dst := a.From.IP(a.Family), a.To.IP(a.Family)
	say := func(format string, args ...any) { r.Evidence = append(r.Evidence, fmt.Sprintf(format, args...)) }
	if !src.IsValid() || !dst.IsValid() {
		return
	}
	if a.From.Kind == PeerPod {
		if res, err := e.sessions.do(ctx, a.From.Pod, probe.Probe{Proto: probe.Route, Target: dst.String()}); err == nil {
			say("route in the pod: %s", routeText(res))
		}
	}
	if h, ok := e.host(a.From.Node); ok {
		if res, err := e.sessions.do(ctx, h.Pod, probe.Probe{Proto: probe.Route, Target: dst.String()}); err == nil {
			text := routeText(res)
			r.facts.route, r.facts.routeErr = &text, res.Error
			say("route on %s: %s", h.Node, text)
		}
	}
	real := dst
	if a.To.Kind == PeerService {
		real = e.gatherService(ctx, r, say)
	}
	r.facts.dstKnown = e.ipcache(ctx, a.From.Node, real, say)
	to := e.nodeOf(real)
	if to != "" && to != a.From.Node {
		r.facts.srcKnown = e.ipcache(ctx, to, src, say)
	}
	if to != "" && e.isPod(real) {
		r.facts.dstLocal = e.localEndpoint(ctx, to, real, say)
	}
	if a.From.Kind == PeerPod {
		r.facts.srcLocal = e.localEndpoint(ctx, a.From.Node, src, say)
	}
	e.tracked(ctx, a.From.Node, src, real, say)
	if to != "" && to != a.From.Node {
		r.facts.reached = e.tracked(ctx, to, src, real, say)
	}
	e.gatherDrops(r, []netip.Addr{src}, []netip.Addr{dst, real}, to, say)
}

func routeText(r probe.Result) string {
	if len(r.Answers) == 0 {
		return r.Error
	}
	return strings.Join(r.Answers, "; ")
}

// gatherService shows the frontend on the client's node and returns an address of a backend.
func (e *Env) gatherService(ctx context.Context, r *ActionResult, say func(string, ...any)) netip.Addr {
	a := r.action
	dst := a.To.IP(a.Family)
	if node := cmp.Or(a.From.Node, a.To.Node, e.Local.Name); e.KubeProxyReplacement() {
		if text, err := e.inAgent(ctx, node, "cilium", "bpf", "lb", "list"); err == nil {
			word := frontendText(a, dst)
			lines := grep(text, word)
			found := len(lines) > 0
			r.facts.frontend = &found
			if !found {
				say("cilium bpf lb list on %s: no entry for %s", node, word)
			}
			for _, l := range lines {
				say("cilium bpf lb list on %s: %s", node, l)
			}
		}
	}
	for _, p := range append(append([]Peer{}, e.Echoes...), e.Clients...) {
		if p.Name == a.To.Name && p.IP(a.Family).IsValid() {
			return p.IP(a.Family)
		}
	}
	return dst
}

// frontendText is what stands for a Service in a list of frontends: ports of nodes have no address there.
func frontendText(a *Action, dst netip.Addr) string {
	if a.To.portSet == nil {
		return dst.String()
	}
	_, port, err := net.SplitHostPort(strings.TrimSuffix(strings.TrimPrefix(a.Probe.Target, "http://"), "/"))
	if err != nil {
		return dst.String()
	}
	if dst.Is6() {
		return "[::]:" + port
	}
	return "0.0.0.0:" + port
}

// nodeOf returns the node that an address of ours lives on.
func (e *Env) nodeOf(ip netip.Addr) string {
	for _, list := range [][]Peer{e.Echoes, e.Clients, e.Hosts} {
		for _, p := range list {
			for _, a := range p.IPs {
				if a == ip {
					return p.Node
				}
			}
		}
	}
	return ""
}

func (e *Env) isPod(ip netip.Addr) bool {
	for _, list := range [][]Peer{e.Echoes, e.Clients} {
		for _, p := range list {
			if p.IP(4) == ip || p.IP(6) == ip {
				return true
			}
		}
	}
	return false
}

// ipcache says what a node knows about an address; nil when it cannot be asked.
func (e *Env) ipcache(ctx context.Context, node string, ip netip.Addr, say func(string, ...any)) *bool {
	text, err := e.inAgent(ctx, node, "cilium", "bpf", "ipcache", "get", ip.String())
	text = strings.TrimSpace(text)
	if text == "" {
		say("cilium bpf ipcache get %s on %s: %s", ip, node, errOr(err, "no answer"))
		return nil
	}
	say("cilium bpf ipcache get %s on %s: %s", ip, node, text)
	known := err == nil
	return &known
}

func (e *Env) localEndpoint(ctx context.Context, node string, ip netip.Addr, say func(string, ...any)) *bool {
	text, err := e.inAgent(ctx, node, "cilium", "bpf", "endpoint", "list")
	if err != nil {
		say("cilium bpf endpoint list on %s: %v", node, err)
		return nil
	}
	lines := grep(text, ip.String())
	found := len(lines) > 0
	if !found {
		say("cilium bpf endpoint list on %s: no entry for %s", node, ip)
	}
	for _, l := range lines {
		say("cilium bpf endpoint list on %s: %s", node, l)
	}
	return &found
}

// tracked shows the connections of two addresses on a node and says whether there are any.
func (e *Env) tracked(ctx context.Context, node string, a, b netip.Addr, say func(string, ...any)) *bool {
	text, err := e.inAgent(ctx, node, "cilium", "bpf", "ct", "list", "global")
	if err != nil {
		say("cilium bpf ct list global on %s: %v", node, err)
		return nil
	}
	lines := grep(text, a.String(), b.String())
	found := len(lines) > 0
	if !found {
		say("cilium bpf ct list global on %s: no connection between %s and %s", node, a, b)
	}
	for _, l := range lines {
		say("cilium bpf ct list global on %s: %s", node, l)
	}
	return &found
}

// grep returns the lines that hold every word as an address, at most maxLines of them.
func grep(text string, words ...string) []string {
	var out []string
	for l := range strings.Lines(text) {
		all := true
		for _, w := range words {
			all = all && holds(l, w)
		}
		if all && len(out) < maxLines {
			out = append(out, strings.TrimSpace(l))
		}
	}
	return out
}

// holds says whether a line holds an address and not only a longer one that begins or ends like it.
func holds(line, addr string) bool {
	for i := 0; ; {
		j := strings.Index(line[i:], addr)
		if j < 0 {
			return false
		}
		start, end := i+j, i+j+len(addr)
		v6 := strings.Contains(addr, ":")
		before := start == 0 || !isAddrByte(line[start-1], v6)
		after := end == len(line) || !isAddrByte(line[end], v6) || (line[end] == ':' && !v6)
		if before && after {
			return true
		}
		i = start + 1
	}
}

func isAddrByte(c byte, v6 bool) bool {
	switch {
	case c >= '0' && c <= '9':
		return true
	case v6:
		return c >= 'a' && c <= 'f'
	}
	return c == '.'
}

// gatherDrops looks through the drops of the time of the action; a packet may be on its way for as
// long as the action lasted.
func (e *Env) gatherDrops(r *ActionResult, src, dst []netip.Addr, to string, say func(string, ...any)) {
	if e.watch == nil {
		return
	}
	r.facts.drops = e.watch.between(src, dst, r.from.Add(-time.Second), r.to.Add(time.Second))
	for i, d := range r.facts.drops {
		if i == maxLines {
			say("drop: and %d more", len(r.facts.drops)-i)
			break
		}
		say("drop: %s", d)
	}
	e.watch.mu.Lock()
	defer e.watch.mu.Unlock()
	for _, n := range []string{r.action.From.Node, to} {
		if why, ok := e.watch.blind[n]; ok && n != "" {
			r.facts.blindNodes = append(r.facts.blindNodes, n)
			say("drops on %s are not known: %s", n, why)
		}
	}
	if len(r.facts.drops) == 0 && len(r.facts.blindNodes) == 0 {
		say("drops: none was reported for these addresses")
	}
}
