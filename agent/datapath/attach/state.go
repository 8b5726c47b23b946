// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// State is what is known about attachments.
type State struct {
	// Mode is the way of attaching to devices: "TCX" or "Legacy TC".
	Mode       string
	Generation string
	Adopted    bool // the generation was in the kernel when the agent started
	Hooks      int  // of devices, with a program of ours
	Behind     int  // of these, with a program of another generation
	Sockets    int  // of the cgroup, with a program of ours
	Foreign    int  // programs of others on the same hooks
	// Twins are hooks with a second link of ours that cannot be taken off, in words.
	Twins []string
	// Unpinned are hooks served by a link that has lost its pin and cannot be taken up, in words.
	Unpinned []string
	// Handover says that programs of ours are attached by both ways.
	Handover bool
	// Repairs counts hooks that had lost their program and got it back.
	Repairs   uint64
	Audits    uint64
	LastAudit time.Time
}

func (a *Attacher) mode() string {
	if a.tcx {
		return "TCX"
	}
	return "Legacy TC"
}

// State returns what is known.
func (a *Attacher) State() State {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.state
	s.Hooks, s.Sockets = len(a.held), len(a.sockets)
	for _, p := range a.held {
		if p.Generation != a.programs.Hash {
			s.Behind++
		}
	}
	s.Mode, s.Handover, s.Twins = a.mode(), a.both, slices.Clone(s.Twins)
	s.Generation, s.Adopted = a.programs.Hash, a.programs.Adopted
	s.Unpinned = slices.Clone(s.Unpinned)
	return s
}

var (
	descHooks = prometheus.NewDesc("cilium_datapath_attachments",
		"Hooks with a program of the agent, by kind, and other programs on the same hooks.", []string{"kind"}, nil)
	descRepairs = prometheus.NewDesc("cilium_datapath_attachment_repairs_total",
		"Hooks that had lost their program and got it back.", nil, nil)
	descAudits = prometheus.NewDesc("cilium_datapath_attachment_audits_total", "Audits of the hooks of devices.", nil, nil)
)

// Describe sends the descriptions of the metrics.
func (a *Attacher) Describe(ch chan<- *prometheus.Desc) {
	ch <- descHooks
	ch <- descRepairs
	ch <- descAudits
}

// Collect sends the metrics.
func (a *Attacher) Collect(ch chan<- prometheus.Metric) {
	s := a.State()
	for kind, n := range map[string]int{"device": s.Hooks, "socket": s.Sockets, "foreign": s.Foreign, "duplicate": len(s.Twins)} {
		ch <- prometheus.MustNewConstMetric(descHooks, prometheus.GaugeValue, float64(n), kind)
	}
	ch <- prometheus.MustNewConstMetric(descRepairs, prometheus.CounterValue, float64(s.Repairs))
	ch <- prometheus.MustNewConstMetric(descAudits, prometheus.CounterValue, float64(s.Audits))
}
