// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"lash.internal/lash/bpf"
)

// sockets runs the socket programs for a cgroup of the test's own.
type sockets struct {
	t    *testing.T
	host *namespace
	coll *ebpf.Collection
	dir  string
}

func newSockets(t *testing.T, conf func(*bpf.Config)) *sockets {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	s := &sockets{t: t, host: newNamespace(t, "host")}
	s.host.ip("link set lo up")
	for _, base := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		var st unix.Statfs_t
		if unix.Statfs(base, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		dir, err := os.MkdirTemp(base, "lash-test-")
		if err != nil {
			t.Skipf("no cgroup: %v", err)
		}
		t.Cleanup(func() { os.Remove(dir) })
		s.dir = dir
	}
	if s.dir == "" {
		t.Skip("no cgroup2")
	}
	spec, err := bpf.LoadSock()
	if err != nil {
		t.Fatal(err)
	}
	shrink(spec)
	c := bpf.DefaultConfig()
	c.HostCookie = s.host.cookie()
	c.Node4, c.Node6 = netip.MustParseAddr("192.168.0.1"), netip.MustParseAddr("fd00:1::1")
	if conf != nil {
		conf(&c)
	}
	if err := c.Apply(spec); err != nil {
		t.Fatal(err)
	}
	if s.coll, err = ebpf.NewCollection(spec); err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(s.coll.Close)
	for name, p := range s.coll.Programs {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: s.dir, Attach: spec.Programs[name].AttachType, Program: p})
		if err != nil {
			t.Fatalf("attach %s: %v", name, err)
		}
		t.Cleanup(func() { l.Close() })
	}
	return s
}

func (s *sockets) put(m string, k, v any) {
	s.t.Helper()
	if err := s.coll.Maps[m].Put(k, v); err != nil {
		s.t.Fatalf("map %s: %v", m, err)
	}
}

// port publishes a Service port with backends under a front.
func (s *sockets) port(id uint32, front netip.AddrPort, proto uint8, flags uint32, svc bpf.Svc, backends ...netip.AddrPort) {
	s.t.Helper()
	var sl bpf.Slots
	for i, b := range backends {
		sl.BackendId[i] = 16*id + uint32(i)
		s.put("backend", sl.BackendId[i], bpf.Backend{Ip: bpf.IP(b.Addr()), Port: bpf.Port(b.Port()), Proto: proto, State: bpf.BackendActive})
	}
	s.put("slot", id, sl)
	svc.BlkAll = uint64(id*bpf.SlotsPerElem) | uint64(len(backends))<<bpf.SvcBlockShift
	s.put("svc", id, svc)
	s.put("front", bpf.FrontKey{Ip: bpf.IP(front.Addr()), Port: bpf.Port(front.Port()), Proto: proto}, bpf.Front{SvcId: id, Flags: flags})
}

// ask has a process of the cgroup do things in a namespace: each is "connect ADDRESS", "send ADDRESS" or
// "bind ADDRESS"; a line for each says what came of it.
func (s *sockets) ask(n *namespace, what ...string) []string {
	s.t.Helper()
	dir, err := os.Open(s.dir)
	if err != nil {
		s.t.Fatal(err)
	}
	defer dir.Close()
	out := filepath.Join(s.t.TempDir(), "out")
	n.must(func() error {
		c := exec.Command(os.Args[0], "-test.run", "^TestSocketProcess$")
		c.Env = append(os.Environ(), "LASH_SOCKETS="+strings.Join(what, "\n"), "LASH_SOCKETS_OUT="+out)
		c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		if b, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, b)
		}
		return nil
	})
	b, err := os.ReadFile(out)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// TestSocketProcess is the process that ask starts, no test of its own.
