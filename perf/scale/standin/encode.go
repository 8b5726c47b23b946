// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
)

// Media types (source: the Kubernetes API concepts, "Alternate representations of resources").
const (
	mediaProtobuf = "application/vnd.kubernetes.protobuf"
	mediaJSON     = "application/json"
)

// magic begins every message in protobuf; an envelope (runtime.Unknown) follows.
const magic = "k8s\x00"

// marshaler is a generated protobuf message.
type marshaler interface{ Marshal() ([]byte, error) }

// object is one stored object as it travels.
type object struct {
	kind
	namespace, objName string
	labels             map[string]string
	nodeName           string // spec.nodeName of pods
	clusterIP          string // spec.clusterIP of Services
	version            uint64
	proto              []byte // the bare message; nil for custom kinds
	text               []byte // JSON; made when first asked for
}

func (o *object) key() string { return o.namespace + "/" + o.objName }

// typed decodes an object of a built-in kind.
func (o *object) typed() (runtime.Object, error) {
	obj, err := scheme.Scheme.New(o.gvk())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.name, err)
	}
	m, ok := obj.(interface{ Unmarshal([]byte) error })
	if !ok {
		return nil, fmt.Errorf("%s has no form in protobuf", o.name)
	}
	if err := m.Unmarshal(o.proto); err != nil {
		return nil, fmt.Errorf("%s %s: %w", o.name, o.key(), err)
	}
	obj.GetObjectKind().SetGroupVersionKind(o.gvk())
	return obj, nil
}

// json is the object as JSON. The caller holds the lock of the store.
func (o *object) json() ([]byte, error) {
	if o.text != nil {
		return o.text, nil
	}
	obj, err := o.typed()
	if err != nil {
		return nil, err
	}
	o.text, err = json.Marshal(obj)
	return o.text, err
}

// form is how a client wants objects.
type form struct{ proto bool }

// formOf reads an Accept header: the first of the known types that a kind has.
func formOf(accept string, k kind) (form, bool) {
	if accept == "" {
		return form{}, true
	}
	for _, part := range strings.Split(accept, ",") {
		media, params, _ := strings.Cut(strings.TrimSpace(part), ";")
		if strings.Contains(params, "as=") {
			continue // a table, or metadata only
		}
		switch strings.TrimSpace(media) {
		case mediaProtobuf:
			if !k.custom {
				return form{proto: true}, true
			}
		case mediaJSON, "*/*", "application/*":
			return form{}, true
		}
	}
	return form{}, false
}

func (f form) contentType(stream bool) string {
	switch {
	case f.proto && stream:
		return mediaProtobuf + ";stream=watch"
	case f.proto:
		return mediaProtobuf
	}
	return mediaJSON
}

