// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// serve starts a server and returns a client's configuration for it.
func serve(t *testing.T, o Options) (*Server, *rest.Config) {
	t.Helper()
	o.Version = "v1.36.3"
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	text, err := s.Kubeconfig(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := clientcmd.RESTConfigFromKubeConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS, cfg.Burst = 1000, 1000
	return s, cfg
}

func service(i int) *corev1.Service {
	name := fmt.Sprintf("s%d", i)
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"parity": fmt.Sprint(i % 2)}},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Port: int32(i + 1)}}},
	}
}

func put(t *testing.T, s *Server, obj *corev1.Service) *Change {
	t.Helper()
	c, err := s.Put(obj)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func receive[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	var v T
	select {
	case v = <-ch:
	case <-time.After(time.Minute):
		t.Fatalf("%s did not come", what)
	}
	return v
}

// TestInformers follows Services as programs on nodes do: in both forms, from lists and from streams.
func TestInformers(t *testing.T) {
	for _, proto := range []bool{false, true} {
		for _, noStreams := range []bool{false, true} {
			t.Run(fmt.Sprintf("protobuf=%v,lists=%v", proto, noStreams), func(t *testing.T) {
				s, cfg := serve(t, Options{NoStreams: noStreams})
				if proto {
					cfg.AcceptContentTypes, cfg.ContentType = mediaProtobuf+","+mediaJSON, mediaProtobuf
				}
				for i := range 500 {
					put(t, s, service(i))
				}
				s.Fresh()
				client, err := kubernetes.NewForConfig(cfg)
				if err != nil {
					t.Fatal(err)
				}
				odd := func(o *metav1.ListOptions) { o.LabelSelector = "parity=1" }
				f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTweakListOptions(odd))
				events := make(chan string, 1000)
				inf := f.Core().V1().Services().Informer()
				port := func(obj any) int32 { return obj.(*corev1.Service).Spec.Ports[0].Port }
				if _, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
					AddFunc: func(obj any) { events <- fmt.Sprint("add ", port(obj)) },
					UpdateFunc: func(was, is any) {
						events <- fmt.Sprint("update ", port(was), " to ", port(is))
					},
					DeleteFunc: func(obj any) { events <- fmt.Sprint("delete ", port(obj)) },
				}); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				f.Start(ctx.Done())
				defer f.Shutdown()
				defer cancel()
				if !cache.WaitForCacheSync(ctx.Done(), inf.HasSynced) {
					t.Fatal("no first set")
				}
				if n := len(inf.GetStore().List()); n != 250 {
					t.Errorf("%d Services in the first set, want 250", n)
				}
				for range 250 {
					receive(t, events, "the first set")
				}
				expect := func(want string) {
					t.Helper()
					if got := receive(t, events, want); got != want {
						t.Errorf("%s, want %s", got, want)
					}
				}
				// A watch may begin a moment after the first set: what comes between is not lost.
				next := service(1001)
				put(t, s, next)
				put(t, s, service(1002)) // not selected
				expect("add 1002")
				next.Spec.Ports[0].Port = 7
				put(t, s, next)
				expect("update 1002 to 7")
				next.Labels = nil
				c := put(t, s, next)
				expect("delete 7")
				if c.Sent() == 0 {
					t.Error("a change that was sent has no time")
				}
				if _, err := s.Delete(service(3)); err != nil {
					t.Fatal(err)
				}
				expect("delete 4")
			})
		}
	}
}

// TestFieldSelectors lists as kube-proxy and the agent do, and is told of what cannot be selected by.
func TestFieldSelectors(t *testing.T) {
	s, cfg := serve(t, Options{})
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	headless := service(1)
	headless.Spec.ClusterIP = corev1.ClusterIPNone
	put(t, s, headless)
	put(t, s, service(2))
	for selector, want := range map[string]int{"": 2, "spec.clusterIP!=None": 1, "metadata.name=s1": 1, "metadata.namespace=other": 0} {
		list, err := client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{FieldSelector: selector})
		if err != nil || len(list.Items) != want {
			t.Errorf("%q: %d Services, %v; want %d", selector, len(list.Items), err, want)
		}
	}
	if _, err := client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.type=ClusterIP"}); !apierrors.IsBadRequest(err) {
		t.Errorf("a field that is not indexed: %v", err)
	}
}

