// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"lash.internal/lash/agent/api"
)

// writeStatus prints the status block. The order and the wording of the rows are what users and
// scripts know from Cilium; a row without a component behind it is left out.
func writeStatus(w io.Writer, st *api.StatusResponse, d details, now time.Time) error {
	t := table(w, 2)
	row := func(label, format string, args ...any) { fmt.Fprintf(t, label+":\t"+format+"\n", args...) }
	component := func(label string, s *api.Status) {
		if s != nil {
			row(label, "%s\t%s", s.State, s.Msg)
		}
	}
	component("KVStore", st.Kvstore)
	component("ContainerRuntime", st.ContainerRuntime)
	if k := st.Kubernetes; k != nil {
		row("Kubernetes", "%s\t%s", k.State, k.Msg)
		if k.State != api.StateDisabled {
			apis := slices.Sorted(slices.Values(k.APIVersions))
			row("Kubernetes APIs", "[\"%s\"]", strings.Join(apis, "\", \""))
		}
	}
	if k := st.KubeProxyReplacement; k != nil {
		devices := ""
		if k.Mode != "False" {
			devices = bracketed(deviceList(k))
		}
		row("KubeProxyReplacement", "%s\t%s", k.Mode, devices)
	}
	if f := st.HostFirewall; f != nil {
		row("Host firewall", "%s\t%s", f.Mode, bracketed(strings.Join(f.Devices, ", ")))
	}
	if st.SRv6 != nil {
		row("SRv6", "%s", onOff(st.SRv6.Enabled))
	}
	if st.CNIChaining != nil {
		row("CNI Chaining", "%s", st.CNIChaining.Mode)
	}
	if f := st.CNIFile; f != nil {
		if f.State == api.StateOk {
			row("CNI Config file", "%s", f.Msg)
		} else {
			row("CNI Config file", "%s: %s", f.State, f.Msg)
		}
	}
	component("Cilium", st.Cilium)
	component("Datapath probe", st.DatapathProbe)
	writeStale(t, st.Stale, now)
	writeMonitorRow(row, st.NodeMonitor)
	if st.Cluster != nil {
		component("Cilium health daemon", st.Cluster.CiliumHealth)
	}
	writeIPAM(t, row, st.IPAM, d.addresses)
	if m := st.ClusterMesh; m != nil {
		row("ClusterMesh", "%d/%d remote clusters ready, %d global-services", len(m.Clusters), len(m.Clusters), 0)
	}
	writeDatapathRows(row, st, d.attachments)
	if st.ClockSource != nil && d.kpr {
		row("Clock Source for BPF", "%s", st.ClockSource.Mode)
	}
	writeControllers(t, row, st.Controllers, d.controllers, now)
	row("Proxy Status", "No managed proxy redirect")
	if r := st.IdentityRange; r != nil {
		row("Global Identity Range", "min %d, max %d", r.MinIdentity, r.MaxIdentity)
	}
	if h := st.Hubble; h != nil {
		row("Hubble", "%s\t%s", h.State, h.Msg)
	}
	// The blocks of the long form stand between the rows and have columns of their own.
	if d.kpr && st.KubeProxyReplacement != nil {
		if err := errors.Join(t.Flush(), writeKPR(w, st.KubeProxyReplacement)); err != nil {
			return err
		}
	}
	if d.maps && st.BPFMaps != nil {
		if err := errors.Join(t.Flush(), writeMaps(w, st.BPFMaps)); err != nil {
			return err
		}
	}
	if d.maps && st.Datapath != nil {
		if err := errors.Join(t.Flush(), writeDatapath(w, st.Datapath)); err != nil {
			return err
		}
	}
	if e := st.Encryption; e != nil {
		fmt.Fprintf(t, "Encryption:\t%s\t%s\n", e.Mode, e.Msg)
	}
	if d.nodes && st.Cluster != nil {
		writeNodes(t, st.Cluster)
	}
	for _, p := range st.NetworkPolicyWarnings {
		fmt.Fprintf(t, "Warning:\t%s\n", p)
	}
	return t.Flush()
}

