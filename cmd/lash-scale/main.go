// SPDX-License-Identifier: Apache-2.0

// Command lash-scale is `make bench-scale`: it measures the agent beside kube-proxy with the Services of
// large clusters, which a stand-in of the API server makes up. It belongs to the repository, not to the
// product.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"lash.internal/lash/connectivity/cluster"
	"lash.internal/lash/perf/bench"
	"lash.internal/lash/perf/scale"
	"lash.internal/lash/perf/scale/dial"
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
	if len(args) == 1 && args[0] == "dial" {
		return dial.Serve(in, out) // the part that runs on a node
	}
	o := scale.Options{Starts: map[string]int{}}
	fs := flag.NewFlagSet("lash-scale", flag.ContinueOnError)
	fs.SetOutput(errOut)
	var contenders, sizes, parts, bin, results, report, title string
	var starts, others int
	var verbose, render bool
	fs.StringVar(&contenders, "contenders", "lash,iptables,nftables", "what to measure, with commas")
	fs.StringVar(&sizes, "sizes", "10000x2,30000x4", "Services x endpoints of each, with commas; a third number is ports of each")
	fs.StringVar(&parts, "parts", strings.Join(scale.Parts, ","), "what to measure of each, with commas")
	fs.StringVar(&bin, "bin", "bin", "folder of lash-agent")
	fs.IntVar(&starts, "starts", 5, "cold and warm starts of Lash")
	fs.IntVar(&others, "kube-proxy-starts", 1, "cold and warm starts of kube-proxy")
	fs.IntVar(&o.Events, "events", 200, "single changes of each kind")
	fs.DurationVar(&o.EventsLimit, "events-limit", time.Minute, "time for the single changes of a kind")
	fs.IntVar(&o.Rate, "rate", 100, "changes a second")
	fs.DurationVar(&o.Length, "length", time.Minute, "time to make changes for")
	fs.DurationVar(&o.Limit, "limit", 5*time.Minute, "time for a start or a change, then it counts as failed")
	fs.StringVar(&results, "results", "perf/results/scale.json", "file of figures; those that are there and not measured again stay")
	fs.StringVar(&report, "report", "perf/results/scale.md", "report to write of all figures in the file")
	fs.StringVar(&title, "command", "make bench-scale", "what the report says to type")
	fs.BoolVar(&verbose, "verbose", false, "show what contenders say")
	fs.BoolVar(&render, "render", false, "measure nothing, write the report again")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("no argument %q is known", fs.Arg(0))
	}
	all, err := scale.Read(results)
	if err != nil {
		return err
	}
	if render {
		return write(all, results, report)
	}
	if o.Contenders, err = known("contenders", contenders, names()); err != nil {
		return err
	}
	if o.Parts, err = known("parts", parts, scale.Parts); err != nil {
		return err
	}
	if o.Sizes, err = parseSizes(sizes); err != nil {
		return err
	}
	if starts < 1 || others < 1 || o.Events < 0 || o.Rate < 1 {
		return errors.New("--starts, --kube-proxy-starts and --rate are at least 1, --events at least 0")
	}
	start := time.Now()
	o.Say = func(format string, args ...any) {
		fmt.Fprintf(errOut, "[%6.1fs] %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
	if verbose {
		o.Log = errOut
	}
	for _, c := range o.Contenders {
		o.Starts[c] = others
	}
	o.Starts[scale.Lash] = starts
	if o.Self, err = os.Executable(); err != nil {
		return fmt.Errorf("own path: %w", err)
	}
	if o.Agent, err = filepath.Abs(filepath.Join(bin, "lash-agent")); err != nil {
		return fmt.Errorf("folder of programs: %w", err)
	}
	if o.Version, err = cluster.Version("kubernetes"); err != nil {
		return err
	}
	if slices.ContainsFunc(o.Contenders, func(c string) bool { return c != scale.Lash }) {
		if o.KubeProxy, err = cluster.FindProgram(ctx, "kube-proxy", "", func(s string) { o.Say("%s", s) }); err != nil {
			return err
		}
	}
	programs := map[string][]string{"lash-agent": {o.Agent, "version"}, "nft": {"nft", "--version"}}
	if o.KubeProxy != "" {
		programs["kube-proxy"] = []string{o.KubeProxy, "--version"}
	}
	if all.Machine, err = bench.Describe(ctx, programs); err != nil {
		return err
	}
	all.Machine.Command = title
	return scale.Run(ctx, o, all, func() error { return write(all, results, report) })
}

func write(all *scale.Results, results, report string) error {
	if err := all.Write(results); err != nil {
		return err
	}
	if err := os.WriteFile(report, []byte(scale.Report(all, results)), 0o644); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

func names() []string {
	var out []string
	for _, c := range scale.Contenders {
		out = append(out, c.Name)
	}
	return out
}

func known(flag, text string, all []string) ([]string, error) {
	list := strings.Split(text, ",")
	for _, s := range list {
		if !slices.Contains(all, s) {
			return nil, fmt.Errorf("--%s: %q is none of %s", flag, s, strings.Join(all, ", "))
		}
	}
	return list, nil
}

func parseSizes(text string) ([]scale.Size, error) {
	var out []scale.Size
	for _, s := range strings.Split(text, ",") {
		numbers := []int{0, 0, 1}
		parts := strings.Split(s, "x")
		bad := fmt.Errorf("--sizes: %q is not Services x endpoints, such as 10000x2", s)
		if len(parts) < 2 || len(parts) > 3 {
			return nil, bad
		}
		for i, p := range parts {
			n, err := strconv.Atoi(p)
			if err != nil || n < 1 {
				return nil, bad
			}
			numbers[i] = n
		}
		out = append(out, scale.Size{Services: numbers[0], Endpoints: numbers[1], Ports: numbers[2]})
	}
	return out, nil
}
