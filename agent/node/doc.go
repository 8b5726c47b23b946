// SPDX-License-Identifier: Apache-2.0

// Package node derives what the node has to know of addresses and how it reaches them: who an
// address is, which range of pods lies behind which node, and the routes and neighbours of the
// host stack. It does not decide about Services, it only marks the addresses that have one.
//
//	Endpoints --+                           +-- ep      (pod interfaces)
//	RemoteIPs --+                           +-- addr    (who is this address)
//	Nodes ------+--> Tunnels --> Wants -----+-- cidr    (pods not heard of yet, no-masquerade ranges)
//	Devices ----+                           +-- vtep    (tunnel endpoints)
//	Services ---+                           +-- dev     (masquerade addresses)
//	OwnDevices -+                           +-- routes, neighbours
package node
