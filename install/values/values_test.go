// SPDX-License-Identifier: Apache-2.0

package values

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func parse(t *testing.T, text string) map[string]any {
	t.Helper()
	m := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestCheckSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		in   string
		kind error
		want string
	}{
		{"kubeProxyReplacment: true", ErrUnknown, "unknown value kubeProxyReplacment: did you mean kubeProxyReplacement?"},
		{"ipam: {operator: {clusterPoolIPv4PodCIDRlist: [10.0.0.0/8]}}", ErrUnknown, "did you mean ipam.operator.clusterPoolIPv4PodCIDRList?"},
		{"debug: {enable: true}", ErrUnknown, "did you mean debug.enabled?"},
		{"fooBarBazQuux: 1", ErrUnknown, "unknown value fooBarBazQuux: `lash chart export DIR`"},
		{"debug: {enabled: 5}", ErrType, "value debug.enabled: must be true or false, not the number 5"},
		{"MTU: big", ErrType, `value MTU: must be a whole number, not the text "big"`},
		{"MTU: 1.5", ErrType, "value MTU: must be a whole number, not the number 1.5"},
		{"tolerations: x", ErrType, `value tolerations: must be a list, not the text "x"`},
		{"debug: true", ErrType, "value debug: must be a map of keys such as debug."},
		{"tunnelProtocol: geneve", ErrUnsupported, `value tunnelProtocol: "geneve" is not supported yet: use vxlan`},
		{"kubeProxyReplacement: strict", ErrUnsupported, `"strict" is not supported yet: use true or false`},
		{"policyEnforcementMode: always", ErrUnsupported, `use default or never`},
		{"hubble: {relay: {enabled: true}}", ErrUnsupported, "value hubble.relay.enabled is not supported yet: use `kubectl"},
		{"hubble: {metrics: {enabled: '{tcp,drop}'}}", ErrUnsupported, "value hubble.metrics.enabled is not supported yet"},
		{"gatewayAPI: {enabled: true}", ErrUnsupported, "value gatewayAPI.enabled is not supported yet"},
		{"sctp: {enabled: true}", ErrUnsupported, "value sctp.enabled is not supported yet: use its default, false"},
		{"cni: {exclusive: true}", ErrUnsupported, `value cni.exclusive: "true" is not supported yet: use false`},
	} {
		_, err := Check(parse(t, c.in))
		if err == nil || !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s:\n got %v\nwant %s", c.in, err, c.want)
		}
	}
}

func TestCheckReportsEveryProblem(t *testing.T) {
	_, err := Check(parse(t, "{debgu: {}, MTU: x, tunnelProtocol: geneve}"))
	for _, kind := range []error{ErrUnknown, ErrType, ErrUnsupported} {
		if !errors.Is(err, kind) {
			t.Errorf("%v is missing in %v", kind, err)
		}
	}
}

func TestCheckAccepts(t *testing.T) {
	for _, in := range []string{
		"{}",
		"kubeProxyReplacement: true",
		`kubeProxyReplacement: "false"`,
		"k8sServicePort: 6443",
		`k8sServicePort: "6443"`,
		"devices: eth0",
		"devices: [eth0, eth+]",
		"extraConfig: {anything: {below: 1}}",
		"podLabels: {a.b/c: d}",
		"extraEnv: [{name: CILIUM_ENABLE_POLICY, value: never}]",
		"nodeSelector: {disk: ssd}",
		"debug: {enabled: null}",
		"hubble: {enabled: true, relay: {enabled: false}}",
		"hubble: {relay: {image: {tag: v9}}}",
		"encryption: {enabled: false, type: ipsec}",
		"operator: {replicas: 1, nodeGCInterval: 5m0s}",
		"l7Proxy: true",
		"global: {}",
	} {
		if _, err := Check(parse(t, in)); err != nil {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestCheckNoticesWhatIsMetAnotherWay(t *testing.T) {
	notices, err := Check(parse(t, "{bpf: {masquerade: true}, hubble: {tls: {auto: {method: cronJob}}}}"))
	if err != nil || len(notices) != 2 {
		t.Fatalf("%v, %v", notices, err)
	}
	if want := "bpf.masquerade has no effect: masquerading is always done by BPF programs"; notices[0] != want {
		t.Errorf("got %q, want %q", notices[0], want)
	}
}

func TestDefaultsPassTheirOwnCheck(t *testing.T) {
	notices, err := Check(parse(t, string(YAML())))
	if err != nil || len(notices) > 0 {
		t.Errorf("%v, %v", notices, err)
	}
}

func TestChartFilesAreCurrent(t *testing.T) {
	schema, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"values.yaml": YAML(), "values.schema.json": schema} {
		have, err := os.ReadFile("../../chart/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(have, want) {
			t.Errorf("chart/%s is not what the table says: run go generate ./install/values", name)
		}
	}
}

func TestEveryKeyIsDescribed(t *testing.T) {
	for _, k := range Table() {
		if k.Doc == "" {
			t.Errorf("%s has no description", k.Path)
		}
		var v any
		if err := yaml.Unmarshal([]byte(k.Default), &v); err != nil {
			t.Errorf("%s: default %q: %v", k.Path, k.Default, err)
		}
		if v != nil && !typeOK(k.Type, v) {
			t.Errorf("%s: default %q is not %s", k.Path, k.Default, k.Type.words())
		}
	}
	for _, k := range others {
		if k.Use == "" {
			t.Errorf("%s says nothing of what to use", k.Path)
		}
	}
}
