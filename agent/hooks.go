// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"strconv"

	"lash.internal/lash/agent/cni"
	"lash.internal/lash/agent/datapath/attach"
	"lash.internal/lash/agent/datapath/netlink"
	"lash.internal/lash/agent/node"
	"lash.internal/lash/agent/reconcile"
	"lash.internal/lash/agent/state"
)

// side is the part of the tc hooks of one direction.
type side struct {
	reconcile.Target[attach.Hook, string]
	egress bool
}

func (s side) Load(ctx context.Context) (map[attach.Hook]string, error) {
	all, err := s.Target.Load(ctx)
	for h := range all {
		if h.Egress != s.egress {
			delete(all, h)
		}
	}
	return all, err
}

func podHook(egress bool) func(state.Endpoint) []attach.Hook {
	return func(e state.Endpoint) []attach.Hook { return []attach.Hook{{Ifindex: e.IfIndex, Egress: egress}} }
}

func deviceHook(egress bool) func(state.Device) []attach.Hook {
	return func(d state.Device) []attach.Hook { return []attach.Hook{{Ifindex: d.Index, Egress: egress}} }
}

func (a *Agent) tunnelHook(egress bool) func() []attach.Hook {
	return func() []attach.Hook {
		if !a.cfg.Tunnel {
			return nil
		}
		return []attach.Hook{{Ifindex: a.kernel.devices.VXLAN, Egress: egress}}
	}
}

func (a *Agent) deviceKeys() []uint32 {
	var out []uint32
	for _, d := range a.tables.Devices.All() {
		out = append(out, uint32(d.Index))
	}
	return out
}

// hook is the program that belongs on a hook.
func (a *Agent) hook(h attach.Hook) (string, bool) {
	name := func(in, out string) (string, bool) {
		if h.Egress {
			return out, true
		}
		return in, true
	}
	index := strconv.Itoa(h.Ifindex)
	if a.cfg.Tunnel && h.Ifindex == a.kernel.devices.VXLAN {
		return name("ov_from", "ov_to")
	}
	if len(a.tables.Devices.ByIndex("ifindex", index)) > 0 {
		return name("nd_from", "nd_to")
	}
	// A pod keeps its programs until its device is gone, which takes them along.
	if len(a.tables.Endpoints.ByIndex("ifindex", index)) > 0 {
		return name("pod_from", "pod_to")
	}
	return "", false
}

// socketHooks are the programs that translate Services at the sockets; none when Services are
// left to kube-proxy.
func (a *Agent) socketHooks() map[string]string {
	out := map[string]string{}
	if a.cfg.KubeProxyReplacement {
		for _, name := range a.kernel.programs.Socket() {
			out[name] = name
		}
	}
	return out
}

// podLinks is the kernel's side of pods: their devices, and what the loops make of them.
type podLinks struct{ a *Agent }

// CreateLink makes a pod's pair of devices. The host end is up, so that routes over it are
// accepted, but carries nothing: the pod's end stays down until the plugin has moved it, and the
// plugin gets its answer only after Publish has attached the programs.
func (p podLinks) CreateLink(_ context.Context, hostName string) (cni.Link, error) {
	k := p.a.kernel
	v, err := netlink.CreateVeth(hostName, k.underlayMTU, p.a.cfg.IPv4, p.a.cfg.IPv6, k.sysctls)
	if err == nil {
		err = netlink.SetUp(hostName)
	}
	if err != nil {
		return cni.Link{}, err
	}
	return cni.Link{
		HostName: v.HostName, HostIndex: v.HostIndex, HostMAC: v.HostMAC, PeerName: v.PeerName, PodMAC: v.PodMAC,
		MTU: v.MTU, RouteMTU: k.podMTU,
	}, nil
}

// HasLink returns the index of an existing host end.
func (podLinks) HasLink(hostName string) (int, bool) { return netlink.Index(hostName) }

// Publish brings everything that follows from an endpoint's row up to date, in the order in which
// packets need it.
func (p podLinks) Publish(ctx context.Context, e state.Endpoint, _ state.Revision) error {
	l := p.a.paths
	for _, sync := range []func() error{
		func() error { return l.addr.Sync(ctx, p.a.view.AddrOfEndpoint(e)...) },
		func() error { return l.ep.Sync(ctx, node.EpKeys(e)...) },
		func() error { return l.toPod.Sync(ctx, podHook(true)(e)...) },
		func() error { return l.fromPod.Sync(ctx, podHook(false)(e)...) },
		func() error { return l.neighbours.Sync(ctx, node.NeighbourKeys(e)...) },
		func() error { return l.routes.Sync(ctx, p.a.view.RouteOfEndpoint(e)...) },
	} {
		if err := sync(); err != nil {
			return fmt.Errorf("publish endpoint %d: %w", e.ID, err)
		}
	}
	return nil
}

// DeleteLink removes a pod's pair of devices.
func (podLinks) DeleteLink(_ context.Context, hostName string) error {
	return netlink.DeleteLink(hostName)
}
