// SPDX-License-Identifier: Apache-2.0

package status

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"lash.internal/lash/agent/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const image = "localhost/lash:0.1.0"

// world is a cluster as `lash status` sees it; tests break it.
type world struct {
	client  *fake.Clientset
	dynamic *dynamicfake.FakeDynamicClient
	exec    Exec
	release string
}

func podOf(workload string, n int) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", workload, n), Namespace: "kube-system"},
		Spec:       corev1.PodSpec{NodeName: fmt.Sprintf("node%d", n), HostNetwork: true},
	}
	container := "cilium-operator"
	p.Labels = map[string]string{"io.cilium/app": "operator", "name": "cilium-operator"}
	if workload == Agent {
		container = agentContainer
		p.Labels = map[string]string{"k8s-app": "cilium"}
	}
	p.Spec.Containers = []corev1.Container{{Name: container, Image: image}}
	p.Status = corev1.PodStatus{
		Phase:             corev1.PodRunning,
		Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		ContainerStatuses: []corev1.ContainerStatus{{Name: container, Image: image, Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}},
	}
	return p
}

func userPod(name string, phase corev1.PodPhase, hostNetwork bool) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec:       corev1.PodSpec{HostNetwork: hostNetwork}, Status: corev1.PodStatus{Phase: phase},
	}
}

func agents(n, ready int32) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: Agent, Namespace: "kube-system", Generation: 2},
		Status: appsv1.DaemonSetStatus{
			ObservedGeneration: 2, DesiredNumberScheduled: n, UpdatedNumberScheduled: n, NumberReady: ready, NumberAvailable: ready, NumberUnavailable: n - ready,
		},
	}
}

func operatorOf(replicas, ready int32) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: Operator, Namespace: "kube-system"},
		Spec:       appsv1.DeploymentSpec{Replicas: &replicas},
		Status:     appsv1.DeploymentStatus{UpdatedReplicas: replicas, ReadyReplicas: ready, AvailableReplicas: ready, UnavailableReplicas: replicas - ready},
	}
}

func releaseSecret(revision int, version string) *corev1.Secret {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	fmt.Fprintf(z, `{"chart":{"metadata":{"name":"lash","version":%q,"appVersion":"1.16.5"}}}`, version)
	z.Close()
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("r", revision), Namespace: "kube-system", Labels: map[string]string{"owner": "helm", "name": "cilium", "version": fmt.Sprint(revision)}},
		Data:       map[string][]byte{"release": []byte(base64.StdEncoding.EncodeToString(b.Bytes()))},
	}
}

func custom(kind, namespace, name string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{}}
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: "cilium.io", Version: "v2", Kind: kind})
	u.SetNamespace(namespace)
	u.SetName(name)
	return u
}

// good is a cluster of two nodes where all is well, but for what replace puts in place of its
// objects (by kind and name).
func good(replace ...runtime.Object) *world {
	objs := []runtime.Object{
		agents(2, 2), podOf(Agent, 1), podOf(Agent, 2), operatorOf(1, 1), podOf(Operator, 1), releaseSecret(1, "0.0.9"), releaseSecret(2, "0.1.0"),
		userPod("a", corev1.PodRunning, false), userPod("b", corev1.PodPending, false), userPod("done", corev1.PodSucceeded, false), userPod("host", corev1.PodRunning, true),
	}
	key := func(o runtime.Object) string {
		m, _ := o.(metav1.Object)
		return fmt.Sprintf("%T %s/%s", o, m.GetNamespace(), m.GetName())
	}
	for _, r := range replace {
		objs = slices.DeleteFunc(objs, func(o runtime.Object) bool { return key(o) == key(r) })
		objs = append(objs, r)
	}
	w := &world{release: "cilium", exec: answers(nil)}
	w.client = fake.NewClientset(objs...)
	w.dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		endpointsResource: "CiliumEndpointList", identitiesResource: "CiliumIdentityList",
	}, custom("CiliumEndpoint", "default", "a"), custom("CiliumEndpoint", "default", "b"))
	return w
}

// refuse makes the API server answer a list with err.
func (w *world) refuse(resource string, err error) {
	r := func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, err }
	w.client.PrependReactor("list", resource, r)
	w.dynamic.PrependReactor("list", resource, r)
}

