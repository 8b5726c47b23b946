// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Rules is how many rules of address translation the nodes nat-a and nat-b have.
const Rules = 500

// VXLANPort is the UDP port of the tunnels.
const VXLANPort = 8472

// Options say what to build.
type Options struct {
	IPv6 bool // addresses of this family; the nodes' own as well
	// LocalMTU, RemoteMTU and TunnelMTU are the MTU of the routes between pods of a node, of two nodes,
	// and through the tunnel: those of the network that is compared.
	LocalMTU, RemoteMTU, TunnelMTU int
	// ClientGroups and ServerGroups are the control groups, as folders, that clients and servers run in.
	ClientGroups, ServerGroups []string
	// Server is the command line of the server that every destination runs. It must write a line when
	// it listens.
	Server []string
	// Second, when it is not empty, is the command line of another server for Direct2.
	Second []string
}

// Lab is a set of bare paths.
type Lab struct {
	o       Options
	spaces  map[string]*Space
	daemons []*Daemon
}

// Names of the namespaces that a path begins and ends in.
const (
	Direct1, Direct2       = "direct-1", "direct-2"
	Plain1, Plain2, Plain3 = "plain-1", "plain-2", "plain-3"
	NAT1, NAT2, NAT3       = "nat-1", "nat-2", "nat-3"
)

// New builds the lab and starts a server in every destination.
func New(ctx context.Context, o Options) (*Lab, error) {
	l := &Lab{o: o, spaces: map[string]*Space{}}
	if err := l.build(ctx); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Close ends the servers and lets the namespaces go.
func (l *Lab) Close() {
	for _, d := range l.daemons {
		d.Close()
	}
	for _, s := range l.spaces {
		s.Close()
	}
}

// addr gives the addresses of the lab: a group of hosts and one of them.
func (l *Lab) addr(group, host int) netip.Addr {
	if l.o.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf("fd99:%x::%x", group, host))
	}
	return netip.AddrFrom4([4]byte{10, 99, byte(group), byte(host)})
}

// host and onNet are an address with the length of one host and with that of its group; net is the group.
func (l *Lab) host(group, host int) string {
	a := l.addr(group, host)
	return netip.PrefixFrom(a, a.BitLen()).String()
}

func (l *Lab) onNet(group, host int) string {
	bits := 24
	if l.o.IPv6 {
		bits = 64
	}
	return netip.PrefixFrom(l.addr(group, host), bits).String()
}

func (l *Lab) net(group int) string { return l.onNet(group, 0) }

// Groups of addresses.
const (
	nodesNet  = 1  // of the nodes on the fabric
	tunnelNet = 2  // of their VXLAN devices; nat has the next one
	directNet = 4  // of the veth pair
	gateway   = 5  // what pods know their node by
	podsNet   = 16 // of pods; each node has two, see node
)

// node is a node with its pods.
type node struct {
	name string
	host int // its number on the fabric
	peer int // the other node's
	pods []string
	set  int // 0 plain, 1 nat
	side int // 0 a, 1 b
}

var nodes = []node{
	{"plain-a", 1, 2, []string{Plain1, Plain2}, 0, 0},
	{"plain-b", 2, 1, []string{Plain3}, 0, 1},
	{"nat-a", 3, 4, []string{NAT1, NAT2}, 1, 0},
	{"nat-b", 4, 3, []string{NAT3}, 1, 1},
}

// routed and tunnelled are the groups of the pods' first and second addresses.
func (n node) routed(side int) int    { return podsNet + 4*n.set + side }
func (n node) tunnelled(side int) int { return podsNet + 4*n.set + 2 + side }

