// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/cmd/term"
	"lash.internal/lash/status"
)

// writeVerbose prints one line an agent, then what each has in the kernel of its node.
func writeVerbose(t *term.Term, s *status.Status) {
	fmt.Fprintln(t.W)
	rows := [][]string{}
	pods := slices.Sorted(maps.Keys(s.CiliumStatus))
	for _, pod := range pods {
		st := s.CiliumStatus[pod]
		kpr, ipam, healthy, version := "-", "-", 0, "-"
		if st.KubeProxyReplacement != nil {
			kpr = st.KubeProxyReplacement.Mode
		}
		if st.IPAM != nil {
			ipam = strings.TrimSuffix(strings.TrimSpace(st.IPAM.Status), ",")
		}
		if st.Cilium != nil {
			version = st.Cilium.Msg
		}
		for _, c := range st.Controllers {
			if c.Status.ConsecutiveFailureCount == 0 {
				healthy++
			}
		}
		rows = append(rows, []string{
			pod, version, kpr, fmt.Sprintf("%d/%d", healthy, len(st.Controllers)),
			fmt.Sprint(len(s.CiliumEndpoints[pod])), ipam,
		})
	}
	t.Table([]string{"AGENT", "VERSION", "KUBEPROXYREPLACEMENT", "CONTROLLERS", "ENDPOINTS", "IPAM"}, rows)
	for _, pod := range pods {
		writeKernel(t, pod, s.CiliumStatus[pod])
	}
}

// writeKernel prints what one agent has in the kernel.
func writeKernel(t *term.Term, pod string, st *api.StatusResponse) {
	if st.Datapath == nil && st.BPFMaps == nil {
		return
	}
	title := "Agent " + pod
	if st.Cluster != nil && st.Cluster.Self != "" {
		_, node, _ := strings.Cut(st.Cluster.Self, "/")
		title += " on node " + node
	}
	fmt.Fprintln(t.W)
	fmt.Fprintln(t.W, t.Bold(title))
	if d := st.Datapath; d != nil {
		var rows [][]string
		if at := st.Attachments; at != nil {
			rows = append(rows, []string{"  Programs:", programsText(at, st.AttachMode)})
		}
		if p := st.DatapathProbe; p != nil {
			rows = append(rows, []string{"  Probe:", p.State + ", " + p.Msg})
		}
		if d.MTU != nil {
			rows = append(rows, []string{"  MTU:", mtuText(d.MTU)})
		}
		rows = append(rows, []string{"  Hooks:", hooksText(t, d.Attachments)})
		if len(d.Drops) == 0 {
			rows = append(rows, []string{"  Drops:", "none"})
		}
		t.Table(nil, rows)
		writeHooks(t, d.Attachments)
		writeDrops(t, d.Drops)
	}
	if st.BPFMaps != nil {
		writeFill(t, st.BPFMaps.Maps)
	}
}

func programsText(at *api.AttachmentStatus, mode string) string {
	s := "generation " + at.Generation + ", loaded by this agent, "
	if at.Adopted {
		s = "generation " + at.Generation + ", found in the kernel and adopted, "
	}
	s += "attach mode " + mode
	if at.Repairs > 0 {
		s += fmt.Sprintf(", %d hooks had lost their program and got it back", at.Repairs)
	}
	return s
}

func mtuText(m *api.MTUStatus) string {
	s := fmt.Sprintf("%d between nodes, %d for pods", m.Underlay, m.Pod)
	if n := m.Underlay - m.Pod; n > 0 {
		s += fmt.Sprintf(" (the tunnel takes %d)", n)
	}
	return s
}

func hooksText(t *term.Term, all []api.Attachment) string {
	good, behind, others := 0, 0, 0
	for _, a := range all {
		switch a.State {
		case api.AttachmentOK:
			good++
		case api.AttachmentBehind:
			behind++
		}
		others += len(a.Others)
	}
	s := fmt.Sprintf("%d of %d hold their program", good, len(all))
	if good+behind < len(all) {
		s = t.Red(s)
	}
	if behind > 0 {
		s += ", " + t.Yellow(fmt.Sprintf("%d hold that of another generation", behind))
	}
	if others > 0 {
		s += fmt.Sprintf(", with %d programs of others beside them", others)
	}
	return s
}

// writeHooks lists the hooks of the node's devices; of sockets and pods only those that something
// is to be said about.
func writeHooks(t *term.Term, all []api.Attachment) {
	var rows [][]string
	for _, a := range all {
		if (a.Owner != "" || a.Direction == "socket") && a.State == api.AttachmentOK && len(a.Others) == 0 {
			continue
		}
		state := a.State
		if a.Error != "" {
			state += ": " + a.Error
		}
		switch a.State {
		case api.AttachmentOK:
		case api.AttachmentBehind:
			state = t.Yellow(state)
		default:
			state = t.Red(state)
		}
		hook := a.Device + " " + a.Direction
		if a.Owner != "" {
			hook += " (" + a.Owner + ")"
		}
		rows = append(rows, []string{"    " + hook, a.Program, state, strings.Join(a.Others, ", ")})
	}
	if len(rows) > 0 {
		t.Table([]string{"    HOOK", "PROGRAM", "STATE", "OTHERS"}, rows)
	}
}

func writeDrops(t *term.Term, drops []api.DropCount) {
	var rows [][]string
	for _, d := range drops {
		rows = append(rows, []string{"    " + d.Reason, d.Direction, fmt.Sprint(d.Packets), fmt.Sprint(d.Bytes)})
	}
	if len(rows) > 0 {
		t.Table([]string{"    DROPPED", "DIRECTION", "PACKETS", "BYTES"}, rows)
	}
}

func writeFill(t *term.Term, all []api.BPFMapSize) {
	var rows [][]string
	for _, m := range all {
		entries, fill := "-", ""
		if m.Entries >= 0 {
			entries = fmt.Sprint(m.Entries)
		}
		if share, ok := m.Fill(); ok {
			fill = fmt.Sprintf("%.1f %%", 100*share)
			if share >= status.MapWarning {
				fill = t.Yellow(fill)
			}
		}
		rows = append(rows, []string{"    " + m.Name, entries, fmt.Sprint(m.Size), fill})
	}
	if len(rows) > 0 {
		t.Table([]string{"    MAP", "ENTRIES", "MAX", "FULL"}, rows)
	}
}
