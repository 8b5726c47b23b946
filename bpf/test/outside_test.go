// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"lash.internal/lash/bpf"
)

// nodePort publishes a port on the addresses of all nodes, for TCP and UDP.
func (f *fabric) nodePort(id uint32, port uint16, flags uint32, backends ...netip.AddrPort) {
	f.t.Helper()
	for _, n := range f.nodes {
		for _, peer := range f.nodes {
			for _, a := range []netip.Addr{peer.ip4(), peer.ip6()} {
				kind := bpf.Addr{Kind: bpf.AddrRemoteNode, Identity: bpf.IdentityRemoteNode, Vtep: uint32(peer.id), Flags: bpf.AddrNodePort}
				if peer == n {
					kind = bpf.Addr{Kind: bpf.AddrLocalNode, Identity: bpf.IdentityHost, Flags: bpf.AddrNodePort}
				}
				n.put("addr", bpf.AddrKey{Ip: bpf.IP(a)}, kind)
			}
		}
		for i, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			svc := 2*id + uint32(i)
			for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
				if len(backends) == 0 || any.Is6() == backends[0].Addr().Is6() {
					n.put("front", bpf.FrontKey{Ip: bpf.IP(any), Port: bpf.Port(port), Proto: proto}, bpf.Front{SvcId: svc, Flags: outsideNodePort})
				}
			}
			var all, local bpf.Slots
			here := 0
			for k, b := range backends {
				bid := svc*16 + uint32(k)
				n.put("backend", bid, bpf.Backend{Ip: bpf.IP(b.Addr()), Port: bpf.Port(b.Port()), Proto: proto, State: bpf.BackendActive})
				all.BackendId[k] = bid
				if n.has(b.Addr()) {
					local.BackendId[here] = bid
					here++
				}
				if b.Addr() == n.ip4() || b.Addr() == n.ip6() {
					word := uint32(b.Port()/64) + uint32(i)*bpf.HostbackWords
					n.put("hostback", word, uint64(1)<<(b.Port()%64))
				}
			}
			n.put("slot", 2*svc, all)
			n.put("slot", 2*svc+1, local)
			n.put("svc", svc, bpf.Svc{
				BlkAll:   uint64(2*svc*bpf.SlotsPerElem) | uint64(len(backends))<<bpf.SvcBlockShift,
				BlkLocal: uint64((2*svc+1)*bpf.SlotsPerElem) | uint64(here)<<bpf.SvcBlockShift,
				Flags:    flags,
			})
		}
	}
}

func (n *node) has(a netip.Addr) bool {
	for _, p := range n.pods {
		if a == p.ip4 || a == p.ip6 {
			return true
		}
	}
	return a == n.ip4() || a == n.ip6()
}

// TestNodePorts calls NodePorts from outside, from a pod and from pods of another node, with backends
// everywhere, with and without the tunnel, translated and as they came.
func TestNodePorts(t *testing.T) {
	for _, mode := range []struct {
		name   string
		native bool
		lb     uint8
	}{{"tunnel", false, bpf.LBSNAT}, {"native", true, bpf.LBSNAT}, {"dsr", false, bpf.LBDSR}} {
		t.Run(mode.name, func(t *testing.T) {
			f := newFabric(t, options{nodes: 2, native: mode.native, conf: func(c *bpf.Config) { c.LBMode = mode.lb }})
			f.serveAll()
			id, port := uint32(1), uint16(30100)
			for _, v6 := range []bool{false, true} {
				a, b := f.nodes[0], f.nodes[1]
				pods, snat6 := a.snatAddrs()
				if v6 {
					pods = snat6
				}
				hosts := a.addr(v6) // whom backends of the other node see, as pods
				if mode.lb == bpf.LBDSR {
					pods = external(v6)
				}
				for _, c := range []struct {
					name    string
					backend netip.Addr
					seen    netip.Addr
				}{
					{"pod here", a.pods[0].addr(v6), external(v6)},
					{"pod of another node", b.pods[0].addr(v6), pods},
					{"unheard of pod of another node", b.pods[1].addr(v6), pods},
					{"own host", a.addr(v6), external(v6)},
					{"other host", b.addr(v6), hosts},
				} {
					t.Run(family(v6)+" "+c.name, func(t *testing.T) {
						id, port = id+1, port+1
						f.nodePort(id, port, 0, netip.AddrPortFrom(c.backend, echoPort))
						f.call(t, f.external, a.addr(v6), port, c.seen)
						f.call(t, a.pods[1].namespace, a.addr(v6), port, netip.Addr{})
						f.call(t, a.pods[1].namespace, b.addr(v6), port, netip.Addr{})
						f.call(t, b.pods[0].namespace, a.addr(v6), port, netip.Addr{})
						f.call(t, b.namespace, a.addr(v6), port, netip.Addr{})
					})
				}
				t.Run(family(v6)+" policy Local", func(t *testing.T) {
					id, port = id+1, port+1
					f.nodePort(id, port, bpf.SvcExternalLocal, netip.AddrPortFrom(b.pods[0].addr(v6), echoPort))
					f.call(t, f.external, b.addr(v6), port, external(v6))
					if _, err := f.external.udp(a.addr(v6), port, 4); err == nil || errors.Is(err, unix.ECONNREFUSED) {
						t.Errorf("a node without backends answers: %v", err)
					}
					f.call(t, a.pods[0].namespace, a.addr(v6), port, netip.Addr{})
					// what another node does is up to that one, for callers inside the cluster too
					f.call(t, a.namespace, b.addr(v6), port, a.addr(v6))
					if _, err := b.pods[1].udp(a.addr(v6), port, 4); err == nil {
						t.Error("a pod gets past the policy of another node")
					}
				})
				t.Run(family(v6)+" nothing behind it", func(t *testing.T) {
					id, port = id+1, port+1
					f.nodePort(id, port, 0)
					if _, err := f.external.tcp(a.addr(v6), port, 4); !errors.Is(err, unix.ECONNREFUSED) {
						t.Errorf("TCP: %v, want connection refused\n%s", err, f.drops())
					}
					if _, err := f.external.udp(a.addr(v6), port, 4); !errors.Is(err, unix.ECONNREFUSED) {
						t.Errorf("UDP: %v, want connection refused\n%s", err, f.drops())
					}
				})
			}
		})
	}
}

// call uses a port with TCP and UDP and says whom the server has to see.
func (f *fabric) call(t *testing.T, from *namespace, to netip.Addr, port uint16, want netip.Addr) {
	t.Helper()
	check := func(what, seen string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s from %s to %s: %v\n%s", what, from.name, to, err, f.drops())
			return
		}
		if ap, err := netip.ParseAddrPort(seen); want.IsValid() && (err != nil || ap.Addr().Unmap() != want) {
			t.Errorf("%s from %s to %s: the server saw %s, want %s", what, from.name, to, seen, want)
		}
	}
	for range 2 {
		seen, err := from.tcp(to, port, 1<<17)
		check("TCP", seen, err)
	}
	for _, size := range []int{4, 1300, 8000} {
		seen, err := from.udp(to, port, size)
		if errors.Is(err, unix.EMSGSIZE) { // the path is narrower than the link, as it now knows
			seen, err = from.udp(to, port, size)
		}
		check(fmt.Sprintf("UDP %d", size), seen, err)
	}
}
