// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"lash.internal/lash/agent/state"
)

// TestServiceRow reads what decides who may reach a Service at which addresses.
func TestServiceRow(t *testing.T) {
	proxy, vip := corev1.LoadBalancerIPModeProxy, corev1.LoadBalancerIPModeVIP
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", CreationTimestamp: metav1.NewTime(time.Unix(1000, 0))}}
	s.Spec.ExternalIPs = []string{"192.0.2.5"}
	s.Spec.LoadBalancerSourceRanges = []string{" 203.0.113.7/24 ", "010.0.0.0/8", "2001:db8::/32"}
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
		{IP: "198.51.100.1"}, {IP: "198.51.100.2", IPMode: &vip}, {IP: "198.51.100.3", IPMode: &proxy}, {Hostname: "lb.example.org"},
	}
	_, r, ok := serviceRow(s)
	if !ok || fmt.Sprint(r.LoadBalancerIPs) != "[198.51.100.1 198.51.100.2]" || r.Created != 1000 || !r.Restricted ||
		fmt.Sprint(r.SourceRanges) != "[10.0.0.0/8 203.0.113.0/24 2001:db8::/32]" {
		t.Errorf("%+v", r)
	}
	s.Spec.Ports = []corev1.ServicePort{{Port: 80}, {Port: 80, TargetPort: intstr.FromInt32(8080)}, {Port: 80, TargetPort: intstr.FromString("http")}}
	if _, r, _ := serviceRow(s); r.Ports[0].TargetPort != 80 || r.Ports[1].TargetPort != 8080 || r.Ports[2].TargetPort != 0 {
		t.Errorf("ports %+v", r.Ports)
	}
	s.Spec.LoadBalancerSourceRanges = []string{"nonsense"}
	if _, r, _ := serviceRow(s); !r.Restricted || len(r.SourceRanges) != 0 {
		t.Errorf("ranges that nobody understands let everybody in: %+v", r)
	}
	s.Spec.LoadBalancerSourceRanges = nil
	if _, r, _ := serviceRow(s); r.Restricted {
		t.Error("restricted without ranges")
	}
}

// TestRowsOfWhatIsKept: what is dropped before a first set is complete is in no row, and annotations
// that nobody reads change none.
func TestRowsOfWhatIsKept(t *testing.T) {
	managed := []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}
	owners := []metav1.OwnerReference{{Kind: "Service", Name: "web"}}
	service := func() *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", ManagedFields: managed, OwnerReferences: owners, Labels: map[string]string{"a": "b"}}}
		s.Annotations = map[string]string{"service.cilium.io/global": "true", "kubectl.kubernetes.io/last-applied-configuration": "{}"}
		s.Spec.Selector = map[string]string{"app": "web"}
		s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}}
		return s
	}
	slice := func() *discoveryv1.EndpointSlice {
		s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "web-1", ManagedFields: managed, OwnerReferences: owners, Labels: map[string]string{discoveryv1.LabelServiceName: "web"},
		}}
		node, zone := "n1", "z1"
		s.Endpoints = []discoveryv1.Endpoint{{
			Addresses: []string{"10.0.0.1"}, NodeName: &node, Zone: &zone, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "p"},
			Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "z1"}}},
		}}
		return s
	}
	s, sl := service(), slice()
	trim(s)
	trim(sl)
	if s.ManagedFields != nil || s.Spec.Selector != nil || sl.ManagedFields != nil || sl.Endpoints[0].TargetRef != nil {
		t.Error("nothing was dropped")
	}
	_, want, _ := serviceRow(service())
	if _, got, _ := serviceRow(s); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	_, wantSlice, _ := sliceRow(slice())
	if _, got, _ := sliceRow(sl); !reflect.DeepEqual(got, wantSlice) {
		t.Errorf("%+v, want %+v", got, wantSlice)
	}
	if len(want.Annotations) != 1 || want.Annotations["service.cilium.io/global"] != "true" {
		t.Errorf("annotations %v", want.Annotations)
	}
	s.Annotations["kubectl.kubernetes.io/last-applied-configuration"] = "{...}"
	if _, got, _ := serviceRow(s); !reflect.DeepEqual(got, want) {
		t.Errorf("a change that nobody reads makes %+v of %+v", got, want)
	}
}

// TestHeadlessSlice: a slice that is marked headless is not served, and one that is marked later no longer.
func TestHeadlessSlice(t *testing.T) {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: "ns", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"},
	}, AddressType: discoveryv1.AddressTypeIPv4}
	tables := state.NewTables()
	m := newMirror(tables.DB, tables.EndpointSlices, "kubernetes", sliceRow, nameOf)
	at := state.Name{Namespace: "ns", Name: "web-1"}
	for _, marked := range []bool{false, true, false} {
		delete(s.Labels, corev1.IsHeadlessService)
		if marked {
			s.Labels[corev1.IsHeadlessService] = ""
		}
		if err := m.Update(s); err != nil {
			t.Fatal(err)
		}
		if _, ok := tables.EndpointSlices.Get(at); ok == marked {
			t.Errorf("marked headless %v, but in the table %v", marked, ok)
		}
	}
}

// TestHostPortRow says whose HostPorts are to be opened.
func TestHostPortRow(t *testing.T) {
	now := metav1.NewTime(time.Unix(2000, 0))
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", CreationTimestamp: metav1.NewTime(time.Unix(1000, 0)), DeletionTimestamp: &now}}
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{
		{ContainerPort: 80, HostPort: 8080}, {ContainerPort: 53, HostPort: 53, HostIP: "192.0.2.1", Protocol: corev1.ProtocolUDP}, {ContainerPort: 81, HostPort: 81, HostIP: "0.0.0.0"}, {ContainerPort: 82},
	}}}
	r := PodRow(p)
	if want := "[{invalid IP 8080 80 TCP} {192.0.2.1 53 53 UDP} {invalid IP 81 81 TCP}]"; fmt.Sprint(r.HostPorts) != want || !r.Terminating || r.Created != 1000 {
		t.Errorf("%+v", r)
	}
	p.Spec.HostNetwork = true
	if r := PodRow(p); len(r.HostPorts) != 0 {
		t.Errorf("a pod on the host's network has ports of its own: %+v", r.HostPorts)
	}
}

func TestNodeLeaves(t *testing.T) {
	n := here()
	if leaving(trimNode(n)) {
		t.Error("a node that stays")
	}
	n.Spec.Taints = []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler", Effect: corev1.TaintEffectNoSchedule}}
	if !leaving(trimNode(n)) {
		t.Error("the autoscaler takes the node away")
	}
	n = here()
	now := metav1.Now()
	n.DeletionTimestamp = &now
	if !leaving(trimNode(n)) {
		t.Error("the node is being deleted")
	}
}
