// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/version"
	fakediscovery "k8s.io/client-go/discovery/fake"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"lash.internal/lash/agent/api"
)

const ownImage = "localhost/lash:0.1.0"

// world is a cluster made of objects, as `lash install` sees it.
type world struct {
	objects []runtime.Object
	server  string // default https://203.0.113.1:6443
	name    string // default lash-dev
	denied  string // resource that the user may not create
	opts    Options
}

func (w world) cluster() *Cluster {
	set := fake.NewSimpleClientset(w.objects...)
	set.Discovery().(*fakediscovery.FakeDiscovery).FakedServerVersion = &version.Info{GitVersion: "v1.36.3"}
	set.PrependReactor("create", "selfsubjectaccessreviews", func(a ktesting.Action) (bool, runtime.Object, error) {
		r := a.(ktesting.CreateAction).GetObject().(*authv1.SelfSubjectAccessReview)
		r.Status.Allowed = r.Spec.ResourceAttributes.Resource != w.denied
		return true, r, nil
	})
	c := &Cluster{Clientset: set, Context: "ctx", Name: "lash-dev", Server: "https://203.0.113.1:6443", Namespace: "kube-system", Release: "cilium"}
	if w.server != "" {
		c.Server = w.server
	}
	if w.name != "" {
		c.Name = w.name
	}
	return c
}

// plan runs Make with values given as YAML and returns what was printed.
func (w world) plan(t *testing.T, values string) (said []string, p *Plan, err error) {
	t.Helper()
	user := map[string]any{}
	if err := yaml.Unmarshal([]byte(values), &user); err != nil {
		t.Fatal(err)
	}
	o := w.opts
	o.Values = user
	o.Say = func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	c := w.cluster()
	p, err = Make(context.Background(), c, o)
	for _, a := range c.Clientset.(*fake.Clientset).Actions() {
		if v := a.GetVerb(); v != "get" && v != "list" && a.GetResource().Resource != "selfsubjectaccessreviews" {
			t.Errorf("planning did %s %s", v, a.GetResource().Resource)
		}
	}
	return said, p, err
}

func node(name, addr string, podCIDRs ...string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.NodeSpec{PodCIDRs: podCIDRs},
		Status: corev1.NodeStatus{
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr}},
			NodeInfo:  corev1.NodeSystemInfo{KernelVersion: "6.18.0", OperatingSystem: "linux", Architecture: "amd64"},
			Images:    []corev1.ContainerImage{{Names: []string{ownImage}}},
		},
	}
}

func daemonSet(name string) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "kube-system"},
		Spec: appsv1.DaemonSetSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Image: "example.org/" + name + ":v1"}},
		}}},
	}
}

func serviceRange(cidrs ...string) *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: cidrs}}
}

func apiSlice(port int32, addrs ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		Ports:      []discoveryv1.EndpointPort{{Port: &port}},
	}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

