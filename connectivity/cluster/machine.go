// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// nodeBin is where a node sees the cluster's third-party programs.
const nodeBin = "/var/lib/lash/bin"

// cgroup2Path is where a node sees its own part of the unified hierarchy.
const cgroup2Path = "/run/cilium/cgroupv2"

// machineOf gives the handle of a machine that has been started.
func (c *Cluster) machineOf(name string) (*machine, error) {
	groups, err := machineCgroups()
	if err != nil {
		return nil, err
	}
	for _, p := range c.Processes {
		if p.Node == name && p.Name == "hold" {
			if !p.Alive() {
				return nil, fmt.Errorf("node %s does not run (its process %d is gone); delete the cluster and create it again", name, p.PID)
			}
			return &machine{name: name, holder: p.PID, groups: groups}, nil
		}
	}
	return nil, fmt.Errorf("node %s has not been started", name)
}

// startMachine makes the namespaces and control groups of a machine, and its view of the disk.
func (k *making) startMachine(n Node) (*machine, error) {
	if err := k.groups.create(n.Name); err != nil {
		return nil, err
	}
	dir := k.c.nodeDir(n.Name)
	for _, sub := range []string{"etc", "etc.work", "opt", "opt.work", "var/lib/kubelet", "var/lib/containerd", "var/lib/cni", "var/lib/lash/bin", "var/log", "var/cache"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("node folder: %w", err)
		}
	}
	log, err := openLog(dir, "hold")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd, err := hold(k.groups, n.Name, k.programs.path["node"], log)
	if err != nil {
		return nil, err
	}
	m := &machine{name: n.Name, holder: cmd.Process.Pid, groups: k.groups}
	if err := k.watch(n.Name, "hold", cmd); err != nil {
		return nil, err
	}
	if err := k.files(n, dir); err != nil {
		return nil, err
	}
	if err := m.inside(func() error { return m.arrange(dir, n.Role, k.programs.path) }); err != nil {
		return nil, fmt.Errorf("%s: %w", n.Name, err)
	}
	return m, nil
}

func openLog(dir, name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "var/log", name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return f, nil
}

// files fills the node's layer over /etc before it is mounted.
func (k *making) files(n Node, dir string) error {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return fmt.Errorf("machine id: %w", err)
	}
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	for _, other := range k.c.Nodes {
		if other.Role == RoleFabric {
			continue
		}
		for _, a := range other.Addresses {
			hosts += a.String() + "\t" + other.Name + "\n"
		}
	}
	// The gateway answers that no name server runs there, so that a look-up fails at once.
	var resolv strings.Builder
	for _, s := range k.c.Subnets {
		fmt.Fprintf(&resolv, "nameserver %s\n", s.Gateway)
	}
	resolv.WriteString("options timeout:1 attempts:1\n")
	for name, text := range map[string]string{
		"hostname":    n.Name + "\n",
		"hosts":       hosts,
		"resolv.conf": resolv.String(),
		"machine-id":  hex.EncodeToString(id) + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("node folder: %w", err)
		}
	}
	for link, target := range map[string]string{"run": "/run", "lock": "/run/lock"} {
		if err := os.Symlink(target, filepath.Join(dir, "var", link)); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("node folder: %w", err)
		}
	}
	return os.MkdirAll(filepath.Join(dir, "var/tmp"), 0o1777)
}

// mountStep is one mount(2) call.
type mountStep struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