// TestWatchThatIsTooOld asks for events that are no longer there, and for those since a version.
func TestWatchThatIsTooOld(t *testing.T) {
	s, cfg := serve(t, Options{})
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	api := client.CoreV1().Services("default")
	put(t, s, service(1))
	put(t, s, service(2))
	list, err := api.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 2 {
		t.Fatalf("%d items, %v", len(list.Items), err)
	}
	put(t, s, service(3))
	w, err := api.Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	ev := receive(t, w.ResultChan(), "the event since the list")
	if got := ev.Object.(*corev1.Service); ev.Type != "ADDED" || got.Name != "s3" {
		t.Errorf("%s %s, want the third to be added", ev.Type, got.Name)
	}
	w.Stop()
	s.Fresh()
	if _, err := api.Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion}); !apierrors.IsResourceExpired(err) {
		t.Errorf("events that are gone: %v", err)
	}
}

// TestWrites does what agents do to their objects.
func TestWrites(t *testing.T) {
	s, cfg := serve(t, Options{})
	cfg.AcceptContentTypes, cfg.ContentType = mediaProtobuf+","+mediaJSON, mediaProtobuf
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if v, err := client.Discovery().ServerVersion(); err != nil || v.Minor != "36" {
		t.Errorf("version %v, %v", v, err)
	}
	if _, lists, err := client.Discovery().ServerGroupsAndResources(); err != nil || len(lists) < 5 {
		t.Errorf("%d groups, %v", len(lists), err)
	}
	nodes := client.CoreV1().Nodes()
	made, err := nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, metav1.CreateOptions{})
	if err != nil || made.UID == "" {
		t.Fatalf("%+v, %v", made, err)
	}
	if _, err := nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("made twice: %v", err)
	}
	patch := `{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False"}]}}`
	got, err := nodes.PatchStatus(ctx, "n", []byte(patch))
	if err != nil || len(got.Status.Conditions) != 1 || got.UID != made.UID {
		t.Errorf("patched: %+v, %v", got, err)
	}
	if _, err := nodes.Update(ctx, made, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("an update of what has changed: %v", err)
	}
	if _, err := nodes.Patch(ctx, "n", types.JSONPatchType, []byte(`[]`), metav1.PatchOptions{}); err == nil {
		t.Error("a patch that is not understood was accepted")
	}
	if _, err := nodes.Get(ctx, "m", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a node that is not there: %v", err)
	}
	if _, err := client.CoreV1().Events("default").Create(ctx, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e"}}, metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
	review, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{}, metav1.CreateOptions{})
	if err != nil || !review.Status.Allowed {
		t.Errorf("%+v, %v", review, err)
	}
	if err := nodes.Delete(ctx, "n", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := s.Delete(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}); err == nil {
		t.Error("a node was deleted twice")
	}
	if _, err := client.CoreV1().Endpoints("").List(ctx, metav1.ListOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a kind that is not there: %v", err)
	}
	pods, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=n"})
	if err != nil || len(pods.Items) != 0 {
		t.Errorf("%+v, %v", pods, err)
	}
	if _, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "status.phase=Running"}); !apierrors.IsBadRequest(err) {
		t.Errorf("a field that nobody knows: %v", err)
	}
}

// TestCustomKinds writes, patches and lists an object of cilium.io.
func TestCustomKinds(t *testing.T) {
	_, cfg := serve(t, Options{})
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	api := client.Resource(of("cilium.io", "v2", "ciliumnodes"))
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": map[string]any{"name": "n"}, "spec": map[string]any{"bootid": "a", "health": "x"},
	}}
	made, err := api.Create(t.Context(), u, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	patched, err := api.Patch(t.Context(), "n", types.MergePatchType, []byte(`{"spec":{"bootid":"b","health":null}}`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	spec, _, _ := unstructured.NestedStringMap(patched.Object, "spec")
	if patched.GetUID() != made.GetUID() || spec["bootid"] != "b" || len(spec) != 1 {
		t.Errorf("patched: %v", patched.Object)
	}
	list, err := api.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.Items[0].GetName() != "n" {
		t.Errorf("%v, %v", list, err)
	}
}

// TestSent waits for every watch, and for none when there is none.
func TestSent(t *testing.T) {
	s, cfg := serve(t, Options{})
	if c := put(t, s, service(1)); c.Sent() != 0 {
		t.Error("a change that nobody watched was sent")
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w, err := client.CoreV1().Services("").Watch(t.Context(), metav1.ListOptions{ResourceVersion: "1", FieldSelector: "metadata.name=s2"})
	if err != nil {
		t.Fatal(err)
	}
	before := s.o.Clock()
	if c := put(t, s, service(1)); c.Sent() != 0 {
		t.Error("a change that nobody selects was sent")
	}
	c := put(t, s, service(2))
	receive(t, w.ResultChan(), "the change")
	if at := c.Sent(); at < before || at > s.o.Clock() {
		t.Errorf("sent at %d, it was made after %d", at, before)
	}
	w.Stop()
	sl, err := s.Put(&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "x"}})
	if err != nil {
		t.Fatal(err)
	}
	sl.Sent() // does not wait for watches of other kinds
}
