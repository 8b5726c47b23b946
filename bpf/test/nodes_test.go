// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"lash.internal/lash/bpf"
)

// namespace is a network namespace held open by a descriptor.
type namespace struct {
	t    *testing.T
	name string
	fd   int
}

// newNamespace makes a network namespace that lives as long as the test.
func newNamespace(t *testing.T, name string) *namespace {
	t.Helper()
	n := &namespace{t: t, name: name}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine: it is not given back
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		var err error
		n.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		done <- err
	}()
	if err := <-done; err != nil {
		t.Skipf("no network namespaces: %v", err)
	}
	t.Cleanup(func() { unix.Close(n.fd) })
	return n
}

// do runs a function inside the namespace.
func (n *namespace) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func (n *namespace) must(f func() error) {
	n.t.Helper()
	if err := n.do(f); err != nil {
		n.t.Fatalf("%s: %v", n.name, err)
	}
}

// ip runs one ip(8) command in the namespace.
func (n *namespace) ip(format string, args ...any) {
	n.t.Helper()
	line := fmt.Sprintf(format, args...)
	n.must(func() error {
		out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, out)
		}
		return nil
	})
}

func (n *namespace) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.fd) }

func (n *namespace) sysctl(name, value string) {
	n.t.Helper()
	n.must(func() error {
		return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644)
	})
}

func (n *namespace) ifindex(dev string) int {
	n.t.Helper()
	var index int
	n.must(func() error {
		i, err := net.InterfaceByName(dev)
		if err == nil {
			index = i.Index
		}
		return err
	})
	return index
}

func (n *namespace) mac(dev string) [6]byte {
	n.t.Helper()
	var mac [6]byte
	n.must(func() error {
		i, err := net.InterfaceByName(dev)
		if err == nil {
			copy(mac[:], i.HardwareAddr)
		}
		return err
	})
	return mac
}

// cookie is the kernel's number of the namespace.
func (n *namespace) cookie() uint64 {
	n.t.Helper()
	var cookie uint64
	n.must(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		size := uint32(8)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET,
			unix.SO_NETNS_COOKIE, uintptr(unsafe.Pointer(&cookie)), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
	return cookie
}

// node is a namespace that does what a node does: devices, routes, maps and programs.
type node struct {
	*namespace
	id    int
	coll  *ebpf.Collection
	pods  []*pod
	agent *agent // attaches, if set
}

// pod is a namespace behind a node's interface.
type pod struct {
	*namespace
	node     *node
	id       int
	ip4, ip6 netip.Addr
}

func (n *node) ip4() netip.Addr { return netip.AddrFrom4([4]byte{192, 168, 0, byte(n.id)}) }
func (n *node) ip6() netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd00:1::%d", n.id)) }
func (n *node) router4() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, byte(n.id), 1})
}

func (n *node) router6() netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:10:%d::1", n.id))
}

// snatAddrs are what comes from outside to pods of other nodes goes on from.
func (n *node) snatAddrs() (v4, v6 netip.Addr) {
	return netip.AddrFrom4([4]byte{10, 0, byte(n.id), 254}), netip.MustParseAddr(fmt.Sprintf("fd00:10:%d::fffe", n.id))
}

// own are the addresses of cilium_host.
func (n *node) own() []netip.Addr {
	v4, v6 := n.snatAddrs()
	return []netip.Addr{n.router4(), n.router6(), v4, v6}
}

func (n *node) cidr4() netip.Prefix { return netip.PrefixFrom(n.router4(), 24).Masked() }
func (n *node) cidr6() netip.Prefix { return netip.PrefixFrom(n.router6(), 64).Masked() }

const (
	fabricMTU   = 1500
	podMTU      = 1430
	externalIP4 = "192.168.0.100"
	externalIP6 = "fd00:1::100"
)

// fabric is a switch with nodes and one host outside of the cluster.
type fabric struct {
	t        *testing.T
	bridge   *namespace
	external *namespace
	nodes    []*node
}

// options of a fabric.
type options struct {
	nodes  int
	native bool // nodes route each other's pods, there is no tunnel
	conf   func(*bpf.Config)
	// way is how an agent would attach programs: "tcx" or "cls_bpf"; empty: by tcx without its code,
	// if the kernel has that.
	way string
}

