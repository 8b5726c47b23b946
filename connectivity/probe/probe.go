// SPDX-License-Identifier: Apache-2.0

// Package probe is both ends of a connectivity check: an echo server and a client that asks it.
// It runs inside test pods, so it needs nothing but the standard library and golang.org/x/net, and
// no privilege: ICMP goes through an unprivileged ping socket and falls back to a raw socket where
// the pod has NET_RAW.
//
// What the servers answer:
//
//	TCP   one line "lash-echo SEEN HOST", then every byte that comes in
//	UDP   the datagram itself; a datagram of at least 192 bytes that starts with "lash-probe?"
//	      carries "SEEN HOST" in its first 192 bytes on the way back
//	HTTP  / (JSON), /ip (the client's address), /size?n=N (N bytes)
//
// SEEN is the client's address and port as the server sees them, HOST the server's host name: from
// them a check learns whether it was translated on the way and who answered.
package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// Proto is what a probe speaks.
type Proto string

// The protocols.
const (
	TCP  Proto = "tcp"  // connect, read the greeting, send Size bytes, read them back
	UDP  Proto = "udp"  // send a datagram of Size bytes, read it back
	ICMP Proto = "icmp" // echo request with Size bytes
	HTTP Proto = "http" // GET; Target is an URL, https is not verified
	DNS  Proto = "dns"  // ask Server for Target
	MTU  Proto = "mtu"  // what the route to Target takes; sends nothing
	// Route is the entry of the main routing table that covers Target; sends nothing.
	Route Proto = "route"
	// Bind listens at Target for Network and ends at once; sends nothing.
	Bind Proto = "bind"
)

// DefaultTimeout bounds one exchange of a probe that names no time of its own.
const DefaultTimeout = 5 * time.Second

// Probe says what to try. The zero values of the optional fields mean: one exchange, without
// payload, DefaultTimeout.
type Probe struct {
	ID    string `json:"id,omitempty"` // echoed in the result
	Proto Proto  `json:"proto"`
	// Target is host:port for TCP, UDP and Bind, an address for ICMP, MTU and Route, an URL for HTTP and
	// the name to look up for DNS.
	Target string `json:"target"`
	// Server (DNS) is host:port of the name server, by default the first of /etc/resolv.conf;
	// Network is udp or tcp, of Bind too, Type A or AAAA.
	Server  string `json:"server,omitempty"`
	Network string `json:"network,omitempty"`
	Type    string `json:"type,omitempty"`
	// Size is the payload in bytes. With FromMTU it is added to the MTU of the route to Target.
	Size    int  `json:"size,omitempty"`
	FromMTU bool `json:"fromMTU,omitempty"`
	// DontFragment (UDP, ICMP) sends with DF set, and a payload that the route cannot take is an error.
	DontFragment bool `json:"dontFragment,omitempty"`
	// Count is the number of exchanges, one each IntervalMillis; on one connection for TCP.
	Count          int `json:"count,omitempty"`
	IntervalMillis int `json:"intervalMs,omitempty"`
	TimeoutMillis  int `json:"timeoutMs,omitempty"` // of one exchange
	// Conn (TCP, in a batch) is a name: the first probe with it leaves its connection open, the next
	// one goes on with that connection and closes it.
	Conn string `json:"conn,omitempty"`
}

// Kind is the class of an error, for checks that expect one.
type Kind string

// The classes.
const (
	KindTimeout     Kind = "timeout"
	KindRefused     Kind = "refused"
	KindUnreachable Kind = "unreachable"
	KindForbidden   Kind = "forbidden" // EPERM: a packet filter of the sender's own host
	KindReset       Kind = "reset"
	KindTooBig      Kind = "too-big"
	KindCorrupt     Kind = "corrupt"
	KindNoName      Kind = "no-such-name"
	KindOther       Kind = "other"
)

