// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Errors of the store; test with errors.Is.
var (
	errExists   = errors.New("exists already")
	errMissing  = errors.New("not found")
	errConflict = errors.New("has changed meanwhile")
	errGone     = errors.New("too old resource version")
)

// history is how many changes of a kind a watch may be behind.
const history = 1 << 16

// store holds objects and their changes.
type store struct {
	clock func() int64

	mu      sync.Mutex
	version uint64
	parts   map[schema.GroupVersionResource]*part
}

// part is the objects of one kind.
type part struct {
	kind
	objects map[string]*object
	log     []*Change // ascending
	floor   uint64    // changes up to here are not in the log
	changed chan struct{}
	readers int // watches
}

// Change is one change of an object.
type Change struct {
	version  uint64
	old, now *object // nil: there was none, there is none
	deleted  *object // old with the version of its end

	mu   sync.Mutex
	sent int64
	left int
	done chan struct{}
}

// Sent waits until every watch of that time has got the change and returns when the first of them was
// sent it, by the clock of the server. Without a watch it is 0.
func (c *Change) Sent() int64 {
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent
}

// note is called by a watch before it sends the change; passed after that, and also when it does not.
func (c *Change) note(at int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sent == 0 {
		c.sent = at
	}
}

func (c *Change) passed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left == 0 {
		return // it waits for nobody
	}
	if c.left--; c.left == 0 {
		close(c.done)
	}
}

func newStore(clock func() int64) *store {
	s := &store{clock: clock, version: 1, parts: map[schema.GroupVersionResource]*part{}}
	for _, k := range kinds {
		s.parts[k.GroupVersionResource] = &part{kind: k, objects: map[string]*object{}, changed: make(chan struct{})}
	}
	return s
}

func versionText(v uint64) string { return strconv.FormatUint(v, 10) }

// mode is what a write expects to find.
type mode int

const (
	either mode = iota
	create
	update
)

// stamp gives an object what a server gives it.
func (s *store) stamp(acc metav1.Object, old *object, version uint64) error {
	if old == nil {
		acc.SetUID(types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012x", version)))
		acc.SetCreationTimestamp(metav1.NewTime(time.Now().Truncate(time.Second)))
	} else {
		was, _, err := old.decode()
		if err != nil {
			return err
		}
		acc.SetUID(was.GetUID())
		acc.SetCreationTimestamp(was.GetCreationTimestamp())
	}
	acc.SetResourceVersion(versionText(version))
	return nil
}

// write puts an object in place of what is there. acc is its metadata, encode makes its stored form.
func (s *store) write(k kind, m mode, acc metav1.Object, encode func() (*object, error)) (*Change, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.parts[k.GroupVersionResource]
	key := acc.GetNamespace() + "/" + acc.GetName()
	old := p.objects[key]
	switch {
	case m == create && old != nil:
		return nil, fmt.Errorf("%s %s: %w", k.name, key, errExists)
	case m == update && old == nil:
		return nil, fmt.Errorf("%s %s: %w", k.name, key, errMissing)
	case m == update && acc.GetResourceVersion() != "" && acc.GetResourceVersion() != versionText(old.version):
		return nil, fmt.Errorf("%s %s: %w", k.name, key, errConflict)
	}
	if err := s.stamp(acc, old, s.version+1); err != nil {
		return nil, err
	}
	now, err := encode()
	if err != nil {
		return nil, err
	}
	s.version++
	now.version = s.version
	p.objects[key] = now
	return p.append(&Change{version: s.version, old: old, now: now}), nil
}

// remove takes an object away.
func (s *store) remove(k kind, key string) (*Change, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.parts[k.GroupVersionResource]
	old := p.objects[key]
	if old == nil {
		return nil, fmt.Errorf("%s %s: %w", k.name, key, errMissing)
	}
	last, err := old.at(s.version + 1)
	if err != nil {
		return nil, err
	}
	s.version++
	delete(p.objects, key)
	return p.append(&Change{version: s.version, old: old, deleted: last}), nil
}

// append tells the watches.
func (p *part) append(c *Change) *Change {
	c.done = make(chan struct{})
	if c.left = p.readers; c.left == 0 {
		close(c.done)
	}
	p.log = append(p.log, c)
	if len(p.log) > 2*history {
		p.floor = p.log[len(p.log)-history-1].version
		p.log = slices.Clone(p.log[len(p.log)-history:])
	}
	close(p.changed)
	p.changed = make(chan struct{})
	return c
}

// selection is what a client wants to see.
type selection struct {
	namespace string
	labels    labels.Selector
	fields    fields.Selector
}

func (s selection) has(o *object) bool {
	if o == nil || s.namespace != "" && o.namespace != s.namespace || !s.labels.Matches(labels.Set(o.labels)) {
		return false
	}
	return s.fields.Empty() || s.fields.Matches(fields.Set{
		"metadata.name": o.objName, "metadata.namespace": o.namespace, "spec.nodeName": o.nodeName, "spec.clusterIP": o.clusterIP,
	})
}

// of is what a change looks like through a selection.
func (s selection) of(c *Change) (event string, o *object) {
	was, is := s.has(c.old), s.has(c.now)
	switch {
	case is && was:
		return "MODIFIED", c.now
	case is:
		return "ADDED", c.now
	case was && c.now != nil:
		return "DELETED", c.now
	case was:
		return "DELETED", c.deleted
	}
	return "", nil
}

// list returns the selected objects in the order of their keys, and the version of the store.
func (s *store) list(k kind, sel selection) ([]*object, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.parts[k.GroupVersionResource]
	return p.selected(sel), s.version
}

func (p *part) selected(sel selection) []*object {
	out := make([]*object, 0, len(p.objects))
	for _, o := range p.objects {
		if sel.has(o) {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b *object) int { return strings.Compare(a.key(), b.key()) })
	return out
}

func (s *store) get(k kind, key string) *object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.parts[k.GroupVersionResource].objects[key]
}

