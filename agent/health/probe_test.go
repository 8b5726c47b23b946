// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// network answers the probe, or not.
type network struct {
	mu    sync.Mutex
	lost  map[netip.Addr]int   // how many more questions get no answer; -1: all
	err   map[netip.Addr]error // what the kernel says at once
	asked map[netip.Addr][]time.Duration
	start time.Time
}

func (n *network) ask(ctx context.Context, to netip.Addr) error {
	n.mu.Lock()
	n.asked[to] = append(n.asked[to], time.Since(n.start))
	lost, err := n.lost[to], n.err[to]
	if lost > 0 {
		n.lost[to]--
	}
	n.mu.Unlock()
	if err != nil {
		return err
	}
	if lost != 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (n *network) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

// probing runs a probe under a fake clock.
func probing(t *testing.T, f func(t *testing.T, p *Probe, n *network)) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{lost: map[netip.Addr]int{}, err: map[netip.Addr]error{}, asked: map[netip.Addr][]time.Duration{}, start: time.Now()}
		p := &Probe{Targets: []netip.Addr{self.IPv4, self.IPv6}, Ask: n.ask, Log: slog.New(slog.DiscardHandler)}
		if p.Err() == nil {
			t.Error("good before it has asked")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := p.Run(ctx); err != nil {
				t.Error(err)
			}
		}()
		f(t, p, n)
		cancel()
		<-done
	})
}

func TestProbeIsGood(t *testing.T) {
	probing(t, func(t *testing.T, p *Probe, n *network) {
		n.set(func() { n.lost[self.IPv4] = Tries - 1 })
		synctest.Wait()
		if p.Err() == nil {
			t.Error("good before both families have answered")
		}
		time.Sleep(Tries * Patience)
		synctest.Wait()
		if err := p.Err(); err != nil {
			t.Errorf("answered by the last try: %v", err)
		}
		time.Sleep(12 * time.Second)
		if got := p.Text(); got != "IPv4 and IPv6, 13s ago" {
			t.Errorf("text %q", got)
		}
		time.Sleep(2 * Interval)
		synctest.Wait()
		if got := len(n.asked[self.IPv6]); got != 3 {
			t.Errorf("asked %d times in %s: %v", got, time.Since(n.start), n.asked)
		}
	})
}

// TestProbeFailsAndRecovers: the cause is named with the moment at which it began, the probe asks more
// often then, and it is good again by itself.
func TestProbeFailsAndRecovers(t *testing.T) {
	probing(t, func(t *testing.T, p *Probe, n *network) {
		synctest.Wait()
		if err := p.Err(); err != nil {
			t.Fatal(err)
		}
		n.set(func() { n.lost[self.IPv4] = -1 })
		time.Sleep(Interval + (Tries-1)*Patience)
		synctest.Wait()
		if err := p.Err(); err != nil {
			t.Errorf("failed before the last try is over: %v", err)
		}
		time.Sleep(Patience)
		synctest.Wait()
		began := time.Now().UTC().Format(time.RFC3339)
		want := "failing since " + began + ": no answer from 10.244.1.253 over lxc_health"
		if err := p.Err(); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		n.set(func() { n.err[self.IPv6] = errors.New("connect: network is unreachable") })
		time.Sleep(Again + Tries*Patience)
		synctest.Wait()
		want += "; asking fd00:10:244:1::fffd over lxc_health: connect: network is unreachable"
		if err := p.Err(); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		n.set(func() { n.lost[self.IPv4] = 0; clear(n.err) })
		time.Sleep(Again)
		synctest.Wait()
		if err := p.Err(); err != nil {
			t.Errorf("mended: %v", err)
		}
	})
}

// TestProbeOutlastsAMoment: what the kernel refuses at once, as while a route is replaced, is no failure
// when it takes it a moment later.
func TestProbeOutlastsAMoment(t *testing.T) {
	probing(t, func(t *testing.T, p *Probe, n *network) {
		synctest.Wait()
		n.set(func() { n.err[self.IPv4] = errors.New("connect: network is unreachable") })
		time.Sleep(Interval + Patience)
		n.set(func() { clear(n.err) })
		time.Sleep(Tries * Patience)
		synctest.Wait()
		if err := p.Err(); err != nil {
			t.Error(err)
		}
	})
}

// TestProbeFailsFromTheStart: the first round, too, may fail.
func TestProbeFailsFromTheStart(t *testing.T) {
	probing(t, func(t *testing.T, p *Probe, n *network) {
		n.set(func() { n.err[self.IPv4], n.err[self.IPv6] = errors.New("a"), errors.New("b") })
		time.Sleep(Tries * Patience)
		synctest.Wait()
		err := p.Err()
		if err == nil || !strings.Contains(err.Error(), "asking 10.244.1.253 over lxc_health: a; ") {
			t.Errorf("%v", err)
		}
	})
}
