// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"lash.internal/lash/agent/kube/ciliumio"
	"lash.internal/lash/agent/state"
)

// endpointSink splits CiliumEndpoints: those of other nodes become RemoteIPs rows, those of this
// node are kept for the writer that owns them.
//
// Two objects may claim one address for a moment (a pod is gone and its address is given to
// the next before the first object is deleted). The claim that came last holds, and when it is
// withdrawn an older one comes back.
type endpointSink struct {
	db      *state.DB
	table   *state.Table[netip.Addr, state.RemoteIP]
	isLocal func(node netip.Addr) bool
	changed func(name state.Name) // an object of this node came or went
	synced  func(w *state.WriteTxn)

	mu     sync.Mutex
	remote map[state.Name][]state.RemoteIP
	local  map[state.Name]*ciliumio.Endpoint
	claims map[netip.Addr][]state.Name // oldest first
}

func newEndpointSink(db *state.DB, t *state.Table[netip.Addr, state.RemoteIP], isLocal func(netip.Addr) bool, changed func(state.Name)) *endpointSink {
	return &endpointSink{
		db: db, table: t, isLocal: isLocal, changed: changed,
		synced: t.RegisterInitializer("ciliumendpoint"),
		remote: map[state.Name][]state.RemoteIP{},
		local:  map[state.Name]*ciliumio.Endpoint{},
		claims: map[netip.Addr][]state.Name{},
	}
}

// own returns the CiliumEndpoint of this node under a name, nil when there is none, and all names.
func (s *endpointSink) own(name state.Name) *ciliumio.Endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.local[name]
}

func (s *endpointSink) ownNames() []state.Name {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]state.Name, 0, len(s.local))
	for n := range s.local {
		out = append(out, n)
	}
	return out
}

func remoteRows(e *ciliumio.Endpoint, node netip.Addr) []state.RemoteIP {
	var out []state.RemoteIP
	r := state.RemoteIP{Pod: state.Name{Namespace: e.Namespace, Name: e.Name}, NodeIP: node}
	if e.Status.Identity != nil {
		r.Identity = state.IdentityID(e.Status.Identity.ID)
	}
	for _, p := range e.Status.Networking.Addressing {
		for _, a := range parseAddrs(p.IPv4, p.IPv6) {
			r.IP = a
			out = append(out, r)
		}
	}
	return out
}

func (s *endpointSink) put(obj any, touched map[netip.Addr]struct{}) (name state.Name, mine bool) {
	e := &ciliumio.Endpoint{}
	if err := ciliumio.FromUnstructured(objectOf(obj), e); err != nil {
		return state.Name{}, false
	}
	e.ManagedFields = nil
	name = state.Name{Namespace: e.Namespace, Name: e.Name}
	_, mine = s.local[name]
	delete(s.local, name)
	var rows []state.RemoteIP
	if e.Status.Networking != nil {
		node, err := netip.ParseAddr(e.Status.Networking.Node)
		switch {
		case err != nil:
		case s.isLocal(node):
			s.local[name], mine = e, true
		default:
			rows = remoteRows(e, node)
		}
	}
	s.claim(name, rows, touched)
	return name, mine
}

// claim makes rows all that an object claims. A claim that goes on keeps its age.
func (s *endpointSink) claim(name state.Name, rows []state.RemoteIP, touched map[netip.Addr]struct{}) {
	before := s.remote[name]
	claims := func(list []state.RemoteIP, ip netip.Addr) bool {
		return slices.ContainsFunc(list, func(r state.RemoteIP) bool { return r.IP == ip })
	}
	for _, r := range before {
		touched[r.IP] = struct{}{}
		if claims(rows, r.IP) {
			continue
		}
		s.claims[r.IP] = slices.DeleteFunc(s.claims[r.IP], func(n state.Name) bool { return n == name })
		if len(s.claims[r.IP]) == 0 {
			delete(s.claims, r.IP)
		}
	}
	for _, r := range rows {
		touched[r.IP] = struct{}{}
		if !claims(before, r.IP) && !slices.Contains(s.claims[r.IP], name) {
			s.claims[r.IP] = append(s.claims[r.IP], name)
		}
	}
	s.remote[name] = rows
	if len(rows) == 0 {
		delete(s.remote, name)
	}
}

// remove forgets an object and says whether it was one of this node.
func (s *endpointSink) remove(name state.Name, touched map[netip.Addr]struct{}) bool {
	s.claim(name, nil, touched)
	_, mine := s.local[name]
	delete(s.local, name)
	return mine
}

// write brings the rows of the touched addresses in line with the claims.
func (s *endpointSink) write(w *state.WriteTxn, touched map[netip.Addr]struct{}) {
	for ip := range touched {
		c := s.claims[ip]
		if len(c) == 0 {
			s.table.Delete(w, ip)
			continue
		}
		for _, r := range s.remote[c[len(c)-1]] {
			if r.IP != ip {
				continue
			}
			if old, ok := s.table.Get(ip); !ok || !reflect.DeepEqual(old, r) {
				s.table.Insert(w, r)
			}
		}
	}
}

// Add implements cache.ReflectorStore.
func (s *endpointSink) Add(obj any) error { return s.Update(obj) }

// Update implements cache.ReflectorStore.
func (s *endpointSink) Update(obj any) error {
	s.mu.Lock()
	w, touched := s.db.WriteTxn(), map[netip.Addr]struct{}{}
	name, mine := s.put(obj, touched)
	s.write(w, touched)
	w.Commit()
	s.mu.Unlock()
	if mine {
		s.changed(name)
	}
	return nil
}

// Delete implements cache.ReflectorStore.
func (s *endpointSink) Delete(obj any) error {
	name, ok := nameOf(obj)
	if !ok {
		return nil
	}
	s.mu.Lock()
	w, touched := s.db.WriteTxn(), map[netip.Addr]struct{}{}
	mine := s.remove(name, touched)
	s.write(w, touched)
	w.Commit()
	s.mu.Unlock()
	if mine {
		s.changed(name)
	}
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *endpointSink) Replace(objs []any, _ string) error {
	s.mu.Lock()
	w, touched := s.db.WriteTxn(), map[netip.Addr]struct{}{}
	notify := map[state.Name]struct{}{}
	gone := map[state.Name]struct{}{}
	for n := range s.remote {
		gone[n] = struct{}{}
	}
	for n := range s.local {
		gone[n] = struct{}{}
	}
	// A list is sorted by name; claims are as old as their objects.
	objs = slices.Clone(objs)
	slices.SortStableFunc(objs, func(a, b any) int { return createdAt(a).Compare(createdAt(b)) })
	for _, obj := range objs {
		name, mine := s.put(obj, touched)
		delete(gone, name)
		if mine {
			notify[name] = struct{}{}
		}
	}
	for n := range gone {
		if s.remove(n, touched) {
			notify[n] = struct{}{}
		}
	}
	s.write(w, touched)
	s.synced(w)
	w.Commit()
	s.mu.Unlock()
	for n := range notify {
		s.changed(n)
	}
	return nil
}

// createdAt is when an object was created, zero when it does not say.
func createdAt(obj any) time.Time {
	if m, err := meta.Accessor(objectOf(obj)); err == nil {
		return m.GetCreationTimestamp().Time
	}
	return time.Time{}
}

// Resync implements cache.ReflectorStore; there is nothing to do again.
func (s *endpointSink) Resync() error { return nil }
