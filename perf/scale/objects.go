// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Size is how much there is.
type Size struct {
	Services  int `json:"services"`
	Endpoints int `json:"endpoints"` // of each
	Ports     int `json:"ports"`     // of each
}

func (s Size) String() string {
	text := fmt.Sprintf("%d x %d", s.Services, s.Endpoints)
	if s.Ports > 1 {
		text += fmt.Sprintf(", %d ports", s.Ports)
	}
	return text
}

// Addresses of everything. Endpoints are anywhere in their range: the far namespace answers for all.
var (
	nodeAddr   = netip.MustParseAddr("10.254.0.1")
	farAddr    = netip.MustParseAddr("10.254.0.2")
	nodesNet   = netip.MustParsePrefix("10.254.0.0/24")
	servicesIn = netip.MustParsePrefix("10.96.0.0/12")
	backendsIn = netip.MustParsePrefix("10.128.0.0/9")
	podsIn     = netip.MustParsePrefix("10.244.0.0/16")
)

// Names of the nodes, and where Services are.
const (
	nodeName    = "scale-node"
	farName     = "scale-far"
	namespace   = "scale"
	firstPort   = 80
	backendPort = 8080
)

// nth is the address with a number in a range.
func nth(in netip.Prefix, i int) netip.Addr {
	b := in.Addr().As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n += uint32(i)
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// serviceAddr is the ClusterIP of a Service by its number; the first addresses are left to others.
func serviceAddr(i int) netip.Addr { return nth(servicesIn, 256+i) }

func backendAddr(i, e, endpoints int) netip.Addr { return nth(backendsIn, 256+i*endpoints+e) }

// VIP is where the first port of a Service answers.
func vip(i int) netip.AddrPort { return netip.AddrPortFrom(serviceAddr(i), firstPort) }

// managed is what an API server notes of who has set which fields; programs have to read past it.
func managed(by, fields string, at metav1.Time) []metav1.ManagedFieldsEntry {
	return []metav1.ManagedFieldsEntry{{
		Manager: by, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", Time: &at, FieldsType: "FieldsV1",
		FieldsV1: metav1.NewFieldsV1(fields),
	}}
}

var since = metav1.Unix(1_750_000_000, 0)

// serviceOf is the Service with a number.
func serviceOf(i, ports int) *corev1.Service {
	name := fmt.Sprintf("s-%05d", i)
	ip := serviceAddr(i).String()
	single, cluster := corev1.IPFamilyPolicySingleStack, corev1.ServiceInternalTrafficPolicyCluster
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: namespace, Labels: map[string]string{"app": name},
			ManagedFields: managed("kubectl-create", `{"f:metadata":{"f:labels":{".":{},"f:app":{}}},"f:spec":{"f:internalTrafficPolicy":{},"f:ports":{".":{},"k:{\"port\":80,\"protocol\":\"TCP\"}":{".":{},"f:name":{},"f:port":{},"f:protocol":{},"f:targetPort":{}}},"f:selector":{},"f:sessionAffinity":{},"f:type":{}}}`, since),
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			IPFamilyPolicy: &single, InternalTrafficPolicy: &cluster, SessionAffinity: corev1.ServiceAffinityNone,
			Selector: map[string]string{"app": name},
		},
	}
	for p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{
			Name: fmt.Sprintf("p%d", p), Protocol: corev1.ProtocolTCP, Port: int32(firstPort + p), TargetPort: intstr.FromInt32(int32(backendPort)),
		})
	}
	return s
}

// sliceOf is the EndpointSlice of a Service with those endpoints whose numbers are given.
func sliceOf(i, ports, endpoints int, with ...int) *discoveryv1.EndpointSlice {
	name := fmt.Sprintf("s-%05d", i)
	yes, no := true, false
	sl := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: name + "-x7k2p", Namespace: namespace, GenerateName: name + "-",
			Labels: map[string]string{
				discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io", "app": name,
			},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: name, UID: types.UID("service-" + name), Controller: &yes, BlockOwnerDeletion: &yes}},
			ManagedFields:   managed("kube-controller-manager", `{"f:addressType":{},"f:endpoints":{},"f:metadata":{"f:annotations":{".":{},"f:endpoints.kubernetes.io/last-change-trigger-time":{}},"f:generateName":{},"f:labels":{".":{},"f:app":{},"f:endpointslice.kubernetes.io/managed-by":{},"f:kubernetes.io/service-name":{}},"f:ownerReferences":{}},"f:ports":{}}`, since),
		},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for p := range ports {
		pn, proto, port := fmt.Sprintf("p%d", p), corev1.ProtocolTCP, int32(backendPort)
		sl.Ports = append(sl.Ports, discoveryv1.EndpointPort{Name: &pn, Protocol: &proto, Port: &port})
	}
	node := farName
	for _, e := range with {
		sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{backendAddr(i, e, endpoints).String()}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: fmt.Sprintf("%s-6d4cf56db6-%04d", name, e), UID: types.UID(fmt.Sprintf("pod-%d-%d", i, e))},
		})
	}
	return sl
}

func upTo(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// nodeOf is the Node with a name.
func nodeOf(name string, addr netip.Addr, cidr string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
		Spec:       corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr.String()}, {Type: corev1.NodeHostName, Address: name}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: since, LastTransitionTime: since}},
			NodeInfo:   corev1.NodeSystemInfo{BootID: "stand-in"},
		},
	}
}

// objects are all of a size, with spare Services behind them that have no endpoint.
func objects(z Size, spare int) []runtime.Object {
	out := []runtime.Object{
		nodeOf(nodeName, nodeAddr, "10.244.0.0/24"), nodeOf(farName, farAddr, "10.244.1.0/24"),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
	}
	for i := range z.Services + spare {
		with := upTo(z.Endpoints)
		if i >= z.Services {
			with = nil
		}
		out = append(out, serviceOf(i, z.Ports), sliceOf(i, z.Ports, z.Endpoints, with...))
	}
	return out
}
