// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lash.internal/lash/agent/cni/wire"
	"lash.internal/lash/agent/ipam"
	"lash.internal/lash/agent/state"
)

// kernel holds the links of a node; it outlives the servers of a test.
type kernel struct {
	links   map[string]int
	publish error
}

func (k *kernel) CreateLink(_ context.Context, ep state.Endpoint) (Link, error) {
	name := ep.IfName
	k.links[name] = 40 + len(k.links)
	return Link{
		HostName: name, HostIndex: k.links[name], PeerName: "tmp" + name[3:], MTU: 1500, RouteMTU: 1450,
		HostMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, PodMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2},
	}, nil
}

func (k *kernel) HasLink(name string) (int, bool) {
	i, ok := k.links[name]
	return i, ok
}

func (k *kernel) Publish(context.Context, state.Endpoint, state.Revision) error { return k.publish }

func (k *kernel) DeleteLink(_ context.Context, name string) error {
	delete(k.links, name)
	return nil
}

type identities struct{}

func (identities) Labels(p state.Pod, _ state.Namespace) []string {
	return []string{"k8s:app=" + p.Labels["app"]}
}

func (identities) Allocate(context.Context, []string) (state.IdentityID, error) { return 1234, nil }

// objects is the API server: it has the pods that the watch has not brought.
type objects struct{ err error }

func (o objects) Pod(_ context.Context, n state.Name) (state.Pod, bool, error) {
	return state.Pod{Name: n, UID: "uid-" + n.Name}, n.Name != "missing", o.err
}

func (o objects) Namespace(_ context.Context, n string) (state.Namespace, bool, error) {
	return state.Namespace{Name: n}, true, o.err
}

type node struct {
	kernel *kernel
	dir    string
	api    objects
	cidr   string
	held   bool // addresses that leave are not free at once
}

func newNode(t *testing.T) *node {
	return &node{kernel: &kernel{links: map[string]int{}}, dir: t.TempDir(), cidr: "10.0.1.0/24"}
}

// addresses is a pool. What leaves it is free at once, or with held when the test says so.
type addresses struct {
	*ipam.Pool
	held bool
	free []func()
}

func (p *addresses) Release(done func(), addrs ...netip.Addr) {
	p.free = append(p.free, func() {
		p.Pool.Release(addrs...)
		done()
	})
	if !p.held {
		p.flush()
	}
}

func (p *addresses) flush() {
	for _, f := range p.free {
		f()
	}
	p.free = nil
}

// start is a start of the agent.
func (n *node) start(t *testing.T) (*Server, *state.Tables, *addresses) {
	t.Helper()
	pool, err := ipam.New([]netip.Prefix{netip.MustParsePrefix(n.cidr)})
	if err != nil {
		t.Fatal(err)
	}
	tables, held := state.NewTables(), &addresses{Pool: pool, held: n.held}
	s := New(Options{
		Tables: tables, Datapath: n.kernel, Addresses: held, Identities: identities{}, Objects: n.api,
		Exhausted: func(err error) bool { return errors.Is(err, ipam.ErrExhausted) },
		StateDir:  filepath.Join(n.dir, "endpoints"), QueueDir: filepath.Join(n.dir, "queue"),
		Log: slog.New(slog.DiscardHandler),
	})
	if err := s.Restore(context.Background()); err != nil {
		t.Fatal(err)
	}
	return s, tables, held
}

func attach(name string) wire.Attachment {
	return wire.Attachment{ContainerID: "sandbox-" + name, IfName: "eth0", PodNamespace: "default", PodName: name, PodUID: "uid-" + name}
}

func code(t *testing.T, err error) uint {
	t.Helper()
	var we *wire.Error
	if !errors.As(err, &we) {
		t.Fatalf("error without a code: %v", err)
	}
	return we.Code
}

