// SPDX-License-Identifier: Apache-2.0

// Command lash-conformance is `make conformance`: it runs Kubernetes' own [sig-network] tests in a cluster
// of its own with Lash and without kube-proxy, and writes the report. It belongs to the repository, not to
// the product.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lash.internal/lash/connectivity/conformance"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error: "+err.Error())
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	if len(args) == 2 && args[0] == "balance" {
		return conformance.Balance(ctx, args[1], out) // the part that runs on the host outside the cluster
	}
	o := conformance.Options{}
	fs := flag.NewFlagSet("lash-conformance", flag.ContinueOnError)
	fs.SetOutput(errOut)
	var set, report string
	fs.StringVar(&o.Name, "name", "conformance", "name of the cluster; one of that name that is there is deleted")
	fs.StringVar(&o.Cluster, "cluster", "", "use this cluster, with Lash in it, as it is")
	fs.BoolVar(&o.Keep, "keep", false, "leave the cluster for a look at it")
	fs.StringVar(&o.Lash, "lash", "bin/lash", "program to install with")
	fs.StringVar(&o.Suite, "suite", "connectivity/conformance/suite", "folder of the suite's module")
	fs.StringVar(&o.Family, "ip-family", "dual", "ipv4, ipv6 or dual")
	fs.IntVar(&o.Workers, "workers", 6, "nodes beside the control plane, in three zones; some tests want two in each")
	fs.IntVar(&o.Procs, "procs", 3, "tests at a time")
	fs.StringVar(&o.Focus, "focus", "", "regular expression on the names of tests to run (default: all of [sig-network])")
	fs.StringVar(&set, "set", "", "values for lash install, with commas")
	fs.StringVar(&o.Logs, "logs", "bin/conformance", "folder for what the tests print")
	fs.StringVar(&report, "report", "", "write the report to this name with .md and .xml; else only its sums are printed")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("no argument %q is known", fs.Arg(0))
	}
	if set != "" {
		o.Set = strings.Split(set, ",")
	}
	var err error
	if o.Self, err = os.Executable(); err != nil {
		return fmt.Errorf("own path: %w", err)
	}
	for _, path := range []*string{&o.Lash, &o.Suite, &o.Logs} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	start := time.Now()
	o.Progress = func(format string, args ...any) {
		fmt.Fprintf(errOut, "[%6.1fs] %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
	r, err := conformance.Run(ctx, o)
	if r == nil {
		return err
	}
	r.Command = strings.Join(append([]string{"lash-conformance"}, args...), " ")
	var uts unix.Utsname
	if uerr := unix.Uname(&uts); uerr != nil {
		return fmt.Errorf("kernel: %w", uerr)
	}
	r.Kernel = unix.ByteSliceToString(uts.Release[:])
	for _, t := range r.Tests {
		if t.Outcome == conformance.Failed {
			fmt.Fprintf(out, "FAILED %s\n       %s\n", t.Name, strings.ReplaceAll(t.Why, "\n", "\n       "))
		}
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d not run, in %s\n",
		r.Count(conformance.Passed), r.Count(conformance.Failed), r.Count(conformance.Skipped), r.Took.Round(time.Second))
	if report != "" {
		err = errors.Join(err, write(report+".md", r.Markdown), write(report+".xml", r.JUnit))
	}
	return errors.Join(err, r.Err())
}

func write(path string, what func(io.Writer) error) error {
	var b bytes.Buffer
	if err := what(&b); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
