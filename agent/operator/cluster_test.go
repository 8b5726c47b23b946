// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextfake "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/fake"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	clienttesting "k8s.io/client-go/testing"

	"lash.internal/lash/agent/config"
	"lash.internal/lash/agent/kube"
	"lash.internal/lash/agent/kube/ciliumio"
	"lash.internal/lash/agent/kube/fake"
)

// TestMain checks that no goroutine stays. The client library's error handlers hold a time of the
// real clock, on which a goroutine of a bubble would wait for years.
func TestMain(m *testing.M) {
	utilruntime.ErrorHandlers = nil
	goleak.VerifyTestMain(m)
}

const taintKey = "node.cilium.io/agent-not-ready"

// world is an operator and the API server that it works against, in a bubble with a clock of its
// own.
type world struct {
	t   *testing.T
	ctx context.Context
	api *fake.API
	ext *apiextfake.Clientset
	op  *Operator
	log *strings.Builder
}

func newWorld(t *testing.T, cfg config.Config, objs ...runtime.Object) *world {
	w := &world{t: t, ctx: t.Context(), api: fake.New(objs...), ext: definedAPI(), log: &strings.Builder{}}
	w.op = w.operator(cfg)
	return w
}

// operator is one more replica.
func (w *world) operator(cfg config.Config) *Operator {
	cfg.KubernetesNamespace = "kube-system"
	c := &kube.Client{Kubernetes: w.api.Kubernetes, Dynamic: w.api.Dynamic}
	return New(&cfg, c, w.ext, slog.New(slog.NewTextHandler(w.log, nil)))
}

// definedAPI serves definitions as soon as they are created.
func definedAPI(objs ...runtime.Object) *apiextfake.Clientset {
	c := apiextfake.NewClientset(objs...)
	c.PrependReactor("get", "customresourcedefinitions", func(a clienttesting.Action) (bool, runtime.Object, error) {
		obj, err := c.Tracker().Get(a.GetResource(), "", a.(clienttesting.GetAction).GetName())
		if crd, ok := obj.(*apiextensionsv1.CustomResourceDefinition); ok && err == nil {
			crd.Status.Conditions = []apiextensionsv1.CustomResourceDefinitionCondition{{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue}}
		}
		return true, obj, err
	})
	return c
}

// defaults are what the chart gives the operator.
func defaults() config.Config {
	return config.Config{
		IPv4: true, IdentityGCInterval: 15 * time.Minute, EndpointGCInterval: 5 * time.Minute,
		NotReadyTaint: taintKey, RemoveNodeTaints: true, SetCiliumIsUp: true, UnmanagedPodWatcher: 15 * time.Second,
		OperatorLeaderElect: true,
	}
}

// bubble runs the operator's work beside f, with the objects there from the start.
func bubble(t *testing.T, cfg config.Config, prepare, f func(*world), objs ...runtime.Object) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cfg, objs...)
		if prepare != nil {
			prepare(w)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.op.work(ctx) }()
		settle(time.Second) // the caches are full
		f(w)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("work ended with %v", err)
		}
	})
}

func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) custom(obj any) dynamic.ResourceInterface {
	switch x := obj.(type) {
	case *ciliumio.Endpoint:
		return w.api.Dynamic.Resource(ciliumio.Endpoints).Namespace(x.Namespace)
	case *ciliumio.Identity:
		return w.api.Dynamic.Resource(ciliumio.Identities)
	}
	return w.api.Dynamic.Resource(ciliumio.Nodes)
}

