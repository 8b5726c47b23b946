// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lash.internal/lash/agent/config"
	"lash.internal/lash/agent/datapath/attach"
	"lash.internal/lash/agent/datapath/feature"
	"lash.internal/lash/agent/datapath/loader"
	"lash.internal/lash/agent/datapath/pinroot"
	"lash.internal/lash/agent/datapath/testnode"
	"lash.internal/lash/agent/datapath/upgrade"
	"lash.internal/lash/agent/reconcile"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// stubborn is hooks that refuse to let packets out by programs of one generation.
type stubborn struct {
	reconcile.Target[attach.Hook, attach.Program]
	generation string
	refuse     atomic.Bool
}

var errRefused = errors.New("refused")

func (s *stubborn) Set(ctx context.Context, h attach.Hook, p attach.Program) error {
	if s.refuse.Load() && p.Generation == s.generation && h.Egress {
		return errRefused
	}
	return s.Target.Set(ctx, h, p)
}

// nodeAgent is the parts of an agent that put programs on the hooks of a node with one pod.
type nodeAgent struct {
	*Agent
	t     *testing.T
	root  string
	hooks *stubborn
	stop  func()
}

// startAgent starts over the node with programs of a version. refuse says whether some hooks refuse
// them, layout whether a map has another form than before.
func startAgent(t *testing.T, root string, index int, version string, refuse, layout bool) *nodeAgent {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	tc, err1 := bpf.LoadTc()
	sock, err2 := bpf.LoadSock()
	gc, err3 := bpf.LoadGc()
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	if layout {
		tc.Maps["dev"].MaxEntries *= 2
	}
	specs := loader.New(sha256.Sum256([]byte(version)),
		loader.Object{Name: "tc", Spec: tc}, loader.Object{Name: "sock", Spec: sock}, loader.Object{Name: "gc", Spec: gc})
	f, err := feature.Probe()
	if err != nil {
		t.Skipf("kernel: %v", err)
	}
	n := &nodeAgent{t: t, root: root, Agent: &Agent{cfg: &config.Config{}, log: log, tables: state.NewTables()}}
	k := &kernel{cfg: n.cfg, log: log, tables: n.tables, features: f}
	n.kernel = k
	if k.root, err = pinroot.Own(pinroot.Options{BPFRoot: root, StateDir: filepath.Join(root, "..")}); err != nil {
		t.Fatal(err)
	}
	if k.maps, err = specs.OpenMaps(root, nil); err != nil {
		t.Fatal(err)
	}
	if k.choice, err = upgrade.Choose(upgrade.Options{BPFRoot: root, Specs: specs, Maps: k.maps, Config: bpf.DefaultConfig(), Log: log}); err != nil {
		t.Fatal(err)
	}
	k.attach, err = attach.New(attach.Options{BPFRoot: root, TCX: f.TCX, Generations: k.choice.Others(), Log: log}, k.choice.Programs)
	if err != nil {
		t.Fatal(err)
	}
	tx := n.tables.DB.WriteTxn()
	n.tables.Endpoints.Insert(tx, state.Endpoint{ID: 1, IfIndex: index, State: state.EndpointReady})
	tx.Commit()
	n.hooks = &stubborn{Target: k.attach.Hooks(), generation: k.choice.Programs.Hash}
	n.hooks.refuse.Store(refuse)
	hooks := reconcile.Keyed("hooks", n.hooks, n.hook,
		reconcile.FromTable(n.tables.Endpoints, podHooks), reconcile.EveryKey(k.attach.Changed(), n.hooksOfAll)).
		Equal(k.attach.Satisfies).Rank(n.hookRank)
	sockets := reconcile.Whole("hooks-socket", k.attach.Cgroup(root), n.socketHooks, k.attach.Changed())
	n.paths = &paths{chain: reconcile.NewChain("paths", log, hooks, sockets), hooks: hooks, sockets: sockets}
	ctx, cancel := context.WithCancel(context.Background())
	done := testnode.Go(t, func() { n.paths.chain.Run(ctx) })
	select {
	case <-n.paths.chain.Synced():
	case <-time.After(20 * time.Second):
		t.Fatalf("the loops do not get ready: %+v", n.paths.chain.Status())
	}
	n.stop = func() {
		cancel()
		<-done
		k.close()
		k.root.Close()
	}
	return n
}

// generations are those on the hooks.
func (n *nodeAgent) generations() map[string]int {
	n.t.Helper()
	held, err := n.kernel.attach.Hooks().Load(context.Background())
	if err != nil {
		n.t.Fatal(err)
	}
	out := map[string]int{}
	for _, p := range held {
		out[p.Generation]++
	}
	return out
}

