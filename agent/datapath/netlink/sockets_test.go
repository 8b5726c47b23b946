// SPDX-License-Identifier: Apache-2.0

package netlink

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestEndUDP ends one of several sockets: only its owner notices.
func TestEndUDP(t *testing.T) {
	node(t)
	if err := SetUp("lo"); err != nil {
		t.Fatal(err)
	}
	addAddr(t, "fd00:1::1/64")
	if err := CanEndUDP(); errors.Is(err, ErrCannotEnd) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	dial := func(network, to string) *net.UDPConn {
		c, err := net.Dial(network, to)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*net.UDPConn)
	}
	free, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer free.Close()
	for name, peer := range map[string]string{"udp4": "172.31.1.12:5300", "udp6": "[::1]:5300"} {
		victim, other := dial(name, peer), dial(name, peer)
		end(t, cookieOf(t, victim), peer)
		_ = victim.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := victim.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("%s: reading from the socket that was ended: %v", name, err)
		}
		if _, err := other.Write([]byte("x")); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: another socket with the same peer: %v", name, err)
		}
		if !listed(t, other) || listed(t, victim) {
			t.Errorf("%s: %v and %v are connected", name, listed(t, other), listed(t, victim))
		}
	}
	// A socket of IPv6 with a peer of IPv4.
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet6{Port: 5300, Addr: netip.MustParseAddr("::ffff:172.31.1.12").As16()}); err != nil {
		t.Fatal(err)
	}
	end(t, cookieAt(fd), "172.31.1.12:5300")
	if _, err := unix.Getpeername(fd); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("a socket of IPv6 with a peer of IPv4 after its end: %v", err)
	}
}

func cookieAt(fd int) uint64 {
	c, _ := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	return c
}

func cookieOf(t *testing.T, c *net.UDPConn) (out uint64) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { out = cookieAt(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	return out
}

func connected(t *testing.T) map[uint64]UDPSocket {
	t.Helper()
	all, err := ConnectedUDP()
	if err != nil {
		t.Fatal(err)
	}
	out := map[uint64]UDPSocket{}
	for _, s := range all {
		out[s.Cookie] = s
	}
	return out
}

func listed(t *testing.T, c *net.UDPConn) bool {
	t.Helper()
	_, ok := connected(t)[cookieOf(t, c)]
	return ok
}

// end ends a socket by its cookie, and once more what is not there any more.
func end(t *testing.T, cookie uint64, peer string) {
	t.Helper()
	s, ok := connected(t)[cookie]
	if !ok || s.Peer.String() != peer {
		t.Fatalf("socket to %s is listed as %+v", peer, s)
	}
	if err := errors.Join(s.End(), s.End()); err != nil {
		t.Fatal(err)
	}
}
