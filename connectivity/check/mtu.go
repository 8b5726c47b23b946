// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"fmt"
	"sync"

	"lash.internal/lash/connectivity/probe"
)

// leastMTU4 and leastMTU6 are the packets that every network has to carry (RFC 791, RFC 8200).
const (
	leastMTU4 = 576
	leastMTU6 = 1280
)

// nodeToNodeMTU measures the largest packet that passes between two nodes whole. It has to be the
// MTU of the route, which the MTU of pods is made from.
func nodeToNodeMTU() Scenario {
	return Scenario{
		Test: "node-to-node", Name: "host-to-host-mtu",
		Skip: needsTwoHosts,
		Do: func(ctx context.Context, e *Env) []ActionResult {
			var pairs []func() ActionResult
			for _, a := range e.Hosts {
				for _, b := range e.Hosts {
					if a.Node != b.Node {
						e.each(a, b, func(f int) {
							pairs = append(pairs, func() ActionResult { return e.measureMTU(ctx, a, b, f) })
						})
					}
				}
			}
			out := make([]ActionResult, len(pairs))
			var wg sync.WaitGroup
			for i, measure := range pairs {
				wg.Go(func() { out[i] = measure() })
			}
			wg.Wait()
			return out
		},
	}
}

func (e *Env) measureMTU(ctx context.Context, a, b Peer, family int) ActionResult {
	name := fmt.Sprintf("%s -> %s: IPv%d packets of the route's MTU", a, b.At(family), family)
	headers, least := 28, leastMTU4
	if family == 6 {
		headers, least = 48, leastMTU6
	}
	passes := func(p probe.Probe) (probe.Result, error) {
		p.Proto, p.Target, p.DontFragment, p.TimeoutMillis = probe.ICMP, b.IP(family).String(), true, e.timeoutMillis()
		return e.sessions.do(ctx, a.Pod, p)
	}
	full, err := passes(probe.Probe{FromMTU: true, Size: -headers})
	switch {
	case err != nil:
		return done(name, "%v", err)
	case full.OK:
		return done(name, "")
	}
	// The largest that passes lies between least and the MTU. Each step waits for an answer only.
	low, high := least, full.MTU
	if small, err := passes(probe.Probe{Size: low - headers}); err != nil || !small.OK || high <= low {
		return done(name, "packets of %d bytes do not pass (%s), nor do those of %d", full.MTU, full.Error, low)
	}
	for high-low > 1 {
		mid := (low + high) / 2
		r, err := passes(probe.Probe{Size: mid - headers})
		if err != nil {
			return done(name, "%v", err)
		}
		if r.OK {
			low = mid
		} else {
			high = mid
		}
	}
	return done(name, "the route says that packets of %d bytes pass, but at most %d do: mend the MTU of the devices on the way, or install with --set MTU=%d", full.MTU, low, low)
}
