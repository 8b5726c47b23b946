// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lash.internal/lash/connectivity/probe"
)

// cluster is a local cluster and the programs that talk to it.
type cluster struct {
	t          *testing.T
	name       string
	lash, kube string
	kubeconfig string
}

// result is what a program printed and how it ended.
type result struct {
	out, err string
	code     int
}

func (r result) all() string { return r.out + r.err }

func newCluster(t *testing.T, name string, createFlags ...string) *cluster {
	t.Helper()
	if os.Getenv("LASH_E2E") == "" {
		t.Skip("set LASH_E2E=1 to make clusters (needs root and make build)")
	}
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{
		t: t, name: name, lash: filepath.Join(bin, "lash"), kube: filepath.Join(bin, "kubectl"),
		kubeconfig: filepath.Join(t.TempDir(), "kubeconfig"),
	}
	if _, err := os.Stat(c.lash); err != nil {
		t.Fatalf("%v: run make build first", err)
	}
	c.run("cluster", "delete", name) // of a run that was killed
	t.Cleanup(func() {
		if r := c.run("cluster", "delete", name); r.code != 0 {
			t.Errorf("delete: %s", r.all())
		}
		if left := c.run("cluster", "list"); strings.Contains(left.out, name) {
			t.Errorf("still listed:\n%s", left.out)
		}
	})
	c.ok(append([]string{"cluster", "create", name}, createFlags...)...)
	return c
}

func (c *cluster) exec(limit time.Duration, program string, args ...string) result {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig, "NO_COLOR=1")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	r := result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
	if r.code < 0 {
		c.t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, r.all())
	}
	return r
}

// run runs lash, ok wants it to succeed.
func (c *cluster) run(args ...string) result { return c.exec(4*time.Minute, c.lash, args...) }

func (c *cluster) ok(args ...string) result {
	c.t.Helper()
	r := c.run(args...)
	if r.code != 0 {
		c.t.Fatalf("lash %s: code %d\n%s", strings.Join(args, " "), r.code, r.all())
	}
	return r
}

func (c *cluster) kubectl(args ...string) string {
	c.t.Helper()
	r := c.exec(2*time.Minute, c.kube, args...)
	if r.code != 0 {
		c.t.Fatalf("kubectl %s: code %d\n%s", strings.Join(args, " "), r.code, r.all())
	}
	return r.out
}

// node runs a command on a node.
func (c *cluster) node(node string, args ...string) string {
	c.t.Helper()
	return c.ok(append([]string{"cluster", "exec", "--name", c.name, node, "--"}, args...)...).out
}

func (r result) want(t *testing.T, texts ...string) {
	t.Helper()
	for _, s := range texts {
		if !strings.Contains(r.all(), s) {
			t.Errorf("lacks %q:\n%s", s, r.all())
		}
	}
}

// install brings Lash into the cluster and checks what it says.
func (c *cluster) install(texts ...string) {
	c.t.Helper()
	c.loadImage(c.lash)
	c.ok("install", "--wait", "--yes").want(c.t, append([]string{"🔮 Auto-detected cluster name: lash-" + c.name}, texts...)...)
	c.ok("status", "--wait").want(c.t, "Cilium:             OK", "Operator:           OK")
}

// loadImage brings the node image of a CLI into the cluster.
func (c *cluster) loadImage(lash string) {
	c.t.Helper()
	image := filepath.Join(c.t.TempDir(), "lash.tar")
	if r := c.exec(time.Minute, lash, "image", "save", image); r.code != 0 {
		c.t.Fatalf("image save: %s", r.all())
	}
	c.ok("cluster", "load-image", image, "--name", c.name)
}

// effective lists the BPF programs in effect at the root of the machine's cgroup2 hierarchy.
func effective(t *testing.T) string {
	t.Helper()
	root := "/sys/fs/cgroup/unified"
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
	}
	out, err := exec.Command("bpftool", "-j", "cgroup", "show", root, "effective").CombinedOutput()
	if err != nil {
		t.Fatalf("bpftool: %v: %s", err, out)
	}
	return string(out)
}

