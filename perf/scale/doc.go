// SPDX-License-Identifier: Apache-2.0

// Package scale measures what programs a node with the Services of a large cluster: how long it takes
// from its start until all of them answer, from an event of the API until the first connection, what
// changes cost and what it holds of the memory.
//
//	standin (one, for all) --list, watch--> contender on a node --> kernel <-- client (dial) --> far
//
// Contenders are Lash's agent and kube-proxy in two modes. Each works in namespaces of its own, in which
// it finds nothing of the one before, with the configuration that it has in a cluster. A Service counts
// as programmed when a process on the node has connected to it.
package scale
