// SPDX-License-Identifier: Apache-2.0

// Package rest answers what others ask of the agent: the in-pod commands and the CLI over the
// unix socket (status, endpoints, identities, addresses, services, maps, events, CNI), Prometheus
// over HTTP (metrics), and the kubelet (health).
//
//	tables + sources --> JSON on /var/run/cilium/cilium.sock, /metrics, :9879/healthz
//
// It only reads. What changes the node (CNI, and that connections be forgotten) the agent gives it.
package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/state"
)

// Settings is the part of the agent's configuration that status speaks of.
type Settings struct {
	NodeName    string
	ClusterName string
	IPv4, IPv6  bool
	// RoutingMode is "tunnel" or "native"; TunnelProtocol is "vxlan" in tunnel mode.
	RoutingMode       string
	TunnelProtocol    string
	MasqueradeIPv4    bool
	MasqueradeIPv6    bool
	NativeRoutingCIDR string
	// AttachMode is "TCX" or "Legacy TC".
	AttachMode string
	// Options maps every option to its effective value.
	Options map[string]string
}

// MapSource gives the BPF maps in readable form.
type MapSource interface {
	// Maps lists the maps, without entries.
	Maps() ([]api.BPFMap, error)
	// Map returns one map with its entries; fs.ErrNotExist when there is no such map.
	Map(name string) (api.BPFMap, error)
}

// EventSource gives the datapath's events.
type EventSource interface {
	// Subscribe returns a channel of events that is closed when ctx ends or when the source does.
	Subscribe(ctx context.Context) <-chan api.MonitorEvent
	// Ring describes the ring buffer.
	Ring() api.MonitorStatus
}

// Sources is where the answers come from. A nil field means that the agent has no such part; the
// answers then leave it out.
type Sources struct {
	Settings    Settings
	Tables      *state.Tables
	Ready       func() error      // nil error: the agent serves its node
	Probe       func() api.Status // whether the dataplane carries packets
	Warnings    func() []string
	Attachments func() api.AttachmentStatus
	Kubernetes  func() api.K8sStatus
	IPAM        func() api.IPAMStatus
	CNIFile     func() api.Status
	Controllers func() []api.Controller
	// KubeProxyReplacement says what the kernel does for Services.
	KubeProxyReplacement func() *api.KubeProxyReplacement
	// Services lists the frontends that are in the kernel.
	Services func() ([]api.Service, error)
	// FlushFlows forgets all connections and returns their number.
	FlushFlows func() (uint64, error)
	// NetworkPolicies is the number of NetworkPolicy objects, which nothing enforces.
	NetworkPolicies func() int
	Maps            MapSource
	Events          EventSource
	// Traffic reads the datapath's counters.
	Traffic func() ([]api.TrafficCount, error)
	// Datapath reads what the agent has in the kernel; the drops are filled in here.
	Datapath func() *api.DatapathStatus
	CNI      http.Handler // of /v1/cni/
	Log      *slog.Logger
}

// Server answers requests about one agent.
type Server struct {
	src     Sources
	metrics *metrics
	mux     *http.ServeMux
}

