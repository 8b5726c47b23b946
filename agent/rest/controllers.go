// SPDX-License-Identifier: Apache-2.0

package rest

import (
	"time"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/reconcile"
)

// ControllersOf shows loops in the form that clients know: a loop with an error is a controller
// that fails until the error is gone.
func ControllersOf(loops []reconcile.Status, now time.Time) []api.Controller {
	out := make([]api.Controller, 0, len(loops))
	for _, l := range loops {
		name := l.Name
		if l.Chain != "" && l.Chain != l.Name {
			name = l.Chain + "/" + l.Name
		}
		c := api.Controller{Name: name, Status: api.ControllerStatus{
			FailureCount: int64(l.Failures), SuccessCount: int64(l.Sets + l.Deletes),
			Entries: int64(l.Entries), Pending: int64(l.Pending),
			LastFailureTimestamp: l.LastErrorAt,
		}}
		if l.LastError != "" {
			c.Status.ConsecutiveFailureCount = 1
			c.Status.LastFailureMsg = l.LastError
			c.Status.LastSuccessTimestamp = l.OldestPending
		} else if l.Synced {
			c.Status.LastSuccessTimestamp = now
		}
		out = append(out, c)
	}
	return out
}
