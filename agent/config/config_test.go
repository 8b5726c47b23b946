// SPDX-License-Identifier: Apache-2.0

package config

import (
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func writeDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for k, v := range files {
		if err := os.WriteFile(filepath.Join(dir, k), []byte(v), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func env(m map[string]string) func(string) string { return func(k string) string { return m[k] } }

// TestPrecedence sets one option in all three places.
func TestPrecedence(t *testing.T) {
	dir := writeDir(t, map[string]string{"tunnel-port": "1000\n", "cluster-name": "file", "new-thing": "x", "..data": "y"})
	vars := map[string]string{"CILIUM_TUNNEL_PORT": "2000", "K8S_NODE_NAME": "n1"}
	c, err := Load([]string{"--config-dir=" + dir, "--tunnel-port=3000", "--enable-ipv6"}, env(vars), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if c.TunnelPort != 3000 || c.ClusterName != "file" || !c.IPv6 || c.NodeName != "n1" {
		t.Errorf("got %+v", c)
	}
	if u := c.Unknown(); !slices.Equal(u, []string{"new-thing"}) {
		t.Errorf("unknown keys %v, want [new-thing]", u)
	}
	c, err = Load([]string{"--config-dir", dir}, env(vars), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if c.TunnelPort != 2000 || c.Options()["tunnel-port"] != "2000" {
		t.Errorf("environment does not win over the file: %d", c.TunnelPort)
	}
	if c.MonitorAggregationInterval != 5*time.Second || c.HealthPort != 9879 {
		t.Errorf("defaults %v %d", c.MonitorAggregationInterval, c.HealthPort)
	}
}

// TestErrorsNameTheKey gives each option a value that it cannot have.
func TestErrorsNameTheKey(t *testing.T) {
	for key, value := range map[string]string{
		"enable-ipv4": "perhaps", "cluster-id": "256", "ipam": "eni", "routing-mode": "direct",
		"tunnel-protocol": "geneve", "mtu": "-1", "kube-proxy-replacement": "probe",
		"cluster-pool-ipv4-cidr": "fd00::/8", "ipv4-native-routing-cidr": "x",
		"monitor-aggregation": "some", "monitor-aggregation-interval": "fast", "log-opt": `{"format":"xml"}`,
		"prometheus-serve-addr": "9962", "cluster-name": "Bad_Name", "identity-allocation-mode": "kvstore",
		"node-port-range": "32767,30000", "nodeport-addresses": "primary", "bpf-lb-mode": "ipip", "bpf-lb-algorithm": "least", "bpf-lb-acceleration": "native",
		"bpf-lb-dsr-dispatch": "ipip", "bpf-lb-maglev-table-size": "1000", "bpf-lb-maglev-hash-seed": "JLfvgnHc", "enable-host-port": "some",
		"kube-proxy-replacement-healthz-bind-address": "10256",
		"enable-hubble": "true", "enable-policy": "maybe",
	} {
		dir := writeDir(t, map[string]string{key: value})
		_, err := Load([]string{"--config-dir=" + dir}, env(nil), io.Discard)
		if err == nil || !strings.Contains(err.Error(), "option "+key+" ") {
			t.Errorf("%s=%s: error %v does not name the key", key, value, err)
		}
	}
	_, err := Load([]string{"--enable-ipv4=false"}, env(nil), io.Discard)
	if err == nil || !strings.Contains(err.Error(), "enable-ipv6") {
		t.Errorf("no family at all: %v", err)
	}
}

// TestEveryOptionIsDocumentedOnce guards the table itself.
func TestEveryOptionIsDocumentedOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, o := range options() {
		if seen[o.key] {
			t.Errorf("option %s is there twice", o.key)
		}
		seen[o.key] = true
		if o.help == "" {
			t.Errorf("option %s has no help text", o.key)
		}
	}
	if _, err := Load(nil, env(nil), io.Discard); err != nil {
		t.Errorf("the defaults do not hold: %v", err)
	}
}

// TestCheckJudgesTheWhole is what a ConfigMap is judged by before it is written.
func TestCheckJudgesTheWhole(t *testing.T) {
	good := map[string]string{"ipam": "cluster-pool", "cluster-pool-ipv4-cidr": "10.0.0.0/16", "identity-gc-interval": "60", "x-of-a-user": "?"}
	if err := Check(good); err != nil {
		t.Errorf("%v", err)
	}
	for want, change := range map[string]map[string]string{
		"option debug (cilium-config)":               {"debug": "perhaps"},
		"enable-ipv4 and enable-ipv6":                {"enable-ipv4": "false"},
		"mask size 24 does not fit":                  {"cluster-pool-ipv4-cidr": "10.0.0.0/28"},
		"pools 10.0.0.0/16 and 10.0.1.0/24 overlap":  {"cluster-pool-ipv4-cidr": "10.0.0.0/16 10.0.1.0/24"},
		"cluster-name: must be set when cluster-id ": {"cluster-id": "3"},
	} {
		all := maps.Clone(good)
		maps.Copy(all, change)
		if err := Check(all); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", change, err, want)
		}
	}
	if table := Table(); !slices.IsSortedFunc(table, func(a, b Option) int { return strings.Compare(a.Key, b.Key) }) || len(table) < 30 {
		t.Errorf("%d options, or out of order", len(table))
	}
}

// TestServiceOptions are the defaults, which are Cilium's, and what does not go together.
func TestServiceOptions(t *testing.T) {
	c, err := Load([]string{"--kube-proxy-replacement=true"}, env(nil), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if c.NodePortMin != 30000 || c.NodePortMax != 32767 || c.LBMode != LBSNAT || c.MaglevTable() != 0 || c.MaglevSize != 16381 ||
		!c.ProtectNodePorts || !c.BindProtection || !c.HealthCheckNodePort || !c.SourceRangeCheck || c.NodePortAddresses != nil {
		t.Errorf("defaults %+v", c)
	}
	if c, err = Load([]string{"--kube-proxy-replacement=true", "--bpf-lb-algorithm=maglev", "--bpf-lb-maglev-hash-seed=AAAAAQAAAAIAAAAE"}, env(nil), io.Discard); err != nil || c.MaglevTable() != 16381 || c.MaglevSeed != 7 {
		t.Errorf("maglev: %v %+v", err, c)
	}
	for want, args := range map[string][]string{
		"option enable-node-port: true needs kube-proxy-replacement true":                      {"--enable-node-port"},
		"option enable-session-affinity: false is not possible":                                {"--kube-proxy-replacement", "--enable-session-affinity=false"},
		"option bpf-lb-mode: dsr needs kube-proxy-replacement true":                            {"--bpf-lb-mode=dsr"},
		"option bpf-lb-sock: true needs kube-proxy-replacement true":                           {"--bpf-lb-sock"},
		"options bpf-lb-mode and routing-mode: dsr sends packets on in the tunnel":             {"--kube-proxy-replacement", "--bpf-lb-mode=dsr", "--routing-mode=native"},
		"option node-port-range (flag): \"30000,50000\" overlaps 49152-65535":                  {"--node-port-range=30000,50000"},
		"option bpf-lb-maglev-table-size (flag): \"131072\" is not a prime from 251 to 131071": {"--bpf-lb-maglev-table-size=131072"},
	} {
		if _, err := Load(args, env(nil), io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
}
