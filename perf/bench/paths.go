// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"slices"
	"strings"

	"lash.internal/lash/perf/lab"
	"lash.internal/lash/perf/netperf"
)

// Group is a set of paths that are measured in the same rounds: one of Lash and bare ones.
type Group struct {
	Name   string
	Title  string
	Native bool   // the cluster routes natively; else over VXLAN
	Server string // pod
	Bare   []Bare
}

// toolGroup compares the measuring program with the original on one and the same bare path.
var toolGroup = Group{
	Name: "tool", Title: "The measuring program beside netperf",
	Bare: []Bare{{Name: "netperf", Title: "netperf and netserver, on a veth pair"}},
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
