// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// authority issues the certificates of a cluster.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert, a.key = a.issue(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
	return a
}

func (a *authority) issue(c *x509.Certificate, by *authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.Subject = big.NewInt(1), pkix.Name{CommonName: "test"}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := c, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return out, key
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// server is an API server.
type server struct {
	*httptest.Server
	addr    string
	unready atomic.Bool
	hanging atomic.Bool
	release chan struct{}
	mu      sync.Mutex
	got     []string
}

// serve starts a server whose certificate is for the names and addresses.
func (a *authority) serve(names ...string) *server {
	a.t.Helper()
	c := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	cert, key := a.issue(c, a)
	s := &server{release: make(chan struct{})}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(s.answer))
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	s.addr = s.Listener.Addr().String()
	a.t.Cleanup(s.die)
	return s
}

func (s *server) answer(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.got = append(s.got, r.Method+" "+r.URL.Path)
	s.mu.Unlock()
	switch {
	case s.hanging.Load():
		<-s.release
	case r.URL.Path == "/readyz" && s.unready.Load():
		w.WriteHeader(http.StatusInternalServerError)
	case r.URL.Path == "/watch":
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
		case <-s.release:
		}
	case r.URL.Path == "/cut":
		panic(http.ErrAbortHandler)
	default:
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write([]byte(s.addr + " " + r.Header.Get("Authorization") + " " + string(body)))
	}
}

// die ends the server and every connection to it.
func (s *server) die() {
	select {
	case <-s.release:
		return
	default:
	}
	close(s.release)
	s.CloseClientConnections()
	s.Close()
}

func (s *server) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

// client is a set and what a program has to use it.
type client struct {
	t   *testing.T
	set *Set
	cfg *rest.Config
	c   *http.Client
	log *bytes.Buffer
}

func (a *authority) client(o Options, change ...func(*Set)) *client {
	a.t.Helper()
	c := &client{t: a.t, log: &bytes.Buffer{}}
	o.Log = slog.New(slog.NewTextHandler(&locked{w: c.log}, nil))
	var err error
	if c.set, err = New(o); err != nil {
		a.t.Fatal(err)
	}
	for _, f := range change {
		f(c.set)
	}
	c.cfg = &rest.Config{BearerToken: "secret", TLSClientConfig: rest.TLSClientConfig{CAData: a.pem()}}
	if err := c.set.Join(c.cfg); err != nil {
		a.t.Fatal(err)
	}
	if c.c, err = rest.HTTPClientFor(c.cfg); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() {
		all, _ := c.set.Servers()
		for _, s := range all {
			c.set.hangUp(s)
		}
	})
	return c
}

// locked is a writer for several goroutines.
type locked struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func (c *client) do(method, path, body string) (string, error) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.cfg.Host+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	resp, err := c.c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// from wants an answer of one server.
func (c *client) from(s *server) {
	c.t.Helper()
	if got, err := c.do(http.MethodGet, "/api", ""); err != nil || got != s.addr+" Bearer secret " {
		c.t.Fatalf("got %q, %v, want an answer of %s", got, err, s.addr)
	}
	if _, at := c.set.Servers(); at != s.addr {
		c.t.Errorf("%s is in use, want %s", at, s.addr)
	}
}

// nowhere is an address at which nobody listens.
func nowhere(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestTheFirstIsDeadAtTheStart(t *testing.T) {
	ca := newAuthority(t)
	dead, b := nowhere(t), ca.serve("127.0.0.1")
	c := ca.client(Options{Given: []string{dead, b.addr}})
	c.from(b)
	if !strings.Contains(c.log.String(), "API server does not answer") || !strings.Contains(c.log.String(), dead) {
		t.Errorf("nothing is said of it:\n%s", c.log)
	}
	// What changes things gets there too.
	c = ca.client(Options{Given: []string{dead, b.addr}})
	if got, err := c.do(http.MethodPost, "/api", "object"); err != nil || !strings.HasSuffix(got, "object") {
		t.Errorf("POST: %q, %v", got, err)
	}
}

func TestTheOneInUseDies(t *testing.T) {
	ca := newAuthority(t)
	a, b, third := ca.serve("127.0.0.1"), ca.serve("127.0.0.1"), ca.serve("127.0.0.1")
	c := ca.client(Options{Given: []string{a.addr, b.addr, third.addr}})
	c.from(a)
	watched := make(chan error, 1)
	go func() {
		_, err := c.do(http.MethodGet, "/watch", "")
		watched <- err
	}()
	for !slices.Contains(a.requests(), "GET /watch") {
		time.Sleep(time.Millisecond)
	}
	a.die()
	if err := <-watched; err == nil {
		t.Error("the watch does not end with its server")
	}
	c.from(b)
	if n := len(b.requests()); n != 1 {
		t.Errorf("the second got %d requests", n)
	}
	b.die()
	c.from(third)
}

func TestAllAreDead(t *testing.T) {
	ca := newAuthority(t)
	x, y := nowhere(t), nowhere(t)
	c := ca.client(Options{Given: []string{x, y}})
	for range 3 {
		if _, err := c.do(http.MethodGet, "/api", ""); err == nil || !strings.Contains(err.Error(), "API server 127.0.0.1:") {
			t.Errorf("got %v", err)
		}
	}
	if n := strings.Count(c.log.String(), "does not answer"); n != 1 {
		t.Errorf("said %d times:\n%s", n, c.log)
	}
}

// TestNotRepeated is a request that changes something and whose server goes while it has it: it may
// have been carried out.
func TestNotRepeated(t *testing.T) {
	ca := newAuthority(t)
	a, b := ca.serve("127.0.0.1"), ca.serve("127.0.0.1")
	c := ca.client(Options{Given: []string{a.addr, b.addr}})
	if _, err := c.do(http.MethodPost, "/cut", "x"); err == nil || len(b.requests()) > 0 {
		t.Errorf("got %v, the second server has %q", err, b.requests())
	}
}

func TestNotWell(t *testing.T) {
	ca := newAuthority(t)
	for name, fall := range map[string]func(*server){
		"not ready": func(s *server) { s.unready.Store(true) },
		"hangs":     func(s *server) { s.hanging.Store(true) },
	} {
		a, b := ca.serve("127.0.0.1"), ca.serve("127.0.0.1")
		c := ca.client(Options{Given: []string{a.addr, nowhere(t), b.addr}}, func(s *Set) {
			s.probeEvery, s.probeTimeout = 10*time.Millisecond, 300*time.Millisecond
		})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.set.Run(ctx) }()
		c.from(a)
		watched := make(chan error, 1)
		go func() {
			_, err := c.do(http.MethodGet, "/watch", "")
			watched <- err
		}()
		for !slices.Contains(a.requests(), "GET /watch") {
			time.Sleep(time.Millisecond)
		}
		fall(a)
		<-watched // its connection is ended, so that who watches does so elsewhere
		c.from(b)
		stop()
		if err := <-ended; err != nil {
			t.Error(name, err)
		}
	}
}

