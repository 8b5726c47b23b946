// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	fakediscovery "k8s.io/client-go/discovery/fake"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"
)

// scene is a cluster of nodes with an agent each.
type scene struct {
	opts  Options
	set   *fake.Clientset
	dyn   *dynamicfake.FakeDynamicClient
	execs atomic.Int64
}

func readyNode(name string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
	}
}

func agent(node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "cilium-" + node, Namespace: "kube-system", Labels: map[string]string{"k8s-app": "cilium"}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "cilium-agent"}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "cilium-agent"}},
		},
	}
}

func newScene(t *testing.T, objects []runtime.Object, dynamic ...runtime.Object) *scene {
	t.Helper()
	s := &scene{set: fake.NewSimpleClientset(objects...)}
	s.set.Discovery().(*fakediscovery.FakeDiscovery).Resources = []*metav1.APIResourceList{{
		GroupVersion: "cilium.io/v2", APIResources: []metav1.APIResource{
			{Name: "ciliumnodes", Kind: "CiliumNode", Verbs: metav1.Verbs{"list"}},
			{Name: "ciliumnodes/status", Kind: "CiliumNode", Verbs: metav1.Verbs{"update"}},
		},
	}}
	kinds := map[schema.GroupVersionResource]string{gvr("cilium.io", "v2", "ciliumnodes"): "CiliumNodeList", gvr("cilium.io", "v2", "ciliumendpoints"): "CiliumEndpointList"}
	for _, f := range objectFiles {
		kinds[f.resource] = "List"
	}
	s.dyn = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds, dynamic...)
	s.opts = Options{
		Client: s.set, Dynamic: s.dyn, Context: "ctx", Namespace: "kube-system", Release: "cilium", Version: "0.1.0",
		MaxTime: 20 * time.Second, MaxSize: 1 << 20, Workers: 1, LogLines: 100, LogBytes: 1 << 20,
		Exec: func(_ context.Context, _, pod, _ string, command ...string) ([]byte, []byte, error) {
			s.execs.Add(1)
			return []byte(pod + ": " + strings.Join(command, " ")), nil, nil
		},
	}
	return s
}

func object(kind, namespace, name string, more map[string]any) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": kind}}
	for k, v := range more {
		u.Object[k] = v
	}
	u.SetName(name)
	u.SetNamespace(namespace)
	return u
}

// take collects and reads the file back.
func (s *scene) take(t *testing.T, ctx context.Context) (map[string]string, []string, *Result) {
	t.Helper()
	var b bytes.Buffer
	r, err := Run(ctx, &b, s.opts)
	if err != nil {
		t.Fatal(err)
	}
	files, order := read(t, b.Bytes())
	if len(files) != r.Files || int64(b.Len()) > s.opts.MaxSize {
		t.Errorf("%d files of %d in %d bytes, at most %d", len(files), r.Files, b.Len(), s.opts.MaxSize)
	}
	return files, order, r
}

func read(t *testing.T, data []byte) (files map[string]string, order []string) {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for _, f := range z.File {
		if age := time.Since(f.Modified); age < -time.Minute || age > time.Hour*24 {
			t.Errorf("%s is of %s", f.Name, f.Modified)
		}
		rc, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(rc)
		if err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
		files[f.Name] = string(text)
		order = append(order, f.Name)
	}
	return files, order
}

