// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func kubeNode(name, kernel string, images ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.16.0.1"}}
	n.Status.NodeInfo = corev1.NodeSystemInfo{KernelVersion: kernel, OperatingSystem: "linux", Architecture: "amd64"}
	for _, i := range images {
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{i}})
	}
	return n
}

func workload(name string) *appsv1.DaemonSet {
	d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "kube-system"}}
	d.Status.DesiredNumberScheduled = 3
	d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "c", Image: "example.org/" + name + ":v1"}}
	return d
}

// bare is a cluster of one node without kube-proxy and without a network.
func bare() []runtime.Object {
	port := int32(6443)
	return []runtime.Object{
		kubeNode("n1", "6.18.0", image),
		&networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/12"}}},
		&discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
			Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"172.16.0.1"}}},
			Ports:      []discoveryv1.EndpointPort{{Port: &port}},
		},
	}
}

// TestBadInput is what the user sees of each mistake and of each obstacle: text and exit code. No
// command may change anything.
func TestBadInput(t *testing.T) {
	foreign := release(t, "cilium-1.15.1", "1.15.1", 1)
	ours := release(t, "lash-0.1.0", "1.16.5", 3)
	proxy := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kube-proxy", Namespace: "kube-system"}}
	policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "deny", Namespace: "shop"}}
	with := func(objs ...runtime.Object) []runtime.Object { return append(objs, bare()...) }
	onNode := func(n *corev1.Node) []runtime.Object { return append([]runtime.Object{n}, bare()[1:]...) }
	cases := map[string]struct {
		objs   []runtime.Object
		args   string
		refuse map[string]int
		denied string
		kinds  []string
		code   int
	}{
		"install-unknown-value":  {args: "install --set fooBarBazQuux=1", code: ExitUsage},
		"install-misspelt-value": {args: "install --set kubeProxyReplacment=true,ipam.operator.clusterPoolIPv4PodCIDRlist=x", code: ExitUsage},
		"install-wrong-type":     {args: "install --set MTU=big --set debug.enabled=5 --set routingMode=ipsec", code: ExitUsage},
		"install-version":        {args: "install --version 1.17.0", code: ExitUsage},
		"install-datapath-mode":  {args: "install --datapath-mode aws-eni", code: ExitUsage},
		"install-chart":          {args: "install --chart-directory /nonexistent", code: ExitUsage, objs: bare()},
		"upgrade-misspelt-value": {args: "upgrade --set debug.enable=true", code: ExitUsage},

		"install-overlap":          {args: "install --set ipam.operator.clusterPoolIPv4PodCIDRList={10.96.0.0/16}", code: ExitUsage, objs: bare()},
		"install-overlap-itself":   {args: "install --set ipam.operator.clusterPoolIPv4PodCIDRList={10.1.0.0/16,10.1.2.0/24}", code: ExitUsage, objs: bare()},
		"install-pool-too-small":   {args: "install --set ipam.operator.clusterPoolIPv4PodCIDRList={10.1.0.0/24}", code: ExitUsage, objs: with(kubeNode("n2", "6.18.0", image))},
		"install-no-pod-cidrs":     {args: "install --set ipam.mode=kubernetes", code: ExitUsage, objs: bare()},
		"install-no-api-address":   {args: "install", code: ExitFailed, objs: bare()[:1]},
		"install-old-kernel":       {args: "install", code: ExitFailed, objs: onNode(kubeNode("n1", "5.4.0-generic", image))},
		"install-doubtful-kernel":  {args: "install", code: ExitFailed, objs: onNode(kubeNode("n1", "5.14.0-427.el9", image))},
		"install-no-image":         {args: "install", code: ExitFailed, objs: onNode(kubeNode("n1", "6.18.0"))},
		"install-other-network":    {args: "install", code: ExitFailed, objs: with(workload("calico-node"))},
		"install-policies":         {args: "install", code: ExitFailed, objs: with(policy)},
		"install-no-services":      {args: "install --set kubeProxyReplacement=false", code: ExitFailed, objs: bare()},
		"install-proxy-leftovers":  {args: "install --dry-run", objs: with(proxy)},
		"install-foreign-release":  {args: "install --yes", code: ExitFailed, objs: with(foreign)},
		"install-foreign-cilium":   {args: "install --yes", code: ExitFailed, objs: with(workload("cilium"))},
		"install-again":            {args: "install", objs: with(ours)},
		"install-again-set":        {args: "install --set debug.enabled=true", code: ExitFailed, objs: with(ours)},
		"upgrade-foreign-release":  {args: "upgrade", code: ExitFailed, objs: with(foreign)},
		"upgrade-nothing":          {args: "upgrade", code: ExitFailed, objs: with(workload("cilium"))},
		"uninstall-foreign":        {args: "uninstall", code: ExitFailed, objs: with(foreign)},
		"uninstall-nothing":        {args: "uninstall", code: ExitFailed, objs: with(workload("cilium"))},
		"install-no-permission":    {args: "install", code: ExitUnreachable, objs: bare(), denied: "clusterroles"},
		"install-nodes-forbidden":  {args: "install", code: ExitUnreachable, refuse: map[string]int{"nodes": http.StatusForbidden}},
		"install-bad-credentials":  {args: "install", code: ExitUnreachable, refuse: map[string]int{"": http.StatusUnauthorized}},
		"status-forbidden":         {args: "status", code: ExitUnreachable, refuse: map[string]int{"pods": http.StatusForbidden}},
		"identity-not-installed":   {args: "identity list", code: ExitFailed},
		"identity-get-no-kind":     {args: "identity get 4711", code: ExitFailed},
		"identity-unknown":         {args: "identity get 4711", code: ExitFailed, kinds: []string{"ciliumidentities"}},
		"identity-not-a-number":    {args: "identity get x", code: ExitUsage},
		"identity-bad-selector":    {args: "identity list -l a=(", code: ExitUsage},
		"connectivity-bad-pattern": {args: "connectivity test --test pod-to-(", code: ExitUsage},
		"connectivity-bad-flag":    {args: "connectivity test --hubble", code: ExitUsage},
		"unknown-command":          {args: "instal", code: ExitUsage},
		"unknown-subcommand":       {args: "image sav", code: ExitUsage},
		"unexpected-argument":      {args: "status now", code: ExitUsage},
		"upgrade-two-ways":         {args: "upgrade --reset-values --reuse-values", code: ExitUsage},
	}
	transcript := map[string]string{}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPIServer(t, c.objs...)
			a.denied = c.denied
			for _, k := range c.kinds {
				a.kinds[k] = true
			}
			for r, code := range c.refuse {
				a.refuse[r] = code
			}
			code, stdout, stderr := a.lash(t, strings.Fields(c.args)...)
			if code != c.code {
				t.Errorf("exit %d, want %d", code, c.code)
			}
			if stdout != "" && !strings.Contains(c.args, "--dry-run") {
				t.Errorf("results of a failure: %s", stdout)
			}
			if len(a.writes) > 0 {
				t.Errorf("something was changed: %v", a.writes)
			}
			transcript[name] = fmt.Sprintf("# %s\n$ lash %s\n%s(exit %d)\n", name, c.args, stderr, code)
		})
	}
	if len(transcript) != len(cases) {
		return // -run chose some
	}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(transcript)) {
		all = append(all, transcript[name])
	}
	statusGolden(t, "bad-input", strings.Join(all, "\n"))
}

