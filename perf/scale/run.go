// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"lash.internal/lash/perf/process"
	"lash.internal/lash/perf/scale/dial"
	"lash.internal/lash/perf/scale/standin"
	"lash.internal/lash/perf/stats"
)

// Parts of a run.
const (
	PartCold    = "cold"    // starts on an empty node, and the memory behind the last of them
	PartWarm    = "warm"    // starts on a node that is programmed
	PartEvents  = "events"  // single changes
	PartChanges = "changes" // many changes, and the memory after them
)

// Parts are all of them.
var Parts = []string{PartCold, PartWarm, PartEvents, PartChanges}

// Options say what to measure.
type Options struct {
	Self, Agent, KubeProxy string // programs; Self answers to the argument dial
	Version                string // of the API server that is stood in for
	Contenders             []string
	Sizes                  []Size
	Parts                  []string
	Starts                 map[string]int // cold and warm ones, by contender
	Events                 int            // of each kind
	EventsLimit            time.Duration  // time for all of a kind
	Rate                   int            // changes a second
	Length                 time.Duration  // of the changes
	Limit                  time.Duration  // for one start
	Log                    io.Writer      // what contenders say; nil: nowhere
	Say                    func(format string, args ...any)
}

// sampled is how many Services, chosen at random and the last one, are tried again and again while a
// contender starts, and rest for how long between two rounds: that leaves the machine to the contender.
// All others follow a moment after the sample.
const (
	sampled = 128
	rest    = 15 * time.Millisecond
	moment  = 100 * time.Millisecond
)

// run is a measurement of one contender with one size.
type run struct {
	*Options
	contender string
	size      Size
	api       *standin.Server
	results   *Results
	node      *node
	prog      *program
	spare     int     // Services without endpoints
	used      int     // of them
	pressure  float64 // the most that others put on the processors right before a start
}

// Run measures and puts figures into results as they come; save is called after each contender and size.
func Run(ctx context.Context, o Options, results *Results, save func() error) error {
	for _, z := range o.Sizes {
		for _, c := range o.Contenders {
			r := &run{Options: &o, contender: c, size: z, results: results, spare: 2*o.Events + 2*o.Starts[c] + 1}
			err := r.all(ctx)
			if serr := save(); err != nil || serr != nil {
				return errors.Join(err, serr)
			}
		}
	}
	return nil
}

func (r *run) figure(name, unit string, failed error, note string, values ...float64) {
	f := Figure{Contender: r.contender, Size: r.size, Name: name, Unit: unit, Values: values, At: time.Now().UTC().Truncate(time.Second), Pressure: r.pressure, Note: note}
	if failed != nil {
		f.Failed = strings.ReplaceAll(failed.Error(), "\n", "; ")
	}
	r.results.put(f)
	text := fmt.Sprintf("%s, %s: %s", r.contender, r.size, name)
	if len(values) > 0 {
		s := slices.Sorted(slices.Values(values))
		text += fmt.Sprintf(" %.3f %s (%.3f to %.3f, %d values)", s[len(s)/2], unit, s[0], s[len(s)-1], len(s))
	}
	if f.noisy() {
		text += ", noisy"
	}
	if f.Failed != "" {
		text += ": " + f.Failed
	}
	r.Say("%s", text)
}

// watched is how long the machine is watched before a start.
const watched = 500 * time.Millisecond

// begin executes the contender on the node, which is idle until then: what keeps tasks waiting for a
// processor right before is somebody else, and would be in the figures.
func (r *run) begin(ctx context.Context) error {
	from, err := stats.ReadClock()
	if err != nil {
		return err
	}
	select {
	case <-time.After(watched):
	case <-ctx.Done():
		return ctx.Err()
	}
	to, err := stats.ReadClock()
	if err != nil {
		return err
	}
	r.pressure = max(r.pressure, from.To(to).Pressure)
	r.prog, err = r.start(ctx, r.node, r.contender)
	return err
}

// all measures the parts that are asked for. A start is always made.
func (r *run) all(ctx context.Context) (err error) {
	if r.api, err = standin.New(standin.Options{Clock: dial.Now, Version: r.Version}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.api.Close()) }()
	for _, obj := range objects(r.size, r.spare) {
		if _, err := r.api.Put(obj); err != nil {
			return err
		}
	}
	r.api.Fresh()
	defer r.clear()
	if err := r.cold(ctx); err != nil || r.prog == nil {
		return err
	}
	for _, p := range []struct {
		name string
		do   func(context.Context) error
	}{{PartWarm, r.warm}, {PartEvents, r.events}, {PartChanges, r.changes}} {
		if !slices.Contains(r.Parts, p.name) {
			continue
		}
		if err := p.do(ctx); err != nil {
			return fmt.Errorf("%s, %s: %s: %w", r.contender, r.size, p.name, err)
		}
	}
	return nil
}

func (r *run) clear() {
	if r.prog != nil {
		r.prog.daemon.Close()
		r.prog = nil
	}
	if r.node != nil {
		r.node.close()
		r.node = nil
	}
}

// addrs are the first ports of Services, or a sample of at most n of them with the last one.
func (r *run) addrs(n int) []netip.AddrPort {
	out := make([]netip.AddrPort, 0, r.size.Services)
	for i := range r.size.Services {
		out = append(out, vip(i))
	}
	if n == 0 || n >= len(out) {
		return out
	}
	last := out[len(out)-1]
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return append(out[:n-1:n-1], last)
}

// seconds is the time between two points of the clock.
func seconds(from, to int64) float64 { return float64(to-from) / 1e9 }

