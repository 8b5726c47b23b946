// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"lash.internal/lash/agent/config"
	"lash.internal/lash/agent/kube"
	"lash.internal/lash/agent/rest"
	"lash.internal/lash/agent/service"
	"lash.internal/lash/agent/state"
)

// TestUsersAreTold of a HostPort that another pod has: by an event, which is tried again, and in the
// status for as long as it is so.
func TestUsersAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tables := state.NewTables()
		a := &Agent{tables: tables, cfg: &config.Config{NodeName: "here"}, log: slog.New(slog.DiscardHandler)}
		a.svc = &services{
			a: a, view: service.View{Tables: tables, Enabled: true, IPv4: true, NodeName: "here"},
			answers: rest.NewHealthChecks(func() error { return nil }),
		}
		var events []string
		away := true
		n := newNotes(a, func(_ context.Context, w kube.Warning) error {
			if away {
				return errors.New("no API server")
			}
			events = append(events, fmt.Sprintf("%s %s/%s %s %s: %s", w.Kind, w.Namespace, w.Name, w.UID, w.Reason, w.Message))
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); n.chain.Run(ctx) }()
		pod := func(name string, created int64) state.Pod {
			return state.Pod{
				Name: state.Name{Namespace: "default", Name: name}, UID: "uid-" + name, Phase: "Running", Created: created,
				IPs: []netip.Addr{netip.MustParseAddr("10.1.0.7")}, HostPorts: []state.HostPort{{HostPort: 4000, ContainerPort: 80, Protocol: "TCP"}},
			}
		}
		change := func(f func(*state.WriteTxn)) {
			w := tables.DB.WriteTxn()
			f(w)
			w.Commit()
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		change(func(w *state.WriteTxn) {
			tables.Pods.Insert(w, pod("old", 1))
			tables.Pods.Insert(w, pod("new", 2))
		})
		status := []string{"Pod default/new: HostPort 0.0.0.0:4000/TCP is not open: pod default/old has it, which was there before"}
		if got := n.list(); !slices.Equal(got, status) || len(events) != 0 {
			t.Errorf("status %q, events %q", got, events)
		}
		away = false
		time.Sleep(time.Minute)
		synctest.Wait()
		want := []string{"Pod default/new uid-new HostPortNotOpen: HostPort 0.0.0.0:4000/TCP is not open: pod default/old has it, which was there before"}
		if !slices.Equal(events, want) {
			t.Errorf("events %q", events)
		}
		change(func(w *state.WriteTxn) { tables.Pods.Delete(w, state.Name{Namespace: "default", Name: "old"}) })
		if got := n.list(); len(got) != 0 || len(events) != 1 {
			t.Errorf("when the port is free: status %q, events %q", got, events)
		}
		cancel()
		<-ended
	})
}

func TestUnanswered(t *testing.T) {
	web := state.Name{Namespace: "default", Name: "web"}
	got := unanswered(map[netip.AddrPort]rest.HealthFailure{
		netip.MustParseAddrPort("192.0.2.2:31000"): {Service: web, Err: errors.New("second")},
		netip.MustParseAddrPort("192.0.2.1:31000"): {Service: web, Err: errors.New("first")},
	}, "here")
	want := service.Notice{
		Reason:  "FailedToStartServiceHealthcheck",
		Message: "node here does not answer load balancers at healthCheckNodePort 31000: first; node here does not answer load balancers at healthCheckNodePort 31000: second",
	}
	if len(got) != 1 || got[web] != want {
		t.Errorf("got %+v", got)
	}
}