// answers is the command in the agents' pods; change alters what one of them says.
func answers(change func(pod string, r *api.NodeReport) error) Exec {
	return func(_ context.Context, _, pod, container string, command ...string) ([]byte, []byte, error) {
		if got := container + " " + strings.Join(command, " "); got != "cilium-agent cilium status -o json --endpoints" {
			return nil, nil, fmt.Errorf("unexpected: %s", got)
		}
		r := api.NodeReport{
			StatusResponse: api.StatusResponse{Cilium: &api.Status{State: api.StateOk}, Controllers: []api.Controller{{Name: "paths/addr"}}},
			Endpoints:      []api.Endpoint{{ID: 1, Status: &api.EndpointStatus{State: "ready"}}},
		}
		var err error
		if change != nil {
			err = change(pod, &r)
		}
		if err != nil {
			return nil, []byte("some noise\nError: " + err.Error() + "\n"), errors.New("command ended with code 1")
		}
		b, err := json.Marshal(r)
		return b, nil, err
	}
}

func (w *world) collect(t *testing.T) *Status {
	t.Helper()
	s, err := w.try(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *world) try(ctx context.Context) (*Status, error) {
	c := &Collector{Client: w.client, Dynamic: w.dynamic, Exec: w.exec, Namespace: "kube-system", Release: w.release}
	return c.Collect(ctx)
}

// told lists every problem as "workload/pod: kind: message | evidence | next".
func told(s *Status) []string {
	var out []string
	for _, w := range slices.Sorted(maps.Keys(s.Errors)) {
		for _, pod := range slices.Sorted(maps.Keys(s.Errors[w])) {
			p := s.Errors[w][pod]
			for _, e := range p.Errors {
				out = append(out, fmt.Sprintf("%s/%s: error: %s | %s | %s", w, pod, e.Message, e.Evidence, e.Next))
			}
			for _, e := range p.Warnings {
				out = append(out, fmt.Sprintf("%s/%s: warning: %s | %s | %s", w, pod, e.Message, e.Evidence, e.Next))
			}
		}
	}
	return append(out, s.CollectionErrors...)
}

func TestGreen(t *testing.T) {
	s := good().collect(t)
	if got := told(s); len(got) > 0 || s.Code != 0 || !s.OK(true) {
		t.Errorf("code %d, %v", s.Code, got)
	}
	if want := (PodState{Type: "DaemonSet", Desired: 2, Ready: 2, Available: 2}); s.PodState[Agent] != want {
		t.Errorf("agents %+v", s.PodState[Agent])
	}
	if want := (PodState{Type: "Deployment", Desired: 1, Ready: 1, Available: 1}); s.PodState[Operator] != want {
		t.Errorf("operator %+v", s.PodState[Operator])
	}
	// Pods of the host's network and those that have ended need no network.
	if want := (PodsCount{All: 2, ByCilium: 2}); s.PodsCount != want {
		t.Errorf("pods %+v", s.PodsCount)
	}
	if s.ImageCount[Agent][image] != 2 || s.PhaseCount[Operator]["Running"] != 1 || s.HelmChartVersion != "0.1.0" || s.AppVersion != "1.16.5" {
		t.Errorf("%+v %+v %s %s", s.ImageCount, s.PhaseCount, s.HelmChartVersion, s.AppVersion)
	}
	if len(s.CiliumStatus) != 2 || len(s.CiliumEndpoints) != 2 {
		t.Errorf("%d agents answered, %d told of endpoints", len(s.CiliumStatus), len(s.CiliumEndpoints))
	}
	for _, name := range []string{Envoy, Relay, UI, ClusterMesh} {
		if !s.Errors[name][name].Disabled {
			t.Errorf("%s is not shown as disabled", name)
		}
	}
}

// TestNewerNamesCount: pods are found by either of the labels that they have had over time.
func TestNewerNamesCount(t *testing.T) {
	p := podOf(Operator, 1)
	delete(p.Labels, "io.cilium/app")
	if s := good(p).collect(t); s.PhaseCount[Operator]["Running"] != 1 {
		t.Errorf("%+v", s.PhaseCount)
	}
}

// broken is an agent's pod in a state.
func broken(change func(*corev1.Pod)) []runtime.Object {
	p := podOf(Agent, 2)
	p.Status.Conditions[0].Status = corev1.ConditionFalse
	p.Status.ContainerStatuses[0].Ready = false
	change(p)
	return []runtime.Object{p, agents(2, 1)}
}

func waiting(reason, message string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodPending
		p.Status.ContainerStatuses[0].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	}
}

