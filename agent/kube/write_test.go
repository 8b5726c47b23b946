// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"lash.internal/lash/agent/kube/ciliumio"
	"lash.internal/lash/agent/kube/fake"
	"lash.internal/lash/agent/state"
)

// here is the node that the tests are about.
func here() *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "uid-n1", Labels: map[string]string{"zone": "a"}}}
	n.Spec.PodCIDRs = []string{"10.1.1.0/24"}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeHostName, Address: "n1"}}
	n.Status.NodeInfo.BootID = "boot-1"
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: "NoRouteCreated"}}
	return n
}

// agent is a Source that runs against a fake API server, in a bubble with a clock of its own.
type agent struct {
	t        *testing.T
	ctx      context.Context // of the bubble
	api      *fake.API
	tables   *state.Tables
	source   *Source
	restored func(w *state.WriteTxn) // the endpoints of an earlier run are there
}

// bubble runs f with an agent; prepare comes before the agent looks for the first time.
func bubble(t *testing.T, o SourceOptions, prepare func(*agent), f func(*agent), objs ...runtime.Object) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := &agent{t: t, ctx: t.Context(), api: fake.New(objs...), tables: state.NewTables()}
		o.NodeName, o.IPv4, o.SetNodeCondition, o.Log = "n1", true, true, slog.New(slog.DiscardHandler)
		a.restored = a.tables.Endpoints.RegisterInitializer("cni")
		a.source = NewSource(&Client{Kubernetes: a.api.Kubernetes, Dynamic: a.api.Dynamic}, a.tables, o)
		if prepare != nil {
			prepare(a)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); a.source.Run(ctx) }()
		synctest.Wait()
		f(a)
		cancel()
		<-ended
	})
}

// settle lets everything happen that follows from what the test did; retries take time.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (a *agent) rows(change func(w *state.WriteTxn)) {
	w := a.tables.DB.WriteTxn()
	change(w)
	w.Commit()
	synctest.Wait()
}

// pod puts the endpoint of a pod into the table.
func (a *agent) pod(name, ip string, change ...func(*state.Endpoint)) state.Endpoint {
	e := state.Endpoint{
		ID: uint16(ip[len(ip)-1]), Pod: state.Name{Namespace: "default", Name: name}, PodUID: "uid-" + name,
		ContainerID: "c-" + name, ContainerIf: "eth0", IPv4: netip.MustParseAddr(ip), Identity: 300,
		Labels: []string{"k8s:app=" + name, "k8s:empty="}, State: state.EndpointReady,
		NamedPorts: []state.NamedPort{{Name: "http", Port: 8080, Protocol: "TCP"}},
	}
	for _, c := range change {
		c(&e)
	}
	a.rows(func(w *state.WriteTxn) { a.tables.Endpoints.Insert(w, e) })
	return e
}

func (a *agent) create(obj any, namespace string) *unstructured.Unstructured {
	a.t.Helper()
	u, err := ciliumio.ToUnstructured(obj)
	if err != nil {
		a.t.Fatal(err)
	}
	r := a.api.Dynamic.Resource(ciliumio.Nodes)
	if namespace != "" {
		u, err = a.api.Dynamic.Resource(ciliumio.Endpoints).Namespace(namespace).Create(a.ctx, u, metav1.CreateOptions{})
	} else {
		u, err = r.Create(a.ctx, u, metav1.CreateOptions{})
	}
	if err != nil {
		a.t.Fatal(err)
	}
	return u
}

func (a *agent) ciliumNode() (n ciliumio.Node, there bool) {
	a.t.Helper()
	u, err := a.api.Dynamic.Resource(ciliumio.Nodes).Get(a.ctx, "n1", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return n, false
	}
	if err == nil {
		err = ciliumio.FromUnstructured(u, &n)
	}
	if err != nil {
		a.t.Fatal(err)
	}
	return n, true
}

func (a *agent) endpoint(name string) (e ciliumio.Endpoint, there bool) {
	a.t.Helper()
	u, err := a.api.Dynamic.Resource(ciliumio.Endpoints).Namespace("default").Get(a.ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return e, false
	}
	if err == nil {
		err = ciliumio.FromUnstructured(u, &e)
	}
	if err != nil {
		a.t.Fatal(err)
	}
	return e, true
}

// health is what the agent says of its writing.
func (a *agent) health(kind string) WriterHealth {
	for _, h := range a.source.WriterHealth() {
		if h.Kind == kind {
			return h
		}
	}
	return WriterHealth{}
}

