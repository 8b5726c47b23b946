// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"lash.internal/lash/connectivity/probe"
)

// processes runs a shell command for each process $p in a node's containers whose command line matches.
func (c *cluster) processes(node, match, command string) string {
	c.t.Helper()
	return c.node(node, "sh", "-c", fmt.Sprintf(`for p in $(find /run/cilium/cgroupv2 -name cgroup.procs -exec cat {} +); do
[ -r /proc/$p/cmdline ] && tr '\0' ' ' </proc/$p/cmdline | grep -aq '%s' && { %s; }; done 2>/dev/null; true`, match, command))
}

// begin starts a program on a machine of the cluster that ends with the test, and returns its output.
func (c *cluster) begin(node string, command ...string) io.Reader {
	c.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, c.lash, append([]string{"cluster", "exec", "--name", c.name, node, "--"}, command...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		stop()
		_ = cmd.Wait() // it was stopped
	})
	return out
}

// background starts an echo server that ends with the test.
func (c *cluster) background(node string, command ...string) probe.Ready {
	c.t.Helper()
	var ready probe.Ready
	if err := json.NewDecoder(c.begin(node, command...)).Decode(&ready); err != nil {
		c.t.Fatalf("%v on %s: %v", command, node, err)
	}
	return ready
}

// ready waits until every agent serves its node.
func (c *cluster) ready(t *testing.T) {
	t.Helper()
	if r := c.run("status", "--wait", "--wait-duration", "200s"); r.code != 0 {
		t.Errorf("status --wait: %s", r.all())
	}
}
