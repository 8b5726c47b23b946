// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/kubernetes/scheme"

	authorizationv1 "k8s.io/api/authorization/v1"
)

// maxBody bounds what a client may send.
const maxBody = 3 << 20

// target is what a path names.
type target struct {
	kind
	namespace, name, sub string
}

func (t target) key() string { return t.namespace + "/" + t.name }

// parse reads /api/VERSION/... or /apis/GROUP/VERSION/..., then [namespaces/NAME/]RESOURCE[/NAME[/SUB]].
func parse(path string) (target, bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	var gv schema.GroupVersion
	switch {
	case len(parts) > 2 && parts[0] == "api":
		gv, parts = schema.GroupVersion{Version: parts[1]}, parts[2:]
	case len(parts) > 3 && parts[0] == "apis":
		gv, parts = schema.GroupVersion{Group: parts[1], Version: parts[2]}, parts[3:]
	default:
		return target{}, false
	}
	var t target
	if len(parts) > 2 && parts[0] == "namespaces" && parts[2] != "status" && parts[2] != "finalize" {
		t.namespace, parts = parts[1], parts[2:]
	}
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.GroupVersionResource == gv.WithResource(parts[0]) })
	if i < 0 || len(parts) > 3 {
		return target{}, false
	}
	t.kind = kinds[i]
	if len(parts) > 1 {
		t.name = parts[1]
	}
	if len(parts) > 2 {
		t.sub = parts[2]
	}
	return t, true
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch strings.TrimSuffix(r.URL.Path, "/") {
	case "/version":
		major, rest, _ := strings.Cut(strings.TrimPrefix(s.o.Version, "v"), ".")
		minor, _, _ := strings.Cut(rest, ".")
		writeJSON(w, http.StatusOK, version.Info{Major: major, Minor: minor, GitVersion: s.o.Version, Platform: "linux/stand-in"})
		return
	case "/healthz", "/livez", "/readyz":
		_, _ = io.WriteString(w, "ok")
		return
	}
	if v := discovery(r.URL.Path); v != nil {
		writeJSON(w, http.StatusOK, v)
		return
	}
	t, ok := parse(r.URL.Path)
	if !ok {
		fail(w, apierrors.NewGenericServerResponse(http.StatusNotFound, r.Method, schema.GroupResource{}, "", r.URL.Path+" is nothing that this server has", 0, true))
		return
	}
	f, ok := formOf(r.Header.Get("Accept"), t.kind)
	if !ok {
		fail(w, apierrors.NewGenericServerResponse(http.StatusNotAcceptable, r.Method, t.GroupResource(), t.name, "only "+mediaJSON+" and "+mediaProtobuf+" are spoken here", 0, true))
		return
	}
	if err := s.serve(w, r, t, f); err != nil {
		fail(w, statusOf(err, t))
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, t target, f form) error {
	switch {
	case r.Method == http.MethodGet && t.name == "":
		return s.serveMany(w, r, t, f)
	case r.Method == http.MethodGet:
		o := s.store.get(t.kind, t.key())
		if o == nil {
			return fmt.Errorf("%s %s: %w", t.kind.name, t.key(), errMissing)
		}
		return s.answer(w, http.StatusOK, f, o)
	case r.Method == http.MethodPost && t.name == "":
		return s.serveWrite(w, r, t, f, create)
	case r.Method == http.MethodPut && t.name != "":
		return s.serveWrite(w, r, t, f, update)
	case r.Method == http.MethodPatch && t.name != "":
		return s.servePatch(w, r, t, f)
	case r.Method == http.MethodDelete && t.name != "":
		if _, err := s.store.remove(t.kind, t.key()); err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess})
		return nil
	}
	return apierrors.NewMethodNotSupported(t.GroupResource(), r.Method)
}

// answer sends one object.
func (s *Server) answer(w http.ResponseWriter, code int, f form, o *object) error {
	body, err := s.store.encode(f, o)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", f.contentType(false))
	w.WriteHeader(code)
	_, _ = w.Write(body) // the client is gone
	return nil
}

// decode reads an object that a client has sent.
func decode(r *http.Request, t target) (metav1.Object, func() (*object, error), error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	if t.custom {
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON(body); err != nil {
			return nil, nil, apierrors.NewBadRequest(err.Error())
		}
		return u, func() (*object, error) { return fromUnstructured(t.kind, u) }, nil
	}
	gvk := t.gvk()
	obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, &gvk, nil)
	if err != nil {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	acc, ok := obj.(metav1.Object)
	if !ok {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("%T has no metadata", obj))
	}
	if review, ok := obj.(*authorizationv1.SelfSubjectAccessReview); ok {
		review.Status.Allowed = true
	}
	return acc, func() (*object, error) { return fromTyped(t.kind, obj) }, nil
}

func (s *Server) serveWrite(w http.ResponseWriter, r *http.Request, t target, f form, m mode) error {
	acc, encode, err := decode(r, t)
	if err != nil {
		return err
	}
	if t.namespaced {
		acc.SetNamespace(t.namespace)
	}
	if acc.GetName() == "" {
		acc.SetName(acc.GetGenerateName() + versionText(uint64(s.o.Clock())))
	}
	if t.name != "" && acc.GetName() != t.name {
		return apierrors.NewBadRequest("the name in the path is not that of the object")
	}
	code := http.StatusOK
	if m == create {
		code = http.StatusCreated
	}
	if t.transient {
		o, err := encode()
		if err != nil {
			return err
		}
		return s.answer(w, code, f, o)
	}
	c, err := s.store.write(t.kind, m, acc, encode)
	if err != nil {
		return err
	}
	return s.answer(w, code, f, c.now)
}

