// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"slices"
	"testing"

	"lash.internal/lash/agent/datapath/testnode"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// TestServicesAreShownAsTheProgramsHaveThem has a configuration that says otherwise.
func TestServicesAreShownAsTheProgramsHaveThem(t *testing.T) {
	root := testnode.New(t)
	n := startAgent(t, root, testnode.Veth(t, "lxc1"), "1", false, false)
	defer n.stop()
	k := n.kernel
	k.constant = bpf.DefaultConfig()
	k.note()
	tx := n.tables.DB.WriteTxn()
	n.tables.Devices.Insert(tx, state.Device{Name: "eth9", Index: testnode.Veth(t, "eth9"), DirectRouting: true})
	tx.Commit()

	got := n.kubeProxyReplacement()
	if got.Mode != "True" || !got.Features.ClusterIP.Enabled || got.Features.SocketLB.Enabled {
		t.Errorf("without anything attached: %+v %+v", got, got.Features)
	}
	if len(got.Devices) != 0 || got.Features.NodePort.Enabled {
		t.Errorf("a device without a program serves: %+v %+v", got, got.Features.NodePort)
	}
	if err := n.paths.hooks.Sync(t.Context(), n.hooksOfAll()...); err != nil {
		t.Fatal(err)
	}
	got = n.kubeProxyReplacement()
	if !slices.Equal(got.Devices, []string{"eth9"}) || got.DirectRoutingDevice != "eth9" {
		t.Errorf("devices %+v", got)
	}
	if f := got.Features.NodePort; f.Algorithm != "Random" || !f.Enabled || f.Mode != "SNAT" || f.PortMin != 30000 {
		t.Errorf("NodePort %+v", f)
	}

	// Programs of before go on serving: what they were loaded with counts, not what is wanted now.
	k.choice.Problem = errors.New("the new programs do not load")
	k.constant.MaglevSize, k.constant.KubeProxyReplacement = 251, false
	k.note()
	if got := n.kubeProxyReplacement(); got.Mode != "True" || got.Features.NodePort.Algorithm != "Random" {
		t.Errorf("with programs of before: %+v %+v", got, got.Features.NodePort)
	}
	k.choice.Problem = nil
	k.note()
	if got := n.kubeProxyReplacement(); got.Mode != "False" || got.Features.ClusterIP.Enabled || len(got.Devices) != 0 {
		t.Errorf("beside kube-proxy: %+v %+v", got, got.Features)
	}
}
