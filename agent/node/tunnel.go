// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// ErrTunnelsExhausted says that there are more nodes than tunnel endpoints can be numbered.
var ErrTunnelsExhausted = errors.New("no free tunnel endpoint number")

// maxTunnels is the size of map vtep, the unused number 0 included.
const maxTunnels = 16384

// rest is how long a number is not given to another node after its node has gone: packets on
// their way and map entries that are about to be deleted may still name it.
const rest = time.Minute

// Tunnels numbers the tunnel endpoints of the other nodes: it follows the Nodes table and writes
// the Tunnels table. Numbers are kept for as long as a node has its address, and over restarts.
type Tunnels struct {
	tables   *state.Tables
	v6       bool
	log      *slog.Logger
	byIP     map[netip.Addr]uint32
	owner    map[uint32]netip.Addr
	released map[uint32]time.Time
	now      func() time.Time
	synced   func(*state.WriteTxn)
}

// NewTunnels returns a numberer for an underlay of the given family. restored is the content of
// map vtep as the last agent left it.
func NewTunnels(tables *state.Tables, v6 bool, restored map[uint32]bpf.Vtep, log *slog.Logger) *Tunnels {
	t := &Tunnels{
		tables: tables, v6: v6, log: log, byIP: map[netip.Addr]uint32{}, owner: map[uint32]netip.Addr{},
		released: map[uint32]time.Time{}, now: time.Now, synced: tables.Tunnels.RegisterInitializer("nodes"),
	}
	for i, v := range restored {
		if ip := bpf.FromIP(v.Ip); ip.IsValid() && i > 0 {
			t.byIP[ip], t.owner[i] = i, ip
		}
	}
	return t
}

// Run follows the nodes until ctx ends.
func (t *Tunnels) Run(ctx context.Context) {
	cursor := t.tables.Nodes.Changes()
	defer cursor.Close()
	complete := false
	for {
		ready, whenReady := t.tables.Nodes.Initialized()
		_, changed := cursor.Next()
		t.update(ready && !complete, ready)
		complete = complete || ready
		if complete {
			whenReady = nil
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-whenReady:
		}
	}
}

// update makes the table equal to the nodes. Numbers are released only when the nodes are complete.
func (t *Tunnels) update(first, complete bool) {
	wanted := map[netip.Addr]bool{}
	for _, n := range t.tables.Nodes.All() {
		if ip := n.Addr(t.v6); !n.Local && ip.IsValid() {
			wanted[ip] = true
		}
	}
	tx := t.tables.DB.WriteTxn()
	for ip := range wanted {
		i, err := t.number(ip)
		if err != nil {
			t.log.Error("node cannot be reached through the tunnel", "address", ip, "error", err)
			continue
		}
		if have, ok := t.tables.Tunnels.Get(ip); !ok || have.Index != i {
			t.tables.Tunnels.Insert(tx, state.Tunnel{IP: ip, Index: i})
		}
	}
	if complete {
		for ip, i := range t.byIP {
			if !wanted[ip] {
				t.tables.Tunnels.Delete(tx, ip)
				delete(t.byIP, ip)
				delete(t.owner, i)
				t.released[i] = t.now()
			}
		}
	}
	if first {
		t.synced(tx)
	}
	tx.Commit()
}

func (t *Tunnels) number(ip netip.Addr) (uint32, error) {
	if i, ok := t.byIP[ip]; ok {
		return i, nil
	}
	for i := uint32(1); i < maxTunnels; i++ {
		at, resting := t.released[i]
		if _, taken := t.owner[i]; taken || (resting && t.now().Sub(at) < rest) {
			continue
		}
		delete(t.released, i)
		t.byIP[ip], t.owner[i] = i, ip
		return i, nil
	}
	return 0, fmt.Errorf("%w: %d nodes at most", ErrTunnelsExhausted, maxTunnels-1)
}
