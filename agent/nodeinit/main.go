// SPDX-License-Identifier: Apache-2.0

package nodeinit

import (
	"context"
	"flag"
	"fmt"
	"io"
)

// Steps lists the names that Main knows.
const Steps = "mount-bpffs, mount-cgroup, install-cni, clean-state, leave"

// KeptPrefix begins each line of the step leave that names a mount that others use and that stays.
const KeptPrefix = "kept: "

// World is what Main takes from outside.
type World struct {
	Out, Err io.Writer
	Getenv   func(string) string
	// CleanKernel removes what Lash has put into the kernel, given the BPF file system's mount point.
	CleanKernel func(ctx context.Context, bpfRoot string) error
}

// Main runs one step, `lash-agent init STEP [flags]`, and returns the exit code. Flags win over the
// environment variables that the chart sets.
func Main(ctx context.Context, args []string, w World) int {
	out, errw := w.Out, w.Err
	env := func(name, def string) string {
		if v := w.Getenv(name); v != "" {
			return v
		}
		return def
	}
	if len(args) == 0 {
		fmt.Fprintf(errw, "Error: init needs a step: %s\n", Steps)
		return 2
	}
	step, rest := args[0], args[1:]
	fl := flag.NewFlagSet("init "+step, flag.ContinueOnError)
	fl.SetOutput(errw)
	var run func() (string, error)
	say := func(done bool, yes, no string, err error) (string, error) {
		if done {
			return yes, err
		}
		return no, err
	}
	switch step {
	case "mount-bpffs":
		path := fl.String("path", env("BPF_ROOT", "/sys/fs/bpf"), "where the BPF file system has to be")
		state := fl.String("state-dir", "/run/lash", "where it is remembered that it was mounted")
		run = func() (string, error) {
			done, err := MountBPF(*path, *state)
			return say(done, "mounted bpffs at "+*path, "bpffs is mounted at "+*path, err)
		}
	case "mount-cgroup":
		path := fl.String("path", env("CGROUP_ROOT", "/run/cilium/cgroupv2"), "where the cgroup2 hierarchy has to be")
		host := fl.String("host-cgroup", "/host/sys/fs/cgroup", "the node's /sys/fs/cgroup")
		state := fl.String("state-dir", "/run/lash", "where it is remembered that it was mounted")
		run = func() (string, error) {
			done, err := MountCgroup(*path, *host, *state)
			return say(done, "bound the node's cgroup2 hierarchy at "+*path, "cgroup2 is mounted at "+*path, err)
		}
	case "install-cni":
		from := fl.String("from", "/opt/lash/bin/lash-cni", "the CNI plugin in this image")
		to := fl.String("to", env("CNI_BIN", "/host/opt/cni/bin")+"/cilium-cni", "where it goes on the node")
		run = func() (string, error) {
			done, err := InstallCNI(*from, *to)
			return say(done, "wrote "+*to, *to+" is up to date", err)
		}
	case "clean-state":
		bpfRoot := fl.String("bpf-root", env("BPF_ROOT", "/sys/fs/bpf"), "the node's BPF file system")
		conf := fl.String("cni-conf", "/host/etc/cni/net.d/05-cilium.conflist", "CNI configuration to remove")
		plugin := fl.String("cni-plugin", env("CNI_BIN", "/host/opt/cni/bin")+"/cilium-cni", "CNI plugin to remove")
		results := fl.String("cni-results", "/host/var/lib/cni/results", "folder in which the runtime remembers what CNI plugins have answered")
		all := fl.Bool("all", env("CILIUM_ALL_STATE", "false") == "true", "remove everything that Lash left on the node")
		kernel := fl.Bool("bpf", env("CILIUM_BPF_STATE", "false") == "true", "remove what Lash put into the kernel")
		run = func() (string, error) {
			if *kernel && !*all {
				return "removed programs, maps, devices and routes of Lash", w.CleanKernel(ctx, *bpfRoot)
			}
			if !*all {
				return "nothing to remove was asked for (--all or --bpf)", nil
			}
			t := Traces{CNIConf: *conf, CNIPlugin: *plugin, Results: *results, Folders: []string{"/run/lash", "/var/run/cilium", "/var/lib/lash-agent"}}
			err := Clean(ctx, t, func(ctx context.Context) error { return w.CleanKernel(ctx, *bpfRoot) })
			return "removed programs, maps, devices, routes and files of Lash", err
		}
	case "leave":
		root := fl.String("root", "/host", "where the node's file system is")
		state := fl.String("state-dir", "/run/lash", "the agent's state folder on the node")
		runDir := fl.String("run-dir", "/var/run/cilium", "the folder of the agent's sockets on the node")
		keep := fl.String("keep-dir", "/var/lib/lash-agent", "the folder of what the agent keeps on the node")
		run = func() (string, error) {
			kept, err := Leave(*root, *state, []string{*runDir, *keep})
			msg := "unmounted what Lash had mounted and removed empty folders"
			for _, k := range kept {
				msg += "\n" + KeptPrefix + k
			}
			return msg, err
		}
	default:
		fmt.Fprintf(errw, "Error: unknown init step %q, known: %s\n", step, Steps)
		return 2
	}
	if err := fl.Parse(rest); err != nil {
		return 2
	}
	if fl.NArg() > 0 {
		fmt.Fprintf(errw, "Error: init %s takes no argument %q\n", step, fl.Arg(0))
		return 2
	}
	msg, err := run()
	if err != nil {
		fmt.Fprintln(errw, "Error: "+err.Error())
		return 1
	}
	fmt.Fprintln(out, msg)
	return 0
}
