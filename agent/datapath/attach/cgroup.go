// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/reconcile"
)

// Cgroup returns the socket hooks of the cgroup at path; the key is the program's name.
func (a *Attacher) Cgroup(path string) reconcile.Target[string, Program] { return cgroup{a, path} }

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
func (c cgroup) Load(context.Context) (map[string]Program, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	out := map[string]Program{}
	entries, err := os.ReadDir(filepath.Join(c.dir, "cgroup"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
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
			out[e.Name()] = c.programOf(info.Program)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range out {
		c.had[name] = true
	}
	c.sockets = maps.Clone(out)
	return out, nil
}

// Set replaces the program under the link, or makes the link.
func (c cgroup) Set(_ context.Context, key string, p Program) error {
	if err := c.check(); err != nil {
		return err
	}
	prog, err := c.get(p)
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
			return update(l, info, prog)
		}
		if err := unpin(c.pin(key)); err != nil {
			return err
		}
	}
	c.mu.Lock()
	at := c.programs.AttachType(p.Name)
	c.mu.Unlock()
	l, err = link.AttachCgroup(link.CgroupOptions{Path: c.path, Attach: at, Program: prog})
	if err != nil {
		return fmt.Errorf("attach %s to %s: %w", p.Name, c.path, err)
	}
	if err := keep(l, c.pin(key)); err != nil {
		return err
	}
	c.attached(key, true)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sockets == nil {
		c.sockets = map[string]Program{}
	}
	c.sockets[key] = p
	return nil
}

// Delete takes the program off the cgroup.
func (c cgroup) Delete(_ context.Context, key string) error {
	c.mu.Lock()
	delete(c.had, key)
	delete(c.sockets, key)
	c.mu.Unlock()
	return detach(c.pin(key))
}
