// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxThreads is how many tests may run in a process at the same time.
const maxThreads = 16

// threads are the tests that run in this process, and what the runtime was set to before them.
var threads struct {
	sync.Mutex
	n, gcPercent, procs int
}

// enter prepares the runtime for a thread that makes blocking system calls without telling it.
//
// Telling it costs more than the calls themselves: for a call that lasts longer than 20 us, as each
// wait for an answer does, the runtime's monitor wakes up thousands of times a second, on one of the
// processors that are measured, and takes the thread's place away. Measured, a TCP_RR transaction of
// 42 us took 48.
//
// A runtime that does not know that a thread is blocked cannot stop it either, and hangs when it wants
// to. So nothing here may stop the world while a test runs: the collection of garbage is off, which a
// test makes next to none of, and there are places to run for as many goroutines as threads may block.
func enter() error {
	threads.Lock()
	defer threads.Unlock()
	if threads.n == maxThreads {
		return fmt.Errorf("%d tests run here already: %w", maxThreads, unix.EBUSY)
	}
	if threads.n == 0 {
		threads.gcPercent = debug.SetGCPercent(-1)
		runtime.GC() // one that had begun ends here
		threads.procs = runtime.GOMAXPROCS(0)
		runtime.GOMAXPROCS(threads.procs + maxThreads)
	}
	threads.n++
	return nil
}

// leave undoes enter, when the thread makes no more calls.
func leave() {
	threads.Lock()
	defer threads.Unlock()
	if threads.n--; threads.n == 0 {
		runtime.GOMAXPROCS(threads.procs)
		debug.SetGCPercent(threads.gcPercent)
	}
}

// startThread runs f on an operating system thread of its own, bound to a processor unless cpu is
// negative, and returns once it is bound. The thread ends with f, whose error comes from the channel.
func startThread(cpu int, f func() error) (<-chan error, error) {
	if err := enter(); err != nil {
		return nil, err
	}
	bound, done := make(chan error, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread, with its binding, ends with the goroutine
		err := muteRuntime()
		if err == nil {
			err = bind(cpu)
		}
		bound <- err
		if err == nil {
			err = f()
		}
		leave()
		done <- err
	}()
	if err := <-bound; err != nil {
		<-done //nolint:errcheck // the same error
		return nil, err
	}
	return done, nil
}

// muteRuntime keeps the runtime's signal from this thread. Every 10 ms the monitor wants a goroutine that
// runs on to make room, by SIGURG, which would interrupt the call that is being timed.
func muteRuntime() error {
	var set unix.Sigset_t
	set.Val[(unix.SIGURG-1)/64] = 1 << ((unix.SIGURG - 1) % 64)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil); err != nil {
		return fmt.Errorf("block SIGURG: %w", err)
	}
	return nil
}

func bind(cpu int) error {
	if cpu < 0 {
		return nil
	}
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("bind to processor %d: %w", cpu, err)
	}
	return nil
}

// usedTime is the processor time that the calling thread, RUSAGE_THREAD, or its process, RUSAGE_SELF,
// has used.
func usedTime(who int) (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		return 0, fmt.Errorf("processor time: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// pauseUntil sleeps until some time after start. The runtime does not hear of it, see enter.
func pauseUntil(start time.Time, due time.Duration) {
	for {
		rest := due - time.Since(start)
		if rest <= 0 {
			return
		}
		ts := unix.NsecToTimespec(int64(rest))
		_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0) // a signal ends it early
	}
}

// alarm returns what turns true once length has passed, and the time from which it counts. Without a length
// it never does. A loop that sends asks it, as netperf's asks its signal handler: to read the clock before
// each call costs 2 % of a stream over loopback.
func alarm(length time.Duration) (*atomic.Bool, time.Time) {
	over := new(atomic.Bool)
	if length > 0 {
		time.AfterFunc(length, func() { over.Store(true) })
	}
	return over, time.Now()
}
