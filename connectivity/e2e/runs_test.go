// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// TestManyRuns does the whole connectivity test LASH_RUNS times in a cluster of each kind. No run may
// fail.
func TestManyRuns(t *testing.T) {
	runs, err := strconv.Atoi(os.Getenv("LASH_RUNS"))
	if err != nil || runs < 1 {
		t.Skip("set LASH_RUNS to a number of runs (make test-long)")
	}
	native := []string{"--datapath-mode", "native", "--set", "autoDirectNodeRoutes=true"}
	for _, kind := range []struct {
		name            string
		create, install []string
	}{
		{"kpr", []string{"--ip-family", "dual", "--workers", "2"}, nil},
		{"kprnative", []string{"--ip-family", "dual"}, native},
		{"v6", []string{"--ip-family", "ipv6"}, nil},
		{"pool", []string{"--ip-family", "ipv4"}, []string{"--set", "ipam.mode=cluster-pool"}},
		{"ipt", []string{"--ip-family", "dual", "--kube-proxy", "iptables"}, nil},
		{"nftnative", []string{"--ip-family", "dual", "--kube-proxy", "nftables"}, native},
		{"nomasq", []string{"--ip-family", "dual", "--kube-proxy", "iptables"}, []string{"--set", "enableIPv4Masquerade=false", "--set", "enableIPv6Masquerade=false"}},
		{"cls", []string{"--ip-family", "dual"}, []string{"--set", "bpf.enableTCX=false"}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			c := newCluster(t, "runs"+kind.name, append([]string{"--workers", "1"}, kind.create...)...)
			c.loadImage(c.lash)
			c.ok(append([]string{"install", "--wait", "--yes"}, kind.install...)...)
			c.ok("status", "--wait")
			failed := 0
			var longest time.Duration
			for range runs {
				start := time.Now()
				r := c.run("connectivity", "test")
				longest = max(longest, time.Since(start))
				if r.code != 0 {
					failed++
					t.Errorf("%s", r.all())
				}
			}
			t.Logf("%s: %d of %d runs failed, the longest took %.1f s", kind.name, failed, runs, longest.Seconds())
		})
	}
}

// TestFirstPackets is firstPackets in a cluster of its own, LASH_FIRST_PACKETS times.
func TestFirstPackets(t *testing.T) {
	if os.Getenv("LASH_FIRST_PACKETS") == "" {
		t.Skip("set LASH_FIRST_PACKETS to a number of pods (make test-long); TestLifeWithoutKubeProxy has a few")
	}
	c := newCluster(t, "first", "--ip-family", "dual", "--workers", "2")
	c.install()
	c.firstPackets(t)
}
