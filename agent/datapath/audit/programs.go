// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/datapath/attach"
	"lash.internal/lash/bpf"
)

// cgroupKinds are the ways of attaching to a cgroup.
var cgroupKinds = []ebpf.AttachType{
	ebpf.AttachCGroupInetIngress, ebpf.AttachCGroupInetEgress, ebpf.AttachCGroupInetSockCreate, ebpf.AttachCgroupInetSockRelease,
	ebpf.AttachCGroupSockOps, ebpf.AttachCGroupDevice, ebpf.AttachCGroupSysctl,
	ebpf.AttachCGroupInet4Bind, ebpf.AttachCGroupInet6Bind, ebpf.AttachCGroupInet4PostBind, ebpf.AttachCGroupInet6PostBind,
	ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect,
	ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg, ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg,
	ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername, ebpf.AttachCgroupInet4GetSockname, ebpf.AttachCgroupInet6GetSockname,
	ebpf.AttachCGroupGetsockopt, ebpf.AttachCGroupSetsockopt,
}

// maxProgramName is how much of a program's name the kernel keeps, in bytes. The whole name can be
// had from its type information.
const maxProgramName = 15

// ownPrograms are the names of the programs of this version, whole and as the kernel keeps them.
func ownPrograms() (map[string]bool, error) {
	out := map[string]bool{}
	for _, load := range []func() (*ebpf.CollectionSpec, error){bpf.LoadTc, bpf.LoadSock, bpf.LoadGc} {
		spec, err := load()
		if err != nil {
			return nil, fmt.Errorf("programs of this version: %w", err)
		}
		for _, p := range spec.Programs {
			out[p.Name] = true
			out[p.Name[:min(len(p.Name), maxProgramName)]] = true
		}
	}
	return out, nil
}

// program notes one attached program.
func (a *audit) program(where string, s attach.Seen) {
	ours := ""
	if a.own == nil {
		var err error
		a.own, err = ownPrograms()
		a.problem("names of programs", err)
	}
	switch {
	case s.How == attach.ByFilter && strings.HasPrefix(s.Name, attach.FilterPrefix), s.How != attach.ByFilter && a.own[s.Name]:
		ours = "a program of Lash"
	case s.Name == "":
		a.problem("names of attached programs", errors.New("need CAP_SYS_ADMIN to be read, so programs of Lash cannot be told from others"))
	}
	name := s.Name
	if name == "" {
		name = fmt.Sprintf("id %d", s.ID)
	}
	a.add("program", where+" "+name, s.How, ours)
}

// programs looks at the cgroups and at the BPF file system.
func (a *audit) programs() {
	seen := map[uint64]bool{} // a cgroup may be mounted more than once
	for _, dir := range append([]string{a.CgroupRoot}, a.cgroupMounts()...) {
		var st unix.Statfs_t
		var id unix.Stat_t
		if unix.Statfs(a.at(dir), &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC || unix.Stat(a.at(dir), &id) != nil || seen[id.Ino] {
			continue
		}
		seen[id.Ino] = true
		for _, kind := range cgroupKinds {
			found, err := attach.OnCgroup(a.at(dir), kind)
			a.problem("programs on cgroup "+dir, err)
			for _, s := range found {
				a.program(dir+" "+kind.String(), s)
			}
		}
	}
	a.pins()
}

func (a *audit) pins() {
	var st unix.Statfs_t
	if unix.Statfs(a.at(a.BPFRoot), &st) != nil || st.Type != unix.BPF_FS_MAGIC {
		return
	}
	own := filepath.Join(a.BPFRoot, "lash")
	err := filepath.WalkDir(a.at(a.BPFRoot), func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name := a.below(p)
		if name == filepath.Clean(a.BPFRoot) {
			return nil
		}
		ours := ""
		if name == own || strings.HasPrefix(name, own+"/") {
			ours = "a pin of Lash"
		}
		a.add("pin", name, d.Type().String(), ours)
		return nil
	})
	a.problem("pins", err)
}

// below is a path of this process as the node has it.
func (a *audit) below(path string) string {
	rel, err := filepath.Rel(a.Root, path)
	if err != nil {
		return path
	}
	return "/" + rel
}
