// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"lash.internal/lash/agent/ipam"
)

// flows notes whose flows were purged.
type flows struct {
	purged []netip.Addr
	calls  int
	err    error
}

func (f *flows) purge(addrs ...netip.Addr) error {
	f.calls++
	if f.err == nil {
		f.purged = append(f.purged, addrs...)
	}
	return f.err
}

func pool(t *testing.T, cidr string, f *flows) *addresses {
	t.Helper()
	p, err := ipam.New([]netip.Prefix{netip.MustParsePrefix(cidr)})
	if err != nil {
		t.Fatal(err)
	}
	return newAddresses(p, f.purge, slog.New(slog.DiscardHandler))
}

// TestAddressLeavesWithItsFlows deletes pods. Nobody waits for the flows, all of them go together, and
// until they are gone the addresses are taken.
func TestAddressLeavesWithItsFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &flows{}
		p := pool(t, "10.0.0.0/24", f)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go p.Run(ctx)
		a, _, err1 := p.Allocate("a")
		b, _, err2 := p.Allocate("b")
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		f.err = errors.New("no memory")
		done := 0
		p.Release(func() { done++ }, a, netip.Addr{})
		time.Sleep(time.Second)
		p.Release(func() { done++ }, b)
		if f.calls != 0 {
			t.Error("a deletion waits")
		}
		time.Sleep(purgeInterval)
		synctest.Wait()
		if f.calls != 1 || done != 0 || p.Usage()[0].Allocated != 3 {
			t.Errorf("flows that cannot be purged: %d calls, %d done, %+v", f.calls, done, p.Usage())
		}
		f.err = nil
		time.Sleep(purgeRetry)
		synctest.Wait()
		if f.calls != 2 || done != 2 || p.Usage()[0].Allocated != 1 || !slices.Contains(f.purged, a) || !slices.Contains(f.purged, b) {
			t.Errorf("%d calls, purged %v, %d done, %+v", f.calls, f.purged, done, p.Usage())
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if f.calls != 2 {
			t.Error("tables are read though nobody left")
		}
	})
}

// TestLastAddressIsWaitedFor has a pool without free addresses, of which one leaves.
func TestLastAddressIsWaitedFor(t *testing.T) {
	f := &flows{}
	p := pool(t, "10.0.0.0/30", f)
	a, _, err := p.Allocate("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Allocate("b"); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("no address is left: %v", err)
	}
	done := false
	p.Release(func() { done = true }, a)
	f.err = errors.New("no memory")
	if _, _, err := p.Allocate("b"); !errors.Is(err, ipam.ErrExhausted) || !strings.Contains(err.Error(), "no memory") {
		t.Errorf("with flows of the pod before: %v", err)
	}
	f.err = nil
	if got, _, err := p.Allocate("b"); err != nil || got != a || !done || !slices.Contains(f.purged, a) {
		t.Errorf("%v, %v, done %v, purged %v", got, err, done, f.purged)
	}
}