func TestEverythingIsThere(t *testing.T) {
	op := agent("a")
	op.Name, op.Labels = "cilium-operator-0", map[string]string{"io.cilium/app": "operator"}
	s := newScene(t, []runtime.Object{readyNode("a"), agent("a"), op},
		object("CiliumNode", "", "a", map[string]any{"apiVersion": "cilium.io/v2"}),
		object("DaemonSet", "kube-system", "cilium", map[string]any{"apiVersion": "apps/v1"}),
		object("DaemonSet", "kube-system", "kube-proxy", map[string]any{"apiVersion": "apps/v1"}))
	files, order, r := s.take(t, t.Context())
	for _, want := range []string{
		"version.json", "status.json", "helm.yaml", "nodes.yaml", "workloads/daemonsets.yaml", "cilium.io/ciliumnodes.yaml", "events-own.yaml",
		"nodes/a/cilium-a/status.txt", "nodes/a/cilium-a/node.json", "nodes/a/cilium-a/bpf-ct.txt", "nodes/a/cilium-a/cilium-agent.log",
		"operator/cilium-operator-0/cilium-agent.log", "cluster/pods.yaml", "summary.txt",
	} {
		if files[want] == "" {
			t.Errorf("no %s among %q", want, order)
		}
	}
	if ds := files["workloads/daemonsets.yaml"]; !strings.Contains(ds, "name: cilium") || strings.Contains(ds, "kube-proxy") {
		t.Errorf("DaemonSets:\n%s", ds)
	}
	if files["nodes/a/cilium-a/status.txt"] != "cilium-a: cilium status --verbose" {
		t.Errorf("status is %q", files["nodes/a/cilium-a/status.txt"])
	}
	if order[len(order)-1] != "summary.txt" || !strings.Contains(files["summary.txt"], "Left out: 0") || len(r.Skipped) > 0 {
		t.Errorf("summary:\n%s", files["summary.txt"])
	}
	s.opts.Quick = true
	if files, _, _ = s.take(t, t.Context()); files["cluster/pods.yaml"] != "" || files["nodes/a/cilium-a/bpf-ct.txt"] != "" || files["nodes/a/cilium-a/status.txt"] == "" {
		t.Error("--quick takes what is large, or leaves out what is not")
	}
}

func TestSickNodesComeFirst(t *testing.T) {
	crashing, notReady, silent := agent("c"), readyNode("b"), readyNode("d")
	crashing.Status.ContainerStatuses[0].RestartCount = 7
	notReady.Status.Conditions[0].Status = corev1.ConditionUnknown
	s := newScene(t, []runtime.Object{readyNode("a"), agent("a"), notReady, agent("b"), readyNode("c"), crashing, silent})
	_, order, r := s.take(t, t.Context())
	want := []Node{{"b", "Ready is Unknown"}, {"c", "7 restarts of cilium-agent"}, {"d", "no agent"}, {"a", ""}}
	if !slices.Equal(r.Nodes, want) {
		t.Errorf("nodes %+v", r.Nodes)
	}
	first := func(prefix string) int {
		return slices.IndexFunc(order, func(f string) bool { return strings.HasPrefix(f, prefix) })
	}
	if b, c, a := first("nodes/b/"), first("nodes/c/"), first("nodes/a/"); b >= c || c >= a {
		t.Errorf("order %d %d %d in %q", b, c, a, order)
	}
	if first("nodes/c/cilium-c/cilium-agent-previous.log") < 0 {
		t.Error("the log of the run before a restart is missing")
	}
	s.opts.Nodes = []string{"a"}
	if _, order, _ = s.take(t, t.Context()); first("nodes/b/") >= 0 || first("nodes/a/") < 0 {
		t.Error("--node-list is not followed")
	}
}

func TestSizeBudget(t *testing.T) {
	var objects []runtime.Object
	for i := range 20 {
		n := fmt.Sprintf("n%02d", i)
		objects = append(objects, readyNode(n), agent(n))
	}
	objects[1].(*corev1.Pod).Status.Conditions = nil // n00 is sick
	s := newScene(t, objects)
	s.opts.Exec = func(_ context.Context, _, _, _ string, command ...string) ([]byte, []byte, error) {
		noise := make([]byte, 3000)
		_, _ = rand.Read(noise)
		return []byte(base64.StdEncoding.EncodeToString(noise)), nil, nil
	}
	s.opts.MaxSize = 100 << 10
	files, _, r := s.take(t, t.Context()) // compares the size
	if len(r.Skipped) == 0 || r.Skipped[0].Why != errNoRoom.Error() || files["summary.txt"] == "" {
		t.Errorf("skipped %d, summary %q", len(r.Skipped), files["summary.txt"])
	}
	if files["nodes/n00/cilium-n00/status.txt"] == "" || files["nodes/n19/cilium-n19/status.txt"] != "" {
		t.Error("the room was not used for the sick node first")
	}
	if !strings.Contains(files["summary.txt"], "nodes/n19/cilium-n19/status.txt: no room left (--max-size)") {
		t.Errorf("the summary does not say what is missing:\n%s", files["summary.txt"])
	}
}

