// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// maxDatagram is what fits into an IP packet, whatever its headers.
const maxDatagram = 65507

// Socket options of linux/in.h and linux/in6.h that syscall lacks.
const (
	ipMTUDiscover   = 10
	ipMTU           = 14
	ipv6MTUDiscover = 23
	ipv6MTU         = 24
	pmtuDo          = 2
)

// setDF forbids the kernel to fragment what the socket sends.
func setDF(fd int, v6 bool) error {
	if v6 {
		return syscall.SetsockoptInt(fd, syscall.IPPROTO_IPV6, ipv6MTUDiscover, pmtuDo)
	}
	return syscall.SetsockoptInt(fd, syscall.IPPROTO_IP, ipMTUDiscover, pmtuDo)
}

// routeMTU returns the MTU of the route to host, as a connected socket knows it.
func routeMTU(ctx context.Context, host string) (int, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", net.JoinHostPort(host, "9"))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	uc, ok := c.(*net.UDPConn)
	if !ok {
		return 0, fmt.Errorf("socket to %s: %T", host, c)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return 0, err
	}
	level, opt := syscall.IPPROTO_IP, ipMTU
	if ap, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil && ap.Addr().Unmap().Is6() {
		level, opt = syscall.IPPROTO_IPV6, ipv6MTU
	}
	var mtu int
	cerr := raw.Control(func(fd uintptr) { mtu, err = syscall.GetsockoptInt(int(fd), level, opt) })
	if err = errors.Join(cerr, err); err != nil {
		return 0, fmt.Errorf("mtu of the route to %s: %w", host, err)
	}
	return mtu, nil
}

// runUDP does Count exchanges of one datagram each. The socket is connected, so a port that is
// closed is noticed at once.
func runUDP(ctx context.Context, p Probe, res *Result) error {
	if p.Size > maxDatagram {
		return fmt.Errorf("a datagram has up to %d bytes, not %d", maxDatagram, p.Size)
	}
	var d net.Dialer
	if p.DontFragment {
		d.Control = func(network, _ string, raw syscall.RawConn) error {
			var err error
			cerr := raw.Control(func(fd uintptr) { err = setDF(int(fd), network == "udp6") })
			return errors.Join(cerr, err)
		}
	}
	c, err := d.DialContext(ctx, "udp", p.Target)
	if err != nil {
		return err
	}
	defer c.Close()
	readBuffer(c)
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	res.Local = c.LocalAddr().String()
	buf := make([]byte, 1<<16)
	return datagrams(ctx, p, res, func(deadline time.Time) error {
		b := payload(p.Size)
		askHeader(b)
		_ = c.SetDeadline(deadline)
		if _, err := c.Write(b); err != nil {
			return err
		}
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		res.Bytes += n
		return readHeader(b, buf[:n], res)
	})
}

// datagrams runs one exchange Count times and counts the answers that did not come. Anything but a
// missing answer ends the probe.
func datagrams(ctx context.Context, p Probe, res *Result, one func(deadline time.Time) error) error {
	var last error
	for i := range p.Count {
		if i > 0 {
			if err := pause(ctx, p.IntervalMillis); err != nil {
				return err
			}
		}
		res.Sent++
		start := time.Now()
		err := one(start.Add(p.timeout()))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && classify(err) != KindTimeout {
			return err
		}
		if err != nil {
			res.Lost++
			last = err
			continue
		}
		res.RTTMicros = max(res.RTTMicros, time.Since(start).Microseconds())
	}
	if res.Lost > 0 {
		return fmt.Errorf("%d of %d datagrams were not answered: %w", res.Lost, res.Sent, last)
	}
	return nil
}