// TestRedNamesTheCause: what is wrong, what shows it, what to do.
func TestRedNamesTheCause(t *testing.T) {
	notReady := "cilium/cilium: error: 1 pods of DaemonSet cilium are not ready |  | kubectl -n kube-system rollout status daemonset/cilium"
	describe := "kubectl -n kube-system describe pod cilium-2"
	pull := "put the image on the nodes or where they can pull it from, then look with `" + describe + "`"
	for name, c := range map[string]struct {
		objs []runtime.Object
		want []string
	}{
		"image that nobody has": {
			broken(waiting("ImagePullBackOff", `Back-off pulling image "localhost/none:0"`)),
			[]string{notReady, `cilium/cilium-2: error: container cilium-agent: ImagePullBackOff on node node2 | Back-off pulling image "localhost/none:0" | ` + pull},
		},
		"image without a word": {
			broken(waiting("ErrImagePull", "")),
			[]string{notReady, "cilium/cilium-2: error: container cilium-agent: ErrImagePull on node node2 | image " + image + " | " + pull},
		},
		"image that may not be pulled": {
			broken(waiting("ErrImageNeverPull", "")),
			[]string{notReady, "cilium/cilium-2: error: container cilium-agent: ErrImageNeverPull on node node2 | image " + image + " | put the image on the nodes: the pod may not pull it"},
		},
		"init container": {
			broken(func(p *corev1.Pod) {
				p.Status.Phase = corev1.PodPending
				p.Status.ContainerStatuses = nil
				p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "mount-bpf-fs", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1}}}}
			}),
			[]string{notReady, "cilium/cilium-2: error: container mount-bpf-fs ended with code 1 on node node2 | fake logs | kubectl -n kube-system logs cilium-2 -c mount-bpf-fs"},
		},
		"crash loop": {
			broken(func(p *corev1.Pod) {
				waiting("CrashLoopBackOff", "back-off 5m0s")(p)
				p.Status.Phase = corev1.PodRunning
				p.Status.ContainerStatuses[0].RestartCount = 7
			}),
			[]string{notReady, "cilium/cilium-2: error: container cilium-agent: CrashLoopBackOff on node node2, 7 restarts | fake logs | kubectl -n kube-system logs cilium-2 -c cilium-agent --previous"},
		},
		"no place": {
			broken(func(p *corev1.Pod) {
				p.Spec.NodeName, p.Status.ContainerStatuses, p.Status.Phase = "", nil, corev1.PodPending
				p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/2 nodes are available: 2 Insufficient cpu."}}
			}),
			[]string{notReady, "cilium/cilium-2: error: the pod cannot be scheduled | 0/2 nodes are available: 2 Insufficient cpu. | " + describe},
		},
		"evicted": {
			broken(func(p *corev1.Pod) {
				p.Status.Phase, p.Status.Reason, p.Status.Message, p.Status.ContainerStatuses = corev1.PodFailed, "Evicted", "The node was low on resource: memory.", nil
			}),
			[]string{notReady, "cilium/cilium-2: error: the pod has failed: Evicted | The node was low on resource: memory. | " + describe},
		},
		"still starting": {
			broken(func(p *corev1.Pod) { waiting("PodInitializing", "")(p) }),
			[]string{notReady, "cilium/cilium-2: error: the pod is Pending and not ready on node node2 |  | " + describe},
		},
		"runs and is not ready": {
			broken(func(p *corev1.Pod) { p.Status.Conditions[0].Message = "containers with unready status: [cilium-agent]" }),
			[]string{notReady, "cilium/cilium-2: error: the pod is not ready | containers with unready status: [cilium-agent]; last log line: fake logs | kubectl -n kube-system logs cilium-2"},
		},
		"no node selected": {
			[]runtime.Object{func() *appsv1.DaemonSet {
				d := agents(0, 0)
				d.Spec.Template.Spec.NodeSelector = map[string]string{"no": "where"}
				return d
			}()},
			[]string{"cilium/cilium: error: DaemonSet cilium selects no node: no new pod gets a network | nodeSelector no=where | kubectl -n kube-system describe daemonset cilium"},
		},
		"roll-out that has not started": {
			[]runtime.Object{func() *appsv1.DaemonSet { d := agents(2, 2); d.Generation = 3; return d }()},
			[]string{"cilium/cilium: error: DaemonSet cilium: rollout has not started |  | kubectl -n kube-system rollout status daemonset/cilium"},
		},
		"roll-out under way": {
			[]runtime.Object{func() *appsv1.DaemonSet { d := agents(2, 2); d.Status.UpdatedNumberScheduled = 1; return d }()},
			[]string{"cilium/cilium: warning: DaemonSet cilium is rolling out - 1 out of 2 pods updated |  | kubectl -n kube-system rollout status daemonset/cilium"},
		},
		"operator": {
			[]runtime.Object{operatorOf(2, 1)},
			[]string{"cilium-operator/cilium-operator: error: 1 pods of Deployment cilium-operator are not ready |  | kubectl -n kube-system rollout status deployment/cilium-operator"},
		},
		"policies": {
			[]runtime.Object{&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "deny", Namespace: "default"}}},
			[]string{"cilium/: warning: 1 NetworkPolicy exists and is not enforced: this version has no network policy |  | kubectl get networkpolicies -A"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := good(c.objs...).collect(t)
			if got := told(s); !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			red := slices.ContainsFunc(c.want, func(s string) bool { return strings.Contains(s, ": error: ") })
			if s.OK(false) == red || s.OK(true) || (s.Code == 1) != red {
				t.Errorf("code %d", s.Code)
			}
		})
	}
}

