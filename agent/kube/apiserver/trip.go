// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/connrotation"
)

// ServiceName is the name that every API server's certificate has, since pods reach it by that.
const ServiceName = "kubernetes.default.svc"

// Times that are waited for a server. That a server which takes no connection is left soon matters at
// the start of a node, when others are tried in turn.
const (
	dialTimeout  = 5 * time.Second
	probeTimeout = 5 * time.Second
	probeEvery   = 10 * time.Second
	patience     = 2 // probes that fail before a server is left
)

// Join makes a client's configuration use the set: requests go to the server in use. The server's
// certificate has to be for the host under which it is known or for ServiceName; who issued it is judged
// as the configuration says.
func (s *Set) Join(cfg *rest.Config) error {
	for name, to := range map[string]*http.RoundTripper{"": &s.byHost, ServiceName: &s.byService} {
		plain := &rest.Config{TLSClientConfig: cfg.TLSClientConfig, Dial: s.dial}
		plain.ServerName = name
		var err error
		if *to, err = rest.TransportFor(plain); err != nil {
			return fmt.Errorf("transport to API servers: %w", err)
		}
	}
	cfg.Host = "https://" + ServiceName // each request is readdressed
	cfg.TLSClientConfig = rest.TLSClientConfig{}
	cfg.Transport = s
	return nil
}

// dial connects, and remembers the connection by its address.
func (s *Set) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	s.mu.Lock()
	t := s.conns[address]
	if t == nil {
		t = connrotation.NewConnectionTracker()
		s.conns[address] = t
	}
	s.mu.Unlock()
	return connrotation.NewDialerWithTracker(d.DialContext, t).DialContext(ctx, network, address)
}

// hangUp ends all connections to a server, so that who listens there listens elsewhere.
func (s *Set) hangUp(address string) {
	s.mu.Lock()
	t := s.conns[address]
	s.mu.Unlock()
	if t != nil {
		t.CloseAll()
	}
}

// RoundTrip implements http.RoundTripper.
func (s *Set) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.GetBody != nil {
		defer req.Body.Close() // each server gets a copy
	}
	all, _ := s.Servers()
	for tries := len(all); ; tries-- {
		_, at := s.Servers()
		resp, err := s.ask(at, req)
		if err == nil {
			s.works(at)
			return resp, nil
		}
		if req.Context().Err() != nil {
			return nil, err // the asker has gone, which says nothing of the server
		}
		s.fails(at, err)
		if tries <= 1 || !repeatable(req, err) {
			return nil, fmt.Errorf("API server %s: %w", at, err)
		}
	}
}

// ask sends a request to one server.
func (s *Set) ask(at string, req *http.Request) (*http.Response, error) {
	s.mu.Lock()
	byService := s.service[at]
	s.mu.Unlock()
	resp, err := s.send(at, byService, req)
	if !errors.As(err, new(x509.HostnameError)) || req.Body != nil && req.GetBody == nil {
		return resp, err
	}
	resp, again := s.send(at, !byService, req)
	if errors.As(again, new(x509.HostnameError)) {
		return nil, err
	}
	s.mu.Lock()
	s.service[at] = !byService
	s.mu.Unlock()
	return resp, again
}

func (s *Set) send(at string, byService bool, req *http.Request) (*http.Response, error) {
	r := req.Clone(req.Context())
	r.URL.Scheme, r.URL.Host, r.Host = "https", at, ""
	if req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return nil, fmt.Errorf("body of the request: %w", err)
		}
		r.Body = body
	}
	if byService {
		return s.byService.RoundTrip(r)
	}
	return s.byHost.RoundTrip(r)
}

// repeatable says whether a request may be sent to another server: it has not reached the first, or it
// only reads.
func repeatable(req *http.Request, err error) bool {
	if req.Body != nil && req.Body != http.NoBody && req.GetBody == nil {
		return false
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" || errors.As(err, new(*tls.CertificateVerificationError)) {
		return true
	}
	return req.Method == http.MethodGet || req.Method == http.MethodHead
}

// works notes that a server has answered.
func (s *Set) works(at string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inUse == at && s.failing {
		s.failing = false
		s.log.Info("API server in use", "address", at)
	}
}

// fails notes that a request did not get through to a server, and goes on to the next if it is the one
// in use.
func (s *Set) fails(at string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.all()
	if s.inUse != at {
		return
	}
	next := all[(slices.Index(all, at)+1)%len(all)]
	if !s.failing { // said once, not for each server of a cluster that is down
		s.log.Warn("API server does not answer", "address", at, "next", next, "error", err)
	}
	s.failing, s.inUse = true, next
}

// Run asks the server in use whether it is well until ctx ends, and leaves it for another if not. While
// only one is known, or none is well, there is nothing to choose.
func (s *Set) Run(ctx context.Context) error {
	bad, about := 0, ""
	for {
		pause := s.probeEvery
		if bad > 0 {
			pause /= 10 // a second look soon
		}
		wait := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil
		case <-wait.C:
		}
		all, at := s.Servers()
		if at != about {
			bad, about = 0, at
		}
		if len(all) < 2 {
			continue
		}
		err := s.probe(ctx, at)
		if err == nil {
			bad = 0
			continue
		}
		if bad++; bad >= patience {
			s.leave(ctx, at, err)
			bad = 0
		}
	}
}

// leave looks for a server that is well and uses it instead of the one that is not.
func (s *Set) leave(ctx context.Context, at string, why error) {
	all, _ := s.Servers()
	i := slices.Index(all, at) + 1
	for _, next := range slices.Concat(all[i:], all[:i]) {
		if next == at || s.probe(ctx, next) != nil {
			continue
		}
		s.mu.Lock()
		moved := s.inUse == at
		if moved {
			s.inUse, s.failing = next, false
		}
		s.mu.Unlock()
		if moved {
			s.log.Warn("API server is not well, another is used", "address", at, "next", next, "error", why)
			s.hangUp(at)
		}
		return
	}
}

// probe asks a server whether it is ready. It needs no credentials: any answer but that it is not ready
// will do.
func (s *Set) probe(ctx context.Context, at string) error {
	ctx, cancel := context.WithTimeout(ctx, s.probeTimeout)
	defer cancel()
	u := url.URL{Scheme: "https", Host: at, Path: "/readyz"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fmt.Errorf("probe of API server %s: %w", at, err)
	}
	resp, err := s.ask(at, req)
	if err != nil {
		return fmt.Errorf("probe of API server %s: %w", at, err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
	if resp.StatusCode >= http.StatusInternalServerError {
		return fmt.Errorf("probe of API server %s: /readyz says %s", at, resp.Status)
	}
	return nil
}
