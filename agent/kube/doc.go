// SPDX-License-Identifier: Apache-2.0

// Package kube is the node program's only door to the Kubernetes API: it mirrors objects into
// state tables and writes back what the cluster should know of this node.
//
//	Node + CiliumNode ---> Nodes
//	CiliumEndpoint    ---> RemoteIPs        Endpoints ---> CiliumEndpoint
//	CiliumIdentity    ---> Identities       Nodes, IPAM -> CiliumNode, Node condition
//	Pod (this node)   ---> Pods
//	Namespace, Service, EndpointSlice ---> the tables of these names
//
// Every mirror is level-triggered: a relist after an outage of the API server is compared with
// the table, so that only differences are committed and nothing is deleted while the server is
// away. The features read rows and never see an informer.
package kube
