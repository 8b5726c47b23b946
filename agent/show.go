// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"errors"
	"slices"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/datapath/attach"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// datapath is what this agent has in the kernel, as the kernel says it.
func (a *Agent) datapath() *api.DatapathStatus {
	k := a.kernel
	return &api.DatapathStatus{
		MTU:         &api.MTUStatus{Underlay: k.underlayMTU, Pod: k.podMTU},
		Attachments: slices.Concat(a.deviceAttachments(), a.socketAttachments()),
	}
}

// kubeProxyReplacement is what this node does for Services: each value is what the programs that run
// were loaded with, the maps that they use, or what is attached.
func (a *Agent) kubeProxyReplacement() *api.KubeProxyReplacement {
	r := a.kernel.running()
	c := r.constant
	if !r.known {
		// Programs of a version that did not note it: their maps are all there is to go by.
		c.KubeProxyReplacement = a.cfg.KubeProxyReplacement
	}
	k := &api.KubeProxyReplacement{Mode: "False", Features: &api.KPRFeatures{
		Annotations: []string{}, ClusterIP: &api.EnabledFeature{}, NodePort: api.NodePortFeature{Acceleration: "Disabled"},
	}}
	if !c.KubeProxyReplacement {
		return k
	}
	k.Mode = "True"
	f := k.Features
	f.ClusterIP.Enabled, f.GracefulTermination.Enabled = r.balances, r.balances
	f.SessionAffinity.Enabled = r.affinity
	if c.SockLB != bpf.SockLBOff && a.kernel.attach.State().Sockets > 0 {
		f.SocketLB.Enabled = true
		f.BPFSocketLBHostnsOnly = c.SockLB == bpf.SockLBHostNS
		f.HostReachableServices = api.HostReachableServices{Enabled: true, Protocols: []string{"TCP", "UDP"}}
	}
	k.DeviceList, k.DirectRoutingDevice = a.servingDevices()
	for _, d := range k.DeviceList {
		k.Devices = append(k.Devices, d.Name)
	}
	outside := api.EnabledFeature{Enabled: r.outside && len(k.Devices) > 0}
	f.ExternalIPs, f.LoadBalancer, f.HostPort = outside, outside, outside
	f.NodePort.Enabled = outside.Enabled
	if !r.known {
		return k
	}
	f.NodePort.Algorithm = "Random"
	if c.MaglevSize > 0 {
		f.NodePort.Algorithm, f.NodePort.LutSize = "Maglev", int64(c.MaglevSize)
	}
	if outside.Enabled {
		f.NodePort.PortMin, f.NodePort.PortMax = int64(c.NodePortMin), int64(c.NodePortMax)
		switch c.LBMode {
		case bpf.LBSNAT:
			f.NodePort.Mode = "SNAT"
		case bpf.LBDSR:
			f.NodePort.Mode, f.NodePort.DSRMode = "DSR", "VXLAN"
		case bpf.LBHybrid:
			f.NodePort.Mode, f.NodePort.DSRMode = "Hybrid", "VXLAN"
		}
	}
	return k
}

// servingDevices are the devices on which a program takes what comes in, and the one of them that has
// the node's own address.
func (a *Agent) servingDevices() (out []api.KPRDevice, direct string) {
	for _, d := range a.tables.Devices.All() {
		h := attach.Hook{Ifindex: d.Index}
		want, ok := a.hook(h)
		if !ok {
			continue
		}
		seen, err := attach.OnDevice(h)
		if s := a.judge(api.Attachment{}, want, seen, err).State; s != api.AttachmentOK && s != api.AttachmentBehind {
			continue
		}
		k := api.KPRDevice{Name: d.Name, IP: []string{}}
		for _, p := range d.Addrs {
			k.IP = append(k.IP, p.Addr().String())
		}
		out = append(out, k)
		if d.DirectRouting {
			direct = d.Name
		}
	}
	slices.SortFunc(out, func(x, y api.KPRDevice) int { return cmp.Compare(x.Name, y.Name) })
	return out, direct
}

// deviceAttachments compares the hooks of devices with what belongs there.
func (a *Agent) deviceAttachments() []api.Attachment {
	kinds := map[attach.Hook]api.Attachment{} // by hook: device, direction, owner
	add := func(hooks []attach.Hook, device, owner string) {
		for _, h := range hooks {
			direction := "ingress"
			if h.Egress {
				direction = "egress"
			}
			kinds[h] = api.Attachment{Device: device, Direction: direction, Owner: owner}
		}
	}
	for _, d := range a.tables.Devices.All() {
		add(deviceHooks(d), d.Name, "")
	}
	for _, d := range a.tables.OwnDevices.All() {
		add(ownHooks(d), d.Name, "")
	}
	for _, e := range a.tables.Endpoints.All() {
		if e.State == state.EndpointReady {
			owner := e.Pod.String()
			if e.IsHealth() {
				owner = ""
			}
			add(podHooks(e), e.IfName, owner)
		}
	}
	var out []api.Attachment
	for h, at := range kinds {
		want, ok := a.hook(h)
		if !ok {
			continue
		}
		seen, err := attach.OnDevice(h)
		if errors.Is(err, attach.ErrNoDevice) {
			continue // it went while we looked
		}
		out = append(out, a.judge(at, want, seen, err))
	}
	slices.SortFunc(out, func(x, y api.Attachment) int {
		// Devices of the node first, then pods.
		return cmp.Or(cmp.Compare(x.Owner, y.Owner), cmp.Compare(x.Device, y.Device), -cmp.Compare(x.Direction, y.Direction))
	})
	return out
}

// socketAttachments compares the hooks of the node's cgroup with what belongs there.
func (a *Agent) socketAttachments() []api.Attachment {
	var out []api.Attachment
	for name, want := range a.socketHooks() {
		seen, err := a.kernel.attach.Socket(a.cfg.CgroupRoot, name)
		out = append(out, a.judge(api.Attachment{Device: a.cfg.CgroupRoot, Direction: "socket"}, want, seen, err))
	}
	slices.SortFunc(out, func(x, y api.Attachment) int { return cmp.Compare(x.Program, y.Program) })
	return out
}

// judge says whether the program that belongs on a hook is there, and who else is.
func (a *Agent) judge(at api.Attachment, want attach.Program, seen []attach.Seen, err error) api.Attachment {
	at.Program, at.State = want.Name, api.AttachmentMissing
	if err != nil {
		at.State, at.Error = api.AttachmentUnknown, err.Error()
		return at
	}
	var older []string
	for _, s := range seen {
		switch have, ours := a.kernel.attach.Known(s.ID); {
		case ours && have == want:
			at.State = api.AttachmentOK
		case ours && have.Name == want.Name:
			older = append(older, have.Name+" of generation "+have.Generation)
		case ours:
			at.Others = append(at.Others, cmp.Or(have.Name, "a program")+" of this agent")
		default:
			at.Others = append(at.Others, s.String())
		}
	}
	if at.State == api.AttachmentMissing && len(older) > 0 {
		at.State, at.Error, older = api.AttachmentBehind, older[0], older[1:]
	}
	at.Others = append(older, at.Others...)
	return at
}