// newFabric builds nodes with two pods each and attaches the programs.
func newFabric(t *testing.T, o options) *fabric {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if all := ways(t); o.way == "" && !slices.Contains(all, "tcx") {
		o.way = all[0]
	}
	f := &fabric{t: t, bridge: newNamespace(t, "fabric")}
	f.bridge.ip("link add br0 type bridge")
	f.bridge.ip("link set br0 up")
	f.external = newNamespace(t, "external")
	f.plug(f.external, "ext", externalIP4, externalIP6)
	for i := 1; i <= o.nodes; i++ {
		n := &node{namespace: newNamespace(t, fmt.Sprintf("node%d", i)), id: i}
		f.plug(n.namespace, fmt.Sprintf("n%d", i), n.ip4().String(), n.ip6().String())
		n.devices()
		f.nodes = append(f.nodes, n)
	}
	for _, n := range f.nodes {
		conf := bpf.DefaultConfig()
		conf.Tunnel, conf.Encap = !o.native, !o.native
		if o.conf != nil {
			o.conf(&conf)
		}
		n.load(conf, o.way)
		for i := 1; i <= 2; i++ {
			n.addPod(i)
		}
	}
	for _, n := range f.nodes {
		n.know(f.nodes, o.native)
		// The host outside reaches pods by their own addresses.
		f.external.ip("route add %s via %s", n.cidr4(), n.ip4())
		f.external.ip("route add %s via %s", n.cidr6(), n.ip6())
	}
	return f
}

// plug connects a namespace to the switch as eth0.
func (f *fabric) plug(n *namespace, port, ip4, ip6 string) {
	// While an address is being checked for duplicates the kernel does not look for IPv6 neighbours.
	n.sysctl("ipv6/conf/default/accept_dad", "0")
	f.bridge.ip("link add %s mtu %d type veth peer name eth0 mtu %d netns %s", port, fabricMTU, fabricMTU, n.path())
	f.bridge.ip("link set %s master br0 up", port)
	n.ip("link set lo up")
	n.ip("addr add %s/24 dev eth0", ip4)
	n.ip("addr add %s/64 dev eth0 nodad", ip6)
	n.ip("link set eth0 up")
}

func (n *node) devices() {
	for _, s := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		n.sysctl(s, "1")
	}
	n.sysctl("ipv4/conf/all/rp_filter", "0")
	n.sysctl("ipv4/conf/default/rp_filter", "0")
	n.sysctl("ipv4/ip_local_reserved_ports", "49152-65535")
	n.ip("link add cilium_host type veth peer name cilium_net")
	n.ip("link set cilium_net up")
	n.ip("link set cilium_host up")
	n.ip("addr add %s/32 dev cilium_host", n.router4())
	n.ip("addr add %s/128 dev cilium_host nodad", n.router6())
	v4, v6 := n.snatAddrs()
	n.ip("addr add %s/32 dev cilium_host", v4)
	n.ip("addr add %s/128 dev cilium_host nodad", v6)
	n.ip("link add cilium_vxlan mtu %d type vxlan external dstport 8472", fabricMTU)
	n.ip("link set cilium_vxlan arp off up")
}

func (n *node) load(conf bpf.Config, way string) {
	n.t.Helper()
	conf.HostCookie = n.cookie()
	conf.TunnelMTU = podMTU
	conf.Router4, conf.Router6 = n.router4(), n.router6()
	conf.SNATAddr4, conf.SNATAddr6 = n.snatAddrs()
	conf.Node4, conf.Node6 = n.ip4(), n.ip6()
	if way != "" {
		n.agent = newAgent(n, conf, way)
	} else {
		spec, err := bpf.LoadTc()
		if err != nil {
			n.t.Fatal(err)
		}
		shrink(spec)
		if err := conf.Apply(spec); err != nil {
			n.t.Fatal(err)
		}
		if n.coll, err = ebpf.NewCollection(spec); err != nil {
			n.t.Fatalf("%+v", err)
		}
		n.t.Cleanup(n.coll.Close)
	}
	n.switches(false)
	n.attach("cilium_vxlan", "ov_from", "ov_to")
	n.attach("eth0", "nd_from", "nd_to")
	n.put("dev", uint32(n.ifindex("eth0")), bpf.Dev{
		Masq4: n.ip4().As4(), Masq6: n.ip6().As16(), Mac: n.mac("eth0"), Mtu: fabricMTU,
	})
}

