// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v3/pkg/release"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	fakediscovery "k8s.io/client-go/discovery/fake"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"

	"lash.internal/lash/agent/api"
)

// scene is a cluster of two nodes in which Lash has run, and what its pods on nodes do.
type scene struct {
	installed
	said    []string
	outputs map[string]string // by node: what pods on it write; "!text" is a failure
	specs   map[string]corev1.PodSpec
}

var serviceAccounts = schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}

func newScene(t *testing.T, revisions ...past) *scene {
	t.Helper()
	ctx := context.Background()
	s := &scene{installed: with(t, revisions...), outputs: map[string]string{}, specs: map[string]corev1.PodSpec{}}
	set := s.c.Clientset.(*fake.Clientset)
	n2 := node("n2", "172.16.0.2")
	n2.Spec.Taints = []corev1.Taint{{Key: "node.cilium.io/agent-not-ready", Effect: corev1.TaintEffectNoSchedule}, {Key: "mine", Effect: corev1.TaintEffectNoSchedule}}
	n2.Status.Conditions = []corev1.NodeCondition{
		{Type: corev1.NodeReady, Status: corev1.ConditionFalse},
		{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: "CiliumIsUp"},
	}
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(set.CoreV1().Nodes().Create(ctx, n2, metav1.CreateOptions{}))
	for i, label := range []string{"k8s-app=cilium", "k8s-app=cilium", "io.cilium/app=operator"} {
		k, v, _ := strings.Cut(label, "=")
		must(set.CoreV1().Pods("kube-system").Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("own-%d", i), Namespace: "kube-system", Labels: map[string]string{k: v}},
			Spec:       corev1.PodSpec{NodeName: fmt.Sprintf("n%d", i%2+1)},
		}, metav1.CreateOptions{}))
	}
	for _, name := range []string{api.OperatorLease, "others"} {
		must(set.CoordinationV1().Leases("kube-system").Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "kube-system"}}, metav1.CreateOptions{}))
	}
	set.Discovery().(*fakediscovery.FakeDiscovery).Resources = []*metav1.APIResourceList{{
		GroupVersion: "v1", APIResources: []metav1.APIResource{
			{Name: "serviceaccounts", Kind: "ServiceAccount", Namespaced: true, Verbs: metav1.Verbs{"list", "get"}},
			{Name: "bindings", Kind: "Binding", Namespaced: true, Verbs: metav1.Verbs{"create"}},
		},
	}}
	object := func(version, kind, namespace, name string, labels map[string]string) *unstructured.Unstructured {
		u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": version, "kind": kind}}
		u.SetName(name)
		u.SetNamespace(namespace)
		u.SetLabels(labels)
		return u
	}
	objects := []runtime.Object{
		object("cilium.io/v2", "CiliumEndpoint", "default", "a", nil), object("cilium.io/v2", "CiliumEndpoint", "shop", "b", nil),
		object("cilium.io/v2", "CiliumIdentity", "", "4711", nil), object("cilium.io/v2", "CiliumNode", "", "n1", nil),
		object("v1", "ServiceAccount", "kube-system", "theirs", map[string]string{"helm.sh/chart": "other-1.0"}),
	}
	for _, name := range api.CustomResources {
		objects = append(objects, object("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", name+".cilium.io", nil))
	}
	objects = append(objects, object("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", "ciliumnetworkpolicies.cilium.io", nil))
	s.c.Dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		ciliumResource("ciliumendpoints"): "CiliumEndpointList", ciliumResource("ciliumidentities"): "CiliumIdentityList",
		ciliumResource("ciliumnodes"): "CiliumNodeList", definitionsResource: "CustomResourceDefinitionList", serviceAccounts: "ServiceAccountList",
	}, objects...)
	return s
}

