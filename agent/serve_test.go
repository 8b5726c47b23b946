// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"
	"time"

	"lash.internal/lash/agent/config"
	"lash.internal/lash/agent/kube"
	"lash.internal/lash/agent/rest"
	"lash.internal/lash/bpf"
)

// TestWritersAreControllers: an agent that may not write its objects says so in its status, which
// is where `lash status` looks.
func TestWritersAreControllers(t *testing.T) {
	at := time.Unix(1000, 0)
	got := rest.ControllersOf(writerLoops([]kube.WriterHealth{
		{Kind: "ciliumendpoint", Writes: 3, Failures: 2, Pending: 1, Error: "create CiliumEndpoint default/a: forbidden", Since: at, FailedAt: at.Add(time.Second)},
		{Kind: "ciliumnode", Writes: 1},
	}), at)
	if len(got) != 2 || got[0].Name != "kubernetes/ciliumendpoint" || got[0].Status.ConsecutiveFailureCount == 0 ||
		got[0].Status.LastFailureMsg != "create CiliumEndpoint default/a: forbidden" || got[0].Status.Pending != 1 {
		t.Errorf("failing: %+v", got)
	}
	if s := got[1].Status; s.ConsecutiveFailureCount != 0 || s.SuccessCount != 1 || s.LastFailureMsg != "" || !s.LastFailureTimestamp.IsZero() {
		t.Errorf("good: %+v", s)
	}
}

// TestNodePortsAreNoPortsOfMasquerading: what a configuration is judged by is what programs do.
func TestNodePortsAreNoPortsOfMasquerading(t *testing.T) {
	if c := bpf.DefaultConfig(); c.SNATMin != config.MasqueradeMin || c.SNATMax != 65535 {
		t.Errorf("masqueraded connections get ports %d-%d, and NodePorts are kept below %d", c.SNATMin, c.SNATMax, config.MasqueradeMin)
	}
	for _, m := range []config.LBMode{config.LBSNAT, config.LBDSR, config.LBHybrid} {
		if _, ok := lbModes[m]; !ok {
			t.Errorf("programs have no number for mode %s", m)
		}
	}
}