// switches sets what may change while programs run.
func (n *node) switches(handover bool) {
	n.t.Helper()
	c := bpf.RunCfg{
		ReportInterval: 4768, DropRate: 10000, TraceRate: 10000, VxlanIfindex: uint32(n.ifindex("cilium_vxlan")),
	}
	if handover {
		c.Handover = 1
	}
	n.put("cfg", uint32(0), c)
}

func (n *node) attach(dev, in, out string) {
	n.t.Helper()
	index := n.ifindex(dev)
	if n.agent != nil {
		n.agent.add(index, in, out)
		return
	}
	for prog, at := range map[string]ebpf.AttachType{in: ebpf.AttachTCXIngress, out: ebpf.AttachTCXEgress} {
		n.must(func() error {
			l, err := link.AttachTCX(link.TCXOptions{
				Interface: index, Program: n.coll.Programs[prog], Attach: at,
			})
			if err != nil {
				return fmt.Errorf("attach %s: %w", prog, err)
			}
			n.t.Cleanup(func() { l.Close() })
			return nil
		})
	}
}

func (n *node) put(m string, key, value any) {
	n.t.Helper()
	if err := n.coll.Maps[m].Put(key, value); err != nil {
		n.t.Fatalf("map %s: %v", m, err)
	}
}

// addPod makes a pod as the CNI plugin does it.
func (n *node) addPod(i int) {
	p := &pod{
		namespace: newNamespace(n.t, fmt.Sprintf("pod%d%d", n.id, i)), node: n, id: n.id*10 + i,
		ip4: netip.AddrFrom4([4]byte{10, 0, byte(n.id), byte(10 + i)}),
		ip6: netip.MustParseAddr(fmt.Sprintf("fd00:10:%d::1%d", n.id, i)),
	}
	dev := fmt.Sprintf("lxc%d", i)
	n.ip("link add %s type veth peer name eth0 netns %s", dev, p.path())
	n.sysctl("ipv4/conf/"+dev+"/rp_filter", "0")
	n.ip("link set %s up", dev)
	p.ip("link set lo up")
	p.ip("addr add %s/32 dev eth0", p.ip4)
	p.ip("addr add %s/128 dev eth0 nodad", p.ip6)
	p.ip("link set eth0 up")
	host := n.mac(dev)
	p.ip("route add %s dev eth0 scope link", n.router4())
	p.ip("route add default via %s dev eth0 mtu %d", n.router4(), podMTU)
	p.ip("route add %s dev eth0", n.router6())
	p.ip("route add default via %s dev eth0 mtu %d", n.router6(), podMTU)
	p.ip("neigh replace %s lladdr %s dev eth0 nud permanent", n.router4(), net.HardwareAddr(host[:]))
	p.ip("neigh replace %s lladdr %s dev eth0 nud permanent", n.router6(), net.HardwareAddr(host[:]))
	mac := p.mac("eth0")
	n.ip("route add %s/32 dev %s", p.ip4, dev)
	n.ip("route add %s/128 dev %s", p.ip6, dev)
	n.ip("neigh replace %s lladdr %s dev %s nud permanent", p.ip4, net.HardwareAddr(mac[:]), dev)
	n.ip("neigh replace %s lladdr %s dev %s nud permanent", p.ip6, net.HardwareAddr(mac[:]), dev)
	index := uint32(n.ifindex(dev))
	n.put("ep", index, bpf.Ep{
		Identity: uint32(1000 + p.id), EpId: uint32(p.id), Ifindex: index, Mac: mac, NodeMac: host,
		Ipv4: p.ip4.As4(), Ipv6: p.ip6.As16(),
	})
	for _, a := range []netip.Addr{p.ip4, p.ip6} {
		n.put("addr", bpf.AddrKey{Ip: bpf.IP(a)}, bpf.Addr{
			Kind: bpf.AddrLocalEP, Identity: uint32(1000 + p.id), Ifindex: index, EpId: uint32(p.id),
		})
	}
	n.attach(dev, "pod_from", "pod_to")
	n.pods = append(n.pods, p)
}

