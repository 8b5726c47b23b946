// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// basePath is PATH inside a node, behind the folders of the cluster's own programs.
const basePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// machine is one namespace set of the cluster: a node, the fabric, or the external host.
type machine struct {
	name   string // full name, which is its host name and its control group too
	holder int    // pid of the process that keeps its namespaces
	groups cgroups
}

// onThread runs f on an operating system thread of its own, which is thrown away afterwards, so
// that f may change the thread's namespaces. Never the main thread: /proc/self describes that.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		// While this goroutine holds the main thread, another one lands elsewhere.
		done <- onThread(f)
		runtime.UnlockOSThread()
	}()
	return <-done
}

// inside runs f in the machine's control groups and namespaces.
func (m *machine) inside(f func() error) error {
	return onThread(func() error {
		if err := m.groups.joinThread(m.name); err != nil {
			return err
		}
		// A mount namespace can only be entered by a thread that shares its root and working
		// folder with no other.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		var fds []int
		defer func() {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}()
		for _, ns := range []string{"net", "uts", "mnt"} {
			fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", m.holder, ns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("%s: namespace %s: %w", m.name, ns, err)
			}
			fds = append(fds, fd)
		}
		for _, fd := range fds {
			if err := unix.Setns(fd, 0); err != nil {
				return fmt.Errorf("%s: enter namespace: %w", m.name, err)
			}
		}
		return f()
	})
}

// hold starts the process that keeps the machine's namespaces, which are made with it.
func hold(groups cgroups, name, program string, log *os.File) (*exec.Cmd, error) {
	var cmd *exec.Cmd
	err := onThread(func() error {
		if err := groups.joinThread(name); err != nil {
			return err
		}
		dir, err := os.Open(groups.daemonDir(name))
		if err != nil {
			return fmt.Errorf("control group: %w", err)
		}
		defer dir.Close()
		cmd = exec.Command(program, "hold")
		cmd.Dir = "/"
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Setsid:       true,
			Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET,
			UseCgroupFD:  true,
			CgroupFD:     int(dir.Fd()),
		}
		return cmd.Start()
	})
	if err != nil {
		return nil, fmt.Errorf("%s: start: %w", name, err)
	}
	return cmd, nil
}

// process is a program to run inside a machine.
type process struct {
	path   string   // absolute, or looked up in the machine's PATH
	args   []string // without the program
	env    []string // beside PATH
	detach bool     // a daemon: session of its own
	in     io.Reader
	out    io.Writer
	err    io.Writer
	files  []*os.File // descriptors 3 and up
}

// start runs p inside the machine, in its control groups from the first instruction on.
// Cancelling ctx kills a process that is not detached.
func (m *machine) start(ctx context.Context, p process) (*exec.Cmd, error) {
	dir, err := os.Open(m.groups.daemonDir(m.name))
	if err != nil {
		return nil, fmt.Errorf("control group: %w", err)
	}
	defer dir.Close()
	if p.detach {
		ctx = context.WithoutCancel(ctx)
	}
	var cmd *exec.Cmd
	err = m.inside(func() error {
		path, err := m.lookPath(p.path)
		if err != nil {
			return err
		}
		cmd = exec.CommandContext(ctx, path, p.args...)
		cmd.Env = append([]string{"PATH=" + m.pathVar(), "HOME=/root", "LANG=C.UTF-8"}, p.env...)
		cmd.Dir = "/"
		cmd.Stdin, cmd.Stdout, cmd.Stderr = p.in, p.out, p.err
		cmd.ExtraFiles = p.files
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Setsid:      p.detach,
			UseCgroupFD: true,
			CgroupFD:    int(dir.Fd()),
		}
		return cmd.Start()
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", m.name, filepath.Base(p.path), err)
	}
	return cmd, nil
}

func (m *machine) pathVar() string {
	return nodeBin + ":" + basePath
}

// lookPath finds a program in the machine's PATH; it runs inside.
func (m *machine) lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for dir := range strings.SplitSeq(m.pathVar(), ":") {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w in the node's PATH", exec.ErrNotFound)
}

// startTime is when the process was started, in clock ticks since boot: with the pid it names a
// process for good. 0 means that there is no such process.
func startTime(pid int) uint64 {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	_, rest, ok := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 || fields[0] == "Z" {
		return 0
	}
	ticks, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0
	}
	return ticks
}

// run starts p, waits for its end and returns an error that quotes the last that it wrote on stderr.
func (m *machine) run(ctx context.Context, p process) error {
	var stderr strings.Builder
	if p.err == nil {
		p.err = &stderr
	}
	cmd, err := m.start(ctx, p)
	if err != nil {
		return err
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && stderr.Len() > 0 {
		return fmt.Errorf("%s: %s: %w: %s", m.name, filepath.Base(p.path), err, lastLines(stderr.String(), 1))
	}
	if err != nil {
		return fmt.Errorf("%s: %s: %w", m.name, filepath.Base(p.path), err)
	}
	return nil
}
