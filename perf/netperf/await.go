// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// Times of Await: between two attempts, and for one. Nothing tells when a connection begins to be
// possible, so it is tried.
const (
	awaitEvery = 20 * time.Millisecond
	awaitTry   = time.Second
)

// Await returns when each of the addresses has taken a TCP connection, or with the last error when ctx ends.
func Await(ctx context.Context, addresses []string) error {
	tick := time.NewTicker(awaitEvery)
	defer tick.Stop()
	for _, a := range addresses {
		for {
			d := net.Dialer{Timeout: awaitTry}
			c, err := d.DialContext(ctx, "tcp", a)
			if err == nil {
				_ = c.Close()
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return errors.Join(fmt.Errorf("%s takes no connection: %w", a, err), context.Cause(ctx))
			}
		}
	}
	return nil
}