func (a *agent) count(prefix string) int {
	return len(slices.DeleteFunc(a.api.Writes(), func(s string) bool { return !strings.HasPrefix(s, prefix) }))
}

func addresses(n ciliumio.Node) string {
	var out []string
	for _, a := range n.Spec.Addresses {
		out = append(out, a.Type+"="+a.IP)
	}
	return strings.Join(out, " ")
}

func TestCiliumNodeFollowsTheNode(t *testing.T) {
	bubble(t, SourceOptions{}, nil, func(a *agent) {
		n, ok := a.ciliumNode()
		if !ok || addresses(n) != "InternalIP=192.0.2.1" || n.Spec.BootID != "boot-1" || n.Labels["zone"] != "a" ||
			len(n.OwnerReferences) != 1 || n.OwnerReferences[0].UID != "uid-n1" || !slices.Equal(n.Spec.IPAM.PodCIDRs, []string{"10.1.1.0/24"}) {
			a.t.Errorf("first: %+v", n)
		}
		a.source.SetRouterIPs(netip.MustParseAddr("10.1.1.1"))
		synctest.Wait()
		if n, _ = a.ciliumNode(); addresses(n) != "InternalIP=192.0.2.1 CiliumInternalIP=10.1.1.1" {
			a.t.Errorf("with a router: %s", addresses(n))
		}
		a.source.SetHealthIPs(netip.MustParseAddr("10.1.1.253"), netip.MustParseAddr("fd00::fffd"))
		synctest.Wait()
		if n, _ = a.ciliumNode(); n.Spec.Health != (ciliumio.HealthAddressing{IPv4: "10.1.1.253", IPv6: "fd00::fffd"}) {
			a.t.Errorf("health endpoint: %+v", n.Spec.Health)
		}
		if row, _ := a.tables.Nodes.Get("n1"); len(row.HealthIPs) != 2 {
			a.t.Errorf("other nodes would know %v of it", row.HealthIPs)
		}
		a.source.SetHealthIPs()
		synctest.Wait()
		if n, _ = a.ciliumNode(); n.Spec.Health != (ciliumio.HealthAddressing{}) {
			a.t.Errorf("without a health endpoint: %+v", n.Spec.Health)
		}
		node := here()
		node.Labels["zone"], node.Status.Addresses[0].Address = "b", "192.0.2.7"
		if _, err := a.api.Kubernetes.CoreV1().Nodes().Update(a.ctx, node, metav1.UpdateOptions{}); err != nil {
			a.t.Fatal(err)
		}
		synctest.Wait()
		if n, _ = a.ciliumNode(); n.Labels["zone"] != "b" || addresses(n) != "InternalIP=192.0.2.7 CiliumInternalIP=10.1.1.1" {
			a.t.Errorf("after a change of the node: %v %s", n.Labels, addresses(n))
		}
		before := a.count("update ciliumnodes")
		settle(3 * auditEvery)
		if got := a.count("update ciliumnodes"); got != before {
			a.t.Errorf("%d updates without a reason", got-before)
		}
		if err := a.api.Dynamic.Resource(ciliumio.Nodes).Delete(a.ctx, "n1", metav1.DeleteOptions{}); err != nil {
			a.t.Fatal(err)
		}
		synctest.Wait()
		if n, ok = a.ciliumNode(); !ok || len(n.Spec.Addresses) != 2 {
			a.t.Errorf("after somebody deleted it: %+v", n)
		}
	}, here())
}

