// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// troubles are the counters of a network namespace that stand still during a clean test, by the
// names of RFC 4022 and of the kernel's documentation of SNMP counters.
var troubles = []string{
	"RetransSegs", "AttemptFails", "EstabResets", "InErrs",
	"TCPSynRetrans", "TCPTimeouts", "ListenOverflows", "ListenDrops", "TCPTimeWaitOverflow",
	"TCPLostRetransmit", "TCPAbortOnTimeout", "TCPAbortOnMemory",
}

type counters map[string]int64

// readCounters reads the counters of the calling thread's network namespace.
func readCounters() (counters, error) {
	all := counters{}
	for _, file := range []string{"snmp", "netstat"} {
		text, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err != nil {
			return nil, fmt.Errorf("counters of TCP: %w", err)
		}
		if err := all.parse(string(text)); err != nil {
			return nil, fmt.Errorf("counters of TCP in /proc/net/%s: %w", file, err)
		}
	}
	return all, nil
}

// parse reads pairs of lines: names, then values, both behind the name of the group.
func (c counters) parse(text string) error {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		if len(names) != len(values) || names[0] != values[0] {
			return fmt.Errorf("line %d has other columns than the one above", i+2)
		}
		if names[0] != "Tcp:" && names[0] != "TcpExt:" {
			continue
		}
		for k := 1; k < len(names); k++ {
			v, err := strconv.ParseInt(values[k], 10, 64)
			if err != nil {
				return fmt.Errorf("%s: %w", names[k], err)
			}
			c[names[k]] = v
		}
	}
	return nil
}

// since is by how much the troubles have grown.
func (c counters) since(before counters) map[string]int64 {
	grown := map[string]int64{}
	for _, name := range troubles {
		if d := c[name] - before[name]; d != 0 {
			grown[name] = d
		}
	}
	return grown
}
