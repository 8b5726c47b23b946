// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"lash.internal/lash/bpf"
)

const (
	echoPort = 7777
	patience = 4 * time.Second
)

// serve answers TCP and UDP at an address with what was sent, and the peer's address before it.
func (n *namespace) serve(at netip.Addr) {
	n.t.Helper()
	var l net.Listener
	var u net.PacketConn
	listen := netip.AddrPortFrom(at, echoPort).String()
	n.must(func() error {
		var err error
		if l, err = net.Listen("tcp", listen); err != nil {
			return err
		}
		if u, err = net.ListenPacket("udp", listen); err != nil {
			return err
		}
		return roomy(u)
	})
	n.t.Cleanup(func() { l.Close(); u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintf(c, "%-64s", c.RemoteAddr())
				io.Copy(c, c)
			}()
		}
	}()
	go func() {
		b := make([]byte, 65536)
		for {
			k, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			u.WriteTo(append([]byte(fmt.Sprintf("%-64s", from)), b[:k]...), from)
		}
	}()
}

// tcp sends a megabyte through an echo server and returns whom the server saw.
func (n *namespace) tcp(to netip.Addr, port uint16, size int) (seen string, err error) {
	err = n.do(func() error {
		d := net.Dialer{Timeout: patience}
		c, err := d.Dial("tcp", netip.AddrPortFrom(to, port).String())
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(2 * patience))
		head := make([]byte, 64)
		if _, err := io.ReadFull(c, head); err != nil {
			return fmt.Errorf("greeting: %w", err)
		}
		seen = string(bytes.TrimSpace(head))
		data := bytes.Repeat([]byte("lash"), size/4)
		go c.Write(data)
		back := make([]byte, len(data))
		if k, err := io.ReadFull(c, back); err != nil {
			return fmt.Errorf("after %d bytes: %w", k, err)
		}
		if !bytes.Equal(data, back) {
			return errors.New("data came back changed")
		}
		return nil
	})
	return seen, err
}

// udp sends one datagram and waits for its echo.
func (n *namespace) udp(to netip.Addr, port uint16, size int) (seen string, err error) {
	err = n.do(func() error {
		c, err := net.Dial("udp", netip.AddrPortFrom(to, port).String())
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		data := bytes.Repeat([]byte("lash"), size/4)
		if _, err := c.Write(data); err != nil {
			return err
		}
		b := make([]byte, 65536)
		k, err := c.Read(b)
		if err != nil {
			return err
		}
		if k < 64 || !bytes.Equal(b[64:k], data) {
			return fmt.Errorf("%d bytes came back changed", k)
		}
		seen = string(bytes.TrimSpace(b[:64]))
		return nil
	})
	return seen, err
}

// ping sends an echo request of a size and waits for the reply.
func (n *namespace) ping(to netip.Addr, size, ttl int) (icmp.Type, netip.Addr, error) {
	var got icmp.Type
	var from netip.Addr
	err := n.do(func() error {
		network, proto := "ip4:icmp", 1
		var typ icmp.Type = ipv4.ICMPTypeEcho
		if to.Is6() {
			network, proto, typ = "ip6:ipv6-icmp", 58, ipv6.ICMPTypeEchoRequest
		}
		c, err := icmp.ListenPacket(network, "")
		if err != nil {
			return err
		}
		defer c.Close()
		if ttl > 0 && to.Is4() {
			c.IPv4PacketConn().SetTTL(ttl)
		} else if ttl > 0 {
			c.IPv6PacketConn().SetHopLimit(ttl)
		}
		id := os.Getpid() & 0xffff
		m := icmp.Message{Type: typ, Body: &icmp.Echo{ID: id, Seq: 1, Data: make([]byte, size)}}
		b, err := m.Marshal(nil)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(b, &net.IPAddr{IP: to.AsSlice()}); err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(patience))
		in := make([]byte, 65536)
		for {
			k, peer, err := c.ReadFrom(in)
			if err != nil {
				return err
			}
			r, err := icmp.ParseMessage(proto, in[:k])
			if err != nil {
				return err
			}
			if r.Type == ipv4.ICMPTypeEcho || r.Type == ipv6.ICMPTypeEchoRequest ||
				r.Type == ipv6.ICMPTypeNeighborSolicitation || r.Type == ipv6.ICMPTypeNeighborAdvertisement ||
				r.Type == ipv6.ICMPTypeRouterSolicitation || r.Type == ipv6.ICMPTypeMulticastListenerReport ||
				r.Type == ipv6.ICMPTypeVersion2MulticastListenerReport {
				continue
			}
			if e, ok := r.Body.(*icmp.Echo); ok && e.ID != id {
				continue
			}
			got = r.Type
			from, _ = netip.AddrFromSlice(peer.(*net.IPAddr).IP)
			from = from.Unmap()
			return nil
		}
	})
	return got, from, err
}

