// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that callers tell apart.
var (
	ErrExists    = errors.New("the cluster exists")
	ErrNotFound  = errors.New("no such cluster")
	ErrHalfMade  = errors.New("an earlier create or delete of this cluster did not finish")
	ErrBusy      = errors.New("another command is at work on this cluster")
	ErrBadOption = errors.New("bad option")
)

// Phase is how far a cluster is.
type Phase string

// The phases of a cluster.
const (
	PhaseCreating Phase = "creating"
	PhaseReady    Phase = "ready"
	PhaseDeleting Phase = "deleting"
)

// Role is what a machine of the cluster is for.
type Role string

// The roles of a cluster's machines.
const (
	RoleControlPlane Role = "control-plane"
	RoleWorker       Role = "worker"
	RoleExternal     Role = "external" // a host on the fabric that is not part of the cluster
	RoleFabric       Role = "fabric"   // holds the bridge
)

// Node is one machine of a cluster.
type Node struct {
	Name      string       `json:"name"` // host name, Kubernetes node name and control group
	Role      Role         `json:"role"`
	Addresses []netip.Addr `json:"addresses,omitempty"` // on the fabric, the primary family first
}

// Process is a daemon of a cluster. Start (clock ticks since boot) tells it from a later process
// with the same pid.
type Process struct {
	Node  string `json:"node"`
	Name  string `json:"name"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

// Alive tells whether the process still runs.
func (p Process) Alive() bool { return p.Start != 0 && startTime(p.PID) == p.Start }

// Cluster is the ledger of a cluster: what it is made of, as far as it has been started.
type Cluster struct {
	Name       string    `json:"name"` // without the prefix that its context carries
	Phase      Phase     `json:"phase"`
	Created    time.Time `json:"created"`
	Version    string    `json:"version"` // of Kubernetes
	Index      int       `json:"index"`   // which of the node subnets it has
	Subnets    []Subnet  `json:"subnets"`
	PodCIDRs   []string  `json:"podCIDRs"`
	Services   []string  `json:"serviceCIDRs"`
	KubeProxy  string    `json:"kubeProxy"`
	CNI        string    `json:"cni"`
	Nodes      []Node    `json:"nodes"`
	Processes  []Process `json:"processes,omitempty"`
	Port       int       `json:"port,omitempty"` // of the API server on 127.0.0.1
	Kubeconfig string    `json:"kubeconfig,omitempty"`
	Kubectl    string    `json:"kubectl,omitempty"`       // path of a kubectl of the same version
	NewConfig  bool      `json:"newKubeconfig,omitempty"` // the file did not exist before
	dir        string    // state folder
	lock       *os.File  // held while a command changes the cluster
}

// Subnet is the fabric's subnet of one family.
type Subnet struct {
	Prefix  netip.Prefix `json:"prefix"`
	Gateway netip.Addr   `json:"gateway"`
}

// FullName is the name of the kubeconfig's context, cluster and user, and the prefix of the
// node names.
func (c *Cluster) FullName() string { return "lash-" + c.Name }

// Dir is the cluster's state folder; the logs of its daemons are in nodes/NODE/var/log.
func (c *Cluster) Dir() string { return c.dir }

// Node finds a machine by its full name or by what is left of it without the cluster's name.
func (c *Cluster) Node(name string) (Node, error) {
	var have []string
	for _, n := range c.Nodes {
		if n.Name == name || n.Name == c.FullName()+"-"+name {
			return n, nil
		}
		have = append(have, n.Name[len(c.FullName())+1:])
	}
	return Node{}, fmt.Errorf("cluster %s has no node %q, it has %q", c.Name, name, have)
}

// kubeNodes are the machines with a kubelet.
func (c *Cluster) kubeNodes() []Node {
	var out []Node
	for _, n := range c.Nodes {
		if n.Role == RoleControlPlane || n.Role == RoleWorker {
			out = append(out, n)
		}
	}
	return out
}

// controlPlane is the first node.
func (c *Cluster) controlPlane() Node { return c.kubeNodes()[0] }

func (c *Cluster) nodeDir(name string) string { return filepath.Join(c.dir, "nodes", name) }

const ledgerFile = "cluster.json"

// save writes the ledger so that a reader sees the old or the new one, never a part.
func (c *Cluster) save() error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	if err := replaceFile(filepath.Join(c.dir, ledgerFile), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	return nil
}

func replaceFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the first error is the one to report
	}
	return err
}

// record adds a daemon to the ledger.
func (c *Cluster) record(node, name string, pid int) error {
	c.Processes = append(c.Processes, Process{Node: node, Name: name, PID: pid, Start: startTime(pid)})
	return c.save()
}

var nameRule = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)

func checkName(name string) error {
	if !nameRule.MatchString(name) {
		return fmt.Errorf("%w: cluster name %q: use up to 32 lower-case letters, digits and dashes", ErrBadOption, name)
	}
	return nil
}

// load reads the ledger of a cluster below the state root.
func load(root, name string) (*Cluster, error) {
	dir := filepath.Join(root, name)
	data, err := os.ReadFile(filepath.Join(dir, ledgerFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Stat(dir); statErr == nil {
			return &Cluster{Name: name, Phase: PhaseDeleting, dir: dir}, nil // died before or after its ledger
		}
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	c := &Cluster{dir: dir}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, fmt.Errorf("ledger of cluster %s: %w", name, err)
	}
	return c, nil
}

// loadAll reads the ledgers of all clusters, ordered by name.
func loadAll(root string) ([]*Cluster, error) {
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	var out []*Cluster
	for _, e := range entries {
		if !e.IsDir() || checkName(e.Name()) != nil {
			continue
		}
		c, err := load(root, e.Name())
		if errors.Is(err, ErrNotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// acquire takes the cluster's lock, which ends with the process that holds it.
func (c *Cluster) acquire() error {
	f, err := lockDir(c.dir, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%w: %s", ErrBusy, c.Name)
	}
	if err != nil {
		return err
	}
	c.lock = f
	return nil
}

func (c *Cluster) release() {
	if c.lock != nil {
		_ = c.lock.Close() // gives the lock back; nothing was written through it
		c.lock = nil
	}
}

func lockDir(dir string, how int) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}
