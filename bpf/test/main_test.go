// SPDX-License-Identifier: Apache-2.0

// Package test runs the BPF programs: packet walks through single programs by test runs, and real
// traffic between namespaces that stand for nodes and pods.
package test

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be the first process of a virtual machine: it then mounts what it
// needs, runs the tests that need nothing but a kernel, says the result and switches off.
func TestMain(m *testing.M) {
	if os.Getpid() != 1 {
		os.Exit(m.Run())
	}
	code := 1
	if err := prepare(); err != nil {
		fmt.Println(err)
	} else {
		code = m.Run()
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
	os.Args = os.Args[:1]
	flag.Parse()
	for name, value := range map[string]string{"test.v": "true", "test.skip": "^(TestTraffic|TestService|TestKubeProxy|TestTimeExceeded)$"} {
		if err := flag.Set(name, value); err != nil {
			return err
		}
	}
	return nil
}