type rowFunc func(label, format string, args ...any)

func onOff(b bool) string {
	if b {
		return "Enabled"
	}
	return "Disabled"
}

func bracketed(s string) string {
	if s == "" {
		return ""
	}
	return "[" + s + "]"
}

// deviceList is "eth0   10.0.0.5 fe80::1 (Direct Routing), eth1   ...".
func deviceList(k *api.KubeProxyReplacement) string {
	var out []string
	for _, d := range k.DeviceList {
		s := d.Name
		if len(d.IP) > 0 {
			s += "   " + strings.Join(d.IP, " ")
		}
		if d.Name == k.DirectRoutingDevice {
			s += " (Direct Routing)"
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

func writeStale(w io.Writer, stale map[string]time.Time, now time.Time) {
	if len(stale) == 0 {
		return
	}
	fmt.Fprintln(w, "Stale status:")
	for _, k := range slices.Sorted(maps.Keys(stale)) {
		fmt.Fprintf(w, "  %s\tstale since %s\n", k, ago(stale[k], now))
	}
}

func writeMonitorRow(row rowFunc, m *api.MonitorStatus) {
	if m == nil {
		row("NodeMonitor", "Disabled")
		return
	}
	s := fmt.Sprintf("Listening for events on %d CPUs with %dx%d of shared memory", m.CPUs, m.NPages, m.PageSize)
	if m.Lost != 0 || m.Unknown != 0 {
		s += fmt.Sprintf("\t%d events lost, %d unknown notifications", m.Lost, m.Unknown)
	}
	row("NodeMonitor", "%s", s)
}

func writeIPAM(w io.Writer, row rowFunc, i *api.IPAMStatus, all bool) {
	if i == nil {
		return
	}
	row("IPAM", "%s", i.Status)
	if !all {
		return
	}
	fmt.Fprintln(w, "Allocated addresses:")
	addrs := slices.Collect(maps.Keys(i.Allocations))
	slices.SortFunc(addrs, compareAddrs)
	for _, a := range addrs {
		fmt.Fprintf(w, "  %s (%s)\n", a, i.Allocations[a])
	}
}

func compareAddrs(a, b string) int {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	if errX != nil || errY != nil {
		return cmp.Compare(a, b)
	}
	return x.Compare(y)
}

func writeDatapathRows(row rowFunc, st *api.StatusResponse, attachments bool) {
	bigTCP := func(label string, b *api.BigTCP) {
		switch {
		case b == nil:
		case b.Enabled:
			row(label, "Enabled\t[%d, %d]", b.MaxGRO, b.MaxGSO)
		default:
			row(label, "Disabled")
		}
	}
	bigTCP("IPv4 BIG TCP", st.IPv4BigTCP)
	bigTCP("IPv6 BIG TCP", st.IPv6BigTCP)
	if b := st.BandwidthManager; b != nil {
		if b.Enabled {
			row("BandwidthManager", "EDT with BPF [%s] [%s]", strings.ToUpper(b.CongestionControl), strings.Join(b.Devices, ", "))
		} else {
			row("BandwidthManager", "Disabled")
		}
	}
	if r := st.Routing; r != nil {
		network := r.InterHost
		if r.TunnelProtocol != "" {
			network += " [" + r.TunnelProtocol + "]"
		}
		row("Routing", "Network: %s\tHost: %s", network, r.IntraHost)
	}
	if st.AttachMode != "" {
		row("Attach Mode", "%s", st.AttachMode)
	}
	if at := st.Attachments; at != nil && attachments {
		row("Attachments", "generation %s on %d device hooks and %d socket hooks\t%d behind, %d foreign, %d repaired, %d device repairs",
			at.Generation, at.Devices, at.Sockets, at.Behind, at.Foreign, at.Repairs, at.DeviceRepairs)
	}
	if st.DatapathMode != "" {
		row("Device Mode", "%s", st.DatapathMode)
	}
	if m := st.Masquerading; m != nil {
		row("Masquerading", "%s", masqueradeText(m))
	}
}

func masqueradeText(m *api.Masquerading) string {
	if !m.Enabled {
		return "Disabled"
	}
	s := m.Mode
	if m.Mode == "iptables" {
		s = "IPTables"
	}
	if len(m.Devices) > 0 {
		s += "\t" + bracketed(strings.Join(m.Devices, ", "))
	}
	for _, c := range []string{m.SnatExclusionCIDRv4, m.SnatExclusionCIDRv6} {
		if c != "" {
			s += "\t" + c
		}
	}
	if p := m.EnabledProtocols; p != nil {
		s += fmt.Sprintf(" [IPv4: %s, IPv6: %s]", onOff(p.IPv4), onOff(p.IPv6))
	}
	return s
}

func writeControllers(w io.Writer, row rowFunc, all []api.Controller, full bool, now time.Time) {
	if len(all) == 0 {
		return
	}
	ok := 0
	for _, c := range all {
		if c.Status.ConsecutiveFailureCount == 0 {
			ok++
		}
	}
	row("Controller Status", "%d/%d healthy", ok, len(all))
	if ok == len(all) && !full {
		return
	}
	fmt.Fprintf(w, "  Name\tLast success\tLast error\tCount\tMessage\n")
	for _, c := range all {
		s := c.Status
		if s.ConsecutiveFailureCount == 0 && !full {
			continue
		}
		msg := "no error"
		if s.ConsecutiveFailureCount > 0 {
			msg = s.LastFailureMsg
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%d\t%s\n", c.Name,
			ago(s.LastSuccessTimestamp, now), ago(s.LastFailureTimestamp, now), s.ConsecutiveFailureCount, msg)
	}
}

// ago is "never", or how long before now t was, in at most two units.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := now.Sub(t).Truncate(time.Second)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds ago", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm ago", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh ago", int(d.Hours())/24, int(d.Hours())%24)
}

// writeKPR prints the block that users look at to see what handles their Services.
func writeKPR(w io.Writer, k *api.KubeProxyReplacement) error {
	fmt.Fprintln(w, "KubeProxyReplacement Details:")
	t := table(w, 2)
	f := k.Features
	fmt.Fprintf(t, "  Status:\t%s\n", k.Mode)
	if f == nil {
		return t.Flush()
	}
	fmt.Fprintf(t, "  Socket LB:\t%s\n", onOff(f.SocketLB.Enabled))
	fmt.Fprintf(t, "  Socket LB Tracing:\t%s\n", onOff(f.SocketLBTracing.Enabled))
	if f.SocketLB.Enabled {
		coverage := "Full"
		if f.BPFSocketLBHostnsOnly {
			coverage = "Hostns-only"
		}
		fmt.Fprintf(t, "  Socket LB Coverage:\t%s\n", coverage)
	}
	if d := deviceList(k); d != "" {
		fmt.Fprintf(t, "  Devices:\t%s\n", d)
	}
	if f.NodePort.Mode != "" {
		fmt.Fprintf(t, "  Mode:\t%s\n", f.NodePort.Mode)
	}
	if f.NodePort.DSRMode != "" && f.NodePort.Mode != "SNAT" {
		fmt.Fprintf(t, "    DSR Dispatch Mode:\t%s\n", f.NodePort.DSRMode)
	}
	switch f.NodePort.Algorithm {
	case "":
	case "Maglev":
		fmt.Fprintf(t, "  Backend Selection:\tMaglev (Table Size: %d)\n", f.NodePort.LutSize)
	default:
		fmt.Fprintf(t, "  Backend Selection:\t%s\n", f.NodePort.Algorithm)
	}
	fmt.Fprintf(t, "  Session Affinity:\t%s\n", onOff(f.SessionAffinity.Enabled))
	fmt.Fprintf(t, "  Graceful Termination:\t%s\n", onOff(f.GracefulTermination.Enabled))
	fmt.Fprintf(t, "  NAT46/64 Support:\t%s\n", onOff(f.NAT46X64.Enabled))
	fmt.Fprintf(t, "  XDP Acceleration:\t%s\n", cmp.Or(f.NodePort.Acceleration, "Disabled"))
	fmt.Fprintf(t, "  Services:\n")
	if err := t.Flush(); err != nil {
		return err
	}
	t = table(w, 2)
	nodePort := "Disabled"
	if f.NodePort.Enabled {
		nodePort = fmt.Sprintf("Enabled (Range: %d-%d)", f.NodePort.PortMin, f.NodePort.PortMax)
	}
	if f.ClusterIP != nil {
		fmt.Fprintf(t, "  - ClusterIP:\t%s\n", onOff(f.ClusterIP.Enabled))
	}
	fmt.Fprintf(t, "  - NodePort:\t%s\n", nodePort)
	fmt.Fprintf(t, "  - LoadBalancer:\t%s\n", onOff(f.LoadBalancer.Enabled))
	fmt.Fprintf(t, "  - externalIPs:\t%s\n", onOff(f.ExternalIPs.Enabled))
	fmt.Fprintf(t, "  - HostPort:\t%s\n", onOff(f.HostPort.Enabled))
	annotations := "(n/a)"
	if len(f.Annotations) > 0 {
		annotations = strings.Join(f.Annotations, ", ")
	}
	fmt.Fprintf(t, "  Annotations:\t%s\n", annotations)
	return t.Flush()
}

func writeMaps(w io.Writer, m *api.BPFMapStatus) error {
	sizing := "off"
	if m.DynamicSizeRatio > 0 {
		sizing = fmt.Sprintf("on (ratio: %f)", m.DynamicSizeRatio)
	}
	t := table(w, 2)
	fmt.Fprintf(t, "BPF Maps:\tdynamic sizing: %s\n", sizing)
	fmt.Fprintf(t, "  Name\tSize\tEntries\n")
	for _, x := range m.Maps {
		entries := "-"
		if x.Entries >= 0 {
			entries = fmt.Sprint(x.Entries)
		}
		fmt.Fprintf(t, "  %s\t%d\t%s\n", x.Name, x.Size, entries)
	}
	return t.Flush()
}

// writeDatapath prints what is in the kernel: the programs by hook, the sizes of packets, and what
// was dropped.
func writeDatapath(w io.Writer, d *api.DatapathStatus) error {
	t := table(w, 2)
	if d.MTU != nil {
		fmt.Fprintf(t, "MTU:\t%d between nodes, %d for pods\n", d.MTU.Underlay, d.MTU.Pod)
	}
	fmt.Fprintf(t, "Hooks:\t%d\n", len(d.Attachments))
	fmt.Fprintf(t, "  Hook\tDirection\tProgram\tState\tOthers\n")
	for _, a := range d.Attachments {
		state := a.State
		if a.Error != "" {
			state += ": " + a.Error
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\n", a.Device, a.Direction, a.Program, state, strings.Join(a.Others, ", "))
	}
	if len(d.Drops) > 0 {
		fmt.Fprintf(t, "  Dropped\tDirection\tPackets\tBytes\n")
	}
	for _, x := range d.Drops {
		fmt.Fprintf(t, "  %s\t%s\t%d\t%d\n", x.Reason, x.Direction, x.Packets, x.Bytes)
	}
	return t.Flush()
}

func writeNodes(w io.Writer, c *api.ClusterStatus) {
	fmt.Fprintf(w, "Nodes:\t%d known\n", len(c.Nodes))
	fmt.Fprintf(w, "  Name\tIP\tPods\n")
	for _, n := range c.Nodes {
		var ips, ranges []string
		if p := n.PrimaryAddress; p != nil {
			for _, a := range []*api.NodeAddress{p.IPv4, p.IPv6} {
				if a == nil {
					continue
				}
				ips = append(ips, a.IP)
				if a.AllocRange != "" {
					ranges = append(ranges, a.AllocRange)
				}
			}
		}
		name := n.Name
		if n.Name == c.Self {
			name += " (localhost)"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", name, strings.Join(ips, ", "), strings.Join(ranges, ", "))
	}
}
