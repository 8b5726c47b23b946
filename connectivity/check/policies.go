// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/connectivity/probe"
)

const testServices = "service-policies"

func servicePath(from Peer) PathKind {
	if from.Kind == PeerHost {
		return PathHostService
	}
	return PathService
}

// toHostBackends are pods of the nodes' own network behind a ClusterIP.
func toHostBackends() Scenario {
	return Scenario{
		Test: testServices, Name: "service-to-host-backend",
		Actions: func(e *Env) (out []Action) {
			to := e.Services[svcOnHosts]
			for _, from := range e.sources() {
				e.each(from, to, func(f int) {
					for range e.Hosts { // which one answers is chance
						out = append(out, allProtocols(from, to, f, servicePath(from), Expect{})...)
					}
				})
			}
			return out
		},
	}
}

// internalLocal is internalTrafficPolicy Local: only servers of the caller's own node answer.
func internalLocal() Scenario {
	return Scenario{
		Test: testServices, Name: "internal-traffic-policy-local",
		Actions: func(e *Env) (out []Action) {
			to := e.Services[svcInside]
			for _, from := range e.sources() {
				switch {
				case from.Node == e.Local.Name:
					out = append(out, e.toServers(from, to, servicePath(from))...)
				case from.Kind == PeerPod:
					out = append(out, e.silent(from, to, PathService, probe.KindTimeout)...)
				case e.KubeProxyReplacement():
					out = append(out, e.silent(from, to, PathHostService, probe.KindRefused)...)
				}
			}
			return out
		},
	}
}

// notReady is a pod that is not ready: a Service has it only if it publishes such addresses.
func notReady() Scenario {
	return Scenario{
		Test: testServices, Name: "publish-not-ready-addresses",
		Actions: func(e *Env) (out []Action) {
			for _, from := range e.sources() {
				to := e.Services[svcPublished]
				e.each(from, to, func(f int) {
					out = append(out, allProtocols(from, to, f, servicePath(from), Expect{Hosts: e.NotReady.hosts()})...)
				})
				want := Expect{Kind: probe.KindRefused}
				none := e.refusals(from, e.Services[svcNotReady], PathRejected, want)
				out = append(out, e.asProxyRefuses(none)...)
			}
			return out
		},
	}
}

// asProxyRefuses changes refusals to what kube-proxy makes of them. Its REJECT rule shows to the
// node's own sockets as EPERM; to others it answers by the kernel's ICMP errors, of which it sends a
// destination only one a second after a burst (net.ipv4.icmp_ratelimit).
func (e *Env) asProxyRefuses(list []Action) []Action {
	for i := range list {
		if !e.KubeProxyReplacement() && list[i].Probe.Proto == probe.UDP {
			list[i].Expect.OrKind = probe.KindForbidden
			list[i].Probe.Count = 4
		}
	}
	return list
}

// connections is how many are made where it matters who answers: with two servers at random, all of
// them are answered by the same one in 2^-23 of the cases.
const connections = 24

// affinity makes many connections: a Service with sessionAffinity has one server for a client, one
// without uses all.
func affinity() Scenario {
	return Scenario{
		Test: testServices, Name: "session-affinity",
		Do: func(ctx context.Context, e *Env) []ActionResult {
			var tries []func() ActionResult
			for _, from := range e.sources() {
				for _, name := range []string{svcSticky, svcBoth} {
					to := e.Services[name]
					e.each(from, to, func(f int) {
						tries = append(tries, func() ActionResult { return e.spread(ctx, from, to, f, servicePath(from), name == svcSticky) })
					})
				}
			}
			if needsOutside(e) == "" {
				for _, h := range e.Hosts {
					for _, name := range []string{svcSticky} {
						to := e.nodePortAt(name, h)
						e.each(*e.Outside, to, func(f int) {
							tries = append(tries, func() ActionResult { return e.spread(ctx, *e.Outside, to, f, PathFromOutside, true) })
						})
					}
				}
			}
			return together(tries)
		},
	}
}

// together runs functions at the same time.
func together(list []func() ActionResult) []ActionResult {
	out := make([]ActionResult, len(list))
	var wg sync.WaitGroup
	for i, f := range list {
		wg.Go(func() { out[i] = f() })
	}
	wg.Wait()
	return out
}

