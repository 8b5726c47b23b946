// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/binary"
	"fmt"
	"os"
)

// latencyFile takes the longest time, in us, that a processor may need to wake up (PM QoS,
// Documentation/power/pm_qos_interface.rst). What is written holds for as long as the file stays open.
const latencyFile = "/dev/cpu_dma_latency"

// stayAwake keeps the processors from sleeping until release is called: they poll when they are idle.
//
// How long a wait for an answer takes is otherwise a matter of how deep the processor sleeps by then, which
// each further wake-up, of anything, changes: netperf's own TCP_RR gets 7 % faster when a program that does
// nothing wakes up 200 times a second on the client's processor. Two programs that make the same calls are
// then compared by how quiet the rest of them is.
func stayAwake(file string) (release func(), err error) {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("keep the processors awake: %w", err)
	}
	if _, err := f.Write(binary.NativeEndian.AppendUint32(nil, 0)); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("keep the processors awake: %w", err)
	}
	return func() { _ = f.Close() }, nil
}