// releaseSecret is a Helm release as Helm itself stores it.
func releaseSecret(t *testing.T, chartName, version string) *corev1.Secret {
	t.Helper()
	raw, err := json.Marshal(map[string]any{
		"name": "cilium", "namespace": "kube-system", "version": 1,
		"info":  map[string]any{"status": "deployed"},
		"chart": map[string]any{"metadata": map[string]any{"name": chartName, "version": version, "apiVersion": "v2"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: "sh.helm.release.v1.cilium.v1", Namespace: "kube-system",
			Labels: map[string]string{"owner": "helm", "name": "cilium", "status": "deployed", "version": "1"},
		},
		Type: "helm.sh/release.v1",
		Data: map[string][]byte{"release": []byte(base64.StdEncoding.EncodeToString(b.Bytes()))},
	}
}

func TestMessagesWithKubeProxy(t *testing.T) {
	said, p, err := world{name: "kubernetes", objects: []runtime.Object{
		node("n1", "172.16.0.1"), serviceRange("192.168.0.0/16"), daemonSet("kube-proxy"),
	}, opts: Options{Version: "1.15.1"}}.plan(t, "")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"ℹ️  Using Cilium version 1.15.1 (Lash " + api.Version + ")",
		"🔮 Auto-detected cluster name: kubernetes",
		"🔮 Auto-detected kube-proxy has been installed",
	}
	if !slices.Equal(said, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(said, "\n"), strings.Join(want, "\n"))
	}
	if len(p.Findings) > 0 {
		t.Errorf("findings: %+v", p.Findings)
	}
	for path, want := range map[string]any{
		"kubeProxyReplacement": nil, "k8sServiceHost": nil, "ipam.mode": nil,
		"operator.replicas": 1, "routingMode": "tunnel", "cluster.name": "kubernetes", "compatibility.level": "1.15.1",
	} {
		if got := lookup(p.Values, path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	if p.Chart.Metadata.AppVersion != "1.15.1" {
		t.Errorf("app version of the release is %s", p.Chart.Metadata.AppVersion)
	}
}

func TestMessagesWithoutKubeProxy(t *testing.T) {
	said, p, err := world{server: "https://127.0.0.1:39847", objects: []runtime.Object{
		node("n1", "172.16.0.1", "10.244.0.0/24", "fd00:10:244::/64"), serviceRange("10.96.0.0/12", "fd00:10:96::/112"), apiSlice(6443, "172.16.0.1"),
	}}.plan(t, "")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"ℹ️  Using Cilium version 1.16.5 (Lash " + api.Version + ")",
		"🔮 Auto-detected cluster name: lash-dev",
		"ℹ️  Detecting real Kubernetes API server addr and port: 172.16.0.1:6443",
		"🔮 Auto-detected kube-proxy has not been installed",
		"ℹ️  Cilium will fully replace all functionalities of kube-proxy",
		"ℹ️  The cluster is dual stack: using ipv6.enabled=true",
		"ℹ️  Every node has a pod CIDR: using ipam.mode=kubernetes",
	}
	if !slices.Equal(said, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(said, "\n"), strings.Join(want, "\n"))
	}
	for _, line := range []string{
		`kube-proxy-replacement: "true"`, `ipam: "kubernetes"`, `enable-ipv6: "true"`, `cluster-name: "lash-dev"`,
		`value: "172.16.0.1"`, `value: "6443"`, "replicas: 1", `compatibility-level: "1.16.5"`,
	} {
		if !strings.Contains(p.Manifest, line) {
			t.Errorf("manifest lacks %s", line)
		}
	}
}

func TestLoopbackServerWithoutEndpoint(t *testing.T) {
	_, _, err := world{server: "https://localhost:6443", objects: []runtime.Object{node("n1", "172.16.0.1")}}.plan(t, "")
	if err == nil || !strings.Contains(err.Error(), "give --set k8sServiceHost=ADDRESS") {
		t.Errorf("got %v", err)
	}
}

