// SPDX-License-Identifier: Apache-2.0

// Package audit looks at everything on a node that a network may leave its traces in: devices,
// addresses, routes, rules, neighbours, queues, attached programs, pins, sysctls, mounts and files.
// It says of each thing whether Lash has put it there. It only reads, and needs no agent.
//
// Programs are found by where they are attached and by their pins, never by listing all of the
// kernel: nodes may share one.
package audit

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/rootfs"
)

// Options say where to look.
type Options struct {
	Root       string // where the node's file system is seen
	BPFRoot    string // the BPF file system, below Root
	CgroupRoot string // the cgroup that socket programs are attached to, below Root
	CNIConf    string // folder of CNI configurations, below Root
	CNIBin     string // folder of CNI plugins, below Root
	CNIResults string // folder in which the runtime remembers what CNI plugins have answered, below Root
	RunDir     string // folder of the agent's sockets, below Root
	StateDir   string // folder of the agent's state, below Root
	KeepDir    string // folder of what the agent keeps over a reboot, below Root
	// Walk are folders whose files are listed, too, below Root.
	Walk []string
	// Mounted reads which mounts were made by Lash from a state folder.
	Mounted func(stateDir string) ([]string, error)
}

// audit collects.
type audit struct {
	Options
	own map[string]bool // names of our programs
	out api.NodeAudit
}

func (a *audit) add(kind, name, value, ours string) {
	a.out.Items = append(a.out.Items, api.NodeItem{Kind: kind, Name: name, Value: value, Ours: ours})
}

// problem notes what could not be looked at; a nil error is none.
func (a *audit) problem(what string, err error) {
	if err == nil {
		return
	}
	text := what + ": " + err.Error()
	if !slices.Contains(a.out.Problems, text) {
		a.out.Problems = append(a.out.Problems, text)
	}
}

// at is a path of the node as this process sees it.
func (a *audit) at(path string) string { return filepath.Join(a.Root, path) }

// real is a path of the node with its symbolic links followed, or the path itself where there is
// nothing.
func (a *audit) real(path string) string {
	p, err := rootfs.Path(a.Root, path)
	if err != nil {
		return filepath.Clean(path)
	}
	return a.below(p)
}

// Take looks at all of it. What cannot be looked at is among the problems of the result.
func Take(o Options) api.NodeAudit {
	a := &audit{Options: o, out: api.NodeAudit{Items: []api.NodeItem{}}}
	for _, p := range []*string{&a.BPFRoot, &a.CgroupRoot, &a.CNIConf, &a.CNIBin, &a.CNIResults, &a.RunDir, &a.StateDir, &a.KeepDir} {
		*p = a.real(*p)
	}
	a.network()
	a.files()
	a.mounts()
	a.programs()
	a.sysctls()
	slices.SortFunc(a.out.Items, func(x, y api.NodeItem) int {
		return cmp.Or(cmp.Compare(x.Kind, y.Kind), cmp.Compare(x.Name, y.Name), cmp.Compare(x.Value, y.Value))
	})
	a.out.Items = slices.Compact(a.out.Items)
	return a.out
}

// World is what Main takes from outside.
type World struct {
	Out, Err io.Writer
	// Mounted reads which mounts were made by Lash from a state folder.
	Mounted func(stateDir string) ([]string, error)
}

// Main is `lash-agent audit`: it writes a NodeAudit as JSON and returns the exit code.
func Main(args []string, w World) int {
	o := Options{Mounted: w.Mounted}
	fl := flag.NewFlagSet("audit", flag.ContinueOnError)
	fl.SetOutput(w.Err)
	all := fl.Bool("all", false, "everything that is there, not only the traces of Lash")
	walk := fl.String("walk", "", "with --all: folders whose files are listed, separated by commas")
	fl.StringVar(&o.Root, "root", "/", "where the node's file system is")
	fl.StringVar(&o.BPFRoot, "bpf-root", "/sys/fs/bpf", "BPF file system of the node")
	fl.StringVar(&o.CgroupRoot, "cgroup-root", "/run/cilium/cgroupv2", "cgroup of the node's socket programs")
	fl.StringVar(&o.CNIConf, "cni-conf", "/etc/cni/net.d", "folder of the node's CNI configurations")
	fl.StringVar(&o.CNIBin, "cni-bin", "/opt/cni/bin", "folder of the node's CNI plugins")
	fl.StringVar(&o.CNIResults, "cni-results", "/var/lib/cni/results", "folder in which the node's runtime remembers what CNI plugins have answered")
	fl.StringVar(&o.RunDir, "run-dir", "/var/run/cilium", "folder of the agent's sockets")
	fl.StringVar(&o.StateDir, "state-dir", "/run/lash", "folder of the agent's state")
	fl.StringVar(&o.KeepDir, "keep-dir", "/var/lib/lash-agent", "folder of what the agent keeps over a reboot")
	if err := fl.Parse(args); err != nil {
		return 2
	}
	if fl.NArg() > 0 {
		fmt.Fprintf(w.Err, "Error: audit takes no argument %q\n", fl.Arg(0))
		return 2
	}
	if *walk != "" {
		o.Walk = strings.Split(*walk, ",")
	}
	found := Take(o)
	if !*all {
		found.Items = found.Traces()
	}
	enc := json.NewEncoder(w.Out)
	enc.SetIndent("", " ")
	if err := enc.Encode(found); err != nil {
		fmt.Fprintln(w.Err, "Error: "+err.Error())
		return 1
	}
	return 0
}
