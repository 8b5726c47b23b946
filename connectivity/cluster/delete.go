// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// killTimeout is how long the processes of a cluster may take to end.
const killTimeout = 20 * time.Second

// List returns the clusters of this machine, ordered by name.
func List(stateDir string) ([]*Cluster, error) {
	return loadAll(orDefault(stateDir))
}

// Get returns one cluster.
func Get(stateDir, name string) (*Cluster, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	return load(orDefault(stateDir), name)
}

func orDefault(stateDir string) string {
	if stateDir == "" {
		return DefaultStateDir
	}
	return stateDir
}

// Delete removes a cluster in whatever state it is. Nothing of it is left: no process, control
// group, namespace, mount, file or kubeconfig entry.
func Delete(ctx context.Context, stateDir, name string) error {
	c, err := Get(stateDir, name)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.acquire(); err != nil {
		return err
	}
	defer c.release()
	return c.remove()
}

// remove takes the cluster down; the caller holds its lock. It can be repeated.
func (c *Cluster) remove() error {
	c.Phase = PhaseDeleting
	if err := c.save(); err != nil {
		return err
	}
	groups, err := machineCgroups()
	if err != nil {
		return err
	}
	var g errgroup.Group
	for _, n := range c.Nodes {
		g.Go(func() error {
			if err := groups.kill(n.Name, killTimeout); err != nil {
				return err
			}
			return groups.remove(n.Name)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := dropKubeconfig(c.Kubeconfig, c.FullName(), c.NewConfig); err != nil {
		return err
	}
	if err := c.noMounts(); err != nil {
		return err
	}
	// The ledger goes last, so that a delete that is cut short can be repeated.
	if err := os.RemoveAll(filepath.Join(c.dir, "nodes")); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	// The folders above it go when this was the last cluster; they are not empty otherwise.
	for dir := filepath.Dir(c.dir); strings.HasPrefix(dir, "/var/lib/lash"); dir = filepath.Dir(dir) {
		if os.Remove(dir) != nil {
			break
		}
	}
	return nil
}

// noMounts makes sure that removing the state folder removes files of the cluster only.
func (c *Cluster) noMounts() error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("mount table: %w", err)
	}
	for line := range strings.SplitSeq(string(table), "\n") {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], c.dir+"/") {
			return fmt.Errorf("something is mounted on %s, which no cluster does; unmount it and delete again", fields[4])
		}
	}
	if _, err := os.Stat(c.dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNotFound, c.Name)
	}
	return nil
}
