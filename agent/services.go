// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net/netip"

	"lash.internal/lash/agent/reconcile"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// services is how Services get into the kernel.
type services struct{ a *Agent }

func newServices(a *Agent) (*services, error) { return &services{a}, nil }

func (s *services) vip(netip.Addr) bool                 { return false }
func (s *services) vipKeys(state.Service) []bpf.AddrKey { return nil }
func (s *services) chains() []*reconcile.Chain          { return nil }
func (s *services) collect(context.Context) error       { return nil }
