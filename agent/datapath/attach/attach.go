// SPDX-License-Identifier: Apache-2.0

// Package attach puts programs on hooks: of network devices, and of the node's cgroup tree. Hooks
// outlive the agent. A program is replaced in one step, so that no packet meets a hook without one.
//
//	tcx:     <bpf-root>/lash/link/if<index>/{in,out}   pinned links
//	cls_bpf: filters of a fixed priority, on devices of pods; on all devices where the kernel has no
//	         tcx, or when that is asked for
//	cgroup:  <bpf-root>/lash/link/cgroup/<program>     pinned links
//
// # Generations
//
// Hooks hold programs of a generation. The Attacher holds the current one; a hook that an older one
// serves well is left alone until Release.
//
// # From one back end to the other
//
// A node that changes from tcx to cls_bpf or back has programs of ours in both places for a moment:
// the new one is live on every hook before the first old one goes. tcx runs first, then the filters.
// While both are there the programs are told so (RunCfg.Handover): one that gives a packet on to
// what stands behind it marks it as handled at this hook, and one that finds that mark takes it off
// and does nothing else. So that this also holds for packets that are under way when the switch is
// turned, a grace period of RCU passes between the steps. (The first change to cls_bpf is another
// matter: the kernel stops a device for an instant when it gets its first qdisc.) The same mark makes a second link of ours
// on one hook harmless, which is there when the pin of a link was lost and something else keeps it.
package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/crash"
	"lash.internal/lash/agent/datapath/loader"
	"lash.internal/lash/agent/reconcile"
)

// Hook is one side of a network device.
type Hook struct {
	Ifindex int
	Egress  bool
}

func (h Hook) String() string {
	if h.Egress {
		return fmt.Sprintf("if%d/out", h.Ifindex)
	}
	return fmt.Sprintf("if%d/in", h.Ifindex)
}

// Program is what a hook holds: a program by its name and the generation that it is of. Both are
// empty for a program at a place of ours that is of no generation that is pinned.
type Program struct {
	Name       string
	Generation string
}

// Receives says whether a program is at the receiving end of packets that other programs of ours
// send. Receivers are replaced before senders.
func (p Program) Receives() bool {
	return p.Name == "pod_to" || p.Name == "ov_from" || p.Name == "nd_from"
}

// backend is one way to attach to devices.
type backend interface {
	// list returns the programs of ours by hook.
	list() (map[Hook]ebpf.ProgramID, error)
	// put makes prog the one program of ours at a hook. It says whether there was none before.
	put(h Hook, prog *ebpf.Program, name string) (fresh bool, err error)
	// remove takes the program of ours off a hook; one that is gone already is no error.
	remove(h Hook) error
}

// AuditInterval is how often hooks are compared with what they should hold.
const AuditInterval = 10 * time.Second

// Options of an Attacher.
type Options struct {
	BPFRoot string
	// TCX: attach to devices other than those of pods by tcx links, else to all by cls_bpf filters.
	TCX bool
	// Generations are those that are pinned beside the current one, and Lost the programs of
	// generations that are pinned no more: programs by which attachments of ours are known.
	Generations []*loader.Programs
	Lost        []ebpf.ProgramID
	// Check says whether the BPF file system is still the one of the start; nothing is read or
	// written while it is not.
	Check func() error
	Log   *slog.Logger
}

// Attacher attaches programs and knows what is attached.
type Attacher struct {
	dir     string
	tcx     bool
	main    backend
	other   backend // what an agent with the opposite choice has used
	check   func() error
	byID    func(link.ID) (link.Link, error) // needs CAP_SYS_ADMIN
	log     *slog.Logger
	changed reconcile.Signal
	io      sync.Mutex // one operation on hooks at a time

	mu       sync.Mutex
	programs *loader.Programs
	known    map[ebpf.ProgramID]Program
	hold     bool
	both     bool // the other back end has programs of ours
	graced   bool // and a grace period has passed since the programs were told
	held     map[Hook]Program
	sockets  map[string]Program
	had      map[any]bool // hooks that had a program since the agent runs
	state    State
}

func linkDir(bpfRoot string) string { return filepath.Join(bpfRoot, "lash", "link") }

