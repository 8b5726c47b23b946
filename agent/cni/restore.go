// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"lash.internal/lash/agent/cni/wire"
	"lash.internal/lash/agent/file"
	"lash.internal/lash/agent/state"
)

// saved is the file of an endpoint.
type saved struct {
	Endpoint state.Endpoint
	Link     Link
}

func (s *Server) file(id uint16) string {
	return filepath.Join(s.o.StateDir, strconv.Itoa(int(id))+".json")
}

func (s *Server) save(ep state.Endpoint, link Link) error {
	body, err := json.Marshal(saved{ep, link})
	if err != nil {
		return fmt.Errorf("encode endpoint %d: %w", ep.ID, err)
	}
	if err := file.Write(s.file(ep.ID), body, 0o600); err != nil {
		return fmt.Errorf("save endpoint %d: %w", ep.ID, err)
	}
	return nil
}

// Restore turns the files of an earlier run into rows, replays the delete queue and says that the
// Endpoints table is complete. Endpoints whose interface is gone are dropped: their addresses are free
// when their flows are gone.
func (s *Server) Restore(ctx context.Context) error {
	for _, d := range []string{s.o.StateDir, s.o.QueueDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("restore endpoints: %w", err)
		}
	}
	files, err := savedFiles(s.o.StateDir)
	if err != nil {
		return fmt.Errorf("restore endpoints: %w", err)
	}
	w := s.t.DB.WriteTxn()
	var gone []saved
	restored := 0
	for _, path := range files {
		sv, err := readSaved(path)
		if err != nil {
			s.log.Warn("endpoint file is not readable, dropped", "file", path, "error", err)
			_ = os.Remove(path)
			continue
		}
		index, ok := s.o.Datapath.HasLink(sv.Endpoint.IfName)
		if !ok {
			gone = append(gone, sv)
			continue
		}
		ep := sv.Endpoint
		ep.IfIndex, ep.State = index, state.EndpointRestoring
		if _, err := s.reserve(sv, ep.Pod.String()); err != nil {
			s.log.Warn("address of a restored endpoint cannot be reserved; the pod keeps it until it is deleted", "pod", ep.Pod.String(), "error", err)
		}
		s.t.Endpoints.Insert(w, ep)
		restored++
	}
	s.restore(w)
	w.Commit()
	for _, sv := range gone {
		// An owner of its own: what a pod that is there has is not taken from it.
		taken, err := s.reserve(sv, fmt.Sprintf("%s (deleted, endpoint %d)", sv.Endpoint.Pod, sv.Endpoint.ID))
		if err != nil {
			s.log.Warn("address of an endpoint that is gone is not its own any more", "pod", sv.Endpoint.Pod.String(), "error", err)
		}
		s.release(sv.Endpoint.ID, taken...)
	}
	s.log.Info("endpoints restored", "restored", restored, "gone", len(gone))
	return s.replay(ctx)
}

// reserve takes the number and the addresses of an endpoint of an earlier run. It returns those that it
// could take.
func (s *Server) reserve(sv saved, owner string) (taken []netip.Addr, err error) {
	ep := sv.Endpoint
	s.mu.Lock()
	s.links[ep.ID] = sv.Link
	s.next = max(s.next, ep.ID)
	s.mu.Unlock()
	for _, a := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if !a.IsValid() {
			continue
		}
		if rerr := s.o.Addresses.Reserve(owner, a); rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		taken = append(taken, a)
	}
	return taken, err
}

// savedFiles returns the paths of the files of endpoints in a directory.
func savedFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if n := e.Name(); !strings.HasPrefix(n, ".") && strings.HasSuffix(n, ".json") {
			out = append(out, filepath.Join(dir, n))
		}
	}
	return out, nil
}