// TestAgentsSpeakForThemselves: an agent that is down, one that has failed parts, one with failing
// loops, one whose endpoints are not ready.
func TestAgentsSpeakForThemselves(t *testing.T) {
	next := "kubectl -n kube-system exec cilium-2 -- cilium status --verbose"
	for name, c := range map[string]struct {
		change func(r *api.NodeReport) error
		want   []string
	}{
		"down": {
			func(*api.NodeReport) error { return errors.New("cannot get agent status: daemon unreachable") },
			[]string{"error: the agent does not answer | command ended with code 1: Error: cannot get agent status: daemon unreachable; last log line: fake logs | kubectl -n kube-system logs cilium-2 -c cilium-agent"},
		},
		"failed": {
			func(r *api.NodeReport) error {
				r.Cilium = &api.Status{State: api.StateFailure, Msg: "programs are not loaded"}
				r.Kubernetes = &api.K8sStatus{State: api.StateWarning, Msg: "slow"}
				r.CNIFile = &api.Status{State: api.StateWarning, Msg: "not written yet"}
				r.Cluster = &api.ClusterStatus{CiliumHealth: &api.Status{State: api.StateFailure, Msg: "no answer"}}
				r.Hubble = &api.HubbleStatus{State: api.StateDisabled, Msg: "off"}
				return nil
			},
			[]string{
				"error: agent: programs are not loaded |  | " + next, "error: cluster health: no answer |  | " + next,
				"warning: CNI configuration: not written yet |  | " + next, "warning: kubernetes: slow |  | " + next,
			},
		},
		"loops": {
			func(r *api.NodeReport) error {
				r.Controllers = append(r.Controllers, api.Controller{Name: "kubernetes/ciliumendpoint", Status: api.ControllerStatus{ConsecutiveFailureCount: 3, LastFailureMsg: "forbidden"}})
				return nil
			},
			[]string{"error: controller kubernetes/ciliumendpoint is failing since its start (3x): forbidden |  | " + next},
		},
		"endpoints": {
			func(r *api.NodeReport) error {
				r.Endpoints = append(r.Endpoints, api.Endpoint{ID: 2, Status: &api.EndpointStatus{State: "regenerating"}}, api.Endpoint{ID: 3})
				return nil
			},
			[]string{"warning: 2 endpoints are not ready |  | kubectl -n kube-system exec cilium-2 -- cilium endpoint list"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := good()
			w.exec = answers(func(pod string, r *api.NodeReport) error {
				if pod != "cilium-2" {
					return nil
				}
				return c.change(r)
			})
			for i := range c.want {
				c.want[i] = "cilium/cilium-2: " + c.want[i]
			}
			if got := told(w.collect(t)); !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// TestAnswersThatMeanNothing are told as such.
func TestAnswersThatMeanNothing(t *testing.T) {
	w := good()
	w.exec = func(context.Context, string, string, string, ...string) ([]byte, []byte, error) {
		return []byte("OK"), nil, nil
	}
	s := w.collect(t)
	if got := told(s); len(got) != 2 || !strings.Contains(got[0], "the agent does not answer | decode answer: ") {
		t.Errorf("%v", got)
	}
}

// TestSlowAgents are asked at most so many at a time, and given up on after a while.
func TestSlowAgents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var objs []runtime.Object
		for i := range 12 {
			objs = append(objs, podOf(Agent, i+1))
		}
		w := good(append(objs, agents(12, 12))...)
		var now, most atomic.Int32
		w.exec = func(ctx context.Context, _, _, _ string, _ ...string) ([]byte, []byte, error) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			<-ctx.Done()
			return nil, nil, ctx.Err()
		}
		start := time.Now()
		c := &Collector{Client: w.client, Dynamic: w.dynamic, Exec: w.exec, Namespace: "kube-system", Release: "cilium", Workers: 4}
		s, err := c.Collect(t.Context())
		if err != nil || most.Load() != 4 || time.Since(start) != 30*time.Second {
			t.Errorf("%d at a time, %s, %v", most.Load(), time.Since(start), err)
		}
		if e, _, _ := s.Count(Agent); e != 12 {
			t.Errorf("%d errors", e)
		}
	})
}

