// SPDX-License-Identifier: Apache-2.0

// Package service says what stands behind the addresses of Services and the HostPorts of pods: for each
// ClusterIP, port and protocol, and for each HostPort, the further frontends that lead to the same
// place, who may use them, and the backends that EndpointSlices name.
//
//	services ---------+--> Claims, Touched --> Want --> Balance --> lbmap
//	endpointslices ---+                         ^
//	pods, nodes ------+--> HostPorts, zone -----+
//	services, pods -------> VIP, NodePortOpen, HostPortAt --> flags of the address map
//	services, slices -----> HealthCheck --> what load balancers hear at healthCheckNodePorts
//	services -------------> Judge --> conditions and events on what is not honoured (operator)
//
// A frontend that several claim has one holder, the same on every node: a ClusterIP goes before all
// else, then the oldest Service has it, then the first by name; pods get what no Service claims.
//
// It allocates no numbers: the target of the wants gives them out and restores them.
package service