// pods plays the kubelet: pods on nodes end with what outputs say, those of the chart go with it.
func (s *scene) pods() NodePods {
	api := s.c.Clientset.CoreV1().Pods("kube-system")
	return NodePods{
		Cluster: s.c, Say: func(f string, a ...any) { s.said = append(s.said, fmt.Sprintf(f, a...)) },
		Logs: func(ctx context.Context, _, pod, _ string) ([]byte, error) {
			p, err := api.Get(ctx, pod, metav1.GetOptions{})
			if err != nil {
				return nil, err
			}
			return []byte(s.outputs[p.Spec.NodeName]), nil
		},
		WaitPods: func(ctx context.Context, _, selector string, cond func([]corev1.Pod) (bool, string)) error {
			l, err := api.List(ctx, metav1.ListOptions{LabelSelector: selector})
			if err != nil {
				return err
			}
			for i := range l.Items {
				p := &l.Items[i]
				if strings.HasPrefix(p.Name, "own-") {
					if err := api.Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil {
						return err
					}
					continue
				}
				s.specs[p.Spec.NodeName] = p.Spec
				p.Status.Phase = corev1.PodSucceeded
				switch out := s.outputs[p.Spec.NodeName]; {
				case out == "?":
					p.Status.Phase = corev1.PodPending
					p.Status.ContainerStatuses = []corev1.ContainerStatus{{Image: "i", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImageNeverPull", Message: "not there"}}}}
				case strings.HasPrefix(out, "!"):
					p.Status.Phase = corev1.PodFailed
					p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Message: out[1:]}}}}
				}
				if _, err := api.UpdateStatus(ctx, p, metav1.UpdateOptions{}); err != nil {
					return err
				}
			}
			if l, err = api.List(ctx, metav1.ListOptions{LabelSelector: selector}); err != nil {
				return err
			}
			if ok, state := cond(l.Items); !ok {
				return errors.New("timed out: " + state)
			}
			return nil
		},
	}
}

func (s *scene) uninstall(change func(*Removal)) (kept []string, err error) {
	r := &Removal{NodePods: s.pods(), Clean: true, KeepCRDs: true, Timeout: time.Minute}
	if change != nil {
		change(r)
	}
	return r.Run(context.Background())
}

// left lists the objects of ours and of others that are still there.
func (s *scene) left() []string {
	s.t.Helper()
	ctx := context.Background()
	var out []string
	for r := range map[schema.GroupVersionResource]bool{
		ciliumResource("ciliumendpoints"): true, ciliumResource("ciliumidentities"): true, ciliumResource("ciliumnodes"): true, definitionsResource: true,
	} {
		l, err := s.c.Dynamic.Resource(r).List(ctx, metav1.ListOptions{})
		if err != nil {
			s.t.Fatal(err)
		}
		for i := range l.Items {
			out = append(out, l.Items[i].GetKind()+" "+l.Items[i].GetName())
		}
	}
	leases, _ := s.c.Clientset.CoordinationV1().Leases("").List(ctx, metav1.ListOptions{})
	for i := range leases.Items {
		out = append(out, "Lease "+leases.Items[i].Name)
	}
	secrets, _ := s.c.Clientset.CoreV1().Secrets("").List(ctx, metav1.ListOptions{})
	for i := range secrets.Items {
		out = append(out, "Secret "+secrets.Items[i].Name)
	}
	pods, _ := s.c.Clientset.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	for i := range pods.Items {
		out = append(out, "Pod "+pods.Items[i].Name)
	}
	nodes, _ := s.c.Clientset.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	for i := range nodes.Items {
		for _, t := range nodes.Items[i].Spec.Taints {
			out = append(out, "taint "+t.Key)
		}
		for _, c := range nodes.Items[i].Status.Conditions {
			out = append(out, "condition "+string(c.Type))
		}
	}
	slices.Sort(out)
	return out
}

