// SPDX-License-Identifier: Apache-2.0

// Package fake is an API server in memory for the tests of those who write to a real one. Objects
// of cilium.io get UIDs and resource versions, and requests are refused as a real server does:
// for a resource version that is out of date, for preconditions that do not hold, and when the
// test says so.
package fake

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"lash.internal/lash/agent/kube/ciliumio"
)

// API is the server.
type API struct {
	Kubernetes *fake.Clientset
	Dynamic    *dynamicfake.FakeDynamicClient

	mu       sync.Mutex
	version  int
	failures []*failure
	writes   []string
}

type failure struct {
	verb, resource, name string
	err                  error
	left                 int
}

// New returns a server that has the objects, all of built-in kinds.
func New(objs ...runtime.Object) *API {
	a := &API{}
	a.Kubernetes = fake.NewClientset(objs...)
	a.Dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		ciliumio.Identities: "CiliumIdentityList", ciliumio.Endpoints: "CiliumEndpointList", ciliumio.Nodes: "CiliumNodeList",
	})
	a.Kubernetes.PrependReactor("*", "*", a.builtIn)
	a.Dynamic.PrependReactor("*", "*", a.custom)
	return a
}

// Fail makes requests fail with err: those of a verb ("*" for all) on a resource, of one object
// when a name is given, and as many as times says, all that come when it is negative.
func (a *API) Fail(verb, resource, name string, err error, times int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failures = append(a.failures, &failure{verb, resource, name, err, times})
}

// Heal ends all failures.
func (a *API) Heal() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failures = nil
}

// Writes lists the changes that were made, as "verb resource/name".
func (a *API) Writes() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.writes)
}

// Forbidden is the answer to a user without the permission.
func Forbidden(resource string) error {
	return apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "", errors.New("no role allows it"))
}

// Conflict is the answer to a change of an object that somebody else has changed.
func Conflict(resource string) error {
	return apierrors.NewConflict(schema.GroupResource{Resource: resource}, "", errors.New("the object has been modified"))
}

// nameOf is the name of the object that a request is about, empty for lists.
func nameOf(action clienttesting.Action) string {
	if x, ok := action.(interface{ GetName() string }); ok && x.GetName() != "" {
		return x.GetName()
	}
	if x, ok := action.(interface{ GetObject() runtime.Object }); ok {
		if m, ok := x.GetObject().(metav1.Object); ok {
			return m.GetName()
		}
	}
	return ""
}

// begin answers with the failure that the test wants, and notes writes.
func (a *API) begin(action clienttesting.Action) error {
	name, resource := nameOf(action), action.GetResource().Resource
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range a.failures {
		if (f.verb == "*" || f.verb == action.GetVerb()) && f.resource == resource && (f.name == "" || f.name == name) && f.left != 0 {
			f.left--
			return f.err
		}
	}
	switch action.GetVerb() {
	case "create", "update", "patch", "delete":
		a.writes = append(a.writes, fmt.Sprintf("%s %s/%s", action.GetVerb(), resource, name))
	}
	return nil
}

func (a *API) builtIn(action clienttesting.Action) (bool, runtime.Object, error) {
	err := a.begin(action)
	return err != nil, nil, err
}

func (a *API) custom(action clienttesting.Action) (bool, runtime.Object, error) {
	if err := a.begin(action); err != nil {
		return true, nil, err
	}
	var (
		out runtime.Object
		err error
	)
	switch x := action.(type) {
	case clienttesting.DeleteActionImpl:
		err = a.remove(x)
	case clienttesting.CreateActionImpl:
		out, err = a.create(x)
	case clienttesting.UpdateActionImpl:
		out, err = a.update(x)
	default:
		return false, nil, nil
	}
	return true, out, err
}

// stamp gives an object the next resource version.
func (a *API) stamp(u *unstructured.Unstructured) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	u.SetResourceVersion(strconv.Itoa(a.version))
	if u.GetUID() == "" {
		u.SetUID(types.UID("uid-" + u.GetResourceVersion()))
	}
}

func (a *API) create(x clienttesting.CreateActionImpl) (runtime.Object, error) {
	u, ok := x.GetObject().(*unstructured.Unstructured)
	if !ok {
		return nil, apierrors.NewBadRequest("not an object")
	}
	a.stamp(u)
	return u, a.Dynamic.Tracker().Create(x.GetResource(), u, x.GetNamespace())
}

func (a *API) update(x clienttesting.UpdateActionImpl) (runtime.Object, error) {
	u, ok := x.GetObject().(*unstructured.Unstructured)
	if !ok {
		return nil, apierrors.NewBadRequest("not an object")
	}
	have, err := a.current(x.GetResource(), x.GetNamespace(), u.GetName())
	if err != nil {
		return nil, err
	}
	if v := u.GetResourceVersion(); v != "" && v != have.GetResourceVersion() {
		return nil, Conflict(x.GetResource().Resource)
	}
	// Of CiliumNodes the status is a resource of its own; either request leaves the other part.
	next := u
	switch {
	case x.GetSubresource() == "status":
		next = have.DeepCopy()
		next.Object["status"] = u.Object["status"]
	case x.GetResource() == ciliumio.Nodes:
		delete(next.Object, "status")
		if status, ok := have.Object["status"]; ok {
			next.Object["status"] = status
		}
	}
	next.SetUID(have.GetUID())
	a.stamp(next)
	return next, a.Dynamic.Tracker().Update(x.GetResource(), next, x.GetNamespace())
}

func (a *API) remove(x clienttesting.DeleteActionImpl) error {
	have, err := a.current(x.GetResource(), x.GetNamespace(), x.GetName())
	if err != nil {
		return err
	}
	if p := x.GetDeleteOptions().Preconditions; p != nil {
		if (p.UID != nil && *p.UID != have.GetUID()) || (p.ResourceVersion != nil && *p.ResourceVersion != have.GetResourceVersion()) {
			return Conflict(x.GetResource().Resource)
		}
	}
	return a.Dynamic.Tracker().Delete(x.GetResource(), x.GetNamespace(), x.GetName())
}

func (a *API) current(gvr schema.GroupVersionResource, namespace, name string) (*unstructured.Unstructured, error) {
	obj, err := a.Dynamic.Tracker().Get(gvr, namespace, name)
	if err != nil {
		return nil, err
	}
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, apierrors.NewInternalError(fmt.Errorf("%s is a %T", name, obj))
	}
	return u, nil
}
