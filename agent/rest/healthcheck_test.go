// SPDX-License-Identifier: Apache-2.0

package rest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/state"
)

// ask is what a load balancer hears.
func ask(t *testing.T, url string) (code int, weight, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
	if err != nil {
		return 0, "", err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header.Get("X-Load-Balancing-Endpoint-Weight"), string(b)
}

// freePort is one that was free a moment ago.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestHealthCheckAnswers(t *testing.T) {
	var trouble error
	h := NewHealthChecks(func() error { return trouble })
	defer h.Close()
	ctx := context.Background()
	web := state.Name{Namespace: "default", Name: "web"}
	at := freePort(t)
	if err := h.Set(ctx, at, state.HealthCheck{Service: web, LocalEndpoints: 2}); err != nil {
		t.Fatal(err)
	}
	url := "http://" + at.String() + "/any/path"
	code, weight, body := ask(t, url)
	if want := `{"service":{"namespace":"default","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}` + "\n"; code != 200 || weight != "2" || body != want {
		t.Errorf("%d %s %s", code, weight, body)
	}
	if err := h.Set(ctx, at, state.HealthCheck{Service: web}); err != nil {
		t.Fatal(err)
	}
	if code, weight, _ := ask(t, url); code != 503 || weight != "0" {
		t.Errorf("without endpoints %d, weight %s", code, weight)
	}
	trouble = errors.New("starting")
	if err := h.Set(ctx, at, state.HealthCheck{Service: web, LocalEndpoints: 1}); err != nil {
		t.Fatal(err)
	}
	if code, _, body := ask(t, url); code != 503 || body != `{"service":{"namespace":"default","name":"web"},"localEndpoints":1,"serviceProxyHealthy":false}`+"\n" {
		t.Errorf("a node that does not serve: %d %s", code, body)
	}
	if held, err := h.Load(ctx); err != nil || len(held) != 1 || held[at].LocalEndpoints != 1 {
		t.Errorf("held %v, %v", held, err)
	}
	if err := h.Delete(ctx, at); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := ask(t, url); code != 0 {
		t.Errorf("still answers after Delete: %d", code)
	}
}

// TestHealthCheckPortTaken: one port that somebody else has is an error that says so, and no other
// suffers from it.
func TestHealthCheckPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := NewHealthChecks(func() error { return nil })
	defer h.Close()
	web := state.HealthCheck{Service: state.Name{Namespace: "default", Name: "web"}, LocalEndpoints: 1}
	taken := l.Addr().(*net.TCPAddr).AddrPort()
	err = h.Set(t.Context(), taken, web)
	if want := "health checks of Service default/web: listen on " + taken.String() + ": "; err == nil || len(err.Error()) < len(want) || err.Error()[:len(want)] != want {
		t.Errorf("error %v", err)
	}
	if got := h.Failures(); len(got) != 1 || got[taken].Service != web.Service || !errors.Is(got[taken].Err, unix.EADDRINUSE) {
		t.Errorf("failures are %v", got)
	}
	if err := h.Set(t.Context(), freePort(t), web); err != nil {
		t.Errorf("another port: %v", err)
	}
	changed := h.Changed().Watch()
	_ = h.Set(t.Context(), taken, web)
	select {
	case <-changed:
		t.Error("the same failure again is news")
	default:
	}
	l.Close()
	if err := h.Set(t.Context(), taken, web); err != nil {
		t.Errorf("the port when it is free: %v", err)
	}
	<-changed
	if got := h.Failures(); len(got) != 0 {
		t.Errorf("failures are %v", got)
	}
}

// TestProxyHealth answers as kube-proxy does, for nodes that go as well.
func TestProxyHealth(t *testing.T) {
	var trouble error
	leaving := false
	h := ProxyHealth(func() error { return trouble }, func() bool { return leaving })
	for _, c := range []struct {
		trouble        error
		leaving        bool
		healthz, livez int
	}{
		{nil, false, 200, 200},
		{errors.New("starting"), false, 503, 200},
		{nil, true, 503, 200},
	} {
		trouble, leaving = c.trouble, c.leaving
		healthz, body := get(t, h, "/healthz")
		livez, _ := get(t, h, "/livez")
		if healthz != c.healthz || livez != c.livez {
			t.Errorf("%+v: healthz %d, livez %d: %s", c, healthz, livez, body)
		}
	}
}

// TestServePatiently gets its address when the one who has it goes.
func TestServePatiently(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	ctx, stop := context.WithCancel(t.Context())
	done, told := make(chan struct{}), make(chan error, 10)
	go func() {
		defer close(done)
		ServePatiently(ctx, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), ProxyHealth(func() error { return nil }, func() bool { return false }), func(err error) { told <- err })
	}()
	<-told
	l.Close()
	for {
		if code, _, _ := ask(t, "http://127.0.0.1:"+strconv.Itoa(port)+"/healthz"); code == 200 {
			break
		}
	}
	stop()
	<-done
}