// spread counts the servers that answer connections of one client.
func (e *Env) spread(ctx context.Context, from, to Peer, family int, path PathKind, one bool) ActionResult {
	_, tcpP, _ := to.ports()
	a := &Action{
		From: from, To: to, Path: path, Family: family, Probe: probe.Probe{Proto: probe.TCP, Target: to.target(family, tcpP)},
		Title: fmt.Sprintf("%d tcp connections to any server", connections),
	}
	if one {
		a.Title = fmt.Sprintf("%d tcp connections to one server", connections)
	}
	r := ActionResult{Name: a.Name(), action: a, from: time.Now()}
	hosts := map[string]int{}
	for range connections {
		p := a.Probe
		p.TimeoutMillis = e.timeoutMillis()
		res, err := e.sessions.do(ctx, from.Pod, p)
		r.to = time.Now()
		if err != nil {
			r.Problem, r.broken = err.Error(), true
			return r
		}
		r.Result = &res
		if r.Problem = a.Expect.judge(res); r.Problem != "" {
			return r
		}
		hosts[res.Host]++
	}
	want := len(e.backendsOfService(to.Name))
	if one {
		want = 1
	}
	if len(hosts) != want {
		r.Problem = fmt.Sprintf("answered by %s, expected %d of the servers %s",
			strings.Join(sortedKeys(hosts), ", "), want, strings.Join(hostsOf(e.backendsOfService(to.Name)), ", "))
	}
	r.OK = r.Problem == ""
	return r
}

// healthChecks asks each node, as a load balancer does, how many servers it has.
func healthChecks() Scenario {
	return Scenario{
		Test: testPolicy, Name: "health-check-nodeport",
		Skip: func(e *Env) string {
			if e.KubeProxyReplacement() && e.Config["enable-health-check-nodeport"] == "false" {
				return "switched off (nodePort.enableHealthCheck=false)"
			}
			return ""
		},
		Actions: func(e *Env) (out []Action) {
			m, _ := e.service(svcLocal)
			port := int(m.object.Spec.HealthCheckNodePort)
			from := append([]Peer{}, e.Hosts...)
			if needsOutside(e) == "" {
				from = append(from, *e.Outside)
			}
			for _, c := range from {
				for _, h := range e.Hosts {
					h.portSet = &portSet{http: port}
					want := Expect{Status: http.StatusServiceUnavailable, Text: localEndpoints(0)}
					if h.Node == e.Local.Name {
						want = Expect{Status: http.StatusOK, Text: localEndpoints(1)}
					}
					path := PathNodeToNode
					if c.Kind == PeerExternal {
						path = PathFromOutside
					}
					e.each(c, h, func(f int) {
						out = append(out, Action{
							From: c, To: h, Path: path, Family: f, Expect: want, Title: fmt.Sprintf("health check says %d", want.Status),
							Probe: probe.Probe{Proto: probe.HTTP, Target: "http://" + h.target(f, port) + "/"},
						})
					})
				}
			}
			return out
		},
	}
}

// localEndpoints judges the answer of a health check.
func localEndpoints(want int) func(string) string {
	return func(text string) string {
		var got struct {
			LocalEndpoints *int `json:"localEndpoints"`
		}
		if err := json.Unmarshal([]byte(text), &got); err != nil || got.LocalEndpoints == nil {
			return fmt.Sprintf("the health check said %q, which names no localEndpoints", text)
		}
		if *got.LocalEndpoints != want {
			return fmt.Sprintf("the health check counts %d servers, expected %d", *got.LocalEndpoints, want)
		}
		return ""
	}
}

// termination says of one of two servers that it ends: connections to it go on, new ones go to the other.
func termination() Scenario {
	return Scenario{
		Test: testServices, Name: "graceful-termination",
		Skip: func(e *Env) string {
			if e.SingleNode() {
				return needNodes
			}
			return ""
		},
		Do: func(ctx context.Context, e *Env) []ActionResult { return e.terminate(ctx) },
	}
}

// held is a connection that is open while its server ends.
type held struct {
	action Action
	host   string
}