// cold starts the contender on empty nodes. The last one stays, if all went well.
func (r *run) cold(ctx context.Context) error {
	var times, ready []float64
	starts := 1
	if slices.Contains(r.Parts, PartCold) {
		starts = r.Starts[r.contender]
	}
	for range starts {
		r.clear()
		var err error
		if r.node, err = newNode(ctx, r.api, r.Self); err != nil {
			return err
		}
		if err := r.begin(ctx); err != nil {
			return err
		}
		at, err := r.allAnswer(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.figure(ColdStart, "s", err, "", times...)
			r.Say("what it wrote last: %s", r.prog.log.last())
			r.clear()
			return nil
		}
		times = append(times, seconds(r.prog.started, at))
		if r.contender == Lash {
			at, _, _, err := r.prog.whenReady(ctx, r.Limit)
			if err != nil {
				return err
			}
			ready = append(ready, seconds(r.prog.started, at))
		}
	}
	if slices.Contains(r.Parts, PartCold) {
		r.figure(ColdStart, "s", nil, "", times...)
		if r.contender == Lash {
			r.figure(ColdReady, "s", nil, "", ready...)
		}
		return r.memory(ctx)
	}
	return nil
}

// allAnswer waits until every Service answers and returns when the last one did: a sample is tried until
// then, all others right after it.
func (r *run) allAnswer(ctx context.Context) (int64, error) {
	sample := r.addrs(sampled)
	a, err := r.node.until(dial.Order{Addrs: sample, Pause: rest, Limit: r.Limit})
	if err != nil {
		return 0, errors.Join(err, r.prog.whyEnded())
	}
	if a.Missing > 0 {
		return 0, errors.Join(fmt.Errorf("%d of %d Services did not answer within %s", a.Missing, len(sample), r.Limit), r.prog.whyEnded())
	}
	select {
	case <-time.After(moment):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	others, err := r.node.until(dial.Order{Addrs: r.addrs(0), Pause: time.Millisecond, Limit: r.Limit})
	switch {
	case err != nil:
		return 0, err
	case others.Missing > 0:
		return 0, fmt.Errorf("%d of %d Services did not answer within %s", others.Missing, r.size.Services, r.Limit)
	case others.Refused > 0:
		return others.Last, nil // the sample was too small to tell
	}
	return a.Last, ctx.Err()
}

// settle is how long after a start the memory is read.
const settle = 10 * time.Second

const mega = 1e6 // bytes, as everywhere in reports

// memory reads what the contender holds.
func (r *run) memory(ctx context.Context) error {
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return ctx.Err()
	}
	pid := r.prog.daemon.PID()
	rss, peak, err := r.resident(pid)
	if err != nil {
		return err
	}
	r.figure(Memory, "MB", nil, fmt.Sprintf("%s after the start", settle), rss/mega)
	r.figure(MemoryPeak, "MB", nil, "", peak/mega)
	if r.contender == Lash {
		maps, number, err := process.Maps(pid)
		if err != nil {
			return err
		}
		r.figure(MemoryMaps, "MB", nil, fmt.Sprintf("%d maps, as the kernel counts them", number), maps/mega)
	}
	if k := r.node.kernelMemory(); k >= 0 {
		r.figure(MemoryKernel, "MB", nil, "charged to its control group: rules and maps, sockets, page tables", k/mega)
	}
	return nil
}

// resident is the memory of a process, now and at most, without BPF maps that it has mapped.
func (r *run) resident(pid int) (now, peak float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, errors.Join(fmt.Errorf("memory of %s: %w", r.contender, err), r.prog.whyEnded())
	}
	if now, err = process.StatusField(string(text), "VmRSS"); err != nil {
		return 0, 0, err
	}
	if peak, err = process.StatusField(string(text), "VmHWM"); err != nil {
		return 0, 0, err
	}
	mapped, err := process.MappedMaps(pid)
	return now - mapped, peak - mapped, err
}

// warm starts the contender over what it has programmed: the agent first without any change, then all
// with a Service that got its endpoint while nobody was there.
func (r *run) warm(ctx context.Context) error {
	var ready, writes, change []float64
	for range r.Starts[r.contender] {
		if r.contender == Lash {
			if err := r.again(ctx); err != nil {
				return err
			}
			at, n, adopted, err := r.prog.whenReady(ctx, r.Limit)
			if err != nil {
				return err
			}
			if !adopted {
				return errors.New("the second agent did not adopt the programs of the first")
			}
			ready, writes = append(ready, seconds(r.prog.started, at)), append(writes, float64(n))
		}
		if err := r.prog.end(); err != nil {
			return err
		}
		i := r.nextSpare()
		if _, err := r.api.Put(sliceOf(i, r.size.Ports, r.size.Endpoints, 0)); err != nil {
			return err
		}
		if err := r.begin(ctx); err != nil {
			return err
		}
		a, err := r.node.until(dial.Order{Addrs: []netip.AddrPort{vip(i)}, Pause: time.Millisecond, Limit: r.Limit})
		if err != nil {
			return err
		}
		if a.Missing > 0 {
			r.figure(WarmChange, "s", fmt.Errorf("what had changed did not answer within %s", r.Limit), "", change...)
			return nil
		}
		change = append(change, seconds(r.prog.started, a.Last))
	}
	if r.contender == Lash {
		r.figure(WarmReady, "s", nil, "", ready...)
		r.figure(WarmWrites, "entries", nil, "", writes...)
	}
	r.figure(WarmChange, "s", nil, "", change...)
	return nil
}

// again ends the contender and starts it.
func (r *run) again(ctx context.Context) error {
	if err := r.prog.end(); err != nil {
		return err
	}
	return r.begin(ctx)
}

// nextSpare is the number of a Service that has no endpoint yet.
func (r *run) nextSpare() int {
	r.used++
	return r.size.Services + r.used - 1
}