// encode is one object for a client.
func (s *store) encode(f form, o *object) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f.encode(o)
}

func (s *store) encodeList(f form, k kind, objs []*object, version uint64) ([]byte, error) {
	if !f.proto { // texts are made when asked for
		s.mu.Lock()
		defer s.mu.Unlock()
	}
	return f.list(k, objs, version)
}

func (s *store) frame(f form, event string, o *object) ([]byte, error) {
	if !f.proto {
		s.mu.Lock()
		defer s.mu.Unlock()
	}
	return f.frame(event, o)
}

// cursor is where a watch is in the changes of a kind.
type cursor struct {
	s  *store
	p  *part
	at uint64
}

// follow begins a watch behind a version; 0 and what is not there yet are now. With whole it gives the
// objects of that moment first.
func (s *store) follow(k kind, after uint64, whole bool, sel selection) (*cursor, []*object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.parts[k.GroupVersionResource]
	if !whole && after != 0 && after < p.floor {
		return nil, nil, fmt.Errorf("%w: %d, the oldest is %d", errGone, after, p.floor)
	}
	c := &cursor{s: s, p: p, at: s.version}
	var objs []*object
	switch {
	case whole || after == 0:
		objs = p.selected(sel)
	case after < s.version:
		c.at = after
	}
	p.readers++
	// Changes before this moment do not wait for this watch, so each counts one more.
	for _, ch := range p.log {
		if ch.version > c.at {
			ch.mu.Lock()
			if ch.left > 0 {
				ch.left++
			}
			ch.mu.Unlock()
		}
	}
	return c, objs, nil
}

// next gives the changes since the last call, and the channel that closes at the next one.
func (c *cursor) next() ([]*Change, uint64, <-chan struct{}) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	i, _ := slices.BinarySearchFunc(c.p.log, c.at+1, func(ch *Change, v uint64) int {
		switch {
		case ch.version < v:
			return -1
		case ch.version > v:
			return 1
		}
		return 0
	})
	out := slices.Clone(c.p.log[i:])
	c.at = c.s.version
	return out, c.at, c.p.changed
}

// end lets go of the watch: what it has not sent yet does not wait for it.
func (c *cursor) end(unsent []*Change) {
	more, _, _ := c.next()
	for _, ch := range append(unsent, more...) {
		ch.passed()
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.p.readers--
}