func TestEndpointLivesFromAddToDel(t *testing.T) {
	n, ctx, a := newNode(t), context.Background(), attach("web")
	s, tables, pool := n.start(t)
	if _, err := s.Add(ctx, a); code(t, err) != wire.CodeTryAgain {
		t.Errorf("before ready: %v", err)
	}
	s.SetReady(nil)
	itf, err := s.Add(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	if itf.Addresses[0].IP.String() != "10.0.1.2" || itf.Addresses[0].Gateway.String() != "10.0.1.1" || itf.RouteMTU != 1450 {
		t.Errorf("answer %+v", itf)
	}
	again, err := s.Add(ctx, a)
	if err != nil || again.EndpointID != itf.EndpointID || again.Addresses[0] != itf.Addresses[0] {
		t.Errorf("repeated ADD: %+v, %v", again, err)
	}
	if _, err := s.Check(ctx, a); code(t, err) != wire.CodeBrokenAttach {
		t.Errorf("CHECK of an endpoint that is not ready: %v", err)
	}
	if err := s.MarkReady(ctx, a); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Check(ctx, a); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if e, _ := tables.Endpoints.Get(itf.EndpointID); e.State != state.EndpointReady || e.Identity != 1234 {
		t.Errorf("row %+v", e)
	}
	for range 2 {
		if err := s.Del(ctx, a); err != nil {
			t.Fatal(err)
		}
	}
	if tables.Endpoints.Len() != 0 || len(n.kernel.links) != 0 || pool.Usage()[0].Allocated != 1 {
		t.Errorf("DEL left rows %d, links %v, addresses %v", tables.Endpoints.Len(), n.kernel.links, pool.Usage())
	}
}

func TestRestartKeepsPodsAndDoesQueuedDeletions(t *testing.T) {
	n, ctx := newNode(t), context.Background()
	s, _, _ := n.start(t)
	s.SetReady(nil)
	for _, p := range []string{"stays", "deleted", "vanished"} {
		if _, err := s.Add(ctx, attach(p)); err != nil {
			t.Fatal(err)
		}
		if err := s.MarkReady(ctx, attach(p)); err != nil {
			t.Fatal(err)
		}
	}
	// The agent is away: one pod is deleted, the interface of another is gone.
	body, err := json.Marshal(attach("deleted"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.dir, "queue", "x"+wire.QueueSuffix), body, 0o600); err != nil {
		t.Fatal(err)
	}
	delete(n.kernel.links, HostName(attach("vanished")))

	s, tables, pool := n.start(t)
	if ok, _ := tables.Endpoints.Initialized(); !ok || tables.Endpoints.Len() != 1 {
		t.Fatalf("initialized %v, %d rows", ok, tables.Endpoints.Len())
	}
	for _, e := range tables.Endpoints.All() {
		if e.Pod.Name != "stays" || e.IPv4.String() != "10.0.1.2" || e.State != state.EndpointRestoring {
			t.Errorf("restored %+v", e)
		}
	}
	if u := pool.Usage()[0]; u.Allocated != 2 {
		t.Errorf("addresses %+v", u)
	}
	s.SetReady(nil)
	if itf, err := s.Add(ctx, attach("new")); err != nil || itf.Addresses[0].IP.String() == "10.0.1.2" {
		t.Errorf("new pod: %+v, %v", itf, err)
	}
	if left, _ := filepath.Glob(filepath.Join(n.dir, "queue", "*")); len(left) != 0 {
		t.Errorf("queue still has %v", left)
	}
}

// TestAddressIsTakenUntilItsFlowsAreGone ends the agent between the deletion of a pod and the end of its
// flows. Neither address nor number may go to another pod before.
func TestAddressIsTakenUntilItsFlowsAreGone(t *testing.T) {
	n, ctx := newNode(t), context.Background()
	n.held = true
	s, _, _ := n.start(t)
	s.SetReady(nil)
	old, err := s.Add(ctx, attach("old"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Del(ctx, attach("old")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also when it ends again
		var pool *addresses
		var tables *state.Tables
		s, tables, pool = n.start(t)
		s.SetReady(nil)
		if tables.Endpoints.Len() != 0 || pool.Usage()[0].Allocated != 2 {
			t.Errorf("after a start: %d rows, %+v", tables.Endpoints.Len(), pool.Usage())
		}
		itf, err := s.Add(ctx, attach("new"))
		if err != nil || itf.Addresses[0].IP == old.Addresses[0].IP || itf.EndpointID == old.EndpointID {
			t.Errorf("the next pod got %+v, %v; the one before had %+v", itf, err, old)
		}
		if err := s.Del(ctx, attach("new")); err != nil {
			t.Fatal(err)
		}
		pool.free = pool.free[len(pool.free)-1:] // those of the new pod go
		pool.flush()
	}
	_, _, pool := n.start(t)
	pool.flush()
	if left, _ := filepath.Glob(filepath.Join(n.dir, "endpoints", "*.json")); len(left) != 0 || pool.Usage()[0].Allocated != 1 {
		t.Errorf("left %v, %+v", left, pool.Usage())
	}
}

// TestAddressOfTwo has the file of a pod that is gone beside that of a pod with the same address.
func TestAddressOfTwo(t *testing.T) {
	n, ctx := newNode(t), context.Background()
	s, tables, _ := n.start(t)
	s.SetReady(nil)
	itf, err := s.Add(ctx, attach("stays"))
	if err != nil {
		t.Fatal(err)
	}
	twin, _ := tables.Endpoints.Get(itf.EndpointID)
	twin.ID, twin.IfName, twin.Pod.Name = twin.ID+1, "lxcgone", "gone"
	if err := s.save(twin, Link{}); err != nil {
		t.Fatal(err)
	}
	_, tables, pool := n.start(t)
	if tables.Endpoints.Len() != 1 || pool.Usage()[0].Allocated != 2 {
		t.Errorf("%d rows, %+v", tables.Endpoints.Len(), pool.Usage())
	}
	if left, _ := filepath.Glob(filepath.Join(n.dir, "endpoints", "*.json")); len(left) != 1 {
		t.Errorf("files %v", left)
	}
}

func TestFailuresSayWhatAndLeaveNothing(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name  string
		setup func(*node)
		a     wire.Attachment
		code  uint
		text  string
	}{
		{"no pod arguments", func(*node) {}, wire.Attachment{ContainerID: "x", IfName: "eth0"}, wire.CodeBadConfig, "K8S_POD_NAME"},
		{"pod is gone", func(*node) {}, attach("missing"), wire.CodeTryAgain, "pod default/missing does not exist"},
		{"API server away", func(n *node) { n.api.err = errors.New("connection refused") }, attach("a"), wire.CodeTryAgain, "connection refused"},
		{"pool exhausted", func(n *node) { n.cidr = "10.0.1.0/30" }, attach("second"), wire.CodePool, "all 2 IPv4 addresses of 10.0.1.0/30 are in use"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			c.setup(n)
			s, tables, _ := n.start(t)
			s.SetReady(nil)
			want := 0
			if c.code == wire.CodePool {
				if _, err := s.Add(ctx, attach("first")); err != nil {
					t.Fatal(err)
				}
				want = 1
			}
			_, err := s.Add(ctx, c.a)
			if code(t, err) != c.code || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v", err)
			}
			if tables.Endpoints.Len() != want || len(n.kernel.links) != want {
				t.Errorf("left rows %d, links %v", tables.Endpoints.Len(), n.kernel.links)
			}
		})
	}
	n := newNode(t)
	n.kernel.publish = errors.New("map is full")
	s, tables, pool := n.start(t)
	s.SetReady(nil)
	if _, err := s.Add(ctx, attach("a")); err == nil || !strings.Contains(err.Error(), "map is full") {
		t.Errorf("got %v", err)
	}
	if tables.Endpoints.Len() != 0 || len(n.kernel.links) != 0 || pool.Usage()[0].Allocated != 1 {
		t.Error("a failed ADD left something")
	}
}

