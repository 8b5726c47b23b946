// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"
	"time"

	"lash.internal/lash/agent/kube"
	"lash.internal/lash/agent/rest"
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