// TestTimeBudget has agents that never answer.
func TestTimeBudget(t *testing.T) {
	s := newScene(t, []runtime.Object{readyNode("a"), agent("a")})
	s.opts.Exec = func(ctx context.Context, _, _, _ string, _ ...string) ([]byte, []byte, error) {
		<-ctx.Done()
		return nil, nil, ctx.Err()
	}
	s.opts.MaxTime, s.opts.Workers = 2*time.Second, 4
	files, _, r := s.take(t, t.Context())
	if files["nodes.yaml"] == "" {
		t.Error("what can be had without the agents is not there")
	}
	if len(r.Skipped) == 0 || r.Skipped[0].Why != errNoTime.Error() || !strings.Contains(files["summary.txt"], "no time left (--max-time)") {
		t.Errorf("skipped %v", r.Skipped)
	}
}

func TestAPIServerDiesMidway(t *testing.T) {
	s := newScene(t, []runtime.Object{readyNode("a"), agent("a")})
	dead := errors.New("connection refused")
	s.dyn.PrependReactor("list", "*", func(a ktesting.Action) (bool, runtime.Object, error) {
		if a.GetResource().Resource == "nodes" {
			return false, nil, nil
		}
		return true, nil, dead
	})
	s.opts.Exec = func(context.Context, string, string, string, ...string) ([]byte, []byte, error) {
		return nil, []byte("daemon unreachable\n"), dead
	}
	files, _, r := s.take(t, t.Context())
	if files["nodes.yaml"] == "" || len(r.Failed) < 10 {
		t.Errorf("%d failures, files %d", len(r.Failed), len(files))
	}
	for _, want := range []string{"workloads/daemonsets.yaml: connection refused", "nodes/a/cilium-a/status.txt: connection refused: daemon unreachable"} {
		if !strings.Contains(files["summary.txt"], want) {
			t.Errorf("the summary lacks %q:\n%s", want, files["summary.txt"])
		}
	}
	s.set.PrependReactor("list", "nodes", func(ktesting.Action) (bool, runtime.Object, error) { return true, nil, dead })
	var b bytes.Buffer
	if _, err := Run(t.Context(), &b, s.opts); !errors.Is(err, dead) || b.Len() > 0 {
		t.Errorf("a cluster that cannot be asked at all: %v, %d bytes", err, b.Len())
	}
}

func TestInterruptKeepsWhatIsThere(t *testing.T) {
	s := newScene(t, []runtime.Object{readyNode("a"), agent("a")})
	ctx, cancel := context.WithCancel(t.Context())
	s.opts.Exec = func(ctx context.Context, _, _, _ string, command ...string) ([]byte, []byte, error) {
		if slices.Contains(command, "audit") {
			cancel()
			<-ctx.Done()
			return nil, nil, ctx.Err()
		}
		return []byte("x"), nil, nil
	}
	files, _, r := s.take(t, ctx)
	if files["nodes/a/cilium-a/status.txt"] == "" || files["summary.txt"] == "" || !slices.ContainsFunc(r.Skipped, func(m Missing) bool { return m.Why == "interrupted" }) {
		t.Errorf("files %d, skipped %v", len(files), r.Skipped)
	}
}

// secretWords must never be in a sysdump.
var secretWords = []string{"hunter2hunter2", "c2VjcmV0ZGF0YQ==", "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhZG1pbiJ9.c2ln", "MIIEowIBAAKCAQEA"}

