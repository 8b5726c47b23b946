// SPDX-License-Identifier: Apache-2.0

package api

// NodeAudit is what an audit has found on one node.
type NodeAudit struct {
	Items []NodeItem `json:"items"`
	// Problems is what could not be looked at, and why.
	Problems []string `json:"problems,omitempty"`
}

// NodeItem is one thing that is on a node. Kind and name identify it; the value is the rest of it
// that does not change by itself.
type NodeItem struct {
	Kind  string `json:"kind"` // device, address, route, rule, neighbour, queue, program, pin, sysctl, mount, file
	Name  string `json:"name"`
	Value string `json:"value,omitempty"`
	// Ours says why the item counts as a trace of Lash; empty for all others.
	Ours string `json:"ours,omitempty"`
}

// Traces are the items that are ours.
func (a NodeAudit) Traces() []NodeItem {
	out := []NodeItem{}
	for _, i := range a.Items {
		if i.Ours != "" {
			out = append(out, i)
		}
	}
	return out
}

// CustomResources are the kinds that agents and operator write objects of: resource names of group
// cilium.io, version v2. All their objects are state that is made again by a running agent.
var CustomResources = []string{"ciliumendpoints", "ciliumidentities", "ciliumnodes"}

// OperatorLease is the lease that the working operator holds, in the namespace of the agents.
const OperatorLease = "cilium-operator-resource-lock"

// NetworkUp is the reason that agents and operator set the node condition NetworkUnavailable=False
// with.
const NetworkUp = "CiliumIsUp"
