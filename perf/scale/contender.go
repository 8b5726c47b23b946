// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"lash.internal/lash/perf/lab"
	"lash.internal/lash/perf/scale/dial"
)

// Names of the contenders.
const (
	Lash     = "lash"
	IPTables = "iptables"
	NFTables = "nftables"
)

// Contenders are all of them, with what a report calls them.
var Contenders = []struct{ Name, Title string }{
	{Lash, "**Lash**"},
	{IPTables, "kube-proxy, iptables"},
	{NFTables, "kube-proxy, nftables"},
}

// program is a contender at work.
type program struct {
	daemon  *lab.Daemon
	started int64 // by dial.Now, right before it was executed
	log     *readyLog
}

// start executes a contender on a node.
func (o *Options) start(ctx context.Context, n *node, name string) (*program, error) {
	args, err := o.command(n, name)
	if err != nil {
		return nil, err
	}
	p := &program{log: &readyLog{ready: make(chan struct{}), copy: o.Log}, started: dial.Now()}
	p.daemon, err = n.node.Start(ctx, n.groups, lab.Output{Out: p.log, Err: p.log}, args...)
	return p, err
}

// command is the command line of a contender, with its configuration on the node.
func (o *Options) command(n *node, name string) ([]string, error) {
	if name == Lash {
		// What the chart gives it in a cluster without kube-proxy; there are no pods to set up here.
		return []string{
			"env", "K8S_NODE_NAME=" + nodeName, o.Agent, "agent", "--k8s-kubeconfig-path=" + n.kubeconfig, "--ipam=kubernetes",
			"--kube-proxy-replacement=true", "--bpf-lb-sock=true", "--enable-node-port=true", "--enable-host-port=true", "--enable-external-ips=true",
		}, nil
	}
	config := filepath.Join(n.dir, "kube-proxy.yaml")
	// What kubeadm writes, with this client and the settings that a namespace does not have left alone.
	text := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 0.0.0.0
mode: %s
clusterCIDR: %s
clientConnection:
  kubeconfig: %s
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, name, podsIn, n.kubeconfig)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("configuration of kube-proxy: %w", err)
	}
	return []string{o.KubeProxy, "--config=" + config, "--hostname-override=" + nodeName}, nil
}

// end asks the program to end and waits until it has.
func (p *program) end() error {
	if err := p.daemon.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end: %w", err)
	}
	select {
	case <-p.daemon.Ended():
	case <-time.After(30 * time.Second):
		p.daemon.Close()
		return errors.New("it does not end within 30 s of being told to")
	}
	return nil
}

// whyEnded says what a program wrote last, if it has ended by itself.
func (p *program) whyEnded() error {
	select {
	case <-p.daemon.Ended():
		return fmt.Errorf("it has ended (%w): %s", errors.Join(p.daemon.Err(), errEnded), p.log.last())
	default:
		return nil
	}
}

var errEnded = errors.New("not asked to")

// readyLog reads the log of a program: it finds the agent's report that it is ready.
type readyLog struct {
	ready chan struct{}
	copy  io.Writer // nil: none

	mu      sync.Mutex
	rest    []byte
	tail    []string
	at      int64
	writes  int
	done    bool
	adopted bool
}

var readyLine = regexp.MustCompile(`msg=ready entriesWritten=(\d+) .*adopted=(true|false)`)

// Write implements io.Writer.
func (r *readyLog) Write(b []byte) (int, error) {
	now := dial.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.copy != nil {
		_, _ = r.copy.Write(b) // it is for people
	}
	r.rest = append(r.rest, b...)
	for {
		i := bytes.IndexByte(r.rest, '\n')
		if i < 0 {
			return len(b), nil
		}
		line := string(r.rest[:i])
		r.rest = r.rest[i+1:]
		r.tail = append(r.tail, line)
		if len(r.tail) > 5 {
			r.tail = r.tail[1:]
		}
		if m := readyLine.FindStringSubmatch(line); m != nil && !r.done {
			r.writes, _ = strconv.Atoi(m[1]) // digits
			r.at, r.adopted, r.done = now, m[2] == "true", true
			close(r.ready)
		}
	}
}

func (r *readyLog) last() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.tail, " | ")
}

// whenReady waits for the agent's report: when it came, how many entries the agent had written, and
// whether it found its programs in place.
func (p *program) whenReady(ctx context.Context, limit time.Duration) (at int64, writes int, adopted bool, err error) {
	select {
	case <-p.log.ready:
		p.log.mu.Lock()
		defer p.log.mu.Unlock()
		return p.log.at, p.log.writes, p.log.adopted, nil
	case <-p.daemon.Ended():
		return 0, 0, false, p.whyEnded()
	case <-time.After(limit):
		return 0, 0, false, fmt.Errorf("not ready within %s: %s", limit, p.log.last())
	case <-ctx.Done():
		return 0, 0, false, ctx.Err()
	}
}