// runICMP sends Count echo requests.
func runICMP(ctx context.Context, p Probe, res *Result) error {
	if p.Size > maxDatagram {
		return fmt.Errorf("an echo request has up to %d bytes, not %d", maxDatagram, p.Size)
	}
	dst, err := netip.ParseAddr(hostOf(p.Target))
	if err != nil {
		return fmt.Errorf("icmp needs an address: %w", err)
	}
	dst = dst.Unmap()
	c, raw, err := pingSocket(dst, p.DontFragment)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if a, err := netip.ParseAddrPort(c.LocalAddr().String()); err == nil {
		res.Local = a.Addr().Unmap().String()
	} else {
		res.Local = c.LocalAddr().String()
	}
	var (
		id  = int(rand.Uint32N(1 << 16))
		seq = 0
		buf = make([]byte, 1<<16)
	)
	return datagrams(ctx, p, res, func(deadline time.Time) error {
		seq++
		body := payload(p.Size)
		var typ icmp.Type = ipv4.ICMPTypeEcho
		if dst.Is6() {
			typ = ipv6.ICMPTypeEchoRequest
		}
		// The kernel fills in the checksum of ICMPv6 and, for a ping socket, its own id.
		b, err := (&icmp.Message{Type: typ, Body: &icmp.Echo{ID: id, Seq: seq & 0xffff, Data: body}}).Marshal(nil)
		if err != nil {
			return err
		}
		_ = c.SetDeadline(deadline)
		if _, err := c.Write(b); err != nil {
			return err
		}
		for {
			n, err := c.Read(buf)
			if err != nil {
				return err
			}
			echo, ok := echoReply(buf[:n], dst.Is6(), raw)
			if !ok || echo.Seq != seq&0xffff || (raw && echo.ID != id) {
				continue // somebody else's, or late
			}
			res.Bytes += len(echo.Data)
			if at := differ(body, echo.Data); at >= 0 {
				return fmt.Errorf("%w: byte %d of %d differs", errCorrupt, at, len(body))
			}
			return nil
		}
	})
}

// echoReply takes an echo reply apart; a raw IPv4 socket hands out the IP header as well.
func echoReply(b []byte, v6, raw bool) (*icmp.Echo, bool) {
	proto := 1
	if v6 {
		proto = 58
	} else if raw {
		if len(b) < 20 || len(b) < int(b[0]&0xf)*4 {
			return nil, false
		}
		b = b[int(b[0]&0xf)*4:]
	}
	m, err := icmp.ParseMessage(proto, b)
	if err != nil || (m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply) {
		return nil, false
	}
	echo, ok := m.Body.(*icmp.Echo)
	return echo, ok
}

// pingSocket returns a connected socket for ICMP echo: the unprivileged kind, or, where
// net.ipv4.ping_group_range forbids that, a raw one (raw is true). Being connected it gets the
// answers of dst only.
func pingSocket(dst netip.Addr, df bool) (c net.Conn, raw bool, err error) {
	family, proto := syscall.AF_INET, syscall.IPPROTO_ICMP
	var sa syscall.Sockaddr
	if dst.Is6() {
		family, proto = syscall.AF_INET6, syscall.IPPROTO_ICMPV6
		sa = &syscall.SockaddrInet6{Addr: dst.As16()}
	} else {
		sa = &syscall.SockaddrInet4{Addr: dst.As4()}
	}
	open := func(typ int) (int, error) {
		return syscall.Socket(family, typ|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, proto)
	}
	fd, err := open(syscall.SOCK_DGRAM)
	if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) {
		raw = true
		fd, err = open(syscall.SOCK_RAW)
	}
	if err != nil {
		return nil, raw, fmt.Errorf("icmp socket (neither net.ipv4.ping_group_range nor CAP_NET_RAW allows one): %w", err)
	}
	if df {
		if err := setDF(fd, dst.Is6()); err != nil {
			_ = syscall.Close(fd)
			return nil, raw, fmt.Errorf("forbid fragments: %w", err)
		}
	}
	if err := syscall.Connect(fd, sa); err != nil {
		_ = syscall.Close(fd)
		return nil, raw, fmt.Errorf("icmp %s: %w", dst, err)
	}
	f := os.NewFile(uintptr(fd), "icmp")
	defer f.Close()
	c, err = net.FileConn(f)
	return c, raw, err
}
