// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/cmd/kube"
	"lash.internal/lash/status"
)

var updateStatus = flag.Bool("update-status", false, "rewrite the golden files of status and identity")

func statusGolden(t *testing.T, name, got string) {
	t.Helper()
	p := filepath.Join("testdata", name+".golden")
	if *updateStatus {
		if err := os.WriteFile(p, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (run with -update-status to accept):\n%s\nwant:\n%s", name, got, want)
	}
}

const image = "localhost/lash:0.1.0"

func agentPod(n int) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("cilium-%d", n), Namespace: "kube-system", Labels: map[string]string{"k8s-app": "cilium"}},
		Spec:       corev1.PodSpec{NodeName: fmt.Sprintf("node%d", n), HostNetwork: true, Containers: []corev1.Container{{Name: "cilium-agent", Image: image}}},
		Status: corev1.PodStatus{
			Phase:             corev1.PodRunning,
			Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "cilium-agent", Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}},
		},
	}
}

func daemonSet(ready int32) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "cilium", Namespace: "kube-system"},
		Status: appsv1.DaemonSetStatus{
			DesiredNumberScheduled: 3, UpdatedNumberScheduled: 3, NumberReady: ready, NumberAvailable: ready, NumberUnavailable: 3 - ready,
		},
	}
}

// release is a Helm release as Helm itself stores it: chart is NAME-VERSION.
func release(t *testing.T, chart, app string, revision int) *corev1.Secret {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	name, version, _ := strings.Cut(chart, "-")
	err := json.NewEncoder(z).Encode(map[string]any{
		"name": "cilium", "namespace": "kube-system", "version": revision,
		"info":  map[string]any{"status": "deployed", "last_deployed": "2026-01-02T03:04:05Z"},
		"chart": map[string]any{"metadata": map[string]any{"name": name, "version": version, "appVersion": app, "apiVersion": "v2"}},
	})
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("sh.helm.release.v1.cilium.v%d", revision), Namespace: "kube-system",
			Labels: map[string]string{"owner": "helm", "name": "cilium", "status": "deployed", "version": fmt.Sprint(revision)},
		},
		Type: "helm.sh/release.v1",
		Data: map[string][]byte{"release": []byte(base64.StdEncoding.EncodeToString(b.Bytes()))},
	}
}

// healthy is a cluster of three nodes and two pods of a user.
func healthy(t *testing.T) []runtime.Object {
	t.Helper()
	one := int32(1)
	op := agentPod(9)
	op.Name, op.Labels = "cilium-operator-0", map[string]string{"io.cilium/app": "operator", "name": "cilium-operator"}
	op.Spec.Containers[0].Name = "cilium-operator"
	op.Status.ContainerStatuses[0].Name = "cilium-operator"
	out := []runtime.Object{
		daemonSet(3), agentPod(1), agentPod(2), agentPod(3), op,
		&appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Name: "cilium-operator", Namespace: "kube-system"},
			Spec:       appsv1.DeploymentSpec{Replicas: &one},
			Status:     appsv1.DeploymentStatus{Replicas: 1, UpdatedReplicas: 1, ReadyReplicas: 1, AvailableReplicas: 1},
		},
		release(t, "lash-0.0.9", "1.16.5", 1), release(t, "lash-0.1.0", "1.16.5", 2),
	}
	for _, n := range []string{"a", "b"} {
		out = append(out, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: n, Namespace: "default"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}})
	}
	return out
}

func custom(kind, namespace, name string, more map[string]any) *unstructured.Unstructured {
	o := map[string]any{
		"apiVersion": "cilium.io/v2", "kind": kind,
		"metadata": map[string]any{"name": name},
	}
	if namespace != "" {
		o["metadata"].(map[string]any)["namespace"] = namespace
	}
	for k, v := range more {
		o[k] = v
	}
	return &unstructured.Unstructured{Object: o}
}

func dynamicClient(objs ...runtime.Object) dynamic.Interface {
	return dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		{Group: "cilium.io", Version: "v2", Resource: "ciliumendpoints"}:  "CiliumEndpointList",
		{Group: "cilium.io", Version: "v2", Resource: "ciliumidentities"}: "CiliumIdentityList",
	}, objs...)
}

