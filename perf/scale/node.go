// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lash.internal/lash/perf/lab"
	"lash.internal/lash/perf/scale/dial"
	"lash.internal/lash/perf/scale/standin"
)

// apiPort is where the stand-in listens on a node's loopback address.
const apiPort = 6443

// node is a namespace in which one contender works, and what belongs to it.
//
//	client --- node ===== far        a veth pair; far answers at every backend's address, and
//	             |                   refuses at every address of a Service
//	          stand-in on 127.0.0.1
type node struct {
	dir        string
	node, far  *lab.Space
	listeners  []net.Listener
	groups     []string // control groups of the contender: unified first, then memory if that is apart
	client     *lab.Daemon
	orders     io.WriteCloser
	answers    *json.Decoder
	kubeconfig string
	serving    sync.WaitGroup
}

// newNode makes a node without a contender on it. self is this program.
func newNode(ctx context.Context, api *standin.Server, self string) (*node, error) {
	n := &node{}
	if err := n.build(ctx, api, self); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *node) build(ctx context.Context, api *standin.Server, self string) error {
	var err error
	if n.dir, err = os.MkdirTemp("", "lash-scale-"); err != nil {
		return fmt.Errorf("folder: %w", err)
	}
	if err := n.makeGroups(); err != nil {
		return err
	}
	if n.node, err = lab.NewSpace("node", func() error { return arrange(n.groups[0]) }); err != nil {
		return err
	}
	if n.far, err = lab.NewSpace("far", nil); err != nil {
		return err
	}
	if err := n.wire(ctx); err != nil {
		return err
	}
	if err := n.serve(n.node, fmt.Sprintf("127.0.0.1:%d", apiPort), api.Serve); err != nil {
		return err
	}
	if err := n.serve(n.far, fmt.Sprintf("0.0.0.0:%d", backendPort), accept); err != nil {
		return err
	}
	text, err := api.Kubeconfig(fmt.Sprintf("127.0.0.1:%d", apiPort))
	if err != nil {
		return err
	}
	n.kubeconfig = filepath.Join(n.dir, "kubeconfig")
	if err := os.WriteFile(n.kubeconfig, text, 0o600); err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	return n.startClient(ctx, self)
}

// arrange gives the node what a machine of its own would have.
func arrange(group string) error {
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{group, "/run/cilium/cgroupv2", "", unix.MS_BIND, ""},
		{"/sys/fs/cgroup", "/run/cgroup", "", unix.MS_BIND | unix.MS_REC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"/run/cgroup", "/sys/fs/cgroup", "", unix.MS_MOVE, ""},
		{"bpf", "/sys/fs/bpf", "bpf", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=700"},
	} {
		if strings.HasPrefix(m.target, "/run/") {
			if err := os.MkdirAll(m.target, 0o755); err != nil {
				return fmt.Errorf("mount point: %w", err)
			}
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return os.MkdirAll("/run/lock", 0o755)
}

// makeGroups makes control groups of the node's own.
func (n *node) makeGroups() error {
	for _, h := range []string{"unified", "memory"} {
		root, err := lab.Hierarchy(h)
		if err != nil {
			return err
		}
		if root == "" {
			if h == "unified" {
				return errors.New("no unified control group hierarchy (cgroup2) is mounted")
			}
			continue
		}
		dir := filepath.Join(root, filepath.Base(n.dir))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("control group: %w", err)
		}
		n.groups = append(n.groups, dir)
	}
	return nil
}

func (n *node) wire(ctx context.Context) error {
	if err := n.node.Join(ctx, "eth0", n.far, "eth0"); err != nil {
		return err
	}
	on := func(s *lab.Space, addr string, lines ...string) error {
		return s.IP(ctx, append([]string{"link set lo up", "addr add " + addr + "/" + strconv.Itoa(nodesNet.Bits()) + " dev eth0", "link set eth0 up"}, lines...)...)
	}
	if err := on(n.node, nodeAddr.String(), "route add default via "+farAddr.String()); err != nil {
		return err
	}
	if err := on(n.far, farAddr.String(), "route add local "+backendsIn.String()+" dev lo", "route add local "+servicesIn.String()+" dev lo"); err != nil {
		return err
	}
	if err := n.node.Sysctl(ctx, "net.ipv4.ip_forward=1"); err != nil {
		return err
	}
	return n.far.Sysctl(ctx, "net.ipv4.tcp_max_syn_backlog=65536", "net.core.somaxconn=65536")
}

// serve opens a listener in a namespace and has it served until the node is closed.
func (n *node) serve(s *lab.Space, addr string, run func(net.Listener) error) error {
	l, err := s.Listen("tcp", addr)
	if err != nil {
		return err
	}
	n.listeners = append(n.listeners, l)
	n.serving.Go(func() { _ = run(l) }) // it ends with an error when the listener is closed
	return nil
}

// accept takes connections and lets them go.
func accept(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		_ = c.Close()
	}
}

func (n *node) startClient(ctx context.Context, self string) error {
	in, orders, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	defer in.Close()
	answers, out, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	defer out.Close()
	n.orders, n.answers = orders, newAnswers(answers)
	n.client, err = n.node.Start(ctx, n.groups[:1], lab.Output{In: in, Out: out, Err: os.Stderr}, self, "dial")
	return err
}

func newAnswers(r io.Reader) *json.Decoder { return json.NewDecoder(r) }

// begin gives the client an order and returns when its first attempt is over.
func (n *node) begin(o dial.Order) (dial.Answer, error) {
	if err := json.NewEncoder(n.orders).Encode(o); err != nil {
		return dial.Answer{}, fmt.Errorf("client: %w", err)
	}
	return n.answer()
}

// answer waits for what the client says.
func (n *node) answer() (dial.Answer, error) {
	var a dial.Answer
	if err := n.answers.Decode(&a); err != nil {
		return a, fmt.Errorf("client: %w", err)
	}
	if a.Error != "" {
		return a, errors.New("client: " + a.Error)
	}
	return a, nil
}

// until waits until all addresses answer.
func (n *node) until(o dial.Order) (dial.Answer, error) {
	if _, err := n.begin(o); err != nil {
		return dial.Answer{}, err
	}
	return n.answer()
}

// kernelMemory is what the kernel holds for the processes in the node's group, in bytes; -1 if it is
// not told.
func (n *node) kernelMemory() float64 {
	if len(n.groups) > 1 {
		text, err := os.ReadFile(filepath.Join(n.groups[1], "memory.kmem.usage_in_bytes"))
		if err != nil {
			return -1
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
		if err != nil {
			return -1
		}
		return v
	}
	text, err := os.ReadFile(filepath.Join(n.groups[0], "memory.stat"))
	if err != nil {
		return -1
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if rest, ok := strings.CutPrefix(line, "kernel "); ok {
			if v, err := strconv.ParseFloat(rest, 64); err == nil {
				return v
			}
		}
	}
	return -1
}

// close ends everything on the node and gives it back.
func (n *node) close() {
	if n.orders != nil {
		_ = n.orders.Close()
	}
	if n.client != nil {
		n.client.Close()
	}
	for _, l := range n.listeners {
		_ = l.Close()
	}
	n.serving.Wait()
	for _, s := range []*lab.Space{n.node, n.far} {
		if s != nil {
			s.Close()
		}
	}
	for _, g := range n.groups {
		// Processes leave a group a moment after they have ended.
		for deadline := time.Now().Add(5 * time.Second); os.Remove(g) != nil && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
	}
	if n.dir != "" {
		_ = os.RemoveAll(n.dir)
	}
}
