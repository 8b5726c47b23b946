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
	at                 time.Time
	stall              time.Duration
	hasStall           bool
	total, idle, steal float64
}

// ReadClock takes the machine's counters.
func ReadClock() (Clock, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return Clock{}, fmt.Errorf("processor times: %w", err)
	}
	c := Clock{at: time.Now()}
	if c.total, c.idle, c.steal, err = parseStat(string(stat)); err != nil {
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
	if total := end.total - c.total; total > 0 {
		n.Steal = (end.steal - c.steal) / total
		n.Busy = 1 - (end.idle-c.idle)/total
	}
	return n
}

// parseStat reads the first line of /proc/stat (proc(5)): user, nice, system, idle, iowait, irq,
// softirq, steal, in ticks. Guest time is part of user time already.
func parseStat(text string) (total, idle, steal float64, err error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, 0, 0, fmt.Errorf("processor times: /proc/stat starts with %q, not with the sum of all processors", line)
	}
	for i, f := range fields[1:9] {
		v, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, 0, 0, fmt.Errorf("processor times: %w", err)
		}
		total += v
		switch i {
		case 3, 4:
			idle += v
		case 7:
			steal = v
		}
	}
	return total, idle, steal, nil
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
