// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"lash.internal/lash/agent/cni/wire"
)

func (b *bench) plugin() *plugin {
	return &plugin{agent: client{socket: filepath.Join(b.dir, "cilium.sock")}, queue: filepath.Join(b.dir, "deleteQueue")}
}

func (b *bench) args() *skel.CmdArgs {
	return &skel.CmdArgs{
		ContainerID: "c1", IfName: "eth0", Netns: b.podNS, Args: "K8S_POD_NAMESPACE=default;K8S_POD_NAME=p",
		StdinData: []byte(`{"cniVersion":"1.1.0","name":"cilium","type":"cilium-cni"}`),
	}
}

// TestPatience: how long each call waits for an agent that is gone, and what it says then. The
// clock is the bubble's.
func TestPatience(t *testing.T) {
	b := newBench(t)
	agentGone := `the network agent of this node does not answer`
	for name, c := range map[string]struct {
		call func(*plugin) error
		wait time.Duration
		code uint
		text string
	}{
		"ADD":    {func(p *plugin) error { return p.add(b.args()) }, patienceAdd, types.ErrTryAgainLater, agentGone + `, will be tried again: see "lash status"`},
		"CHECK":  {func(p *plugin) error { return p.check(b.args()) }, patienceAdd, types.ErrTryAgainLater, agentGone + `, will be tried again: see "lash status"`},
		"STATUS": {func(p *plugin) error { return p.status(b.args()) }, patienceStatus, wire.CodeUnavailable, agentGone + `: see "lash status"`},
		"GC": {func(p *plugin) error {
			a := b.args()
			a.StdinData = []byte(`{"cniVersion":"1.1.0","name":"cilium","type":"cilium-cni","cni.dev/valid-attachments":[]}`)
			return p.gc(a)
		}, patienceStatus, types.ErrTryAgainLater, agentGone},
		"DEL": {func(p *plugin) error { return p.del(b.args()) }, 0, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				err := c.call(b.plugin())
				if took := time.Since(start); took > c.wait || took < c.wait-2*retryEvery {
					t.Errorf("waited %s, want %s", took, c.wait)
				}
				var ce *types.Error
				if c.code == 0 {
					if err != nil {
						t.Errorf("got %v", err)
					}
					return
				}
				if !errors.As(err, &ce) || ce.Code != c.code || !strings.HasPrefix(ce.Msg, c.text) || !strings.Contains(ce.Details, "no such file or directory") {
					t.Errorf("got %+v", ce)
				}
			})
		})
	}
	if types.ErrTryAgainLater != wire.CodeTryAgain || wire.CodeTryAgain != 11 {
		t.Error("try again later is code 11")
	}
}

// TestAnAgentThatComesBackIsFound within the patience, and one that only says "wait" is asked again.
func TestAnAgentThatComesBackIsFound(t *testing.T) {
	dir := t.TempDir()
	hidden, socket := filepath.Join(dir, "hidden"), filepath.Join(dir, "cilium.sock")
	l, err := net.Listen("unix", hidden)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	var asked, starting atomic.Int32
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) <= starting.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			_ = json.NewEncoder(w).Encode(wire.Error{Code: wire.CodeTryAgain, Message: "the agent is still starting", Wait: true})
			return
		}
		if r.URL.Path == "/late" {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(wire.Interface{EndpointID: 7})
	})}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	defer func() {
		_ = srv.Close()
		<-ended
	}()
	synctest.Test(t, func(t *testing.T) {
		c := client{socket: socket}
		start := time.Now()
		var back error
		time.AfterFunc(12*time.Second, func() { back = os.Rename(hidden, socket) })
		var itf wire.Interface
		if err := c.post("/x", wire.Attachment{}, &itf, start.Add(patienceAdd)); err != nil || itf.EndpointID != 7 {
			t.Errorf("got %+v, %v (%v)", itf, err, back)
		}
		if took := time.Since(start); took < 12*time.Second || took > 12*time.Second+2*retryEvery {
			t.Errorf("found after %s", took)
		}

		starting.Store(asked.Load() + 20)
		start = time.Now()
		if err := c.post("/x", wire.Attachment{}, &itf, start.Add(patienceAdd)); err != nil {
			t.Errorf("an agent that was starting: %v", err)
		}
		if took := time.Since(start); took != 20*retryEvery {
			t.Errorf("served after %s", took)
		}

		// An agent that never gets ready: its own words are passed on.
		starting.Store(1 << 30)
		start = time.Now()
		var we *wire.Error
		if err := c.post("/x", wire.Attachment{}, &itf, start.Add(patienceAdd)); !errors.As(err, &we) || we.Message != "the agent is still starting" {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took > patienceAdd || took < patienceAdd-2*retryEvery {
			t.Errorf("given up after %s", took)
		}

		// The socket is open before all that is behind it.
		starting.Store(0)
		start = time.Now()
		if err := c.post("/late", wire.Attachment{}, &itf, start.Add(patienceStatus)); !errors.Is(err, errNoAgent) || time.Since(start) < patienceStatus-2*retryEvery {
			t.Errorf("got %v after %s", err, time.Since(start))
		}
	})
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.0 200 OK\r\n\r\n{\"endpointID\":7}"))
	f.Add([]byte("HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\n\r\n{\"code\":101,\"message\":\"no address\",\"wait\":true}"))
	f.Add([]byte("HTTP/1.1 503 Service Unavailable\r\n\r\n"))
	f.Add([]byte("HTTP/1.0 200 OK\r\n"))
	f.Add([]byte("HTTP/1. 200\r\n\r\n{"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		var itf wire.Interface
		err := parseAnswer("/x", answer, &itf)
		if err == nil {
			return
		}
		var we *wire.Error
		if errors.As(err, &we) && we.Message == "" {
			t.Errorf("an error without words: %+v", we)
		}
		if cerr := cniError(err); cerr == nil || cerr.Error() == "" {
			t.Errorf("%v became %v", err, cerr)
		}
	})
}

// FuzzConfig: whatever a runtime passes, the plugin answers with an error of the specification.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.1.0","name":"cilium","type":"cilium-cni"}`, `{"cniVersion":"0.3.1","prevResult":{"ips":[{"version":"4","address":"10.0.0.2/32"}]}}`,
		`{"cniVersion":"1.1.0","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}`, `{"log-file":5}`, `[]`, ``,
	} {
		f.Add([]byte(s), "K8S_POD_NAMESPACE=default;K8S_POD_NAME=p;IgnoreUnknown")
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, stdin []byte, args string) {
		p := &plugin{agent: client{socket: filepath.Join(dir, "none")}, queue: filepath.Join(dir, "queue")}
		a := &skel.CmdArgs{ContainerID: "c", IfName: "eth0", Args: args, StdinData: stdin}
		c, err := p.config(a)
		var ce *types.Error
		if err != nil {
			if !errors.As(err, &ce) || ce.Code != types.ErrDecodingFailure {
				t.Errorf("config: %v", err)
			}
			return
		}
		_ = c
		if at := attachment(a); at.ContainerID != "c" || at.IfName != "eth0" {
			t.Errorf("attachment %+v", at)
		}
	})
}