func TestUninstallTakesEverythingAway(t *testing.T) {
	s := newScene(t, past{"{bpf: {root: /bpf}, daemon: {runPath: /var/run/net}}", release.StatusDeployed})
	before := false
	s.outputs["n1"] = "unmounted\nkept: /bpf\n"
	kept, err := s.uninstall(func(r *Removal) { r.Before = func(context.Context) error { before = true; return nil } })
	if err != nil {
		t.Fatal(err)
	}
	if !before {
		t.Error("what comes before the removal did not run")
	}
	want := []string{
		"CustomResourceDefinition ciliumendpoints.cilium.io", "CustomResourceDefinition ciliumidentities.cilium.io", "CustomResourceDefinition ciliumnetworkpolicies.cilium.io",
		"CustomResourceDefinition ciliumnodes.cilium.io", "Lease others", "condition Ready", "taint mine",
	}
	if got := s.left(); !slices.Equal(got, want) {
		t.Errorf("left\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	wantKept := []string{
		"mount /bpf on node n1, which others use by now", "custom resource definition ciliumendpoints.cilium.io", "custom resource definition ciliumidentities.cilium.io",
		"custom resource definition ciliumnodes.cilium.io", "image " + ownImage + " on the nodes, until a kubelet needs the room",
	}
	if !slices.Equal(kept, wantKept) {
		t.Errorf("kept %q", kept)
	}
	if want := []string{"⌛ Uninstalling Cilium", "✅ Cleaned 2 nodes"}; !slices.Equal(s.said, want) {
		t.Errorf("said %q", s.said)
	}
	spec := s.specs["n2"]
	clean, leave := spec.InitContainers[0], spec.Containers[0]
	if !slices.Contains(clean.Command, "/bpf") || !slices.Contains(leave.Command, "/var/run/net") || clean.Image != ownImage {
		t.Errorf("the cleaner does not know where things are: %v %v", clean.Command, leave.Command)
	}
	if p := clean.SecurityContext; p.Privileged != nil || !slices.Equal(p.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(p.Capabilities.Add) != 2 {
		t.Errorf("rights of the cleaner: %+v", p)
	}
	if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
		t.Error("a pod on a node gets a token of the API server")
	}
}

func TestUninstallRemovesDefinitionsWhenAsked(t *testing.T) {
	s := newScene(t, past{"{bpf: {autoMount: {enabled: false}}, cgroup: {autoMount: {enabled: false}}}", release.StatusDeployed})
	kept, err := s.uninstall(func(r *Removal) { r.KeepCRDs = false })
	if err != nil {
		t.Fatal(err)
	}
	if got := s.left(); slices.Contains(got, "CustomResourceDefinition ciliumnodes.cilium.io") || !slices.Contains(got, "CustomResourceDefinition ciliumnetworkpolicies.cilium.io") {
		t.Errorf("left %q", got)
	}
	if len(kept) != 1 {
		t.Errorf("kept %q", kept)
	}
	if p := s.specs["n1"].Containers[0].SecurityContext.Privileged; p != nil && *p {
		t.Error("the cleaner is privileged although nothing can have been mounted")
	}
}

func TestUninstallRefuses(t *testing.T) {
	s := newScene(t)
	if _, err := s.uninstall(nil); !errors.Is(err, ErrNotInstalled) || !strings.Contains(err.Error(), "--force") {
		t.Errorf("without a release: %v", err)
	}
	if got := s.left(); !slices.Contains(got, "CiliumNode n1") {
		t.Error("something was removed nevertheless")
	}
	ds := daemonSet("cilium")
	if _, err := s.c.Clientset.AppsV1().DaemonSets("kube-system").Create(context.Background(), ds, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.uninstall(func(r *Removal) { r.Force = true }); !errors.Is(err, ErrForeign) {
		t.Errorf("a Cilium of others, with force: %v", err)
	}
}

func TestUninstallNamesTheNodeThatCouldNotBeCleaned(t *testing.T) {
	s := newScene(t, past{"{}", release.StatusDeployed})
	s.outputs["n2"] = "!unmount /sys/fs/bpf: device or resource busy"
	_, err := s.uninstall(nil)
	if err == nil || !strings.Contains(err.Error(), "n2: unmount /sys/fs/bpf: device or resource busy; try again with `lash uninstall --force`") {
		t.Errorf("got %v", err)
	}
	if slices.ContainsFunc(s.left(), func(l string) bool { return strings.HasPrefix(l, "Pod ") }) {
		t.Error("pods on nodes are left")
	}
	// The second try, without a release.
	delete(s.outputs, "n2")
	if _, err = s.uninstall(func(r *Removal) { r.Force = true }); err != nil {
		t.Error(err)
	}
	if got := s.left(); slices.Contains(got, "CiliumNode n1") || slices.Contains(got, "Lease "+api.OperatorLease) {
		t.Errorf("left %q", got)
	}
	s.outputs["n1"] = "?"
	if _, err = s.uninstall(func(r *Removal) { r.Force = true }); err == nil || !strings.Contains(err.Error(), "n1: the pod did not start: ErrImageNeverPull, image i: not there") {
		t.Errorf("an image that is not there: %v", err)
	}
}

func TestWithoutWaitOnlyTheReleaseGoes(t *testing.T) {
	s := newScene(t, past{"{}", release.StatusDeployed})
	if kept, err := s.uninstall(func(r *Removal) { r.Clean = false }); err != nil || kept != nil {
		t.Errorf("%v, %v", kept, err)
	}
	if got := s.left(); !slices.Contains(got, "CiliumNode n1") || slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, "Secret ") }) {
		t.Errorf("left %q", got)
	}
}

