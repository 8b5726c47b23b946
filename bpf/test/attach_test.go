// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/datapath/attach"
	"lash.internal/lash/agent/datapath/feature"
	"lash.internal/lash/agent/datapath/loader"
	"lash.internal/lash/bpf"
)

// agent attaches programs to a node with the code of the agent.
type agent struct {
	node  *node
	conf  bpf.Config
	root  string // BPF file system
	hooks map[attach.Hook]string
	at    *attach.Attacher
}

func newAgent(n *node, conf bpf.Config, way string) *agent {
	n.t.Helper()
	a := &agent{node: n, conf: conf, root: n.t.TempDir(), hooks: map[attach.Hook]string{}}
	if err := unix.Mount("bpf", a.root, "bpf", 0, ""); err != nil {
		n.t.Skipf("no BPF file system: %v", err)
	}
	n.t.Cleanup(func() { _ = unix.Unmount(a.root, unix.MNT_DETACH) })
	a.start(way)
	return a
}

// start is a start of the agent: it loads what attaches in a way, and takes stock.
func (a *agent) start(way string) {
	t := a.node.t
	t.Helper()
	specs, err := loader.Read()
	if err != nil {
		t.Fatal(err)
	}
	gens, err := specs.Generations(a.root)
	if err != nil {
		t.Fatal(err)
	}
	set, err := specs.OpenMaps(a.root, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := specs.Load(a.root, set, a.conf, way, slog.New(slog.DiscardHandler))
	if err == nil {
		err = p.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		set.Close()
		for _, g := range gens {
			g.Close()
		}
	})
	a.node.coll = &ebpf.Collection{Maps: set.All()}
	a.node.must(func() error {
		a.at, err = attach.New(attach.Options{BPFRoot: a.root, TCX: way == "tcx", Generations: gens}, p)
		return err
	})
}

func (a *agent) set(h attach.Hook) {
	a.node.t.Helper()
	a.node.must(func() error { return a.at.Hooks().Set(context.Background(), h, a.at.Of(a.hooks[h])) })
}

func (a *agent) add(index int, in, out string) {
	a.node.t.Helper()
	for h, name := range map[attach.Hook]string{{Ifindex: index}: in, {Ifindex: index, Egress: true}: out} {
		a.hooks[h] = name
		a.set(h)
	}
}

// changeTo restarts the agent with the other way of attaching.
func (a *agent) changeTo(way string) {
	t := a.node.t
	t.Helper()
	a.start(way)
	if !a.at.Handover() {
		t.Fatal("there is nothing attached the other way")
	}
	a.node.switches(true)
	a.at.Release()
	order := make([]attach.Hook, 0, len(a.hooks))
	for h, name := range a.hooks {
		if (attach.Program{Name: name}).Receives() {
			order = slices.Insert(order, 0, h)
		} else {
			order = append(order, h)
		}
	}
	for _, h := range order {
		a.set(h)
	}
	a.node.must(func() error { return a.at.Finish(func(attach.Hook) bool { return true }) })
	a.node.switches(false)
}

// ways are the ways to attach that the kernel has.
func ways(t *testing.T) []string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	f, err := feature.Probe()
	if err != nil {
		t.Fatal(err)
	}
	if f.TCX {
		return []string{"tcx", "cls_bpf"}
	}
	return []string{"cls_bpf"}
}

// TestAttached sends real traffic through programs that the agent's code has attached, in every way
// that the kernel has.
func TestAttached(t *testing.T) {
	for _, way := range ways(t) {
		t.Run(way, func(t *testing.T) {
			f := newFabric(t, options{nodes: 2, way: way})
			f.serveAll()
			for _, v6 := range []bool{false, true} {
				for _, p := range f.pairs(false) {
					t.Run(family(v6)+" "+p.name, func(t *testing.T) { f.check(t, p, v6) })
				}
			}
		})
	}
}

// roomy gives a socket a buffer that a busy machine does not fill.
func roomy(socket any) error {
	c, ok := socket.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T is no socket", socket)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) })
	return errors.Join(err, serr)
}

// stream is datagrams with numbers that an echo server sends back, one a millisecond.
type stream struct {
	name string
	conn net.Conn
	sent int
	back map[uint32]int
	stop chan struct{}
	wg   sync.WaitGroup
	err  error
}

