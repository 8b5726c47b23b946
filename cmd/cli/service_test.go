// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/status"
)

func ciliumConfig(kpr string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "cilium-config", Namespace: "kube-system"},
		Data:       map[string]string{"kube-proxy-replacement": kpr, "enable-ipv6": "true"},
	}
}

// shop is a Service of type NodePort with one ready backend, and a headless one.
func shop() []runtime.Object {
	tcp, http, port, node := corev1.ProtocolTCP, "http", int32(8080), "node1"
	return []runtime.Object{
		ciliumConfig("true"), agentPod(1), agentPod(2),
		&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeNodePort, ClusterIP: "10.96.0.20", ClusterIPs: []string{"10.96.0.20"},
				Ports: []corev1.ServicePort{{Name: http, Protocol: tcp, Port: 80, NodePort: 30080}},
			},
		},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone}},
		&discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &http, Protocol: &tcp, Port: &port}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.244.1.7"}, NodeName: &node}},
		},
	}
}

// serviceAgents answer for two nodes; the second lacks what is given.
func serviceAgents(without string) status.Exec {
	return func(_ context.Context, _, pod, _ string, _ ...string) ([]byte, []byte, error) {
		if without == "everything" && pod == "cilium-2" {
			return nil, []byte("Error: daemon unreachable\n"), errors.New("exit code 1")
		}
		list := []api.Service{}
		for kind, f := range map[string]api.FrontendAddress{
			"ClusterIP": {IP: "10.96.0.20", Port: 80, Protocol: "TCP"}, "NodePort": {IP: "0.0.0.0", Port: 30080, Protocol: "TCP"},
		} {
			if pod == "cilium-2" && kind == without {
				continue
			}
			list = append(list, api.Service{Spec: api.ServiceSpec{
				Frontend: f, Flags: api.ServiceSpecFlags{Type: kind, Namespace: "shop", Name: "web"},
				Backends: []api.BackendAddress{{IP: "10.244.1.7", Port: 8080, State: "active"}},
			}})
		}
		b, err := json.Marshal(list)
		return b, nil, err
	}
}

func TestServiceList(t *testing.T) {
	for name, c := range map[string]struct {
		f       serviceFlags
		without string
		want    string
		code    int
	}{
		"well": {f: serviceFlags{output: "table"}, want: "" +
			"NAME   PORT   KIND        FRONTENDS          READY   NODES\n" +
			"db     -      -           -                  -       headless\n" +
			"web    http   ClusterIP   10.96.0.20:80/TCP   1       same on 2 nodes\n" +
			"web    http   NodePort    *:30080/TCP         1       same on 2 nodes\n"},
		"missing": {f: serviceFlags{output: "table", all: true}, without: "NodePort", code: ExitFailed, want: "" +
			"NAMESPACE   NAME   PORT   KIND        FRONTENDS           READY   NODES\n" +
			"shop        db     -      -           -                   -       headless\n" +
			"shop        web    http   ClusterIP   10.96.0.20:80/TCP   1       same on 2 nodes\n" +
			"shop        web    http   NodePort    *:30080/TCP         1       missing on node2\n"},
		"silent": {f: serviceFlags{output: "table"}, without: "everything", code: ExitFailed, want: "" +
			"NAME   PORT   KIND        FRONTENDS           READY   NODES\n" +
			"db     -      -           -                   -       headless\n" +
			"web    http   ClusterIP   10.96.0.20:80/TCP   1       same on 1 node\n" +
			"web    http   NodePort    *:30080/TCP         1       same on 1 node\n" +
			"Node node2: agent cilium-2 does not answer: exit code 1: Error: daemon unreachable\n"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var b bytes.Buffer
			col := &status.Collector{Client: fake.NewClientset(shop()...), Exec: serviceAgents(c.without), Namespace: "kube-system"}
			err := listServices(t.Context(), World{Out: &b, Getenv: func(string) string { return "" }}, c.f, col, status.ServiceQuery{Namespace: "shop"}, func(err error) error { return err })
			code := ExitOK
			var ee *ExitError
			if errors.As(err, &ee) {
				code = ee.Code
			} else if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if squeeze(b.String()) != squeeze(c.want) || code != c.code {
				t.Errorf("%s: exit %d, want %d:\n%swant:\n%s", name, code, c.code, b.String(), c.want)
			}
		})
	}
}

// squeeze makes the width of columns not matter.
func squeeze(s string) string {
	var out []string
	for _, l := range strings.Split(s, "\n") {
		out = append(out, strings.Join(strings.Fields(l), " "))
	}
	return strings.Join(out, "\n")
}

func TestServiceListJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		col := &status.Collector{Client: fake.NewClientset(shop()...), Exec: serviceAgents("NodePort"), Namespace: "kube-system"}
		err := listServices(t.Context(), World{Out: &b}, serviceFlags{output: "json"}, col, status.ServiceQuery{Namespace: "shop", Name: "web"}, func(err error) error { return err })
		var r status.ServiceReport
		if derr := json.Unmarshal(b.Bytes(), &r); derr != nil || err == nil || len(r.Rows) != 2 || len(r.Rows[0].Differences) != 0 ||
			len(r.Rows[1].Differences) != 1 || r.Rows[1].Differences[0].Nodes[0] != "node2" {
			t.Errorf("%v, %v:\n%s", derr, err, b.String())
		}
	})
}

// TestServiceListCannot is what the user sees when there is nothing to compare.
func TestServiceListCannot(t *testing.T) {
	for _, c := range []struct {
		objs   []runtime.Object
		args   string
		refuse string
		code   int
		want   string
	}{
		{objs: shop(), args: "service list nope -n shop", code: ExitFailed, want: "no such Service: nope in namespace shop"},
		{objs: shop()[3:], args: "service list -A", code: ExitFailed, want: "run `lash install`"},
		{objs: []runtime.Object{ciliumConfig("true")}, args: "service list", code: ExitFailed, want: "no agent runs: namespace kube-system has no pods of DaemonSet cilium"},
		{objs: append(shop()[1:], ciliumConfig("false")), args: "service list", code: ExitFailed, want: "kube-proxy handles the Services of this cluster"},
		{objs: shop(), args: "service list -A", refuse: "services", code: ExitUnreachable, want: "services is forbidden"},
		{args: "service list web -A", code: ExitUsage, want: "give -n instead of -A"},
		{args: "service list -n x -A", code: ExitUsage, want: "all-namespaces"},
		{args: "service list shop/web", code: ExitUsage, want: "its namespace is -n"},
		{args: "service list -o yaml", code: ExitUsage, want: "want table or json"},
		{args: "service list --worker-count 0", code: ExitUsage, want: "want 1 or more"},
		{args: "service list --namespace=", code: ExitUsage, want: `invalid --namespace ""`},
	} {
		a := newAPIServer(t, c.objs...)
		if c.refuse != "" {
			a.refuse[c.refuse] = http.StatusForbidden
		}
		code, stdout, stderr := a.lash(t, strings.Fields(c.args)...)
		if code != c.code || stdout != "" || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: exit %d, %q, want %d, %q", c.args, code, stderr, c.code, c.want)
		}
	}
}