func (n *nodeAgent) pinned() []string {
	n.t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.root, "lash", "gen"))
	if err != nil {
		n.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// TestUpgradeOfTheHooks goes to a version whose programs are taken by every hook: the old one stays
// pinned through the time of probation, then it goes.
func TestUpgradeOfTheHooks(t *testing.T) {
	root := testnode.New(t)
	index := testnode.Veth(t, "lxc1")
	first := startAgent(t, root, index, "1", false, false)
	old := first.kernel.choice.Programs.Hash
	first.stop()

	n := startAgent(t, root, index, "2", false, false)
	defer n.stop()
	if g := n.generations(); g[old] != 2 {
		t.Errorf("hooks changed before everything was complete: %v", g)
	}
	if err := n.putIntoService(t.Context()); err != nil {
		t.Fatal(err)
	}
	current := n.kernel.choice.Programs.Hash
	if g := n.generations(); g[current] != 2 || len(n.pinned()) != 2 {
		t.Errorf("hooks %v, pinned %v: want all on %s and both pinned", g, n.pinned(), current)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.settle(ctx, time.Hour, time.Hour); err != nil {
		t.Error(err)
	}
	if len(n.pinned()) != 2 {
		t.Error("the old generation is gone before its time")
	}
	n.flowsMove.Store(true)
	if err := n.purge(netip.MustParseAddr("10.0.0.2")); !errors.Is(err, errFlowsMove) {
		t.Errorf("an address is free though flows of it may come: %v", err)
	}
	if err := n.settle(t.Context(), time.Millisecond, time.Millisecond); err != nil {
		t.Error(err)
	}
	if n.flowsMove.Load() {
		t.Error("no address is ever free again")
	}
	if p := n.pinned(); len(p) != 1 || p[0] != current || n.kernel.problem != nil {
		t.Errorf("pinned %v, problem %v", p, n.kernel.problem)
	}
}

// TestHooksThatRefuse goes to a version whose programs some hooks do not take: all go back to the
// old one, and the agent says so.
func TestHooksThatRefuse(t *testing.T) {
	root := testnode.New(t)
	index := testnode.Veth(t, "lxc1")
	first := startAgent(t, root, index, "1", false, false)
	old := first.kernel.choice.Programs.Hash
	first.stop()

	n := startAgent(t, root, index, "2", true, false)
	defer n.stop()
	if err := n.putIntoService(t.Context()); err != nil {
		t.Fatal(err)
	}
	if g := n.generations(); g[old] != 1 || g[n.kernel.choice.Programs.Hash] != 1 {
		t.Fatalf("hooks %v, want one of each generation", g)
	}
	if err := n.settle(t.Context(), time.Millisecond, time.Millisecond); err != nil {
		t.Error(err)
	}
	if g := n.generations(); g[old] != 2 {
		t.Errorf("hooks %v, want all back on %s", g, old)
	}
	if p := n.pinned(); len(p) != 1 || p[0] != old {
		t.Errorf("pinned %v", p)
	}
	if err := n.kernel.problem; err == nil || !strings.Contains(err.Error(), "1 of 2 hooks") || !strings.Contains(err.Error(), old) {
		t.Errorf("problem %v", err)
	}
}

// TestNoWayBack goes to a version that has replaced a map, and some hooks refuse its programs: those
// of before would run over a map that nobody fills, so nothing goes back; the agent says so, and the
// upgrade ends when the hooks take the programs.
func TestNoWayBack(t *testing.T) {
	root := testnode.New(t)
	index := testnode.Veth(t, "lxc1")
	first := startAgent(t, root, index, "1", false, false)
	old := first.kernel.choice.Programs.Hash
	first.stop()

	n := startAgent(t, root, index, "2", true, true)
	defer n.stop()
	if err := n.putIntoService(t.Context()); err != nil {
		t.Fatal(err)
	}
	current := n.kernel.choice.Programs.Hash
	ctx, cancel := context.WithCancel(t.Context())
	done := testnode.Go(t, func() {
		if err := n.settle(ctx, time.Millisecond, time.Millisecond); err != nil {
			t.Error(err)
		}
	})
	defer func() { cancel(); <-done }()
	problem := func() error {
		n.kernel.mu.Lock()
		defer n.kernel.mu.Unlock()
		return n.kernel.problem
	}
	for deadline := time.Now().Add(10 * time.Second); problem() == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is said")
		}
	}
	if err := problem(); !strings.Contains(err.Error(), "1 of 2 hooks") || !strings.Contains(err.Error(), old) {
		t.Errorf("problem %v", err)
	}
	if g := n.generations(); g[current] != 1 || g[old] != 1 || len(n.pinned()) != 2 {
		t.Errorf("hooks %v, pinned %v: want nothing to go back and both pinned", g, n.pinned())
	}
	n.hooks.refuse.Store(false)
	if err := n.syncHooks(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the upgrade does not end")
	}
	if p := n.pinned(); len(p) != 1 || p[0] != current || problem() != nil {
		t.Errorf("pinned %v, problem %v", p, problem())
	}
}
