// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/connectivity/probe"
	"lash.internal/lash/connectivity/testbed"
)

// dnsPort is the port of the cluster's DNS.
const dnsPort = 53

// serviceLimit is how long a new Service may take to reach every node.
const serviceLimit = 30 * time.Second

// waitServices returns when every node translates the Services of the test namespace. An agent
// says so itself; kube-proxy has no such question, so there the Services are tried.
func (e *Env) waitServices(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, serviceLimit)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for _, h := range e.Hosts {
		n := e.node(h.Node)
		if n == nil || !n.Ready() {
			continue
		}
		g.Go(func() error {
			if e.KubeProxyReplacement() {
				return e.waitAgentServices(ctx, n.Name, func(b map[netip.AddrPort]int) string { return e.missingFrontend(n.Name, b) })
			}
			return e.waitProxyServices(ctx, h)
		})
	}
	return g.Wait()
}

// waitAgentServices asks an agent for its frontends until nothing of them is missing.
func (e *Env) waitAgentServices(ctx context.Context, node string, lacks func(backends map[netip.AddrPort]int) string) error {
	return e.waitAgentList(ctx, node, func(list []api.Service) string { return lacks(backendsOf(list)) })
}

// waitAgentList asks an agent for its frontends until lacks finds nothing. The list is a question
// without a way to wait for its answer.
func (e *Env) waitAgentList(ctx context.Context, node string, lacks func([]api.Service) string) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	missing := "nothing is known"
	for {
		out, err := e.inAgent(ctx, node, "cilium", "service", "list", "-o", "json")
		var list []api.Service
		if err == nil {
			err = json.Unmarshal([]byte(out), &list)
		}
		if err == nil {
			if missing = lacks(list); missing == "" {
				return nil
			}
		} else if ctx.Err() == nil {
			missing = err.Error()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("node %s does not know the Services yet: %s", node, missing)
		}
	}
}

// backendsOf counts the backends of every frontend.
func backendsOf(list []api.Service) map[netip.AddrPort]int {
	out := map[netip.AddrPort]int{}
	for _, s := range list {
		ip, err := netip.ParseAddr(s.Spec.Frontend.IP)
		if err == nil {
			out[netip.AddrPortFrom(ip, s.Spec.Frontend.Port)] += len(s.Spec.Backends)
		}
	}
	return out
}

// wanted is a frontend and how many backends it has to have.
type wanted struct {
	peer     Peer
	backends int
}

// frontends are those that a node has to have.
func (e *Env) frontends(node string) []wanted {
	var out []wanted
	for _, m := range e.created {
		own := e.Services[m.name]
		n := m.backends
		if m.localTo != "" && m.localTo != node {
			n = 0
		}
		out = append(out, wanted{own, n})
		if m.object.Spec.Ports[0].NodePort != 0 {
			out = append(out, wanted{e.at(m.name, "NodePort", "", anyAddress, nodePorts(m.object)), m.backends})
		}
		for _, ips := range [][]netip.Addr{m.balancer, parseAddrs(m.object.Spec.ExternalIPs)} {
			out = append(out, wanted{e.at(m.name, "outer address", "", ips, nil), m.backends})
		}
	}
	for _, s := range e.Echoes {
		if p := e.hostPortOf(s); s.Node == node {
			p.IPs = slices.DeleteFunc(slices.Clone(anyAddress), func(a netip.Addr) bool { return !s.IP(family(a)).IsValid() })
			out = append(out, wanted{p, 1})
		}
	}
	return out
}

// anyAddress stands for those of a node.
var anyAddress = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}

// missingFrontend names the first address of a Service of the test that a node lacks, or that has
// too few backends.
func (e *Env) missingFrontend(node string, backends map[netip.AddrPort]int) string {
	for _, w := range e.frontends(node) {
		http, tcp, udp := w.peer.ports()
		for _, ip := range w.peer.IPs {
			for _, port := range []int{http, tcp, udp} {
				n, ok := backends[netip.AddrPortFrom(ip, uint16(port))] //nolint:gosec // ports of Services
				if !ok {
					return fmt.Sprintf("no frontend %s port %d (%s)", ip, port, w.peer)
				}
				if n < w.backends {
					return fmt.Sprintf("frontend %s port %d (%s) has %d backends, expected %d", ip, port, w.peer, n, w.backends)
				}
			}
		}
	}
	return ""
}

// waitDNS returns when a pod of the cluster's DNS is ready and the clients' nodes know of it. After an
// installation those that ran before are being replaced.
func (e *Env) waitDNS(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, serviceLimit, errors.New("time ran out"))
	defer cancel()
	problem := "there is none"
	err := testbed.FollowPods(ctx, e.opts.Client, "kube-system", dnsSelector, func(pods []corev1.Pod) bool {
		for i := range pods {
			if testbed.PodReady(&pods[i]) {
				return true
			}
			problem = fmt.Sprintf("%s on %s: %s", pods[i].Name, pods[i].Spec.NodeName, testbed.PodProblem(&pods[i]))
		}
		return false
	})
	if err != nil {
		return fmt.Errorf("no pod of the cluster's DNS is ready (%w): %s", err, problem)
	}
	if !e.KubeProxyReplacement() {
		return nil
	}
	for _, c := range e.Clients {
		err := e.waitAgentServices(ctx, c.Node, func(backends map[netip.AddrPort]int) string {
			for _, ip := range e.DNS.IPs {
				if backends[netip.AddrPortFrom(ip, dnsPort)] == 0 {
					return fmt.Sprintf("frontend %s port %d (%s) has no backend", ip, dnsPort, e.DNS.Name)
				}
			}
			return ""
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// waitProxyServices tries each Service until as many servers have answered as it has.
func (e *Env) waitProxyServices(ctx context.Context, h Peer) error {
	for _, m := range e.created {
		if m.backends == 0 || m.localTo != "" && m.localTo != h.Node {
			continue
		}
		servers := m.backends
		if m.object.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
			servers = 1 // for this client
		}
		peers := []Peer{e.Services[m.name]}
		if len(m.object.Spec.LoadBalancerSourceRanges) == 0 {
			peers = append(peers, e.balancerOf(m.name))
		}
		for _, p := range peers {
			for _, f := range e.Families {
				if !p.IP(f).IsValid() {
					continue
				}
				if err := e.waitAnswers(ctx, h, p, f, servers); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// waitAnswers connects until a number of servers have answered.
func (e *Env) waitAnswers(ctx context.Context, h, to Peer, family, servers int) error {
	p := probe.Probe{Proto: probe.TCP, Target: to.target(family, tcpPort), TimeoutMillis: 1000}
	seen := map[string]bool{}
	for {
		res, err := e.sessions.do(ctx, h.Pod, p)
		if err == nil && res.OK {
			if seen[res.Host] = true; len(seen) >= servers {
				return nil
			}
			continue
		}
		if ctx.Err() != nil {
			return fmt.Errorf("node %s does not reach %s: %s", h.Node, to, res.Error)
		}
		if err != nil {
			return err
		}
		if res.Kind != probe.KindTimeout { // it answers at once, so ask again later
			if err := wait(ctx, 200*time.Millisecond); err != nil {
				return errors.New(res.Error)
			}
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
