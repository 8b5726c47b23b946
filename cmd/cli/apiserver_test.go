// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	authv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
)

// apiServer is an API server that has some objects, answers get and list, and notes every attempt
// to change something.
type apiServer struct {
	objects map[string][]*unstructured.Unstructured // by resource
	kinds   map[string]bool                         // resources of cilium.io that are registered
	refuse  map[string]int                          // resource to HTTP status; "" for all
	denied  string                                  // resource that the user may not create
	url     string

	mu     sync.Mutex
	writes []string
}

func newAPIServer(t *testing.T, objs ...runtime.Object) *apiServer {
	t.Helper()
	a := &apiServer{objects: map[string][]*unstructured.Unstructured{}, kinds: map[string]bool{}, refuse: map[string]int{}}
	for _, o := range objs {
		m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			t.Fatal(err)
		}
		u := &unstructured.Unstructured{Object: m}
		if gvks, _, err := scheme.Scheme.ObjectKinds(o); err == nil {
			u.SetGroupVersionKind(gvks[0])
		}
		r, _ := meta.UnsafeGuessKindToResource(u.GroupVersionKind())
		a.objects[r.Resource] = append(a.objects[r.Resource], u)
	}
	srv := httptest.NewServer(a)
	t.Cleanup(srv.Close)
	a.url = srv.URL
	return a
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if code := a.refuse[""]; code != 0 {
		fail(w, code, r.URL.Path)
		return
	}
	switch r.URL.Path {
	case "/version":
		answer(w, map[string]string{"major": "1", "minor": "36", "gitVersion": "v1.36.3"})
		return
	case "/api":
		answer(w, metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}})
		return
	case "/apis":
		answer(w, metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}})
		return
	}
	a.resource(w, r)
}

// resource answers /api/v1/[namespaces/NS/]RESOURCE[/NAME] and the same under /apis/GROUP/VERSION.
func (a *apiServer) resource(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	skip := 2
	if parts[0] == "apis" {
		skip = 3
	}
	version, parts := strings.Join(parts[1:skip], "/"), parts[skip:]
	namespace := ""
	if len(parts) > 2 && parts[0] == "namespaces" {
		namespace, parts = parts[1], parts[2:]
	}
	name, resource := "", parts[0]
	if len(parts) > 1 {
		name = parts[1]
	}
	switch code := a.refuse[resource]; {
	case code != 0:
		fail(w, code, resource)
		return
	case strings.HasPrefix(version, "cilium.io/") && !a.kinds[resource]:
		fail(w, http.StatusNotFound, "")
		return
	case resource == "selfsubjectaccessreviews":
		a.review(w, r)
		return
	case r.Method != http.MethodGet:
		a.mu.Lock()
		a.writes = append(a.writes, r.Method+" "+r.URL.Path)
		a.mu.Unlock()
		fail(w, http.StatusInternalServerError, resource)
		return
	}
	sel, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		fail(w, http.StatusBadRequest, resource)
		return
	}
	list := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": version, "kind": kindOf(version, resource) + "List", "metadata": map[string]any{"resourceVersion": "1"}}}
	for _, o := range a.objects[resource] {
		if (namespace == "" || o.GetNamespace() == namespace) && (name == "" || o.GetName() == name) && sel.Matches(labels.Set(o.GetLabels())) {
			list.Items = append(list.Items, *o)
		}
	}
	switch {
	case name == "":
		answer(w, list)
	case len(list.Items) == 0:
		fail(w, http.StatusNotFound, resource)
	default:
		answer(w, list.Items[0].Object)
	}
}

// kindOf is the kind of a resource.
func kindOf(version, resource string) string {
	gv, _ := schema.ParseGroupVersion(version)
	for kind := range scheme.Scheme.KnownTypes(gv) {
		if r, _ := meta.UnsafeGuessKindToResource(gv.WithKind(kind)); r.Resource == resource {
			return kind
		}
	}
	return map[string]string{"ciliumidentities": "CiliumIdentity", "ciliumendpoints": "CiliumEndpoint"}[resource]
}

func (a *apiServer) review(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	obj, _, derr := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	review, ok := obj.(*authv1.SelfSubjectAccessReview)
	if err != nil || derr != nil || !ok {
		fail(w, http.StatusBadRequest, fmt.Sprint(err, derr))
		return
	}
	review.SetGroupVersionKind(authv1.SchemeGroupVersion.WithKind("SelfSubjectAccessReview"))
	review.Status.Allowed = review.Spec.ResourceAttributes.Resource != a.denied
	answer(w, review)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// fail answers as an API server does.
func fail(w http.ResponseWriter, code int, what string) {
	reason, message := metav1.StatusReasonInternalError, "no writing here"
	switch code {
	case http.StatusForbidden:
		reason, message = metav1.StatusReasonForbidden, fmt.Sprintf("%s is forbidden: User %q cannot list resource %q", what, "eve", what)
	case http.StatusUnauthorized:
		reason, message = metav1.StatusReasonUnauthorized, "Unauthorized"
	case http.StatusNotFound:
		reason, message = metav1.StatusReasonNotFound, "the server could not find the requested resource"
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message,
	})
}

// lash runs a command line against the server. The server's address is replaced by one that stays
// the same.
func (a *apiServer) lash(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	code, stdout, stderr = lash(t, strings.ReplaceAll(unreachable, "https://127.0.0.1:1", a.url), args...)
	steady := strings.NewReplacer(a.url, "https://127.0.0.1:6443")
	return code, steady.Replace(stdout), steady.Replace(stderr)
}
