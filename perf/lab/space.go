// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Space is a network namespace, and for those that want one a view of the file system of its own. It
// vanishes with this process, however that ends.
type Space struct {
	name string
	ns   *os.File
	mnt  *os.File // nil: that of this process
}

// NewSpace makes a network namespace. With arrange it gets a mount namespace too, from which nothing
// propagates: arrange runs in both and mounts what is to be seen there.
func NewSpace(name string, arrange func() error) (*Space, error) {
	s := &Space{name: name}
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if s.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil || arrange == nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := arrange(); err != nil {
			return err
		}
		s.mnt, err = os.Open("/proc/thread-self/ns/mnt")
		return err
	})
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("namespace %s: %w", name, err)
	}
	return s, nil
}

// onThread runs f on a thread that ends with it, so that f may change the thread's namespaces.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends here
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		// The main thread does not end, and others see its namespaces as those of the process. While
		// this goroutine holds it, another one lands elsewhere.
		done <- onThread(f)
		runtime.UnlockOSThread()
	}()
	return <-done
}

// Close lets the namespaces go.
func (s *Space) Close() {
	for _, f := range []*os.File{s.ns, s.mnt} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Listen opens a listener in the namespace that serves this process.
func (s *Space) Listen(network, addr string) (l net.Listener, err error) {
	terr := onThread(func() error {
		if err := unix.Setns(int(s.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		l, err = net.Listen(network, addr)
		return err
	})
	if terr != nil {
		return nil, fmt.Errorf("%s: %w", s.name, terr)
	}
	return l, nil
}

// path names the namespace for other programs, as long as this process lives.
func (s *Space) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.ns.Fd()) }

// command is a program that will run in the namespace, and in the given control groups.
func (s *Space) command(ctx context.Context, groups []string, args ...string) *exec.Cmd {
	full := []string{"--net=" + s.path()}
	if s.mnt != nil {
		full = append(full, fmt.Sprintf("--mount=/proc/%d/fd/%d", os.Getpid(), s.mnt.Fd()))
	}
	full = append(full, "--")
	if len(groups) > 0 {
		// The shell goes into the groups and becomes the program, so no instruction of it runs outside.
		full = append(full, "sh", "-c", `while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit 125; shift; done; shift; exec "$@"`, "sh")
		full = append(full, groups...)
		full = append(full, "--")
	}
	return exec.CommandContext(ctx, "nsenter", append(full, args...)...)
}

// Run runs a program with some input, in the given control groups, and returns what it printed.
func (s *Space) Run(ctx context.Context, groups []string, stdin string, args ...string) ([]byte, error) {
	out, _, err := s.runTimed(ctx, groups, stdin, args...)
	return out, err
}

// runTimed also returns the processor time that the program took.
func (s *Space) runTimed(ctx context.Context, groups []string, stdin string, args ...string) ([]byte, time.Duration, error) {
	cmd := s.command(ctx, groups, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	if err := cmd.Run(); err != nil {
		return nil, 0, fmt.Errorf("%s: %s: %w: %s", s.name, args[0], err, strings.TrimSpace(errOut.String()))
	}
	return out.Bytes(), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// Daemon is a program that runs until it is stopped.
type Daemon struct {
	cmd   *exec.Cmd
	ended chan struct{}
	stop  context.CancelFunc
	err   error // of the program, once it has ended
}

// Start runs a program in the background, until it ends or is stopped and in any case no longer than
// this process.
func (s *Space) Start(ctx context.Context, groups []string, o Output, args ...string) (*Daemon, error) {
	ctx, stop := context.WithCancel(ctx)
	d := &Daemon{cmd: s.command(ctx, groups, args...), ended: make(chan struct{}), stop: stop}
	d.cmd.Stdin, d.cmd.Stdout, d.cmd.Stderr = o.In, o.Out, o.Err
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
			d.err = d.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		stop()
		return nil, fmt.Errorf("%s: %s: %w", s.name, args[0], err)
	}
	return d, nil
}

// Output is where a program's streams lead.
type Output struct {
	In       io.Reader
	Out, Err io.Writer
}

// PID is the number of the program's process.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Ended closes when the program has ended.
func (d *Daemon) Ended() <-chan struct{} { return d.ended }

// Err is how the program has ended; it waits for the end.
func (d *Daemon) Err() error {
	<-d.ended
	return d.err
}

// Signal sends the program a signal.
func (d *Daemon) Signal(sig os.Signal) error { return d.cmd.Process.Signal(sig) }

// Close kills the program and waits for its end.
func (d *Daemon) Close() {
	d.stop()
	<-d.ended
}

// start runs a program in the background and returns when it has written its first line.
func (s *Space) start(ctx context.Context, groups []string, args ...string) (*Daemon, error) {
	out := &firstLine{line: make(chan struct{})}
	var errOut tail
	d, err := s.Start(ctx, groups, Output{Out: out, Err: &errOut}, args...)
	if err != nil {
		return nil, err
	}
	select {
	case <-out.line:
		return d, nil
	case <-d.ended:
		err = errors.New("ended at once")
	case <-ctx.Done():
		err = ctx.Err()
	}
	d.Close()
	return nil, fmt.Errorf("%s: %s: %w: %s", s.name, args[0], err, strings.TrimSpace(errOut.String()))
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

// Sysctl writes settings below net, which are those of the namespace.
func (s *Space) Sysctl(ctx context.Context, settings ...string) error {
	_, err := s.Run(ctx, nil, "", append([]string{"sysctl", "-q", "-w"}, settings...)...)
	return err
}

// IP runs lines of ip(8) in the namespace.
func (s *Space) IP(ctx context.Context, lines ...string) error {
	_, err := s.Run(ctx, nil, strings.Join(lines, "\n")+"\n", "ip", "-batch", "-")
	if err != nil {
		return errors.Join(err, fmt.Errorf("with\n%s", strings.Join(lines, "\n")))
	}
	return nil
}

// Join makes a veth pair of a device in this namespace and one in another.
func (s *Space) Join(ctx context.Context, device string, peer *Space, peerDevice string) error {
	return s.IP(ctx, "link add "+device+" type veth peer name "+peerDevice+" netns "+peer.path())
}