// Result says what came of a probe.
type Result struct {
	ID    string `json:"id,omitempty"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
	Kind  Kind   `json:"kind,omitempty"`
	// RTTMicros is the time of the slowest exchange, TookMicros of the whole probe.
	RTTMicros  int64 `json:"rttUs"`
	TookMicros int64 `json:"tookUs"`
	Bytes      int   `json:"bytes"` // payload that came back
	Sent       int   `json:"sent,omitempty"`
	Lost       int   `json:"lost,omitempty"` // exchanges without an answer, UDP and ICMP
	// Local is the own address, Seen the one that the server saw, Host the server's name.
	Local   string   `json:"local,omitempty"`
	Seen    string   `json:"seen,omitempty"`
	Host    string   `json:"host,omitempty"`
	Status  int      `json:"status,omitempty"`  // HTTP
	Answers []string `json:"answers,omitempty"` // DNS: addresses; Route: the route
	MTU     int      `json:"mtu,omitempty"`     // MTU, and where FromMTU was asked
	Size    int      `json:"size,omitempty"`    // payload that was sent
	// Text is the beginning of what an HTTP server other than ours said.
	Text string `json:"text,omitempty"`
	// Retransmits counts the TCP segments that were sent again.
	Retransmits int `json:"retransmits,omitempty"`
}

func (p Probe) timeout() time.Duration {
	if p.TimeoutMillis <= 0 {
		return DefaultTimeout
	}
	return time.Duration(p.TimeoutMillis) * time.Millisecond
}

// Run does one probe. What goes wrong is in the result.
func Run(ctx context.Context, p Probe) Result { return runWith(ctx, p, nil) }

func runWith(ctx context.Context, p Probe, open *conns) Result {
	start := time.Now()
	res := Result{ID: p.ID}
	err := run(ctx, p, &res, open)
	res.TookMicros = time.Since(start).Microseconds()
	res.OK = err == nil
	if err != nil {
		res.Error = err.Error()
		res.Kind = classify(err)
	}
	return res
}

func run(ctx context.Context, p Probe, res *Result, open *conns) error {
	if p.Target == "" {
		return errors.New("a probe needs a target")
	}
	if p.Count <= 0 {
		p.Count = 1
	}
	if p.FromMTU {
		mtu, err := routeMTU(ctx, hostOf(p.Target))
		if err != nil {
			return err
		}
		res.MTU = mtu
		p.Size = max(p.Size+mtu, 0)
	}
	res.Size = p.Size
	switch p.Proto {
	case TCP:
		return runTCP(ctx, p, res, open)
	case UDP:
		return runUDP(ctx, p, res)
	case ICMP:
		return runICMP(ctx, p, res)
	case HTTP:
		return runHTTP(ctx, p, res)
	case DNS:
		return runDNS(ctx, p, res)
	case MTU:
		mtu, err := routeMTU(ctx, hostOf(p.Target))
		res.MTU = mtu
		return err
	case Route:
		return runRoute(p, res)
	case Bind:
		return runBind(ctx, p)
	}
	return fmt.Errorf("unknown protocol %q: tcp, udp, icmp, http, dns, mtu, route or bind", p.Proto)
}

// runBind takes a port and gives it back.
func runBind(ctx context.Context, p Probe) error {
	var lc net.ListenConfig
	var c io.Closer
	var err error
	switch p.Network {
	case "tcp":
		c, err = lc.Listen(ctx, p.Network, p.Target)
	case "udp":
		c, err = lc.ListenPacket(ctx, p.Network, p.Target)
	default:
		return fmt.Errorf("network %q: tcp or udp", p.Network)
	}
	if err != nil {
		return err
	}
	return c.Close()
}

// hostOf returns the host of a host:port, or the text itself.
func hostOf(target string) string {
	if h, _, err := net.SplitHostPort(target); err == nil {
		return h
	}
	return strings.Trim(target, "[]")
}

var (
	errCorrupt = errors.New("the answer is not what was sent")
	errNoName  = errors.New("no such name")
)

func classify(err error) Kind {
	var ne net.Error
	switch {
	case errors.Is(err, errCorrupt):
		return KindCorrupt
	case errors.Is(err, errNoName):
		return KindNoName
	case errors.Is(err, syscall.ECONNREFUSED):
		return KindRefused
	case errors.Is(err, syscall.EPERM):
		return KindForbidden
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return KindUnreachable
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return KindReset
	case errors.Is(err, syscall.EMSGSIZE):
		return KindTooBig
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return KindTimeout
	}
	return KindOther
}

// pause waits until the next exchange is due.
func pause(ctx context.Context, millis int) error {
	if millis <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(time.Duration(millis) * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