// agents answers in-pod commands; change alters what one agent says of itself.
func agents(change func(pod string, st *api.StatusResponse)) status.Exec {
	return func(_ context.Context, _, pod, container string, command ...string) ([]byte, []byte, error) {
		if container != "cilium-agent" {
			return nil, nil, fmt.Errorf("wrong container %s", container)
		}
		var out any
		switch strings.Join(command, " ") {
		case "cilium status -o json --endpoints":
			st := &api.StatusResponse{
				Cilium:               &api.Status{State: api.StateOk, Msg: "1.16.5 (Lash 0.1.0)"},
				KubeProxyReplacement: &api.KubeProxyReplacement{Mode: "True"},
				IPAM:                 &api.IPAMStatus{Status: "IPv4: 3/254 allocated from 10.244.1.0/24, "},
				Controllers:          []api.Controller{{Name: "addresses"}},
			}
			if change != nil {
				change(pod, st)
			}
			if st.Cilium == nil {
				return nil, []byte("Error: cannot get agent status: daemon unreachable\n"), errors.New("command ended with code 1")
			}
			out = api.NodeReport{StatusResponse: *st, Endpoints: []api.Endpoint{{ID: 1, Status: &api.EndpointStatus{State: "ready"}}}}
		default:
			return nil, nil, fmt.Errorf("unknown command %q", command)
		}
		b, err := json.Marshal(out)
		return b, nil, err
	}
}

func collector(t *testing.T, objs []runtime.Object, exec status.Exec) *status.Collector {
	t.Helper()
	return &status.Collector{
		Client:    fake.NewClientset(objs...),
		Dynamic:   dynamicClient(custom("CiliumEndpoint", "default", "a", nil), custom("CiliumEndpoint", "default", "b", nil)),
		Exec:      exec,
		Namespace: "kube-system", Release: "cilium",
	}
}

func showStatus(f statusFlags, col *status.Collector) (out string, code int, err error) {
	var o, e bytes.Buffer
	w := World{Out: &o, Err: &e, Getenv: func(string) string { return "" }}
	err = runStatus(context.Background(), w, f, col, func(err error) error { return err })
	var ee *ExitError
	switch {
	case errors.As(err, &ee):
		code = ee.Code
	case err != nil:
		code = ExitFailed
	}
	return o.String(), code, err
}

func replace(objs []runtime.Object, p *corev1.Pod) []runtime.Object {
	for i, o := range objs {
		if x, ok := o.(*corev1.Pod); ok && x.Name == p.Name {
			objs[i] = p
		}
		if _, ok := o.(*appsv1.DaemonSet); ok {
			objs[i] = daemonSet(2)
		}
	}
	return objs
}

func TestStatusOfAHealthyCluster(t *testing.T) {
	out, code, err := showStatus(statusFlags{output: "summary"}, collector(t, healthy(t), agents(nil)))
	if code != ExitOK {
		t.Errorf("exit %d: %v", code, err)
	}
	statusGolden(t, "status", out)
	out, _, _ = showStatus(statusFlags{output: "summary", verbose: true}, collector(t, healthy(t), agents(kernelOf)))
	statusGolden(t, "status-verbose", out)
}

