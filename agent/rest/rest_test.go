// SPDX-License-Identifier: Apache-2.0

package rest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/api/client"
	"lash.internal/lash/agent/reconcile"
	"lash.internal/lash/agent/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func get(t *testing.T, h http.Handler, path string, header ...string) (int, string) {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// TestReadinessDiffersFromLiveness: nor does a node that was started and is not ready any more, as its
// datapath carries nothing, fail the probe of the start, after which the kubelet would restart the agent.
func TestReadinessDiffersFromLiveness(t *testing.T) {
	var started, ready error
	h := Health(func() error { return started }, func() error { return ready })
	notYet, broken := errors.New("not yet"), errors.New("no answer")
	for _, c := range []struct {
		started, ready error
		path           string
		header         []string
		want           int
	}{
		{nil, nil, "/healthz", nil, 200},
		{notYet, notYet, "/healthz", nil, 200},
		{notYet, notYet, "/healthz?started", nil, 503},
		{notYet, notYet, "/healthz?ready", nil, 503},
		{notYet, notYet, "/healthz", []string{"brief", "true"}, 200}, // liveness, as clients of Cilium ask
		{notYet, notYet, "/healthz?ready", []string{"brief", "true"}, 503},
		{nil, broken, "/healthz?ready", nil, 503},
		{nil, broken, "/healthz?started", nil, 200},
		{nil, broken, "/healthz", nil, 200},
		{nil, nil, "/healthz?ready", nil, 200},
	} {
		started, ready = c.started, c.ready
		if code, body := get(t, h, c.path, c.header...); code != c.want {
			t.Errorf("%s with errors %v and %v: %d %s, want %d", c.path, c.started, c.ready, code, body, c.want)
		}
	}
}

func TestMetricsAreReadWhenScraped(t *testing.T) {
	tables := state.NewTables()
	s := New(Sources{Tables: tables})
	w := tables.DB.WriteTxn()
	tables.Endpoints.Insert(w, state.Endpoint{ID: 1, State: state.EndpointReady})
	tables.Identities.Insert(w, state.Identity{ID: 300})
	w.Commit()
	code, body := get(t, s.Metrics(), "/metrics")
	for _, want := range []string{
		`cilium_endpoint_state{endpoint_state="ready"} 1`, `cilium_identity{type="cluster_local"} 1`, "cilium_nodes_all_num 0",
		"cilium_version{", "cilium_process_open_fds", "go_goroutines",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("%d: no %s in the metrics", code, want)
		}
	}
}

func TestLoopsReadAsControllers(t *testing.T) {
	now := time.Now()
	got := ControllersOf([]reconcile.Status{
		{Name: "addr", Chain: "node", Synced: true, Entries: 5, Sets: 7},
		{Name: "routes", LastError: "no such device", LastErrorAt: now, Failures: 2, Pending: 1},
	}, now)
	if got[0].Name != "node/addr" || got[0].Status.ConsecutiveFailureCount != 0 || got[0].Status.LastSuccessTimestamp != now {
		t.Errorf("good loop: %+v", got[0])
	}
	if s := got[1].Status; s.ConsecutiveFailureCount != 1 || s.LastFailureMsg != "no such device" || s.FailureCount != 2 {
		t.Errorf("bad loop: %+v", got[1])
	}
}

func TestTheAPIServerIsNamedAmongTheAddresses(t *testing.T) {
	tables := state.NewTables()
	w := tables.DB.WriteTxn()
	ip := netip.MustParseAddr
	tables.Nodes.Insert(w, state.Node{Name: "a", Local: true, InternalIPs: []netip.Addr{ip("10.0.0.1")}})
	tables.Nodes.Insert(w, state.Node{Name: "b", InternalIPs: []netip.Addr{ip("10.0.0.2")}})
	tables.Nodes.Insert(w, state.Node{Name: "c", InternalIPs: []netip.Addr{ip("10.0.0.3")}})
	tables.EndpointSlices.Insert(w, state.EndpointSlice{
		Name:      state.Name{Namespace: "default", Name: "kubernetes"},
		Service:   state.Name{Namespace: "default", Name: "kubernetes"},
		Endpoints: []state.SliceEndpoint{{Addresses: []netip.Addr{ip("10.0.0.2"), ip("192.0.2.1")}}},
	})
	w.Commit()
	_, body := get(t, New(Sources{Tables: tables}).Handler(), "/v1/ip")
	var got []api.IPEntry
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]int64{"10.0.0.1/32": 1, "10.0.0.2/32": 7, "10.0.0.3/32": 6, "192.0.2.1/32": 7}
	for _, e := range got {
		if want[e.CIDR] != e.Identity {
			t.Errorf("%s is %d, want %d", e.CIDR, e.Identity, want[e.CIDR])
		}
		delete(want, e.CIDR)
	}
	if len(want) != 0 {
		t.Errorf("missing: %v", want)
	}
}

// events is a source that never ends by itself.
type events struct{ ch chan api.MonitorEvent }

func (e events) Ring() api.MonitorStatus { return api.MonitorStatus{} }

