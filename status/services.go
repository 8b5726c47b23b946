// SPDX-License-Identifier: Apache-2.0

package status

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lash.internal/lash/agent/api"
)

// Errors of Services; test with errors.Is.
var (
	ErrNoService = errors.New("no such Service")
	ErrNoAgents  = errors.New("no agent runs")
	ErrKubeProxy = errors.New("kube-proxy handles the Services of this cluster, the agents program none (kubeProxyReplacement is false)")
)

// Kubernetes and the agents learn of a change at different times: a difference counts only when
// every look within a few seconds shows it.
const (
	serviceLooks = 8
	servicePoll  = 500 * time.Millisecond
)

// proxyNameLabel says that another proxy handles a Service (source: Kubernetes' well-known labels).
const proxyNameLabel = "service.kubernetes.io/service-proxy-name"

// ServiceQuery limits the Services; empty fields do not.
type ServiceQuery struct{ Namespace, Name string }

// ServiceRow is one port of a Service with its frontends of one kind: what Kubernetes says, and where
// a node has something else.
type ServiceRow struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Type      string   `json:"type"`
	Port      string   `json:"port,omitempty"` // its name
	Kind      string   `json:"kind,omitempty"` // ClusterIP, NodePort, LoadBalancer, ExternalIPs
	Frontends []string `json:"frontends"`      // address:port/protocol; the unspecified address is any of a node
	// Ready is the number of ready backends, of the family that has most.
	Ready int `json:"ready"`
	// Note says why there is nothing to program.
	Note        string              `json:"note,omitempty"`
	Differences []ServiceDifference `json:"differences"`
}

// ServiceDifference is what nodes have other than Kubernetes says.
type ServiceDifference struct {
	What  string   `json:"what"`
	Nodes []string `json:"nodes"`
}

// ServiceReport is the Services and what the nodes have of them.
type ServiceReport struct {
	Rows  []ServiceRow `json:"services"`
	Nodes []string     `json:"nodes"` // whose agents have answered
	// Silent are nodes whose agents have not, with the reason.
	Silent map[string]string `json:"silent,omitempty"`
}

// OK says whether every node has been heard and has what Kubernetes says.
func (r *ServiceReport) OK() bool {
	return len(r.Silent) == 0 && !slices.ContainsFunc(r.Rows, func(x ServiceRow) bool { return len(x.Differences) > 0 })
}

