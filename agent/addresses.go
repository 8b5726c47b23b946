// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"lash.internal/lash/agent/ipam"
)

// Times between looks at the addresses that leave: reading the flow tables costs as much for many
// addresses as for one, and nobody waits.
const (
	purgeInterval = 5 * time.Second
	purgeRetry    = time.Minute
)

// errFlowsMove is why addresses are not free for a while after an upgrade.
var errFlowsMove = errors.New("flows are moving to another table")

// purge removes the flows of addresses. Those in a table of before would come after.
func (a *Agent) purge(addrs ...netip.Addr) error {
	if a.flowsMove.Load() {
		return errFlowsMove
	}
	return a.svc.flows.Purge(addrs...)
}

// addresses is the pool of pod addresses. One that comes back stays taken until its flows are gone: no
// pod meets those of another, and no deletion of a pod waits for that.
type addresses struct {
	*ipam.Pool
	purge func(...netip.Addr) error
	log   *slog.Logger

	work    sync.Mutex // held while flows are purged
	mu      sync.Mutex
	leaving []departure
	wake    chan struct{}
}

// departure is what a pod that is gone has had.
type departure struct {
	addrs []netip.Addr
	done  func()
}

func newAddresses(pool *ipam.Pool, purge func(...netip.Addr) error, log *slog.Logger) *addresses {
	return &addresses{Pool: pool, purge: purge, log: log, wake: make(chan struct{}, 1)}
}

// Release takes the addresses of a pod back and calls done when its flows are gone.
func (p *addresses) Release(done func(), addrs ...netip.Addr) {
	p.mu.Lock()
	p.leaving = append(p.leaving, departure{addrs, done})
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Allocate gives a pod its addresses. If none is free it waits for those that leave.
func (p *addresses) Allocate(owner string) (v4, v6 netip.Addr, err error) {
	v4, v6, err = p.Pool.Allocate(owner)
	if !errors.Is(err, ipam.ErrExhausted) {
		return v4, v6, err
	}
	if perr := p.free(); perr != nil {
		return v4, v6, fmt.Errorf("%w, and those of removed pods cannot be given away yet: %w", err, perr)
	}
	return p.Pool.Allocate(owner)
}

// free purges the flows of all addresses that leave, and gives these back to the pool.
func (p *addresses) free() error {
	p.work.Lock()
	defer p.work.Unlock()
	p.mu.Lock()
	gone := p.leaving
	p.leaving = nil
	p.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	var addrs []netip.Addr
	for _, d := range gone {
		addrs = append(addrs, d.addrs...)
	}
	if err := p.purge(addrs...); err != nil {
		p.mu.Lock()
		p.leaving = append(gone, p.leaving...)
		p.mu.Unlock()
		return err
	}
	p.Pool.Release(addrs...)
	for _, d := range gone {
		d.done()
	}
	return nil
}

// Run frees what leaves until ctx ends.
func (p *addresses) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		}
		pause := purgeInterval // more pods may go in the meantime
		for {
			timer := time.NewTimer(pause)
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil
			case <-timer.C:
			}
			err := p.free()
			if err == nil {
				break
			}
			level := slog.LevelWarn
			if errors.Is(err, errFlowsMove) {
				level = slog.LevelInfo
			}
			p.log.Log(ctx, level, "addresses of removed pods stay taken, will try again", "in", purgeRetry, "error", err)
			pause = purgeRetry
		}
	}
}
