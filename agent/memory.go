// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/reconcile"
)

// steadyGC is how much garbage, in percent of what is in use, an agent lets come together once it has
// started. It allocates little then: memory is worth more than the time of the collector.
const steadyGC = 30

// giveBackAtRest gives back once more when what a start leaves to do after it is done too.
func (a *Agent) giveBackAtRest(ctx context.Context) error {
	for _, c := range []*reconcile.Chain{a.svc.health, a.notes.chain} {
		select {
		case <-c.Synced():
		case <-ctx.Done():
			return nil
		}
	}
	a.giveBack()
	return nil
}

// giveBack returns to the node what a start takes and the long time after it does not need: freed
// memory, and pages of the program file. Of the latter those that are used come again, mostly from the
// page cache.
func (a *Agent) giveBack() {
	debug.FreeOSMemory()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(steadyGC)
	}
	if err := dropProgramPages(); err != nil {
		a.log.Warn("pages of the program that only a start needs stay in memory", "error", err)
	}
}

// dropProgramPages drops the pages of the program file that this process cannot write: they hold
// nothing that is not in the file.
func dropProgramPages() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("own program file: %w", err)
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("own memory: %w", err)
	}
	defer maps.Close()
	areas, err := readOnly(maps, self)
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range areas {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, a.from, a.to-a.from, unix.MADV_DONTNEED); errno != 0 {
			errs = append(errs, fmt.Errorf("pages of the program file: %w", errno))
		}
	}
	return errors.Join(errs...)
}

// area is a range of addresses.
type area struct{ from, to uintptr }

// readOnly finds the areas in which a file is mapped and may not be written, in the format of
// /proc/PID/maps (proc(5)).
func readOnly(maps io.Reader, path string) ([]area, error) {
	var out []area
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		var a area
		var access string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &a.from, &a.to, &access); err != nil {
			return nil, fmt.Errorf("line %q of a process's memory: want FROM-TO ACCESS: %w", lines.Text(), err)
		}
		_, file, _ := strings.Cut(lines.Text(), "/")
		if "/"+file == path && !strings.Contains(access, "w") && strings.HasSuffix(access, "p") {
			out = append(out, a)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("memory of a process: %w", err)
	}
	return out, nil
}