type pair struct {
	name     string
	from, to *namespace
	addr     func(v6 bool) netip.Addr
	seen     func(v6 bool) netip.Addr // source that the server must see, if set
}

func (p *pod) addr(v6 bool) netip.Addr {
	if v6 {
		return p.ip6
	}
	return p.ip4
}

func (n *node) addr(v6 bool) netip.Addr {
	if v6 {
		return n.ip6()
	}
	return n.ip4()
}

func external(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(externalIP6)
	}
	return netip.MustParseAddr(externalIP4)
}

// pairs lists who talks to whom, and whom the receiver must see.
func (f *fabric) pairs(native bool) []pair {
	a, b := f.nodes[0], f.nodes[1]
	p, q, r, s := a.pods[0], a.pods[1], b.pods[0], b.pods[1]
	other := a.addr // behind the tunnel pods are hidden from other nodes
	if native {
		other = p.addr
	}
	return []pair{
		{"pod to pod same node", p.namespace, q.namespace, q.addr, p.addr},
		{"pod to pod other node", p.namespace, r.namespace, r.addr, p.addr},
		{"pod to pod unheard of", q.namespace, s.namespace, s.addr, q.addr},
		{"pod to own host", p.namespace, a.namespace, a.addr, p.addr},
		{"pod to other host", p.namespace, b.namespace, b.addr, other},
		{"host to own pod", a.namespace, p.namespace, p.addr, nil},
		{"host to other pod", a.namespace, r.namespace, r.addr, nil},
		{"pod to external", p.namespace, f.external, external, a.addr},
		{"external to pod", f.external, p.namespace, p.addr, external},
	}
}

func family(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

func (f *fabric) serveAll() {
	for _, v6 := range []bool{false, true} {
		f.external.serve(external(v6))
		for _, n := range f.nodes {
			n.serve(n.addr(v6))
			for _, p := range n.pods {
				p.serve(p.addr(v6))
			}
		}
	}
}

// check runs one pair with every protocol and size.
func (f *fabric) check(t *testing.T, p pair, v6 bool) {
	t.Helper()
	to := p.addr(v6)
	verify := func(what, seen string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v\n%s", what, err, f.drops())
			return
		}
		if p.seen == nil || seen == "" {
			return
		}
		if ap, err := netip.ParseAddrPort(seen); err != nil || ap.Addr().Unmap() != p.seen(v6) {
			t.Errorf("%s: the server saw %s, want %s", what, seen, p.seen(v6))
		}
	}
	seen, err := p.from.tcp(to, echoPort, 4)
	verify("TCP", seen, err)
	if err == nil {
		seen, err = p.from.tcp(to, echoPort, 1<<20)
		verify("TCP bulk", seen, err)
	}
	for _, size := range []int{4, 1300, 8000} {
		seen, err = p.from.udp(to, echoPort, size)
		verify(fmt.Sprintf("UDP %d", size), seen, err)
	}
	for _, size := range []int{56, 4000} {
		typ, _, err := p.from.ping(to, size, 0)
		verify(fmt.Sprintf("ping %d", size), "", err)
		if err == nil && typ != ipv4.ICMPTypeEchoReply && typ != ipv6.ICMPTypeEchoReply {
			t.Errorf("ping %d: answered by %v", size, typ)
		}
	}
}

// TestTraffic sends real traffic between pods, hosts and the outside, over VXLAN and routed.
func TestTraffic(t *testing.T) {
	for _, mode := range []struct{ native, kpr, device bool }{{false, true, false}, {false, true, true}, {false, false, false}, {true, true, false}, {true, false, false}} {
		t.Run(fmt.Sprintf("native=%v kpr=%v device=%v", mode.native, mode.kpr, mode.device), func(t *testing.T) {
			f := newFabric(t, options{nodes: 2, native: mode.native, conf: func(c *bpf.Config) {
				c.KubeProxyReplacement = mode.kpr
				c.Encap = c.Encap && !mode.device
			}})
			f.serveAll()
			for _, v6 := range []bool{false, true} {
				for _, p := range f.pairs(mode.native) {
					t.Run(family(v6)+" "+p.name, func(t *testing.T) { f.check(t, p, v6) })
				}
			}
			if t.Failed() {
				t.Log(f.drops())
			}
		})
	}
}