func (w *world) put(objs ...any) {
	w.t.Helper()
	for _, obj := range objs {
		u, err := ciliumio.ToUnstructured(obj)
		if err == nil {
			_, err = w.custom(obj).Create(w.ctx, u, metav1.CreateOptions{})
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	synctest.Wait()
}

// names lists the objects of the kind of like.
func (w *world) names(like any) string {
	w.t.Helper()
	list, err := w.custom(like).List(w.ctx, metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, u := range list.Items {
		out = append(out, u.GetName())
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (w *world) ciliumNode(name string) ciliumio.Node {
	w.t.Helper()
	var n ciliumio.Node
	u, err := w.custom(&n).Get(w.ctx, name, metav1.GetOptions{})
	if err == nil {
		err = ciliumio.FromUnstructured(u, &n)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) node(name string) *corev1.Node {
	w.t.Helper()
	n, err := w.api.Kubernetes.CoreV1().Nodes().Get(w.ctx, name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// metric is the value of a metric, that with the label value when one is given.
func (w *world) metric(name, label string) float64 {
	w.t.Helper()
	families, err := w.op.metrics.registry.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}

func newCiliumNode(name string, podCIDRs ...string) *ciliumio.Node {
	n := &ciliumio.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	n.Spec.IPAM.PodCIDRs = podCIDRs
	return n
}

func newEndpoint(name string, identity int64) *ciliumio.Endpoint {
	e := &ciliumio.Endpoint{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	e.Status.Identity = &ciliumio.EndpointIdentity{ID: identity}
	return e
}

func newIdentity(id int) *ciliumio.Identity {
	return &ciliumio.Identity{ObjectMeta: metav1.ObjectMeta{Name: strconv.Itoa(id)}, SecurityLabels: map[string]string{"k8s:app": "x"}}
}

func newNode(name string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	n.Spec.Taints = []corev1.Taint{{Key: "a", Effect: corev1.TaintEffectNoSchedule}, {Key: taintKey, Effect: corev1.TaintEffectNoExecute}, {Key: "z", Effect: corev1.TaintEffectNoSchedule}}
	return n
}

func newPod(name string, phase corev1.PodPhase) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Status: corev1.PodStatus{Phase: phase}}
}

func agentPod(node string, ready corev1.ConditionStatus, started time.Time) *corev1.Pod {
	p := newPod("cilium-"+node, corev1.PodRunning)
	p.Namespace, p.Labels, p.Spec.NodeName = "kube-system", map[string]string{"k8s-app": "cilium"}, node
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
	p.Status.StartTime = &metav1.Time{Time: started}
	return p
}

func taints(n *corev1.Node) string {
	var out []string
	for _, t := range n.Spec.Taints {
		out = append(out, t.Key)
	}
	return strings.Join(out, " ")
}

// TestNodesOpenWhenTheirAgentIsReady: node and agent come in either order; other taints stay; a
// change by somebody else and a lack of permission are got over.
func TestNodesOpenWhenTheirAgentIsReady(t *testing.T) {
	create := func(w *world, what string) {
		var err error
		if what == "node" {
			_, err = w.api.Kubernetes.CoreV1().Nodes().Create(w.ctx, newNode("n1"), metav1.CreateOptions{})
		} else {
			_, err = w.api.Kubernetes.CoreV1().Pods("kube-system").Create(w.ctx, agentPod("n1", corev1.ConditionTrue, time.Now()), metav1.CreateOptions{})
		}
		if err != nil {
			w.t.Fatal(err)
		}
		synctest.Wait()
	}
	for _, order := range [][]string{{"node", "agent"}, {"agent", "node"}} {
		t.Run(strings.Join(order, " "), func(t *testing.T) {
			bubble(t, defaults(), nil, func(w *world) {
				for _, what := range order {
					create(w, what)
				}
				if n := w.node("n1"); taints(n) != "a z" || !networkUp(n) {
					w.t.Errorf("taints %q, conditions %+v", taints(n), n.Status.Conditions)
				}
			})
		})
	}
	for name, err := range map[string]error{"conflict": fake.Conflict("nodes"), "no permission": fake.Forbidden("nodes")} {
		t.Run(name, func(t *testing.T) {
			bubble(t, defaults(), func(w *world) { w.api.Fail("patch", "nodes", "n1", err, 3) }, func(w *world) {
				create(w, "agent")
				if n := w.node("n1"); taints(n) != "a "+taintKey+" z" {
					w.t.Errorf("taints %q", taints(n))
				}
				settle(time.Minute)
				if n := w.node("n1"); taints(n) != "a z" || !networkUp(n) {
					w.t.Errorf("later: taints %q, conditions %+v", taints(n), n.Status.Conditions)
				}
				if !strings.Contains(w.log.String(), "take taint "+taintKey+" off node n1: "+strings.ReplaceAll(err.Error(), `"`, `\"`)) {
					w.t.Errorf("log: %s", w.log)
				}
			}, newNode("n1"))
		})
	}
	t.Run("not ready", func(t *testing.T) {
		bubble(t, defaults(), nil, func(w *world) {
			settle(5 * time.Minute)
			if n := w.node("n1"); taints(n) != "a "+taintKey+" z" || networkUp(n) {
				w.t.Errorf("taints %q, conditions %+v", taints(n), n.Status.Conditions)
			}
		}, newNode("n1"), agentPod("n1", corev1.ConditionFalse, time.Now()))
	})
	t.Run("not wanted", func(t *testing.T) {
		cfg := defaults()
		cfg.RemoveNodeTaints, cfg.SetCiliumIsUp = false, false
		bubble(t, cfg, nil, func(w *world) {
			settle(5 * time.Minute)
			if writes := w.api.Writes(); len(writes) > 0 {
				w.t.Errorf("wrote %v", writes)
			}
		}, newNode("n1"), agentPod("n1", corev1.ConditionTrue, time.Now()))
	})
}

func poolConfig() config.Config {
	cfg := defaults()
	cfg.ClusterPool, cfg.PoolIPv4, cfg.PoolMaskV4 = true, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/23")}, 24
	return cfg
}

// TestClusterPoolGivesEveryNodeItsOwn over conflicts, exhaustion, and the end of a node.
func TestClusterPoolGivesEveryNodeItsOwn(t *testing.T) {
	bubble(t, poolConfig(), func(w *world) {
		w.put(newCiliumNode("old", "10.1.0.0/24"))
		w.api.Fail("update", "ciliumnodes", "", fake.Conflict("ciliumnodes"), 2)
	}, func(w *world) {
		w.put(newCiliumNode("b"))
		settle(10 * time.Second)
		if got := w.ciliumNode("b").Spec.IPAM.PodCIDRs; !slices.Equal(got, []string{"10.1.1.0/24"}) {
			w.t.Fatalf("b has %v", got)
		}
		w.put(newCiliumNode("c"))
		settle(time.Second)
		c := w.ciliumNode("c")
		if want := "cluster pool is exhausted: all 2 subnets /24 of 10.1.0.0/23 are given to nodes"; len(c.Spec.IPAM.PodCIDRs) > 0 || c.Status.IPAM.OperatorStatus.Error != want {
			w.t.Errorf("c has %v, status %q, want %q", c.Spec.IPAM.PodCIDRs, c.Status.IPAM.OperatorStatus.Error, want)
		}
		if n := w.metric("cilium_operator_ipam_allocation_errors_total", ""); n < 1 {
			w.t.Errorf("%v errors are counted", n)
		}
		if err := w.custom(&ciliumio.Node{}).Delete(w.ctx, "old", metav1.DeleteOptions{}); err != nil {
			w.t.Fatal(err)
		}
		settle(10 * time.Second)
		if c = w.ciliumNode("c"); !slices.Equal(c.Spec.IPAM.PodCIDRs, []string{"10.1.0.0/24"}) || c.Status.IPAM.OperatorStatus.Error != "" {
			w.t.Errorf("after a node went: c has %v, status %q", c.Spec.IPAM.PodCIDRs, c.Status.IPAM.OperatorStatus.Error)
		}
	}, newNode("old"), newNode("b"), newNode("c"))
}

// TestClusterPoolNamesOverlaps and leaves what nodes have: their pods use it.
func TestClusterPoolNamesOverlaps(t *testing.T) {
	bubble(t, poolConfig(), func(w *world) {
		w.put(newCiliumNode("a", "10.1.0.0/24"), newCiliumNode("b", "10.1.0.128/25"), newCiliumNode("c", "nonsense"))
	}, func(w *world) {
		settle(10 * time.Second)
		for name, want := range map[string]string{
			"a": "", "b": "pod CIDR 10.1.0.128/25 overlaps 10.1.0.0/24 of node a", "c": `netip.ParsePrefix("nonsense"): no '/'`,
		} {
			if got := w.ciliumNode(name).Status.IPAM.OperatorStatus.Error; got != want {
				w.t.Errorf("%s: status %q, want %q", name, got, want)
			}
		}
		if got := w.ciliumNode("b").Spec.IPAM.PodCIDRs; !slices.Equal(got, []string{"10.1.0.128/25"}) {
			w.t.Errorf("b has %v", got)
		}
		if got := w.ciliumNode("c").Spec.IPAM.PodCIDRs; !slices.Contains(got, "10.1.1.0/24") {
			w.t.Errorf("c has %v", got)
		}
	}, newNode("a"), newNode("b"), newNode("c"))
}

// TestEndpointsWithoutAPodGo, and only these.
func TestEndpointsWithoutAPodGo(t *testing.T) {
	bubble(t, defaults(), func(w *world) {
		w.put(newEndpoint("lives", 300), newEndpoint("ended", 300), newEndpoint("gone", 300), newEndpoint("changing", 300))
		w.api.Fail("delete", "ciliumendpoints", "changing", fake.Conflict("ciliumendpoints"), 1)
		w.api.Fail("get", "pods", "", fake.Forbidden("pods"), 3)
	}, func(w *world) {
		if got := w.names(&ciliumio.Endpoint{}); got != "changing ended gone lives" {
			w.t.Errorf("without permission to look for pods: %s", got)
		}
		settle(time.Minute)
		if got := w.names(&ciliumio.Endpoint{}); got != "changing lives" {
			w.t.Errorf("then: %s", got)
		}
		settle(10 * time.Minute)
		if got := w.names(&ciliumio.Endpoint{}); got != "lives" {
			w.t.Errorf("when the object does not change any more: %s", got)
		}
	}, newPod("lives", corev1.PodRunning), newPod("ended", corev1.PodSucceeded))
}

func TestEndpointCollectionCanBeOff(t *testing.T) {
	cfg := defaults()
	cfg.EndpointGCInterval = 0
	bubble(t, cfg, func(w *world) { w.put(newEndpoint("gone", 300)) }, func(w *world) {
		settle(time.Hour)
		if got := w.names(&ciliumio.Endpoint{}); got != "gone" {
			w.t.Errorf("left: %q", got)
		}
	})
}

// TestIdentitiesGoAfterAWholeIntervalWithoutAUser.
func TestIdentitiesGoAfterAWholeIntervalWithoutAUser(t *testing.T) {
	cfg := defaults()
	cfg.EndpointGCInterval = 0
	bubble(t, cfg, func(w *world) {
		w.put(newIdentity(300), newIdentity(301), newIdentity(302), newEndpoint("a", 300))
		w.api.Fail("delete", "ciliumidentities", "301", fake.Forbidden("ciliumidentities"), 1)
	}, func(w *world) {
		settle(14 * time.Minute)
		if got := w.names(&ciliumio.Identity{}); got != "300 301 302" {
			w.t.Errorf("too early: %s", got)
		}
		w.put(newEndpoint("b", 302)) // taken up again just in time
		settle(time.Minute)
		if got := w.names(&ciliumio.Identity{}); got != "300 301 302" {
			w.t.Errorf("without permission: %s", got)
		}
		settle(time.Minute)
		if got := w.names(&ciliumio.Identity{}); got != "300 302" {
			w.t.Errorf("after an interval: %s", got)
		}
		if n := w.metric("cilium_operator_identity_gc_runs", "fail"); n != 1 {
			w.t.Errorf("%v runs failed", n)
		}
		if n := w.metric("cilium_operator_identity_gc_entries", "alive"); n != 2 {
			w.t.Errorf("%v are alive", n)
		}
		if err := w.custom(newEndpoint("b", 302)).Delete(w.ctx, "b", metav1.DeleteOptions{}); err != nil {
			w.t.Fatal(err)
		}
		settle(40 * time.Minute)
		if got := w.names(&ciliumio.Identity{}); got != "300" {
			w.t.Errorf("after its user went: %s", got)
		}
	})
}

func TestCiliumNodesWithoutANodeGo(t *testing.T) {
	bubble(t, defaults(), func(w *world) { w.put(newCiliumNode("n1"), newCiliumNode("gone")) }, func(w *world) {
		settle(time.Minute)
		if got := w.names(&ciliumio.Node{}); got != "n1" {
			w.t.Errorf("left: %s", got)
		}
	}, newNode("n1"))
}

// TestDNSPodsOfBeforeAreRenewed once the agent of their node has run for a while.
func TestDNSPodsOfBeforeAreRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := func(name string, started time.Time) *corev1.Pod {
			p := newPod(name, corev1.PodRunning)
			p.Labels, p.Spec.NodeName, p.Status.StartTime = map[string]string{"k8s-app": "kube-dns"}, "n1", &metav1.Time{Time: started}
			return p
		}
		now := time.Now()
		w := newWorld(t, defaults(), newNode("n1"), agentPod("n1", corev1.ConditionTrue, now), dns("before", now.Add(-time.Hour)), dns("managed", now.Add(-time.Hour)), dns("after", now.Add(time.Second)))
		w.put(newEndpoint("managed", 300))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.op.work(ctx) }()
		settle(10 * time.Second)
		if slices.Contains(w.api.Writes(), "delete pods/before") {
			t.Errorf("too early: %v", w.api.Writes())
		}
		settle(time.Minute)
		cancel()
		<-ended
		if !slices.Contains(w.api.Writes(), "delete pods/before") || slices.Contains(w.api.Writes(), "delete pods/managed") || slices.Contains(w.api.Writes(), "delete pods/after") {
			t.Errorf("wrote %v", w.api.Writes())
		}
	})
}

func TestDefinitionsAreRegistered(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	want, err := definitions()
	if err != nil {
		t.Fatal(err)
	}
	schemaOf := func(c *apiextfake.Clientset, name string) string {
		crd, err := c.ApiextensionsV1().CustomResourceDefinitions().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return crd.Labels[schemaLabel]
	}
	older, newer := want[0].DeepCopy(), want[1].DeepCopy()
	older.Labels[schemaLabel], newer.Labels[schemaLabel] = "1.26.1", "9.0.0"
	c := definedAPI(older, newer)
	if err := registerCRDs(t.Context(), c, log); err != nil {
		t.Fatal(err)
	}
	for i, version := range []string{schemaVersion, "9.0.0", schemaVersion} {
		if got := schemaOf(c, want[i].Name); got != version {
			t.Errorf("%s has schema %s, want %s", want[i].Name, got, version)
		}
	}

	for verb, text := range map[string]string{"get": "get definition ciliumendpoints.cilium.io: ", "create": "create definition ciliumendpoints.cilium.io: "} {
		c := definedAPI()
		c.PrependReactor(verb, "customresourcedefinitions", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, fake.Forbidden("customresourcedefinitions")
		})
		if err := registerCRDs(t.Context(), c, log); err == nil || !strings.HasPrefix(err.Error(), text) || !apierrors.IsForbidden(errors.Unwrap(err)) {
			t.Errorf("without permission to %s: %v", verb, err)
		}
	}

	// A server that takes definitions and does not serve them.
	ctx, cancel := context.WithCancel(t.Context())
	slow := apiextfake.NewClientset()
	slow.PrependWatchReactor("customresourcedefinitions", func(clienttesting.Action) (bool, watch.Interface, error) {
		cancel()
		return false, nil, nil
	})
	if err := registerCRDs(ctx, slow, log); !errors.Is(err, context.Canceled) || !strings.HasPrefix(err.Error(), "wait for definition ciliumendpoints.cilium.io") {
		t.Errorf("got %v", err)
	}
}
