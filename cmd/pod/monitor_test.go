// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/rest"
)

// quietEvents is a source that has nothing to tell and does not end.
type quietEvents struct{ subscribed chan struct{} }

func (quietEvents) Ring() api.MonitorStatus { return api.MonitorStatus{} }

func (q quietEvents) Subscribe(ctx context.Context) <-chan api.MonitorEvent {
	ch := make(chan api.MonitorEvent)
	close(q.subscribed)
	context.AfterFunc(ctx, func() { close(ch) })
	return ch
}

// TestMonitorEndsWithItsInput is a client of kubectl exec that goes away while nothing happens.
func TestMonitorEndsWithItsInput(t *testing.T) {
	events := quietEvents{subscribed: make(chan struct{})}
	socket := filepath.Join(t.TempDir(), "a.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: rest.New(rest.Sources{Events: events}).Handler()}}
	srv.Start()
	defer srv.Close()
	in, client := io.Pipe()
	ended := make(chan int, 1)
	var out, errOut bytes.Buffer
	go func() {
		ended <- Main(World{In: in, Out: &out, Err: &errOut, Args: []string{"monitor"}, Getenv: func(k string) string {
			if k == api.SocketEnv {
				return "unix://" + socket
			}
			return ""
		}})
	}()
	<-events.subscribed
	_ = client.Close()
	if code := <-ended; code != 0 {
		t.Errorf("exit %d: %s", code, errOut.String())
	}
}
