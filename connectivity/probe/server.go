// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Server is the echo server. A port of 0 switches its protocol off; listeners take both families.
type Server struct {
	HTTP, TCP, UDP uint16
	// Bind is the address to listen on, by default all.
	Bind string
	// Host is the name to answer with, by default the host name.
	Host string
}

// maxSize bounds what /size hands out.
const maxSize = 64 << 20

// Run serves until ctx ends. ready, when not nil, is called once every listener is open.
func (s Server) Run(ctx context.Context, ready func()) error {
	if s.HTTP == 0 && s.TCP == 0 && s.UDP == 0 {
		return errors.New("no port to listen on")
	}
	if s.Host == "" {
		s.Host, _ = os.Hostname()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		lc      net.ListenConfig
		wg      sync.WaitGroup
		closers []io.Closer
		errs    = make(chan error, 4) // one a listener
	)
	addr := func(port uint16) string { return net.JoinHostPort(s.Bind, strconv.Itoa(int(port))) }
	serve := func(c io.Closer, f func() error) {
		closers = append(closers, c)
		wg.Go(func() { errs <- f() })
	}
	open := func() error {
		if s.HTTP != 0 {
			ln, err := lc.Listen(ctx, "tcp", addr(s.HTTP))
			if err != nil {
				return err
			}
			srv := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}
			serve(srv, func() error { return srv.Serve(ln) })
		}
		if s.TCP != 0 {
			ln, err := lc.Listen(ctx, "tcp", addr(s.TCP))
			if err != nil {
				return err
			}
			serve(ln, func() error { return s.serveTCP(ctx, ln) })
		}
		if s.UDP != 0 {
			conns, err := s.listenUDP(ctx, lc)
			if err != nil {
				return err
			}
			for _, c := range conns {
				serve(c, func() error {
					return c.serve(func(b []byte, from net.Addr) { answerHeader(b, seen(from), s.Host) })
				})
			}
		}
		return nil
	}
	err := open()
	if err == nil {
		if ready != nil {
			ready()
		}
		select {
		case err = <-errs:
		case <-ctx.Done():
		}
	}
	cancel()
	for _, c := range closers {
		_ = c.Close()
	}
	wg.Wait()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// packetConn is a UDP socket that knows which of the host's addresses a datagram came to. The answer
// has to leave from there: a host has several, and a client takes an answer from the one it asked.
type packetConn interface {
	io.Closer
	// serve answers until the socket is closed; reply changes the datagram in place.
	serve(reply func(b []byte, from net.Addr)) error
}

// listenUDP opens a socket for each family; a host without IPv6 has one.
func (s Server) listenUDP(ctx context.Context, lc net.ListenConfig) ([]packetConn, error) {
	var (
		out  []packetConn
		errs []error
	)
	for _, network := range []string{"udp4", "udp6"} {
		if b, err := netip.ParseAddr(s.Bind); err == nil && b.Is6() != (network == "udp6") {
			continue
		}
		pc, err := lc.ListenPacket(ctx, network, net.JoinHostPort(s.Bind, strconv.Itoa(int(s.UDP))))
		if err != nil {
			if network == "udp6" && len(out) > 0 && !errors.Is(err, syscall.EADDRINUSE) {
				break
			}
			errs = append(errs, err)
			break
		}
		if c, ok := pc.(*net.UDPConn); ok {
			readBuffer(c)
		}
		if network == "udp4" {
			c := ipv4.NewPacketConn(pc)
			errs = append(errs, c.SetControlMessage(ipv4.FlagDst, true))
			out = append(out, conn4{c})
		} else {
			c := ipv6.NewPacketConn(pc)
			errs = append(errs, c.SetControlMessage(ipv6.FlagDst, true))
			out = append(out, conn6{c})
		}
	}
	if err := errors.Join(errs...); err != nil {
		for _, c := range out {
			_ = c.Close()
		}
		return nil, err
	}
	return out, nil
}

type conn4 struct{ *ipv4.PacketConn }

func (c conn4) serve(reply func([]byte, net.Addr)) error {
	buf := make([]byte, 1<<16)
	for {
		n, cm, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			continue // an ICMP error that an earlier answer met
		}
		var out *ipv4.ControlMessage
		if cm != nil {
			out = &ipv4.ControlMessage{Src: cm.Dst}
		}
		reply(buf[:n], from)
		_, _ = c.WriteTo(buf[:n], out, from) // the client sees what went wrong
	}
}

type conn6 struct{ *ipv6.PacketConn }

func (c conn6) serve(reply func([]byte, net.Addr)) error {
	buf := make([]byte, 1<<16)
	for {
		n, cm, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			continue // an ICMP error that an earlier answer met
		}
		var out *ipv6.ControlMessage
		if cm != nil {
			out = &ipv6.ControlMessage{Src: cm.Dst}
		}
		reply(buf[:n], from)
		_, _ = c.WriteTo(buf[:n], out, from) // the client sees what went wrong
	}
}

func (s Server) serveTCP(ctx context.Context, ln net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			defer c.Close()
			if _, err := fmt.Fprintf(c, "%s %s %s\n", greeting, seen(c.RemoteAddr()), s.Host); err != nil {
				return
			}
			_, _ = io.Copy(c, c) // the client sees what went wrong
		})
	}
}

// Identity is what the HTTP server says about itself and the client at "/".
type Identity struct {
	Host   string `json:"host"`
	Seen   string `json:"seen"`
	Method string `json:"method"`
	Path   string `json:"path"`
}

func (s Server) handler() http.Handler {
	mux := http.NewServeMux()
	named := func(f func(w http.ResponseWriter, r *http.Request, seen string)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			from := r.RemoteAddr
			if ap, err := netip.ParseAddrPort(from); err == nil {
				from = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String()
			}
			w.Header().Set(headerHost, s.Host)
			w.Header().Set(headerSeen, from)
			f(w, r, from)
		}
	}
	mux.HandleFunc("/", named(func(w http.ResponseWriter, r *http.Request, seen string) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(Identity{Host: s.Host, Seen: seen, Method: r.Method, Path: r.URL.Path})
	}))
	mux.HandleFunc("/ip", named(func(w http.ResponseWriter, _ *http.Request, seen string) {
		fmt.Fprintln(w, hostOf(seen))
	}))
	mux.HandleFunc("/size", named(func(w http.ResponseWriter, r *http.Request, _ string) {
		n, err := strconv.Atoi(r.URL.Query().Get("n"))
		if err != nil || n < 0 || n > maxSize {
			http.Error(w, fmt.Sprintf("n has to be a number of bytes up to %d", maxSize), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.Itoa(n))
		chunk := bytes.Repeat([]byte("lash"), 1<<14)
		for n > 0 {
			k, err := w.Write(chunk[:min(n, len(chunk))])
			if err != nil {
				return
			}
			n -= k
		}
	}))
	return mux
}

const (
	headerHost = "Lash-Host"
	headerSeen = "Lash-Seen"
)

// seen writes an address without the mapped form that a socket for both families reports.
func seen(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String()
}
