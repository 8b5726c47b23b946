// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// Addresses of documentation: where the tests are as the cluster sees them, and what Services get.
var (
	clients = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8:1::1")}
	pools   = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:2::/120")}
)

// finalizer is what load balancers of Kubernetes put on a Service that they have to forget first.
const finalizer = "service.kubernetes.io/load-balancer-cleanup"

// balancer stands in for the load balancer of a cloud: it gives Services of that type an address, and
// routes the address, on the host outside the cluster that it runs on, to nodes that are fit for it.
type balancer struct {
	client kubernetes.Interface
	nodes  []corev1.Node
	given  map[string][]netip.Addr // by namespace/name
	routes map[netip.Addr]string   // what each address is routed to
	checks *http.Client
	route  func(ctx context.Context, args ...string) error
}

// Balance runs the stand-in until ctx ends. It says ready when it watches.
func Balance(ctx context.Context, kubeconfig string, out io.Writer) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("API client: %w", err)
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("nodes: %w", err)
	}
	b := &balancer{
		client: client, nodes: nodes.Items, given: map[string][]netip.Addr{}, routes: map[netip.Addr]string{}, route: ipRoute,
		checks: &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}},
	}
	changed := make(chan struct{}, 1)
	notify := func(any) {
		select {
		case changed <- struct{}{}:
		default: // the loop will look anyway
		}
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	services := factory.Core().V1().Services()
	if _, err := services.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: notify, UpdateFunc: func(_, o any) { notify(o) }, DeleteFunc: notify,
	}); err != nil {
		return fmt.Errorf("services: %w", err)
	}
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), services.Informer().HasSynced) {
		return context.Cause(ctx)
	}
	fmt.Fprintln(out, "ready")
	health := time.NewTicker(time.Second) // as load balancers look at health check ports
	defer health.Stop()
	for {
		for _, o := range services.Informer().GetStore().List() {
			if err := b.serve(ctx, o.(*corev1.Service)); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) {
				fmt.Fprintln(out, err) // it is tried again, as is a conflict, with the next event or tick
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-health.C:
		}
	}
}

func ipRoute(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// serve brings one Service, and the routes to it, to where they should be.
func (b *balancer) serve(ctx context.Context, svc *corev1.Service) error {
	key := svc.Namespace + "/" + svc.Name
	if !ours(svc) {
		return b.forget(ctx, key, svc)
	}
	if !slices.Contains(svc.Finalizers, finalizer) {
		svc = svc.DeepCopy()
		svc.Finalizers = append(svc.Finalizers, finalizer)
		_, err := b.client.CoreV1().Services(svc.Namespace).Update(ctx, svc, metav1.UpdateOptions{})
		return wrap(key, err)
	}
	if b.given[key] == nil {
		addrs, err := b.give(svc)
		if err != nil {
			return wrap(key, err)
		}
		b.given[key] = addrs
	}
	for _, a := range b.given[key] {
		nodes := b.fit(ctx, svc, a.Is4())
		if svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP && len(nodes) > 1 {
			nodes = nodes[:1] // there is one client, and connections are spread over nodes one by one
		}
		if err := b.lead(ctx, a, nodes); err != nil {
			return wrap(key, err)
		}
	}
	if len(svc.Status.LoadBalancer.Ingress) > 0 {
		return nil
	}
	svc = svc.DeepCopy()
	for _, a := range b.given[key] {
		svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String()})
	}
	_, err := b.client.CoreV1().Services(svc.Namespace).UpdateStatus(ctx, svc, metav1.UpdateOptions{})
	return wrap(key, err)
}

func wrap(key string, err error) error {
	if err != nil {
		err = fmt.Errorf("service %s: %w", key, err)
	}
	return err
}

// ours tells whether a Service is to have an address.
func ours(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.Spec.LoadBalancerClass == nil && svc.DeletionTimestamp == nil
}

// forget takes back what a Service had.
func (b *balancer) forget(ctx context.Context, key string, svc *corev1.Service) error {
	for _, a := range b.given[key] {
		if err := b.lead(ctx, a, nil); err != nil {
			return wrap(key, err)
		}
	}
	delete(b.given, key)
	if !slices.Contains(svc.Finalizers, finalizer) {
		return nil
	}
	svc = svc.DeepCopy()
	api := b.client.CoreV1().Services(svc.Namespace)
	if len(svc.Status.LoadBalancer.Ingress) > 0 {
		svc.Status.LoadBalancer = corev1.LoadBalancerStatus{}
		updated, err := api.UpdateStatus(ctx, svc, metav1.UpdateOptions{})
		if err != nil {
			return wrap(key, err)
		}
		svc = updated
	}
	svc.Finalizers = slices.DeleteFunc(svc.Finalizers, func(f string) bool { return f == finalizer })
	_, err := api.Update(ctx, svc, metav1.UpdateOptions{})
	return wrap(key, err)
}

// give finds an address of each family of a Service.
func (b *balancer) give(svc *corev1.Service) ([]netip.Addr, error) {
	taken := map[netip.Addr]bool{}
	for _, addrs := range b.given {
		for _, a := range addrs {
			taken[a] = true
		}
	}
	var out []netip.Addr
	for _, family := range svc.Spec.IPFamilies {
		pool := pools[0]
		if family == corev1.IPv6Protocol {
			pool = pools[1]
		}
		a := pool.Addr().Next()
		for taken[a] {
			a = a.Next()
		}
		if !pool.Contains(a.Next()) {
			return nil, errors.New("no address is left")
		}
		out = append(out, a)
	}
	return out, nil
}

// fit are the addresses of the nodes that traffic for a Service may go to: all, or, with policy Local,
// those that say so themselves.
func (b *balancer) fit(ctx context.Context, svc *corev1.Service, v4 bool) []netip.Addr {
	var out []netip.Addr
	for _, n := range b.nodes {
		for _, na := range n.Status.Addresses {
			a, err := netip.ParseAddr(na.Address)
			if na.Type != corev1.NodeInternalIP || err != nil || a.Is4() != v4 {
				continue
			}
			if svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal || b.healthy(ctx, a, svc.Spec.HealthCheckNodePort) {
				out = append(out, a)
			}
			break
		}
	}
	return out
}

func (b *balancer) healthy(ctx context.Context, node netip.Addr, port int32) bool {
	url := "http://" + netip.AddrPortFrom(node, uint16(port)).String() + "/healthz"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := b.checks.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// lead routes an address to nodes, to none: nowhere.
func (b *balancer) lead(ctx context.Context, a netip.Addr, nodes []netip.Addr) error {
	family, src := "-4", clients[0]
	if a.Is6() {
		family, src = "-6", clients[1]
	}
	args := []string{family, "route", "replace", a.String() + "/" + strconv.Itoa(a.BitLen())}
	if len(nodes) == 0 {
		args = append([]string{family, "route", "replace", "unreachable"}, args[3:]...)
	} else {
		args = append(args, "src", src.String())
		for _, n := range nodes {
			args = append(args, "nexthop", "via", n.String())
		}
	}
	line := strings.Join(args, " ")
	if b.routes[a] == line || b.routes[a] == "" && len(nodes) == 0 {
		return nil
	}
	if strings.Contains(line, "unreachable") != strings.Contains(b.routes[a], "unreachable") && b.routes[a] != "" {
		if err := b.route(ctx, family, "route", "flush", a.String()+"/"+strconv.Itoa(a.BitLen())); err != nil {
			return err // a route of another kind would stand beside the new one
		}
	}
	if err := b.route(ctx, args...); err != nil {
		return err
	}
	b.routes[a] = line
	return nil
}
