// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Server answers tests. Its zero value serves on DefaultPort of all addresses.
type Server struct {
	// Listen is where to listen for control connections, by default ":12865". With a host in it, tests
	// listen on that address too and nowhere else, whatever a client asks for.
	Listen string
	// Network is "tcp4" or "tcp6" to serve one family only; empty serves both.
	Network string
	// DataPort is used for tests whose client leaves the choice to the server; 0 leaves it to the kernel.
	DataPort uint16
	// CPU binds the threads that tests run on to a processor. nil leaves it to the client, whose
	// request may name one.
	CPU *int
	// Passphrase, when it is not empty, has to be the first that a client sends.
	Passphrase string
	// Log tells of sessions that end in an error; nil is silent.
	Log *slog.Logger

	idle time.Duration // 0: idleDefault
}

const (
	// maxLength bounds a test.
	maxLength = time.Hour
	// idleDefault is how long a session without a test lives.
	idleDefault = 5 * time.Minute
	// maxSessions is how many control connections there may be; those beyond are closed.
	maxSessions = 256
	// passphraseLimit is how long a client has for its passphrase, as the original gives it.
	passphraseLimit = 20 * time.Second
	// quiet ends a TCP_CRR test whose time is over: no connection for so long. The client never tells.
	quiet = 100 * time.Millisecond
	// backlog of data sockets, the original's.
	backlog = 5
)

// Run serves until ctx ends. ready, when not nil, is told the address once the server listens.
func (s *Server) Run(ctx context.Context, ready func(net.Addr)) error {
	addr := s.Listen
	if addr == "" {
		addr = fmt.Sprintf(":%d", DefaultPort)
	}
	var lc net.ListenConfig
	network := s.Network
	if network == "" {
		network = "tcp"
	}
	ln, err := lc.Listen(ctx, network, addr)
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("%w: another program listens there, a netserver perhaps; choose another port", err)
	}
	if err != nil {
		return err
	}
	places := make(chan struct{}, maxSessions)
	ctx, cancel := context.WithCancel(ctx)
	var sessions sync.WaitGroup
	defer sessions.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	if ready != nil {
		ready(ln.Addr())
	}
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case places <- struct{}{}:
		default:
			_ = conn.Close()
			s.warn(conn, fmt.Errorf("there are %d sessions already", maxSessions))
			continue
		}
		sessions.Go(func() {
			defer func() { <-places }()
			defer conn.Close()
			if err := s.session(ctx, conn); err != nil && ctx.Err() == nil {
				s.warn(conn, err)
			}
		})
	}
}

func (s *Server) warn(conn net.Conn, err error) {
	if s.Log != nil {
		s.Log.Warn("session ended", "client", conn.RemoteAddr().String(), "error", err)
	}
}

// session serves one control connection: any number of tests, one after the other.
func (s *Server) session(ctx context.Context, conn net.Conn) error {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if s.Passphrase != "" {
		m, err := readMessage(conn, time.Now().Add(passphraseLimit))
		if err != nil {
			return fmt.Errorf("passphrase: %w", err)
		}
		if m.kind() != KindPassphrase || !matches(m, s.Passphrase) {
			return errors.New("the passphrase is missing or wrong")
		}
	}
	idle := s.idle
	if idle == 0 {
		idle = idleDefault
	}
	var running *run
	defer func() { running.end() }()
	for {
		m, err := readMessage(conn, time.Now().Add(idle))
		running.end()
		running = nil
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch m.kind() {
		case KindPassphrase: // nobody asked for one
		case KindDebugOn, KindDebugOff:
			var reply message
			reply.head(KindDebugOK, 0)
			err = writeMessage(conn, &reply)
		case KindCalibrate:
			// The original answers with what it reckons a processor's worth to be; with /proc/stat that is 100.
			var reply message
			reply.head(KindCalibrate, 0)
			reply.putFloat(0, 100)
			reply.put(1, int32(runtime.NumCPU()))
			err = writeMessage(conn, &reply)
		case KindSystem:
			var reply message
			reply.head(KindSystemInfo, 0)
			copy(reply[dataAt:], ",Deprecated,Deprecated,Deprecated,Deprecated")
			err = writeMessage(conn, &reply)
		case KindRequest:
			running, err = s.test(ctx, conn, m)
		default:
			var reply message
			reply.head(m.kind(), errUnknownRequest)
			if err = writeMessage(conn, &reply); err == nil {
				err = fmt.Errorf("request of kind %d: this server has only the omni test (%d)", m.kind(), KindRequest)
			}
		}
		if err != nil {
			return err
		}
	}
}

func matches(m *message, passphrase string) bool {
	got, _, _ := bytes.Cut(m[dataAt:], []byte{0})
	return subtle.ConstantTimeCompare(got, []byte(passphrase)) == 1
}

