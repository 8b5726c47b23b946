// SPDX-License-Identifier: Apache-2.0

package services

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/stage"
)

// filler makes the Services that are only there. Their endpoints are slices of our own with the server's
// address: those of the cluster's controller would come at 20 a second.
type filler struct {
	client    kubernetes.Interface
	namespace string
	server    netip.Addr

	mu    sync.Mutex
	addrs []netip.Addr // of the Services, by their number; invalid where not made yet
}

// atOnce is how many requests are under way at a time.
const atOnce = 32

// first is the first port of a filler Service.
const first = 8000

// make makes Services up to a number, each with some ports.
func (f *filler) make(ctx context.Context, upTo, ports int, created func(done int)) error {
	g, each := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	begin := len(f.addrs)
	f.addrs = append(f.addrs, make([]netip.Addr, upTo-begin)...)
	done := begin
	for i := begin; i < upTo && each.Err() == nil; i++ {
		g.Go(func() error {
			a, err := f.one(each, i, ports)
			if err != nil {
				return fmt.Errorf("make Service %d: %w", i+1, err)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			f.addrs[i] = a
			done++
			created(done)
			return nil
		})
	}
	return errors.Join(g.Wait(), context.Cause(ctx))
}

func (f *filler) one(ctx context.Context, i, ports int) (netip.Addr, error) {
	name := fmt.Sprintf("filler-%05d", i+1)
	var svcPorts []corev1.ServicePort
	var slicePorts []discoveryv1.EndpointPort
	for p := range ports {
		port := corev1.ServicePort{Name: fmt.Sprintf("p%d", p), Port: int32(first + p), TargetPort: intstr.FromInt32(netperf.DefaultPort), Protocol: corev1.ProtocolTCP}
		svcPorts = append(svcPorts, port)
		slicePorts = append(slicePorts, discoveryv1.EndpointPort{Name: new(port.Name), Port: new(int32(netperf.DefaultPort)), Protocol: new(corev1.ProtocolTCP)})
	}
	svc, err := f.client.CoreV1().Services(f.namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Ports: svcPorts},
	}, metav1.CreateOptions{})
	if err != nil {
		return netip.Addr{}, explain(err)
	}
	family := discoveryv1.AddressTypeIPv4
	if f.server.Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	_, err = f.client.DiscoveryV1().EndpointSlices(f.namespace).Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "lash-perf",
		}},
		AddressType: family, Ports: slicePorts,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{f.server.String()}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return netip.Addr{}, explain(err)
	}
	a, err := netip.ParseAddr(svc.Spec.ClusterIP)
	if err != nil {
		return a, fmt.Errorf("Service %s has the address %q: %w", name, svc.Spec.ClusterIP, err)
	}
	return a, nil
}

// explain says what can be done about a refusal.
func explain(err error) error {
	switch text := err.Error(); {
	case strings.Contains(text, "range is full"):
		return fmt.Errorf("the cluster's range of Service addresses is full: use smaller --steps, or a cluster with a larger range (%s)", text)
	case strings.Contains(text, "exceeded quota"):
		return fmt.Errorf("a quota leaves no room: use smaller --steps (%s)", text)
	}
	return err
}

// sample is how many of the new Services are asked for beside the last.
const sample = 20

// programmedLimit is how long the nodes may take for a step; the slowest known proxies need minutes.
const programmedLimit = 30 * time.Minute

// grow makes Services up to n and waits until the nodes serve them. It returns how long that took after
// the last of them had been made.
func (g *ground) grow(ctx context.Context, o *Options, n int) (time.Duration, error) {
	begin := len(g.filler.addrs)
	start := time.Now()
	err := g.filler.make(ctx, n, o.Ports, func(done int) {
		if o.Created != nil && done%100 == 0 {
			each := time.Since(start) / time.Duration(done-begin)
			o.Created(done, n, each*time.Duration(n-done))
		}
	})
	if err != nil {
		return 0, err
	}
	if n == begin {
		return 0, nil
	}
	made := time.Now()
	var ask []netip.AddrPort
	add := func(i int) {
		for p := range o.Ports {
			ask = append(ask, netip.AddrPortFrom(g.filler.addrs[i], uint16(first+p)))
		}
	}
	for range min(sample, n-begin) {
		add(begin + rand.IntN(n-begin))
	}
	add(n - 1)
	for _, name := range []string{stage.HostLocal, stage.HostOther} {
		if p := g.s.Pod(name); p != nil {
			if err := stage.Await(ctx, g.s.From(p), programmedLimit, ask...); err != nil {
				return 0, fmt.Errorf("node %s does not serve the new Services: %w", p.Node, err)
			}
		}
	}
	took := time.Since(made) // by connections, which can be tried with any proxy
	return took, g.s.AwaitAgents(ctx, programmedLimit, g.filler.addrs[begin:], first, o.Ports)
}
