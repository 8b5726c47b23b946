// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"testing"

	"lash.internal/lash/agent/state"
)

// TestJudge says what is said of a Service that asks for too much, and nothing of one that does not.
func TestJudge(t *testing.T) {
	annotated := func(kv ...string) func(*state.Service) {
		return func(s *state.Service) {
			s.Annotations = map[string]string{}
			for i := 0; i < len(kv); i += 2 {
				s.Annotations[kv[i]] = kv[i+1]
			}
		}
	}
	older := clusterIP("older", "10.96.0.20")
	older.ExternalIPs, older.Created = addrs("192.0.2.5"), 50
	for _, c := range []struct {
		name   string
		view   func(*View)
		change func(*state.Service)
		others []state.Service
		want   string
	}{
		{"nothing", nil, nil, nil, " "},
		{"an older Service has the address", nil, nil, []state.Service{older}, "AddressInUse 192.0.2.5:80/TCP is served for Service default/older, which was there before"},
		{"a ClusterIP is the address", nil, nil, []state.Service{clusterIP("other", "192.0.2.5")}, "AddressInUse 192.0.2.5:80/TCP is served for Service default/other, which was there before"},
		{
			"no ClusterIP of the family", nil, func(s *state.Service) { s.ClusterIPs, s.LoadBalancerIPs = addrs("10.96.0.10"), nil }, nil,
			"AddressFamily address 2001:db8::5 is not served: the Service has no IPv6 ClusterIP; add the family to spec.ipFamilies",
		},
		{
			"pods lack the family", func(v *View) { v.IPv6 = false }, func(s *state.Service) { s.LoadBalancerIPs = nil }, nil,
			"AddressFamily address 2001:db8::5 is not served: pods have no IPv6",
		},
		{
			"ranges of one family", nil, func(s *state.Service) { s.Restricted, s.SourceRanges = true, ranges("10.0.0.0/8") }, nil,
			"SourceRanges nobody may use 2001:db8::9: spec.loadBalancerSourceRanges has no IPv6 range",
		},
		{"ranges that are not looked at", func(v *View) { v.AnySource = true }, func(s *state.Service) { s.Restricted = true }, nil, " "},
		{
			"annotations that mean nothing more", nil, annotated("service.cilium.io/global", "false", "service.cilium.io/lb-algorithm", "random",
				"service.cilium.io/forwarding-mode", "snat", "io.cilium/service-affinity", "none", "example.org/global", "true"), nil, " ",
		},
		{
			"annotations", nil, annotated("service.cilium.io/global", "true", "service.cilium.io/lb-algorithm", "maglev", "service.cilium.io/forwarding-mode", "dsr"), nil,
			"UnsupportedAnnotation annotation service.cilium.io/forwarding-mode=dsr is not honoured: the mode is snat for all Services (loadBalancer.mode); " +
				"annotation service.cilium.io/global=true is not honoured; " +
				"annotation service.cilium.io/lb-algorithm=maglev is not honoured: the algorithm is random for all Services (loadBalancer.algorithm)",
		},
		{
			"NodePorts that nodes do not look at", nil, func(s *state.Service) { s.Ports[0].NodePort = 20080 }, nil,
			"PortRange NodePort 20080/TCP is not served to callers outside: it is not in 30000-32767; set nodePort.range as kube-apiserver has it",
		},
		{
			"ports of SCTP that differ", nil, func(s *state.Service) {
				s.Ports = []state.ServicePort{{Protocol: "SCTP", Port: 80, NodePort: 30080, TargetPort: 8080}, {Protocol: "SCTP", Port: 81, TargetPort: 81}, {Protocol: "SCTP", Port: 82}}
			}, nil,
			"PortTranslation port 80/SCTP is not served: the pods' port 8080 is another, and ports of SCTP are not translated; " +
				"NodePort 30080/SCTP is not served: the pods' port 8080 is another, and ports of SCTP are not translated; " +
				"with type LoadBalancer, allocateLoadBalancerNodePorts: false leaves it out",
		},
		{"an alias", nil, annotated("io.cilium/global-service", "true"), nil, "UnsupportedAnnotation annotation io.cilium/global-service=true is not honoured"},
		{"another proxy's", nil, func(s *state.Service) { s.ProxyName = "other"; annotated("service.cilium.io/type", "NodePort")(s) }, nil, " "},
		{"kube-proxy's", func(v *View) { v.Enabled = false }, annotated("service.cilium.io/type", "NodePort"), nil, " "},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := View{Tables: state.NewTables(), Enabled: true, IPv4: true, IPv6: true}
			if c.view != nil {
				c.view(&v)
			}
			web := exposed("web", func(s *state.Service) {
				s.Created = 100
				if c.change != nil {
					c.change(s)
				}
			})
			tx := v.Tables.DB.WriteTxn()
			for _, s := range append(c.others, web) {
				v.Tables.Services.Insert(tx, s)
			}
			tx.Commit()
			got, ok := v.Judge(web.Name, Global{Mode: "snat", Algorithm: "random", NodePortMin: 30000, NodePortMax: 32767})
			if text := fmt.Sprint(got.Reason, " ", got.Message); text != c.want || ok != (c.want != " ") {
				t.Errorf("got %s\nwant %s", text, c.want)
			}
			for _, s := range c.others {
				if got, ok := v.Judge(s.Name, Global{Mode: "snat", Algorithm: "random", NodePortMin: 30000, NodePortMax: 32767}); ok {
					t.Errorf("the holder is blamed: %v", got)
				}
			}
		})
	}
}