func (n *namespace) stream(name string, to netip.Addr) *stream {
	n.t.Helper()
	s := &stream{name: name, back: map[uint32]int{}, stop: make(chan struct{})}
	n.must(func() error {
		var err error
		if s.conn, err = net.Dial("udp", netip.AddrPortFrom(to, echoPort).String()); err != nil {
			return err
		}
		return roomy(s.conn)
	})
	s.wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-s.stop:
				return
			case <-tick.C:
			}
			b := binary.BigEndian.AppendUint32(nil, uint32(s.sent))
			if _, err := s.conn.Write(b); err != nil {
				s.err = err
				return
			}
			s.sent++
		}
	})
	var reader sync.WaitGroup
	reader.Go(func() {
		b := make([]byte, 2048)
		for {
			k, err := s.conn.Read(b)
			if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			if err == nil && k == 68 {
				s.back[binary.BigEndian.Uint32(b[64:])]++
			}
		}
	})
	s.wg.Go(reader.Wait)
	return s
}

// halt stops sending; what is on its way gets time to arrive.
func (s *stream) halt() {
	close(s.stop)
	s.conn.SetReadDeadline(time.Now().Add(patience / 4))
}

// end returns how many datagrams came back not at all and how many more than once.
func (s *stream) end() (lost, twice int, err error) {
	s.wg.Wait()
	s.conn.Close()
	for i := range s.sent {
		switch n := s.back[uint32(i)]; {
		case n == 0:
			lost++
		case n > 1:
			twice++
		}
	}
	return lost, twice, s.err
}

// forwarded is how many packets the programs of a node have let pass.
func (n *node) forwarded() (sum uint64) {
	var k bpf.MetricsKey
	var v []bpf.Metrics
	for it := n.coll.Maps["metrics"].Iterate(); it.Next(&k, &v); {
		if k.Reason == 0 {
			for _, c := range v {
				sum += c.Packets
			}
		}
	}
	return sum
}

// TestChangeOver goes back and forth between the ways of attaching under traffic: no datagram is
// lost, and no program handles a packet that another one at the same hook has handled.
func TestChangeOver(t *testing.T) {
	if len(ways(t)) < 2 {
		t.Skip("the kernel has no tcx")
	}
	for _, kpr := range []bool{true, false} {
		t.Run(fmt.Sprintf("kpr=%v", kpr), func(t *testing.T) {
			f := newFabric(t, options{nodes: 2, way: "tcx", conf: func(c *bpf.Config) { c.KubeProxyReplacement = kpr }})
			f.serveAll()
			// The kernel stops a device for an instant when it gets its first qdisc.
			for _, n := range f.nodes {
				n.agent.changeTo("cls_bpf")
				n.agent.changeTo("tcx")
			}
			// Without kube-proxy replacement all but pod to pod crosses the host stack: every hook on
			// the way gives packets on to what is behind it.
			var pairs []pair
			for _, p := range f.pairs(false) {
				if p.name != "host to other pod" && p.name != "pod to pod unheard of" {
					pairs = append(pairs, p)
				}
			}
			count := func(packets func()) uint64 {
				var before, after uint64
				for _, n := range f.nodes {
					before += n.forwarded()
				}
				packets()
				for _, n := range f.nodes {
					after += n.forwarded()
				}
				return after - before
			}
			// What one datagram and its echo count for, once the flow is known.
			each := map[string]uint64{}
			for _, p := range pairs {
				for range 3 {
					if _, err := p.from.udp(p.addr(false), echoPort, 4); err != nil {
						t.Fatalf("%s: %v", p.name, err)
					}
				}
				each[p.name] = count(func() {
					if _, err := p.from.udp(p.addr(false), echoPort, 4); err != nil {
						t.Fatalf("%s: %v", p.name, err)
					}
				})
			}
			var sent int
			var want uint64
			got := count(func() {
				var streams []*stream
				for _, p := range pairs {
					streams = append(streams, p.from.stream(p.name, p.addr(false)))
				}
				for i := range 6 {
					for _, n := range f.nodes {
						n.agent.changeTo([]string{"cls_bpf", "tcx"}[i%2])
					}
					time.Sleep(100 * time.Millisecond)
				}
				for _, s := range streams {
					s.halt()
				}
				for _, s := range streams {
					lost, twice, err := s.end()
					if lost > 0 || twice > 0 || err != nil {
						t.Errorf("%s: %d of %d lost, %d came twice, error %v", s.name, lost, s.sent, twice, err)
					}
					sent += s.sent
					want += uint64(s.sent) * each[s.name]
				}
			})
			t.Logf("%d datagrams, %d packets counted by programs, want %d; each %v", sent, got, want, each)
			if got != want {
				t.Errorf("programs counted %d packets, want %d\n%s", got, want, f.drops())
			}
		})
	}
}
