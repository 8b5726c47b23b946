// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/datapath/netlink"
	"lash.internal/lash/agent/rootfs"
)

// files looks at the places where Lash has files, and lists the folders that were asked for.
func (a *audit) files() {
	a.cniFiles()
	a.results()
	for _, dir := range []string{a.StateDir, a.RunDir, a.KeepDir} {
		a.tree(dir, "a file of the agent")
	}
	for _, dir := range a.Walk {
		a.tree(dir, "")
	}
}

func (a *audit) cniFiles() {
	confs, err := os.ReadDir(a.at(a.CNIConf))
	a.problem("CNI configurations", absent(err))
	for _, e := range confs {
		b, err := os.ReadFile(a.at(filepath.Join(a.CNIConf, e.Name())))
		if err != nil || !bytes.Contains(b, []byte("cilium-cni")) {
			continue
		}
		a.file(filepath.Join(a.CNIConf, e.Name()), "the CNI configuration of Lash")
	}
	bins, err := os.ReadDir(a.at(a.CNIBin))
	a.problem("CNI plugins", absent(err))
	for _, e := range bins {
		if e.Name() == "cilium-cni" || strings.HasPrefix(e.Name(), ".cilium-cni-") {
			a.file(filepath.Join(a.CNIBin, e.Name()), "the CNI plugin of Lash")
		}
	}
}

// results looks at what the runtime remembers of the plugin's answers.
func (a *audit) results() {
	files, err := os.ReadDir(a.at(a.CNIResults))
	a.problem("results of CNI plugins", absent(err))
	for _, e := range files {
		if strings.HasPrefix(e.Name(), "cilium-") {
			a.file(filepath.Join(a.CNIResults, e.Name()), "what the runtime remembers of the plugin's answers")
		}
	}
}

// absent drops the error of what is not there.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// tree lists a folder and what is in it, without other file systems that are mounted there. The
// folder itself is no trace when something of others is mounted below it.
func (a *audit) tree(dir, ours string) {
	root, err := rootfs.Path(a.Root, dir)
	if err != nil {
		a.problem(dir, absent(err))
		return
	}
	var own unix.Stat_t
	if err := unix.Stat(root, &own); err != nil {
		a.problem(dir, absent(&fs.PathError{Op: "stat", Path: root, Err: err}))
		return
	}
	foreign := false
	var dirs []string
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			a.problem(a.below(p), err)
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(p, &st) == nil && st.Dev != own.Dev {
			foreign = true
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() {
			dirs = append(dirs, a.below(p))
			return nil
		}
		a.file(a.below(p), ours)
		return nil
	})
	a.problem(dir, err)
	for i, p := range dirs {
		why := ours
		if foreign && i == 0 {
			why = ""
		}
		a.add("file", p+"/", "", why)
	}
}

// maxHashed is the size up to which the content of a file is part of its value, in bytes.
const maxHashed = 1 << 20

func (a *audit) file(path, ours string) {
	st, err := os.Lstat(a.at(path))
	if err != nil {
		a.problem(path, absent(err))
		return
	}
	value := st.Mode().String()
	switch {
	case st.Mode()&fs.ModeSymlink != 0:
		to, err := os.Readlink(a.at(path))
		a.problem(path, err)
		value += " to " + to
	case st.Mode().IsRegular() && st.Size() <= maxHashed:
		b, err := os.ReadFile(a.at(path))
		a.problem(path, absent(err))
		value += fmt.Sprintf(" %d bytes %x", len(b), sha256.Sum256(b))[:40]
	case st.Mode().IsRegular():
		value += fmt.Sprintf(" %d bytes", st.Size())
	}
	a.add("file", path, value, ours)
}

// mountLine is one mount of the node.
type mountLine struct{ point, kind, source string }

// mountTable reads the mounts below Root, as the node has them.
func (a *audit) mountTable() []mountLine {
	b, err := os.ReadFile("/proc/self/mountinfo")
	a.problem("mounts", err)
	var out []mountLine
	for line := range strings.Lines(string(b)) {
		// 36 35 98:0 /root /mnt rw,noatime shared:1 - ext4 /dev/root rw
		left, right, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(left), strings.Fields(right)
		if !ok || len(f) < 5 || len(g) < 2 {
			continue
		}
		point := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\134`, `\`).Replace(f[4])
		if point != a.Root && !strings.HasPrefix(point, strings.TrimSuffix(a.Root, "/")+"/") {
			continue
		}
		out = append(out, mountLine{a.below(point), g[0], g[1]})
	}
	return out
}

func (a *audit) cgroupMounts() []string {
	var out []string
	for _, m := range a.mountTable() {
		if m.kind == "cgroup2" {
			out = append(out, m.point)
		}
	}
	return out
}

func (a *audit) mounts() {
	own, err := a.Mounted(a.at(a.StateDir))
	a.problem("mounts of Lash", err)
	for i := range own {
		own[i] = a.real(own[i])
	}
	for _, m := range a.mountTable() {
		ours := ""
		if slices.Contains(own, m.point) {
			ours = "mounted by Lash"
		}
		a.add("mount", m.point, m.kind+" "+m.source, ours)
	}
}

// sysctls reads the settings of the network namespace.
func (a *audit) sysctls() {
	const root = "/proc/sys/net"
	saved, err := netlink.Saved(a.at(filepath.Join(a.StateDir, "sysctl.json")))
	a.problem("sysctls that Lash has changed", err)
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // it went with its device
		}
		path := strings.TrimPrefix(p, root+"/")
		if volatile(path) {
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return nil // some can only be written
		}
		v := strings.TrimSpace(string(b))
		ours := ""
		if was, ok := saved[path]; ok && was != v {
			ours = fmt.Sprintf("Lash has changed it from %q", was)
		}
		a.add("sysctl", "net/"+path, v, ours)
		return nil
	})
	a.problem("sysctls", err)
}

// volatile are settings that change by themselves.
func volatile(path string) bool {
	base := filepath.Base(path)
	return strings.HasSuffix(base, "_count") || base == "stable_secret" || base == "nf_conntrack_buckets" || strings.HasPrefix(base, "fib_sync_mem")
}