// test does what a request asks for and sends response and results. The run that it returns may
// still accept connections: a client that is stuck in a lost SYN must not find a closed port, which
// the original takes for a fatal error. The caller ends it with the next message.
func (s *Server) test(ctx context.Context, conn net.Conn, m *message) (*run, error) {
	req, err := parseRequest(m)
	var r *run
	if err == nil {
		r, err = s.prepare(&req, conn)
	}
	if err == nil {
		err = r.start(s.cpuOf(&req))
	}
	if err != nil {
		var reply message
		(&Response{Errno: errnoOf(err)}).marshal(&reply)
		return nil, errors.Join(err, writeMessage(conn, &reply))
	}
	var reply message
	r.response().marshal(&reply)
	if err := writeMessage(conn, &reply); err != nil {
		r.end()
		return nil, err
	}
	if err := r.wait(ctx, conn); err != nil {
		r.end()
		return nil, err
	}
	results := r.results()
	results.marshal(&reply)
	if err := writeMessage(conn, &reply); err != nil {
		r.end()
		return nil, err
	}
	return r, nil
}

func (s *Server) cpuOf(r *Request) int {
	if s.CPU != nil {
		return *s.CPU
	}
	return int(r.BindCPU)
}

// prepare checks a request and opens the data socket.
func (s *Server) prepare(req *Request, conn net.Conn) (*run, error) {
	test, err := req.test()
	if err != nil {
		return nil, err
	}
	r := &run{test: test, req: *req, cable: newCable(), done: make(chan struct{})}
	if req.Length > 0 {
		r.length = time.Duration(req.Length) * time.Second
	} else {
		r.units = -int64(req.Length)
	}
	if r.length > maxLength || (r.units == 0 && r.length == 0) {
		return nil, fmt.Errorf("length %d: use 1 to %d seconds, or minus a count", req.Length, int(maxLength/time.Second))
	}
	limit := int32(maxSize)
	if req.Datagram {
		limit = maxDatagram
	}
	for _, size := range []int32{req.RequestSize, req.ResponseSize, req.SendSize, req.RecvSize} {
		if size > limit {
			return nil, fmt.Errorf("size %d: at most %d bytes", size, limit)
		}
	}
	local, err := s.dataAddress(req, conn)
	if err != nil {
		return nil, err
	}
	a := addressOf(local)
	set := settings{
		sendBuffer: req.SendBuffer, recvBuffer: req.RecvBuffer, noDelay: req.Flags&FlagNoDelay != 0,
		priority: req.Priority, tos: req.TOS, congestion: req.Congestion,
	}
	fd, sendBuffer, recvBuffer, e := openSocket(&a, req.Datagram, &set)
	if e != 0 {
		return nil, fmt.Errorf("data socket on %s: %w", local, sysError("open", e))
	}
	r.fd, r.sendBuffer, r.recvBuffer = fd, sendBuffer, recvBuffer
	if !req.Datagram {
		if err := unix.Listen(fd, backlog); err != nil {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("data socket on %s: %w", local, err)
		}
	}
	bound, e := localAddress(fd)
	if e != 0 {
		_ = unix.Close(fd)
		return nil, sysError("getsockname", e)
	}
	r.port = bound.port()
	r.size()
	return r, nil
}

// dataAddress is where the data socket listens: the address that the request names, or the one that
// the control connection came to, so that a test opens nothing on other addresses.
func (s *Server) dataAddress(req *Request, conn net.Conn) (netip.AddrPort, error) {
	control, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("own address: %w", err)
	}
	own := control.Addr().Unmap()
	addr, port := req.ServerAddr, req.DataPort
	if port == 0 {
		port = s.DataPort
	}
	if s.bound() && addr.IsValid() && addr != own.WithZone("") {
		return netip.AddrPort{}, fmt.Errorf("the client asks for a test on %s, this server has only %s: %w", addr, own, unix.EADDRNOTAVAIL)
	}
	switch {
	case addr.IsValid():
	case own.Is6() == req.IPv6:
		addr = own
	case s.bound():
		return netip.AddrPort{}, fmt.Errorf("the client asks for a test over the other family, this server has only %s: %w", own, unix.EAFNOSUPPORT)
	case req.IPv6:
		addr = netip.IPv6Unspecified()
	default:
		addr = netip.IPv4Unspecified()
	}
	return netip.AddrPortFrom(addr, port), nil
}

// bound says whether the server has been told its address.
func (s *Server) bound() bool {
	host, _, err := net.SplitHostPort(s.Listen)
	if err != nil || host == "" {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return err != nil || !addr.IsUnspecified()
}