// TestAPIServers says where nodes find the API servers, for clusters with one and with several.
func TestAPIServers(t *testing.T) {
	several := apiSlice(6443, "172.16.0.1", "172.16.0.2", "fd00::3")
	for name, c := range map[string]struct {
		server, values string
		slice          *discoveryv1.EndpointSlice
		host, port     string
		urls           string
	}{
		"one": {server: "https://127.0.0.1:39847", slice: apiSlice(6443, "172.16.0.1"), host: "172.16.0.1", port: "6443"},
		"several": {
			server: "https://127.0.0.1:39847", slice: several, host: "172.16.0.1", port: "6443",
			urls: "https://172.16.0.1:6443 https://172.16.0.2:6443 https://[fd00::3]:6443",
		},
		"behind a name": {
			server: "https://api.example.org", slice: several, host: "api.example.org", port: "443",
			urls: "https://172.16.0.1:6443 https://172.16.0.2:6443 https://[fd00::3]:6443",
		},
		"no slice, a name":               {server: "https://api.example.org:6443", host: "api.example.org", port: "6443"},
		"the user's host":                {server: "https://127.0.0.1:39847", values: "{k8sServiceHost: vip.example.org, k8sServicePort: 6443}", slice: several, host: "vip.example.org", port: "6443"},
		"the user's host, nothing found": {server: "https://127.0.0.1:39847", values: "{k8sServiceHost: vip.example.org, k8sServicePort: '443'}", host: "vip.example.org", port: "443"},
		"the user's list": {
			server: "https://127.0.0.1:39847", values: "{k8s: {apiServerURLs: 'https://192.0.2.1:7443 https://192.0.2.2'}}", slice: several,
			host: "192.0.2.1", port: "7443", urls: "https://192.0.2.1:7443 https://192.0.2.2",
		},
	} {
		objects := []runtime.Object{node("n1", "172.16.0.1", "10.244.0.0/24"), serviceRange("10.96.0.0/12")}
		if c.slice != nil {
			objects = append(objects, c.slice)
		}
		_, p, err := world{server: c.server, objects: objects}.plan(t, c.values)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for path, want := range map[string]string{"k8sServiceHost": c.host, "k8sServicePort": c.port, "k8s.apiServerURLs": c.urls} {
			got := ""
			if v := lookup(p.Values, path); v != nil {
				got = fmt.Sprint(v)
			}
			if got != want {
				t.Errorf("%s: %s is %q, want %q", name, path, got, want)
			}
		}
		if line := fmt.Sprintf("k8s-api-server-urls: %q", c.urls); strings.Contains(p.Manifest, line) != (c.urls != "") {
			t.Errorf("%s: the manifest has no %s", name, line)
		}
	}
	_, _, err := world{objects: []runtime.Object{node("n1", "172.16.0.1", "10.244.0.0/24")}}.plan(t, "{k8s: {apiServerURLs: '192.0.2.1:6443'}}")
	if err == nil || !strings.Contains(err.Error(), "apiServerURLs") || !strings.Contains(err.Error(), "https://192.0.2.1:6443") {
		t.Errorf("an address that is no URL: %v", err)
	}
}