func TestSecretsStayInTheCluster(t *testing.T) {
	release, err := json.Marshal(map[string]any{
		"info": map[string]any{"status": "deployed"}, "manifest": "hunter2hunter2",
		"chart":  map[string]any{"metadata": map[string]any{"version": "0.1.0"}, "values": map[string]any{"x": "hunter2hunter2"}},
		"config": map[string]any{"MTU": 1400, "registry": map[string]any{"password": "hunter2hunter2"}, "extraEnv": []any{map[string]any{"name": "API_TOKEN", "value": "hunter2hunter2"}, map[string]any{"name": "LEVEL", "value": "visible"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(release)
	z.Close()
	helm := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "sh.helm.release.v1.cilium.v1", Namespace: "kube-system", Labels: map[string]string{"owner": "helm", "name": "cilium", "version": "1"}},
		Data:       map[string][]byte{"release": []byte(base64.StdEncoding.EncodeToString(packed.Bytes()))},
	}
	env := func(name string) map[string]any {
		return map[string]any{"spec": map[string]any{"containers": []any{map[string]any{"name": "c", "env": []any{map[string]any{"name": name, "value": "hunter2hunter2"}}}}}}
	}
	secret := object("Secret", "kube-system", "cilium-ca", map[string]any{"data": map[string]any{"ca.key": "c2VjcmV0ZGF0YQ=="}, "stringData": map[string]any{"x": "hunter2hunter2"}})
	config := object("ConfigMap", "kube-system", "cilium-config", map[string]any{"data": map[string]any{"debug": "false", "etcd-password": "hunter2hunter2"}})
	config.SetAnnotations(map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "hunter2hunter2", "mine": "stays"})
	helmObject := object("Secret", "kube-system", "sh.helm.release.v1.cilium.v1", map[string]any{"data": map[string]any{"release": "hunter2hunter2"}})
	helmObject.SetLabels(map[string]string{"owner": "helm"})
	s := newScene(t, []runtime.Object{readyNode("a"), agent("a"), helm},
		secret, config, helmObject, object("Pod", "shop", "web", env("HARMLESS_NAME")), object("Pod", "kube-system", "cilium-a", env("MY_SECRET")))
	s.opts.Exec = func(context.Context, string, string, string, ...string) ([]byte, []byte, error) {
		return []byte(`level=info token=hunter2hunter2 url=https://user:hunter2hunter2@registry.example/x
Authorization: Bearer hunter2hunter2
jwt eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhZG1pbiJ9.c2ln
-----BEGIN RSA PRIVATE KEY-----
MIIEowIBAAKCAQEA
-----END RSA PRIVATE KEY-----
{"password": "hunter2hunter2"} addr 10.0.0.1 stays`), nil, nil
	}
	files, _, r := s.take(t, t.Context())
	for name, text := range files {
		for _, w := range secretWords {
			if strings.Contains(text, w) {
				t.Errorf("%s holds %s:\n%s", name, w, text)
			}
		}
	}
	for file, want := range map[string]string{
		"nodes/a/cilium-a/status.txt": "addr 10.0.0.1 stays", "workloads/configmaps.yaml": "mine: stays", "workloads/secrets.yaml": "ca.key: redacted, 16 bytes",
		"cluster/pods.yaml": "name: HARMLESS_NAME", "helm.yaml": "MTU: 1400",
	} {
		if !strings.Contains(files[file], want) {
			t.Errorf("%s lacks %q:\n%s", file, want, files[file])
		}
	}
	var releases []map[string]any
	if err := yaml.Unmarshal([]byte(files["helm.yaml"]), &releases); err != nil || !strings.Contains(files["helm.yaml"], "visible") {
		t.Errorf("%v\n%s", err, files["helm.yaml"])
	}
	for _, kind := range []string{"data of Secrets", "environment variables", "values with a sensitive name", "private keys", "JSON web tokens", "bearer tokens", "credentials in URLs", "passwords in text"} {
		if r.Redacted[kind] == 0 || !strings.Contains(files["summary.txt"], kind+": ") {
			t.Errorf("the summary does not count %s: %v", kind, r.Redacted)
		}
	}
}

func TestWhatLooksLikeASecretAndIsNone(t *testing.T) {
	r := newRedactor()
	in := `{"tolerations":[{"key":"node.cilium.io/x","value":"y"}],"automountServiceAccountToken":"false","secretName":"cilium-ca","agentNotReadyTaintKey":"a/b","rules":[{"resources":["secrets","tokens"]}]}`
	var o map[string]any
	if err := json.Unmarshal([]byte(in), &o); err != nil {
		t.Fatal(err)
	}
	r.values(o)
	out, _ := json.Marshal(o)
	var again map[string]any
	_ = json.Unmarshal([]byte(in), &again)
	want, _ := json.Marshal(again)
	if !bytes.Equal(out, want) || len(r.counts()) > 0 {
		t.Errorf("redacted\n%s\nof\n%s", out, want)
	}
	text := "automountServiceAccountToken: false\nsecrets:\n- name: x\nresource secrets, tokens\n10.0.0.1:8080 -> 10.0.0.2:80 tcp SYN"
	if got := string(r.text([]byte(text))); got != text {
		t.Errorf("redacted %q", got)
	}
}
