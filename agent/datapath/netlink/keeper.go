// SPDX-License-Identifier: Apache-2.0

package netlink

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	nl "github.com/vishvananda/netlink"

	"lash.internal/lash/agent/state"
)

// Keeper keeps the devices that Lash makes for the node, and their rows in OwnDevices, for as long
// as the agent runs: what somebody deletes, renames or changes is made right again.
type Keeper struct {
	tables  *state.Tables
	plan    Plan
	sysctls *Sysctls
	log     *slog.Logger
	synced  func(*state.WriteTxn)

	mu      sync.Mutex
	known   map[string]made
	repairs uint64
	err     error
}

// NewKeeper makes the devices of the plan and returns their keeper.
func NewKeeper(tables *state.Tables, p Plan, s *Sysctls, log *slog.Logger) (*Keeper, error) {
	k := &Keeper{tables: tables, plan: p, sysctls: s, log: log, synced: tables.OwnDevices.RegisterInitializer("netlink")}
	_, err := k.ensure()
	return k, err
}

// State returns how often the devices had to be repaired since the agent runs, and why they are
// not right now, if so.
func (k *Keeper) State() (repairs uint64, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.repairs, k.err
}

// ensure makes devices and rows right. It says what it had to do to the devices.
func (k *Keeper) ensure() ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := maker{Plan: k.plan, sysctls: k.sysctls, known: k.known}
	_, err := m.ensure()
	k.err = err
	if err != nil {
		return m.changes, err
	}
	k.known = m.known
	tx := k.tables.DB.WriteTxn()
	for name, d := range m.known {
		row := state.OwnDevice{Name: name, Index: d.index, MAC: d.mac}
		if have, ok := k.tables.OwnDevices.Get(name); !ok || have != row {
			k.tables.OwnDevices.Insert(tx, row)
		}
	}
	k.synced(tx)
	tx.Commit()
	return m.changes, nil
}

// Delays between attempts to repair what cannot be repaired, unless a message comes first.
const (
	retryMin = time.Second
	retryMax = 30 * time.Second
)

// Run follows the kernel's messages until ctx ends. After each repair it calls repaired: routes and
// attachments of the devices are gone with them.
func (k *Keeper) Run(ctx context.Context, repaired func()) error {
	delay := retryMin
	for {
		err := k.follow(ctx, repaired, &delay)
		if ctx.Err() != nil {
			return nil
		}
		k.log.Warn("device watch broken, starting again", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
			delay = min(2*delay, retryMax)
		}
	}
}

func (k *Keeper) follow(ctx context.Context, repaired func(), delay *time.Duration) error {
	done := make(chan struct{})
	defer close(done)
	broken := make(chan error, 2)
	fail := func(err error) {
		select {
		case broken <- err:
		default:
		}
	}
	links, addrs := make(chan nl.LinkUpdate, 64), make(chan nl.AddrUpdate, 64)
	if err := nl.LinkSubscribeWithOptions(links, done, nl.LinkSubscribeOptions{ErrorCallback: fail}); err != nil {
		return fmt.Errorf("subscribe to links: %w", err)
	}
	if err := nl.AddrSubscribeWithOptions(addrs, done, nl.AddrSubscribeOptions{ErrorCallback: fail}); err != nil {
		return fmt.Errorf("subscribe to addresses: %w", err)
	}
	for {
		var retry <-chan time.Time
		changes, err := k.ensure()
		if len(changes) > 0 {
			k.log.Warn("devices of the node were changed by somebody else, repaired", "changes", changes)
			k.mu.Lock()
			k.repairs++
			k.mu.Unlock()
			repaired()
		}
		if err != nil {
			k.log.Warn("cannot repair the devices of the node", "error", err, "again", *delay)
			retry = time.After(*delay)
			*delay = min(2**delay, retryMax)
		} else {
			*delay = retryMin
		}
		for relevant := false; !relevant; {
			select {
			case <-ctx.Done():
				return nil
			case err := <-broken:
				return err
			case <-retry:
				relevant = true
			case u, ok := <-links:
				if !ok {
					return net.ErrClosed
				}
				relevant = k.concerns(u.Attrs().Name, u.Attrs().Index)
			case u, ok := <-addrs:
				if !ok {
					return net.ErrClosed
				}
				relevant = k.concerns("", u.LinkIndex)
			}
		}
	}
}

// concerns says whether a message about a device is about one of ours.
func (k *Keeper) concerns(name string, index int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch name {
	case HostDevice, NetDevice, VXLANDevice, HealthDevice, HealthPeer:
		return true
	}
	for _, d := range k.known {
		if index == d.index {
			return true
		}
	}
	return false
}