func TestUserValuesWin(t *testing.T) {
	said, p, err := world{objects: []runtime.Object{node("n1", "172.16.0.1", "10.244.0.0/24")}}.plan(t,
		"{cluster: {name: mine}, kubeProxyReplacement: true, k8sServiceHost: api.example.org, operator: {replicas: 2}, ipam: {mode: cluster-pool}, ipv6: {enabled: false}}")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(said, `ℹ️  Using cluster name "mine"`) {
		t.Errorf("said %q", said)
	}
	for path, want := range map[string]any{
		"cluster.name": "mine", "k8sServiceHost": "api.example.org", "k8sServicePort": nil, "operator.replicas": float64(2), "ipam.mode": "cluster-pool",
	} {
		if got := lookup(p.Values, path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
}

func TestClusterPoolAvoidsWhatIsThere(t *testing.T) {
	for name, c := range map[string]struct {
		objects []runtime.Object
		values  string
		pool    string // "" means the default
		wantErr string
	}{
		"nothing in the way":           {objects: []runtime.Object{node("n", "172.16.0.1"), serviceRange("192.168.0.0/16")}},
		"services in the way":          {objects: []runtime.Object{node("n", "172.16.0.1"), serviceRange("10.96.0.0/12")}, pool: "[10.0.0.0/16]"},
		"services and node in the way": {objects: []runtime.Object{node("n", "10.1.0.9"), serviceRange("10.0.0.0/16")}, pool: "[10.2.0.0/16]"},
		"old cluster without ranges": {objects: []runtime.Object{node("n", "172.16.0.1"), &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default"}, Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.0.0.1"}},
		}}, pool: "[10.1.0.0/16]"},
		"asked for": {
			objects: []runtime.Object{node("n", "172.16.0.1"), serviceRange("10.96.0.0/12")},
			values:  "{ipam: {operator: {clusterPoolIPv4PodCIDRList: [10.96.0.0/16]}}}",
			wantErr: "10.96.0.0/16 overlaps the service range 10.96.0.0/12",
		},
		"asked for a node's": {
			objects: []runtime.Object{node("n", "172.16.0.1"), serviceRange("10.96.0.0/12")},
			values:  "{ipam: {operator: {clusterPoolIPv4PodCIDRList: 172.16.0.0/16}}}",
			wantErr: "172.16.0.0/16 overlaps the address 172.16.0.1 of node n",
		},
		"not a range": {
			objects: []runtime.Object{node("n", "172.16.0.1")},
			values:  "{ipam: {operator: {clusterPoolIPv4PodCIDRList: 172.16.0.0}}}",
			wantErr: `"172.16.0.0" is not an address range`,
		},
		"of the other family": {
			objects: []runtime.Object{node("n", "172.16.0.1")},
			values:  "{ipam: {operator: {clusterPoolIPv4PodCIDRList: ['fd00::/104']}}}",
			wantErr: `"fd00::/104" is not an address range such as 10.0.0.0/8`,
		},
		"empty list": {
			objects: []runtime.Object{node("n", "172.16.0.1")},
			values:  "{ipam: {operator: {clusterPoolIPv4PodCIDRList: []}}}",
			wantErr: "clusterPoolIPv4PodCIDRList: is empty",
		},
		"ranges of nodes larger than the pool": {
			objects: []runtime.Object{node("n", "172.16.0.1")},
			values:  "{ipam: {operator: {clusterPoolIPv4PodCIDRList: 10.1.0.0/16, clusterPoolIPv4MaskSize: 12}}}",
			wantErr: "clusterPoolIPv4MaskSize: 12 does not cut 10.1.0.0/16 into ranges of nodes: use a number from 16 to 30",
		},
		"IPv6 pool asked for": {
			objects: []runtime.Object{node("n", "172.16.0.1"), serviceRange("10.96.0.0/12", "fd00::/108")},
			values:  "{ipv6: {enabled: true}, ipam: {operator: {clusterPoolIPv6PodCIDRList: 'fd00::/100'}}}",
			wantErr: "fd00::/100 overlaps the service range fd00::/108", pool: "",
		},
		"no range on a node": {
			objects: []runtime.Object{node("a", "172.16.0.1", "10.244.0.0/24"), node("b", "172.16.0.2")},
			values:  "{ipam: {mode: kubernetes}}", wantErr: "node b has none: use ipam.mode=cluster-pool",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, p, err := world{objects: c.objects}.plan(t, c.values)
			if c.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), c.wantErr) {
					t.Errorf("got %v, want %s", err, c.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if v := lookup(p.Values, "ipam.operator.clusterPoolIPv4PodCIDRList"); v != nil {
				got = fmt.Sprint(v)
			}
			if got != c.pool {
				t.Errorf("pool %q, want %q", got, c.pool)
			}
		})
	}
}

