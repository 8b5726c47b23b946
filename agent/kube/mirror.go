// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"

	"lash.internal/lash/agent/state"
)

// Health is the state of one mirrored resource.
type Health struct {
	Resource string    `json:"resource"`
	Synced   bool      `json:"synced"`
	Error    string    `json:"error,omitempty"` // of the last list or watch, empty when it worked
	Since    time.Time `json:"since"`           // of Error or of its absence
}

// feed is one list-and-watch of a resource into a sink.
type feed struct {
	resource string
	lw       *cache.ListWatch
	client   any // asked whether it can stream lists
	expected any
	sink     cache.ReflectorStore

	mu     sync.Mutex
	health Health
}

func (f *feed) report(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	msg := ""
	if err != nil && !errors.Is(err, context.Canceled) {
		msg = err.Error()
	}
	if f.health.Since.IsZero() || f.health.Error != msg {
		f.health.Since = time.Now()
	}
	f.health.Error = msg
}

func (f *feed) setSynced() {
	f.mu.Lock()
	f.health.Synced = true
	f.mu.Unlock()
}

func (f *feed) snapshot() Health {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.health
	h.Resource = f.resource
	return h
}

// run lists and watches until ctx is done. After a failure it waits 0.2 to 5 s, twice as long
// each time, so that a node is back soon after the API server and a big cluster does not stampede.
func (f *feed) run(ctx context.Context) {
	inner := *f.lw
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			obj, err := inner.ListWithContextFunc(ctx, o)
			f.report(err)
			return obj, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := inner.WatchFuncWithContext(ctx, o)
			f.report(err)
			return w, err
		},
	}
	r := cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, f.client), f.expected, &syncedStore{f.sink, f}, cache.ReflectorOptions{
		Name:    f.resource,
		Backoff: &wait.Backoff{Duration: 200 * time.Millisecond, Cap: 5 * time.Second, Steps: 6, Factor: 2, Jitter: 0.5},
	})
	r.RunWithContext(ctx)
}

// syncedStore notes the first full set.
type syncedStore struct {
	cache.ReflectorStore
	f *feed
}

// Transformer implements cache.TransformingStore: a first set is collected object by object, without
// what no row is made of.
func (s *syncedStore) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		trim(obj)
		return obj, nil
	}
}

// trim drops the parts of large numbers of objects that nobody reads. The object is the caller's own.
func trim(obj any) {
	switch o := obj.(type) {
	case *corev1.Service:
		o.ManagedFields, o.OwnerReferences, o.Spec.Selector = nil, nil, nil
	case *discoveryv1.EndpointSlice:
		o.ManagedFields, o.OwnerReferences = nil, nil
		for i := range o.Endpoints {
			o.Endpoints[i].TargetRef = nil
		}
	case *corev1.Pod:
		o.ManagedFields = nil
	}
}

func (s *syncedStore) Replace(objs []any, rv string) error {
	err := s.ReflectorStore.Replace(objs, rv)
	if err == nil {
		s.f.setSynced()
	}
	return err
}

// dynamicFeed mirrors a kind of cilium.io.
func dynamicFeed(c dynamic.Interface, gvr schema.GroupVersionResource, selector string, sink cache.ReflectorStore) *feed {
	return &feed{
		resource: gvr.Resource + "." + gvr.Group,
		client:   c,
		expected: &unstructured.Unstructured{},
		sink:     sink,
		lw: &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				o.LabelSelector = selector
				return c.Resource(gvr).List(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				o.LabelSelector = selector
				return c.Resource(gvr).Watch(ctx, o)
			},
		},
	}
}

type typedClient[L runtime.Object] interface {
	List(ctx context.Context, o metav1.ListOptions) (L, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// typedFeed mirrors a built-in kind; fields is a field selector.
func typedFeed[L runtime.Object](resource string, c typedClient[L], fields string, expected, client any, sink cache.ReflectorStore) *feed {
	return &feed{
		resource: resource,
		client:   client,
		expected: expected,
		sink:     sink,
		lw: &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				o.FieldSelector = fields
				return c.List(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				o.FieldSelector = fields
				return c.Watch(ctx, o)
			},
		},
	}
}

// mirror keeps the rows of a table equal to the objects of a resource.
type mirror[K comparable, R any] struct {
	db     *state.DB
	table  *state.Table[K, R]
	row    func(obj any) (K, R, bool) // false: the object gives no row
	key    func(obj any) (K, bool)    // also of objects that give no row
	synced func(w *state.WriteTxn)

	mu   sync.Mutex
	mine map[K]struct{} // the rows that it wrote; nil: all of the table
}

func newMirror[K comparable, R any](db *state.DB, t *state.Table[K, R], source string, row func(any) (K, R, bool), key func(any) (K, bool)) *mirror[K, R] {
	return &mirror[K, R]{
		db: db, table: t, row: row, key: key,
		synced: t.RegisterInitializer(source),
	}
}

// amongOthers has a mirror touch no row that it did not write.
func (m *mirror[K, R]) amongOthers() *mirror[K, R] {
	m.mine = map[K]struct{}{}
	return m
}

func (m *mirror[K, R]) put(w *state.WriteTxn, obj any) {
	k, r, ok := m.row(obj)
	if !ok {
		if k, ok = m.key(obj); ok {
			m.drop(w, k)
		}
		return
	}
	if m.mine != nil {
		m.mine[k] = struct{}{}
	}
	if old, had := m.table.Get(k); !had || !reflect.DeepEqual(old, r) {
		m.table.Insert(w, r)
	}
}

func (m *mirror[K, R]) drop(w *state.WriteTxn, k K) {
	if _, ok := m.mine[k]; ok || m.mine == nil {
		delete(m.mine, k)
		m.table.Delete(w, k)
	}
}

// written are the keys of the rows that it wrote.
func (m *mirror[K, R]) written() map[K]struct{} {
	if m.mine != nil {
		return maps.Clone(m.mine)
	}
	out := map[K]struct{}{}
	for k := range m.table.All() {
		out[k] = struct{}{}
	}
	return out
}

// Add implements cache.ReflectorStore.
func (m *mirror[K, R]) Add(obj any) error { return m.Update(obj) }

// Update implements cache.ReflectorStore.
func (m *mirror[K, R]) Update(obj any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.db.WriteTxn()
	m.put(w, obj)
	w.Commit()
	return nil
}

// Delete implements cache.ReflectorStore.
func (m *mirror[K, R]) Delete(obj any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.db.WriteTxn()
	if k, ok := m.key(obj); ok {
		m.drop(w, k)
	}
	w.Commit()
	return nil
}

// Replace implements cache.ReflectorStore: rows of objects that are no longer listed go.
func (m *mirror[K, R]) Replace(objs []any, _ string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.db.WriteTxn()
	gone := m.written()
	for _, obj := range objs {
		if k, ok := m.key(obj); ok {
			delete(gone, k)
		}
		m.put(w, obj)
	}
	for k := range gone {
		m.drop(w, k)
	}
	m.synced(w)
	w.Commit()
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to do again.
func (m *mirror[K, R]) Resync() error { return nil }
