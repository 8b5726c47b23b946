// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"lash.internal/lash/perf/netperf"
)

// Record is one line of a result file; exactly one of its parts is there.
type Record struct {
	Time    time.Time  `json:"time"`
	Machine *Machine   `json:"machine,omitempty"`
	Sample  *Sample    `json:"sample,omitempty"`
	CNI     *CNISample `json:"cni,omitempty"`
	Figure  *Figure    `json:"figure,omitempty"`
	Skipped *Skipped   `json:"skipped,omitempty"`
}

// Machine is where and with what a run was made. It is the first record.
type Machine struct {
	Kernel     string            `json:"kernel"`
	Processor  string            `json:"processor"`
	Processors int               `json:"processors"`
	MemoryMB   int               `json:"memoryMB"`
	Clock      string            `json:"clock"`   // clock source of the kernel
	Versions   map[string]string `json:"version"` // of programs that took part
	Load       float64           `json:"load"`    // average of one minute before the run
	IPv6       bool              `json:"ipv6"`
	Rounds     int               `json:"rounds"`
	Seconds    int               `json:"seconds"` // of a sample
	ClientCPU  int               `json:"clientCPU"`
	ServerCPU  int               `json:"serverCPU"`
	Congestion string            `json:"congestion"` // control of one-way tests
	Command    string            `json:"command"`
}

// Sample is one test on one path.
type Sample struct {
	Group     string         `json:"group"`
	Path      string         `json:"path"`
	Test      netperf.Test   `json:"test"`
	Round     int            `json:"round"` // of this group and test, from 0
	Before    float64        `json:"pressureBefore"`
	After     float64        `json:"pressureAfter"`
	Disturbed bool           `json:"disturbed,omitempty"` // the noise was above the limits
	Error     string         `json:"error,omitempty"`     // why there is no result; such a sample is disturbed too
	Result    netperf.Result `json:"result"`
}

// CNISample is a number of ADD and DEL calls of one plugin.
type CNISample struct {
	Plugin string   `json:"plugin"`
	Round  int      `json:"round"`
	AtOnce bool     `json:"atOnce"` // all calls at the same time, not one after the other
	Times  CNITimes `json:"times"`
}

// Figure is something that is not measured in rounds.
type Figure struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"`
	Goal   float64   `json:"goal,omitempty"` // at most; 0: none
	Note   string    `json:"note,omitempty"`
}

// Skipped is what could not be measured.
type Skipped struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// writeRecord appends a record to a file.
func writeRecord(w io.Writer, r Record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// ReadRecords reads a result file.
func ReadRecords(r io.Reader) ([]Record, error) {
	var out []Record
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var rec Record
		if err := json.Unmarshal(sc.Bytes(), &rec); err != nil {
			return nil, fmt.Errorf("line %d: %w", len(out)+1, err)
		}
		out = append(out, rec)
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	if len(out) == 0 || out[0].Machine == nil {
		return nil, fmt.Errorf("the first line does not describe the machine")
	}
	return out, nil
}
