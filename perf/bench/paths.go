// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"slices"
	"strings"

	"lash.internal/lash/perf/lab"
	"lash.internal/lash/perf/netperf"
)

// Group is a set of paths that are measured in the same rounds: one of Lash and bare ones, or the
// measuring program beside the original.
type Group struct {
	Name   string
	Title  string
	Native bool   // the cluster routes natively; else over VXLAN
	Server string // pod
	Bare   []Bare
	Tool   *Tool // no cluster, but one bare path with each pair of programs
}

// Bare is a path of the lab.
type Bare struct {
	Name     string
	Title    string
	From, To string
	Tunnel   bool
	// Goals are the least ratios, Lash's rate by this path's, that the project aims for.
	Goals map[netperf.Test]float64
}

// LashPath is the name of the path through the cluster.
const LashPath = "lash"

// Groups are all groups that there are.
var Groups = []Group{
	{
		Name: "same-node", Title: "Two pods of one node", Server: serverSame,
		Bare: []Bare{
			{
				"veth", "veth pair from pod to pod, nothing between", lab.Direct1, lab.Direct2, false,
				map[netperf.Test]float64{netperf.TCPRR: 0.95, netperf.TCPCRR: 0.92, netperf.TCPStream: 0.95},
			},
			{"routed", "kernel routing, no netfilter", lab.Plain1, lab.Plain2, false, nil},
			{"nat", fmt.Sprintf("kernel routing, connection tracking and %d NAT rules", lab.Rules), lab.NAT1, lab.NAT2, false, nil},
		},
	},
	{
		Name: "other-node-vxlan", Title: "Pods of two nodes, VXLAN", Server: serverOther,
		Bare: []Bare{
			{
				"vxlan", "the kernel's VXLAN and routing, no netfilter", lab.Plain1, lab.Plain3, true,
				map[netperf.Test]float64{netperf.TCPRR: 0.97, netperf.TCPCRR: 0.95, netperf.TCPStream: 0.95},
			},
			{"vxlan-nat", fmt.Sprintf("the same, connection tracking and %d NAT rules", lab.Rules), lab.NAT1, lab.NAT3, true, nil},
		},
	},
	{
		Name: "other-node-native", Title: "Pods of two nodes, native routing", Native: true, Server: serverOther,
		Bare: []Bare{
			{
				"routed", "kernel routing, no netfilter", lab.Plain1, lab.Plain3, false,
				map[netperf.Test]float64{netperf.TCPRR: 0.97, netperf.TCPCRR: 0.95, netperf.TCPStream: 0.95},
			},
			{
				"nat", fmt.Sprintf("kernel routing, connection tracking and %d NAT rules", lab.Rules), lab.NAT1, lab.NAT3, false,
				map[netperf.Test]float64{netperf.TCPRR: 1, netperf.TCPCRR: 1},
			},
		},
	},
	{Name: "tool-loopback", Title: "The measuring program beside netperf, loopback", Tool: &Tool{From: lab.Direct2, Loopback: true}},
	{Name: "tool-veth", Title: "The measuring program beside netperf, a bare veth pair", Tool: &Tool{From: lab.Direct1}},
}

// Tool is where the measuring program is compared with the original.
type Tool struct {
	From     string // namespace of the lab; the servers are in Direct2
	Loopback bool
}

// pair is a client and a server, each ours or the original.
type pair struct {
	name, title    string
	client, server bool // it is the original
}

// pairs are compared with the last of them, which has nothing of ours.
var pairs = []pair{
	{LashPath, "perf client, perf server", false, false},
	{"ours-netserver", "perf client, netserver", false, true},
	{"netperf-ours", "netperf, perf server", true, false},
	{"netperf-netserver", "netperf, netserver", true, true},
}

// pickGroups gives the groups of the names, all for none.
func pickGroups(names []string) ([]Group, error) {
	if len(names) == 0 {
		return Groups, nil
	}
	var known []string
	for _, g := range Groups {
		known = append(known, g.Name)
	}
	var out []Group
	for _, n := range names {
		i := slices.Index(known, n)
		if i < 0 {
			return nil, fmt.Errorf("group %q: use some of %s", n, strings.Join(known, ", "))
		}
		out = append(out, Groups[i])
	}
	return out, nil
}
