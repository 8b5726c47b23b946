// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"lash.internal/lash/perf/stats"
)

// MaxStreams is how many tests one call of MeasureStreams runs.
const MaxStreams = maxThreads

// MeasureStreams runs the same test n times at the same time and adds the results up: rates and bytes
// are sums, latencies those of all. The ports of the i-th stream are DataPort and ConnectPort plus i,
// unless they are 0; connectPorts, when there are any, name the latter one by one.
func MeasureStreams(ctx context.Context, o Options, n int, connectPorts []uint16) (Result, error) {
	if n < 1 || n > MaxStreams {
		return Result{}, fmt.Errorf("%d streams: use 1 to %d", n, MaxStreams)
	}
	if len(connectPorts) > 0 && len(connectPorts) != n {
		return Result{}, fmt.Errorf("%d ports to connect to for %d streams: give one for each", len(connectPorts), n)
	}
	if err := o.complete(); err != nil {
		return Result{}, err
	}
	before, err := o.settle(ctx)
	if err != nil {
		return Result{}, err
	}
	o.Settle = 0
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	results, failures := make([]Result, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		each := o
		each.DataPort, each.ConnectPort = next(o.DataPort, i), next(o.ConnectPort, i)
		if len(connectPorts) > 0 {
			each.ConnectPort = connectPorts[i]
		}
		wg.Go(func() {
			if results[i], failures[i] = Measure(ctx, each); failures[i] != nil {
				cancel(failures[i]) // the others would only measure something else
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return Result{}, err
	}
	if err := errors.Join(failures...); err != nil {
		return Result{}, err
	}
	r := results[0]
	if n > 1 {
		if r, err = sum(results); err != nil {
			return Result{}, err
		}
	}
	r.Before = before
	return r, nil
}

func next(port uint16, i int) uint16 {
	if port == 0 {
		return 0
	}
	return port + uint16(i)
}

// Units are what demands are given for: transactions, or 1024 bytes of a one-way test.
func (r *Result) Units() float64 {
	if r.Test.Transactions() {
		return float64(r.Transactions)
	}
	return float64(r.Bytes) / 1024
}

// sum adds up results of the same time. What is counted for a machine or a network namespace is the
// largest of them: each stream saw the same.
func sum(results []Result) (Result, error) {
	all := results[0]
	all.Streams, all.Errors, all.Client = len(results), nil, netip.AddrPort{}
	histograms := []string{all.Histogram}
	for _, r := range results[1:] {
		all.Seconds = max(all.Seconds, r.Seconds)
		all.Transactions += r.Transactions
		all.Rate += r.Rate
		all.Due += r.Due
		all.Bytes += r.Bytes
		all.Sent += r.Sent
		all.Throughput += r.Throughput
		all.ServerSaw += r.ServerSaw
		all.Lost += r.Lost
		all.PortsTaken += r.PortsTaken
		all.SendCalls += r.SendCalls
		all.RecvCalls += r.RecvCalls
		all.ServerSendCalls += r.ServerSendCalls
		all.ServerRecvCalls += r.ServerRecvCalls
		all.Retransmits = max(all.Retransmits, r.Retransmits)
		all.ServerRetrans += r.ServerRetrans
		all.Noise.Pressure = max(all.Noise.Pressure, r.Noise.Pressure)
		all.Noise.Steal = max(all.Noise.Steal, r.Noise.Steal)
		all.Noise.Busy = max(all.Noise.Busy, r.Noise.Busy)
		if r.LocalCPU.Busy > all.LocalCPU.Busy {
			all.LocalCPU = r.LocalCPU
		}
		if r.RemoteCPU.Busy > all.RemoteCPU.Busy {
			all.RemoteCPU = r.RemoteCPU
		}
		all.ThreadDemand += r.ThreadDemand
		histograms = append(histograms, r.Histogram)
		for name, n := range r.Counters {
			if all.Counters == nil {
				all.Counters = map[string]int64{}
			}
			all.Counters[name] = max(all.Counters[name], n)
		}
	}
	process := 0.0 // of the process, which each stream saw grow
	for _, r := range results {
		process = max(process, r.ProcessDemand*r.Units())
		for what, n := range r.Errors {
			if all.Errors == nil {
				all.Errors = map[string]int{}
			}
			all.Errors[what] += n
		}
	}
	all.ThreadDemand /= float64(len(results))
	units := all.Units()
	if units > 0 {
		all.ProcessDemand = process / units
	}
	if all.Test.Transactions() {
		all.RTLatency = 1e6 * all.Seconds * float64(len(results)) / units
		s, text, err := stats.Merge(histograms)
		if err != nil {
			return all, err
		}
		all.Latency, all.Histogram = &s, text
	}
	all.LocalDemand, all.RemoteDemand = all.LocalCPU.PerUnit(all.Seconds, units), all.RemoteCPU.PerUnit(all.Seconds, units)
	return all, nil
}