// arrange gives the machine its own /var, /run, /sys, bpffs and layers over /etc and /opt. The
// rest of the disk is the machine's that we are on. It runs inside the new namespaces, where no
// mount propagates in or out.
func (m *machine) arrange(dir string, role Role, bins map[string]string) error {
	if err := unix.Sethostname([]byte(m.name)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := mountPrograms(filepath.Join(dir, "var/lib/lash/bin"), bins); err != nil {
		return err
	}
	overlay := func(over string) mountStep {
		layer := filepath.Join(dir, filepath.Base(over))
		return mountStep{"overlay", over, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s.work", over, layer, layer)}
	}
	steps := []mountStep{
		overlay("/etc"),
		overlay("/opt"),
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"/sys/fs/cgroup", "/run/cgroup", "", unix.MS_BIND | unix.MS_REC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"/run/cgroup", "/sys/fs/cgroup", "", unix.MS_MOVE, ""},
		{"bpffs", "/sys/fs/bpf", "bpf", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=700"},
		{filepath.Join(m.groups.unified, m.name), cgroup2Path, "", unix.MS_BIND, ""},
		{filepath.Join(dir, "var"), "/var", "", unix.MS_BIND | unix.MS_REC, ""},
	}
	// Pods with Bidirectional or HostToContainer mounts need the tree to be shared.
	steps = append(steps, mountStep{"", "/", "", unix.MS_REC | unix.MS_SHARED, ""})
	for _, s := range steps {
		if strings.HasPrefix(s.target, "/run/") || s.target == "/opt" {
			if err := os.MkdirAll(s.target, 0o755); err != nil {
				return fmt.Errorf("mount point: %w", err)
			}
		}
		if err := unix.Mount(s.source, s.target, s.kind, s.flags, s.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", s.kind, s.target, err)
		}
	}
	for _, d := range []string{"/run/lock", "/run/netns", "/etc/cni/net.d", "/opt/cni/bin", "/etc/kubernetes/pki"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("node folder: %w", err)
		}
	}
	_ = os.Remove("/run/cgroup") // an empty folder, in nobody's way
	if err := shadowSettings(); err != nil {
		return err
	}
	if role == RoleFabric || role == RoleExternal {
		return nil
	}
	return placePlugins(bins)
}

// shadowSettings lays files over the few settings of the whole machine that a kubelet changes.
// They belong to the machine's owner; the kubelet finds the values that it wants.
func shadowSettings() error {
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		target := filepath.Join("/proc/sys", name)
		if _, err := os.Stat(target); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		source := filepath.Join("/run/lash-sysctl", name)
		if err := os.MkdirAll(filepath.Dir(source), 0o755); err != nil {
			return fmt.Errorf("settings: %w", err)
		}
		if err := os.WriteFile(source, []byte(value+"\n"), 0o644); err != nil {
			return fmt.Errorf("settings: %w", err)
		}
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("settings: mount over %s: %w", target, err)
		}
	}
	return nil
}

// mountPrograms shows the third-party programs in one folder of the node, wherever they are.
func mountPrograms(dir string, bins map[string]string) error {
	for name, path := range bins {
		target := filepath.Join(dir, name)
		f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o755)
		if err != nil {
			return fmt.Errorf("node folder: %w", err)
		}
		if err := f.Close(); err != nil {
			return fmt.Errorf("node folder: %w", err)
		}
		if err := unix.Mount(path, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", path, err)
		}
	}
	return nil
}

// placePlugins puts the reference CNI plugins where a distribution's package would have them.
func placePlugins(bins map[string]string) error {
	for _, name := range []string{"loopback", "ptp", "host-local", "portmap"} {
		if bins[name] == "" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(nodeBin, name))
		if err != nil {
			return fmt.Errorf("CNI plugin: %w", err)
		}
		if err := replaceFile(filepath.Join("/opt/cni/bin", name), data, 0o755); err != nil {
			return fmt.Errorf("CNI plugin: %w", err)
		}
	}
	return nil
}

// write puts files into the machine; it creates folders as needed. Keys end up 0600.
func (m *machine) write(files map[string][]byte) error {
	return m.inside(func() error {
		for path, data := range files {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			mode := fs.FileMode(0o644)
			if strings.HasSuffix(path, ".key") || strings.HasPrefix(path, "/etc/kubernetes/") && strings.HasSuffix(path, ".conf") {
				mode = 0o600
			}
			if err := replaceFile(path, data, mode); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
		}
		return nil
	})
}

// sysctl writes settings of the machine's network namespace, given as path below /proc/sys.
func (m *machine) sysctl(settings map[string]string) error {
	return m.inside(func() error {
		for path, value := range settings {
			if err := os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0o644); err != nil {
				return fmt.Errorf("%s: setting %s: %w", m.name, path, err)
			}
		}
		return nil
	})
}

// daemon starts a program of the cluster in the background, with a log of its own.
func (k *making) daemon(ctx context.Context, m *machine, name string, p process) error {
	log, err := openLog(k.c.nodeDir(m.name), name)
	if err != nil {
		return err
	}
	defer log.Close()
	p.detach, p.out, p.err = true, log, log
	cmd, err := m.start(ctx, p)
	if err != nil {
		return err
	}
	return k.watch(m.name, name, cmd)
}