func TestUnmanagedPodsAreCounted(t *testing.T) {
	s := good(userPod("c", corev1.PodRunning, false), userPod("d", corev1.PodRunning, false)).collect(t)
	if want := (PodsCount{All: 4, ByCilium: 2}); s.PodsCount != want {
		t.Errorf("pods %+v", s.PodsCount)
	}
}

func TestMissingKindsAreNoError(t *testing.T) {
	w := good()
	w.refuse("ciliumendpoints", apierrors.NewNotFound(endpointsResource.GroupResource(), ""))
	s := w.collect(t)
	if got := told(s); len(got) > 0 || s.PodsCount.ByCilium != 0 {
		t.Errorf("%v, %+v", got, s.PodsCount)
	}
}

func TestWithoutPermission(t *testing.T) {
	for resource, want := range map[string]string{
		"daemonsets": "", "deployments": "", // nothing can be said without them
		"ciliumendpoints": "listing CiliumEndpoints: ", "networkpolicies": "listing NetworkPolicies: ", "secrets": "reading the Helm release cilium: ",
	} {
		t.Run(resource, func(t *testing.T) {
			w := good()
			w.refuse(resource, apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "", errors.New("no role")))
			s, err := w.try(t.Context())
			if want == "" {
				if !apierrors.IsForbidden(err) || s != nil {
					t.Errorf("got %v, %v", s, err)
				}
				return
			}
			if err != nil || len(s.CollectionErrors) != 1 || !strings.HasPrefix(s.CollectionErrors[0], want) || s.Code != 1 || s.OK(false) {
				t.Errorf("got %+v, %v", s, err)
			}
		})
	}
}

func TestServerThatDoesNotAnswer(t *testing.T) {
	w := good()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	w.client.PrependReactor("list", "deployments", func(clienttesting.Action) (bool, runtime.Object, error) {
		<-ctx.Done() // as late as the collector's own limit, which began earlier
		return true, nil, context.DeadlineExceeded
	})
	c := &Collector{Client: w.client, Dynamic: w.dynamic, Exec: w.exec, Namespace: "kube-system", ListTimeout: time.Microsecond}
	if s, err := c.Collect(t.Context()); !errors.Is(err, ErrNoAnswer) || s != nil || !strings.Contains(err.Error(), "within 1µs") {
		t.Errorf("got %v, %v", s, err)
	}
}

func TestNotInstalled(t *testing.T) {
	w := good()
	w.client = fake.NewClientset()
	s := w.collect(t)
	want := "cilium/cilium: error: DaemonSet cilium does not exist in namespace kube-system |  | lash install"
	if got := told(s); !slices.Equal(got, []string{want}) || s.Code != 1 || s.HelmChartVersion != "" || !s.Errors[Operator][Operator].Disabled {
		t.Errorf("code %d, %v", s.Code, got)
	}
}

func TestNotesOfTheInstallation(t *testing.T) {
	s := good(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cilium-config", Namespace: "kube-system", Annotations: map[string]string{
		"config.cilium.io/b": "second", "config.cilium.io/a": "first", "other": "no",
	}}}).collect(t)
	if !slices.Equal(s.ConfigErrors, []string{"first", "second"}) && !slices.Equal(s.ConfigErrors, []string{"second", "first"}) {
		t.Errorf("notes %v", s.ConfigErrors)
	}
	if !s.OK(true) {
		t.Error("a note is a problem")
	}
}

