// SPDX-License-Identifier: Apache-2.0

// Package cluster makes and removes real Kubernetes clusters on one Linux machine, without
// containers around the nodes: a node is a network, mount and UTS namespace with control groups
// of its own, in which a kubelet and a containerd run. etcd and the control plane run in the
// first node. All nodes, and one host outside the cluster, hang on a bridge in a namespace of
// its own (the fabric); in the machine's own network namespace there is nothing but a listener
// on the loopback that leads to the API server.
//
//	machine 127.0.0.1:PORT --forward--+
//	                                  v
//	 +- control-plane -+   +- worker -+   +- worker2 -+   +- external -+
//	 |  .11  etcd, API |   |  .12     |   |  .13      |   |  .200      |
//	 +------ eth0 -----+   +-- eth0 --+   +-- eth0 ---+   +--- eth0 ---+
//	           |                |              |                |
//	       +---+----------------+--- bridge ---+----------------+-- .1 (fabric) --+
//
// What a cluster consists of is written to its ledger before it is made. Its kernel objects are
// all held by processes in control groups of its own, so deleting is: end the processes of
// those groups, remove the groups, the state folder and the kubeconfig entry. That works from
// any state that a crash can leave.
package cluster
