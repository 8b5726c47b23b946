// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
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
				return e.waitAgentServices(ctx, n.Name, e.missingFrontend)
			}
			return e.waitProxyServices(ctx, h)
		})
	}
	return g.Wait()
}

// waitAgentServices asks an agent for its frontends until nothing of them is missing. The list is a
// question without a way to wait for its answer.
func (e *Env) waitAgentServices(ctx context.Context, node string, lacks func(backends map[netip.AddrPort]int) string) error {
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
			if missing = lacks(backendsOf(list)); missing == "" {
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

// missingFrontend names the first Service address of the test that is missing, or has no backend.
func (e *Env) missingFrontend(backends map[netip.AddrPort]int) string {
	for _, name := range sortedKeys(e.Services) {
		for _, ip := range e.Services[name].IPs {
			for _, port := range []uint16{httpPort, tcpPort, udpPort} {
				n, ok := backends[netip.AddrPortFrom(ip, port)]
				if !ok {
					return fmt.Sprintf("no frontend %s port %d (%s)", ip, port, name)
				}
				if n == 0 && name != "no-endpoints" {
					return fmt.Sprintf("frontend %s port %d (%s) has no backend", ip, port, name)
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

func (e *Env) waitProxyServices(ctx context.Context, h Peer) error {
	for _, name := range sortedKeys(e.Services) {
		if name == "no-endpoints" {
			continue
		}
		for _, f := range e.Families {
			if !e.Services[name].IP(f).IsValid() {
				continue
			}
			p := probe.Probe{Proto: probe.TCP, Target: e.Services[name].target(f, tcpPort), TimeoutMillis: 1000}
			for {
				res, err := e.sessions.do(ctx, h.Pod, p)
				if err == nil && res.OK {
					break
				}
				if ctx.Err() != nil {
					return fmt.Errorf("node %s does not reach Service %s: %s", h.Node, name, res.Error)
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
	}
	return nil
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
