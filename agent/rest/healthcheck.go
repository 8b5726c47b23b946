// SPDX-License-Identifier: Apache-2.0

package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"lash.internal/lash/agent/reconcile"
	"lash.internal/lash/agent/state"
)

// HealthChecks answers load balancers that ask the node for a Service, one address and port each: the
// reconcile target of healthCheckNodePorts. The form of the answers is kube-proxy's.
type HealthChecks struct {
	ready func() error
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu     sync.Mutex
	held   map[netip.AddrPort]*healthCheck
	failed map[netip.AddrPort]HealthFailure
	change reconcile.Signal
}

// HealthFailure is a port at which nothing answers for a Service.
type HealthFailure struct {
	Service state.Name
	Err     error
}

// Failures are the ports that cannot be had. Changed fires when they are others.
func (h *HealthChecks) Failures() map[netip.AddrPort]HealthFailure {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.failed)
}

// Changed fires when Failures has another answer.
func (h *HealthChecks) Changed() *reconcile.Signal { return &h.change }

// note remembers how it went at a port; nil: well.
func (h *HealthChecks) note(at netip.AddrPort, service state.Name, err error) {
	old, had := h.failed[at]
	switch {
	case err == nil && !had, err != nil && had && old.Service == service && old.Err.Error() == err.Error():
		return
	case err == nil:
		delete(h.failed, at)
	default:
		h.failed[at] = HealthFailure{service, err}
	}
	h.change.Fire()
}

type healthCheck struct {
	answer atomic.Pointer[state.HealthCheck]
	stop   context.CancelFunc
	done   chan struct{}
}

// NewHealthChecks returns a target that listens nowhere yet. ready says whether the node serves at all.
func NewHealthChecks(ready func() error) *HealthChecks {
	h := &HealthChecks{ready: ready, held: map[netip.AddrPort]*healthCheck{}, failed: map[netip.AddrPort]HealthFailure{}}
	h.ctx, h.stop = context.WithCancel(context.Background())
	return h
}

// Close stops to listen.
func (h *HealthChecks) Close() {
	h.stop()
	h.wg.Wait()
}

// Load gives what is answered where.
func (h *HealthChecks) Load(context.Context) (map[netip.AddrPort]state.HealthCheck, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[netip.AddrPort]state.HealthCheck{}
	for at, c := range h.held {
		select {
		case <-c.done: // the listener has failed; it is made anew
			delete(h.held, at)
		default:
			out[at] = *c.answer.Load()
		}
	}
	return out, nil
}

// Set answers so from now on. The unspecified address stands for all addresses of both families.
func (h *HealthChecks) Set(_ context.Context, at netip.AddrPort, answer state.HealthCheck) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.held[at]; c != nil {
		c.answer.Store(&answer)
		return nil
	}
	addr := at.String()
	if at.Addr().IsUnspecified() {
		addr = net.JoinHostPort("", strconv.Itoa(int(at.Port())))
	}
	l, err := ListenTCP(h.ctx, addr)
	h.note(at, answer.Service, err)
	if err != nil {
		return fmt.Errorf("health checks of Service %s: %w", answer.Service, err)
	}
	ctx, stop := context.WithCancel(h.ctx)
	c := &healthCheck{stop: stop, done: make(chan struct{})}
	c.answer.Store(&answer)
	h.held[at] = c
	h.wg.Go(func() {
		defer close(c.done)
		defer stop()
		_ = Serve(ctx, l, h.handler(c)) // the next audit listens again
	})
	return nil
}

// Delete stops to listen there.
func (h *HealthChecks) Delete(_ context.Context, at netip.AddrPort) error {
	h.mu.Lock()
	c := h.held[at]
	delete(h.held, at)
	h.note(at, state.Name{}, nil)
	h.mu.Unlock()
	if c != nil {
		c.stop()
		<-c.done
	}
	return nil
}

func (h *HealthChecks) handler(c *healthCheck) http.Handler {
	type service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		a := c.answer.Load()
		healthy := h.ready() == nil
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(a.LocalEndpoints))
		if !healthy || a.LocalEndpoints == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(struct {
			Service        service `json:"service"`
			LocalEndpoints int     `json:"localEndpoints"`
			Healthy        bool    `json:"serviceProxyHealthy"`
		}{service{a.Service.Namespace, a.Service.Name}, a.LocalEndpoints, healthy})
	})
}

// ProxyHealth answers like kube-proxy: /healthz for load balancers, which get 503 also while the node is
// about to go (leaving), and /livez for the process.
func ProxyHealth(ready func() error, leaving func() bool) http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, ok, eligible bool) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if !ok {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintf(w, `{"lastUpdated": %q,"currentTime": %[1]q, "nodeEligible": %t}`+"\n", time.Now().UTC().Format(time.RFC3339), eligible)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		eligible := !leaving()
		answer(w, eligible && ready() == nil, eligible)
	})
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answer(w, true, !leaving()) })
	return mux
}

// ServePatiently serves h at addr until ctx ends. While the address cannot be had it asks again, ever
// less often; failed is told each new reason.
func ServePatiently(ctx context.Context, addr string, h http.Handler, failed func(error)) {
	last := ""
	for pause := time.Second; ctx.Err() == nil; pause = min(2*pause, time.Minute) {
		l, err := ListenTCP(ctx, addr)
		if err == nil {
			last, pause = "", time.Second
			err = Serve(ctx, l, h)
		}
		if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
			return
		}
		if err != nil && err.Error() != last {
			last = err.Error()
			failed(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}
