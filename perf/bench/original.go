// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"lash.internal/lash/perf/lab"
	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/stats"
)

// original is the real netperf, when this machine has one.
type original struct {
	client, server string // programs
}

// originalPort is the control port of the real server, beside ours.
const originalPort = netperf.DefaultPort + 1

// findOriginal looks in a folder, or in PATH.
func findOriginal(dir string) (*original, error) {
	name := func(base string) string {
		if dir != "" {
			return filepath.Join(dir, base)
		}
		return base
	}
	client, err := exec.LookPath(name("netperf"))
	if err != nil {
		return nil, fmt.Errorf("no netperf: %w", err)
	}
	server, err := exec.LookPath(name("netserver"))
	if err != nil {
		return nil, fmt.Errorf("no netserver: %w", err)
	}
	return &original{client, server}, nil
}

// compareTools measures each pair of our programs and the original ones, over one and the same path.
func (b *run) compareTools(ctx context.Context, groups []Group) error {
	if len(groups) == 0 {
		return nil
	}
	tool, err := findOriginal(b.o.Netperf)
	if err != nil && b.o.Netperf != "" {
		return err
	}
	if err != nil {
		for _, g := range groups {
			if err := b.record(Record{Skipped: &Skipped{What: g.Title, Why: "there is no netperf in PATH"}}); err != nil {
				return err
			}
		}
		return nil
	}
	o := b.labOptions()
	o.Second = []string{tool.server, "-D", "-p", strconv.Itoa(originalPort)}
	l, err := lab.New(ctx, o)
	if err != nil {
		return fmt.Errorf("bare paths: %w", err)
	}
	defer l.Close()
	if release, err := stayAwake(latencyFile); err == nil {
		defer release()
	} else if err := b.record(Record{Skipped: &Skipped{What: "The measuring program, with processors that do not sleep", Why: err.Error()}}); err != nil {
		return err
	}
	var courses []*course
	for _, test := range b.o.Tests {
		for _, g := range groups {
			c := &course{group: g.Name, test: test}
			for _, p := range pairs {
				c.paths = append(c.paths, path{p.name, func(ctx context.Context, t netperf.Test) (netperf.Result, error) {
					return b.overTool(ctx, l, tool, *g.Tool, p, t)
				}})
			}
			courses = append(courses, c)
		}
	}
	return b.field().run(ctx, courses)
}

// overTool runs one test with a pair of programs.
func (b *run) overTool(ctx context.Context, l *lab.Lab, tool *original, g Tool, p pair, test netperf.Test) (netperf.Result, error) {
	host, err := l.Addr(lab.Direct2, false)
	if err != nil {
		return netperf.Result{}, err
	}
	if g.Loopback {
		host = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if b.o.IPv6 {
			host = netip.IPv6Loopback()
		}
	}
	to := netip.AddrPortFrom(host, netperf.DefaultPort)
	if p.server {
		to = netip.AddrPortFrom(host, originalPort)
	}
	if !p.client {
		return decode(l.Exec(ctx, g.From, append([]string{b.agentFile()}, b.clientArgs(to, test)...)...))
	}
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return netperf.Result{}, ctx.Err()
	}
	out, used, err := l.ExecTimed(ctx, g.From, tool.client, "-H", to.Addr().String(), "-p", strconv.Itoa(int(to.Port())), "-t", string(test),
		"-l", strconv.Itoa(int(b.o.Length/time.Second)), "-T", fmt.Sprintf("%d,%d", b.o.ClientCPU, b.o.ServerCPU), "-P", "0", "--", "-o", selectors(test))
	if err != nil {
		return netperf.Result{}, err
	}
	r, err := parseOriginal(string(out), test, to)
	if err != nil {
		return r, err
	}
	// The original has one thread and starts in no time, so all that it took is the test's.
	if units := r.Units(); units > 0 {
		r.ProcessDemand = used.Seconds() * 1e6 / units
	}
	return r, nil
}

// selectors are what netperf is asked for, in this order.
func selectors(test netperf.Test) string {
	if test.Transactions() {
		return "ELAPSED_TIME,RT_LATENCY,TRANSACTION_RATE,P50_LATENCY,P99_LATENCY"
	}
	return "ELAPSED_TIME,THROUGHPUT"
}

// parseOriginal reads the line of values that the selectors give.
func parseOriginal(out string, test netperf.Test, server netip.AddrPort) (netperf.Result, error) {
	r := netperf.Result{Test: test, Server: server}
	fields := strings.Split(strings.TrimSpace(out), ",")
	if len(fields) != strings.Count(selectors(test), ",")+1 {
		return r, fmt.Errorf("netperf prints %q, not the values of %s", out, selectors(test))
	}
	var v []float64
	for _, f := range fields {
		n, err := strconv.ParseFloat(strings.TrimSpace(f), 64)
		if err != nil {
			return r, fmt.Errorf("netperf prints %q: %w", out, err)
		}
		v = append(v, n)
	}
	r.Seconds = v[0]
	if !test.Transactions() {
		r.Throughput, r.Bytes = v[1], uint64(v[1]*v[0]*1e6/8)
		return r, nil
	}
	r.RTLatency, r.Rate, r.Transactions = v[1], v[2], int(v[2]*v[0])
	r.Latency = &stats.Summary{Count: r.Transactions, P50: v[3], P99: v[4]}
	return r, nil
}
