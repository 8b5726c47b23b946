// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"lash.internal/lash/agent/state"
)

var errTaken = errors.New("taken")

// store is the API server as far as identities go.
type store struct {
	mu   sync.Mutex
	sets map[state.IdentityID][]string
}

func (s *store) Get(_ context.Context, id state.IdentityID) ([]string, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set, ok := s.sets[id]
	return set, ok, nil
}

// Find sees nothing, as when all agents list before one of them creates.
func (s *store) Find(context.Context, []string) ([]state.IdentityID, error) { return nil, nil }

func (s *store) Create(_ context.Context, id state.IdentityID, set []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.sets[id]; ok {
		return errTaken
	}
	s.sets[id] = set
	return nil
}

func newAllocator(t *testing.T, s Store) (*Allocator, *state.Tables) {
	t.Helper()
	f, err := NewFilter("")
	if err != nil {
		t.Fatal(err)
	}
	tables := state.NewTables()
	return New(tables, s, Options{
		ClusterName: "default", Filter: f, Log: slog.New(slog.DiscardHandler),
		Taken: func(err error) bool { return errors.Is(err, errTaken) },
	}), tables
}

func TestAllAgentsConvergeOnOneNumber(t *testing.T) {
	s := &store{sets: map[state.IdentityID][]string{}}
	set := []string{"k8s:app=web", "k8s:io.kubernetes.pod.namespace=default"}
	// The first choice belongs to somebody else already.
	s.sets[candidate(set, 0)] = []string{"k8s:app=other"}
	got := make([]state.IdentityID, 8)
	var wg sync.WaitGroup
	for i := range got {
		a, _ := newAllocator(t, s)
		wg.Go(func() {
			id, err := a.Allocate(context.Background(), set)
			if err != nil {
				t.Error(err)
			}
			got[i] = id
		})
	}
	wg.Wait()
	if u := slices.Compact(got); len(u) != 1 || u[0] < state.IdentityMinimal || u[0] > state.IdentityMaximal {
		t.Errorf("agents chose %v", got)
	}
	if len(s.sets) != 2 {
		t.Errorf("%d objects, want 2", len(s.sets))
	}
}

func TestKnownSetNeedsNoServer(t *testing.T) {
	a, tables := newAllocator(t, nil)
	w := tables.DB.WriteTxn()
	tables.Identities.Insert(w, state.Identity{ID: 900, Labels: []string{"k8s:a=b"}})
	tables.Identities.Insert(w, state.Identity{ID: 700, Labels: []string{"k8s:a=b"}})
	w.Commit()
	if id, err := a.Allocate(context.Background(), []string{"k8s:a=b"}); err != nil || id != 700 {
		t.Errorf("got %d, %v", id, err)
	}
	if r, ok := tables.Identities.Get(state.IdentityKubeAPIServer); !ok || len(r.Labels) != 2 {
		t.Errorf("reserved identity 7: %+v", r)
	}
}

func TestPodLabels(t *testing.T) {
	pod := state.Pod{
		Name: state.Name{Namespace: "shop", Name: "web-1"}, ServiceAccount: "web",
		Labels: map[string]string{
			"app": "web", "app.kubernetes.io/name": "web", "pod-template-hash": "x", "controller-revision-hash": "y",
			"statefulset.kubernetes.io/pod-name": "web-1", "topology.kubernetes.io/zone": "a", "failure-domain.beta.kubernetes.io/zone": "a",
		},
	}
	ns := state.Namespace{Name: "shop", Labels: map[string]string{"kubernetes.io/metadata.name": "shop"}}
	for _, c := range []struct{ name, option, want string }{
		{"default", "", "k8s:app.kubernetes.io/name=web k8s:app=web k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop k8s:io.cilium.k8s.policy.cluster=default k8s:io.cilium.k8s.policy.serviceaccount=web k8s:io.kubernetes.pod.namespace=shop"},
		{"exclude", "!app$", "k8s:app.kubernetes.io/name=web k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop k8s:io.cilium.k8s.policy.cluster=default k8s:io.cilium.k8s.policy.serviceaccount=web k8s:io.kubernetes.pod.namespace=shop"},
		{"whitelist", "k8s:tier", "k8s:app.kubernetes.io/name=web k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop k8s:io.cilium.k8s.policy.cluster=default k8s:io.cilium.k8s.policy.serviceaccount=web k8s:io.kubernetes.pod.namespace=shop"},
	} {
		f, err := NewFilter(c.option)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(f.PodLabels(pod, ns, "default"), " "); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
	if _, err := NewFilter("k8s:("); err == nil {
		t.Error("a broken expression was accepted")
	}
}
