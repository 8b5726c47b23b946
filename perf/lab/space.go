// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// space is a network namespace.
type space struct {
	name string
	ns   *os.File
}

func newSpace(name string) (*space, error) {
	type made struct {
		f   *os.File
		err error
	}
	done := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread is in the new namespace and ends here
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{nil, err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		done <- made{f, err}
	}()
	m := <-done
	if m.err != nil {
		return nil, fmt.Errorf("namespace %s: %w", name, m.err)
	}
	return &space{name: name, ns: m.f}, nil
}

// path names the namespace for other programs, as long as this process lives.
func (s *space) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.ns.Fd()) }

// command is a program that will run in the namespace, and in the given control groups.
func (s *space) command(ctx context.Context, groups []string, args ...string) *exec.Cmd {
	full := []string{"--net=" + s.path(), "--"}
	if len(groups) > 0 {
		// The shell goes into the groups and becomes the program, so no instruction of it runs outside.
		full = append(full, "sh", "-c", `while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit 125; shift; done; shift; exec "$@"`, "sh")
		full = append(full, groups...)
		full = append(full, "--")
	}
	return exec.CommandContext(ctx, "nsenter", append(full, args...)...)
}

// run runs a program with some input and returns what it printed.
func (s *space) run(ctx context.Context, groups []string, stdin string, args ...string) ([]byte, error) {
	out, _, err := s.runTimed(ctx, groups, stdin, args...)
	return out, err
}

// runTimed also returns the processor time that the program took.
func (s *space) runTimed(ctx context.Context, groups []string, stdin string, args ...string) ([]byte, time.Duration, error) {
	cmd := s.command(ctx, groups, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	if err := cmd.Run(); err != nil {
		return nil, 0, fmt.Errorf("%s: %s: %w: %s", s.name, args[0], err, strings.TrimSpace(errOut.String()))
	}
	return out.Bytes(), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// daemon is a program that runs until it is stopped.
type daemon struct {
	cmd   *exec.Cmd
	ended chan struct{}
	stop  context.CancelFunc
}

// start runs a program in the background until stop is called, and in any case no longer than this
// process. It returns when the program has written its first line.
func (s *space) start(ctx context.Context, groups []string, args ...string) (*daemon, error) {
	ctx, stop := context.WithCancel(ctx)
	d := &daemon{cmd: s.command(ctx, groups, args...), ended: make(chan struct{}), stop: stop}
	out := &firstLine{line: make(chan struct{})}
	var errOut tail
	d.cmd.Stdout, d.cmd.Stderr = out, &errOut
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		// The signal is sent when the thread that started the program ends, so this one stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(d.ended)
		err := d.cmd.Start()
		started <- err
		if err == nil {
			_ = d.cmd.Wait() // it was told to end, or start reports that it did not begin
		}
	}()
	err := <-started
	if err == nil {
		select {
		case <-out.line:
			return d, nil
		case <-d.ended:
			err = errors.New("ended at once")
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	stop()
	<-d.ended
	return nil, fmt.Errorf("%s: %s: %w: %s", s.name, args[0], err, strings.TrimSpace(errOut.String()))
}

func (d *daemon) close() {
	d.stop()
	<-d.ended
}

// firstLine closes line when a whole line has been written.
type firstLine struct {
	line chan struct{}
	once sync.Once
}

func (f *firstLine) Write(b []byte) (int, error) {
	if bytes.IndexByte(b, '\n') >= 0 {
		f.once.Do(func() { close(f.line) })
	}
	return len(b), nil
}

// tail keeps the end of what is written.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	t.buf = t.buf[max(len(t.buf)-4096, 0):]
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

// sysctl writes settings below /proc/sys/net, which shows the namespace of the thread that looks.
func (s *space) sysctl(ctx context.Context, settings ...string) error {
	_, err := s.run(ctx, nil, "", append([]string{"sysctl", "-q", "-w"}, settings...)...)
	return err
}
