// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"log/slog"
	"net/netip"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"lash.internal/lash/agent/reconcile"
	"lash.internal/lash/agent/state"
)

// apiService is the Service whose endpoints are the API servers.
var apiService = state.Name{Namespace: metav1.NamespaceDefault, Name: "kubernetes"}

// apiSlices are the slices of that Service.
type apiSlices struct {
	typedClient[*discoveryv1.EndpointSliceList]
}

func (s apiSlices) only(o metav1.ListOptions) metav1.ListOptions {
	o.LabelSelector = discoveryv1.LabelServiceName + "=" + apiService.Name
	return o
}

func (s apiSlices) List(ctx context.Context, o metav1.ListOptions) (*discoveryv1.EndpointSliceList, error) {
	return s.typedClient.List(ctx, s.only(o))
}

func (s apiSlices) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return s.typedClient.Watch(ctx, s.only(o))
}

// APIServerMirror returns what keeps the slices of the API servers, and no others, in the table of
// slices until its context ends.
func APIServerMirror(c *Client, t *state.Tables) func(context.Context) {
	k := c.Kubernetes
	return typedFeed("endpointslices of "+apiService.String(), apiSlices{k.DiscoveryV1().EndpointSlices(apiService.Namespace)}, "", &discoveryv1.EndpointSlice{}, k,
		newMirror(t.DB, t.EndpointSlices, "kubernetes", sliceRow, nameOf)).run
}

// FollowServers returns the loop that makes a client know the API servers which the slices name.
func FollowServers(c *Client, t *state.Tables, log *slog.Logger) *reconcile.Chain {
	return reconcile.NewChain("api-servers", log, reconcile.Whole("api-servers", c.Servers, func() map[string]struct{} { return apiServers(t) }, t.EndpointSlices))
}

// apiServers are the addresses and ports of the API servers that are ready.
func apiServers(t *state.Tables) map[string]struct{} {
	out := map[string]struct{}{}
	for _, sl := range t.EndpointSlices.ByIndex("service", apiService.String()) {
		for _, p := range sl.Ports {
			if p.Protocol != "TCP" || p.Name != "https" && len(sl.Ports) > 1 {
				continue
			}
			for _, e := range sl.Endpoints {
				for _, a := range e.Addresses {
					if e.Ready {
						out[netip.AddrPortFrom(a, p.Port).String()] = struct{}{}
					}
				}
			}
		}
	}
	return out
}