func TestGCRemovesUnknownAttachments(t *testing.T) {
	n, ctx := newNode(t), context.Background()
	s, tables, _ := n.start(t)
	s.SetReady(nil)
	for _, p := range []string{"a", "b"} {
		if _, err := s.Add(ctx, attach(p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.GC(ctx, []wire.Attachment{attach("b")}); err != nil {
		t.Fatal(err)
	}
	if left := tables.Endpoints.ByIndex("pod", "default/b"); tables.Endpoints.Len() != 1 || len(left) != 1 {
		t.Errorf("%d rows left", tables.Endpoints.Len())
	}
}

func TestConfIsWrittenForRootOnly(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "10-other.conflist"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "05-cilium.conflist")
	foreign, err := WriteConf(path, false, false)
	if err != nil || len(foreign) != 1 || foreign[0] != "10-other.conflist" {
		t.Errorf("foreign %v, %v", foreign, err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	body, _ := os.ReadFile(path)
	if !strings.Contains(string(body), `"cniVersion": "1.1.0"`) || !strings.Contains(string(body), `"type": "cilium-cni"`) {
		t.Errorf("conf %s", body)
	}
}

// TestNumberOfWhatIsNoPod: the node's own endpoint keeps its number over restarts, no pod gets it, and
// nothing that the runtime asks for touches it.
func TestNumberOfWhatIsNoPod(t *testing.T) {
	n := newNode(t)
	s, tables, _ := n.start(t)
	own, err := s.TakeNumber(7)
	if err != nil || own != 7 {
		t.Fatalf("number %d, %v", own, err)
	}
	tx := tables.DB.WriteTxn()
	tables.Endpoints.Insert(tx, state.Endpoint{ID: own, IfName: state.HealthDevice, Identity: state.IdentityHealth})
	tx.Commit()
	if again, err := s.TakeNumber(own); err != nil || again == own || again == 0 {
		t.Errorf("taken twice: %d, %v", again, err)
	}
	if fresh, err := s.TakeNumber(0); err != nil || fresh == own || fresh == 0 {
		t.Errorf("without one of before: %d, %v", fresh, err)
	}
	for range 10 {
		if id, err := s.takeID(); err != nil || id == own {
			t.Errorf("a pod got number %d, %v", id, err)
		}
	}
	if err := s.Del(t.Context(), wire.Attachment{}); err != nil {
		t.Error(err)
	}
	if err := s.GC(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if _, ok := tables.Endpoints.Get(own); !ok {
		t.Error("the node's own endpoint is gone")
	}
}
