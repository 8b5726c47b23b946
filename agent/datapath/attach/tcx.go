// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// tcx attaches to devices by links. Programs of others on the same hooks stay where they are: ours
// go behind those that are there, and hand on what they do not decide.
type tcx struct {
	*Attacher
	orphans map[Hook]link.ID // links of ours that have lost their pin and serve the hook all the same
}

func newTCX(a *Attacher) *tcx { return &tcx{a, map[Hook]link.ID{}} }

func (t *tcx) pin(h Hook) string { return filepath.Join(t.dir, h.String()) }

func (h Hook) tcx() ebpf.AttachType {
	if h.Egress {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}

// onDevice says whether a link still sits on the hook; the link of a device that is gone does not,
// even when its index has a new owner.
func onDevice(info *link.Info, h Hook) bool {
	at := info.TCX()
	return at != nil && int(at.Ifindex) == h.Ifindex
}

// list reads the pinned links, drops those whose device is gone, and looks what else is there.
func (t *tcx) list() (map[Hook]ebpf.ProgramID, error) {
	out := map[Hook]ebpf.ProgramID{}
	dirs, err := os.ReadDir(t.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var found company
	for _, d := range dirs {
		index, ok := deviceOf(d.Name())
		if !ok {
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
			l.Close()
			if !onDevice(info, h) {
				if err := unpin(t.pin(h)); err != nil {
					return nil, err
				}
				continue
			}
			out[h] = info.Program
			if err := t.look(h, info.ID, &found); err != nil {
				return nil, err
			}
		}
		// An empty folder is of no use; a folder with links stays.
		_ = os.Remove(filepath.Join(t.dir, d.Name()))
	}
	for h, id := range t.orphans {
		prog, err := t.stillThere(h, id)
		if err != nil {
			return nil, err
		}
		if _, pinned := out[h]; prog == 0 || pinned {
			delete(t.orphans, h)
			continue
		}
		out[h] = prog
		found.unpinned = append(found.unpinned, fmt.Sprintf("%s is served by link number %d, which has lost its pin and ends with whatever keeps it", h, id))
	}
	t.note(found)
	return out, nil
}

// stillThere is the program that a link has on a hook, 0 when the link is gone.
func (t *tcx) stillThere(h Hook, id link.ID) (ebpf.ProgramID, error) {
	all, err := t.others(h, 0)
	for _, p := range all {
		if have, _ := p.LinkID(); have == id {
			return p.ID, nil
		}
	}
	return 0, err
}

// company is what shares hooks with our links.
type company struct {
	foreign int      // programs of others
	twins   []string // second links of ours that cannot be taken off, in words

	unpinned []string // only links of ours that have lost their pin, in words
}

// look finds out who else is on a hook. A second link of ours is taken off, if we may.
func (t *tcx) look(h Hook, own link.ID, found *company) error {
	others, err := t.others(h, own)
	if err != nil {
		return err
	}
	for _, o := range others {
		if !t.ours(o.ID) {
			found.foreign++
			continue
		}
		id, _ := o.LinkID()
		twin, err := t.byIDOf(id)
		if err == nil {
			err = errors.Join(twin.Detach(), twin.Close())
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue // it went by itself
		}
		if err != nil {
			found.twins = append(found.twins, fmt.Sprintf("%s has a second link of ours, number %d: %v; it goes with `bpftool link detach id %d`", h, id, err, id))
			continue
		}
		t.log.Warn("took off a second link of ours", "hook", h.String(), "link", id)
	}
	return nil
}

func (t *tcx) byIDOf(id link.ID) (link.Link, error) {
	if t.byID == nil {
		return nil, unix.EPERM
	}
	return t.byID(id)
}

// others are the programs on a hook but that of one link.
func (t *tcx) others(h Hook, own link.ID) ([]link.AttachedProgram, error) {
	q, err := link.QueryPrograms(link.QueryOptions{Target: h.Ifindex, Attach: h.tcx()})
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("programs on %s: %w", h, err)
	}
	var out []link.AttachedProgram
	for _, p := range q.Programs {
		if id, ok := p.LinkID(); !ok || id != own {
			out = append(out, p)
		}
	}
	return out, nil
}

// note keeps what an inventory has found.
func (a *Attacher) note(found company) {
	a.mu.Lock()
	had := len(a.state.Twins) > 0
	a.state.Foreign, a.state.Twins, a.state.Unpinned = found.foreign, found.twins, found.unpinned
	a.mu.Unlock()
	if had != (len(found.twins) > 0) {
		a.changed.Fire()
	}
}

// put replaces the program under the link, or makes the link.
func (t *tcx) put(h Hook, prog *ebpf.Program, name string) (bool, error) {
	l, info, err := open(t.pin(h))
	if err != nil {
		return false, err
	}
	if l != nil {
		defer l.Close()
		if onDevice(info, h) {
			return false, update(l, info, prog)
		}
		if err := unpin(t.pin(h)); err != nil {
			return false, err
		}
	}
	others, err := t.others(h, 0)
	if err != nil {
		return false, err
	}
	at := link.Tail()
	for _, o := range others {
		if !t.ours(o.ID) {
			continue
		}
		// A link of ours that has lost its pin: take it up, or else come before it.
		id, _ := o.LinkID()
		lost, err := t.byIDOf(id)
		if err == nil {
			info, err := lost.Info()
			if err == nil {
				err = update(lost, info, prog)
			}
			t.log.Warn("took up a link of ours that had lost its pin", "hook", h.String(), "link", id)
			return true, errors.Join(err, keep(lost, t.pin(h)))
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue // nothing keeps it, the kernel is about to let go of it
		}
		t.log.Warn("a link of ours has lost its pin and cannot be taken up", "hook", h.String(), "link", id, "error", err)
		if want, err := idOf(prog); err != nil || o.ID == want {
			t.orphans[h] = id // the kernel takes no program twice, and this is the right one
			return true, err
		}
		at = link.Head()
	}
	l, err = link.AttachTCX(link.TCXOptions{Interface: h.Ifindex, Program: prog, Attach: h.tcx(), Anchor: at})
	if err != nil {
		return false, fmt.Errorf("attach %s: %w", name, err)
	}
	return true, keep(l, t.pin(h))
}

// has says whether a hook has a link of ours, with its pin or without.
func (t *tcx) has(h Hook) (bool, error) {
	if _, ok := t.orphans[h]; ok {
		return true, nil
	}
	l, info, err := open(t.pin(h))
	if err != nil || l == nil {
		return false, err
	}
	return onDevice(info, h), l.Close()
}

// update puts prog under a link, unless it is there.
func update(l link.Link, info *link.Info, prog *ebpf.Program) error {
	id, err := idOf(prog)
	if err != nil || info.Program == id {
		return err
	}
	return l.Update(prog)
}

func (t *tcx) remove(h Hook) error {
	if err := detach(t.pin(h)); err != nil {
		return err
	}
	_ = os.Remove(filepath.Dir(t.pin(h))) // when it is empty
	return nil
}
