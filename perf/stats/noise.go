// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Noise is how much a machine was disturbed during a span of time.
type Noise struct {
	// Pressure is the share of the time in which some runnable task waited for a processor: the growth
	// of "some total" in /proc/pressure/cpu. It is -1 on a kernel without pressure information.
	Pressure float64 `json:"pressure"`
	// Steal is the share of processor time that the hypervisor gave to others (/proc/stat).
	Steal float64 `json:"steal"`
	// Busy is the share of processor time that was not idle, measured load included.
	Busy float64 `json:"busy"`
}

// Clock is a point in time from which Noise is counted.
type Clock struct {
	at       time.Time
	stall    time.Duration
	hasStall bool
	ticks    ticks
	count    int // processors
}

// ticks are the first eight numbers of a line of /proc/stat: user, nice, system, idle, iowait, irq,
// softirq, steal.
type ticks [8]float64

func (t ticks) total() (sum float64) {
	for _, v := range t {
		sum += v
	}
	return sum
}

// CPU is how the processors of a machine were used during a span of time, in percent of all of them.
type CPU struct {
	Count   int     `json:"count"`
	Busy    float64 `json:"busy"` // all that was not idle
	User    float64 `json:"user"`
	System  float64 `json:"system"`
	IOWait  float64 `json:"iowait"`
	IRQ     float64 `json:"irq"`
	SoftIRQ float64 `json:"softirq"`
}

// PerUnit is the processor time, in microseconds summed over the processors, that each of a number of
// units took: netperf's service demand.
func (c CPU) PerUnit(seconds, units float64) float64 {
	if units == 0 {
		return 0
	}
	return c.Busy / 100 * float64(c.Count) * seconds * 1e6 / units
}

// CPU is the use of the processors between c and a later clock.
func (c Clock) CPU(end Clock) CPU {
	out := CPU{Count: end.count}
	total := end.ticks.total() - c.ticks.total()
	if total <= 0 {
		return out
	}
	share := func(i ...int) (sum float64) {
		for _, k := range i {
			sum += 100 * (end.ticks[k] - c.ticks[k]) / total
		}
		return sum
	}
	out.Busy, out.User, out.System = share(0, 1, 2, 5, 6, 7), share(0, 1), share(2)
	out.IOWait, out.IRQ, out.SoftIRQ = share(4), share(5), share(6)
	return out
}

// ReadClock takes the machine's counters.
func ReadClock() (Clock, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return Clock{}, fmt.Errorf("processor times: %w", err)
	}
	c := Clock{at: time.Now()}
	if c.ticks, c.count, err = parseStat(string(stat)); err != nil {
		return Clock{}, err
	}
	pressure, err := os.ReadFile("/proc/pressure/cpu")
	switch {
	case err == nil:
		c.hasStall = true
		if c.stall, err = parsePressure(string(pressure)); err != nil {
			return Clock{}, err
		}
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EOPNOTSUPP):
		return Clock{}, fmt.Errorf("processor pressure: %w", err)
	}
	return c, nil
}

// To is the noise between c and a later clock.
func (c Clock) To(end Clock) Noise {
	n := Noise{Pressure: -1}
	if wall := end.at.Sub(c.at); c.hasStall && end.hasStall && wall > 0 {
		n.Pressure = min(float64(end.stall-c.stall)/float64(wall), 1)
	}
	if total := end.ticks.total() - c.ticks.total(); total > 0 {
		n.Steal = (end.ticks[7] - c.ticks[7]) / total
		n.Busy = 1 - (end.ticks[3]+end.ticks[4]-c.ticks[3]-c.ticks[4])/total
	}
	return n
}

// parseStat reads the first line of /proc/stat (proc(5)), the sum of all processors, and counts those
// that follow. Guest time is part of user time already.
func parseStat(text string) (t ticks, count int, err error) {
	line, rest, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return t, 0, fmt.Errorf("processor times: /proc/stat starts with %q, not with the sum of all processors", line)
	}
	for i, f := range fields[1:9] {
		if t[i], err = strconv.ParseFloat(f, 64); err != nil {
			return t, 0, fmt.Errorf("processor times: %w", err)
		}
	}
	for line := range strings.SplitSeq(rest, "\n") {
		if strings.HasPrefix(line, "cpu") {
			count++
		}
	}
	return t, count, nil
}

// parsePressure reads the total of the line "some" (kernel documentation, accounting/psi).
func parsePressure(text string) (time.Duration, error) {
	sc := bufio.NewScanner(strings.NewReader(text))
	for sc.Scan() {
		if !strings.HasPrefix(sc.Text(), "some ") {
			continue
		}
		for _, f := range strings.Fields(sc.Text()) {
			if v, ok := strings.CutPrefix(f, "total="); ok {
				us, err := strconv.ParseInt(v, 10, 64)
				if err != nil {
					return 0, fmt.Errorf("processor pressure: %w", err)
				}
				return time.Duration(us) * time.Microsecond, nil
			}
		}
	}
	return 0, errors.New("processor pressure: no line \"some\" with a total")
}