func (e events) Subscribe(ctx context.Context) <-chan api.MonitorEvent {
	out := make(chan api.MonitorEvent)
	go func() {
		defer close(out)
		for {
			select {
			case ev := <-e.ch:
				select {
				case out <- ev:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func TestMonitorStreamsAndTheServerStops(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(socket, nil, 0o600); err != nil { // what a crash leaves
		t.Fatal(err)
	}
	src := events{make(chan api.MonitorEvent)}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(Sources{Tables: state.NewTables(), Events: src}).ListenAndServe(ctx, socket) }()
	c := client.New(socket)
	defer c.Close()
	got := make(chan api.MonitorEvent)
	ended := make(chan error, 1)
	go func() {
		for {
			err := c.Monitor(context.Background(), func(ev api.MonitorEvent) error {
				got <- ev
				return nil
			})
			if !errors.Is(err, client.ErrUnreachable) {
				ended <- err
				return
			}
		}
	}()
	src.ch <- api.MonitorEvent{Type: api.MonitorDrop, Reason: "Policy denied"}
	if ev := <-got; ev.Reason != "Policy denied" {
		t.Errorf("event %+v", ev)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("server: %v", err)
	}
	if err := <-ended; err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		t.Errorf("client: %v", err)
	}
}

func TestLogMessagesAreCounted(t *testing.T) {
	h, c := CountLog(slog.DiscardHandler)
	s := New(Sources{Tables: state.NewTables()})
	if err := s.Register(c); err != nil {
		t.Fatal(err)
	}
	log := slog.New(enabled{h}).With("subsys", "cni")
	log.Info("x")
	log.Warn("x")
	log.WithGroup("g").Error("x")
	_, body := get(t, s.Metrics(), "/metrics")
	for _, level := range []string{"warning", "error"} {
		if want := `cilium_errors_warnings_total{level="` + level + `",subsystem="cni"} 1`; !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
}

// enabled lets everything through.
type enabled struct{ slog.Handler }

func (enabled) Enabled(context.Context, slog.Level) bool { return true }

func (e enabled) WithAttrs(a []slog.Attr) slog.Handler { return enabled{e.Handler.WithAttrs(a)} }
func (e enabled) WithGroup(n string) slog.Handler      { return enabled{e.Handler.WithGroup(n)} }

// TestLabelsWithoutAValue are "source:key" for people, and hashed as Cilium hashes them.
func TestLabelsWithoutAValue(t *testing.T) {
	tables := state.NewTables()
	w := tables.DB.WriteTxn()
	tables.Identities.Insert(w, state.Identity{ID: 300, Labels: []string{"k8s:app=a", "k8s:edge="}})
	w.Commit()
	_, body := get(t, New(Sources{Tables: tables}).Handler(), "/v1/identity/300")
	var id api.Identity
	if err := json.Unmarshal([]byte(body), &id); err != nil {
		t.Fatal(err)
	}
	if len(id.Labels) != 2 || id.Labels[1] != "k8s:edge" || id.LabelsSHA256 != LabelsHash([]string{"k8s:app=a", "k8s:edge="}) {
		t.Errorf("%+v", id)
	}
}

func TestStatusTellsOfTheKernel(t *testing.T) {
	s := New(Sources{
		Datapath: func() *api.DatapathStatus { return &api.DatapathStatus{MTU: &api.MTUStatus{Pod: 1450}} },
		Traffic: func() ([]api.TrafficCount, error) {
			return []api.TrafficCount{
				{Ingress: true, Packets: 99},
				{Reason: "Invalid source ip", Packets: 1, Bytes: 10},
				{Reason: "TTL exceeded", Ingress: true, Packets: 5, Bytes: 50},
				{Reason: "Invalid source ip", Packets: 2, Bytes: 20}, // of another line of the source
			}, nil
		},
	})
	want := []api.DropCount{{Reason: "TTL exceeded", Direction: "ingress", Packets: 5, Bytes: 50}, {Reason: "Invalid source ip", Direction: "egress", Packets: 3, Bytes: 30}}
	if got := s.Status().Datapath; got == nil || got.MTU.Pod != 1450 || !slices.Equal(got.Drops, want) {
		t.Errorf("got %+v", got)
	}
}

func TestServicesAreListedByName(t *testing.T) {
	s := New(Sources{Services: func() ([]api.Service, error) {
		var out []api.Service
		for i, n := range []string{"a", "b"} {
			out = append(out, api.Service{Spec: api.ServiceSpec{ID: int64(i), Flags: api.ServiceSpecFlags{Namespace: "default", Name: n}}})
		}
		return out, nil
	}})
	for query, want := range map[string]int{"": 2, "?namespace=default": 2, "?namespace=default&name=b": 1, "?namespace=x": 0, "?name=a": 1} {
		_, body := get(t, s.Handler(), "/v1/service"+query)
		var got []api.Service
		if err := json.Unmarshal([]byte(body), &got); err != nil || got == nil || len(got) != want {
			t.Errorf("%q: %d, want %d (%v)", query, len(got), want, err)
		}
	}
	s = New(Sources{Services: func() ([]api.Service, error) { return nil, errors.New("map front: denied") }})
	if code, body := get(t, s.Handler(), "/v1/service"); code != 500 || !strings.Contains(body, "map front: denied") {
		t.Errorf("an error: %d %s", code, body)
	}
}
