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
)

// Exec runs a command on a machine of the cluster (a node, or external) with the given streams
// and returns its exit code. Nodes go by their full name or what follows the cluster's name.
func Exec(ctx context.Context, stateDir, name, node string, args []string, in io.Reader, out, errOut io.Writer) (int, error) {
	c, err := Get(stateDir, name)
	if err != nil {
		return 0, err
	}
	n, err := c.Node(node)
	if err != nil {
		return 0, err
	}
	m, err := c.machineOf(n.Name)
	if err != nil {
		return 0, err
	}
	p := process{path: args[0], args: args[1:], in: in, out: out, err: errOut}
	if n.Role == RoleControlPlane {
		p.env = append(p.env, "KUBECONFIG=/etc/kubernetes/admin.conf")
	}
	cmd, err := m.start(ctx, p)
	if err != nil {
		return 0, err
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// Kubeconfig is a kubeconfig of the cluster for use on this machine.
func Kubeconfig(stateDir, name string) ([]byte, error) {
	c, err := Get(stateDir, name)
	if err != nil {
		return nil, err
	}
	if c.Phase != PhaseReady {
		return nil, fmt.Errorf("%w: %s", ErrHalfMade, name)
	}
	data, err := os.ReadFile(filepath.Join(c.dir, "kubeconfig"))
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	return data, nil
}
