// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// FuzzDerive: values that pass the check lead to values for the chart, or to a mistake of the user.
func FuzzDerive(f *testing.F) {
	f.Add([]byte("{ipam: {mode: cluster-pool, operator: {clusterPoolIPv4PodCIDRList: [10.1.0.0/16], clusterPoolIPv4MaskSize: 25}}}"))
	f.Add([]byte("{ipam: {operator: {clusterPoolIPv4PodCIDRList: '10.1.0.0/16 10.2.0.0/16'}}, ipv4: {enabled: null}}"))
	f.Add([]byte("{ipam: {operator: {clusterPoolIPv4PodCIDRList: [1, null, {}]}}, k8sServiceHost: x, operator: {replicas: null}}"))
	f.Add([]byte("{ipv6: {enabled: true}, ipam: {operator: {clusterPoolIPv6PodCIDRList: ['fd00::/104', 'fd00::/120'], clusterPoolIPv6MaskSize: -1}}}"))
	f.Add([]byte("{cluster: {name: UPPER}, kubeProxyReplacement: false}"))
	facts := &Facts{
		ClusterName: "c", APIHost: "192.0.2.1", APIPort: "6443", IPv4: true, IPv6: true,
		Nodes: []corev1.Node{*node("n1", "172.16.0.1"), *node("n2", "172.16.0.2")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")},
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		o := Options{Values: map[string]any{}, Say: func(string, ...any) {}}
		if yaml.Unmarshal(text, &o.Values) != nil {
			return
		}
		var mistake *OptionError
		if err := o.Validate(); err != nil {
			if !errors.As(err, &mistake) {
				t.Errorf("%v is no mistake of the user", err)
			}
			return
		}
		vals, err := derive(facts, o, "1.16.5", o.Say)
		if err != nil {
			if !errors.As(err, &mistake) {
				t.Errorf("%v is no mistake of the user", err)
			}
			return
		}
		if _, err := YAML(vals); err != nil {
			t.Error(err)
		}
	})
}