// TestCiliumNodeOfAnEarlierRun is changed in place: what others have written stays, and nothing is
// written before the router's address is known.
func TestCiliumNodeOfAnEarlierRun(t *testing.T) {
	bubble(t, SourceOptions{ClusterPool: true}, func(a *agent) {
		u, err := ciliumio.ToUnstructured(&ciliumio.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Annotations: map[string]string{"a": "b"}}})
		if err != nil {
			a.t.Fatal(err)
		}
		u.Object["spec"] = map[string]any{
			"bootid": "boot-0", "encryption": map[string]any{"key": int64(3)},
			"ipam": map[string]any{"podCIDRs": []any{"10.9.0.0/24"}, "pools": map[string]any{"x": "y"}},
		}
		if _, err := a.api.Dynamic.Resource(ciliumio.Nodes).Create(a.ctx, u, metav1.CreateOptions{}); err != nil {
			a.t.Fatal(err)
		}
	}, func(a *agent) {
		if n := a.count("update"); n != 0 {
			a.t.Errorf("%d updates before the router is known", n)
		}
		a.api.Fail("update", "ciliumnodes", "n1", fake.Conflict("ciliumnodes"), 1)
		a.source.SetRouterIPs(netip.MustParseAddr("10.9.0.1"))
		settle(time.Second)
		u, err := a.api.Dynamic.Resource(ciliumio.Nodes).Get(a.ctx, "n1", metav1.GetOptions{})
		if err != nil {
			a.t.Fatal(err)
		}
		spec, _ := u.Object["spec"].(map[string]any)
		want := map[string]any{
			"bootid": "boot-1", "encryption": map[string]any{"key": int64(3)},
			"ipam": map[string]any{"podCIDRs": []any{"10.9.0.0/24"}, "pools": map[string]any{"x": "y"}},
			"addresses": []any{
				map[string]any{"type": "InternalIP", "ip": "192.0.2.1"}, map[string]any{"type": "CiliumInternalIP", "ip": "10.9.0.1"},
			},
		}
		if !reflect.DeepEqual(spec, want) || u.GetAnnotations()["a"] != "b" {
			a.t.Errorf("got  %v\nwant %v", spec, want)
		}
		if h := a.health("ciliumnode"); h.Failures != 1 || h.Pending != 0 || h.Error != "" {
			a.t.Errorf("after a conflict: %+v", h)
		}
	}, here())
}

func TestNodeConditionComesWithReadiness(t *testing.T) {
	condition := func(a *agent) corev1.NodeCondition {
		n, err := a.api.Kubernetes.CoreV1().Nodes().Get(a.ctx, "n1", metav1.GetOptions{})
		if err != nil || len(n.Status.Conditions) != 1 {
			a.t.Fatalf("%+v, %v", n, err)
		}
		return n.Status.Conditions[0]
	}
	bubble(t, SourceOptions{}, nil, func(a *agent) {
		settle(time.Minute)
		if c := condition(a); c.Reason != "NoRouteCreated" {
			a.t.Errorf("before the agent is ready: %+v", c)
		}
		a.api.Fail("patch", "nodes", "n1", fake.Forbidden("nodes"), -1)
		a.source.SetReady(true)
		settle(time.Minute)
		if h := a.health("node-condition"); h.Pending != 1 || !strings.Contains(h.Error, "set NetworkUnavailable=False on node n1: ") || !strings.Contains(h.Error, "no role allows it") {
			a.t.Errorf("without permission: %+v", h)
		}
		a.api.Heal()
		settle(time.Minute)
		if c := condition(a); c.Status != corev1.ConditionFalse || c.Reason != "CiliumIsUp" || a.health("node-condition").Pending != 0 {
			a.t.Errorf("ready: %+v", c)
		}
		writes := a.count("patch nodes")
		settle(3 * auditEvery)
		if a.count("patch nodes") != writes {
			a.t.Error("written again without a reason")
		}
		// A cloud's route controller says the opposite.
		node := here()
		if _, err := a.api.Kubernetes.CoreV1().Nodes().UpdateStatus(a.ctx, node, metav1.UpdateOptions{}); err != nil {
			a.t.Fatal(err)
		}
		synctest.Wait()
		if c := condition(a); c.Reason != "CiliumIsUp" {
			a.t.Errorf("after somebody changed it: %+v", c)
		}
	}, here())
}

// TestEndpointIsTheSameInEveryArrivalOrder: the node, the pod and the endpoint come in any order.
func TestEndpointIsTheSameInEveryArrivalOrder(t *testing.T) {
	orders := [][]string{{"node", "pod", "endpoint"}, {"endpoint", "pod", "node"}, {"pod", "endpoint", "node"}, {"node", "endpoint", "pod"}}
	for _, order := range orders {
		t.Run(strings.Join(order, " "), func(t *testing.T) {
			bubble(t, SourceOptions{}, nil, func(a *agent) {
				a.rows(a.restored)
				for _, what := range order {
					var err error
					switch what {
					case "node":
						_, err = a.api.Kubernetes.CoreV1().Nodes().Create(a.ctx, here(), metav1.CreateOptions{})
					case "pod":
						_, err = a.api.Kubernetes.CoreV1().Pods("default").Create(a.ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
							Name: "web", Namespace: "default", UID: "uid-web", Labels: map[string]string{"app": "web"},
						}}, metav1.CreateOptions{})
					case "endpoint":
						a.pod("web", "10.1.1.2")
					}
					if err != nil {
						a.t.Fatal(err)
					}
					synctest.Wait()
				}
				e, ok := a.endpoint("web")
				if !ok {
					a.t.Fatal("no CiliumEndpoint")
				}
				st := e.Status
				if st.Networking.Node != "192.0.2.1" || st.Networking.Addressing[0].IPv4 != "10.1.1.2" || st.Identity.ID != 300 ||
					!slices.Equal(st.Identity.Labels, []string{"k8s:app=web", "k8s:empty"}) || st.State != "ready" || e.Labels["app"] != "web" ||
					e.OwnerReferences[0].UID != "uid-web" || st.NamedPorts[0].Name != "http" || st.ExternalIdentifiers.PodName != "default/web" {
					a.t.Errorf("%+v\n%+v", e.ObjectMeta, st)
				}
				if own := a.source.ceps.own(state.Name{Namespace: "default", Name: "web"}); own == nil {
					a.t.Error("the agent does not see its own object")
				}
			})
		})
	}
}