// Services joins Kubernetes' Services and EndpointSlices with what each agent has in the kernel.
func (c *Collector) Services(ctx context.Context, q ServiceQuery) (*ServiceReport, error) {
	tick := time.NewTicker(servicePoll)
	defer tick.Stop()
	var persist map[finding]bool // nil until all agents have been heard in one look
	for n := 1; ; n++ {
		s := &serviceLook{Collector: c, q: q, rows: map[rowKey]*ServiceRow{}, expected: map[expectation]bool{}, found: map[finding]bool{}}
		if err := s.look(ctx); err != nil {
			return nil, err
		}
		if persist == nil {
			persist = maps.Clone(s.found)
		}
		maps.DeleteFunc(persist, func(f finding, _ bool) bool { return !s.found[f] })
		if n == serviceLooks || len(persist) == 0 && len(s.silent) == 0 {
			return s.report(persist), nil
		}
		if len(s.silent) > 0 {
			persist = nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// configuration finds out whether Services are the agents' business, and of which families.
func (s *serviceLook) configuration(ctx context.Context) error {
	cm, err := s.Client.CoreV1().ConfigMaps(s.Namespace).Get(ctx, "cilium-config", metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: namespace %s has no ConfigMap cilium-config; run `lash install`, or name the namespace of the network with CILIUM_NAMESPACE", ErrNoAgents, s.Namespace)
	case err != nil:
		return fmt.Errorf("reading the configuration: %w", err)
	}
	s.v4, s.v6 = cm.Data["enable-ipv4"] != "false", cm.Data["enable-ipv6"] == "true"
	if on, err := strconv.ParseBool(cm.Data["kube-proxy-replacement"]); err == nil && on {
		return nil
	}
	return ErrKubeProxy
}

// rowKey names a row.
type rowKey struct{ namespace, name, port, kind string }

// separator stands between a frontend and what is different about it.
const separator = ": "

// finding is a difference on one node.
type finding struct {
	row  rowKey
	node string
	what string
}

// serviceLook is one look at both sides.
type serviceLook struct {
	*Collector
	q          ServiceQuery
	services   []corev1.Service
	slices     map[string][]discoveryv1.EndpointSlice // by namespace/name of the Service
	v4, v6     bool
	programmed map[string][]api.Service // by node
	silent     map[string]string
	rows       map[rowKey]*ServiceRow
	expected   map[expectation]bool
	found      map[finding]bool
}

// expectation is a frontend that Kubernetes says a Service has.
type expectation struct {
	namespace, name string
	at              frontKey
}

func (s *serviceLook) look(ctx context.Context) error {
	lists, cancel := context.WithTimeout(ctx, orTenSeconds(s.ListTimeout))
	defer cancel()
	var pods []corev1.Pod
	err := parallel(
		func() error { return s.configuration(lists) },
		func() error { return s.listServices(lists) },
		func() error {
			opts := metav1.ListOptions{LabelSelector: "!" + corev1.IsHeadlessService} // what nodes pass over
			if s.q.Name != "" {
				opts.LabelSelector += "," + discoveryv1.LabelServiceName + "=" + s.q.Name
			}
			l, err := s.Client.DiscoveryV1().EndpointSlices(s.q.Namespace).List(lists, opts)
			if err != nil {
				return fmt.Errorf("listing EndpointSlices: %w", err)
			}
			s.slices = map[string][]discoveryv1.EndpointSlice{}
			for _, x := range l.Items {
				k := x.Namespace + "/" + x.Labels[discoveryv1.LabelServiceName]
				s.slices[k] = append(s.slices[k], x)
			}
			return nil
		},
		func() error {
			l, err := s.Client.CoreV1().Pods(s.Namespace).List(lists, metav1.ListOptions{LabelSelector: "k8s-app=cilium"})
			if err != nil {
				return fmt.Errorf("listing agents: %w", err)
			}
			pods = l.Items
			return nil
		},
	)
	if err != nil {
		if ctx.Err() == nil && lists.Err() != nil {
			err = fmt.Errorf("%w: %w", ErrNoAnswer, err)
		}
		return err
	}
	if len(pods) == 0 {
		return fmt.Errorf("%w: namespace %s has no pods of DaemonSet %s; see `lash status`", ErrNoAgents, s.Namespace, Agent)
	}
	s.askAgents(ctx, pods)
	s.compare()
	return nil
}

func (s *serviceLook) listServices(ctx context.Context) error {
	if s.q.Name != "" {
		x, err := s.Client.CoreV1().Services(s.q.Namespace).Get(ctx, s.q.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("%w: %s in namespace %s", ErrNoService, s.q.Name, s.q.Namespace)
		}
		if err != nil {
			return fmt.Errorf("reading Service %s/%s: %w", s.q.Namespace, s.q.Name, err)
		}
		s.services = []corev1.Service{*x}
		return nil
	}
	l, err := s.Client.CoreV1().Services(s.q.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing Services: %w", err)
	}
	s.services = l.Items
	return nil
}

// askAgents asks every agent for the frontends that are in its kernel.
func (s *serviceLook) askAgents(ctx context.Context, pods []corev1.Pod) {
	command := []string{"cilium", "service", "list", "-o", "json"}
	if s.q.Namespace != "" {
		command = append(command, "--namespace", s.q.Namespace)
	}
	if s.q.Name != "" {
		command = append(command, "--name", s.q.Name)
	}
	s.programmed, s.silent = map[string][]api.Service{}, map[string]string{}
	g := &gather{Collector: s.Collector}
	limit := orTenSeconds(s.ExecTimeout)
	workers := s.Workers
	if workers <= 0 {
		workers = 5
	}
	slots := make(chan struct{}, workers)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range pods {
		p := &pods[i]
		if p.Status.Phase != corev1.PodRunning || !containerRuns(p, agentContainer) {
			mu.Lock()
			if _, heard := s.programmed[p.Spec.NodeName]; !heard {
				s.silent[p.Spec.NodeName] = fmt.Sprintf("agent %s does not run (pod is %s)", p.Name, p.Status.Phase)
			}
			mu.Unlock()
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			var out []api.Service
			asking, cancel := context.WithTimeout(ctx, limit)
			err := g.ask(asking, p.Name, &out, command...)
			cancel()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				s.silent[p.Spec.NodeName] = fmt.Sprintf("agent %s does not answer: %v", p.Name, err)
				return
			}
			s.programmed[p.Spec.NodeName] = out
			delete(s.silent, p.Spec.NodeName)
		})
	}
	wg.Wait()
}

// compare makes the rows and finds where nodes have something else.
func (s *serviceLook) compare() {
	nodes := map[string]map[frontKey][]api.Service{}
	for node, list := range s.programmed {
		nodes[node] = map[frontKey][]api.Service{}
		for _, x := range list {
			k := frontKeyOf(x)
			nodes[node][k] = append(nodes[node][k], x)
		}
	}
	for i := range s.services {
		s.service(&s.services[i], nodes)
	}
	for node, list := range s.programmed {
		for _, x := range list {
			s.stale(node, x)
		}
	}
}

// frontKey names a frontend on a node.
type frontKey struct{ kind, at string }

func frontText(a netip.Addr, port uint16, protocol string) string {
	return netip.AddrPortFrom(a, port).String() + "/" + protocol
}

func frontKeyOf(x api.Service) frontKey {
	f := x.Spec.Frontend
	a, err := netip.ParseAddr(f.IP)
	if err != nil {
		return frontKey{x.Spec.Flags.Type, f.IP}
	}
	return frontKey{x.Spec.Flags.Type, frontText(a, f.Port, f.Protocol)}
}

// note says why a Service is not programmed.
func note(x *corev1.Service) string {
	switch {
	case x.Spec.Type == corev1.ServiceTypeExternalName:
		return "a name for " + x.Spec.ExternalName
	case x.Labels[proxyNameLabel] != "":
		return fmt.Sprintf("left to %s (label %s)", x.Labels[proxyNameLabel], proxyNameLabel)
	case x.Spec.ClusterIP == corev1.ClusterIPNone || hasLabel(x, corev1.IsHeadlessService):
		return "headless"
	}
	return ""
}

func hasLabel(x *corev1.Service, key string) bool { _, ok := x.Labels[key]; return ok }

// service makes the rows of one Service and compares them with each node.
func (s *serviceLook) service(x *corev1.Service, nodes map[string]map[frontKey][]api.Service) {
	if why := note(x); why != "" {
		s.row(x, "", "").Note = why
		return
	}
	for i := range x.Spec.Ports {
		p := &x.Spec.Ports[i]
		for _, kind := range []string{"ClusterIP", "NodePort", "ExternalIPs", "LoadBalancer"} {
			for _, f := range s.frontends(x, p, kind) {
				r := s.row(x, portName(p), kind)
				text := frontText(f.Addr(), f.Port(), string(p.Protocol))
				r.Frontends = append(r.Frontends, text)
				s.expected[expectation{x.Namespace, x.Name, frontKey{kind, text}}] = true
				eps := endpointsOf(s.slices[x.Namespace+"/"+x.Name], p, f.Addr().Is6(), x.Spec.PublishNotReadyAddresses)
				r.Ready = max(r.Ready, len(eps.chosen(nil)))
				for node, have := range nodes {
					for _, what := range differences(x, kind, text, node, eps, have[frontKey{kind, text}]) {
						s.found[finding{keyOf(x, portName(p), kind), node, what}] = true
					}
				}
			}
		}
	}
}

func portName(p *corev1.ServicePort) string {
	if p.Name != "" {
		return p.Name
	}
	return strconv.Itoa(int(p.Port)) + "/" + string(p.Protocol)
}

func keyOf(x *corev1.Service, port, kind string) rowKey {
	return rowKey{x.Namespace, x.Name, port, kind}
}

func (s *serviceLook) row(x *corev1.Service, port, kind string) *ServiceRow {
	k := keyOf(x, port, kind)
	r := s.rows[k]
	if r == nil {
		r = &ServiceRow{Namespace: x.Namespace, Name: x.Name, Type: string(x.Spec.Type), Port: port, Kind: kind, Frontends: []string{}}
		s.rows[k] = r
	}
	return r
}

// frontends are those that a Service port has by Kubernetes, in the families that pods have.
func (s *serviceLook) frontends(x *corev1.Service, p *corev1.ServicePort, kind string) []netip.AddrPort {
	cluster := parseAddrs(x.Spec.ClusterIPs...)
	if len(cluster) == 0 {
		cluster = parseAddrs(x.Spec.ClusterIP)
	}
	cluster = slices.DeleteFunc(cluster, func(a netip.Addr) bool { return a.Is4() && !s.v4 || a.Is6() && !s.v6 })
	family := func(a netip.Addr) bool {
		return slices.ContainsFunc(cluster, func(c netip.Addr) bool { return c.Is6() == a.Is6() })
	}
	var balancer []netip.Addr
	for _, in := range x.Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
			balancer = append(balancer, parseAddrs(in.IP)...)
		}
	}
	port, addrs := uint16(p.Port), cluster
	switch kind {
	case "NodePort":
		port, addrs = uint16(p.NodePort), []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	case "LoadBalancer":
		addrs = balancer
	case "ExternalIPs": // one that is both is a load balancer's
		addrs = slices.DeleteFunc(parseAddrs(x.Spec.ExternalIPs...), func(a netip.Addr) bool { return slices.Contains(balancer, a) })
	}
	var out []netip.AddrPort
	for _, a := range addrs {
		if port != 0 && family(a) {
			out = append(out, netip.AddrPortFrom(a, port))
		}
	}
	return out
}