func TestLifeWithoutKubeProxy(t *testing.T) {
	t.Parallel() // with the other life: clusters do not touch each other
	before := ""
	if os.Getenv("LASH_E2E") != "" {
		before = effective(t)
	}
	c := newCluster(t, "e2e", "--ip-family", "dual")
	c.install("🔮 Auto-detected kube-proxy has not been installed", "ℹ️  Cilium will fully replace all functionalities of kube-proxy")
	if after := effective(t); after != before {
		t.Errorf("programs at the root of the cgroup hierarchy changed:\n%s\n%s", before, after)
	}
	r := c.ok("install", "--yes")
	r.want(t, "lash upgrade")
	if rev := c.kubectl("-n", "kube-system", "get", "secret", "-l", "owner=helm,name=cilium", "-o", "name"); strings.Count(rev, "\n") != 1 {
		t.Errorf("the second install changed the release:\n%s", rev)
	}
	c.ok("identity", "list").want(t, "reserved:host", "k8s:k8s-app=kube-dns", "k8s:io.cilium.k8s.policy.cluster=lash-e2e")
	t.Run("a start with nothing changed", c.nothingChanged)
	t.Run("NodePorts are kept from processes of the node", c.keptPorts)
	c.ok("connectivity", "test").want(t, "✅ [cilium-test-1] All ")
	t.Run("faults are named", c.faults)
	t.Run("agents restart under traffic", c.restart)
	t.Run("second network", c.secondNetwork)
	t.Run("first packets of new pods", c.firstPackets)
	t.Run("broken image", c.brokenImage)
	c.ok("uninstall")
	t.Run("the same by helm alone", c.byHelm)
	c.ok("uninstall")
	for _, n := range []string{"control-plane", "worker", "worker2"} {
		if left := c.node(n, "sh", "-c", "ip -br link | grep -E '^(cilium_|lxc)'; ls /sys/fs/bpf /etc/cni/net.d /opt/cni/bin | grep -E 'lash|cilium'; ip route show proto 76; true"); strings.TrimSpace(left) != "" {
			t.Errorf("left on %s after uninstall:\n%s", n, left)
		}
	}
}

// faults breaks one thing at a time; the connectivity test has to fail and to say what it is.
func (c *cluster) faults(t *testing.T) {
	for _, f := range []struct {
		name, breaks, heals, test, want string
	}{
		{
			"tunnel port blocked", "iptables -I INPUT -p udp --dport 8472 -j DROP", "iptables -D INPUT -p udp --dport 8472 -j DROP",
			"no-policies,node-to-node", "Nothing passes the tunnel between",
		},
		{
			"path MTU too small", "iptables -I INPUT -p icmp -m length --length 1401:65535 -j DROP", "iptables -D INPUT -p icmp -m length --length 1401:65535 -j DROP",
			"node-to-node", "packets of 1500 bytes pass, but at most 1400 do",
		},
		{
			"route missing", "ip route show proto 76 dev cilium_vxlan | while read r; do echo $r >>/run/routes; ip route del $r dev cilium_vxlan proto 76; done",
			"while read r; do ip route add $r dev cilium_vxlan proto 76; done </run/routes; rm /run/routes",
			"no-policies,node-to-node", "has no route through the tunnel",
		},
		{
			"Service missing in the map", "cd /sys/fs/bpf/lash/maps && bpftool -j map dump pinned front_v1 | jq -r '.[].key | join(\" \")' | while read k; do bpftool map delete pinned front_v1 key hex $(echo $k | sed s/0x//g); done",
			"true", "kube-apiserver", "the entry in the service map is missing",
		},
	} {
		t.Run(f.name, func(t *testing.T) {
			c.node("worker2", "sh", "-c", f.breaks)
			r := c.run("connectivity", "test", "--test", f.test, "--request-timeout", "2s")
			c.node("worker2", "sh", "-c", f.heals)
			if r.code != 1 {
				t.Errorf("code %d", r.code)
			}
			r.want(t, "❌ [cilium-test-1] ", f.want, "worker2")
		})
	}
	// A restarted agent finds and mends what is missing in its maps.
	c.kubectl("-n", "kube-system", "rollout", "restart", "ds/cilium")
	c.kubectl("-n", "kube-system", "rollout", "status", "ds/cilium", "--timeout=90s")
	c.ok("connectivity", "test")
}

// keptPorts has a process of a node listen at a NodePort that is in use, and at one that is not.
func (c *cluster) keptPorts(t *testing.T) {
	c.kubectl("create", "service", "nodeport", "kept", "--tcp=80:80", "--node-port=31999")
	defer c.kubectl("delete", "service", "kept")
	listen := func(port string) string {
		return c.node("worker", "sh", "-c", "timeout 2 "+c.lash+" perf server --listen :"+port+" 2>&1; true")
	}
	c.until(t, "the port is kept", func() (bool, string) {
		out := listen("31999")
		return strings.Contains(out, "operation not permitted"), out
	})
	if out := listen("31998"); !strings.Contains(out, "listening on") {
		t.Errorf("a port without a Service: %s", out)
	}
}