func TestEndpointFollowsItsRow(t *testing.T) {
	bubble(t, SourceOptions{}, nil, func(a *agent) {
		a.rows(a.restored)
		ep := a.pod("web", "10.1.1.2", func(e *state.Endpoint) { e.Identity, e.State = state.IdentityUnknown, state.EndpointWaitingForIdentity })
		if _, ok := a.endpoint("web"); ok {
			a.t.Error("an endpoint without an identity was published")
		}
		ep.Identity, ep.State = 300, state.EndpointReady
		a.rows(func(w *state.WriteTxn) { a.tables.Endpoints.Insert(w, ep) })
		ep.Identity, ep.Labels = 301, []string{"k8s:app=other"}
		a.rows(func(w *state.WriteTxn) { a.tables.Endpoints.Insert(w, ep) })
		if e, ok := a.endpoint("web"); !ok || e.Status.Identity.ID != 301 {
			a.t.Errorf("after a change of labels: %+v", e.Status.Identity)
		}
		// A new sandbox of the same pod: the youngest counts, and the older one's end takes nothing away.
		young := a.pod("web", "10.1.1.3", func(e *state.Endpoint) { e.CreatedUnixMs = 5 })
		a.rows(func(w *state.WriteTxn) { a.tables.Endpoints.Delete(w, ep.ID) })
		if e, ok := a.endpoint("web"); !ok || e.Status.Networking.Addressing[0].IPv4 != "10.1.1.3" {
			a.t.Errorf("after a new sandbox: %+v", e.Status.Networking)
		}
		a.rows(func(w *state.WriteTxn) { a.tables.Endpoints.Delete(w, young.ID) })
		if _, ok := a.endpoint("web"); ok {
			a.t.Error("the object stays after the pod is gone")
		}
	}, here())
}

// TestEndpointsOfAnEarlierRun: those without a row go once all rows are there, and not before.
func TestEndpointsOfAnEarlierRun(t *testing.T) {
	bubble(t, SourceOptions{}, func(a *agent) {
		a.create(endpoint("gone", "192.0.2.1", "10.1.1.9", 300), "default")
		a.create(endpoint("elsewhere", "192.0.2.2", "10.1.2.9", 300), "default")
	}, func(a *agent) {
		settle(2 * auditEvery)
		if _, ok := a.endpoint("gone"); !ok {
			a.t.Fatal("deleted before the endpoints were restored")
		}
		a.rows(a.restored)
		if _, ok := a.endpoint("gone"); ok {
			a.t.Error("stays after the endpoints were restored")
		}
		settle(2 * auditEvery)
		if _, ok := a.endpoint("elsewhere"); !ok {
			a.t.Error("the object of another node was deleted")
		}
	}, here())
}

