// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"lash.internal/lash/agent/datapath/netlink"
	"lash.internal/lash/agent/reconcile"
)

// TestSocketsAreLookedAt when the agent starts, when a backend leaves, a moment after that and at last
// with each audit.
func TestSocketsAreLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var left reconcile.Signal
		looks, asked := 0, 0
		s := socketEnder{
			list: func() ([]netlink.UDPSocket, error) {
				looks++
				return []netlink.UDPSocket{{Cookie: 7}}, nil
			},
			outlived: func(cookie uint64, _ netip.AddrPort) (bool, error) {
				if cookie == 7 {
					asked++
				}
				return false, nil
			},
			left: left.Watch, log: slog.New(slog.DiscardHandler),
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.run(ctx) }()
		check := func(after time.Duration, want int) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if looks != want || asked != want {
				t.Errorf("looked %d times, at %d sockets, want %d", looks, asked, want)
			}
		}
		check(0, 1)
		check(time.Minute, 2)
		left.Fire()
		left.Fire()
		check(gatherLosses, 3)
		check(time.Minute, 4)
		check(serviceAudit, 6)
		// One that leaves while the last look is awaited is not forgotten.
		left.Fire()
		check(gatherLosses, 7)
		left.Fire()
		check(connectLimit+gatherLosses, 9)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
