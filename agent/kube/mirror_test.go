// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"log/slog"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lash.internal/lash/agent/kube/ciliumio"
	"lash.internal/lash/agent/state"
)

func wireForm(t *testing.T, obj any) any {
	t.Helper()
	u, err := ciliumio.ToUnstructured(obj)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestNodeIsTheSameInBothArrivalOrders joins Node and CiliumNode, whichever comes first, and takes
// the pod CIDR of another node from what that node says of itself.
func TestNodeIsTheSameInBothArrivalOrders(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2", UID: "u"}}
	node.Spec.PodCIDRs = []string{"10.1.2.0/24"}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.2"}}
	cn := &ciliumio.Node{}
	cn.Name = "n2"
	cn.Spec.Addresses = []ciliumio.NodeAddress{{Type: ciliumio.InternalIP, IP: "192.0.2.2"}, {Type: ciliumio.CiliumInternalIP, IP: "10.1.3.1"}}
	cn.Spec.IPAM.PodCIDRs = []string{"10.1.3.0/24"}
	for _, first := range []string{"Node", "CiliumNode"} {
		t.Run(first+" first", func(t *testing.T) {
			tables := state.NewTables()
			j := newNodeJoin(tables.DB, tables.Nodes, "n1", false, func() {})
			a, b := j.nodeSink(), j.ciliumSink()
			put := []func() error{func() error { return a.Replace([]any{node}, "") }, func() error { return b.Replace([]any{wireForm(t, cn)}, "") }}
			if first == "CiliumNode" {
				put[0], put[1] = put[1], put[0]
			}
			if err := put[0](); err != nil {
				t.Fatal(err)
			}
			if ok, _ := tables.Nodes.Initialized(); ok {
				t.Error("ready after one of two kinds")
			}
			if err := put[1](); err != nil {
				t.Fatal(err)
			}
			r, _ := tables.Nodes.Get("n2")
			if ok, _ := tables.Nodes.Initialized(); !ok || r.UID != "u" || r.PodCIDRs[0].String() != "10.1.3.0/24" || r.RouterIPs[0].String() != "10.1.3.1" || r.Addr(false).String() != "192.0.2.2" {
				t.Errorf("row %+v", r)
			}
			// A relist without the objects, as after an outage, removes the row.
			_, _ = a.Replace(nil, ""), b.Replace(nil, "")
			if tables.Nodes.Len() != 0 {
				t.Error("row stays after both objects are gone")
			}
		})
	}
}

func endpoint(name, node, ip string, id int64) *ciliumio.Endpoint {
	e := &ciliumio.Endpoint{}
	e.Namespace, e.Name = "default", name
	e.Status.Identity = &ciliumio.EndpointIdentity{ID: id}
	e.Status.Networking = &ciliumio.EndpointNetworking{Node: node, Addressing: []ciliumio.AddressPair{{IPv4: ip}}}
	return e
}

// TestAddressGoesToTheYoungestClaim: a deleted pod's address is in use by another one before the
// old object is gone.
func TestAddressGoesToTheYoungestClaim(t *testing.T) {
	tables := state.NewTables()
	local := netip.MustParseAddr("192.0.2.1")
	s := newEndpointSink(tables.DB, tables.RemoteIPs, func(a netip.Addr) bool { return a == local }, func(state.Name) {})
	ip := netip.MustParseAddr("10.1.2.3")
	old, young := wireForm(t, endpoint("old", "192.0.2.2", "10.1.2.3", 300)), wireForm(t, endpoint("young", "192.0.2.2", "10.1.2.3", 400))
	if err := s.Replace([]any{old, wireForm(t, endpoint("mine", "192.0.2.1", "10.1.1.9", 500))}, ""); err != nil {
		t.Fatal(err)
	}
	if tables.RemoteIPs.Len() != 1 || s.own(state.Name{Namespace: "default", Name: "mine"}) == nil {
		t.Error("the local endpoint is not told from the remote one")
	}
	_ = s.Add(young)
	if r, _ := tables.RemoteIPs.Get(ip); r.Identity != 400 {
		t.Errorf("after the second claim: %+v", r)
	}
	_ = s.Delete(old)
	if r, _ := tables.RemoteIPs.Get(ip); r.Identity != 400 {
		t.Errorf("after the first was withdrawn: %+v", r)
	}
	_ = s.Delete(young)
	if tables.RemoteIPs.Len() != 0 {
		t.Error("row stays")
	}
}

func TestRelistCommitsOnlyDifferences(t *testing.T) {
	tables := state.NewTables()
	m := newMirror(tables.DB, tables.Namespaces, "test", namespaceRow, clusterKey)
	ns := func(name string) any { return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	_ = m.Replace([]any{ns("a"), ns("b")}, "")
	cur := tables.Namespaces.Changes()
	defer cur.Close()
	cur.Next()
	_ = m.Replace([]any{ns("a"), ns("c")}, "")
	changes, _ := cur.Next()
	got := map[string]bool{}
	for _, c := range changes {
		got[c.Key] = c.Deleted
	}
	if gone, ok := got["b"]; len(got) != 2 || !ok || !gone || got["c"] {
		t.Errorf("changes %+v", changes)
	}
}

// TestMirrorAmongOthers: rows that another source has written stay when objects go and when all are
// listed again; without other sources every row is that of an object.
func TestMirrorAmongOthers(t *testing.T) {
	ns := func(name string) any { return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	for _, among := range []bool{false, true} {
		tables := state.NewTables()
		m := newMirror(tables.DB, tables.Namespaces, "test", namespaceRow, clusterKey)
		if among {
			m.amongOthers()
		}
		w := tables.DB.WriteTxn()
		tables.Namespaces.Insert(w, state.Namespace{Name: "other"})
		w.Commit()
		for _, err := range []error{m.Replace([]any{ns("a"), ns("b")}, ""), m.Delete(ns("a")), m.Delete(ns("other")), m.Replace([]any{ns("c")}, "")} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, ok := tables.Namespaces.Get("other"); ok != among {
			t.Errorf("among others %v: the row of another is there: %v", among, ok)
		}
		if _, ok := tables.Namespaces.Get("c"); !ok || tables.Namespaces.Len() != map[bool]int{false: 1, true: 2}[among] {
			t.Errorf("among others %v: %d rows", among, tables.Namespaces.Len())
		}
	}
}

func TestNetworkPoliciesAreCounted(t *testing.T) {
	c := &counter{log: slog.New(slog.DiscardHandler)}
	p := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}}
	_, _ = c.Add(p), c.Add(p)
	if c.len() != 1 {
		t.Errorf("%d policies", c.len())
	}
	_ = c.Delete(p)
	if c.len() != 0 {
		t.Errorf("%d policies", c.len())
	}
}

// TestClaimsKeepTheirAge: a change of an older object is no new claim, and a relist, which comes
// sorted by name, goes by the age of the objects.
func TestClaimsKeepTheirAge(t *testing.T) {
	at := func(e *ciliumio.Endpoint, sec int64) *ciliumio.Endpoint {
		e.CreationTimestamp = metav1.Unix(sec, 0)
		return e
	}
	// ToUnstructured leaves the time out, which only the server writes.
	wire := func(e *ciliumio.Endpoint) any {
		u, err := ciliumio.ToUnstructured(e)
		if err != nil {
			t.Fatal(err)
		}
		u.SetCreationTimestamp(e.CreationTimestamp)
		return u
	}
	old := wire(at(endpoint("z-old", "192.0.2.2", "10.1.2.3", 300), 100))
	young := wire(at(endpoint("a-young", "192.0.2.2", "10.1.2.3", 400), 200))
	ip := netip.MustParseAddr("10.1.2.3")
	for name, steps := range map[string]func(*endpointSink) []error{
		"relist":            func(s *endpointSink) []error { return []error{s.Replace([]any{young, old}, "")} },
		"the old is edited": func(s *endpointSink) []error { return []error{s.Add(old), s.Add(young), s.Update(old)} },
		"relist of both": func(s *endpointSink) []error {
			return []error{s.Add(old), s.Add(young), s.Replace([]any{young, old}, "")}
		},
	} {
		tables := state.NewTables()
		s := newEndpointSink(tables.DB, tables.RemoteIPs, func(netip.Addr) bool { return false }, func(state.Name) {})
		for _, err := range steps(s) {
			if err != nil {
				t.Fatal(err)
			}
		}
		if r, _ := tables.RemoteIPs.Get(ip); r.Identity != 400 {
			t.Errorf("%s: the address is of %s", name, r.Pod)
		}
		_ = s.Delete(young)
		if r, _ := tables.RemoteIPs.Get(ip); r.Identity != 300 {
			t.Errorf("%s: after the young one is gone the address is of %s", name, r.Pod)
		}
	}
}