// know fills what a node is told about itself and its peers.
func (n *node) know(all []*node, native bool) {
	for _, a := range []netip.Addr{n.ip4(), n.ip6()} {
		n.put("addr", bpf.AddrKey{Ip: bpf.IP(a)}, bpf.Addr{Kind: bpf.AddrLocalNode, Identity: bpf.IdentityHost})
	}
	for _, a := range n.own() {
		n.put("addr", bpf.AddrKey{Ip: bpf.IP(a)}, bpf.Addr{Kind: bpf.AddrGateway, Identity: bpf.IdentityHost})
	}
	for _, c := range []netip.Prefix{n.cidr4(), n.cidr6()} {
		n.put("cidr", bpf.CIDR(c), bpf.Cidr{Kind: bpf.CIDRPodLocal})
	}
	for _, peer := range all {
		if peer == n {
			continue
		}
		vtep := uint32(peer.id)
		n.put("vtep", vtep, bpf.Vtep{Ip: bpf.IP(peer.ip4())})
		for _, a := range []netip.Addr{peer.ip4(), peer.ip6()} {
			n.put("addr", bpf.AddrKey{Ip: bpf.IP(a)}, bpf.Addr{
				Kind: bpf.AddrRemoteNode, Identity: bpf.IdentityRemoteNode, Vtep: vtep,
			})
		}
		for _, a := range peer.own() {
			n.put("addr", bpf.AddrKey{Ip: bpf.IP(a)}, bpf.Addr{
				Kind: bpf.AddrRemoteEP, Identity: bpf.IdentityRemoteNode, Vtep: vtep,
			})
		}
		for _, p := range peer.pods {
			if p.id%10 == 2 {
				continue // known only by its range
			}
			for _, a := range []netip.Addr{p.ip4, p.ip6} {
				n.put("addr", bpf.AddrKey{Ip: bpf.IP(a)}, bpf.Addr{
					Kind: bpf.AddrRemoteEP, Identity: uint32(1000 + p.id), Vtep: vtep,
				})
			}
		}
		for _, c := range []netip.Prefix{peer.cidr4(), peer.cidr6()} {
			n.put("cidr", bpf.CIDR(c), bpf.Cidr{Kind: bpf.CIDRPod, Vtep: vtep})
		}
		if native {
			n.ip("route add %s via %s", peer.cidr4(), peer.ip4())
			n.ip("route add %s via %s", peer.cidr6(), peer.ip6())
			continue
		}
		n.ip("route add %s dev cilium_vxlan src %s mtu %d", peer.cidr4(), n.router4(), podMTU)
		n.ip("route add %s dev cilium_vxlan src %s mtu %d", peer.cidr6(), n.router6(), podMTU)
	}
}

// service publishes a ClusterIP on every node.
func (f *fabric) service(id uint32, vip netip.Addr, port uint16, proto uint8, backends ...netip.AddrPort) {
	f.t.Helper()
	for _, n := range f.nodes {
		n.put("addr", bpf.AddrKey{Ip: bpf.IP(vip)}, bpf.Addr{Kind: bpf.AddrVIP, Flags: bpf.AddrHasSvc, Identity: bpf.IdentityWorld})
		n.put("front", bpf.FrontKey{Ip: bpf.IP(vip), Port: bpf.Port(port), Proto: proto}, bpf.Front{SvcId: id})
		var slots bpf.Slots
		for i, b := range backends {
			bid := id*16 + uint32(i)
			slots.BackendId[i] = bid
			n.put("backend", bid, bpf.Backend{
				Ip: bpf.IP(b.Addr()), Port: bpf.Port(b.Port()), Proto: proto, State: bpf.BackendActive,
			})
		}
		n.put("slot", id, slots)
		n.put("svc", id, bpf.Svc{BlkAll: uint64(id*bpf.SlotsPerElem) | uint64(len(backends))<<bpf.SvcBlockShift})
	}
}

// drops renders the drop counters of every node.
func (f *fabric) drops() string {
	var b strings.Builder
	for _, n := range f.nodes {
		var k bpf.MetricsKey
		var v []bpf.Metrics
		it := n.coll.Maps["metrics"].Iterate()
		for it.Next(&k, &v) {
			var sum uint64
			for _, c := range v {
				sum += c.Packets
			}
			fmt.Fprintf(&b, "%s: reason %d dir %d at %d:%d: %d\n", n.name, k.Reason, k.Dir, k.File, k.Line, sum)
		}
	}
	return b.String()
}
