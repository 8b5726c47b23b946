// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"go.uber.org/goleak"

	"lash.internal/lash/agent/cni/wire"
	"lash.internal/lash/agent/ipam"
	"lash.internal/lash/agent/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestAnswersOverHTTP: what the plugin gets on the wire, and what it must not get.
func TestAnswersOverHTTP(t *testing.T) {
	n := newNode(t)
	n.cidr = "10.0.1.0/30"
	s, _, _ := n.start(t)
	ask := func(path string, in any) (int, wire.Interface, wire.Error) {
		t.Helper()
		body, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body)))
		var itf wire.Interface
		var we wire.Error
		if err := json.Unmarshal(w.Body.Bytes(), &itf); err != nil {
			t.Fatalf("%s: %v: %s", path, err, w.Body)
		}
		_ = json.Unmarshal(w.Body.Bytes(), &we)
		return w.Code, itf, we
	}
	if code, _, we := ask(wire.PathStatus, struct{}{}); code != 500 || we.Code != wire.CodeUnavailable || we.Message != "the agent cannot set up pods now: the agent is still starting" {
		t.Errorf("STATUS of a starting agent: %d %+v", code, we)
	}
	if code, _, we := ask(wire.PathAdd, attach("web")); code != 500 || we.Code != wire.CodeTryAgain || !we.Wait {
		t.Errorf("ADD to a starting agent: %d %+v", code, we)
	}
	s.SetReady(nil)
	if code, itf, _ := ask(wire.PathAdd, attach("web")); code != 200 || len(itf.Addresses) != 1 || itf.Addresses[0].IP != netip.MustParseAddr("10.0.1.2") {
		t.Errorf("ADD: %d %+v", code, itf)
	}
	want := "no address for pod default/second: address pool is exhausted: all 2 IPv4 addresses of 10.0.1.0/30 are in use"
	if code, _, we := ask(wire.PathAdd, attach("second")); code != 500 || we.Code != wire.CodePool || we.Wait || we.Message != want {
		t.Errorf("ADD to a full node: %d %+v", code, we)
	}
	for _, path := range []string{wire.PathReady, wire.PathCheck, wire.PathStatus, wire.PathDel} {
		if code, _, we := ask(path, attach("web")); code != 200 {
			t.Errorf("%s: %d %+v", path, code, we)
		}
	}
	if code, _, we := ask(wire.PathGC, wire.GCRequest{}); code != 200 {
		t.Errorf("GC: %d %+v", code, we)
	}
	if code, _, we := ask(wire.PathAdd, []int{1}); code != 400 || we.Code != wire.CodeBadConfig {
		t.Errorf("a request of the wrong form: %d %+v", code, we)
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, wire.PathAdd, nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", w.Code)
	}
}

// FuzzRequests: whatever comes over the socket, the answer is one that the plugin can read, and
// the tables stay in order.
func FuzzRequests(f *testing.F) {
	paths := []string{wire.PathAdd, wire.PathReady, wire.PathDel, wire.PathCheck, wire.PathStatus, wire.PathGC}
	for i := range paths {
		f.Add(i, []byte(`{"containerID":"c","ifName":"eth0","podNamespace":"default","podName":"p"}`))
		f.Add(i, []byte(`{"valid":[{"containerID":"c"}]}`))
		f.Add(i, []byte(`{"containerID":5}`))
		f.Add(i, []byte(``))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, i int, body []byte) {
		pool, err := ipam.New([]netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")})
		if err != nil {
			t.Fatal(err)
		}
		tables := state.NewTables()
		s := New(Options{
			Tables: tables, Datapath: &kernel{links: map[string]int{}}, Addresses: &addresses{Pool: pool}, Identities: identities{}, Objects: objects{},
			StateDir: dir, QueueDir: dir, Log: slog.New(slog.DiscardHandler),
		})
		s.SetReady(nil)
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, paths[uint(i)%uint(len(paths))], bytes.NewReader(body)))
		answer, err := io.ReadAll(w.Result().Body)
		if err != nil {
			t.Fatal(err)
		}
		var we wire.Error
		if err := json.Unmarshal(answer, &we); err != nil || (w.Code != 200 && (we.Code == 0 || we.Message == "")) {
			t.Errorf("%d: %s, %v", w.Code, answer, err)
		}
		if used := pool.Usage()[0].Allocated - 1; used != tables.Endpoints.Len() {
			t.Errorf("%d addresses for %d endpoints", used, tables.Endpoints.Len())
		}
	})
}
