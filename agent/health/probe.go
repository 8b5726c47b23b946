// SPDX-License-Identifier: Apache-2.0

package health

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"lash.internal/lash/agent/state"
)

// Times of the probe: it asks every Interval, after a failure every Again. What is lost once is asked
// again: only an address that does not answer Tries times, each within Patience, has failed.
const (
	Interval = 30 * time.Second
	Again    = 5 * time.Second
	Patience = time.Second
	Tries    = 3
)

// ErrPending is the error of a probe that has just begun.
var ErrPending = errors.New("no answer yet")

// errSilent is why an address that can be sent to has failed.
var errSilent = errors.New("no answer")

// Probe asks the addresses of the health endpoint now and then. Its methods are safe for concurrent
// use.
type Probe struct {
	// Targets are the addresses, at most one a family.
	Targets []netip.Addr
	// Ask sends one question to an address and returns when it is answered, or with why it is not, at
	// the latest when ctx ends.
	Ask func(ctx context.Context, to netip.Addr) error
	Log *slog.Logger

	mu    sync.Mutex
	last  time.Time // end of the newest round; zero: there was none
	since time.Time // end of the first of the rounds that failed; zero: the newest did not
	cause error     // of the newest round
}

// Err is why the dataplane does not carry packets, or is not known to; nil when it does.
func (p *Probe) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.last.IsZero():
		return ErrPending
	case p.cause != nil:
		return fmt.Errorf("failing since %s: %w", p.since.UTC().Format(time.RFC3339), p.cause)
	}
	return nil
}

// Text says the same of a probe that does not fail: what was asked, and how long ago.
func (p *Probe) Text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var families []string
	for _, a := range p.Targets {
		if a.Is4() {
			families = append(families, "IPv4")
		} else {
			families = append(families, "IPv6")
		}
	}
	return fmt.Sprintf("%s, %s ago", strings.Join(families, " and "), time.Since(p.last).Truncate(time.Second))
}

// Run asks until ctx ends, at once for the first time.
func (p *Probe) Run(ctx context.Context) error {
	for {
		err := p.round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		p.note(err)
		pause := Interval
		if err != nil {
			pause = Again
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

func (p *Probe) note(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	switch {
	case err != nil && p.since.IsZero():
		p.since = now
		p.Log.Error("the datapath of this node does not carry packets: the agent is not ready until it does, and leaves everything as it is", "error", err)
	case err == nil && !p.since.IsZero():
		p.Log.Info("the datapath of this node carries packets again", "after", now.Sub(p.since).Round(time.Second))
		p.since = time.Time{}
	}
	p.last, p.cause = now, err
}

// round asks every address.
func (p *Probe) round(ctx context.Context) error {
	errs := make([]error, len(p.Targets))
	var wg sync.WaitGroup
	for i, to := range p.Targets {
		wg.Go(func() { errs[i] = p.persist(ctx, to) })
	}
	wg.Wait()
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	switch len(errs) {
	case 0:
		return nil
	case 1:
		return errs[0]
	}
	return fmt.Errorf("%w; %w", errs[0], errs[1])
}

// persist asks an address up to Tries times. A try that fails before its time waits for its end: what
// the kernel refuses in one moment, as while a route is replaced, it may take in the next.
func (p *Probe) persist(ctx context.Context, to netip.Addr) error {
	var err error
	for range Tries {
		try, cancel := context.WithTimeout(ctx, Patience)
		if err = p.Ask(try, to); err == nil {
			cancel()
			return nil
		}
		<-try.Done()
		cancel()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w from %s over %s", errSilent, to, state.HealthDevice)
	}
	return fmt.Errorf("asking %s over %s: %w", to, state.HealthDevice, err)
}

// Ask sends a UDP datagram with a number to Port of an address, from one of the node's own addresses, and
// waits for it to come back.
func Ask(from []netip.Addr) func(ctx context.Context, to netip.Addr) error {
	return func(ctx context.Context, to netip.Addr) error {
		d := net.Dialer{}
		for _, a := range from {
			if a.Is4() == to.Is4() {
				d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0))
			}
		}
		c, err := d.DialContext(ctx, "udp", netip.AddrPortFrom(to, Port).String())
		if err != nil {
			return err
		}
		defer c.Close()
		defer context.AfterFunc(ctx, func() { c.Close() })()
		question := make([]byte, 16)
		if _, err := rand.Read(question); err != nil {
			return err
		}
		if _, err := c.Write(question); err != nil {
			return err
		}
		answer := make([]byte, 64)
		for {
			n, err := c.Read(answer)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				return err
			}
			if bytes.Equal(answer[:n], question) {
				return nil
			}
		}
	}
}
