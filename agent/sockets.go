// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"lash.internal/lash/agent/datapath/netlink"
)

// stuckSockets is what it means for a node that sockets cannot be ended.
const stuckSockets = "UDP sockets of this node's processes stay connected to backends that are gone"

// How long the loss of backends is collected before sockets are looked at, and how long after it they
// are looked at once more: a call of connect that was under way may have taken a backend that just went.
const (
	gatherLosses = 100 * time.Millisecond
	connectLimit = time.Second
)

// socketEnder ends the node's UDP sockets that a Service has connected to a backend which is gone: their
// owners would send there for ever, since no program sees what a connected socket sends. Owners get an
// error and connect again. Pods have no such sockets, their datagrams are translated one by one.
type socketEnder struct {
	list     func() ([]netlink.UDPSocket, error)
	outlived func(cookie uint64, peer netip.AddrPort) (bool, error)
	left     func() <-chan struct{} // closes when a backend has left a Service
	log      *slog.Logger
	cannot   error // the kernel lacks what it takes
}

// run follows the Services until ctx ends. Begin it when they are as they should be.
func (s *socketEnder) run(ctx context.Context) error {
	if s.cannot != nil {
		<-ctx.Done()
		return nil
	}
	for {
		left := s.left()
		again := time.NewTimer(connectLimit)
		for _, at := range []<-chan time.Time{nil, again.C} {
			if at != nil {
				select {
				case <-ctx.Done():
					again.Stop()
					return nil
				case <-at:
				}
			}
			s.look()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-left:
		case <-time.After(serviceAudit):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(gatherLosses):
		}
	}
}

// look ends what has outlived its backend.
func (s *socketEnder) look() {
	all, err := s.list()
	if err != nil {
		s.log.Warn("UDP sockets of the node are not looked at", "error", err)
		return
	}
	for _, c := range all {
		gone, err := s.outlived(c.Cookie, c.Peer)
		if err == nil && gone {
			err = c.End()
		}
		if err != nil {
			s.log.Warn(stuckSockets, "socket", c.Local, "backend", c.Peer, "error", err)
		} else if gone {
			s.log.Info("ended a UDP socket whose backend is gone", "socket", c.Local, "backend", c.Peer)
		}
	}
}