func (e *Env) terminate(ctx context.Context) []ActionResult {
	to := e.Services[svcDraining]
	var all []held
	for _, from := range e.sources() {
		e.each(from, to, func(f int) {
			for i := range connections {
				all = append(all, held{action: Action{
					From: from, To: to, Path: servicePath(from), Family: f, Title: "tcp connection to a server that ends",
					Probe: probe.Probe{
						Proto: probe.TCP, Target: to.target(f, tcpPort), Conn: fmt.Sprintf("ending-%d-%d", f, i),
						Count: 1, TimeoutMillis: e.timeoutMillis(),
					},
				}})
			}
		})
	}
	ask := func(list []held, judge func(h *held, r *ActionResult)) []ActionResult {
		tries := make([]func() ActionResult, len(list))
		for i := range list {
			tries[i] = func() ActionResult {
				h := &list[i]
				r := ActionResult{Name: h.action.Name(), action: &h.action, from: time.Now()}
				res, err := e.sessions.do(ctx, h.action.From.Pod, h.action.Probe)
				r.to = time.Now()
				if err != nil {
					r.Problem, r.broken = err.Error(), true
					return r
				}
				r.Result, r.Problem = &res, h.action.Expect.judge(res)
				if r.Problem == "" {
					judge(h, &r)
				}
				r.OK = r.Problem == ""
				return r
			}
		}
		return together(tries)
	}
	opened := ask(all, func(h *held, r *ActionResult) { h.host = r.Result.Host })
	if bad := slices.DeleteFunc(opened, func(r ActionResult) bool { return r.OK }); len(bad) > 0 {
		return bad
	}
	ending, staying := e.Echoes[0], e.Echoes[1]
	if err := e.endServer(ctx, ending); err != nil {
		return []ActionResult{done("server "+ending.String()+" ends", "%v", err)}
	}
	before := slices.DeleteFunc(all, func(h held) bool { return h.host != ending.Host })
	if len(before) == 0 {
		return []ActionResult{done("server "+ending.String()+" ends", "no connection had gone there")}
	}
	out := ask(before, func(*held, *ActionResult) {})
	for i := range before { // names are free again: these are new connections
		a := &before[i].action
		a.Title, a.Probe.Conn, a.Expect.Hosts = "new tcp connection, not to the server that ends", "", staying.hosts()
	}
	return append(out, ask(slices.Clone(before), func(*held, *ActionResult) {})...)
}

// endServer says in the slices that a server ends and returns when every node knows.
func (e *Env) endServer(ctx context.Context, server Peer) error {
	ctx, cancel := context.WithTimeout(ctx, serviceLimit)
	defer cancel()
	for _, sl := range e.drainingSlices(server.Host) {
		if _, err := e.opts.Client.DiscoveryV1().EndpointSlices(e.opts.TestNamespace).Update(ctx, sl, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("update EndpointSlice %s: %w", sl.Name, err)
		}
	}
	for _, h := range e.Hosts {
		if err := e.waitEnding(ctx, h, server); err != nil {
			return err
		}
	}
	return nil
}

// waitEnding returns when a node sends no new connection to a server. kube-proxy is asked by
// connections: it changes all rules in one step, for each family.
func (e *Env) waitEnding(ctx context.Context, h, server Peer) error {
	to := e.Services[svcDraining]
	if e.KubeProxyReplacement() {
		return e.waitAgentList(ctx, h.Node, func(list []api.Service) string {
			for i := range list {
				s := &list[i].Spec
				ip, err := netip.ParseAddr(s.Frontend.IP)
				if err != nil || !slices.Contains(to.IPs, ip) {
					continue
				}
				for _, b := range s.Backends {
					if a, err := netip.ParseAddr(b.IP); err == nil && slices.Contains(server.IPs, a) && b.State == "active" {
						return fmt.Sprintf("frontend %s still has backend %s", s.Frontend.IP, b.IP)
					}
				}
			}
			return ""
		})
	}
	for _, f := range e.Families {
		p := probe.Probe{Proto: probe.TCP, Target: to.target(f, tcpPort), TimeoutMillis: e.timeoutMillis()}
		for same := 0; to.IP(f).IsValid() && same < connections; same++ {
			res, err := e.sessions.do(ctx, h.Pod, p)
			if err != nil {
				return err
			}
			if res.Host == server.Host {
				same = -1
				if err := wait(ctx, 200*time.Millisecond); err != nil {
					return fmt.Errorf("node %s still sends new connections to %s", h.Node, server)
				}
			}
		}
	}
	return nil
}