func TestVerify(t *testing.T) {
	ctx := context.Background()
	s := newScene(t)
	lost := node("n3", "172.16.0.3")
	lost.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}}
	if _, err := s.c.Clientset.CoreV1().Nodes().Create(ctx, lost, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	sa := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ServiceAccount"}}
	sa.SetName("cilium")
	sa.SetNamespace("kube-system")
	sa.SetLabels(map[string]string{"helm.sh/chart": "lash-0.1.0"})
	if _, err := s.c.Dynamic.Resource(serviceAccounts).Namespace("kube-system").Create(ctx, sa, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.outputs["n1"] = `{"items":[{"kind":"device","name":"cilium_host","ours":"a device of Lash"},{"kind":"device","name":"eth0"}]}`
	s.outputs["n2"] = `{"items":[],"problems":["routes: operation not permitted"]}`
	v, err := (&Verification{NodePods: s.pods()}).Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range v.API {
		got = append(got, x.Kind+" "+x.Name+": "+x.Ours)
	}
	want := []string{
		"CiliumEndpoint default/a: written by an agent", "CiliumEndpoint shop/b: written by an agent", "CiliumIdentity 4711: written by an agent",
		"CiliumNode n1: written by an agent", "Lease kube-system/cilium-operator-resource-lock: held by the operator",
		"Node n2: condition NetworkUnavailable with reason CiliumIsUp", "Node n2: taint node.cilium.io/agent-not-ready",
		"Pod kube-system/own-0: an agent or an operator", "Pod kube-system/own-1: an agent or an operator", "Pod kube-system/own-2: an agent or an operator",
		"ServiceAccount kube-system/cilium: made by the chart",
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("API:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(v.Nodes["n1"]) != 1 || v.Nodes["n1"][0].Name != "cilium_host" || len(v.Nodes["n2"]) != 0 || len(v.Kept) != 3 {
		t.Errorf("nodes %v, kept %v", v.Nodes, v.Kept)
	}
	wantFailed := map[string]string{"node n3": "its kubelet does not answer", "node n2, routes": "operation not permitted"}
	if fmt.Sprint(v.Failed) != fmt.Sprint(wantFailed) || v.Clean() {
		t.Errorf("failed %v", v.Failed)
	}
	spec := s.specs["n1"]
	look := spec.Containers[0]
	if m := look.VolumeMounts; len(m) != 1 || !m[0].ReadOnly || look.SecurityContext.Privileged != nil || len(spec.InitContainers) > 0 {
		t.Errorf("the auditor may write: %+v", look)
	}
	// After a removal there is nothing but what is kept.
	if _, err := s.uninstall(func(r *Removal) { r.Force = true }); err != nil {
		t.Fatal(err)
	}
	if err := s.c.Dynamic.Resource(serviceAccounts).Namespace("kube-system").Delete(ctx, "cilium", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.c.Clientset.CoreV1().Nodes().Delete(ctx, "n3", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.outputs = map[string]string{"n1": `{"items":[]}`, "n2": `{"items":[]}`}
	if v, err = (&Verification{NodePods: s.pods()}).Run(ctx); err != nil || !v.Clean() || len(v.Kept) != 3 {
		t.Errorf("after the removal: %+v, %v", v, err)
	}
	s.outputs["n1"] = "!no such command audit"
	if v, err = (&Verification{NodePods: s.pods()}).Run(ctx); err != nil || v.Clean() || v.Failed["node n1"] != "no such command audit" {
		t.Errorf("a node that could not be looked at: %+v, %v", v, err)
	}
}
