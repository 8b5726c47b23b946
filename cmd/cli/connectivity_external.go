// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

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
		host := &outsideHost{name: name, self: self}
		return &check.External{Addresses: ready.Addresses, Exec: host.exec, Route: host.route, Stop: func() {
			stop()
			host.unroute()
		}}, nil
	}
}

// outsideHost is the local cluster's host outside the cluster.
type outsideHost struct {
	name, self string
	mu         sync.Mutex
	routes     []netip.Addr
}

func (h *outsideHost) run(ctx context.Context, s check.Streams, command ...string) error {
	var errOut bytes.Buffer
	if s.Err == nil {
		s.Err = &errOut
	}
	if s.Out == nil {
		s.Out = io.Discard
	}
	code, err := cluster.Exec(ctx, "", h.name, string(cluster.RoleExternal), command, s.In, s.Out, s.Err)
	if err == nil && code != 0 {
		err = fmt.Errorf("%s on the host outside the cluster ended with code %d: %s", command[0], code, strings.TrimSpace(errOut.String()))
	}
	return err
}

func (h *outsideHost) exec(ctx context.Context, s check.Streams, args ...string) error {
	return h.run(ctx, s, append([]string{h.self, "connectivity", "probe"}, args...)...)
}

func (h *outsideHost) route(ctx context.Context, to, via netip.Addr) error {
	if err := h.run(ctx, check.Streams{}, "ip", "route", "replace", to.String(), "via", via.String()); err != nil {
		return err
	}
	h.mu.Lock()
	h.routes = append(h.routes, to)
	h.mu.Unlock()
	return nil
}

// unroute removes the routes again, which also has to happen after Ctrl-C.
func (h *outsideHost) unroute() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, to := range h.routes {
		_ = h.run(ctx, check.Streams{}, "ip", "route", "del", to.String()) // it may have gone with a device
	}
}
