// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"sync"
	"time"

	"golang.org/x/net/bpf"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/datapath/attach"
	"lash.internal/lash/agent/datapath/maps"
	"lash.internal/lash/agent/datapath/netlink"
	"lash.internal/lash/agent/health"
	"lash.internal/lash/agent/state"
	bpfmaps "lash.internal/lash/bpf"
)

// reopenDelay is the time between attempts to answer at a device that cannot be opened, unless it is
// made anew first.
const reopenDelay = time.Second

// probe is how this node finds out whether its own dataplane carries packets. It is nil while there is
// no endpoint that could be asked.
type probe struct {
	*health.Probe
	a      *Agent
	number uint16 // of the endpoint
}

// newProbe makes the row of the health endpoint, after those of all pods. The endpoint keeps the number
// that the map has of it, since flows refer to that.
func (a *Agent) newProbe() error {
	addrs := a.pool.Health()
	if len(addrs) == 0 {
		if a.cfg.EndpointHealthChecking {
			a.log.Warn("no address of the pod range is left for the health endpoint: nothing probes the datapath of this node")
		}
		return nil
	}
	eps, err := maps.Target[uint32, bpfmaps.Ep](a.kernel.maps, "ep")
	if err != nil {
		return err
	}
	before, err := eps.Load(context.Background())
	if err != nil {
		return fmt.Errorf("map ep: %w", err)
	}
	device, _ := a.tables.OwnDevices.Get(state.HealthDevice)
	want := before[uint32(device.Index)]
	if want.Identity != uint32(state.IdentityHealth) {
		want.EpId = 0
	}
	number, err := a.pods.TakeNumber(uint16(want.EpId))
	if err != nil {
		return fmt.Errorf("number of the health endpoint: %w", err)
	}
	p := &probe{a: a, number: number}
	ask := health.Ask(a.pool.Routers())
	p.Probe = &health.Probe{Targets: addrs, Log: a.log, Ask: func(ctx context.Context, to netip.Addr) error {
		if err := ask(ctx, to); err != nil {
			return err
		}
		return p.passed()
	}}
	p.follow()
	a.mu.Lock()
	a.probe = p
	a.mu.Unlock()
	return nil
}

// follow makes the row of the endpoint what its devices are, and returns who the endpoint is. ok is false
// while there are none.
func (p *probe) follow() (self health.Self, ok bool) {
	t := p.a.tables
	device, ok1 := t.OwnDevices.Get(state.HealthDevice)
	peer, ok2 := t.OwnDevices.Get(state.HealthPeer)
	if !ok1 || !ok2 {
		return self, false
	}
	self = health.NewSelf(peer, p.Targets)
	row := self.Row(p.number, device)
	if have, ok := t.Endpoints.Get(p.number); !ok || !reflect.DeepEqual(have, row) {
		tx := t.DB.WriteTxn()
		t.Endpoints.Insert(tx, row)
		tx.Commit()
	}
	return self, true
}

// runProbe asks the endpoint until ctx ends, if there is one.
func (a *Agent) runProbe(ctx context.Context) error {
	if a.probe == nil {
		return nil
	}
	return a.probe.Run(ctx)
}

// passed says whether an answer has come through the programs: with none on the device the kernel's own
// routes lead to the endpoint and back. What cannot be found out is no failure.
func (p *probe) passed() error {
	row, _ := p.a.tables.Endpoints.Get(p.number)
	for _, h := range podHooks(row) {
		want, ok := p.a.hook(h)
		seen, err := attach.OnDevice(h)
		if ok && err == nil && p.a.judge(api.Attachment{}, want, seen, nil).State == api.AttachmentMissing {
			return fmt.Errorf("it answers, but past the programs: %s is not on %s", want.Name, row.IfName)
		}
	}
	return nil
}

// answer is the far end of the endpoint, until ctx ends: what the kernel has made of the devices is
// followed.
func (p *probe) answer(ctx context.Context) error {
	for ctx.Err() == nil {
		changed := p.a.tables.OwnDevices.Watch()
		self, ok := p.follow()
		serving, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		if ok {
			for _, filter := range [][]bpf.Instruction{health.Questions(p.a.pool.Routers()), health.Pings()} {
				wg.Go(func() { p.serve(serving, self, filter) })
			}
		}
		for again := false; !again; {
			select {
			case <-ctx.Done():
				again = true
			case <-changed:
				changed = p.a.tables.OwnDevices.Watch()
				now, there := p.follow()
				again = now != self || there != ok
			}
		}
		stop()
		wg.Wait()
	}
	return nil
}

// serve answers what passes a filter. A device that goes down ends the socket, so it is opened again.
func (p *probe) serve(ctx context.Context, self health.Self, filter []bpf.Instruction) {
	said := false
	for ctx.Err() == nil {
		var conn io.ReadWriteCloser
		conn, err := netlink.OpenPackets(netlink.HealthPeer, filter)
		if err == nil {
			err = self.Serve(ctx, conn)
		}
		if err != nil && !said {
			p.a.log.Warn("nobody answers at the health endpoint, will try again", "error", err)
			said = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(reopenDelay):
		}
	}
}

// probed is what the probe has found out; nil where there is none.
func (a *Agent) probed() error {
	a.mu.Lock()
	p := a.probe
	a.mu.Unlock()
	if p == nil {
		return nil
	}
	return p.Err()
}

// probeStatus is the same for status.
func (a *Agent) probeStatus() api.Status {
	a.mu.Lock()
	p := a.probe
	a.mu.Unlock()
	switch {
	case !a.cfg.EndpointHealthChecking:
		return api.Status{State: api.StateDisabled, Msg: "enable-endpoint-health-checking is false"}
	case p == nil && a.serving() == nil:
		return api.Status{State: api.StateDisabled, Msg: "the pod range has no address for it"}
	case p == nil:
		return api.Status{State: api.StateWarning, Msg: "the agent is not that far yet"}
	}
	switch err := p.Err(); {
	case errors.Is(err, health.ErrPending):
		return api.Status{State: api.StateWarning, Msg: err.Error()}
	case err != nil:
		return api.Status{State: api.StateFailure, Msg: err.Error()}
	}
	return api.Status{State: api.StateOk, Msg: p.Text()}
}