// TestUnknownScenario lists what there is, and asks no cluster.
func TestUnknownScenario(t *testing.T) {
	code, stdout, stderr := lash(t, unreachable, "connectivity", "test", "--test", "pod-to-moon")
	if code != ExitUsage || stdout != "" {
		t.Errorf("exit %d, stdout %q", code, stdout)
	}
	for _, want := range []string{`Error: no test or scenario matches "pod-to-moon"; there are:`, "no-policies/", "pod-to-pod"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q lacks %q", stderr, want)
		}
	}
}

// TestMistakesNeedNoCluster: who mistypes a value learns so even where no cluster answers.
func TestMistakesNeedNoCluster(t *testing.T) {
	file := filepath.Join(t.TempDir(), "v.yaml")
	if err := os.WriteFile(file, []byte("debug: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, want string }{
		{"install --set kubeProxyReplacment=true", "did you mean kubeProxyReplacement?"},
		{"upgrade --set kubeProxyReplacment=true", "did you mean kubeProxyReplacement?"},
		{"install -f /nonexistent.yaml", "open /nonexistent.yaml"},
		{"install -f " + file, "v.yaml"},
		{"install --set-json a", "reading the values"},
		{"install --wait-duration soon", `invalid argument "soon"`},
		{"status -o xml", `invalid --output "xml"`},
		{"status --worker-count 0", "invalid --worker-count 0"},
	} {
		code, stdout, stderr := lash(t, unreachable, strings.Fields(c.args)...)
		if code != ExitUsage || stdout != "" || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: exit %d, %q lacks %q", c.args, code, stderr, c.want)
		}
	}
}

// TestGroupsShowTheirHelp: a name that only holds commands is no mistake.
func TestGroupsShowTheirHelp(t *testing.T) {
	for _, args := range []string{"", "cluster", "image", "chart", "identity", "service", "connectivity", "perf"} {
		code, stdout, _ := lash(t, unreachable, strings.Fields(args)...)
		if code != ExitOK || !slices.Contains(strings.Split(stdout, "\n"), "Available Commands:") {
			t.Errorf("lash %s: exit %d, %q", args, code, stdout)
		}
	}
}