// patched is the text of an object after a patch.
func patched(contentType string, text, patch []byte, like runtime.Object) ([]byte, error) {
	switch types.PatchType(contentType) {
	case types.StrategicMergePatchType:
		if like == nil {
			return nil, errors.New("custom kinds have no strategic merge")
		}
		return strategicpatch.StrategicMergePatch(text, patch, like)
	case types.MergePatchType:
		var was, change any
		if err := errors.Join(json.Unmarshal(text, &was), json.Unmarshal(patch, &change)); err != nil {
			return nil, err
		}
		return json.Marshal(merge(was, change))
	}
	return nil, fmt.Errorf("patches of type %q are not understood here: send %s or %s", contentType, types.StrategicMergePatchType, types.MergePatchType)
}

// merge is RFC 7386.
func merge(was, change any) any {
	fields, ok := change.(map[string]any)
	if !ok {
		return change
	}
	out, ok := was.(map[string]any)
	if !ok {
		out = map[string]any{}
	}
	for k, v := range fields {
		if v == nil {
			delete(out, k)
			continue
		}
		out[k] = merge(out[k], v)
	}
	return out
}

func (s *Server) servePatch(w http.ResponseWriter, r *http.Request, t target, f form) error {
	o := s.store.get(t.kind, t.key())
	if o == nil {
		return fmt.Errorf("%s %s: %w", t.kind.name, t.key(), errMissing)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	text, err := s.store.encode(form{}, o)
	if err != nil {
		return err
	}
	var like runtime.Object
	if !t.custom {
		if like, err = scheme.Scheme.New(t.gvk()); err != nil {
			return fmt.Errorf("%s: %w", t.kind.name, err)
		}
	}
	text, err = patched(r.Header.Get("Content-Type"), text, body, like)
	if err != nil {
		return apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "patch", t.GroupResource(), t.name, err.Error(), 0, true)
	}
	next := &object{kind: t.kind, namespace: t.namespace, objName: t.name, text: text}
	if !t.custom {
		if err := json.Unmarshal(text, like); err != nil {
			return apierrors.NewBadRequest(err.Error())
		}
		if next, err = fromTyped(t.kind, like); err != nil {
			return err
		}
	}
	acc, encode, err := next.decode()
	if err != nil {
		return err
	}
	c, err := s.store.write(t.kind, update, acc, encode)
	if err != nil {
		return err
	}
	return s.answer(w, http.StatusOK, f, c.now)
}

// discovery answers what groups, versions and resources there are, nil for other paths.
func discovery(path string) any {
	switch parts := strings.Split(strings.Trim(path, "/"), "/"); {
	case len(parts) == 1 && parts[0] == "api":
		return metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}}
	case len(parts) == 1 && parts[0] == "apis":
		list := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
		for _, k := range kinds {
			if k.Group == "" || slices.ContainsFunc(list.Groups, func(g metav1.APIGroup) bool { return g.Name == k.Group }) {
				continue
			}
			v := metav1.GroupVersionForDiscovery{GroupVersion: k.GroupVersion().String(), Version: k.Version}
			list.Groups = append(list.Groups, metav1.APIGroup{Name: k.Group, Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v})
		}
		return list
	case len(parts) == 2 && parts[0] == "api":
		return resources(schema.GroupVersion{Version: parts[1]})
	case len(parts) == 3 && parts[0] == "apis":
		return resources(schema.GroupVersion{Group: parts[1], Version: parts[2]})
	}
	return nil
}

func resources(gv schema.GroupVersion) any {
	list := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: gv.String()}
	for _, k := range kinds {
		if k.GroupVersion() == gv {
			list.APIResources = append(list.APIResources, metav1.APIResource{
				Name: k.Resource, SingularName: strings.ToLower(k.name), Namespaced: k.namespaced, Kind: k.name,
				Verbs: metav1.Verbs{"get", "list", "watch", "create", "update", "patch", "delete"},
			})
		}
	}
	if len(list.APIResources) == 0 {
		return nil
	}
	return list
}

// statusOf says what went wrong in the API's words.
func statusOf(err error, t target) *apierrors.StatusError {
	var status *apierrors.StatusError
	switch {
	case errors.As(err, &status):
		return status
	case errors.Is(err, errMissing):
		return apierrors.NewNotFound(t.GroupResource(), t.name)
	case errors.Is(err, errExists):
		return apierrors.NewAlreadyExists(t.GroupResource(), t.name)
	case errors.Is(err, errConflict):
		return apierrors.NewConflict(t.GroupResource(), t.name, err)
	case errors.Is(err, errGone):
		return apierrors.NewResourceExpired(err.Error())
	}
	return apierrors.NewInternalError(err)
}

func fail(w http.ResponseWriter, err *apierrors.StatusError) {
	st := err.Status()
	st.Kind, st.APIVersion = "Status", "v1"
	writeJSON(w, int(st.Code), st)
}
