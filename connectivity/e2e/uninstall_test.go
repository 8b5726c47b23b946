// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"lash.internal/lash/agent/api"
)

// kept is what an uninstall leaves behind on purpose, each with its reason.
var kept = []struct{ line, why string }{
	{`^api CustomResourceDefinition cilium(endpoints|identities|nodes)\.cilium\.io `, "--keep-crds is the default: others may have objects of these kinds"},
	{`^api APIService v2\.cilium\.io `, "the API server makes it for the definitions"},
	{`^\S+ (mount|file) /run/netns/cni-`, "network namespaces of pods that still exist; the runtime's"},
}

// others is what changes by itself in a cluster with pods.
var others = regexp.MustCompile(`^\S+ (file|mount) (/run/containerd|/run/runc|/run/lash-sysctl|/var/lib/kubelet|/run/systemd|/run/udev)|^\S+ mount /var/lib/(kubelet|containerd)/|^\S+ file /var/lib/cni/(results/)? `)

// snapshot is everything that is on every node and in the API server, one line each.
func (c *cluster) snapshot(nodes ...string) map[string]bool {
	c.t.Helper()
	out := map[string]bool{}
	program := filepath.Join(filepath.Dir(c.lash), "lash-agent")
	for _, n := range nodes {
		var found api.NodeAudit
		text := c.node(n, program, "audit", "--all", "--walk", "/etc,/opt,/run,/var/lib/cni")
		if err := json.Unmarshal([]byte(text), &found); err != nil {
			c.t.Fatalf("audit of %s: %v\n%s", n, err, text)
		}
		for _, p := range found.Problems {
			c.t.Errorf("%s: not looked at: %s", n, p)
		}
		for _, i := range found.Items {
			if line := fmt.Sprintf("%s %s %s = %s", n, i.Kind, i.Name, i.Value); !others.MatchString(line) {
				out[line] = true
			}
		}
	}
	for _, line := range c.objects() {
		out[line] = true
	}
	return out
}

// objects lists every object of the API server with what others may have written on it.
func (c *cluster) objects() []string {
	c.t.Helper()
	cfg, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
	if err != nil {
		c.t.Fatal(err)
	}
	cfg.QPS, cfg.Burst, cfg.WarningHandler = 50, 100, rest.NoWarnings{}
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	lists, err := disco.ServerPreferredResources()
	if err != nil {
		c.t.Fatal(err)
	}
	var out []string
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, r := range l.APIResources {
			if !slices.Contains(r.Verbs, "list") || r.Name == "events" || r.Name == "componentstatuses" {
				continue
			}
			objects, err := client.Resource(gv.WithResource(r.Name)).List(context.Background(), metav1.ListOptions{})
			if err != nil {
				c.t.Fatalf("%s: %v", r.Name, err)
			}
			for i := range objects.Items {
				out = append(out, objectLine(c.t, &objects.Items[i]))
			}
		}
	}
	return out
}

func objectLine(t *testing.T, o *unstructured.Unstructured) string {
	t.Helper()
	name := o.GetName()
	if o.GetKind() == "Pod" { // another pod of the same owner counts as the same
		name = "of " + o.GetLabels()["pod-template-hash"]
	}
	line := fmt.Sprintf("api %s %s/%s labels=%v annotations=%v finalizers=%v", o.GetKind(), o.GetNamespace(), name,
		o.GetLabels(), slices.Sorted(maps.Keys(o.GetAnnotations())), o.GetFinalizers())
	line = strings.Replace(line, " /", " ", 1)
	if o.GetKind() != "Node" {
		return line
	}
	var n corev1.Node
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &n); err != nil {
		t.Fatal(err)
	}
	for _, x := range n.Spec.Taints {
		// The cluster's own say how ready nodes are, and depend on how many of them are not.
		if !strings.HasPrefix(x.Key, "node.kubernetes.io/") {
			line += " taint=" + x.ToString()
		}
	}
	for _, x := range n.Status.Conditions {
		line += fmt.Sprintf(" %s=%s/%s", x.Type, x.Status, x.Reason)
	}
	return line
}

