// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"lash.internal/lash/perf/process"
	"lash.internal/lash/perf/scale/dial"
	"lash.internal/lash/perf/scale/standin"
)

// probePause is how long the client rests between attempts while it waits for an event: what a time
// may be too long by.
const probePause = 100 * time.Microsecond

// gap bounds the rest between two events; it differs from one to the next, so that they do not fall
// into step with a contender that works at intervals.
const gap = 300 * time.Millisecond

// events measures single changes: the time from the moment at which the bytes of the event are sent to
// the first connection.
func (r *run) events(ctx context.Context) error {
	if _, _, _, err := r.ready(ctx); err != nil {
		return err
	}
	for _, k := range []struct {
		name string
		put  func(i int) (*standin.Change, error)
	}{
		{AddEndpoint, r.addEndpoint},
		{AddService, r.addService},
	} {
		var times []float64
		var failed error
		for start := time.Now(); len(times) < r.Events && time.Since(start) < r.EventsLimit; {
			i := r.nextSpare()
			if k.name == AddService { // it is not there before
				if err := r.takeAway(i); err != nil {
					return err
				}
			}
			select {
			case <-time.After(gap/10 + time.Duration(rand.Int64N(int64(gap)))):
			case <-ctx.Done():
				return ctx.Err()
			}
			took, err := r.event(vip(i), func() (*standin.Change, error) { return k.put(i) })
			if err != nil {
				failed = err
				break
			}
			times = append(times, took)
		}
		if failed == nil && len(times) < r.Events {
			failed = fmt.Errorf("ended after %s", r.EventsLimit)
		}
		r.figure(k.name, "ms", failed, "", times...)
	}
	return r.prog.whyEnded()
}

// ready waits until the agent reports it; kube-proxy has programmed all when all answer.
func (r *run) ready(ctx context.Context) (int64, int, bool, error) {
	if r.contender != Lash {
		return 0, 0, false, nil
	}
	return r.prog.whenReady(ctx, r.Limit)
}

func (r *run) addEndpoint(i int) (*standin.Change, error) {
	return r.api.Put(sliceOf(i, r.size.Ports, r.size.Endpoints, 0))
}

// addService makes a Service and its slice. Watches of both kinds run side by side, so the time is that
// of the Service's event, which is sent first.
func (r *run) addService(i int) (*standin.Change, error) {
	c, err := r.api.Put(serviceOf(i, r.size.Ports))
	if err != nil {
		return nil, err
	}
	_, err = r.api.Put(sliceOf(i, r.size.Ports, r.size.Endpoints, 0))
	return c, err
}

func (r *run) takeAway(i int) error {
	s, err := r.api.Delete(serviceOf(i, r.size.Ports))
	if err != nil {
		return err
	}
	sl, err := r.api.Delete(sliceOf(i, r.size.Ports, r.size.Endpoints))
	if err != nil {
		return err
	}
	s.Sent()
	sl.Sent()
	return nil
}

// event makes a change while the client tries to connect and returns the milliseconds that it took.
func (r *run) event(to netip.AddrPort, put func() (*standin.Change, error)) (float64, error) {
	first, err := r.node.begin(dial.Order{Addrs: []netip.AddrPort{to}, Pause: probePause, Limit: r.Limit})
	if err != nil {
		return 0, err
	}
	if first.Last != 0 {
		return 0, fmt.Errorf("%s answers before it should", to)
	}
	c, err := put()
	if err != nil {
		return 0, err
	}
	a, err := r.node.answer()
	if err != nil {
		return 0, err
	}
	if a.Missing > 0 {
		return 0, fmt.Errorf("%s did not answer within %s", to, r.Limit)
	}
	sent := c.Sent()
	if sent == 0 {
		return 0, fmt.Errorf("nobody watches")
	}
	return float64(a.Last-sent) / 1e6, nil
}

// changes measures what it costs to follow many changes: endpoints go and come back. The last of them
// has to be in effect at the end.
func (r *run) changes(ctx context.Context) error {
	pid := r.prog.daemon.PID()
	before, err := process.TimeWithChildren(pid)
	if err != nil {
		return err
	}
	start := time.Now()
	tick := time.NewTicker(time.Second / time.Duration(r.Rate))
	defer tick.Stop()
	gone := map[int]bool{}
	made := 0
	for time.Since(start) < r.Length {
		i := rand.IntN(r.size.Services)
		with := upTo(r.size.Endpoints)
		if gone[i] = !gone[i]; gone[i] {
			with = with[1:]
		}
		if _, err := r.api.Put(sliceOf(i, r.size.Ports, r.size.Endpoints, with...)); err != nil {
			return err
		}
		made++
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	wall := time.Since(start)
	after, err := process.TimeWithChildren(pid)
	if err != nil {
		return err
	}
	r.figure(Changes, "% of a processor", nil, fmt.Sprintf("%d changes in %s", made, wall.Round(time.Second)), 100*float64(after-before)/float64(wall))
	i := r.nextSpare()
	took, err := r.event(vip(i), func() (*standin.Change, error) { return r.addEndpoint(i) })
	if err != nil {
		r.figure(ChangesLast, "ms", err, "")
		return r.prog.whyEnded()
	}
	r.figure(ChangesLast, "ms", nil, "", took)
	rss, _, err := r.resident(pid)
	if err != nil {
		return err
	}
	r.figure(MemoryAfter, "MB", nil, "", rss/mega)
	return nil
}
