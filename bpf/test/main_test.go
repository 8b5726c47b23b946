// SPDX-License-Identifier: Apache-2.0

// Package test runs the BPF programs: packet walks through single programs by test runs, and real
// traffic between namespaces that stand for nodes and pods.
package test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be the first process of a virtual machine: it then mounts what it
// needs, loads modules, runs its tests and the other test binaries, says the result and switches off.
func TestMain(m *testing.M) {
	if os.Getpid() != 1 {
		os.Exit(m.Run())
	}
	code := 1
	if err := prepare(); err != nil {
		fmt.Println(err)
	} else {
		code = m.Run()
		if !others() {
			code = 1
		}
	}
	fmt.Printf("\nlash-tests-exit=%d\n", code)
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func prepare() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"bpf", "/sys/fs/bpf"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m[1], 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	modules, err := filepath.Glob("/modules/*.ko") // sorted, those that others need first
	if err != nil {
		return err
	}
	for _, path := range modules {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("module %s: %w", path, err)
		}
	}
	if err := os.Setenv("PATH", "/bin"); err != nil {
		return err
	}
	os.Args = os.Args[:1]
	flag.Parse()
	// TestAttached has the traffic of TestTraffic once; in all its modes it takes two minutes here, and
	// NodePorts are called in one mode.
	return errors.Join(flag.Set("test.v", "true"), flag.Set("test.skip", "^TestTraffic$|^TestNodePorts$/^(native|dsr)$"))
}

// others runs the test binaries in /tests.
func others() bool {
	good := true
	binaries, _ := filepath.Glob("/tests/*")
	for _, b := range binaries {
		fmt.Println("=== BINARY", b)
		c := exec.Command(b, "-test.v")
		c.Stdout, c.Stderr = os.Stdout, os.Stdout
		if err := c.Run(); err != nil {
			fmt.Println(b, err)
			good = false
		}
	}
	return good
}
