// SPDX-License-Identifier: Apache-2.0

// Package operator does what must be done once in a cluster and not on every node.
//
//	at start          registers the definitions CiliumIdentity, CiliumEndpoint, CiliumNode
//	CiliumNode     -> pod CIDRs out of the cluster pool (ipam: cluster-pool)
//	agent pod      -> taint off the node, condition NetworkUnavailable=False
//	pods           -> CiliumEndpoints without a pod go; DNS pods from before the agent are renewed
//	CiliumEndpoint -> identities without a user go
//	Node           -> CiliumNodes without a node go
//	Service        -> condition and event on one that asks for what it does not get
//	EndpointSlice  -> the API servers to choose among (without kube-proxy)
//
// One replica at a time works, held by a lease; the others wait. Every loop is level-triggered:
// it looks at what is, not at what happened.
package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	"k8s.io/client-go/tools/leaderelection"

	"lash.internal/lash/agent/config"
	"lash.internal/lash/agent/kube"
	"lash.internal/lash/agent/state"
)

// Operator is the cluster-wide part of the control plane.
type Operator struct {
	cfg        *config.Config
	client     *kube.Client
	extensions apiextensions.Interface
	log        *slog.Logger
	metrics    *metrics
	now        func() time.Time
}

type metrics struct {
	registry   *prometheus.Registry
	gcRuns     *prometheus.CounterVec
	gcEntries  *prometheus.GaugeVec
	poolErrors prometheus.Counter
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		gcRuns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "cilium_operator", Name: "identity_gc_runs", Help: "Runs of the identity collector",
		}, []string{"outcome"}),
		gcEntries: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "cilium_operator", Name: "identity_gc_entries", Help: "Identities at the end of the last run of the collector",
		}, []string{"status"}),
		poolErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "cilium_operator", Name: "ipam_allocation_errors_total", Help: "Nodes that could not be given a pod CIDR",
		}),
	}
	m.registry.MustRegister(m.gcRuns, m.gcEntries, m.poolErrors,
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{Namespace: "cilium_operator"}))
	return m
}

// New makes an operator.
func New(cfg *config.Config, c *kube.Client, x apiextensions.Interface, log *slog.Logger) *Operator {
	return &Operator{cfg: cfg, client: c, extensions: x, log: log, metrics: newMetrics(), now: time.Now}
}

// Start is the operator's program.
func Start(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	c, err := kube.NewClient(kube.ClientOptions{
		UserAgent: "cilium-operator", Kubeconfig: cfg.Kubeconfig,
		Servers: cfg.APIServers, Follow: cfg.KubeProxyReplacement, NodeName: cfg.NodeName,
		// The agent of this node keeps it.
		ServersFile: cfg.APIServersFile(), ServersFileReadOnly: true, Log: log,
	})
	if err != nil {
		return err
	}
	return New(cfg, c, c.Extensions, log).Run(ctx)
}

// Run serves health and metrics, waits for the lease and works until ctx is done. It returns
// ErrLostLease when another replica took over.
func (o *Operator) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	watchdog := leaderelection.NewLeaderHealthzAdaptor(20 * time.Second)
	lease := o.lease()
	if err := o.serve(ctx, &wg, o.cfg.OperatorAPIAddr, healthz(watchdog, lease)); err != nil {
		return err
	}
	if o.cfg.OperatorPrometheus != "" {
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", promhttp.HandlerFor(o.metrics.registry, promhttp.HandlerOpts{}))
		if err := o.serve(ctx, &wg, o.cfg.OperatorPrometheus, mux); err != nil {
			return err
		}
	}
	if o.client.Servers != nil {
		wg.Go(func() { _ = o.client.Servers.Run(ctx) })
		wg.Go(func() { o.followServers(ctx) })
	}
	if !o.cfg.OperatorLeaderElect {
		return o.work(ctx)
	}
	return o.lead(ctx, lease, watchdog)
}

// healthz answers the kubelet's probes. With query "ready" it also says whether the lease can be
// had or watched at all.
func healthz(watchdog *leaderelection.HealthzAdaptor, l *lease) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		err := watchdog.Check(r)
		if r.URL.Query().Has("ready") {
			err = errors.Join(err, l.problem())
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write([]byte("ok"))
	})
	return mux
}

// serve answers HTTP on addr until ctx is done.
func (o *Operator) serve(ctx context.Context, wg *sync.WaitGroup, addr string, h http.Handler) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	wg.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			o.log.Error("HTTP server ended", "address", addr, "error", err)
		}
	})
	wg.Go(func() {
		<-ctx.Done()
		_ = srv.Close()
	})
	return nil
}

// work is what the leader does.
func (o *Operator) work(ctx context.Context) error {
	if err := registerCRDs(ctx, o.extensions, o.log); err != nil {
		return err
	}
	v, err := newView(ctx, o)
	if err != nil {
		return err
	}
	defer v.stop()
	o.log.Info("objects synced", "nodes", len(v.nodes.List()), "endpoints", len(v.endpoints.List()), "identities", len(v.identities.List()))
	var wg sync.WaitGroup
	defer wg.Wait()
	if o.cfg.ClusterPool {
		p, err := newPool(o, v)
		if err != nil {
			return err
		}
		wg.Go(func() { p.run(ctx) })
	}
	wg.Go(func() { o.judgeServices(ctx) })
	for _, l := range []struct {
		name  string
		every time.Duration
		wake  <-chan struct{}
		do    func(context.Context) error
	}{
		{"node readiness", time.Minute, v.subscribe(kindNode, kindAgentPod), (&readiness{o, v}).run},
		{"ciliumnode collection", o.cfg.EndpointGCInterval, nil, (&collector{o: o, v: v}).nodes},
		{"endpoint collection", o.cfg.EndpointGCInterval, nil, (&collector{o: o, v: v}).endpoints},
		{"identity collection", o.cfg.IdentityGCInterval, nil, (&collector{o: o, v: v, unusedSince: map[string]time.Time{}}).identities},
		{"unmanaged DNS pods", o.cfg.UnmanagedPodWatcher, nil, (&unmanaged{o, v}).run},
	} {
		if l.every > 0 {
			wg.Go(func() { o.loop(ctx, l.name, l.every, l.wake, l.do) })
		}
	}
	<-ctx.Done()
	return nil
}

// followServers learns where the API servers are, also while another replica has the lease.
func (o *Operator) followServers(ctx context.Context) {
	t := state.NewTables()
	var wg sync.WaitGroup
	defer wg.Wait()
	mirror := kube.APIServerMirror(o.client, t)
	wg.Go(func() { mirror(ctx) })
	kube.FollowServers(o.client, t, o.log).Run(ctx)
}

// loop runs do at once, when woken and every so often; after a failure again after 1 to 30 s.
func (o *Operator) loop(ctx context.Context, name string, every time.Duration, wake <-chan struct{}, do func(context.Context) error) {
	pause := time.Second
	for {
		wait := every
		if err := do(ctx); err != nil && ctx.Err() == nil {
			o.log.Warn("loop failed, will try again", "loop", name, "in", pause, "error", err)
			wait = min(pause, every)
			pause = min(2*pause, 30*time.Second)
		} else {
			pause = time.Second
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-wake:
		case <-t.C:
		}
		t.Stop()
	}
}
