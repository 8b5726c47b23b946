// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"lash.internal/lash/agent/state"
)

// ErrExhausted says that no number is free for a new label set.
var ErrExhausted = errors.New("identity numbers are exhausted")

// Store holds the cluster's identities.
type Store interface {
	// Get returns the label set of a number; ok is false when it is free.
	Get(ctx context.Context, id state.IdentityID) (set []string, ok bool, err error)
	// Find returns the numbers of a label set, ascending.
	Find(ctx context.Context, set []string) ([]state.IdentityID, error)
	// Create claims a number; it fails when the number is taken.
	Create(ctx context.Context, id state.IdentityID, set []string) error
}

// Options configures an Allocator.
type Options struct {
	ClusterName string
	Filter      *Filter
	// Taken recognizes the error of Store.Create that means that a number is in use.
	Taken func(error) bool
	Log   *slog.Logger
}

// Allocator gives label sets their numbers.
//
// The candidates for a set are a sequence of numbers that follows from the set alone. Agents that
// meet a new set at the same time therefore try to create the same object, one of them wins and
// the others find its labels equal to theirs: all converge without a lock.
type Allocator struct {
	t     *state.Tables
	store Store
	o     Options

	mu    sync.Mutex
	locks map[string]*keyLock
}

type keyLock struct {
	sync.Mutex
	users int
}

// maxAttempts bounds how many numbers are tried at the API server for one set.
const maxAttempts = 64

// Reserved returns the rows of the identities whose numbers are fixed.
func Reserved() []state.Identity {
	return []state.Identity{
		{ID: state.IdentityHost, Labels: []string{"reserved:host"}},
		{ID: state.IdentityWorld, Labels: []string{"reserved:world"}},
		{ID: state.IdentityUnmanaged, Labels: []string{"reserved:unmanaged"}},
		{ID: state.IdentityHealth, Labels: []string{"reserved:health"}},
		{ID: state.IdentityInit, Labels: []string{"reserved:init"}},
		{ID: state.IdentityRemoteNode, Labels: []string{"reserved:remote-node"}},
		{ID: state.IdentityKubeAPIServer, Labels: []string{"reserved:kube-apiserver", "reserved:remote-node"}},
		{ID: state.IdentityIngress, Labels: []string{"reserved:ingress"}},
		{ID: state.IdentityWorldIPv4, Labels: []string{"reserved:world-ipv4"}},
		{ID: state.IdentityWorldIPv6, Labels: []string{"reserved:world-ipv6"}},
	}
}

// New makes an Allocator and writes the reserved identities into their table.
func New(t *state.Tables, store Store, o Options) *Allocator {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	w := t.DB.WriteTxn()
	for _, r := range Reserved() {
		t.Identities.Insert(w, r)
	}
	w.Commit()
	return &Allocator{t: t, store: store, o: o, locks: map[string]*keyLock{}}
}

// Labels returns the label set of a pod.
func (a *Allocator) Labels(pod state.Pod, ns state.Namespace) []string {
	return a.o.Filter.PodLabels(pod, ns, a.o.ClusterName)
}

// Allocate returns the number of a sorted label set, and makes one when the cluster has none. The
// Identities row is there when it returns. It asks the API server only for sets that no row has.
func (a *Allocator) Allocate(ctx context.Context, set []string) (state.IdentityID, error) {
	if id, ok := a.known(set); ok {
		return id, nil
	}
	unlock := a.lock(Key(set))
	defer unlock()
	if id, ok := a.known(set); ok {
		return id, nil
	}
	ids, err := a.store.Find(ctx, set)
	if err != nil {
		return 0, fmt.Errorf("allocate identity: %w", err)
	}
	if len(ids) > 0 {
		a.insert(ids[0], set)
		return ids[0], nil
	}
	id, err := a.create(ctx, set)
	if err != nil {
		return 0, fmt.Errorf("allocate identity: %w", err)
	}
	a.insert(id, set)
	a.o.Log.Info("new identity", "identity", id, "labels", strings.Join(set, ","))
	return id, nil
}

// Key is the one string that stands for a label set, as index "labels" of the Identities table
// has it.
func Key(set []string) string { return state.LabelsKey(set) }

// known looks a set up in the table; of several numbers the lowest is everybody's choice.
func (a *Allocator) known(set []string) (state.IdentityID, bool) {
	var best state.IdentityID
	for _, r := range a.t.Identities.ByIndex("labels", Key(set)) {
		if best == 0 || r.ID < best {
			best = r.ID
		}
	}
	return best, best != 0
}

func (a *Allocator) insert(id state.IdentityID, set []string) {
	if r, ok := a.t.Identities.Get(id); ok && slices.Equal(r.Labels, set) {
		return
	}
	w := a.t.DB.WriteTxn()
	a.t.Identities.Insert(w, state.Identity{ID: id, Labels: slices.Clone(set)})
	w.Commit()
}

func (a *Allocator) create(ctx context.Context, set []string) (state.IdentityID, error) {
	tries := 0
	for i := uint32(0); i < 1<<18 && tries < maxAttempts; i++ {
		id := candidate(set, i)
		if r, ok := a.t.Identities.Get(id); ok && !slices.Equal(r.Labels, set) {
			continue
		}
		tries++
		err := a.store.Create(ctx, id, set)
		if err == nil {
			return id, nil
		}
		if !a.o.Taken(err) {
			return 0, err
		}
		have, ok, err := a.store.Get(ctx, id)
		if err != nil {
			return 0, err
		}
		if ok && slices.Equal(have, set) {
			return id, nil
		}
	}
	return 0, fmt.Errorf("%w: tried %d numbers for %s", ErrExhausted, tries, strings.Join(set, ","))
}

// candidate is the i-th number to try for a set.
func candidate(set []string, i uint32) state.IdentityID {
	h := sha256.New()
	_ = binary.Write(h, binary.BigEndian, i)
	for _, l := range set {
		h.Write([]byte(l))
		h.Write([]byte{0})
	}
	n := binary.BigEndian.Uint64(h.Sum(nil))
	return state.IdentityMinimal + state.IdentityID(n%uint64(state.IdentityMaximal-state.IdentityMinimal+1))
}

// lock serializes the allocation of one set.
func (a *Allocator) lock(key string) (unlock func()) {
	a.mu.Lock()
	l := a.locks[key]
	if l == nil {
		l = &keyLock{}
		a.locks[key] = l
	}
	l.users++
	a.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		a.mu.Lock()
		if l.users--; l.users == 0 {
			delete(a.locks, key)
		}
		a.mu.Unlock()
	}
}
