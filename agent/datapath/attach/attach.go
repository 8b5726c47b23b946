// SPDX-License-Identifier: Apache-2.0

// Package attach puts programs on hooks: of network devices, and of the node's cgroup tree. Hooks
// outlive the agent. Links are pinned, and a program is replaced under a link in one step, so that
// no packet meets a hook without program.
//
//	<bpf-root>/lash/link/if<index>/{in,out}
//	<bpf-root>/lash/link/cgroup/<program>
//
// A kernel without tcx links gets cls_bpf filters with a fixed priority and handle instead.
package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/datapath/feature"
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

// Attacher attaches the programs of one generation. As value of its targets stands the name of a
// program; a program of another generation or of somebody else shows as "other".
type Attacher struct {
	dir      string
	programs *loader.Programs
	tcx      bool
	log      *slog.Logger
}

// other is what a target holds that is not of this generation.
const other = "other"

func linkDir(bpfRoot string) string { return filepath.Join(bpfRoot, "lash", "link") }

// New returns an Attacher of programs.
func New(bpfRoot string, programs *loader.Programs, features feature.Set, log *slog.Logger) *Attacher {
	return &Attacher{dir: linkDir(bpfRoot), programs: programs, tcx: features.TCX, log: log}
}

// TC returns the hooks of network devices.
func (a *Attacher) TC() reconcile.Target[Hook, string] {
	if a.tcx {
		return tcx{a}
	}
	return filters{a}
}

// Cgroup returns the socket hooks of the cgroup at path; key and value are the program's name.
func (a *Attacher) Cgroup(path string) reconcile.Target[string, string] { return cgroup{a, path} }

// nameOf names a program by its id.
func (a *Attacher) nameOf(id ebpf.ProgramID) string {
	if n := a.programs.NameOf(id); n != "" {
		return n
	}
	return other
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

func unpin(pin string) error {
	if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// tcx is the device hooks by links.
type tcx struct{ *Attacher }

func (t tcx) pin(h Hook) string { return filepath.Join(t.dir, h.String()) }

// onDevice says whether a link still sits on the hook; the link of a device that is gone does not,
// even when its index has a new owner.
func onDevice(info *link.Info, h Hook) bool {
	at := info.TCX()
	return at != nil && int(at.Ifindex) == h.Ifindex
}

// Load reads the pinned links and drops those whose device is gone.
func (t tcx) Load(context.Context) (map[Hook]string, error) {
	out := map[Hook]string{}
	dirs, err := os.ReadDir(t.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, d := range dirs {
		index, err := strconv.Atoi(strings.TrimPrefix(d.Name(), "if"))
		if err != nil || !strings.HasPrefix(d.Name(), "if") {
			continue
		}
		for _, h := range []Hook{{index, false}, {index, true}} {
			l, info, err := open(t.pin(h))
			if err != nil {
				return nil, err
			}
			if l == nil {
				continue
			}
			if onDevice(info, h) {
				out[h] = t.nameOf(info.Program)
			} else if err := unpin(t.pin(h)); err != nil {
				return nil, errors.Join(err, l.Close())
			}
			l.Close()
		}
		// An empty folder is of no use; a folder with links stays.
		_ = os.Remove(filepath.Join(t.dir, d.Name()))
	}
	return out, nil
}

// Set replaces the program under the link, or makes the link.
func (t tcx) Set(_ context.Context, h Hook, name string) error {
	prog, err := t.programs.Get(name)
	if err != nil {
		return err
	}
	l, info, err := open(t.pin(h))
	if err != nil {
		return err
	}
	if l != nil {
		defer l.Close()
		switch {
		case !onDevice(info, h):
			if err := unpin(t.pin(h)); err != nil {
				return err
			}
		case t.nameOf(info.Program) == name:
			return nil
		default:
			return l.Update(prog)
		}
	}
	at := ebpf.AttachTCXIngress
	if h.Egress {
		at = ebpf.AttachTCXEgress
	}
	l, err = link.AttachTCX(link.TCXOptions{Interface: h.Ifindex, Program: prog, Attach: at})
	if err != nil {
		return fmt.Errorf("attach %s: %w", name, err)
	}
	return keep(l, t.pin(h))
}

// Delete takes the program off the hook.
func (t tcx) Delete(_ context.Context, h Hook) error {
	if err := unpin(t.pin(h)); err != nil {
		return err
	}
	_ = os.Remove(filepath.Dir(t.pin(h))) // when it is empty
	return nil
}

// cgroup is the socket hooks.
type cgroup struct {
	*Attacher
	path string
}

func (c cgroup) pin(name string) string { return filepath.Join(c.dir, "cgroup", name) }

// here says whether a link sits on this cgroup. A cgroup's id is the inode number of its folder.
func (c cgroup) here(info *link.Info) (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(c.path, &st); err != nil {
		return false, fmt.Errorf("cgroup %s: %w", c.path, err)
	}
	at := info.Cgroup()
	return at != nil && at.CgroupId == st.Ino, nil
}

// Load reads the pinned links and drops those of another cgroup.
func (c cgroup) Load(context.Context) (map[string]string, error) {
	out := map[string]string{}
	entries, err := os.ReadDir(filepath.Join(c.dir, "cgroup"))
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		l, info, err := open(c.pin(e.Name()))
		if err != nil {
			return nil, err
		}
		if l == nil {
			continue
		}
		here, err := c.here(info)
		if err == nil && !here {
			err = unpin(c.pin(e.Name()))
		}
		l.Close()
		if err != nil {
			return nil, err
		}
		if here {
			out[e.Name()] = c.nameOf(info.Program)
		}
	}
	return out, nil
}

// Set replaces the program under the link, or makes the link.
func (c cgroup) Set(_ context.Context, key, name string) error {
	prog, err := c.programs.Get(name)
	if err != nil {
		return err
	}
	l, info, err := open(c.pin(key))
	if err != nil {
		return err
	}
	if l != nil {
		defer l.Close()
		here, err := c.here(info)
		if err != nil {
			return err
		}
		if here {
			return l.Update(prog)
		}
		if err := unpin(c.pin(key)); err != nil {
			return err
		}
	}
	l, err = link.AttachCgroup(link.CgroupOptions{Path: c.path, Attach: c.programs.AttachType(name), Program: prog})
	if err != nil {
		return fmt.Errorf("attach %s to %s: %w", name, c.path, err)
	}
	return keep(l, c.pin(key))
}

// Delete takes the program off the cgroup.
func (c cgroup) Delete(_ context.Context, key string) error { return unpin(c.pin(key)) }

// Close ends the use of the Attacher. Everything stays attached.
func (a *Attacher) Close() {}

// Clean takes every program of ours off every hook and removes all pins, those of maps included.
// It is for the removal of Lash from the node.
func Clean(bpfRoot string) error {
	return errors.Join(cleanFilters(), os.RemoveAll(filepath.Join(bpfRoot, "lash")))
}
