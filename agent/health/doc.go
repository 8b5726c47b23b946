// SPDX-License-Identifier: Apache-2.0

// Package health finds out whether the node's own dataplane carries packets: it asks an endpoint of
// the node that is no pod, and answers there.
//
//	Probe --UDP socket--> host's routes --> lxc_health, pod_to --> cilium_health --+
//	Probe <---------------- host's stack <-- lxc_health, pod_from <-- Self.Serve --+
//
// Both ends of the pair are in the node's network namespace. The kernel takes no part at the second:
// the endpoint's MAC address is not the device's, so that what comes there is for somebody else. Serve
// also answers pings, of whoever sends one to the address of the endpoint.
//
// A probe that fails makes the agent not ready. It changes nothing.
package health
