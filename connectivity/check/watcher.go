// SPDX-License-Identifier: Apache-2.0

package check

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"lash.internal/lash/agent/api"
)

// maxDrops bounds what a run remembers; a broken path drops the same packet again and again.
const maxDrops = 20000

// monitorEnd is how long a monitor has to end after its input has.
const monitorEnd = 5 * time.Second

// drop is a dropped packet as an agent reported it.
type drop struct {
	at       time.Time // of arrival here: the clocks of nodes may differ
	node     string
	src, dst netip.Addr
	event    api.MonitorEvent
}

// watcher follows the drops of every node while the tests run.
type watcher struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	drops  []drop
	blind  map[string]string // nodes without events, and why
}

// watchDrops starts `cilium monitor` on every node that has an agent.
func watchDrops(ctx context.Context, e *Env) *watcher {
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{cancel: cancel, blind: map[string]string{}}
	for _, n := range e.Nodes {
		if !n.Ready() {
			w.blind[n.Name] = n.Problem
			continue
		}
		w.wg.Go(func() { w.follow(ctx, e, n) })
	}
	return w
}

func (w *watcher) follow(ctx context.Context, e *Env, n Node) {
	r, out := io.Pipe()
	// The monitor ends with its input. The exec has a life of its own, for the end has to get there.
	in, hold := io.Pipe()
	ectx, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	defer context.AfterFunc(ctx, func() {
		_ = hold.Close()
		time.AfterFunc(monitorEnd, cut)
	})()
	w.wg.Go(func() {
		err := e.opts.Exec(ectx, e.opts.Namespace, n.Agent.Name, "cilium-agent", Streams{In: in, Out: out}, "cilium", "monitor", "-t", "drop", "-j")
		_ = in.Close()
		_ = out.CloseWithError(err)
		if ctx.Err() == nil {
			w.mu.Lock()
			w.blind[n.Name] = errOr(err, "cilium monitor ended")
			w.mu.Unlock()
		}
	})
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var ev api.MonitorEvent
		if json.Unmarshal(sc.Bytes(), &ev) != nil || ev.Type != api.MonitorDrop {
			continue
		}
		d := drop{at: time.Now(), node: n.Name, event: ev}
		if s := ev.Summary; s != nil && s.L3 != nil {
			d.src, d.dst = address(s.L3.Src), address(s.L3.Dst)
		}
		w.mu.Lock()
		if len(w.drops) < maxDrops {
			w.drops = append(w.drops, d)
		}
		w.mu.Unlock()
	}
	_ = r.Close()
}

func address(s string) netip.Addr {
	if h, _, err := net.SplitHostPort(s); err == nil {
		s = h
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap()
}

// between returns the drops of packets from any of a to any of b, or back, in a span of time.
func (w *watcher) between(a, b []netip.Addr, from, to time.Time) []drop {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []drop
	for _, d := range w.drops {
		if d.at.Before(from) || d.at.After(to) {
			continue
		}
		if (slices.Contains(a, d.src) && slices.Contains(b, d.dst)) || (slices.Contains(b, d.src) && slices.Contains(a, d.dst)) {
			out = append(out, d)
		}
	}
	return out
}

// stop ends the monitors.
func (w *watcher) stop() {
	if w == nil {
		return
	}
	w.cancel()
	w.wg.Wait()
}

func (d drop) String() string {
	text := fmt.Sprintf("%s -> %s", d.src, d.dst)
	if d.event.Summary != nil && d.event.Summary.Text != "" {
		text = d.event.Summary.Text
	}
	return fmt.Sprintf("%s on %s: %s", d.event.Reason, d.node, text)
}