func TestFindings(t *testing.T) {
	old := node("old", "172.16.0.2")
	old.Status.NodeInfo.KernelVersion = "5.4.0-generic"
	bare := node("bare", "172.16.0.3")
	bare.Status.Images = nil
	policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "deny", Namespace: "shop"}}
	for name, c := range map[string]struct {
		objects []runtime.Object
		denied  string
		values  string
		level   Level
		foreign bool
		want    []string // parts of what, evidence, next
	}{
		"release of Cilium's chart": {
			objects: []runtime.Object{releaseSecret(t, "cilium", "1.15.1")}, level: Block, foreign: true,
			want: []string{"release cilium is of another chart", "chart cilium, version 1.15.1", "helm uninstall cilium -n kube-system"},
		},
		"Cilium without a release": {
			objects: []runtime.Object{daemonSet("cilium")}, level: Block, foreign: true,
			want: []string{"another Cilium is installed", "example.org/cilium:v1"},
		},
		"another network": {
			objects: []runtime.Object{daemonSet("calico-node")}, level: Ask,
			want: []string{"Calico", "DaemonSet kube-system/calico-node", "delete daemonset calico-node"},
		},
		"no permission": {
			denied: "clusterroles", level: Block,
			want: []string{"may not do", "may not create clusterroles", "cluster-admin"},
		},
		"old kernel":  {objects: []runtime.Object{old}, level: Block, want: []string{"kernel", "old: 5.4.0-generic", "--nodes-without-cilium"}},
		"no image":    {objects: []runtime.Object{bare}, level: Block, want: []string{ownImage, "bare", "lash image save"}},
		"its image":   {values: "{image: {repository: quay.io/cilium/cilium}}", level: Block, want: []string{"Cilium's own", "quay.io/cilium/cilium"}},
		"policies":    {objects: []runtime.Object{policy}, level: Ask, want: []string{"does not enforce", "1 NetworkPolicies in 1 namespaces"}},
		"no services": {values: "{kubeProxyReplacement: false}", level: Ask, want: []string{"nobody would serve Services"}},
		"both": {
			objects: []runtime.Object{daemonSet("kube-proxy")}, values: "{kubeProxyReplacement: true}", level: Note,
			want: []string{"kube-proxy is there and stays"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, p, err := world{denied: c.denied, objects: append(c.objects, node("good", "172.16.0.1"))}.plan(t, c.values)
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Findings) != 1 {
				t.Fatalf("findings: %+v", p.Findings)
			}
			f := p.Findings[0]
			text := f.What + "\n" + f.Evidence + "\n" + f.Next
			for _, w := range c.want {
				if !strings.Contains(text, w) {
					t.Errorf("%q lacks %q", text, w)
				}
			}
			if f.Level != c.level || f.Foreign != c.foreign {
				t.Errorf("level %d foreign %v", f.Level, f.Foreign)
			}
		})
	}
}

