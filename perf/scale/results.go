// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"lash.internal/lash/perf/bench"
	"lash.internal/lash/perf/report"
)

// Names of figures.
const (
	ColdStart    = "cold-start"     // execution to the last Service that answers, s
	ColdReady    = "cold-ready"     // execution to the agent's readiness: it has written everything, s
	WarmReady    = "warm-ready"     // execution of a second agent to its readiness, s
	WarmWrites   = "warm-writes"    // entries that it has written until then
	WarmChange   = "warm-change"    // execution to what has changed meanwhile, s
	AddEndpoint  = "event-endpoint" // event that gives a Service its first endpoint, to the first connection, ms
	AddService   = "event-service"  // events that make a Service and its endpoint, to the first connection, ms
	Changes      = "changes"        // processor time while objects change, % of a processor
	ChangesLast  = "changes-last"   // the last of these changes, to the first connection, ms
	Memory       = "memory"         // of the program, without maps of the kernel, MB
	MemoryPeak   = "memory-peak"    // the most that it was since it started, MB
	MemoryMaps   = "memory-maps"    // of BPF maps, MB
	MemoryKernel = "memory-kernel"  // of the kernel, for it and for the programs that it calls, MB
	MemoryAfter  = "memory-after"   // Memory once more, when changes are over, MB
)

// Figure is one thing measured of one contender.
type Figure struct {
	Contender string    `json:"contender"`
	Size      Size      `json:"size"`
	Name      string    `json:"figure"`
	Unit      string    `json:"unit"`
	Values    []float64 `json:"values,omitempty"`
	At        time.Time `json:"at"`
	// Pressure is the largest share of the time in which tasks of others waited for a processor, right
	// before one of the contender's starts; negative if the kernel does not tell.
	Pressure float64 `json:"pressure"`
	Note     string  `json:"note,omitempty"`
	// Failed says why there are fewer values than wanted, or none.
	Failed string `json:"failed,omitempty"`
}

// noisy says whether the machine was busy with other things.
func (f Figure) noisy() bool { return f.Pressure > report.MaxPressure }

// Results are all figures of a file.
type Results struct {
	Machine *bench.Machine `json:"machine"`
	Figures []Figure       `json:"figures"`
}

// Read reads a file of results. One that is not there is empty.
func Read(path string) (*Results, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Results{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("results: %w", err)
	}
	var r Results
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("results %s: %w", path, err)
	}
	return &r, nil
}

// Write writes a file of results.
func (r *Results) Write(path string) error {
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("results: %w", err)
	}
	return nil
}

// put adds a figure, in place of the one of the same contender, size and name.
func (r *Results) put(f Figure) {
	if i := slices.IndexFunc(r.Figures, func(o Figure) bool { return o.Contender == f.Contender && o.Size == f.Size && o.Name == f.Name }); i >= 0 {
		r.Figures[i] = f
		return
	}
	r.Figures = append(r.Figures, f)
}

func (r *Results) find(contender string, z Size, name string) (Figure, bool) {
	i := slices.IndexFunc(r.Figures, func(o Figure) bool { return o.Contender == contender && o.Size == z && o.Name == name })
	if i < 0 {
		return Figure{}, false
	}
	return r.Figures[i], true
}
