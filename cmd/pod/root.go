// SPDX-License-Identifier: Apache-2.0

// Package pod is the command tree of the programs inside the agent's pod: cilium, which is also
// called cilium-dbg. Its commands ask the agent over its unix socket and print; they take no
// colours and no terminal, because they run under kubectl exec and in probes.
package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/api/client"
)

// World is what the commands take from outside; tests give their own.
type World struct {
	// In is standard input where that is a pipe, else nil: commands that go on for ever end with it.
	In     io.Reader
	Out    io.Writer
	Err    io.Writer
	Getenv func(string) string
	Args   []string // without the program's name
	// Name is how the program was called; "cilium" when empty.
	Name string
}

// OS is the world of the real process. args are what follows the program's name.
func OS(name string, args []string) World {
	w := World{Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Args: args, Name: filepath.Base(name)}
	if st, err := os.Stdin.Stat(); err == nil && st.Mode()&(os.ModeNamedPipe|os.ModeSocket) != 0 {
		w.In = os.Stdin
	}
	return w
}

// Names are the names that the tree is known under.
var Names = []string{"cilium", "cilium-dbg"}

// quiet is an error that has been printed already; only the exit code is left of it.
type quiet struct{ error }

// Main runs the command line of w and returns the exit code: 0, or 1 for any failure.
func Main(w World) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot(w)
	root.SetArgs(w.Args)
	err := root.ExecuteContext(ctx)
	if err == nil || (ctx.Err() != nil && errors.Is(err, context.Canceled)) {
		return 0
	}
	if !errors.As(err, &quiet{}) {
		fmt.Fprintln(w.Err, "Error: "+err.Error())
	}
	return 1
}

// app is what every command needs.
type app struct {
	w    World
	host string
}

func (a *app) client() *client.Client {
	host := a.host
	if host == "" && a.w.Getenv != nil {
		host = a.w.Getenv(api.SocketEnv)
	}
	return client.New(host)
}

func newRoot(w World) *cobra.Command {
	if w.Name == "" {
		w.Name = "cilium"
	}
	a := &app{w: w}
	root := &cobra.Command{
		Use:           w.Name,
		Short:         "Ask the agent of this node",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(w.Out)
	root.SetErr(w.Err)
	root.PersistentFlags().StringVarP(&a.host, "host", "H", "", "socket of the agent (default unix://"+api.SocketPath+", or $"+api.SocketEnv+")")
	root.AddCommand(
		newBPF(a), newConfig(a), newEndpoint(a), newIdentity(a), newIP(a), newMap(a), newMetrics(a),
		newMonitor(a), newNode(a), newService(a), newStatus(a), newVersion(a),
	)
	return root
}

// group is a command that only holds others.
func group(use, short string, sub ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(sub...)
	return c
}