// kernelOf lets each agent tell another story of its node's kernel.
func kernelOf(pod string, st *api.StatusResponse) {
	st.AttachMode = "TCX"
	st.Cluster = &api.ClusterStatus{Self: "c/node" + pod[len(pod)-1:]}
	st.BPFMaps = &api.BPFMapStatus{Maps: []api.BPFMapSize{
		{Name: "addr", Type: "Hash", Size: 1000, Entries: 120},
		{Name: "ct4_new", Type: "LRUHash", Size: 1000, Entries: 1000},
		{Name: "slot", Type: "Array", Size: 65536, Entries: -1},
	}}
	st.Attachments = &api.AttachmentStatus{Generation: "8f3a1c2b4d5e6f70", Adopted: true, Devices: 3, Sockets: 1}
	st.Datapath = &api.DatapathStatus{
		MTU: &api.MTUStatus{Underlay: 1500, Pod: 1450},
		Attachments: []api.Attachment{
			{Device: "cilium_vxlan", Direction: "ingress", Program: "ov_from", State: api.AttachmentOK},
			{Device: "eth0", Direction: "ingress", Program: "nd_from", State: api.AttachmentOK},
			{Device: "lxc0123456789ab", Direction: "ingress", Owner: "default/a", Program: "pod_from", State: api.AttachmentOK},
			{Device: "/run/cilium/cgroupv2", Direction: "socket", Program: "connect4", State: api.AttachmentOK},
		},
	}
	st.DatapathProbe = &api.Status{State: api.StateOk, Msg: "IPv4 and IPv6, 12s ago"}
	switch pod {
	case "cilium-2":
		st.DatapathProbe = &api.Status{State: api.StateFailure, Msg: "failing since 2026-01-02T03:04:05Z: no answer from 10.244.1.253 over lxc_health"}
		st.Datapath.Drops = []api.DropCount{{Reason: "Invalid source ip", Direction: "egress", Packets: 12, Bytes: 1200}}
		st.Datapath.Attachments[1].Others = []string{"program 17 (tcx)"}
	case "cilium-3":
		st.Attachments.Adopted, st.Attachments.Repairs = false, 2
		st.Datapath.Attachments[1].State, st.Datapath.Attachments[1].Error = api.AttachmentBehind, "nd_from of generation 1111111111111111"
		st.Datapath.MTU = &api.MTUStatus{Underlay: 9000, Pod: 9000}
		st.Datapath.Attachments[2].State = api.AttachmentMissing
		st.Datapath.Attachments[0].State, st.Datapath.Attachments[0].Error = api.AttachmentUnknown, "programs on if9/in: operation not permitted"
		st.BPFMaps.Maps[0].Entries = 930
	}
}