// Addr is the address under which a path reaches a destination: its only one, or the second one when
// the path is to lead through the tunnel.
func (l *Lab) Addr(name string, tunnel bool) (netip.Addr, error) {
	if name == Direct2 {
		return l.addr(directNet, 2), nil
	}
	for _, n := range nodes {
		if i := slices.Index(n.pods, name); i >= 0 {
			if tunnel {
				return l.addr(n.tunnelled(n.side), i+1), nil
			}
			return l.addr(n.routed(n.side), i+1), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("the lab has no destination %q", name)
}

// Exec runs a program in a namespace, in the control groups of clients, and returns what it printed.
func (l *Lab) Exec(ctx context.Context, name string, args ...string) ([]byte, error) {
	out, _, err := l.ExecTimed(ctx, name, args...)
	return out, err
}

// ExecTimed is Exec that also returns the processor time that the program took.
func (l *Lab) ExecTimed(ctx context.Context, name string, args ...string) ([]byte, time.Duration, error) {
	s := l.spaces[name]
	if s == nil {
		return nil, 0, fmt.Errorf("the lab has no namespace %q", name)
	}
	return s.runTimed(ctx, l.o.ClientGroups, "", args...)
}

// Tracked is the number of connections that a node tracks.
func (l *Lab) Tracked(ctx context.Context, node string) (int, error) {
	s := l.spaces[node]
	if s == nil {
		return 0, fmt.Errorf("the lab has no namespace %q", node)
	}
	out, err := s.Run(ctx, nil, "", "cat", "/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(out)))
}

// PlainNodes and NATNodes are the names of the nodes.
var (
	PlainNodes = []string{"plain-a", "plain-b"}
	NATNodes   = []string{"nat-a", "nat-b"}
)

func (l *Lab) build(ctx context.Context) error {
	names := []string{"fabric", Direct1, Direct2}
	for _, n := range nodes {
		names = append(append(names, n.name), n.pods...)
	}
	for _, name := range names {
		s, err := NewSpace(name, nil)
		if err != nil {
			return err
		}
		l.spaces[name] = s
		if err := s.Sysctl(ctx, "net.ipv6.conf.all.disable_ipv6=0", "net.ipv6.conf.default.disable_ipv6=0"); err != nil && l.o.IPv6 {
			return err
		}
		if err := l.ip(ctx, name, "link set lo up"); err != nil {
			return err
		}
	}
	steps := []func(context.Context) error{l.buildDirect, l.buildFabric}
	for _, n := range nodes {
		steps = append(steps, func(ctx context.Context) error { return l.buildNode(ctx, n) })
	}
	steps = append(steps, l.startServers)
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// ip runs lines of ip(8) in a namespace.
func (l *Lab) ip(ctx context.Context, name string, lines ...string) error {
	return l.spaces[name].IP(ctx, lines...)
}

// dad keeps the kernel from first looking whether somebody else has an IPv6 address.
func (l *Lab) dad() string {
	if l.o.IPv6 {
		return " nodad"
	}
	return ""
}

func (l *Lab) buildDirect(ctx context.Context) error {
	mtu := fmt.Sprintf(" mtu %d", l.o.LocalMTU)
	if err := l.ip(ctx, Direct1,
		"link add eth0"+mtu+" type veth peer name eth0"+mtu+" netns "+l.spaces[Direct2].path(),
		"addr add "+l.host(directNet, 1)+" dev eth0"+l.dad(), "link set eth0 up",
		"route add "+l.net(directNet)+" dev eth0"); err != nil {
		return err
	}
	return l.ip(ctx, Direct2, "addr add "+l.host(directNet, 2)+" dev eth0"+l.dad(), "link set eth0 up",
		"route add "+l.net(directNet)+" dev eth0")
}

func (l *Lab) buildFabric(ctx context.Context) error {
	lines := []string{"link add fabric type bridge", "link set fabric up"}
	for _, n := range nodes {
		port := "port-" + n.name
		lines = append(lines, "link add "+port+" type veth peer name eth0 netns "+l.spaces[n.name].path(),
			"link set "+port+" master fabric", "link set "+port+" up")
	}
	return l.ip(ctx, "fabric", lines...)
}

func (l *Lab) buildNode(ctx context.Context, n node) error {
	other := 1 - n.side
	tunnel := tunnelNet + n.set
	lines := []string{
		"link set eth0 up",
		"addr add " + l.onNet(nodesNet, n.host) + " dev eth0" + l.dad(),
		"route add " + l.net(n.routed(other)) + " via " + l.addr(nodesNet, n.peer).String(),
		fmt.Sprintf("link add vxlan0 type vxlan id %d dev eth0 dstport %d local %s remote %s nolearning",
			100+n.set, VXLANPort, l.addr(nodesNet, n.host), l.addr(nodesNet, n.peer)),
		"link set vxlan0 up",
		"addr add " + l.onNet(tunnel, n.host) + " dev vxlan0" + l.dad(),
		"route add " + l.net(n.tunnelled(other)) + " via " + l.addr(tunnel, n.peer).String(),
	}
	s := l.spaces[n.name]
	if err := s.Sysctl(ctx, "net.ipv4.ip_forward=1"); err != nil {
		return err
	}
	if l.o.IPv6 {
		if err := s.Sysctl(ctx, "net.ipv6.conf.all.forwarding=1"); err != nil {
			return err
		}
	}
	if err := l.ip(ctx, n.name, lines...); err != nil {
		return err
	}
	for i, pod := range n.pods {
		if err := l.buildPod(ctx, n, pod, i+1); err != nil {
			return err
		}
	}
	if n.set == 0 {
		return nil
	}
	restore := "iptables-restore"
	if l.o.IPv6 {
		restore = "ip6tables-restore"
	}
	_, err := s.Run(ctx, nil, natRules(l.o.IPv6), restore)
	return err
}

// buildPod joins a pod to its node: what plugins do that route.
func (l *Lab) buildPod(ctx context.Context, n node, pod string, host int) error {
	port := "to-" + pod
	gw := l.addr(gateway, 1).String()
	first, second := l.addr(n.routed(n.side), host), l.addr(n.tunnelled(n.side), host)
	if err := l.ip(ctx, n.name,
		"link add "+port+" type veth peer name eth0 netns "+l.spaces[pod].path(),
		"link set "+port+" up",
		"addr add "+l.host(gateway, 1)+" dev "+port+l.dad(),
		"route add "+l.host(n.routed(n.side), host)+" dev "+port,
		"route add "+l.host(n.tunnelled(n.side), host)+" dev "+port); err != nil {
		return err
	}
	other := 1 - n.side
	route := func(to string, mtu int, src netip.Addr) string {
		return fmt.Sprintf("route add %s via %s dev eth0 mtu %d src %s", to, gw, mtu, src)
	}
	return l.ip(ctx, pod,
		"addr add "+l.host(n.routed(n.side), host)+" dev eth0"+l.dad(),
		"addr add "+l.host(n.tunnelled(n.side), host)+" dev eth0"+l.dad(),
		"link set eth0 up",
		"route add "+gw+" dev eth0",
		route(l.net(n.routed(n.side)), l.o.LocalMTU, first),
		route(l.net(n.routed(other)), l.o.RemoteMTU, first),
		route(l.net(n.tunnelled(other)), l.o.TunnelMTU, second))
}

// natRules are rules as kube-proxy has for Services of one port, none of which the lab's packets
// match: every new connection is compared with all of them.
func natRules(v6 bool) string {
	var b strings.Builder
	b.WriteString("*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:SERVICES - [0:0]\n")
	b.WriteString("-A PREROUTING -j SERVICES\n-A OUTPUT -j SERVICES\n")
	for i := range Rules {
		if v6 {
			fmt.Fprintf(&b, "-A SERVICES -d fd98::%x/128 -p tcp -m tcp --dport 80 -j DNAT --to-destination [fd97::%x]:8080\n", i+1, i+1)
		} else {
			fmt.Fprintf(&b, "-A SERVICES -d 10.98.%d.%d/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.97.%d.%d:8080\n", i/250, i%250+1, i/250, i%250+1)
		}
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

func (l *Lab) startServers(ctx context.Context) error {
	for _, name := range []string{Direct2, Plain2, Plain3, NAT2, NAT3} {
		d, err := l.spaces[name].start(ctx, l.o.ServerGroups, l.o.Server...)
		if err != nil {
			return err
		}
		l.daemons = append(l.daemons, d)
	}
	if len(l.o.Second) == 0 {
		return nil
	}
	d, err := l.spaces[Direct2].start(ctx, l.o.ServerGroups, l.o.Second...)
	if err != nil {
		return err
	}
	l.daemons = append(l.daemons, d)
	return nil
}
