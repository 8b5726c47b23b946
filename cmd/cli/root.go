// SPDX-License-Identifier: Apache-2.0

// Package cli is the command tree of lash: one file a subcommand. A command file binds flags and
// prints; what it does lives in a library that knows nothing of cobra or of terminals.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"lash.internal/lash/cmd/kube"
)

// World is everything that the commands take from outside; tests give their own.
type World struct {
	In     io.Reader
	Out    io.Writer // results only
	Err    io.Writer // progress, warnings, errors
	Getenv func(string) string
	Args   []string // without the program's name

	Kube *kube.Flags // the cluster that the global flags choose; set by Main
}

// OS is the world of the real process.
func OS() World {
	return World{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Args: os.Args[1:]}
}

// Exit codes of lash.
const (
	ExitOK          = 0
	ExitFailed      = 1   // a check failed, or an error
	ExitUsage       = 2   // the command line is wrong
	ExitUnreachable = 3   // the cluster cannot be reached, or refuses
	ExitTimeout     = 4   // a wait ran out
	ExitInterrupted = 130 // Ctrl-C
)

// ExitError is an error with an exit code of its own. Quiet ones have been printed already.
type ExitError struct {
	Code  int
	Err   error
	Quiet bool
}

func (e *ExitError) Error() string { return e.Err.Error() }
func (e *ExitError) Unwrap() error { return e.Err }

// usageError marks an error as a mistake in the command line.
func usageError(format string, args ...any) error {
	return &ExitError{Code: ExitUsage, Err: fmt.Errorf(format, args...)}
}

// Main runs the command line of w and returns the exit code. The first Ctrl-C cancels the
// command's context so that it can clean up, the second ends the process at once.
func Main(w World) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop()
	}()
	w.Kube = kube.NewFlags(w.Getenv)
	// The client library logs what it also returns as an error, and connections that we close.
	klog.SetLogger(logr.Discard())
	root := newRoot(w)
	root.SetArgs(w.Args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	if c, kerr := w.Kube.Client(); kerr == nil {
		err = c.Explain(err)
	}
	var ee *ExitError
	if errors.As(err, &ee) {
		if !ee.Quiet {
			fmt.Fprintln(w.Err, "Error: "+err.Error())
		}
		return ee.Code
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		fmt.Fprintln(w.Err, "Interrupted")
		return ExitInterrupted
	}
	fmt.Fprintln(w.Err, "Error: "+err.Error())
	return exitCode(err)
}

// exitCode is the code of an error that has none of its own.
func exitCode(err error) int {
	switch {
	case errors.Is(err, kube.ErrConfig), errors.Is(err, kube.ErrUnreachable), errors.Is(err, kube.ErrForbidden):
		return ExitUnreachable
	case errors.Is(err, kube.ErrTimeout):
		return ExitTimeout
	}
	return ExitFailed
}

func newRoot(w World) *cobra.Command {
	root := &cobra.Command{
		Use:   "lash",
		Short: "Install, show, check and measure an eBPF network for Kubernetes",
		Long: `lash installs an eBPF network into a Kubernetes cluster, shows its state, checks that it works
and measures it. What it installs keeps Cilium's names, so manifests, values and scripts go on working.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(w.In)
	root.SetOut(w.Out)
	root.SetErr(w.Err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return &ExitError{Code: ExitUsage, Err: err}
	})
	w.Kube.AddTo(root.PersistentFlags())
	for _, add := range commands {
		root.AddCommand(add(w))
	}
	strict(root)
	return root
}

// strict makes every mistake in what follows a command's name a usage error: arguments, flags that
// exclude each other, and names of commands that do not exist.
func strict(c *cobra.Command) {
	args := c.Args
	if !c.Runnable() {
		c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		args = noSuchCommand
	} else if c.HasSubCommands() {
		args = noSuchCommand
	}
	c.Args = func(c *cobra.Command, given []string) error {
		err := c.ValidateFlagGroups()
		if err == nil && args != nil {
			err = args(c, given)
		}
		if err != nil {
			return &ExitError{Code: ExitUsage, Err: err}
		}
		return nil
	}
	for _, sub := range c.Commands() {
		strict(sub)
	}
}

// noSuchCommand is the error of a command that only holds others.
func noSuchCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf(": did you mean %s?", strings.Join(near, " or "))
	}
	return fmt.Errorf("unknown command %q for %q%s", args[0], c.CommandPath(), hint)
}

// commands is the tree, in the order of --help.
var commands = []func(World) *cobra.Command{
	newInstall,
	newUpgrade,
	newRollback,
	newHistory,
	newConfig,
	newUninstall,
	newStatus,
	newSysdump,
	newIdentity,
	newService,
	newConnectivity,
	newPerf,
	newNetperf,
	newNetserver,
	newCluster,
	newImage,
	newChart,
	newVersion,
}