// field appends a field of protobuf's wire type 2 (bytes).
func field(b []byte, number int, v []byte) []byte {
	b = binary.AppendUvarint(b, uint64(number)<<3|2)
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

// envelope wraps a message as runtime.Unknown: field 1 says of what kind it is (TypeMeta: 1
// apiVersion, 2 kind), field 2 is the message.
func envelope(gvk schema.GroupVersionKind, message []byte) []byte {
	meta := field(field(nil, 1, []byte(gvk.GroupVersion().String())), 2, []byte(gvk.Kind))
	b := make([]byte, 0, len(magic)+len(meta)+len(message)+24)
	return field(field(append(b, magic...), 1, meta), 2, message)
}

// encode is one object for a client.
func (f form) encode(o *object) ([]byte, error) {
	if f.proto {
		return envelope(o.gvk(), o.proto), nil
	}
	return o.json()
}

// list is a list of objects for a client.
func (f form) list(k kind, objs []*object, version uint64) ([]byte, error) {
	gvk := k.GroupVersion().WithKind(k.name + "List")
	if f.proto {
		meta, err := (&metav1.ListMeta{ResourceVersion: versionText(version)}).Marshal()
		if err != nil {
			return nil, err
		}
		size := len(meta) + 16
		for _, o := range objs {
			size += len(o.proto) + 8
		}
		items := field(make([]byte, 0, size), 1, meta)
		for _, o := range objs {
			items = field(items, 2, o.proto)
		}
		return envelope(gvk, items), nil
	}
	out := fmt.Appendf(nil, `{"kind":%q,"apiVersion":%q,"metadata":{"resourceVersion":%q},"items":[`, gvk.Kind, gvk.GroupVersion(), versionText(version))
	for i, o := range objs {
		if i > 0 {
			out = append(out, ',')
		}
		text, err := o.json()
		if err != nil {
			return nil, err
		}
		out = append(out, text...)
	}
	return append(out, "]}\n"...), nil
}

// frame is one event of a watch. In protobuf it is preceded by its length, in four bytes.
func (f form) frame(event string, o *object) ([]byte, error) {
	body, err := f.encode(o)
	if err != nil {
		return nil, err
	}
	if !f.proto {
		out := fmt.Appendf(nil, `{"type":%q,"object":`, event)
		return append(append(out, body...), "}\n"...), nil
	}
	// metav1.WatchEvent: 1 type, 2 object (RawExtension: 1 raw).
	inner := field(make([]byte, 0, len(body)+12), 1, body)
	out := make([]byte, 4, len(inner)+32)
	out = field(field(out, 1, []byte(event)), 2, inner)
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return out, nil
}

// bookmark is an empty object that tells a version, and with initial that the set is whole.
func (k kind) bookmark(version uint64, initial bool) (*object, error) {
	meta := metav1.ObjectMeta{ResourceVersion: versionText(version)}
	if initial {
		meta.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	if k.custom {
		u := &unstructured.Unstructured{}
		u.SetGroupVersionKind(k.gvk())
		u.SetResourceVersion(meta.ResourceVersion)
		u.SetAnnotations(meta.Annotations)
		return fromUnstructured(k, u)
	}
	obj, err := scheme.Scheme.New(k.gvk())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", k.name, err)
	}
	acc, ok := obj.(metav1.Object)
	if !ok {
		return nil, fmt.Errorf("%s has no metadata", k.name)
	}
	acc.SetResourceVersion(meta.ResourceVersion)
	acc.SetAnnotations(meta.Annotations)
	return fromTyped(k, obj)
}

// fromTyped and fromUnstructured make the stored form of an object.
func fromTyped(k kind, obj runtime.Object) (*object, error) {
	acc, ok := obj.(metav1.Object)
	m, ok2 := obj.(marshaler)
	if !ok || !ok2 {
		return nil, fmt.Errorf("%T is not an object of Kubernetes", obj)
	}
	o := &object{kind: k, namespace: acc.GetNamespace(), objName: acc.GetName(), labels: acc.GetLabels()}
	switch obj := obj.(type) {
	case *corev1.Pod:
		o.nodeName = obj.Spec.NodeName
	case *corev1.Service:
		o.clusterIP = obj.Spec.ClusterIP
	}
	var err error
	if o.proto, err = m.Marshal(); err != nil {
		return nil, fmt.Errorf("%s %s: %w", k.name, o.key(), err)
	}
	return o, nil
}

func fromUnstructured(k kind, u *unstructured.Unstructured) (*object, error) {
	text, err := u.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", k.name, u.GetName(), err)
	}
	return &object{kind: k, namespace: u.GetNamespace(), objName: u.GetName(), labels: u.GetLabels(), text: text}, nil
}

// decode is a stored object with its metadata, and how to store it again.
func (o *object) decode() (metav1.Object, func() (*object, error), error) {
	if o.custom {
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON(o.text); err != nil {
			return nil, nil, fmt.Errorf("%s %s: %w", o.name, o.key(), err)
		}
		return u, func() (*object, error) { return fromUnstructured(o.kind, u) }, nil
	}
	obj, err := o.typed()
	if err != nil {
		return nil, nil, err
	}
	acc, ok := obj.(metav1.Object)
	if !ok {
		return nil, nil, fmt.Errorf("%s has no metadata", o.name)
	}
	return acc, func() (*object, error) { return fromTyped(o.kind, obj) }, nil
}

// at is the object with another version.
func (o *object) at(version uint64) (*object, error) {
	acc, encode, err := o.decode()
	if err != nil {
		return nil, err
	}
	acc.SetResourceVersion(versionText(version))
	return encode()
}
