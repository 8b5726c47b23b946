// SPDX-License-Identifier: Apache-2.0

// Command lash-agent is everything that runs inside the cluster: the agent, the operator, the
// commands in the agent's pod, the init steps of a node, and both ends of the connectivity test and
// of measurements.
// Which of them it is depends on the name that it is called by, or else on its first argument.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"k8s.io/klog/v2"

	"lash.internal/lash/agent"
	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/config"
	"lash.internal/lash/agent/datapath/audit"
	"lash.internal/lash/agent/datapath/clean"
	"lash.internal/lash/agent/nodeinit"
	"lash.internal/lash/agent/operator"
	"lash.internal/lash/cmd/measure"
	"lash.internal/lash/cmd/pod"
	"lash.internal/lash/connectivity/probe"
	"lash.internal/lash/perf/netperf"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, filepath.Base(os.Args[0]), os.Args[1:])
	stop()
	os.Exit(code)
}

const usage = `usage: lash-agent COMMAND

  agent      the agent of a node (cilium-agent)
  operator   the operator of the cluster (cilium-operator-generic)
  cilium     the commands in the agent's pod (cilium, cilium-dbg)
  audit      what of Lash is on this node, as JSON
  init       one step of a node's preparation: ` + nodeinit.Steps + `
  echo       server of the connectivity test
  probe      client of the connectivity test
  soak       a steady load over one path, with what it lost
  perf       server and client of measurements
  netserver  the same server with netperf's flags
  netperf    the same client with netperf's flags
  version    print the version
`

func run(ctx context.Context, name string, args []string) int {
	if name == "lash-agent" {
		if len(args) == 0 {
			fmt.Fprint(os.Stderr, usage)
			return 2
		}
		name, args = args[0], args[1:]
	}
	switch name {
	case "agent", "cilium-agent":
		return daemon(ctx, args, agent.Run)
	case "operator", "cilium-operator-generic", "cilium-operator":
		return daemon(ctx, args, operator.Start)
	case "init":
		return nodeinit.Main(ctx, args, nodeinit.World{Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, CleanKernel: clean.Kernel})
	case "audit":
		return audit.Main(args, audit.World{Out: os.Stdout, Err: os.Stderr, Mounted: nodeinit.Mounted})
	case "echo":
		return exit(probe.EchoCommand(ctx, args, os.Stdout, os.Stderr))
	case "probe":
		err := probe.ProbeCommand(ctx, args, os.Stdin, os.Stdout, os.Stderr)
		if errors.Is(err, probe.ErrFailed) {
			return 1
		}
		return exit(err)
	case "soak":
		return exit(probe.SoakCommand(ctx, args, os.Stdin, os.Stdout, os.Stderr))
	case "perf":
		return measure.Main(ctx, args, os.Stdout, os.Stderr)
	case "netperf":
		return exit(netperf.ClientCommand(ctx, args, os.Stdout, os.Stderr))
	case "netserver":
		return exit(netperf.ServerCommand(ctx, args, os.Stdout, os.Stderr))
	case "version", "--version":
		fmt.Printf("lash-agent %s (Cilium %s)\n", api.Version, api.CiliumVersion)
		return 0
	case "help", "--help", "-h":
		fmt.Print(usage)
		return 0
	}
	if slices.Contains(pod.Names, name) {
		return pod.Main(pod.OS(name, args))
	}
	fmt.Fprintf(os.Stderr, "Error: unknown command %q\n\n%s", name, usage)
	return 2
}

func exit(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error: "+err.Error())
		return 1
	}
	return 0
}

// daemon reads the configuration and runs a part that lives until it is told to stop.
func daemon(ctx context.Context, args []string, run func(context.Context, *config.Config, *slog.Logger) error) int {
	cfg, err := config.Load(args, os.Getenv, os.Stderr)
	if errors.Is(err, config.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error: "+err.Error())
		terminationMessage(err)
		return 2
	}
	if cfg.CompatibilityLevel != "" {
		api.CiliumVersion = cfg.CompatibilityLevel
	}
	log := logger(cfg, os.Stderr)
	slog.SetDefault(log)
	klog.SetSlogLogger(log)
	if err := run(ctx, cfg, log); err != nil {
		log.Error("ended", "error", err)
		terminationMessage(err)
		return 1
	}
	return 0
}

func logger(cfg *config.Config, w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: slog.LevelInfo}
	if cfg.Debug {
		o.Level = slog.LevelDebug
	}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// terminationMessage leaves the reason where `kubectl describe pod` and `lash status` find it.
func terminationMessage(err error) {
	const file = "/dev/termination-log"
	if _, missing := os.Stat(file); missing == nil {
		_ = os.WriteFile(file, []byte(err.Error()), 0o644)
	}
}
