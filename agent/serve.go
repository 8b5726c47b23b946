// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/datapath/dump"
	"lash.internal/lash/agent/kube"
	"lash.internal/lash/agent/reconcile"
	"lash.internal/lash/agent/rest"
)

// serveHealth answers the kubelet's probes, and load balancers that ask where kube-proxy would
// answer. A node whose address for the latter is taken, such as by a kube-proxy that is still there,
// serves all the same.
func (a *Agent) serveHealth(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if a.cfg.KubeProxyReplacement && a.cfg.KubeProxyHealthzAddr != "" {
		wg.Go(func() {
			rest.ServePatiently(ctx, a.cfg.KubeProxyHealthzAddr, rest.ProxyHealth(a.serving, a.leaving), func(err error) {
				a.log.Warn("nothing answers in place of kube-proxy's healthz yet: free the address, or choose another with kube-proxy-replacement-healthz-bind-address", "error", err)
			})
		})
	}
	return serveAll(ctx, map[string]http.Handler{net.JoinHostPort("127.0.0.1", strconv.Itoa(int(a.cfg.HealthPort))): rest.Health(a.serving, a.Ready)})
}

// leaving says whether this node is about to be deleted.
func (a *Agent) leaving() bool {
	n, _ := a.tables.Nodes.Get(a.cfg.NodeName)
	return n.Leaving
}

