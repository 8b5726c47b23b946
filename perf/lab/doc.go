// SPDX-License-Identifier: Apache-2.0

// Package lab makes the bare paths that a network is measured against: namespaces on this machine,
// joined by the kernel's own means, without a network plugin. Each is the shape of a path through a
// cluster, minus what the plugin adds.
//
//	direct-1 ===== direct-2                              a veth pair and nothing else
//
//	plain-1  plain-2        plain-3
//	     \    /                |
//	     plain-a            plain-b                      nodes that route, no netfilter
//	        |                  |
//	        +----- fabric -----+                         a bridge
//	        |                  |
//	      nat-a              nat-b                       nodes with connection tracking and 500 rules
//	     /    \                |                         of address translation, as kube-proxy has them
//	  nat-1  nat-2           nat-3
//
// Pods have two addresses. Packets for the second one go from node to node through the kernel's VXLAN
// device, for the first one they are routed as they are. A pod's side of a veth pair has no neighbour
// but its node, to which it routes everything; a node has a host route for each of its pods.
//
// Namespaces are held by descriptors of this process alone: they vanish with it, however it ends.
package lab