// New returns an Attacher of programs and takes stock of what is attached. Until Release it leaves
// hooks alone that hold the program of another generation.
func New(o Options, programs *loader.Programs) (*Attacher, error) {
	a := &Attacher{
		dir: linkDir(o.BPFRoot), tcx: o.TCX, check: o.Check, byID: link.NewFromID, log: o.Log,
		known: map[ebpf.ProgramID]Program{}, hold: true, had: map[any]bool{},
	}
	if a.check == nil {
		a.check = func() error { return nil }
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	for _, id := range o.Lost {
		a.known[id] = Program{}
	}
	for _, g := range o.Generations {
		a.know(g)
	}
	a.programs = programs
	a.know(programs)
	byLinks := newTCX(a)
	byFilters := func(only func(string) bool) *filters {
		return &filters{Attacher: a, marks: filepath.Join(o.BPFRoot, "lash", "clsact"), only: only}
	}
	if o.TCX {
		a.main = mixed{byLinks, byFilters(forPods)}
		a.other = byFilters(func(name string) bool { return !forPods(name) })
	} else {
		a.main, a.other = byFilters(nil), byLinks
	}
	old, err := a.other.list()
	if err != nil {
		return nil, fmt.Errorf("inventory of attached programs: %w", err)
	}
	a.both = len(old) > 0
	return a, nil
}

func (a *Attacher) know(g *loader.Programs) {
	for _, id := range g.IDs() {
		a.known[id] = Program{g.NameOf(id), g.Hash}
	}
}

// Generation is the name of the generation that is attached from now on.
func (a *Attacher) Generation() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.programs.Hash
}

// Of is the program of a name in the current generation.
func (a *Attacher) Of(name string) Program { return Program{name, a.Generation()} }

// Sockets lists the names of the programs for socket hooks.
func (a *Attacher) Sockets() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.programs.Socket()
}

// Use changes the current generation. What is wanted on every hook changes with it.
func (a *Attacher) Use(programs *loader.Programs) {
	a.mu.Lock()
	a.programs = programs
	a.know(programs)
	a.mu.Unlock()
	a.changed.Fire()
}

// Release ends the time in which hooks of other generations are left alone.
func (a *Attacher) Release() {
	a.mu.Lock()
	a.hold = false
	a.mu.Unlock()
	a.changed.Fire()
}

// Satisfies says whether a hook that holds a program need not be written for another to be wanted.
func (a *Attacher) Satisfies(have, want Program) bool {
	if have == want {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.hold && have.Name == want.Name
}

// Handover says whether a packet can meet two programs of ours at one hook.
func (a *Attacher) Handover() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.both || len(a.state.Twins) > 0
}

// Changed is fired when something has changed that bears on what is wanted of hooks: the generation,
// the end of the wait for Release, the answer of Handover.
func (a *Attacher) Changed() *reconcile.Signal { return &a.changed }

// Finish takes what the other back end has off the hooks, now that the programs of this one are
// live. wanted says whether a hook is to have a program: one that should and has none yet keeps
// what it has.
func (a *Attacher) Finish(wanted func(Hook) bool) error {
	a.mu.Lock()
	both := a.both
	a.mu.Unlock()
	if !both {
		return nil
	}
	a.io.Lock()
	defer a.io.Unlock()
	live, err := a.main.list()
	if err != nil {
		return err
	}
	old, err := a.other.list()
	if err != nil {
		return err
	}
	a.gracePeriod()
	var errs []error
	for h := range old {
		if _, ok := live[h]; !ok && wanted(h) {
			errs = append(errs, fmt.Errorf("%s keeps the program that another way of attaching has put there", h))
			continue
		}
		errs = append(errs, a.other.remove(h))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	a.gracePeriod()
	a.log.Info("attached programs have changed over", "hooks", len(old), "mode", a.mode())
	a.mu.Lock()
	a.both = false
	a.mu.Unlock()
	if !a.tcx {
		a.note(company{}) // there is no link any more whose company would count
	}
	a.changed.Fire()
	return nil
}

// gracePeriod returns when no packet is left at a hook that had got there before the call.
func (a *Attacher) gracePeriod() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL is a grace period of RCU
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		a.log.Debug("no grace period", "error", errno)
	}
}

// programOf names a program by its id.
func (a *Attacher) programOf(id ebpf.ProgramID) Program {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.known[id]
}

func (a *Attacher) ours(id ebpf.ProgramID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.known[id]
	return ok
}

// get returns a program of the current generation.
func (a *Attacher) get(p Program) (*ebpf.Program, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.Generation != a.programs.Hash {
		return nil, fmt.Errorf("program %s is wanted of generation %q, loaded is %s", p.Name, p.Generation, a.programs.Hash)
	}
	return a.programs.Get(p.Name)
}

// Hooks is the hooks of network devices as a target.
func (a *Attacher) Hooks() reconcile.Target[Hook, Program] { return hooks{a} }