// restart replaces every agent while a pod of one node talks to one of another. Each exchange has
// to be answered; one that is lost ends the probe with an error.
func (c *cluster) restart(t *testing.T) {
	c.apply(t, "traffic.yaml", nil)
	defer c.kubectl("delete", "pod", "server", "client", "--wait=false")
	c.kubectl("wait", "--for=condition=Ready", "pod/server", "pod/client", "--timeout=60s")
	ip := strings.TrimSpace(c.kubectl("get", "pod", "server", "-o", "jsonpath={.status.podIP}"))
	flows := map[string]string{"udp": ip + ":8082", "tcp": ip + ":8081"}
	results := make(chan result, len(flows))
	for proto, target := range flows {
		go func() {
			results <- c.exec(3*time.Minute, c.kube, "exec", "client", "--",
				"lash-agent", "probe", "--count", "3000", "--interval-ms", "10", "--timeout-ms", "2000", proto, target)
		}()
	}
	c.kubectl("-n", "kube-system", "rollout", "restart", "ds/cilium")
	c.kubectl("-n", "kube-system", "rollout", "status", "ds/cilium", "--timeout=90s")
	for range flows {
		r := <-results
		var answer probe.Result
		if err := json.Unmarshal([]byte(r.out), &answer); err != nil || !answer.OK || answer.Sent != 3000 || r.code != 0 {
			t.Errorf("exchanges during the restart: code %d, %s", r.code, r.all())
		}
	}
}

// brokenImage wants a red status with the cause, while pods go on talking.
func (c *cluster) brokenImage(t *testing.T) {
	c.kubectl("-n", "kube-system", "set", "image", "ds/cilium", "cilium-agent=localhost/none:0")
	var r result
	c.until(t, "status names the image", func() (bool, string) {
		r = c.run("status")
		return strings.Contains(r.all(), "localhost/none:0") && strings.Contains(r.all(), "ErrImage"), r.all()
	})
	if r.code != 1 {
		t.Errorf("status: code %d", r.code)
	}
	r.want(t, "ErrImage", "localhost/none:0")
	r = c.run("connectivity", "test", "--test", "health")
	if r.code != 1 {
		t.Errorf("connectivity test with a broken agent: code %d", r.code)
	}
	r.want(t, "is not ready", "localhost/none:0")
	c.ok("connectivity", "test", "--test", "no-policies,dns", "--image", "localhost/lash:"+c.version())
	c.kubectl("-n", "kube-system", "rollout", "undo", "ds/cilium")
	c.kubectl("-n", "kube-system", "rollout", "status", "ds/cilium", "--timeout=90s")
	c.ok("status", "--wait")
}

func (c *cluster) version() string {
	c.t.Helper()
	image := c.kubectl("-n", "kube-system", "get", "deploy", "cilium-operator", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
	return image[strings.LastIndex(image, ":")+1:]
}

// TestLifeWithKubeProxy is the other kind of cluster, and the other way between the nodes.
func TestLifeWithKubeProxy(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "e2ekp", "--kube-proxy", "iptables", "--ip-family", "dual", "--workers", "1")
	c.loadImage(c.lash)
	c.ok("install", "--wait", "--yes", "--datapath-mode", "native", "--set", "autoDirectNodeRoutes=true").
		want(t, "🔮 Auto-detected kube-proxy has been installed")
	c.ok("status", "--wait")
	c.ok("connectivity", "test").want(t, "✅ [cilium-test-1] All ")
	t.Run("a node that carries nothing is not ready", c.carriesNothing)
}

// carriesNothing has a node lose what comes from its own endpoint. Its agent is not ready from the start
// on, status names the cause, and pods go on talking; with the cause gone all is well by itself.
func (c *cluster) carriesNothing(t *testing.T) {
	const rule = " INPUT -i lxc_health -j DROP"
	node := "lash-" + c.name + "-worker"
	c.node("worker", "sh", "-c", "iptables -I"+rule+"; ip6tables -I"+rule)
	c.kubectl("-n", "kube-system", "delete", "pod", "-l", "k8s-app=cilium", "--field-selector", "spec.nodeName="+node)
	var r result
	c.until(t, "status names the cause", func() (bool, string) {
		r = c.run("status")
		return strings.Contains(r.all(), "datapath probe: failing since ") && strings.Contains(r.all(), "Ready: 1/2"), r.all()
	})
	r.want(t, "no answer from 10.244.", "no answer from fd00:10:244:", " over lxc_health")
	if r.code != 1 {
		t.Errorf("status: code %d", r.code)
	}
	c.ok("connectivity", "test", "--test", "no-policies,dns", "--image", "localhost/lash:"+c.version())
	c.node("worker", "sh", "-c", "iptables -D"+rule+"; ip6tables -D"+rule)
	c.ok("status", "--wait")
	restarts := c.kubectl("-n", "kube-system", "get", "pod", "-l", "k8s-app=cilium", "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}")
	if restarts != "0 0" {
		t.Errorf("agents were restarted: %s", restarts)
	}
}