// serveAll serves every address until ctx ends or one of them fails.
func serveAll(ctx context.Context, addrs map[string]http.Handler) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	errs := make([]error, len(addrs))
	var wg sync.WaitGroup
	i := 0
	for addr, handler := range addrs {
		l, err := rest.ListenTCP(ctx, addr)
		if err != nil {
			stop()
			wg.Wait()
			return err
		}
		at := &errs[i]
		i++
		wg.Go(func() {
			defer stop()
			*at = rest.Serve(ctx, l, handler)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// serveAPI answers on the agent's socket, and metrics where they are wanted.
func (a *Agent) serveAPI(ctx context.Context) error {
	readable := dump.New(a.kernel.maps.All())
	readable.MaglevSize = a.kernel.constant.MaglevSize
	srv := rest.New(rest.Sources{
		Settings: a.settings(), Tables: a.tables, Ready: a.serving, Probe: a.probeStatus, Warnings: a.warnings, Attachments: a.attachments,
		Kubernetes: a.kubernetes, IPAM: a.ipam, CNIFile: a.cniFile, Datapath: a.datapath,
		Controllers: a.controllers, NetworkPolicies: a.source.NetworkPolicies, Maps: readable, Traffic: readable.Traffic,
		KubeProxyReplacement: a.kubeProxyReplacement, FlushFlows: a.svc.flush,
		Services: func() ([]api.Service, error) { return readable.Services(a.tables) },
		Events:   a.events, CNI: a.pods.Handler(), Log: a.log,
	})
	if err := srv.Register(a.svc.flows, a.kernel.attach); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var metrics error
	var wg sync.WaitGroup
	if a.cfg.PrometheusAddr != "" {
		wg.Go(func() {
			defer stop()
			metrics = serveAll(ctx, map[string]http.Handler{a.cfg.PrometheusAddr: srv.Metrics()})
		})
	}
	err := srv.ListenAndServe(ctx, filepath.Join(a.cfg.RunDir, filepath.Base(api.SocketPath)))
	stop()
	wg.Wait()
	return errors.Join(err, metrics)
}

func (a *Agent) settings() rest.Settings {
	c := a.cfg
	s := rest.Settings{
		NodeName: c.NodeName, ClusterName: c.ClusterName, IPv4: c.IPv4, IPv6: c.IPv6,
		RoutingMode: "tunnel", TunnelProtocol: c.TunnelProtocol,
		MasqueradeIPv4: c.IPv4 && c.MasqueradeIPv4, MasqueradeIPv6: c.IPv6 && c.MasqueradeIPv6,
		AttachMode: a.kernel.features.AttachMode(), Options: c.Options(),
	}
	if !c.Tunnel {
		s.RoutingMode, s.TunnelProtocol = "native", ""
	}
	if c.NativeRoutingCIDRv4.IsValid() {
		s.NativeRoutingCIDR = c.NativeRoutingCIDRv4.String()
	}
	return s
}

// warnings are what a user should mend although the agent serves its node.
func (a *Agent) warnings() []string {
	out := a.kernel.trouble()
	if far := a.view.Unrouted(); len(far) > 0 {
		out = append(out, fmt.Sprintf("no route to the pods of %s: auto-direct-node-routes reaches only nodes on a link of this one; "+
			"route their pod CIDRs in the network, or use routing-mode tunnel", strings.Join(far, ", ")))
	}
	if st := a.svc.maps.Status(); st.Roomless > 0 {
		out = append(out, fmt.Sprintf("%d Service ports have no Maglev table, as those of %d others fill the map: their callers "+
			"from outside get a backend at random; a smaller maglev.tableSize makes room", st.Roomless, st.Tables))
	}
	if err := a.svc.sockets.cannot; err != nil {
		out = append(out, stuckSockets+": "+err.Error())
	}
	return append(out, a.notes.list()...)
}

// kubernetes is the state of the watches.
func (a *Agent) kubernetes() api.K8sStatus {
	v := a.k8s
	out := api.K8sStatus{State: api.StateOk, Msg: fmt.Sprintf("%s.%s (%s) [%s]", v.Major, v.Minor, v.GitVersion, v.Platform)}
	var problems []string
	for _, h := range a.source.Health() {
		if h.Error != "" {
			problems = append(problems, h.Resource+": "+h.Error)
			continue
		}
		out.APIVersions = append(out.APIVersions, h.Resource)
	}
	if len(problems) > 0 {
		out.State, out.Msg = api.StateFailure, strings.Join(problems, "; ")
	}
	return out
}

// ipam is what of the node's addresses is given out.
func (a *Agent) ipam() api.IPAMStatus {
	out := api.IPAMStatus{Allocations: map[string]string{}}
	var parts []string
	for _, u := range a.pool.Usage() {
		parts = append(parts, fmt.Sprintf("%s: %d/%d allocated from %s", u.Family, u.Allocated, u.Capacity, u.CIDRs))
		for _, al := range u.Addresses {
			out.Allocations[al.Addr.String()] = al.Owner
			if al.Addr.Is4() {
				out.IPv4 = append(out.IPv4, al.Addr.String())
			} else {
				out.IPv6 = append(out.IPv6, al.Addr.String())
			}
		}
	}
	out.Status = strings.Join(parts, ", ")
	return out
}

// attachments is what is attached to the node.
func (a *Agent) attachments() api.AttachmentStatus {
	st := a.kernel.attach.State()
	made, _ := a.kernel.devices.State()
	return api.AttachmentStatus{
		Generation: st.Generation, Adopted: st.Adopted, Devices: st.Hooks, Sockets: st.Sockets, Behind: st.Behind, Foreign: st.Foreign,
		Repairs: st.Repairs, DeviceRepairs: made, LastAudit: st.LastAudit,
	}
}

// cniFile says where the runtime's configuration is.
func (a *Agent) cniFile() api.Status {
	switch err := a.serving(); {
	case a.cfg.CNIConfPath == "":
		return api.Status{State: api.StateDisabled, Msg: "the CNI configuration is not managed by the agent"}
	case err != nil:
		return api.Status{State: api.StateWarning, Msg: "not written yet: " + err.Error()}
	default:
		return api.Status{State: api.StateOk, Msg: "successfully wrote CNI configuration file to " + a.cfg.CNIConfPath}
	}
}

// controllers are the loops and the writers of Kubernetes objects.
func (a *Agent) controllers() []api.Controller {
	var loops []reconcile.Status
	for _, c := range append(a.chains(), a.svc.health, a.notes.chain, a.servers) {
		if c != nil {
			loops = append(loops, c.Status()...)
		}
	}
	return rest.ControllersOf(append(loops, writerLoops(a.source.WriterHealth())...), time.Now())
}

// writerLoops shows the writers of Kubernetes objects as what they are, loops.
func writerLoops(all []kube.WriterHealth) []reconcile.Status {
	var out []reconcile.Status
	for _, w := range all {
		out = append(out, reconcile.Status{
			Name: w.Kind, Chain: "kubernetes", Synced: w.Pending == 0, Pending: w.Pending, OldestPending: w.Since,
			LastError: w.Error, LastErrorAt: w.FailedAt, Sets: uint64(w.Writes), Failures: uint64(w.Failures),
		})
	}
	return out
}