// SavedAddrs returns the addresses of the endpoints that an earlier run has left in a directory, which need
// not exist. A file that cannot be read has none: Restore says so.
func SavedAddrs(dir string) ([]netip.Addr, error) {
	files, err := savedFiles(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []netip.Addr
	for _, path := range files {
		sv, err := readSaved(path)
		if err != nil {
			continue
		}
		for _, a := range []netip.Addr{sv.Endpoint.IPv4, sv.Endpoint.IPv6} {
			if a.IsValid() {
				out = append(out, a)
			}
		}
	}
	return out, nil
}

func readSaved(path string) (saved, error) {
	var sv saved
	body, err := os.ReadFile(path)
	if err != nil {
		return sv, err
	}
	if err := json.Unmarshal(body, &sv); err != nil {
		return sv, err
	}
	if sv.Endpoint.ID == 0 || sv.Endpoint.IfName == "" {
		return sv, errors.New("no endpoint in it")
	}
	return sv, nil
}

// replay does the deletions that the plugin queued while no agent answered.
func (s *Server) replay(ctx context.Context) error {
	files, err := os.ReadDir(s.o.QueueDir)
	if err != nil {
		return fmt.Errorf("delete queue: %w", err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), wire.QueueSuffix) {
			continue
		}
		path := filepath.Join(s.o.QueueDir, f.Name())
		body, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("delete queue: %w", err)
		}
		var a wire.Attachment
		if err := json.Unmarshal(body, &a); err != nil {
			s.log.Warn("entry of the delete queue is not readable, dropped", "file", path, "error", err)
		} else if err := s.Del(ctx, a); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("delete queue: %w", err)
		}
	}
	return nil
}

// queueEvery is how often the delete queue is looked at: the plugin may add to it in the moment
// between the replay at start and the opening of the socket.
const queueEvery = 15 * time.Second

// Run brings restored endpoints back to ready, follows changes of labels and replays the delete
// queue, until ctx is done.
func (s *Server) Run(ctx context.Context) error {
	for _, ep := range s.t.Endpoints.All() {
		if ep.State == state.EndpointRestoring {
			s.revive(ctx, ep)
		}
	}
	tick := time.NewTicker(queueEvery)
	defer tick.Stop()
	for {
		pods, spaces, ids := s.t.Pods.Watch(), s.t.Namespaces.Watch(), s.t.Identities.Watch()
		again := s.relabel(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-pods:
		case <-spaces:
		case <-ids:
		case <-again:
		case <-tick.C:
			if err := s.replay(ctx); err != nil {
				s.log.Warn("cannot replay the delete queue, will try again", "error", err)
			}
		}
	}
}

func (s *Server) revive(ctx context.Context, ep state.Endpoint) {
	ep, rev, ok := s.change(ep.ID, func(*state.Endpoint) {})
	if !ok {
		return
	}
	if err := s.o.Datapath.Publish(ctx, ep, rev); err != nil {
		s.log.Warn("cannot program restored endpoint", "endpoint", ep.ID, "pod", ep.Pod.String(), "error", err)
		return
	}
	s.change(ep.ID, func(e *state.Endpoint) {
		if e.State == state.EndpointRestoring {
			e.State = state.EndpointReady
		}
	})
}

// relabel gives every endpoint the identity that its pod's labels ask for now. Endpoints whose
// identity was collected get it again. The channel fires when a failure should be tried again.
func (s *Server) relabel(ctx context.Context) <-chan time.Time {
	for _, t := range []interface {
		Initialized() (bool, <-chan struct{})
	}{s.t.Pods, s.t.Namespaces, s.t.Identities} {
		if ok, _ := t.Initialized(); !ok {
			return nil
		}
	}
	var again <-chan time.Time
	for _, ep := range s.t.Endpoints.All() {
		pod, ok := s.t.Pods.Get(ep.Pod)
		ns, nsok := s.t.Namespaces.Get(ep.Pod.Namespace)
		if !ok || !nsok || pod.UID != ep.PodUID {
			continue
		}
		want := s.o.Identities.Labels(pod, ns)
		row, known := s.t.Identities.Get(ep.Identity)
		if known && slices.Equal(want, ep.Labels) && slices.Equal(want, row.Labels) && slices.Equal(pod.NamedPorts, ep.NamedPorts) {
			continue
		}
		id, err := s.o.Identities.Allocate(ctx, want)
		if err != nil {
			s.log.Warn("cannot renew identity, will try again", "endpoint", ep.ID, "pod", ep.Pod.String(), "error", err)
			again = time.After(2 * time.Second)
			continue
		}
		if id != ep.Identity {
			s.log.Info("identity changed", "endpoint", ep.ID, "pod", ep.Pod.String(), "from", ep.Identity, "to", id)
		}
		s.change(ep.ID, func(e *state.Endpoint) {
			e.Labels, e.Identity, e.NamedPorts = want, id, pod.NamedPorts
		})
	}
	return again
}