type hooks struct{ *Attacher }

// Load lists what of ours is attached to devices, by either way while both are in use.
func (t hooks) Load(context.Context) (map[Hook]Program, error) {
	t.io.Lock()
	defer t.io.Unlock()
	if err := t.check(); err != nil {
		return nil, err
	}
	out := map[Hook]Program{}
	add := func(b backend) error {
		ids, err := b.list()
		for h, id := range ids {
			if _, ok := out[h]; !ok {
				out[h] = t.programOf(id)
			}
		}
		return err
	}
	if err := add(t.main); err != nil {
		return nil, err
	}
	t.mu.Lock()
	both := t.both
	t.mu.Unlock()
	if both {
		if err := add(t.other); err != nil {
			return nil, err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for h := range out {
		t.had[h] = true
	}
	t.held, t.state.LastAudit = maps.Clone(out), time.Now()
	t.state.Audits++
	return out, nil
}

// Set attaches a program, in place of one of ours if there is one.
func (t hooks) Set(_ context.Context, h Hook, p Program) error {
	t.io.Lock()
	defer t.io.Unlock()
	if err := t.check(); err != nil {
		return err
	}
	prog, err := t.get(p)
	if err != nil {
		return err
	}
	t.mu.Lock()
	wait := t.both && !t.graced
	t.graced = t.graced || wait
	t.mu.Unlock()
	if wait { // the switch was written before, by an earlier stage of the chain
		t.gracePeriod()
	}
	fresh, err := t.main.put(h, prog, p.Name)
	if err != nil {
		return err
	}
	crash.At(crash.Hooks)
	t.attached(h, fresh)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held == nil {
		t.held = map[Hook]Program{}
	}
	t.held[h] = p
	return nil
}

// Delete takes the program of ours off a hook.
func (t hooks) Delete(_ context.Context, h Hook) error {
	t.io.Lock()
	defer t.io.Unlock()
	t.mu.Lock()
	delete(t.had, h)
	delete(t.held, h)
	both := t.both
	t.mu.Unlock()
	err := t.main.remove(h)
	if both {
		err = errors.Join(err, t.other.remove(h))
	}
	return err
}

// attached counts: a hook that had a program and got it afresh was lost in between.
func (a *Attacher) attached(key any, fresh bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if fresh && a.had[key] && !a.both {
		a.state.Repairs++
	}
	a.had[key] = true
}

// open opens a pinned link; a nil link means that there is none.
func open(pin string) (link.Link, *link.Info, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", pin, err)
	}
	info, err := l.Info()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("link %s: %w", pin, err), l.Close())
	}
	return l, info, nil
}

// keep pins a fresh link and lets go of the descriptor.
func keep(l link.Link, pin string) error {
	defer l.Close()
	if err := os.MkdirAll(filepath.Dir(pin), 0o700); err != nil {
		return fmt.Errorf("pin directory: %w", err)
	}
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pin link: %w", err)
	}
	return nil
}

// detach takes a pinned link off at once: when it only loses its pin, the kernel lets go of it some
// time later.
func detach(pin string) error {
	l, _, err := open(pin)
	if err != nil {
		return err
	}
	if l != nil {
		err = errors.Join(l.Detach(), l.Close())
	}
	return errors.Join(err, unpin(pin))
}

func unpin(pin string) error {
	if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func idOf(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, fmt.Errorf("program: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

// Clean takes every program of ours off every hook and removes all pins, those of maps included.
// It is for the removal of Lash from the node.
func Clean(bpfRoot string) error {
	a := &Attacher{dir: linkDir(bpfRoot), check: func() error { return nil }, had: map[any]bool{}, log: slog.New(slog.DiscardHandler)}
	f := filters{Attacher: a, marks: filepath.Join(bpfRoot, "lash", "clsact")}
	errs := []error{f.clean()}
	t := newTCX(a)
	links, err := t.list()
	errs = append(errs, err)
	for h := range links {
		errs = append(errs, t.remove(h))
	}
	sockets, err := os.ReadDir(filepath.Join(a.dir, "cgroup"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, s := range sockets {
		errs = append(errs, detach(filepath.Join(a.dir, "cgroup", s.Name())))
	}
	return errors.Join(append(errs, os.RemoveAll(filepath.Join(bpfRoot, "lash")))...)
}

// deviceOf is the interface index that a folder of pins is named after.
func deviceOf(folder string) (int, bool) {
	digits, ok := strings.CutPrefix(folder, "if")
	if !ok {
		return 0, false
	}
	n := 0
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, digits != ""
}
