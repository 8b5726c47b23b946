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
	"lash.internal/lash/agent/state"
)

// bothSides are the hooks of a device.
func bothSides(index int) []attach.Hook {
	return []attach.Hook{{Ifindex: index}, {Ifindex: index, Egress: true}}
}

func podHooks(e state.Endpoint) []attach.Hook { return bothSides(e.IfIndex) }

func deviceHooks(d state.Device) []attach.Hook { return bothSides(d.Index) }

func ownHooks(d state.OwnDevice) []attach.Hook {
	if d.Name != state.VXLANDevice {
		return nil
	}
	return bothSides(d.Index)
}

// hooksOfAll are the hooks that are to have a program.
func (a *Agent) hooksOfAll() []attach.Hook {
	var out []attach.Hook
	for _, e := range a.tables.Endpoints.All() {
		out = append(out, podHooks(e)...)
	}
	for _, d := range a.tables.Devices.All() {
		out = append(out, deviceHooks(d)...)
	}
	for _, d := range a.tables.OwnDevices.All() {
		out = append(out, ownHooks(d)...)
	}
	return out
}

func (a *Agent) deviceKeys() []uint32 {
	var out []uint32
	for _, d := range a.tables.Devices.All() {
		out = append(out, uint32(d.Index))
	}
	return out
}

// hookName is the name of the program that belongs on a hook.
func (a *Agent) hookName(h attach.Hook) (string, bool) {
	name := func(in, out string) (string, bool) {
		if h.Egress {
			return out, true
		}
		return in, true
	}
	if tunnel, ok := a.tables.OwnDevices.Get(state.VXLANDevice); ok && h.Ifindex == tunnel.Index {
		return name("ov_from", "ov_to")
	}
	index := strconv.Itoa(h.Ifindex)
	if len(a.tables.Devices.ByIndex("ifindex", index)) > 0 {
		return name("nd_from", "nd_to")
	}
	// A pod keeps its programs until its device is gone, which takes them along.
	if len(a.tables.Endpoints.ByIndex("ifindex", index)) > 0 {
		return name("pod_from", "pod_to")
	}
	return "", false
}

// hook is the program that belongs on a hook, of the generation in use.
func (a *Agent) hook(h attach.Hook) (attach.Program, bool) {
	name, ok := a.hookName(h)
	return a.kernel.attach.Of(name), ok
}

func (a *Agent) wantsHook(h attach.Hook) bool {
	_, ok := a.hookName(h)
	return ok
}

// hookRank has the receivers written before the senders.
func (a *Agent) hookRank(h attach.Hook) int {
	if p, _ := a.hook(h); p.Receives() {
		return 0
	}
	return 1
}

// socketHooks are the programs that translate Services at the sockets; none when Services are
// left to kube-proxy.
func (a *Agent) socketHooks() map[string]attach.Program {
	out := map[string]attach.Program{}
	if a.cfg.KubeProxyReplacement {
		for _, name := range a.kernel.attach.Sockets() {
			out[name] = a.kernel.attach.Of(name)
		}
	}
	return out
}

// podLinks is the kernel's side of pods: their devices, and what the loops make of them.
type podLinks struct{ a *Agent }

// CreateLink makes a pod's pair of devices. The host end is up, so that routes over it are
// accepted, but carries nothing: the pod's end stays down until the plugin sets it up, and the
// plugin gets its answer only after Publish has attached the programs.
func (p podLinks) CreateLink(_ context.Context, e state.Endpoint) (cni.Link, error) {
	k := p.a.kernel
	v, err := netlink.CreateVeth(e.IfName, netlink.Peer{Netns: e.NetnsPath, Name: e.ContainerIf}, k.underlayMTU, p.a.cfg.IPv4, p.a.cfg.IPv6, k.sysctls)
	if err == nil {
		err = netlink.SetUp(e.IfName)
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
		func() error { return l.hooks.Sync(ctx, podHooks(e)...) },
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