// TestService reaches ClusterIPs packet by packet: another pod, another node, a host, itself, and
// one with nothing behind it.
func TestService(t *testing.T) {
	f := newFabric(t, options{nodes: 2})
	f.serveAll()
	client := f.nodes[0].pods[0]
	id := uint32(1)
	for _, v6 := range []bool{false, true} {
		vip := func(i uint32) netip.Addr {
			if v6 {
				return netip.MustParseAddr(fmt.Sprintf("fd00:96::%d", i))
			}
			return netip.AddrFrom4([4]byte{10, 96, 0, byte(i)})
		}
		for name, backend := range map[string]netip.Addr{
			"same node": f.nodes[0].pods[1].addr(v6), "other node": f.nodes[1].pods[0].addr(v6),
			"own host": f.nodes[0].addr(v6), "other host": f.nodes[1].addr(v6),
			"external": external(v6), "itself": client.addr(v6),
		} {
			t.Run(family(v6)+" "+name, func(t *testing.T) {
				addr := vip(id)
				f.service(id, addr, 80, unix.IPPROTO_TCP, netip.AddrPortFrom(backend, echoPort))
				f.service(id+1, addr, 53, unix.IPPROTO_UDP, netip.AddrPortFrom(backend, echoPort))
				id += 2
				for range 3 {
					if _, err := client.tcp(addr, 80, 1<<16); err != nil {
						t.Errorf("TCP: %v\n%s", err, f.drops())
					}
					if _, err := client.udp(addr, 53, 1000); err != nil {
						t.Errorf("UDP: %v\n%s", err, f.drops())
					}
				}
			})
		}
		t.Run(family(v6)+" nothing behind it", func(t *testing.T) {
			addr := vip(id)
			f.service(id, addr, 80, unix.IPPROTO_TCP)
			f.service(id+1, addr, 53, unix.IPPROTO_UDP)
			id += 2
			if _, err := client.tcp(addr, 80, 4); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("TCP: %v, want connection refused\n%s", err, f.drops())
			}
			if _, err := client.udp(addr, 53, 4); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("UDP: %v, want connection refused\n%s", err, f.drops())
			}
		})
	}
}

// TestKubeProxy leaves Services to netfilter, as kube-proxy does: what it translates on the way out
// has to come back to it, wherever the backend is.
func TestKubeProxy(t *testing.T) {
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skip("needs iptables")
	}
	for _, mode := range []struct{ native, masq bool }{{false, true}, {false, false}, {true, true}, {true, false}} {
		f := newFabric(t, options{nodes: 2, native: mode.native, conf: func(c *bpf.Config) {
			c.KubeProxyReplacement, c.Masquerade4, c.Masquerade6 = false, mode.masq, mode.masq
		}})
		f.serveAll()
		client, port := f.nodes[0].pods[0], 1000
		for _, v6 := range []bool{false, true} {
			vip, tables := "10.96.0.1", "iptables"
			if v6 {
				vip, tables = "fd00:96::1", "ip6tables"
			}
			for name, backend := range map[string]netip.Addr{
				"same node": f.nodes[0].pods[1].addr(v6), "other node": f.nodes[1].pods[0].addr(v6), "unheard of": f.nodes[1].pods[1].addr(v6),
				"own host": f.nodes[0].addr(v6), "other host": f.nodes[1].addr(v6), "external": external(v6),
			} {
				t.Run(fmt.Sprintf("native=%v masq=%v %s %s", mode.native, mode.masq, family(v6), name), func(t *testing.T) {
					port++
					for _, proto := range []string{"tcp", "udp"} {
						f.nodes[0].must(func() error {
							out, err := exec.Command(tables, "-t", "nat", "-A", "PREROUTING", "-d", vip, "-p", proto, "--dport", fmt.Sprint(port),
								"-j", "DNAT", "--to-destination", netip.AddrPortFrom(backend, echoPort).String()).CombinedOutput()
							if err != nil {
								return fmt.Errorf("%w: %s", err, out)
							}
							return nil
						})
					}
					for range 2 {
						if _, err := client.tcp(netip.MustParseAddr(vip), uint16(port), 1<<16); err != nil {
							t.Errorf("TCP: %v\n%s", err, f.drops())
						}
						if _, err := client.udp(netip.MustParseAddr(vip), uint16(port), 1000); err != nil {
							t.Errorf("UDP: %v\n%s", err, f.drops())
						}
					}
				})
			}
		}
	}
}

// TestTimeExceeded expects the hops of a path between pods to answer.
func TestTimeExceeded(t *testing.T) {
	f := newFabric(t, options{nodes: 2})
	client, server := f.nodes[0].pods[0], f.nodes[1].pods[0]
	for _, v6 := range []bool{false, true} {
		for ttl, want := range map[int]*node{1: f.nodes[0], 2: f.nodes[1]} {
			typ, from, err := client.ping(server.addr(v6), 56, ttl)
			if err != nil {
				t.Errorf("%s TTL %d: %v\n%s", family(v6), ttl, err, f.drops())
				continue
			}
			router := want.router4()
			if v6 {
				router = want.router6()
			}
			if (typ != ipv4.ICMPTypeTimeExceeded && typ != ipv6.ICMPTypeTimeExceeded) || from != router {
				t.Errorf("%s TTL %d: %v from %s, want time exceeded from %s", family(v6), ttl, typ, from, router)
			}
		}
	}
}
