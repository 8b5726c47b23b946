// SPDX-License-Identifier: Apache-2.0

// Package service says what stands behind the addresses of Services: one frontend for each
// ClusterIP, port and protocol (TCP, UDP), and the backends that its EndpointSlices name.
//
//	services ---------+--> Frontends --> Want --> {All, Local, Draining} --> lbmap
//	endpointslices ---+
//	services ------------> AddrKeys --> VIP --> flag of the address map
//
// It allocates no numbers: the target of the wants gives them out and restores them.
package service