func parseAddrs(in ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range in {
		if a, err := netip.ParseAddr(t); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// endpoint is one address of a Service port, as the slices say.
type endpoint struct {
	at                          netip.AddrPort
	node                        string
	ready, serving, terminating bool
	hinted                      bool
}

type endpoints []endpoint

// endpointsOf collects the addresses of a port, each once: what speaks for using it counts.
func endpointsOf(all []discoveryv1.EndpointSlice, p *corev1.ServicePort, v6, notReady bool) endpoints {
	byAddr := map[netip.AddrPort]endpoint{}
	isTrue := func(b *bool, otherwise bool) bool {
		if b == nil {
			return otherwise
		}
		return *b
	}
	for i := range all {
		sl := &all[i]
		for _, sp := range sl.Ports {
			if sp.Port == nil || sp.Name == nil && p.Name != "" || sp.Name != nil && *sp.Name != p.Name ||
				sp.Protocol != nil && *sp.Protocol != p.Protocol {
				continue
			}
			for _, e := range sl.Endpoints {
				ready := isTrue(e.Conditions.Ready, true)
				for _, a := range parseAddrs(e.Addresses...) {
					if a.Is6() != v6 {
						continue
					}
					at := netip.AddrPortFrom(a, uint16(*sp.Port))
					x := endpoint{
						at: at, ready: ready || notReady, serving: isTrue(e.Conditions.Serving, ready),
						terminating: isTrue(e.Conditions.Terminating, false), hinted: e.Hints != nil,
					}
					if e.NodeName != nil {
						x.node = *e.NodeName
					}
					if o, ok := byAddr[at]; ok {
						x.ready, x.serving, x.terminating, x.hinted = x.ready || o.ready, x.serving || o.serving, x.terminating && o.terminating, x.hinted || o.hinted
						x.node = cmp.Or(x.node, o.node)
					}
					byAddr[at] = x
				}
			}
		}
	}
	return slices.SortedFunc(maps.Values(byAddr), func(a, b endpoint) int { return a.at.Compare(b.at) })
}

// chosen are the addresses that get new connections: those that are ready, or else those that still
// serve while they terminate.
func (e endpoints) chosen(match func(endpoint) bool) map[netip.AddrPort]bool {
	ready, last := map[netip.AddrPort]bool{}, map[netip.AddrPort]bool{}
	for _, x := range e {
		switch {
		case match != nil && !match(x):
		case x.ready:
			ready[x.at] = true
		case x.serving && x.terminating:
			last[x.at] = true
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return last
}

// differences compares a frontend with what one node has: nothing, or a row for each scope.
func differences(x *corev1.Service, kind, text, node string, eps endpoints, have []api.Service) []string {
	others := slices.Clone(have)
	have = slices.DeleteFunc(slices.Clone(have), func(h api.Service) bool {
		return h.Spec.Flags.Namespace != x.Namespace || h.Spec.Flags.Name != x.Name
	})
	if len(have) == 0 {
		for _, o := range others {
			return []string{text + separator + fmt.Sprintf("that of %s/%s", o.Spec.Flags.Namespace, o.Spec.Flags.Name)}
		}
		return []string{text + separator + "missing"}
	}
	local := func(e endpoint) bool { return e.node == node }
	hinted := slices.ContainsFunc(eps, func(e endpoint) bool { return e.hinted })
	var out []string
	for _, h := range have {
		var match func(endpoint) bool
		if kind == "ClusterIP" {
			if p := x.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
				match = local
			}
		} else if x.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal && h.Spec.Frontend.Scope != "internal" {
			match = local
		}
		whom := ""
		if len(have) > 1 { // callers outside and inside get other backends
			whom = " for callers outside"
			if h.Spec.Frontend.Scope == "internal" {
				whom = " for callers inside"
			}
		}
		want := eps.chosen(match)
		good, stale := 0, []string{}
		for _, b := range h.Spec.Backends {
			a, err := netip.ParseAddr(b.IP)
			at := netip.AddrPortFrom(a, b.Port)
			switch {
			case b.State == "terminating": // it gets nothing new
			case err == nil && want[at]:
				good++
			default:
				stale = append(stale, at.String())
			}
		}
		// The API server stays reachable by what was known last.
		if len(want) == 0 && x.Namespace == metav1.NamespaceDefault && x.Name == "kubernetes" {
			continue
		}
		partly := hinted && match == nil && good > 0 // hints leave some to other nodes
		if good < len(want) && !partly {
			out = append(out, text+separator+fmt.Sprintf("%d of %d backends", good, len(want))+whom)
		}
		for _, b := range stale {
			out = append(out, text+separator+"stale backend "+b+whom)
		}
	}
	return out
}

const notInKubernetes = "not in Kubernetes"

// stale finds what a node has and Kubernetes does not say. HostPorts are no Services', and the
// addresses of a node repeat what its NodePort says.
func (s *serviceLook) stale(node string, x api.Service) {
	f, flags := x.Spec.Frontend, x.Spec.Flags
	a, err := netip.ParseAddr(f.IP)
	if err != nil || flags.Type == "HostPort" || flags.Type == "NodePort" && !a.IsUnspecified() {
		return
	}
	text := frontText(a, f.Port, f.Protocol)
	if s.expected[expectation{flags.Namespace, flags.Name, frontKey{flags.Type, text}}] {
		return
	}
	k := rowKey{flags.Namespace, flags.Name, strconv.Itoa(int(f.Port)) + "/" + f.Protocol, flags.Type}
	if s.rows[k] == nil {
		s.rows[k] = &ServiceRow{Namespace: k.namespace, Name: k.name, Port: k.port, Kind: k.kind, Frontends: []string{}, Note: notInKubernetes}
	}
	s.found[finding{k, node, text + separator + "stale"}] = true
}

// report puts the differences that persist into their rows.
func (s *serviceLook) report(persist map[finding]bool) *ServiceReport {
	out := &ServiceReport{Rows: []ServiceRow{}, Nodes: slices.Sorted(maps.Keys(s.programmed)), Silent: s.silent}
	byRow := map[rowKey]map[string][]string{} // nodes by difference
	for f := range persist {
		if byRow[f.row] == nil {
			byRow[f.row] = map[string][]string{}
		}
		byRow[f.row][f.what] = append(byRow[f.row][f.what], f.node)
	}
	for k, r := range s.rows {
		on := byRow[k]
		r.Differences = []ServiceDifference{}
		for _, what := range slices.Sorted(maps.Keys(on)) {
			text := what
			if len(r.Frontends) == 1 { // the row says which
				text = strings.TrimPrefix(text, r.Frontends[0]+separator)
			}
			r.Differences = append(r.Differences, ServiceDifference{text, slices.Sorted(slices.Values(on[what]))})
		}
		if r.Note == notInKubernetes && len(on) == 0 {
			continue // what a node did not have in every look
		}
		out.Rows = append(out.Rows, *r)
	}
	order := []string{"", "ClusterIP", "NodePort", "ExternalIPs", "LoadBalancer"}
	slices.SortFunc(out.Rows, func(a, b ServiceRow) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Port, b.Port),
			cmp.Compare(slices.Index(order, a.Kind), slices.Index(order, b.Kind)))
	})
	return out
}

// String is the difference for people.
func (d ServiceDifference) String() string { return d.What + " on " + strings.Join(d.Nodes, ", ") }
