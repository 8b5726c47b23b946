// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"lash.internal/lash/agent/crash"
	"lash.internal/lash/connectivity/probe"
)

// crashBed is a cluster with servers, clients and a control path.
type crashBed struct {
	*cluster
	plan   plan
	mode   mode
	a, b   string // nodes; the servers are on a
	pid    string // of a process in the server's pod
	server string // UDP echo in a pod of a
	// nodePort is the address of node b at which the Service's TCP port is open.
	nodePort string
	paths    []path
}

const bareSubnet = "10.99"

// plan says how much of everything there is.
type plan struct {
	full        bool // all events in both modes, else a sample
	kills       int
	away        time.Duration // how long the API server is away
	rate, flows int           // datagrams a second and connections that stay, on each path
}

// newPlan reads what is set in the environment over the defaults.
func newPlan(t *testing.T) plan {
	t.Helper()
	p := plan{kills: 1, rate: 500, flows: 20}
	if os.Getenv("LASH_CRASH") != "" {
		p = plan{full: true, kills: 25, away: 10 * time.Minute, rate: 1000, flows: 100}
	}
	for name, n := range map[string]*int{"LASH_CRASH_KILLS": &p.kills, "LASH_CRASH_RATE": &p.rate, "LASH_CRASH_FLOWS": &p.flows} {
		if s := os.Getenv(name); s != "" {
			var err error
			if *n, err = strconv.Atoi(s); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	if s := os.Getenv("LASH_CRASH_AWAY"); s != "" {
		var err error
		if p.away, err = time.ParseDuration(s); err != nil {
			t.Fatalf("LASH_CRASH_AWAY: %v", err)
		}
	}
	return p
}

// newCrashBed makes the cluster and installs Lash in a mode.
func newCrashBed(t *testing.T, prefix string, plan plan, m mode) *crashBed {
	t.Helper()
	name := prefix + m.name
	c := newCluster(t, name, "--ip-family", "dual", "--workers", "1")
	c.loadImage(c.lash)
	c.ok(append([]string{"install", "--wait", "--yes"}, m.flags...)...)
	c.ok("status", "--wait")
	bed := &crashBed{cluster: c, plan: plan, mode: m, a: "control-plane", b: "worker"}
	t.Cleanup(func() {
		if t.Failed() { // before the cluster goes
			file := filepath.Join(os.TempDir(), name+"-sysdump")
			t.Logf("evidence: %s.zip %s", file, c.run("sysdump", "--output-filename", file).err)
		}
	})
	c.apply(t, "soak.yaml", map[string]string{"NODEA": "lash-" + name + "-" + bed.a, "NODEB": "lash-" + name + "-" + bed.b})
	c.kubectl("wait", "--for=condition=Ready", "pod/server", "pod/near", "pod/far", "--timeout=90s")
	external := bed.outside()
	bed.bare()
	var pod struct {
		Status struct{ PodIPs []struct{ IP string } }
	}
	if err := json.Unmarshal([]byte(c.kubectl("get", "pod", "server", "-o", "json")), &pod); err != nil {
		t.Fatal(err)
	}
	v4, v6 := pod.Status.PodIPs[0].IP, pod.Status.PodIPs[1].IP
	bed.server = net.JoinHostPort(v4, "8082")
	// Inside the pods' network, but not by way of the API server, which some events take away, and with
	// the right to as much room for datagrams as a busy machine needs.
	holder := func(node, port string) string {
		pid := strings.TrimSpace(bed.processes(node, "^lash-agent echo --udp "+port+" $", "echo $p"))
		if pid == "" {
			t.Fatalf("no process of the pod that listens on %s of %s", port, node)
		}
		return pid
	}
	on := func(machine string, enter ...string) []string {
		return append(append([]string{c.lash, "cluster", "exec", "--name", name, machine, "--"}, enter...), c.lash, "connectivity", "soak")
	}
	in := func(node, port string) []string { return on(node, "nsenter", "-t", holder(node, port), "-n") }
	bed.pid = holder(bed.a, "8083")
	bed.background(bed.a, "nsenter", "-t", bed.pid, "-n", bed.lash, "connectivity", "echo", "--tcp", "8081", "--udp", "8082")
	near, far, outside := in(bed.a, "8084"), in(bed.b, "8084"), on("external")
	vip := bed.get("service", "soak", "{.spec.clusterIP}")
	bed.paths = []path{
		{name: "same node", command: near, args: bed.to(v4)},
		{name: "other node", command: far, args: bed.to(v4, "--new")},
		{name: "other node IPv6", command: far, args: bed.to(v6)},
		{name: "ClusterIP", command: far, args: bed.to(vip, "--new")},
		{name: "masquerade", command: far, args: bed.to(external)},
		{name: "NodePort", command: outside, args: bed.toNodePort("--new")},
		{name: "control", control: true, command: on(bed.b, "ip", "netns", "exec", "bare"), args: bed.to(bareSubnet+".0.2", "--new")},
		{name: "control outside", control: true, command: outside, args: bed.to(bareSubnet+".0.2", "--new")},
	}
	bed.answers(t, m.answers)
	return bed
}

// to are the flags of a soak to the servers at an address.
func (b *crashBed) to(ip string, flags ...string) []string {
	return b.soak(net.JoinHostPort(ip, "8082"), net.JoinHostPort(ip, "8081"), flags...)
}

func (b *crashBed) soak(udp, tcp string, flags ...string) []string {
	return append([]string{"--udp", udp, "--tcp", tcp, "--rate", strconv.Itoa(b.plan.rate), "--flows", strconv.Itoa(b.plan.flows)}, flags...)
}

// toNodePort are the flags of a soak to the Service's ports on the node that has no backend.
func (b *crashBed) toNodePort(flags ...string) []string {
	ip, port := b.address(b.b), map[string]string{}
	for _, name := range []string{"udp", "tcp"} {
		port[name] = net.JoinHostPort(ip, b.get("service", "soak", fmt.Sprintf("{.spec.ports[?(@.name==%q)].nodePort}", name)))
	}
	b.nodePort = port["tcp"]
	return b.soak(port["udp"], port["tcp"], flags...)
}

// get reads a field of an object.
func (b *crashBed) get(kind, name, field string) string {
	b.t.Helper()
	return strings.TrimSpace(b.kubectl("get", kind, name, "-o", "jsonpath="+field))
}

// address is the first one of a node.
func (b *crashBed) address(node string) string {
	b.t.Helper()
	return b.get("node", "lash-"+b.name+"-"+node, "{.status.addresses[0].address}")
}

// Who answers a caller from outside whose backend is on another node.
const (
	router  = "the node that was called" // and the backend sees a node's address
	backend = "the backend's node"       // and the backend sees the caller's
)

// answers waits until callers from outside are answered by the given side: the path through the
// NodePort is what its mode says.
func (b *crashBed) answers(t *testing.T, by string) {
	t.Helper()
	b.until(t, "a caller from outside is answered by "+by, func() (bool, string) {
		r := b.run("cluster", "exec", "--name", b.name, "external", "--", b.lash, "connectivity", "probe", "tcp", b.nodePort)
		var got probe.Result
		if err := json.Unmarshal([]byte(r.out), &got); err != nil || !got.OK {
			return false, r.all()
		}
		return (got.Seen == got.Local) == (by == backend), r.out
	})
}

// bare makes a namespace on each node, routed to the other by the nodes' own routes; the host outside
// reaches the one with the servers by way of the other node.
func (b *crashBed) bare() {
	b.t.Helper()
	for i, node := range []string{b.a, b.b} {
		peer := b.address([]string{b.b, b.a}[i])
		b.node(node, "sh", "-ec", fmt.Sprintf(`
ip netns add bare
ip link add vethbare type veth peer name eth0 netns bare
ip addr add %[1]s.%[2]d.1/24 dev vethbare
ip link set vethbare up
ip -n bare link set lo up
ip -n bare addr add %[1]s.%[2]d.2/24 dev eth0
ip -n bare link set eth0 up
ip -n bare route add default via %[1]s.%[2]d.1
ip route add %[1]s.%[3]d.0/24 via %[4]s`, bareSubnet, i, 1-i, peer))
	}
	// The host outside takes the way through node b, as it does to a NodePort there, and is not to learn a shorter one.
	b.node("external", "sh", "-ec", fmt.Sprintf(`
for d in all eth0; do echo 0 >/proc/sys/net/ipv4/conf/$d/accept_redirects; done
ip route add %s.0.0/24 via %s`, bareSubnet, b.address(b.b)))
	b.background(b.a, "ip", "netns", "exec", "bare", b.lash, "connectivity", "echo", "--tcp", "8081", "--udp", "8082")
}

// outside starts an echo server on the host outside the cluster and returns its IPv4 address.
func (b *crashBed) outside() string {
	b.t.Helper()
	ready := b.background("external", b.lash, "connectivity", "echo", "--tcp", "8081", "--udp", "8082")
	i := slices.IndexFunc(ready.Addresses, func(a string) bool { return net.ParseIP(a).To4() != nil })
	if i < 0 {
		b.t.Fatalf("the host outside has no IPv4 address: %v", ready.Addresses)
	}
	return ready.Addresses[i]
}

// during runs an event under load.
func (b *crashBed) during(t *testing.T, name string, event func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { b.underLoad(t, event) })
}

func (b *crashBed) underLoad(t *testing.T, event func(t *testing.T)) {
	t.Helper()
	defer func(outer *testing.T) { b.t = outer }(b.t)
	b.t = t
	l := b.start(t)
	defer l.stop(b.paths) // also when the event has failed
	event(t)
}

// duringUpgrade goes to the version of another CLI under load. The CLI is made before the load, and
// only when it is asked for.
func (b *crashBed) duringUpgrade(t *testing.T, name string, cli func() string, flags ...string) {
	t.Run(name, func(t *testing.T) {
		lash := cli()
		b.underLoad(t, func(t *testing.T) { b.upgrade(t, lash, flags...) })
	})
}

// kill ends the agent of a node as the kernel would, and waits until the next one serves.
func (b *crashBed) kill(t *testing.T, node string) {
	t.Helper()
	out := b.processes(node, "^cilium-agent ", "kill -9 $p && echo killed $p")
	if strings.Count(out, "killed") != 1 {
		t.Fatalf("agent of %s: %q", node, out)
	}
	b.ready(t)
}

func (b *crashBed) rollout(t *testing.T) {
	t.Helper()
	b.kubectl("-n", "kube-system", "rollout", "restart", "ds/cilium")
	b.kubectl("-n", "kube-system", "rollout", "status", "ds/cilium", "--timeout=120s")
}

// mapsMoved waits until no flow table of before is left on any node.
func (b *crashBed) mapsMoved(t *testing.T) {
	t.Helper()
	b.until(t, "flows have moved", func() (bool, string) {
		left := ""
		for _, node := range []string{b.a, b.b} {
			left += b.node(node, "sh", "-c", "ls /sys/fs/bpf/lash/maps | grep _prev; true")
		}
		return left == "", left
	})
}

// settled waits until every node runs one generation of programs and has forgotten those before.
func (b *crashBed) settled(t *testing.T) {
	t.Helper()
	b.until(t, "one generation is left", func() (bool, string) {
		gens := ""
		for _, node := range []string{b.a, b.b} {
			gens += b.node(node, "ls", "/sys/fs/bpf/lash/gen")
		}
		return len(strings.Fields(gens)) == 2, gens
	})
}

// upgrade goes to the version of another CLI and waits until nothing of the one before is left.
func (b *crashBed) upgrade(t *testing.T, lash string, flags ...string) {
	t.Helper()
	if r := b.exec(4*time.Minute, lash, append([]string{"upgrade", "--yes", "--wait"}, flags...)...); r.code != 0 {
		t.Fatalf("upgrade: %s", r.all())
	}
	b.ready(t)
	b.settled(t)
	b.mapsMoved(t)
}

// events are what happens to agents, in order. The last ones need builds that differ from what runs.
func (b *crashBed) events(t *testing.T) {
	b.during(t, "nothing happens", func(*testing.T) {})
	for i := range b.plan.kills {
		node := []string{b.a, b.b}[rand.IntN(2)]
		b.during(t, fmt.Sprintf("kill %d on %s", i, node), func(t *testing.T) { b.kill(t, node) })
		b.replace(t, node) // the kubelet waits longer after each crash of one pod
	}
	b.during(t, "rollout restart", b.rollout)
	if b.plan.full {
		b.rarer(t)
	}
	b.during(t, "more flows fit", func(t *testing.T) { b.upgrade(t, b.lash, "--set", "bpf.ctTcpMax=200000", "--restart") })
	layout := sync.OnceValue(func() string { return b.build("0.1.2", "", changedLayout) })
	b.duringUpgrade(t, "upgrade to changed programs", func() string { return b.build("0.1.1", "", changedPrograms) })
	b.during(t, "downgrade", func(t *testing.T) { b.upgrade(t, b.lash) })
	b.duringUpgrade(t, "upgrade to another layout of flows", layout)
	if b.plan.full && len(b.mode.change) > 0 {
		b.duringUpgrade(t, "callers from outside are answered by "+b.mode.changed, layout, append([]string{"--restart"}, b.mode.change...)...)
		b.answers(t, b.mode.changed)
	}
}

// rarer are events that a sample leaves out.
func (b *crashBed) rarer(t *testing.T) {
	b.during(t, "API server away", func(t *testing.T) {
		b.processes(b.a, "^/var/lib/lash/bin/kube-apiserver ", "kill -STOP $p")
		time.Sleep(b.plan.away)
		b.processes(b.a, "^/var/lib/lash/bin/kube-apiserver ", "kill -CONT $p")
		b.ready(t)
	})
	b.during(t, "kill while the API server is away", func(t *testing.T) {
		b.processes(b.a, "^/var/lib/lash/bin/kube-apiserver ", "kill -STOP $p")
		b.processes(b.b, "^cilium-agent ", "kill -9 $p")
		time.Sleep(10 * time.Second)
		b.processes(b.a, "^/var/lib/lash/bin/kube-apiserver ", "kill -CONT $p")
		b.ready(t)
	})
	// The kernel itself may lose a packet while a filter or its qdisc is put in place: that is before the
	// load, and the qdisc stays. The filter looks at every packet and leaves it to those after it.
	b.node(b.b, "sh", "-ec", `for d in eth0 $(ls /sys/class/net | grep ^lxc); do
tc qdisc show dev $d | grep -q clsact || tc qdisc add dev $d clsact
tc filter add dev $d ingress prio 7 protocol all bpf bytecode '1,6 0 0 0' flowid 1:1; done`)
	b.during(t, "kill beside a foreign program on the same hooks", func(t *testing.T) { b.kill(t, b.b) })
	foreign := b.node(b.b, "sh", "-ec", `for d in eth0 $(ls /sys/class/net | grep ^lxc); do
tc filter show dev $d ingress prio 7; tc filter del dev $d ingress prio 7; done`)
	if strings.Count(foreign, "bytecode") < 2 {
		t.Errorf("the foreign program is gone:\n%s", foreign)
	}
	b.during(t, "a device is renamed", func(t *testing.T) {
		b.node(b.b, "sh", "-ec", "ip link add eth1 type veth peer name vethpeer; ip addr add 10.78.0.1/24 dev eth1; ip link set eth1 up")
		b.hooked(t, "eth1")
		b.node(b.b, "sh", "-ec", "ip link set eth1 down; ip link set eth1 name eth9; ip link set eth9 up")
		b.hooked(t, "eth9")
		b.node(b.b, "ip", "link", "del", "eth9")
	})
	b.during(t, "another BPF file system over the first", b.remount)
}

// hooked waits until the agent of node b has its programs on a device.
func (b *crashBed) hooked(t *testing.T, device string) {
	t.Helper()
	b.until(t, "programs are on "+device, func() (bool, string) {
		out := b.node(b.b, "sh", "-c", "ls /sys/fs/bpf/lash/link/if$(cat /sys/class/net/"+device+"/ifindex); true")
		return len(strings.Fields(out)) == 2, out // in and out
	})
}

// replace deletes the agent's pod of a node and waits until its successor serves.
func (b *crashBed) replace(t *testing.T, node string) {
	t.Helper()
	b.kubectl("-n", "kube-system", "delete", "pod", "-l", "k8s-app=cilium", "--field-selector", "spec.nodeName=lash-"+b.name+"-"+node, "--wait")
	b.ready(t)
}

// at runs an event with a point named at which the agent of node b crashes, and wants it to have crashed.
func (b *crashBed) at(t *testing.T, point string, event func(t *testing.T)) {
	b.during(t, "crash at "+point, func(t *testing.T) {
		b.node(b.b, "sh", "-c", "echo "+point+" >"+crash.File)
		event(t)
		b.until(t, "the agent has crashed at "+point, func() (bool, string) {
			left := b.node(b.b, "sh", "-c", "cat "+crash.File+" 2>/dev/null; true")
			return left == "", left
		})
		b.ready(t)
	})
	b.replace(t, b.b)
}

// points crashes the agent at every point that has a name, in a build that can do that.
func (b *crashBed) points(t *testing.T) {
	lash := b.build("0.1.3", "-tags=crash", nil)
	b.upgrade(t, lash)
	for _, p := range crash.Starts {
		b.at(t, p, func(t *testing.T) { b.replace(t, b.b) })
	}
	for i, p := range crash.Upgrades {
		b.at(t, p, func(t *testing.T) {
			b.upgrade(t, lash, "--restart", "--set", fmt.Sprintf("bpf.ctTcpMax=%d", 210000+i*10000))
		})
	}
	for _, p := range crash.Pods {
		b.at(t, p, func(t *testing.T) {
			b.apply(t, "first.yaml", map[string]string{
				"NAME": "pod-" + p, "NODE": "lash-" + b.name + "-" + b.b, "COUNT": "1", "TARGET": b.server,
			})
			b.kubectl("wait", "--for=condition=Complete", "job/pod-"+p, "--timeout=90s")
		})
	}
}

// remount hides the BPF file system of node b under another one. The agent must not begin a second
// life there, and takes up its first one when it is back.
func (b *crashBed) remount(t *testing.T) {
	b.node(b.b, "mount", "-t", "bpf", "bpf", "/sys/fs/bpf")
	b.processes(b.b, "^cilium-agent ", "kill -9 $p")
	b.until(t, "the agent says why it does not start", func() (bool, string) {
		out := b.kubectl("-n", "kube-system", "get", "pod", "-l", "k8s-app=cilium", "--field-selector", "spec.nodeName=lash-"+b.name+"-"+b.b,
			"-o", "jsonpath={.items[*].status.containerStatuses[*]}")
		return strings.Contains(out, "another BPF file system"), out
	})
	b.node(b.b, "umount", "-l", "/sys/fs/bpf")
	b.replace(t, b.b)
}

// mode is a way between nodes and to callers from outside.
type mode struct {
	name    string
	flags   []string // that choose it
	answers string   // who answers callers from outside
	// change are the flags that change who answers, and changed is who does then. With native routing
	// there is no choice.
	change  []string
	changed string
}

var (
	snat  = []string{"--set", "loadBalancer.mode=snat"}
	dsr   = []string{"--set", "loadBalancer.mode=dsr"}
	modes = []mode{
		{name: "tunnel", answers: router, change: dsr, changed: backend},
		{name: "native", flags: []string{"--datapath-mode", "native", "--set", "autoDirectNodeRoutes=true"}, answers: router},
		{name: "dsr", flags: dsr, answers: backend, change: snat, changed: router},
	}
)

// TestNoLoss does to the agents what happens to agents, under load. LASH_CRASH=1 does all of it, in
// each mode, with LASH_CRASH_KILLS random kills; else it is a sample. On each path there are
// LASH_CRASH_RATE datagrams a second and LASH_CRASH_FLOWS connections.
func TestNoLoss(t *testing.T) {
	plan, prefix, modes := newPlan(t), "crash-", modes
	if !plan.full {
		prefix, modes = "noloss-", modes[:1]
	}
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) { newCrashBed(t, prefix, plan, m).events(t) })
	}
}

// TestCrashPoints crashes the agent at every point that has a name, under the same load.
func TestCrashPoints(t *testing.T) {
	plan := newPlan(t)
	if !plan.full {
		t.Skip("set LASH_CRASH=1 to crash the agent at every named point")
	}
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) { newCrashBed(t, "crash-", plan, m).points(t) })
	}
}