func TestSocketProcess(t *testing.T) {
	if os.Getenv("LASH_SOCKETS") == "" {
		t.Skip("it is started by other tests")
	}
	var out []string
	say := func(err error, peer string) {
		switch {
		case err == nil:
			out = append(out, peer)
		case errors.Is(err, unix.ECONNREFUSED):
			out = append(out, "refused")
		case errors.Is(err, unix.EPERM):
			out = append(out, "not permitted")
		default:
			out = append(out, err.Error())
		}
	}
	for _, line := range strings.Split(os.Getenv("LASH_SOCKETS"), "\n") {
		verb, at, _ := strings.Cut(line, " ")
		switch verb {
		case "connect":
			c, err := net.DialTimeout("tcp", at, patience)
			if err != nil {
				say(err, "")
				continue
			}
			say(nil, greeting(c)+" as "+c.RemoteAddr().String())
			c.Close()
		case "bind":
			l, err := net.Listen("tcp", at)
			say(err, "bound")
			if err == nil {
				l.Close()
			}
		}
	}
	if err := os.WriteFile(os.Getenv("LASH_SOCKETS_OUT"), []byte(strings.Join(out, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// greeting reads the name of the server.
func greeting(c net.Conn) string {
	b := make([]byte, 64)
	k, _ := c.Read(b)
	return string(b[:k])
}

// named serves TCP at addresses; the greeting is the address.
func (n *namespace) named(at ...string) {
	n.t.Helper()
	for _, a := range at {
		n.must(func() error {
			l, err := net.Listen("tcp", a)
			if err != nil {
				return err
			}
			n.t.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					fmt.Fprint(c, a)
					c.Close()
				}
			}()
			return nil
		})
	}
}

// TestSockets calls Services from the host and from a pod: by ClusterIP, by NodePort on addresses of this
// node, of another one and on loopback.
func TestSockets(t *testing.T) {
	s := newSockets(t, nil)
	pod := newNamespace(t, "pod")
	pod.ip("link set lo up")
	one, two := "127.0.0.1:8080", "127.0.0.1:8081"
	s.host.named(one, two, "[::1]:8080")
	pod.named(one)
	backend, backend6 := netip.MustParseAddrPort(one), netip.MustParseAddrPort("[::1]:8080")
	for ip, kind := range map[string]uint8{"192.168.0.1": bpf.AddrLocalNode, "192.168.0.2": bpf.AddrRemoteNode, "fd00:1::2": bpf.AddrRemoteNode} {
		s.put("addr", bpf.AddrKey{Ip: bpf.IP(netip.MustParseAddr(ip))}, bpf.Addr{Kind: kind, Flags: bpf.AddrNodePort | bpf.AddrHasSvc})
	}
	s.port(1, netip.MustParseAddrPort("10.96.0.1:80"), unix.IPPROTO_TCP, bpf.FrontPrimary, bpf.Svc{}, backend)
	s.port(2, netip.MustParseAddrPort("0.0.0.0:31000"), unix.IPPROTO_TCP, outsideNodePort, bpf.Svc{}, backend)
	s.port(3, netip.MustParseAddrPort("[::]:31000"), unix.IPPROTO_TCP, outsideNodePort, bpf.Svc{}, backend6)
	s.port(9, netip.MustParseAddrPort("0.0.0.0:31002"), unix.IPPROTO_TCP, outsideNodePort, bpf.Svc{}, backend)
	s.port(4, netip.MustParseAddrPort("10.96.0.1:81"), unix.IPPROTO_TCP, bpf.FrontPrimary, bpf.Svc{})
	s.port(5, netip.MustParseAddrPort("0.0.0.0:4000"), unix.IPPROTO_TCP, bpf.FrontOutside|bpf.FrontThisNode|bpf.FrontHostPort<<bpf.FrontTypeShift, bpf.Svc{}, backend)
	s.port(6, netip.MustParseAddrPort("10.96.0.1:82"), unix.IPPROTO_TCP, bpf.FrontPrimary, bpf.Svc{Flags: bpf.SvcInternalLocal}, backend)
	s.port(7, netip.MustParseAddrPort("198.51.100.7:80"), unix.IPPROTO_TCP, bpf.FrontOutside|bpf.FrontSources|bpf.FrontLoadBalancer<<bpf.FrontTypeShift, bpf.Svc{}, backend)

	want := func(n *namespace, pairs ...string) {
		t.Helper()
		var ask, answers []string
		for i := 0; i < len(pairs); i += 2 {
			ask, answers = append(ask, pairs[i]), append(answers, pairs[i+1])
		}
		for i, got := range s.ask(n, ask...) {
			if !strings.HasPrefix(got, answers[i]) {
				t.Errorf("%s %s: %q, want %q", n.name, ask[i], got, answers[i])
			}
		}
	}
	want(s.host,
		"connect 10.96.0.1:80", one+" as 10.96.0.1:80",
		"connect 192.168.0.1:31000", one+" as 192.168.0.1:31000",
		"connect 192.168.0.2:31000", one+" as 192.168.0.2:31000",
		"connect 127.0.0.1:31000", one,
		"connect [::1]:31000", "[::1]:8080",
		"connect [fd00:1::2]:31000", "[::1]:8080 as [fd00:1::2]:31000",
		"connect 10.96.0.1:81", "refused",
		"connect 192.168.0.1:4000", one,
		"connect 127.0.0.1:4000", one,
		"connect 10.96.0.1:82", "refused", // the policy is Local, and nothing is here
		"connect 198.51.100.7:80", "refused", // this node is in none of the ranges
		"bind 0.0.0.0:31000", "not permitted",
		"bind [::]:31000", "not permitted",
		"bind 127.0.0.1:31001", "bound",
		"bind [::]:31002", "not permitted", // it would have the port in IPv4 too
		"bind [::1]:31002", "bound",
	)
	k := bpf.CIDR(netip.MustParsePrefix("192.168.0.0/24"))
	s.put("srcrange", bpf.SrcrangeKey{Plen: k.Plen, SvcId: 7, Ip: k.Ip}, uint32(1))
	want(s.host, "connect 198.51.100.7:80", one)
	want(pod,
		"connect 10.96.0.1:80", one+" as 10.96.0.1:80",
		"connect 192.168.0.2:31000", one,
		"connect 127.0.0.1:31000", "refused", // its own loopback device
		"connect 198.51.100.7:80", "dial tcp", // nobody knows the source yet: packets are looked at
		"connect 192.168.0.2:4000", "dial tcp", // a HostPort of this node, not of that one
		"bind 0.0.0.0:31000", "bound",
	)
	// affinity: all sockets of a namespace get one backend, another namespace has its own
	s.port(8, netip.MustParseAddrPort("10.96.0.2:80"), unix.IPPROTO_TCP, bpf.FrontPrimary, bpf.Svc{AffinitySecs: 100}, backend, netip.MustParseAddrPort(two))
	seen := s.ask(s.host, slices.Repeat([]string{"connect 10.96.0.2:80"}, 16)...)
	slices.Sort(seen)
	if got := slices.Compact(seen); len(got) != 1 {
		t.Errorf("with affinity: %q", got)
	}
	s.put("svc", uint32(8), bpf.Svc{BlkAll: 8*bpf.SlotsPerElem | 2<<bpf.SvcBlockShift})
	seen = s.ask(s.host, slices.Repeat([]string{"connect 10.96.0.2:80"}, 32)...)
	slices.Sort(seen)
	if got := slices.Compact(seen); len(got) != 2 {
		t.Errorf("without affinity: %q", got)
	}
}
