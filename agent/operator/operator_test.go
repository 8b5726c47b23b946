// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestClusterPoolGivesEverySubnetOnce(t *testing.T) {
	for _, c := range []struct {
		parent, first, last string
		bits, total         int
	}{
		{"10.0.0.0/22", "10.0.0.0/24", "10.0.3.0/24", 24, 4},
		{"fd00::/118", "fd00::/120", "fd00::300/120", 120, 4},
		{"fd00:1::/46", "fd00:1::/48", "fd00:1:3::/48", 48, 4},
	} {
		s, err := newSubnets([]netip.Prefix{netip.MustParsePrefix(c.parent)}, c.bits)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[netip.Prefix]bool{}
		var got []string
		for range c.total {
			p, err := s.allocate("n")
			if err != nil || seen[p] {
				t.Fatalf("%s: %s, %v", c.parent, p, err)
			}
			seen[p] = true
			got = append(got, p.String())
		}
		if got[0] != c.first || got[len(got)-1] != c.last {
			t.Errorf("%s: %v", c.parent, got)
		}
		if _, err := s.allocate("n"); !errors.Is(err, errPoolExhausted) {
			t.Errorf("%s: full pool: %v", c.parent, err)
		}
	}
}

func TestClusterPoolIsStableOverRestarts(t *testing.T) {
	s, err := newSubnets([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}, 24)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.occupy("a", netip.MustParsePrefix("10.0.0.0/24")); err != nil {
		t.Fatal(err)
	}
	if err := s.occupy("b", netip.MustParsePrefix("10.0.0.0/25")); err == nil {
		t.Error("an overlap was accepted")
	}
	if p, _ := s.allocate("b"); p.String() != "10.0.1.0/24" {
		t.Errorf("b got %s", p)
	}
}

func TestDefinitions(t *testing.T) {
	crds, err := definitions()
	if err != nil || len(crds) != 3 {
		t.Fatalf("%d definitions, %v", len(crds), err)
	}
	var names []string
	for _, c := range crds {
		names = append(names, c.Spec.Names.Kind+":"+strings.Join(c.Spec.Names.ShortNames, ","))
	}
	if got := strings.Join(names, " "); got != "CiliumEndpoint:cep,ciliumep CiliumIdentity:ciliumid CiliumNode:cn,ciliumn" {
		t.Error(got)
	}
	if !older("", schemaVersion) || !older("1.26.9", "1.26.10") || older(schemaVersion, schemaVersion) || older("2.0.0", schemaVersion) {
		t.Error("schema versions are ordered wrongly")
	}
}

func TestOnlyDNSPodsOfAnotherNetworkAreRenewed(t *testing.T) {
	now := time.Unix(10000, 0)
	at := func(sec int64) *metav1.Time { m := metav1.Unix(sec, 0); return &m }
	agent := &corev1.Pod{Status: corev1.PodStatus{StartTime: at(9000)}}
	pod := func(start int64, hostNet bool) *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{HostNetwork: hostNet}, Status: corev1.PodStatus{Phase: corev1.PodRunning, StartTime: at(start)}}
	}
	for name, c := range map[string]struct {
		p        *corev1.Pod
		agent    *corev1.Pod
		endpoint bool
		want     bool
	}{
		"older than the agent":   {pod(8000, false), agent, false, true},
		"younger than the agent": {pod(9500, false), agent, false, false},
		"has an endpoint":        {pod(8000, false), agent, true, false},
		"host network":           {pod(8000, true), agent, false, false},
		"no agent on its node":   {pod(8000, false), nil, false, false},
		"agent just started":     {pod(8000, false), &corev1.Pod{Status: corev1.PodStatus{StartTime: at(9990)}}, false, false},
	} {
		if got := leftOver(c.p, c.agent, c.endpoint, now); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
