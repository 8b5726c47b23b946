// SPDX-License-Identifier: Apache-2.0

// Command lash-bench is `make bench`: it measures Lash beside bare paths in clusters of its own, and
// writes BENCHMARKS.md and a file with every sample. It belongs to the repository, not to the product.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"lash.internal/lash/perf/bench"
	"lash.internal/lash/perf/netperf"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error: "+err.Error())
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) error {
	if len(args) == 1 && args[0] == "cni" {
		return bench.ServeCNIJob(ctx, in, out) // the part of the bench that runs inside a node
	}
	o := bench.Options{}
	fs := flag.NewFlagSet("lash-bench", flag.ContinueOnError)
	fs.SetOutput(errOut)
	var groups, tests, family, results, report, render string
	var maxLoad float64
	fs.StringVar(&o.Name, "name", "bench", "name of the clusters; one of that name that is there is deleted")
	fs.StringVar(&o.Bin, "bin", "bin", "folder of lash, lash-agent and lash-cni")
	fs.IntVar(&o.Rounds, "rounds", 10, "undisturbed rounds to measure")
	fs.IntVar(&o.Attempts, "attempts", 0, "rounds at most when some are disturbed (default: twice as many as --rounds)")
	fs.DurationVar(&o.Patience, "patience", 30*time.Second, "time to wait for a quiet machine before a round")
	fs.DurationVar(&o.Length, "duration", 2*time.Second, "time of one sample, in whole seconds")
	fs.IntVar(&o.ClientCPU, "client-cpu", 0, "processor to bind clients to")
	fs.IntVar(&o.ServerCPU, "server-cpu", 1, "processor to bind servers to; that of clients makes a ratio one of processor time")
	fs.IntVar(&o.Starts, "starts", 10, "agents to start, with programs in place and on a clean node")
	fs.DurationVar(&o.Idle, "idle", time.Minute, "time to watch the idle agent for, 0: not")
	fs.StringVar(&groups, "groups", "", "groups of paths, with commas (default: all)")
	fs.StringVar(&tests, "tests", "", "tests, with commas (default: TCP_RR,TCP_CRR,TCP_STREAM)")
	fs.StringVar(&family, "family", "ipv4", "ipv4 or ipv6")
	fs.StringVar(&o.Netperf, "netperf", "", "folder of the real netperf and netserver, to compare the measuring program with (default: PATH)")
	fs.StringVar(&results, "results", "perf/results", "folder for the file with every sample")
	fs.StringVar(&report, "report", "BENCHMARKS.md", "file to write the report to")
	fs.StringVar(&render, "render", "", "measure nothing, write the report of these result files again, with commas; each with groups of its own")
	fs.Float64Var(&maxLoad, "max-load", 1, "refuse to begin above this load average, 0: never")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("no argument %q is known", fs.Arg(0))
	}
	if render != "" {
		return renderFiles(list(render), report)
	}
	switch family {
	case "ipv4":
	case "ipv6":
		o.IPv6 = true
	default:
		return fmt.Errorf("family %q: use ipv4 or ipv6", family)
	}
	if o.Attempts == 0 {
		o.Attempts = 2 * o.Rounds
	}
	o.Groups = list(groups)
	o.Tests = bench.DefaultTests
	if tests != "" {
		o.Tests = nil
		for _, t := range list(tests) {
			o.Tests = append(o.Tests, netperf.Test(strings.ToUpper(t)))
		}
	}
	if load, err := bench.Load(); err != nil {
		return err
	} else if maxLoad > 0 && load > maxLoad {
		return fmt.Errorf("the load average is %.2f: the machine is at work on something else; wait, or give --max-load 0 and get disturbed figures", load)
	}
	o.Command = command(fs)
	var err error
	if o.Self, err = os.Executable(); err != nil {
		return fmt.Errorf("own path: %w", err)
	}
	if o.Bin, err = filepath.Abs(o.Bin); err != nil {
		return fmt.Errorf("folder of programs: %w", err)
	}
	start := time.Now()
	o.Say = func(format string, args ...any) {
		fmt.Fprintf(errOut, "[%6.1fs] %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
	return measure(ctx, o, results, report)
}

// command is what to type for the same measurement: the flags that change what is measured.
func command(fs *flag.FlagSet) string {
	out := "make bench"
	variable := map[string]string{"rounds": "ROUNDS", "duration": "DURATION", "groups": "PATHS", "tests": "TESTS", "family": "FAMILY"}
	var more []string
	fs.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "rounds", "duration", "groups", "tests", "family":
			out += " " + variable[f.Name] + "=" + f.Value.String()
		case "client-cpu", "server-cpu", "starts", "idle", "attempts", "patience":
			more = append(more, "--"+f.Name+" "+f.Value.String())
		}
	})
	if len(more) > 0 {
		out += " BENCH='" + strings.Join(more, " ") + "'"
	}
	return out
}

// measure runs the bench. The file with the samples grows while it does; the report is written at the end.
func measure(ctx context.Context, o bench.Options, results, report string) error {
	if err := os.MkdirAll(results, 0o755); err != nil {
		return fmt.Errorf("folder of results: %w", err)
	}
	path := filepath.Join(results, time.Now().UTC().Format("2006-01-02T1504")+".jsonl")
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("file of results: %w", err)
	}
	o.Records = f
	records, err := bench.Run(ctx, o)
	if cerr := f.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("file of results: %w", cerr)
	}
	if err != nil && len(records) == 0 {
		return errors.Join(err, os.Remove(path))
	}
	if err != nil {
		return fmt.Errorf("%w\nwhat was measured before is in %s", err, path)
	}
	if err := write(records, []string{path}, report); err != nil {
		return err
	}
	o.Say("wrote %s and %s", report, path)
	return nil
}

func renderFiles(results []string, report string) error {
	var all []bench.Record
	for _, path := range results {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("file of results: %w", err)
		}
		records, err := bench.ReadRecords(f)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, records...)
	}
	return write(all, results, report)
}

// notesFile beside the results holds what people say about them: it ends the report.
const notesFile = "notes.md"

func write(records []bench.Record, results []string, report string) error {
	text, err := bench.Report(records, strings.Join(results, "`, `"))
	if err != nil {
		return err
	}
	notes, err := os.ReadFile(filepath.Join(filepath.Dir(results[0]), notesFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("notes: %w", err)
	}
	if err := os.WriteFile(report, append([]byte(text), notes...), 0o644); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

func list(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}
