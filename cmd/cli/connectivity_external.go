// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"lash.internal/lash/connectivity/check"
	"lash.internal/lash/connectivity/cluster"
	"lash.internal/lash/connectivity/probe"
)

// externalServer returns what starts an echo server outside the cluster: a local cluster has a host
// for that on the network of its nodes. For other clusters it returns nil, and the user names a
// place by --external-target.
func externalServer(clusterEntry string) func(ctx context.Context, httpPort, tcpPort, udpPort uint16) (*check.External, error) {
	name, local := strings.CutPrefix(clusterEntry, "lash-")
	if !local {
		return nil
	}
	if c, err := cluster.Get("", name); err != nil || c.FullName() != clusterEntry {
		return nil
	}
	return func(ctx context.Context, httpPort, tcpPort, udpPort uint16) (*check.External, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		port := func(p uint16) string { return strconv.Itoa(int(p)) }
		args := []string{self, "connectivity", "echo", "--http", port(httpPort), "--tcp", port(tcpPort), "--udp", port(udpPort)}
		ctx, cancel := context.WithCancel(ctx)
		out, in := io.Pipe()
		var errOut bytes.Buffer
		ended := make(chan error, 1)
		go func() {
			code, err := cluster.Exec(ctx, "", name, string(cluster.RoleExternal), args, nil, in, &errOut)
			if err == nil && ctx.Err() == nil {
				err = fmt.Errorf("the echo server ended with code %d: %s", code, strings.TrimSpace(errOut.String()))
			}
			_ = in.CloseWithError(err)
			ended <- err
		}()
		stop := func() {
			cancel()
			_ = out.Close()
			<-ended //nolint:errcheck // why it ended was told by the pipe
		}
		var ready probe.Ready
		if err := json.NewDecoder(out).Decode(&ready); err != nil {
			stop()
			return nil, err
		}
		return &check.External{Addresses: ready.Addresses, Stop: stop}, nil
	}
}