func TestStatusNamesWhatIsWrongInTheKernel(t *testing.T) {
	out, code, _ := showStatus(statusFlags{output: "summary"}, collector(t, healthy(t), agents(kernelOf)))
	if code != ExitFailed {
		t.Errorf("exit %d", code)
	}
	for _, want := range []string{
		"no program on lxc0123456789ab ingress, pod_from belongs there", "the agent puts it back within seconds; if it does not: kubectl -n kube-system delete pod cilium-3",
		"map addr is 93 % full: 930 of 1000 entries", "2 errors, 1 warnings",
		"cilium-2    datapath probe: failing since 2026-01-02T03:04:05Z: no answer from 10.244.1.253 over lxc_health",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
}

func TestStatusJSONHasTheKeysThatScriptsRead(t *testing.T) {
	out, code, _ := showStatus(statusFlags{output: "json"}, collector(t, healthy(t), agents(nil)))
	var s struct {
		ImageCount map[string]map[string]int            `json:"image_count"`
		PhaseCount map[string]map[string]int            `json:"phase_count"`
		PodState   map[string]struct{ Desired int }     `json:"pod_state"`
		PodsCount  struct{ All, ByCilium int }          `json:"pods_count"`
		Cilium     map[string]api.StatusResponse        `json:"cilium_status"`
		Endpoints  map[string][]api.Endpoint            `json:"cilium_endpoints"`
		Chart      string                               `json:"helm_chart_version"`
		Errors     map[string]map[string]map[string]any `json:"errors"`
		Code       int                                  `json:"code"`
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil || code != ExitOK {
		t.Fatalf("exit %d, %v:\n%s", code, err, out)
	}
	if s.ImageCount["cilium"][image] != 3 || s.PhaseCount["cilium-operator"]["Running"] != 1 || s.PodState["cilium"].Desired != 3 ||
		s.PodsCount.All != 2 || len(s.Cilium) != 3 || len(s.Endpoints) != 3 || s.Chart != "0.1.0" ||
		s.Errors["hubble-relay"]["hubble-relay"]["Disabled"] != true {
		t.Errorf("got\n%s", out)
	}
	statusGolden(t, "status-json", out)
}

// TestStatusJSONCarriesTheCode of what it shows, also when that is bad.
func TestStatusJSONCarriesTheCode(t *testing.T) {
	out, code, _ := showStatus(statusFlags{output: "json"}, collector(t, nil, agents(nil)))
	var s struct {
		Code   int
		Errors map[string]map[string]struct{ Errors []status.Problem }
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil || code != ExitFailed || s.Code != code || s.Errors["cilium"]["cilium"].Errors[0].Next != "lash install" {
		t.Errorf("exit %d, %v:\n%s", code, err, out)
	}
}

// TestStatusWaitsUntilAllIsWell: red, then a warning, then green; the answer comes with green, or
// with the warning when those are ignored.
func TestStatusWaitsUntilAllIsWell(t *testing.T) {
	for ignore, want := range map[bool]time.Duration{false: 4 * time.Second, true: 2 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			col := collector(t, healthy(t), agents(func(pod string, st *api.StatusResponse) {
				switch age := time.Since(start); {
				case age < 2*time.Second:
					st.Cilium.State = api.StateFailure
				case age < 4*time.Second:
					st.Cilium.State = api.StateWarning
				}
			}))
			out, code, err := showStatus(statusFlags{output: "summary", wait: true, waitDuration: time.Minute, ignoreWarnings: ignore}, col)
			if took := time.Since(start); code != ExitOK || took != want {
				t.Errorf("ignore %v: exit %d after %s, %v:\n%s", ignore, code, took, err, out)
			}
			if n := strings.Count(out, "Cluster Pods:"); n != 1 {
				t.Errorf("the state is shown %d times", n)
			}
		})
	}
}

// TestStatusWarningsAreNoFailure: they are shown, and the code is 0.
func TestStatusWarningsAreNoFailure(t *testing.T) {
	out, code, _ := showStatus(statusFlags{output: "summary"}, collector(t, healthy(t), agents(func(_ string, st *api.StatusResponse) { st.Cilium.State = api.StateWarning })))
	if code != ExitOK || !strings.Contains(out, "Cilium:             3 warnings") {
		t.Errorf("exit %d:\n%s", code, out)
	}
}

func TestStatusNamesTheCause(t *testing.T) {
	waiting := func(reason, message string) *corev1.Pod {
		p := agentPod(2)
		p.Status.Phase = corev1.PodPending
		p.Status.Conditions[0].Status = corev1.ConditionFalse
		p.Status.ContainerStatuses[0] = corev1.ContainerStatus{
			Name: "cilium-agent", Image: "localhost/lash:broken", RestartCount: 7,
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}},
		}
		return p
	}
	crash := waiting("CrashLoopBackOff", "back-off 5m0s restarting failed container")
	crash.Status.Phase = corev1.PodRunning
	pending := agentPod(2)
	pending.Spec.NodeName = ""
	pending.Status = corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/3 nodes are available: 3 Insufficient cpu."},
	}}
	unmanaged := append(healthy(t), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "c", Namespace: "default"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}})
	for name, c := range map[string]struct {
		objs   []runtime.Object
		exec   status.Exec
		code   int
		refuse map[string]error // lists that fail
	}{
		"unmanaged-pods": {objs: unmanaged, exec: agents(nil)},
		"no-kinds": {objs: healthy(t), exec: agents(nil), refuse: map[string]error{
			"ciliumendpoints": apierrors.NewNotFound(schema.GroupResource{Group: "cilium.io", Resource: "ciliumendpoints"}, ""),
		}},
		"no-permission": {objs: healthy(t), exec: agents(nil), code: ExitFailed, refuse: map[string]error{
			"ciliumendpoints": apierrors.NewForbidden(schema.GroupResource{Group: "cilium.io", Resource: "ciliumendpoints"}, "", errors.New("no role")),
			"secrets":         apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "", errors.New("no role")),
		}},
		"image-broken":  {objs: replace(healthy(t), waiting("ImagePullBackOff", `Back-off pulling image "localhost/lash:broken"`)), exec: agents(nil), code: ExitFailed},
		"crash-loop":    {objs: replace(healthy(t), crash), exec: agents(nil), code: ExitFailed},
		"unschedulable": {objs: replace(healthy(t), pending), exec: agents(nil), code: ExitFailed},
		"not-installed": {exec: agents(nil), code: ExitFailed},
		"policies":      {objs: append(healthy(t), &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "deny", Namespace: "default"}}), exec: agents(nil)},
		"agent-failing": {objs: healthy(t), exec: agents(func(pod string, st *api.StatusResponse) {
			switch pod {
			case "cilium-1":
				st.Controllers[0].Status = api.ControllerStatus{ConsecutiveFailureCount: 3, LastFailureMsg: "no such device"}
			case "cilium-2":
				st.Cilium = nil
			case "cilium-3":
				st.Kubernetes = &api.K8sStatus{State: api.StateFailure, Msg: "connection refused"}
			}
		}), code: ExitFailed},
	} {
		t.Run(name, func(t *testing.T) {
			col := collector(t, c.objs, c.exec)
			for r, err := range c.refuse {
				fail := func(ktesting.Action) (bool, runtime.Object, error) { return true, nil, err }
				col.Client.(*fake.Clientset).PrependReactor("list", r, fail)
				col.Dynamic.(*dynamicfake.FakeDynamicClient).PrependReactor("list", r, fail)
			}
			out, code, err := showStatus(statusFlags{output: "summary"}, col)
			if code != c.code {
				t.Errorf("exit %d, want %d: %v", code, c.code, err)
			}
			statusGolden(t, "status-"+name, out)
		})
	}
}