func TestNames(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	for what, want := range map[string]struct {
		server *server
		err    bool
	}{
		"its address":        {server: ca.serve("127.0.0.1")},
		"the Service's name": {server: ca.serve(ServiceName)},
		"another name":       {server: ca.serve("example.org"), err: true},
		"another authority":  {server: other.serve("127.0.0.1", ServiceName), err: true},
	} {
		c := ca.client(Options{Given: []string{want.server.addr}})
		for range 2 {
			_, err := c.do(http.MethodPost, "/api", "x")
			if (err != nil) != want.err {
				t.Errorf("%s: %v", what, err)
			}
		}
		if n := len(want.server.requests()); want.err && n > 0 {
			t.Errorf("%s: it got %d requests", what, n)
		}
	}
}

func TestKeptOnTheNode(t *testing.T) {
	ca := newAuthority(t)
	dead, a, b := nowhere(t), ca.serve("127.0.0.1"), ca.serve("127.0.0.1")
	path := filepath.Join(t.TempDir(), "keep", "api-servers.json")
	c := ca.client(Options{Given: []string{a.addr}, File: path})
	for _, s := range []string{a.addr, b.addr} {
		if err := c.set.Set(t.Context(), s, struct{}{}); err != nil {
			t.Fatal(err)
		}
	}
	// The only one that was given is gone at the next start.
	c = ca.client(Options{Given: []string{dead}, File: path})
	c.from(a)
	a.die()
	c.from(b)
	// The addresses change.
	d := ca.serve("127.0.0.1")
	if err := errors.Join(c.set.Set(t.Context(), d.addr, struct{}{}), c.set.Delete(t.Context(), a.addr), c.set.Delete(t.Context(), b.addr)); err != nil {
		t.Fatal(err)
	}
	if all, at := c.set.Servers(); !slices.Equal(all, []string{dead, d.addr}) || at == b.addr {
		t.Errorf("known %q, in use %s", all, at)
	}
	c.from(d)
	// The last one is not forgotten.
	if err := c.set.Delete(t.Context(), d.addr); err != nil {
		t.Fatal(err)
	}
	if got, _ := c.set.Load(t.Context()); len(got) != 1 {
		t.Errorf("learnt %v", got)
	}
	c = ca.client(Options{Given: []string{dead}, File: path, ReadOnly: true})
	c.from(d)
	if err := c.set.Set(t.Context(), b.addr, struct{}{}); err != nil {
		t.Fatal(err)
	}
	if body, _ := os.ReadFile(path); strings.Contains(string(body), b.addr) {
		t.Errorf("the file of another was written: %s", body)
	}
}

// TestFileThatCannotBeRead falls back to what was given, says so, and is replaced by what is learnt.
func TestFileThatCannotBeRead(t *testing.T) {
	ca := newAuthority(t)
	a := ca.serve("127.0.0.1")
	for _, content := range []string{``, `{"servers":["192.0.2.1:64`, "\x00\x00\x00\x00", `{"servers":[]}`, `{"servers":["192.0.2.1"]}`, `{"servers":["https://192.0.2.1:6443/"]}`, `null`} {
		path := filepath.Join(t.TempDir(), "api-servers.json")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		c := ca.client(Options{Given: []string{a.addr}, File: path})
		c.from(a)
		if !strings.Contains(c.log.String(), "level=WARN") || !strings.Contains(c.log.String(), path) {
			t.Errorf("%q: nothing is said of it:\n%s", content, c.log)
		}
		if aside, err := os.ReadFile(path + ".broken"); err != nil || string(aside) != content {
			t.Errorf("%q: put aside: %q, %v", content, aside, err)
		}
		if err := c.set.Set(t.Context(), a.addr, struct{}{}); err != nil {
			t.Fatal(err)
		}
		if got, _ := ca.client(Options{Given: []string{a.addr}, File: path}).set.Load(t.Context()); len(got) != 1 {
			t.Errorf("%q: afterwards %v", content, got)
		}
	}
}

func TestNoServer(t *testing.T) {
	if _, err := New(Options{}); err == nil || !strings.Contains(err.Error(), "k8sServiceHost") {
		t.Errorf("got %v", err)
	}
}
