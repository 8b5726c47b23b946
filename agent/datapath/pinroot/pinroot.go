// SPDX-License-Identifier: Apache-2.0

// Package pinroot guards the folder of the BPF file system in which everything of ours is pinned,
// <bpf-root>/lash. One process at a time owns it. A file outside of it, <state-dir>/state.json,
// remembers which file system that was and which programs were attached: pins that are hidden by
// another mount would otherwise look like a node on which nothing was ever attached, and every
// program would be attached a second time.
package pinroot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/file"
	"lash.internal/lash/bpf"
)

// Errors of Own and Check; test with errors.Is.
var (
	ErrOwned     = errors.New("another process owns the pinned programs and maps of this node")
	ErrNoBPFFS   = errors.New("not a BPF file system")
	ErrOther     = errors.New("another BPF file system than before")
	ErrNamespace = errors.New("another network namespace than before")
)

// inode names a file system object for as long as it exists.
type inode struct {
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

// State is what state.json holds.
type State struct {
	BootID     string `json:"bootID"`
	BPFFS      inode  `json:"bpffs"`
	Namespace  inode  `json:"netns"`
	Generation string `json:"generation,omitempty"`
	// Programs are the kernel's numbers of the programs that may be attached, by generation.
	Programs map[string][]ebpf.ProgramID `json:"programs,omitempty"`
	// Constants are what they were loaded with, as far as that is known: a bpf.Config of the version
	// that has loaded them.
	Constants map[string]json.RawMessage `json:"constants,omitempty"`
}

// Options of Own.
type Options struct {
	BPFRoot  string
	StateDir string
	// Attached says where programs of the given numbers are attached, in words.
	Attached func(ids []ebpf.ProgramID) ([]string, error)
	Log      *slog.Logger
}

// Root is the owned folder.
type Root struct {
	bpfRoot string
	file    string
	lock    *os.File
	log     *slog.Logger

	mu    sync.Mutex
	state State
	// Lost are programs of former generations, by the kernel's numbers, as the last owner knew them.
	Lost []ebpf.ProgramID
}

// Lock takes the folder for this process, as Own does, but without asking what was before.
func Lock(bpfRoot string) (*Root, error) {
	if err := isBPFFS(bpfRoot); err != nil {
		return nil, err
	}
	dir := filepath.Join(bpfRoot, "lash")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("pin directory: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("pin directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s is locked; end the other agent of this node first", ErrOwned, dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return &Root{bpfRoot: bpfRoot, lock: f, log: slog.New(slog.DiscardHandler)}, nil
}

// Own takes the folder for this process until Close, or until the process ends. It refuses when
// another process has it, when there is no BPF file system, and when there is another one than
// before in this boot while programs of the former are still attached.
func Own(o Options) (*Root, error) {
	r, err := Lock(o.BPFRoot)
	if err != nil {
		return nil, err
	}
	r.file = filepath.Join(o.StateDir, "state.json")
	if o.Log != nil {
		r.log = o.Log
	}
	if err := r.identify(o); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// identify compares what is there with what was.
func (r *Root) identify(o Options) error {
	now, err := present(o.BPFRoot)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.StateDir, 0o755); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	var was State
	err = file.ReadJSON(r.file, &was)
	switch {
	case errors.Is(err, file.ErrBroken):
		aside, serr := file.SetAside(r.file)
		r.log.Error("what is known of the last start is lost, the file is made again", "error", err, "kept", aside)
		if serr != nil {
			return fmt.Errorf("put %s aside: %w", r.file, serr)
		}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("state of the last start: %w", err)
	}
	if was.BootID == now.BootID {
		if err := r.compare(o, was, now); err != nil {
			return err
		}
		now.Generation, now.Programs, now.Constants = was.Generation, was.Programs, was.Constants
		for _, ids := range was.Programs {
			r.Lost = append(r.Lost, ids...)
		}
		slices.Sort(r.Lost)
	}
	r.state = now
	if err := r.store(); err != nil {
		// The node can be served without; only a later mistake with mounts would not be noticed.
		r.log.Error("what the next start needs to know cannot be written", "error", err)
	}
	return nil
}

func (r *Root) compare(o Options, was, now State) error {
	var ids []ebpf.ProgramID
	for _, g := range was.Programs {
		ids = append(ids, g...)
	}
	if was.Namespace != now.Namespace && len(ids) > 0 && was.BPFFS == now.BPFFS {
		return fmt.Errorf("%w: what is pinned in %s and noted in %s belongs to the devices of another network namespace; "+
			"start the agent in that one, or remove the pins with `lash-agent init clean-state --bpf` and the file",
			ErrNamespace, filepath.Join(o.BPFRoot, "lash"), r.file)
	}
	if was.BPFFS == now.BPFFS || len(ids) == 0 || o.Attached == nil {
		return nil
	}
	where, err := o.Attached(ids)
	if err != nil {
		return fmt.Errorf("looking for programs that the last agent has attached: %w", err)
	}
	if len(where) > 0 {
		return fmt.Errorf("%w: the one at %s has device %d, the one that the last agent used in this boot had %d, and its "+
			"programs are still attached (%s); make it visible again, usually by unmounting what was mounted over it, "+
			"or restart the node", ErrOther, o.BPFRoot, now.BPFFS.Device, was.BPFFS.Device, strings.Join(where[:min(3, len(where))], ", "))
	}
	r.log.Warn("the BPF file system is another one than before, and everything of the former is gone: starting afresh",
		"bpf-root", o.BPFRoot)
	return nil
}

// Check says whether the BPF file system is still the one of the start.
func (r *Root) Check() error {
	if err := isBPFFS(r.bpfRoot); err != nil {
		return err
	}
	id, err := identity(r.bpfRoot)
	if err != nil {
		return err
	}
	if id != r.state.BPFFS {
		return fmt.Errorf("%w: something was mounted at %s while the agent runs; unmount it", ErrOther, r.bpfRoot)
	}
	return nil
}

// Constants are what a generation was loaded with; ok is false if that is not known.
func (r *Root) Constants(generation string) (c bpf.Config, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	raw, ok := r.state.Constants[generation]
	return c, ok && json.Unmarshal(raw, &c) == nil
}

// Note remembers the generation in use, the programs that may be attached, and what of their
// constants is known now.
func (r *Root) Note(generation string, programs map[string][]ebpf.ProgramID, constants map[string]bpf.Config) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := map[string]json.RawMessage{}
	for g := range programs {
		if raw, ok := r.state.Constants[g]; ok {
			known[g] = raw
		}
		if c, ok := constants[g]; ok {
			raw, err := json.Marshal(c)
			if err != nil {
				return fmt.Errorf("constants of generation %s: %w", g, err)
			}
			known[g] = raw
		}
	}
	r.state.Generation, r.state.Programs, r.state.Constants = generation, programs, known
	return r.store()
}

func (r *Root) store() error {
	b, err := json.MarshalIndent(r.state, "", "  ")
	if err != nil {
		return err
	}
	if err := file.Write(r.file, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("state of this start: %w", err)
	}
	return nil
}

// Close lets go of the folder.
func (r *Root) Close() error { return r.lock.Close() }

func isBPFFS(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("option bpf-root: %w", &fs.PathError{Op: "statfs", Path: path, Err: err})
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("option bpf-root: %s is %w: mount one there (`mount -t bpf bpf %s`)", path, ErrNoBPFFS, path)
	}
	return nil
}

func identity(path string) (inode, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return inode{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return inode{st.Dev, st.Ino}, nil
}

// present describes this boot, file system and namespace.
func present(bpfRoot string) (State, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return State{}, fmt.Errorf("boot id: %w", err)
	}
	s := State{BootID: strings.TrimSpace(string(boot))}
	if s.BPFFS, err = identity(bpfRoot); err != nil {
		return State{}, err
	}
	s.Namespace, err = identity("/proc/thread-self/ns/net")
	return s, err
}