// TestKeysOfTheJSON are those that scripts for Cilium's status read.
func TestKeysOfTheJSON(t *testing.T) {
	b, err := json.Marshal(good().collect(t))
	if err != nil {
		t.Fatal(err)
	}
	var top map[string]json.RawMessage
	if err := json.Unmarshal(b, &top); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{
		"image_count", "phase_count", "pod_state", "pods_count", "cilium_status", "cilium_endpoints", "errors",
		"collection_errors", "helm_chart_version", "config_errors",
	} {
		if _, ok := top[k]; !ok {
			t.Errorf("no key %s", k)
		}
	}
	for k, want := range map[string]string{
		"pods_count": `{"all":2,"by_cilium":2}`, "collection_errors": "[]", "image_count": `{"cilium":{"localhost/lash:0.1.0":2},"cilium-operator":{"localhost/lash:0.1.0":1}}`,
		"pod_state": `{"cilium":{"Type":"DaemonSet","Desired":2,"Ready":2,"Available":2,"Unavailable":0},"cilium-operator":{"Type":"Deployment","Desired":1,"Ready":1,"Available":1,"Unavailable":0}}`,
	} {
		if string(top[k]) != want {
			t.Errorf("%s is %s, want %s", k, top[k], want)
		}
	}
}

func TestIdentities(t *testing.T) {
	w := good()
	put := func(name string, labels map[string]any) {
		u := custom("CiliumIdentity", "", name)
		u.Object["security-labels"] = labels
		if _, err := w.dynamic.Resource(identitiesResource).Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	put("6040", map[string]any{"k8s:app": "backend1", "k8s:edge": ""})
	put("300", map[string]any{"k8s:app": "database"})
	sel, err := labels.Parse("app")
	if err != nil {
		t.Fatal(err)
	}
	ids, err := Identities(t.Context(), w.dynamic, sel)
	if err != nil || len(ids) != 2 || ids[0].ID != 300 || !slices.Equal(ids[1].Labels, []string{"k8s:app=backend1", "k8s:edge"}) {
		t.Errorf("%+v, %v", ids, err)
	}
	if all, err := Identities(t.Context(), w.dynamic, nil); err != nil || len(all) != 12 || all[0].Labels[0] != "reserved:host" {
		t.Errorf("%d identities, %v", len(all), err)
	}
	if id, err := Identity(t.Context(), w.dynamic, 7); err != nil || len(id.Labels) != 2 {
		t.Errorf("%+v, %v", id, err)
	}
	if _, err := Identity(t.Context(), w.dynamic, 4711); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("an unknown number: %v", err)
	}
	put("x", nil)
	if _, err := Identities(t.Context(), w.dynamic, nil); err == nil || !strings.Contains(err.Error(), "name of a CiliumIdentity") {
		t.Errorf("a name that is no number: %v", err)
	}
	w.refuse("ciliumidentities", apierrors.NewNotFound(identitiesResource.GroupResource(), ""))
	if _, err := Identities(t.Context(), w.dynamic, nil); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("without the kind: %v", err)
	}
	if _, err := Identity(t.Context(), w.dynamic, 4711); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("one, without the kind: %v", err)
	}
}

func TestReleasesThatCannotBeRead(t *testing.T) {
	s := releaseSecret(3, "9")
	s.Data["release"] = []byte("!")
	got := good(s).collect(t)
	if len(got.CollectionErrors) != 1 || !strings.HasPrefix(got.CollectionErrors[0], "reading the Helm release cilium: decode release: ") {
		t.Errorf("%v", got.CollectionErrors)
	}
}

func FuzzDecodeRelease(f *testing.F) {
	f.Add(releaseSecret(1, "0.1.0").Data["release"])
	f.Add([]byte(base64.StdEncoding.EncodeToString([]byte(`{"chart":{"metadata":{"version":"1"}}}`))))
	f.Add([]byte("H4sIAAAAAAAA"))
	f.Add([]byte("bnVsbA=="))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRelease(data)
		if err != nil && (r.Chart != "" || r.AppVersion != "" || r.Values != nil) {
			t.Errorf("%+v with %v", r, err)
		}
	})
}