func TestStatusWaitRunsOutWithTheLastState(t *testing.T) {
	f := statusFlags{output: "summary", wait: true, waitDuration: 20 * time.Millisecond, interactive: true}
	out, code, err := showStatus(f, collector(t, nil, agents(nil)))
	if code != ExitTimeout || !errors.Is(err, kube.ErrTimeout) || !strings.Contains(out, "does not exist in namespace kube-system") {
		t.Errorf("exit %d, %v:\n%s", code, err, out)
	}
	policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "deny", Namespace: "default"}}
	if _, code, _ := showStatus(f, collector(t, append(healthy(t), policy), agents(nil))); code != ExitTimeout {
		t.Errorf("with a warning: exit %d, want %d", code, ExitTimeout)
	}
	f.ignoreWarnings = true
	if _, code, err := showStatus(f, collector(t, append(healthy(t), policy), agents(nil))); code != ExitOK {
		t.Errorf("warnings ignored: exit %d, %v", code, err)
	}
}

func TestIdentityList(t *testing.T) {
	labels := map[string]any{
		"k8s:app": "backend1", "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name": "default",
		"k8s:io.cilium.k8s.policy.cluster": "kubernetes", "k8s:io.cilium.k8s.policy.serviceaccount": "default",
		"k8s:io.kubernetes.pod.namespace": "default",
	}
	c := dynamicClient(
		custom("CiliumIdentity", "", "6040", map[string]any{"security-labels": labels}),
		custom("CiliumIdentity", "", "1419", map[string]any{"security-labels": map[string]any{"k8s:app": "database"}}),
	)
	for name, sel := range map[string]string{"identity-list": "", "identity-selected": "k8s:app in (backend1)"} {
		s, err := parseSelector(sel)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := listIdentities(context.Background(), &b, c, s, "table", false, func(err error) error { return err }); err != nil {
			t.Fatal(err)
		}
		statusGolden(t, name, b.String())
	}
	if _, err := parseSelector("app=="); err == nil {
		_, err = parseSelector("a=(")
		if err == nil {
			t.Error("a broken selector was accepted")
		}
	}
	id, err := status.Identity(context.Background(), c, 1419)
	if err != nil || len(id.Labels) != 1 || id.LabelsSHA256 == "" {
		t.Errorf("identity 1419: %+v, %v", id, err)
	}
	if _, err := status.Identity(context.Background(), c, 4711); !errors.Is(err, status.ErrNoIdentity) {
		t.Errorf("identity 4711: %v", err)
	}
}