// New returns a server of src.
func New(src Sources) *Server {
	if src.Log == nil {
		src.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{src: src, mux: http.NewServeMux()}
	s.metrics = newMetrics(s)
	get := func(path string, answer func(*http.Request) (any, error)) {
		s.mux.HandleFunc("GET "+path, s.metrics.timed(path, func(w http.ResponseWriter, r *http.Request) int {
			out, err := answer(r)
			return s.reply(w, out, err)
		}))
	}
	get("/v1/healthz", func(*http.Request) (any, error) { return s.Status(), nil })
	get("/v1/config", func(*http.Request) (any, error) { return s.config(), nil })
	get("/v1/cluster/nodes", func(*http.Request) (any, error) { return s.cluster(), nil })
	get("/v1/endpoint", func(*http.Request) (any, error) { return s.endpoints(), nil })
	get("/v1/endpoint/{id}", func(r *http.Request) (any, error) { return s.endpoint(r.PathValue("id")) })
	get("/v1/identity", func(r *http.Request) (any, error) { return s.identities(r.URL.Query()["labels"]), nil })
	get("/v1/identity/{id}", func(r *http.Request) (any, error) { return s.identity(r.PathValue("id")) })
	get("/v1/ip", func(*http.Request) (any, error) { return s.ips(), nil })
	get("/v1/service", func(r *http.Request) (any, error) { return s.services(r.URL.Query()) })
	get("/v1/map", func(*http.Request) (any, error) { return s.maps() })
	get("/v1/map/{name}", func(r *http.Request) (any, error) { return s.bpfMap(r.PathValue("name")) })
	get("/v1/metrics", func(*http.Request) (any, error) { return s.metrics.list() })
	s.mux.HandleFunc("GET /v1/monitor", s.monitor)
	s.mux.HandleFunc("DELETE /v1/flows", s.metrics.timed("/v1/flows", s.flush))
	if src.CNI != nil {
		s.mux.Handle("/v1/cni/", src.CNI)
	}
	return s
}

// Handler returns the HTTP handler of the socket.
func (s *Server) Handler() http.Handler { return s.mux }

// notFound is an error that becomes a 404.
type notFound struct{ msg string }

func (e notFound) Error() string { return e.msg }

// badRequest is an error that becomes a 400.
type badRequest struct{ msg string }

func (e badRequest) Error() string { return e.msg }

func (s *Server) reply(w http.ResponseWriter, out any, err error) int {
	code := http.StatusOK
	if err != nil {
		code = http.StatusInternalServerError
		if errors.As(err, &notFound{}) || errors.Is(err, fs.ErrNotExist) {
			code = http.StatusNotFound
		}
		if errors.As(err, &badRequest{}) {
			code = http.StatusBadRequest
		}
		out = api.Error{Code: code, Message: err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(out); err != nil {
		s.src.Log.Debug("answer not delivered", "error", err)
	}
	return code
}

func (s *Server) maps() ([]api.BPFMap, error) {
	if s.src.Maps == nil {
		return []api.BPFMap{}, nil
	}
	return s.src.Maps.Maps()
}

func (s *Server) bpfMap(name string) (api.BPFMap, error) {
	name, err := url.PathUnescape(name)
	if err != nil {
		return api.BPFMap{}, badRequest{err.Error()}
	}
	if s.src.Maps == nil {
		return api.BPFMap{}, notFound{"no map " + name}
	}
	m, err := s.src.Maps.Map(name)
	if errors.Is(err, fs.ErrNotExist) {
		return api.BPFMap{}, notFound{"no map " + name}
	}
	return m, err
}

// flush forgets all connections.
func (s *Server) flush(w http.ResponseWriter, _ *http.Request) int {
	if s.src.FlushFlows == nil {
		return s.reply(w, nil, notFound{"this agent has no connection tables"})
	}
	n, err := s.src.FlushFlows()
	return s.reply(w, api.Flushed{Entries: n}, err)
}

// monitor streams events, one JSON object a line, until the client or the agent goes.
func (s *Server) monitor(w http.ResponseWriter, r *http.Request) {
	if s.src.Events == nil {
		s.reply(w, nil, notFound{"this agent has no event source"})
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	events := s.src.Events.Subscribe(ctx)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	if flush.Flush() != nil {
		return
	}
	enc := json.NewEncoder(w)
	for ev := range events {
		if enc.Encode(ev) != nil {
			return
		}
		// Flush when nothing more is waiting, so that a burst costs one write.
		if len(events) == 0 && flush.Flush() != nil {
			return
		}
	}
}

// ListenAndServe answers on the unix socket until ctx ends. A socket that a former agent left is
// replaced.
func (s *Server) ListenAndServe(ctx context.Context, socket string) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return fmt.Errorf("socket directory: %w", err)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("old socket: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", socket, err)
	}
	if err := os.Chmod(socket, 0o660); err != nil {
		return errors.Join(fmt.Errorf("mode of %s: %w", socket, err), l.Close())
	}
	return Serve(ctx, l, s.mux)
}

// Serve answers on l until ctx ends, then gives requests under way a second to finish.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	err := srv.Shutdown(end)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	if serr := <-done; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

// ListenTCP listens on addr; a bare port (":9962") means all addresses.
func ListenTCP(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// Health is the handler of the kubelet's probes on /healthz. With query "started" or "ready" it answers
// 503 while the function of that name returns an error; else (liveness) it answers 200 as long as the
// process can answer.
func Health(started, ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		var err error
		switch q := r.URL.Query(); {
		case q.Has("ready"):
			err = ready()
		case q.Has("started"):
			err = started()
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	return mux
}