// difference is what two snapshots do not share and is not kept on purpose.
func difference(before, after map[string]bool) []string {
	var out []string
	expected := func(line string) bool {
		return slices.ContainsFunc(kept, func(k struct{ line, why string }) bool { return regexp.MustCompile(k.line).MatchString(line) })
	}
	for line := range before {
		if !after[line] {
			out = append(out, "- "+line)
		}
	}
	for line := range after {
		if !before[line] && !expected(line) {
			out = append(out, "+ "+line)
		}
	}
	slices.Sort(out)
	return out
}

// TestUninstallLeavesNothing compares everything on every node and in the API server before an
// install and after the uninstall.
func TestUninstallLeavesNothing(t *testing.T) {
	c := newCluster(t, "e2eclean", "--ip-family", "dual", "--workers", "1")
	nodes := []string{"control-plane", "worker"}
	// On one node Lash has to mount the BPF file system, and so to unmount it.
	c.node("worker", "umount", "/sys/fs/bpf")
	c.kubectl("wait", "--for=condition=Available=false", "-n", "kube-system", "deployment/coredns", "--timeout=60s")
	for _, n := range nodes {
		c.kubectl("wait", "--for=create", "-n", "kube-node-lease", "lease/lash-"+c.name+"-"+n, "--timeout=60s")
	}
	before := c.snapshot(nodes...)

	c.install()
	c.ok("connectivity", "test", "--test", "no-policies,dns", "--cleanup=false").want(t, "✅ [cilium-test-1] All ")
	c.ok("config", "set", "debug", "true").want(t, "✨ Patching ConfigMap cilium-config with debug=true...", "♻️  Restarted Cilium pods")
	c.ok("upgrade", "--set", "MTU=1400", "--restart", "--wait", "--yes").want(t, "MTU     0     1400   given now")
	c.ok("rollback", "--restart", "--wait", "--yes").want(t, "MTU     1400   0      as it was then")
	r := c.ok("uninstall", "--verify")
	r.want(t, "⌛ Removing namespace cilium-test-1", "✅ Cleaned 2 nodes", "Kept: custom resource definition ciliumnodes.cilium.io",
		"✅ Nothing of Lash is left; looked at 2 nodes (lash-e2eclean-control-plane, lash-e2eclean-worker) and the API server")

	// Kubelets report the loss of the network, and objects go with their owners, a little later.
	deadline := time.Now().Add(90 * time.Second)
	var left []string
	for {
		if left = difference(before, c.snapshot(nodes...)); len(left) == 0 || time.Now().After(deadline) {
			break
		}
		c.exec(10*time.Second, c.kube, "wait", "--for=condition=Ready=false", "node", "--all", "--timeout=5s")
	}
	if len(left) > 0 {
		t.Errorf("left by the uninstall:\n%s", strings.Join(left, "\n"))
	}
	t.Run("verify finds what is left", c.dirty)
}

// dirty leaves things of ours behind, which have to be found, named and removed.
func (c *cluster) dirty(t *testing.T) {
	c.node("worker", "sh", "-c", "ip link add cilium_host type veth peer name cilium_net; ip route add 198.51.100.0/24 dev eth0 proto 76; mkdir -p /run/lash; echo '{\"ipv4/ip_forward\":\"0\"}' >/run/lash/sysctl.json")
	c.kubectl("-n", "kube-system", "create", "-f", "testdata/lease.yaml")
	r := c.run("uninstall", "--verify")
	if r.code != 1 {
		t.Errorf("code %d", r.code)
	}
	r.want(t, "Lash is not installed", "cilium_host", "table 254 198.51.100.0/24 dev eth0", "/run/lash/ and 1 below", "net/ipv4/ip_forward", "cilium-operator-resource-lock", "lash uninstall --force")
	c.ok("uninstall", "--force", "--keep-crds=false", "--verify").want(t, "✅ Nothing of Lash is left")
	if crds := c.kubectl("get", "crd", "-o", "name"); strings.Contains(crds, "cilium.io") {
		t.Errorf("definitions are left:\n%s", crds)
	}
	// The setting went back to what it was before, as the ledger has it.
	if v := strings.TrimSpace(c.node("worker", "cat", "/proc/sys/net/ipv4/ip_forward")); v != "0" {
		t.Errorf("ip_forward is %s", v)
	}
}
