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

func (o *original) serverArgs() []string {
	return []string{o.server, "-D", "-p", strconv.Itoa(originalPort)}
}

// selectors are what netperf is asked for, in this order.
const selectors = "RT_LATENCY,TRANSACTION_RATE,P50_LATENCY,P99_LATENCY,ELAPSED_TIME"

// measure runs the original over the veth pair of the lab.
func (o *original) measure(ctx context.Context, l *lab.Lab, b *run, test netperf.Test) (netperf.Result, error) {
	to, err := l.Addr(lab.Direct2, false)
	if err != nil {
		return netperf.Result{}, err
	}
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return netperf.Result{}, ctx.Err()
	}
	out, err := l.Exec(ctx, lab.Direct1, o.client, "-H", to.String(), "-p", strconv.Itoa(originalPort), "-t", string(test),
		"-l", strconv.Itoa(int(b.o.Length/time.Second)), "-T", fmt.Sprintf("%d,%d", b.o.ClientCPU, b.o.ServerCPU), "-P", "0", "--", "-o", selectors)
	if err != nil {
		return netperf.Result{}, err
	}
	return parseOriginal(string(out), test, netip.AddrPortFrom(to, originalPort))
}

// parseOriginal reads the line of values that the selectors give.
func parseOriginal(out string, test netperf.Test, server netip.AddrPort) (netperf.Result, error) {
	fields := strings.Split(strings.TrimSpace(out), ",")
	if len(fields) != strings.Count(selectors, ",")+1 {
		return netperf.Result{}, fmt.Errorf("netperf prints %q, not the values of %s", out, selectors)
	}
	var v []float64
	for _, f := range fields {
		n, err := strconv.ParseFloat(strings.TrimSpace(f), 64)
		if err != nil {
			return netperf.Result{}, fmt.Errorf("netperf prints %q: %w", out, err)
		}
		v = append(v, n)
	}
	return netperf.Result{
		Test: test, Server: server, RTLatency: v[0], Rate: v[1], Seconds: v[4], Transactions: int(v[1] * v[4]),
		Latency: &stats.Summary{Count: int(v[1] * v[4]), P50: v[2], P99: v[3]},
	}, nil
}