func TestEndpointChangesHands(t *testing.T) {
	bubble(t, SourceOptions{}, func(a *agent) {
		// A pod of this name was on another node before.
		a.create(endpoint("web", "192.0.2.2", "10.1.2.2", 400), "default")
	}, func(a *agent) {
		a.rows(a.restored)
		ep := a.pod("web", "10.1.1.2")
		if e, _ := a.endpoint("web"); e.Status.Networking.Node != "192.0.2.1" || e.Status.Identity.ID != 300 {
			a.t.Fatalf("not taken over: %+v", e.Status)
		}
		// The next one is on another node again: its agent has written the object before ours
		// deletes, and our watch has not brought that yet.
		moved, _ := a.endpoint("web")
		moved.Status.Networking.Node = "192.0.2.3"
		u, err := ciliumio.ToUnstructured(&moved)
		if err != nil {
			a.t.Fatal(err)
		}
		a.api.Fail("delete", "ciliumendpoints", "web", fake.Conflict("ciliumendpoints"), 1)
		a.rows(func(w *state.WriteTxn) { a.tables.Endpoints.Delete(w, ep.ID) })
		if _, err := a.api.Dynamic.Resource(ciliumio.Endpoints).Namespace("default").Update(a.ctx, u, metav1.UpdateOptions{}); err != nil {
			a.t.Fatal(err)
		}
		settle(2 * auditEvery)
		if e, ok := a.endpoint("web"); !ok || e.Status.Networking.Node != "192.0.2.3" {
			a.t.Error("the object of another node was taken away")
		}
		if h := a.health("ciliumendpoint"); h.Pending != 0 {
			a.t.Errorf("a conflict that is none of ours is reported: %+v", h)
		}
	}, here())
}

// TestFailuresAreToldUntilTheyAreOver: a pod whose object cannot be written is told of while others
// go through, and everything is written once that is possible.
func TestFailuresAreToldUntilTheyAreOver(t *testing.T) {
	for name, err := range map[string]error{
		"no permission":   fake.Forbidden("ciliumendpoints"),
		"server away":     errors.New("dial tcp 192.0.2.9:6443: connect: connection refused"),
		"kind is missing": apierrors.NewNotFound(ciliumio.Endpoints.GroupResource(), ""),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, SourceOptions{}, nil, func(a *agent) {
				a.rows(a.restored)
				a.api.Fail("create", "ciliumendpoints", "bad", err, -1)
				a.pod("bad", "10.1.1.2")
				settle(5 * time.Second)
				a.pod("good", "10.1.1.3")
				settle(20 * time.Millisecond)
				h := a.health("ciliumendpoint")
				if h.Pending != 1 || h.Writes != 1 || h.Error != fmt.Sprintf("create CiliumEndpoint default/bad: %v", err) || time.Since(h.Since) < 5*time.Second {
					a.t.Errorf("%+v", h)
				}
				if _, ok := a.endpoint("good"); !ok {
					a.t.Error("one failure holds up the other pods")
				}
				a.api.Heal()
				settle(time.Minute)
				if _, ok := a.endpoint("bad"); !ok || a.health("ciliumendpoint").Pending != 0 || a.health("ciliumendpoint").Error != "" {
					a.t.Errorf("after the cause is gone: %+v", a.health("ciliumendpoint"))
				}
			}, here())
		})
	}
}

// TestWatchesTellWhatTheyLack names the resource that may not be read, and recovers.
func TestWatchesTellWhatTheyLack(t *testing.T) {
	bubble(t, SourceOptions{ClusterPool: true}, func(a *agent) {
		a.api.Fail("list", "ciliumnodes", "", fake.Forbidden("ciliumnodes"), -1)
	}, func(a *agent) {
		settle(time.Minute)
		if p := a.source.problems(); !strings.HasPrefix(p, "ciliumnodes.cilium.io: ") || !strings.Contains(p, "no role allows it") {
			a.t.Errorf("problems %q", p)
		}
		if ok, _ := a.tables.Nodes.Initialized(); ok {
			a.t.Error("a table counts as complete without one of its sources")
		}
		a.api.Heal()
		settle(time.Minute)
		if ok, _ := a.tables.Nodes.Initialized(); !ok || a.source.problems() != "" {
			a.t.Errorf("after the permission is there: %v %q", ok, a.source.problems())
		}
	}, here())
}

// TestExhaustedClusterPoolIsNamed: a node that waits for its pod CIDRs knows why it gets none.
func TestExhaustedClusterPoolIsNamed(t *testing.T) {
	bubble(t, SourceOptions{ClusterPool: true}, func(a *agent) {
		n := &ciliumio.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
		n.Status.IPAM.OperatorStatus.Error = "cluster pool is exhausted"
		a.create(n, "")
	}, func(a *agent) {
		var log strings.Builder
		a.source.log = slog.New(slog.NewTextHandler(&log, nil))
		ctx, cancel := context.WithTimeout(a.ctx, 15*time.Second)
		defer cancel()
		if _, err := a.source.WaitPodCIDRs(ctx); err == nil || !strings.Contains(err.Error(), "set by cilium-operator") {
			a.t.Errorf("got %v", err)
		}
		if !strings.Contains(log.String(), `operator="cluster pool is exhausted"`) {
			a.t.Errorf("log: %s", log.String())
		}
	}, here())
}
