// SPDX-License-Identifier: Apache-2.0

// Package cni is the agent's side of the CNI plugin: it makes and removes the endpoints of this
// node's pods.
//
//	plugin                              agent
//	  ADD ---- POST /v1/cni/add ------->  pod -> labels -> identity; address; veth pair with
//	                                      programs; Endpoints row; waits until maps are written
//	  peer -> pod netns, eth0, routes
//	       ---- POST /v1/cni/ready ----->  Endpoints row ready (a CiliumEndpoint follows)
//	  DEL ---- POST /v1/cni/del ------->  row, address and pair go
//	           agent away: a file in the delete queue, replayed at start
//
// Each endpoint has a file in the state directory; at start the files become rows again, and the
// pods of a node notice nothing of a restart.
package cni
