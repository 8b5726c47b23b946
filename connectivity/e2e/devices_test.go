// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"lash.internal/lash/connectivity/probe"
)

// secondNetwork gives a running node a second device with a host behind it. Pods reach it by the
// node's routes and are seen by the address of that device.
func (c *cluster) secondNetwork(t *testing.T) {
	c.apply(t, "traffic.yaml", nil)
	defer c.kubectl("delete", "pod", "server", "client", "--wait=false")
	c.kubectl("wait", "--for=condition=Ready", "pod/server", "pod/client", "--timeout=60s")
	node := strings.TrimSpace(c.kubectl("get", "pod", "client", "-o", "jsonpath={.spec.nodeName}"))
	c.node(node, "sh", "-ec", `
ip netns add second
ip link add eth1 type veth peer name eth0 netns second
ip addr add 10.77.0.1/24 dev eth1
ip addr add fd77::1/64 dev eth1 nodad
ip link set eth1 up
ip -n second link set lo up
ip -n second addr add 10.77.0.2/24 dev eth0
ip -n second addr add fd77::2/64 dev eth0 nodad
ip -n second link set eth0 up`)
	defer c.node(node, "sh", "-ec", "ip link del eth1; ip netns del second")
	c.background(node, "ip", "netns", "exec", "second", c.lash, "connectivity", "echo", "--tcp", "8081", "--udp", "8082")
	agent := strings.TrimSpace(c.kubectl("-n", "kube-system", "get", "pod", "-l", "k8s-app=cilium", "--field-selector", "spec.nodeName="+node, "-o", "name"))
	c.until(t, "the agent knows eth1", func() (bool, string) {
		out := c.kubectl("-n", "kube-system", "exec", agent, "--", "cilium", "status", "--verbose")
		return strings.Contains(out, "eth1"), out
	})
	for target, want := range map[string]string{"10.77.0.2": "10.77.0.1", "[fd77::2]": "[fd77::1]"} {
		for proto, port := range map[string]string{"tcp": "8081", "udp": "8082"} {
			r := c.exec(30*time.Second, c.kube, "exec", "client", "--", "lash-agent", "probe", "--size", "200", proto, target+":"+port)
			var got probe.Result
			if err := json.Unmarshal([]byte(r.out), &got); err != nil || !got.OK || !strings.HasPrefix(got.Seen, want+":") {
				t.Errorf("%s to %s: want it to be seen as %s: %s", proto, target, want, r.all())
			}
		}
	}
}

// until asks again and again until the answer is yes, for a minute.
func (c *cluster) until(t *testing.T, what string, ask func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		ok, last := ask()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute:\n%s", what, last)
		}
		time.Sleep(200 * time.Millisecond)
	}
}