func TestFlavours(t *testing.T) {
	labelled := func(k, v string) []corev1.Node {
		return []corev1.Node{{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{k: v}}}}
	}
	k3s := labelled("node-role.kubernetes.io/master", "true")
	k3s[0].Labels["node.kubernetes.io/instance-type"] = "k3s"
	for want, c := range map[string]struct {
		cluster Cluster
		nodes   []corev1.Node
	}{
		"minikube": {cluster: Cluster{Context: "minikube"}},
		"kind":     {cluster: Cluster{Name: "kind-dev"}},
		"microk8s": {cluster: Cluster{Name: "microk8s-cluster"}},
		"GKE":      {nodes: labelled("cloud.google.com/gke-nodepool", "p")},
		"EKS":      {cluster: Cluster{Server: "https://x.eks.amazonaws.com"}},
		"AKS":      {cluster: Cluster{Server: "https://x.azmk8s.io:443"}},
		"K3s":      {nodes: k3s},
		"":         {cluster: Cluster{Name: "lash-dev"}},
	} {
		c.cluster.Clientset = fake.NewSimpleClientset()
		if got, err := flavour(&c.cluster, c.nodes); got != want || err != nil {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
}

func TestClusterNames(t *testing.T) {
	for in, want := range map[string]string{
		"kubernetes":        "kubernetes",
		"gke_proj_zone_dev": "gke-proj-zone-dev",
		"arn:aws:eks:eu-west-1:1234:cluster/prod": "prod",
		"a.b:c":      "a-b-c",
		"":           "default",
		"Übercool":   "default",
		"UPPER_case": "upper-case",
		"a-name-that-is-much-longer-than-identities-allow": "a-name-that-is-much-longer-than",
	} {
		var f Facts
		f.clusterName(&Cluster{Name: in}, nil)
		if f.ClusterName != want {
			t.Errorf("%s: got %q, want %q", in, f.ClusterName, want)
		}
	}
}

func TestVersions(t *testing.T) {
	for in, want := range map[string]string{
		"": api.CiliumVersion, api.Version: api.CiliumVersion, "v1.15.1": "1.15.1", "1.16.12": "1.16.12",
		"1.17.0": "", "1.15": "", "1.15.x": "", "nonsense": "",
	} {
		got, err := resolveVersion(in)
		if got != want || (want == "") != (err != nil) {
			t.Errorf("%s: got %q, %v", in, got, err)
		}
	}
}

func TestRefusedOptions(t *testing.T) {
	w := world{objects: []runtime.Object{node("n", "172.16.0.1")}}
	for _, c := range []struct {
		opts         Options
		values, want string
	}{
		{Options{DatapathMode: "azure"}, "", "datapath mode azure is not supported yet: use tunnel or native"},
		{Options{DatapathMode: "native"}, "{routingMode: tunnel}", "contradict each other"},
		{Options{DatapathMode: "x"}, "", `unknown datapath mode "x"`},
		{Options{Version: "2.0"}, "", "there is no version 2.0"},
		{Options{}, "{kubeProxyReplacment: true}", "did you mean kubeProxyReplacement?"},
		{Options{}, "{cluster: {name: Bad_Name}}", `"Bad_Name" must be`},
		{Options{}, "{nodePort: {enabled: true}, kubeProxyReplacement: false}", "value nodePort.enabled: true needs kubeProxyReplacement true; with false all Services are left to kube-proxy"},
		{Options{}, "{hostPort: {enabled: true}, kubeProxyReplacement: false}", "value hostPort.enabled: true needs kubeProxyReplacement true"},
		{Options{}, "{externalIPs: {enabled: true}, kubeProxyReplacement: false}", "value externalIPs.enabled: true needs kubeProxyReplacement true"},
		{Options{}, "{socketLB: {enabled: true}, kubeProxyReplacement: false}", "value socketLB.enabled: true needs kubeProxyReplacement true"},
		{Options{}, "{loadBalancer: {mode: hybrid}, kubeProxyReplacement: false}", "value loadBalancer.mode: hybrid needs kubeProxyReplacement true"},
		{Options{}, "{loadBalancer: {algorithm: maglev}, kubeProxyReplacement: false}", "value loadBalancer.algorithm: maglev needs kubeProxyReplacement true"},
		{Options{}, "{nodePort: {addresses: [192.0.2.0/24]}, kubeProxyReplacement: false}", "value nodePort.addresses: 192.0.2.0/24 needs kubeProxyReplacement true"},
		{Options{}, "{loadBalancer: {mode: dsr}, routingMode: native, kubeProxyReplacement: true}", "values loadBalancer.mode and routingMode: dsr sends packets on in the tunnel and does not go with native; use loadBalancer.mode snat, or routingMode tunnel"},
		{Options{DatapathMode: "native"}, "{loadBalancer: {mode: hybrid}, kubeProxyReplacement: true}", "values loadBalancer.mode and routingMode: hybrid"},
		{Options{}, "{loadBalancer: {mode: fast}}", `value loadBalancer.mode: "fast" is not supported yet: use snat, dsr or hybrid`},
		{Options{}, "{loadBalancer: {mode: dsr, dsrDispatch: geneve}}", `value loadBalancer.dsrDispatch: "geneve" is not supported yet: use vxlan`},
		{Options{}, "{loadBalancer: {mode: dsr, dsrDispatch: opt}}", `value loadBalancer.dsrDispatch: "opt" is not supported yet: use vxlan`},
		{Options{}, "{loadBalancer: {acceleration: native}}", `value loadBalancer.acceleration: "native" is not supported yet: use disabled`},
		{Options{}, "{loadBalancer: {algorithm: wrr}}", `value loadBalancer.algorithm: "wrr" is not supported yet: use random or maglev`},
		{Options{}, "{loadBalancer: {algorithm: maglev}, maglev: {tableSize: 16380}, kubeProxyReplacement: true}", `value maglev.tableSize: "16380" is not a prime from 251 to 131071`},
		{Options{}, "{loadBalancer: {algorithm: maglev}, maglev: {hashSeed: c2hvcnQ=}, kubeProxyReplacement: true}", `value maglev.hashSeed: "c2hvcnQ=" is not 12 bytes in base64`},
		{Options{}, "{nodePort: {range: 'x'}, kubeProxyReplacement: true}", `value nodePort.range: "x" is not a first and a last port such as 30000,32767`},
		{Options{}, "{nodePort: {range: [30000, 60000]}, kubeProxyReplacement: true}", `overlaps 49152-65535, the ports of masqueraded connections`},
		{Options{}, "{nodePort: {addresses: [eth0]}, kubeProxyReplacement: true}", `value nodePort.addresses: "eth0" is not an address range`},
		{Options{}, "{kubeProxyReplacementHealthzBindAddr: '10256', kubeProxyReplacement: true}", `value kubeProxyReplacementHealthzBindAddr: "10256" is not an address`},
		{Options{}, "{nat46x64Gateway: {enabled: true}}", "value nat46x64Gateway.enabled is not supported yet"},
		{Options{ChartDir: "/nonexistent"}, "", "loading the chart in /nonexistent: "},
	} {
		w.opts = c.opts
		_, _, err := w.plan(t, c.values)
		var oe *OptionError
		if !errors.As(err, &oe) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

// TestServiceValues are those that reach the agents.
func TestServiceValues(t *testing.T) {
	w := world{objects: []runtime.Object{node("n", "172.16.0.1")}}
	const all = "{loadBalancer: {mode: hybrid, algorithm: maglev, dsrDispatch: vxlan, acceleration: disabled, serviceTopology: true}, maglev: {tableSize: 251, hashSeed: MTIzNDU2Nzg5MDEy}, " +
		"nodePort: {enabled: true, range: '30000,31000', addresses: [192.0.2.0/24, '2001:db8::/32'], bindProtection: false, autoProtectPortRange: false, enableHealthCheck: false}, " +
		"hostPort: {enabled: true}, externalIPs: {enabled: true}, sessionAffinity: true, svcSourceRangeCheck: false, endpointHealthChecking: {enabled: false}, kubeProxyReplacementHealthzBindAddr: '', kubeProxyReplacement: true}"
	said, p, err := w.plan(t, all)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`bpf-lb-mode: "hybrid"`, `bpf-lb-algorithm: "maglev"`, `bpf-lb-dsr-dispatch: "vxlan"`, `bpf-lb-maglev-table-size: "251"`, `bpf-lb-maglev-hash-seed: "MTIzNDU2Nzg5MDEy"`,
		`node-port-range: "30000,31000"`, `nodeport-addresses: "192.0.2.0/24 2001:db8::/32"`, `node-port-bind-protection: "false"`,
		`enable-auto-protect-node-port-range: "false"`, `enable-health-check-nodeport: "false"`, `enable-node-port: "true"`, `enable-svc-source-range-check: "false"`,
		`kube-proxy-replacement-healthz-bind-address: ""`, `enable-endpoint-health-checking: "false"`,
	} {
		if !strings.Contains(p.Manifest, line+"\n") {
			t.Errorf("manifest lacks %s", line)
		}
	}
	if all := strings.Join(said, "\n"); !strings.Contains(all, "loadBalancer.serviceTopology has no effect: hints of EndpointSlices are always followed") {
		t.Errorf("said\n%s", all)
	}
	if _, _, err := w.plan(t, "{loadBalancer: {mode: snat, algorithm: random}, nodePort: {enabled: false}, kubeProxyReplacement: false}"); err != nil {
		t.Errorf("what is off is refused with kube-proxy: %v", err)
	}
}

func TestNodesWithoutNetwork(t *testing.T) {
	_, p, err := world{objects: []runtime.Object{node("n", "172.16.0.1")}, opts: Options{NodesWithoutNetwork: true}}.plan(t, "")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(p.Manifest, "key: "+NoScheduleLabel); n != 2 {
		t.Errorf("the rule is in %d pod templates, want 2", n)
	}
}
