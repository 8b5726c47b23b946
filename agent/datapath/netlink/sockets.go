// SPDX-License-Identifier: Apache-2.0

package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Messages about sockets (source: linux/sock_diag.h, linux/inet_diag.h). A request is struct
// inet_diag_req_v2, an answer struct inet_diag_msg; both have a struct inet_diag_sockid.
const (
	sockDestroy    = 21
	diagRequestLen = 56
	diagIDLen      = 48
	diagAnswerID   = 4 // where an answer has its id
	stateConnected = 1 // TCP_ESTABLISHED, which UDP uses too
)

// ErrCannotEnd says that the kernel does not let sockets be ended from outside.
var ErrCannotEnd = errors.New("the kernel cannot end UDP sockets: it lacks CONFIG_INET_DIAG_DESTROY or CONFIG_INET_UDP_DIAG")

// UDPSocket is a UDP socket of this network namespace that is connected.
type UDPSocket struct {
	Cookie      uint64
	Local, Peer netip.AddrPort // an IPv4 address is one also where the socket is of IPv6
	family      uint8
	id          [diagIDLen]byte
}

// ConnectedUDP lists them.
func ConnectedUDP() ([]UDPSocket, error) {
	var out []UDPSocket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddRawData(diagRequest(family, 1<<stateConnected, nil))
		err := req.ExecuteIter(unix.NETLINK_INET_DIAG, 0, func(msg []byte) bool {
			if s, ok := udpSocket(msg); ok {
				out = append(out, s)
			}
			return true
		})
		if errors.Is(err, unix.ENOENT) {
			return nil, ErrCannotEnd
		}
		if err != nil {
			return nil, fmt.Errorf("list UDP sockets: %w", err)
		}
	}
	return out, nil
}

// diagRequest is a request about UDP sockets: of one by its id, or of those in some states.
func diagRequest(family uint8, states uint32, id []byte) []byte {
	b := make([]byte, diagRequestLen)
	b[0], b[1] = family, unix.IPPROTO_UDP
	binary.NativeEndian.PutUint32(b[4:], states)
	copy(b[diagRequestLen-diagIDLen:], id)
	return b
}

// udpSocket reads an answer.
func udpSocket(msg []byte) (UDPSocket, bool) {
	if len(msg) < diagAnswerID+diagIDLen || msg[1] != stateConnected {
		return UDPSocket{}, false
	}
	s := UDPSocket{family: msg[0]}
	copy(s.id[:], msg[diagAnswerID:])
	id := s.id[:]
	addr := func(b []byte) netip.Addr {
		if s.family == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b[:4]))
		}
		return netip.AddrFrom16([16]byte(b[:16])).Unmap()
	}
	s.Local = netip.AddrPortFrom(addr(id[4:]), binary.BigEndian.Uint16(id))
	s.Peer = netip.AddrPortFrom(addr(id[20:]), binary.BigEndian.Uint16(id[2:]))
	s.Cookie = uint64(binary.NativeEndian.Uint32(id[40:])) | uint64(binary.NativeEndian.Uint32(id[44:]))<<32
	return s, true
}

// End makes calls on the socket fail with ECONNABORTED. One that is closed or has another peer by now is
// left alone.
func (s UDPSocket) End() error {
	req := nl.NewNetlinkRequest(sockDestroy, unix.NLM_F_ACK)
	req.AddRawData(diagRequest(s.family, 0, s.id[:]))
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
		return nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: %w", ErrCannotEnd, err)
	}
	return fmt.Errorf("end UDP socket %s to %s: %w", s.Local, s.Peer, err)
}

// CanEndUDP tries it with a socket of its own.
func CanEndUDP() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("try to end a UDP socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err == nil {
		// To the discard port of the loopback device; nothing is sent.
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}})
	}
	if err != nil {
		return fmt.Errorf("try to end a UDP socket: %w", err)
	}
	all, err := ConnectedUDP()
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.Cookie != cookie {
			continue
		}
		if err := s.End(); err != nil {
			return err
		}
		if _, err := unix.Getpeername(fd); errors.Is(err, unix.ENOTCONN) {
			return nil
		}
		return fmt.Errorf("%w: one that was ended is still connected", ErrCannotEnd)
	}
	return fmt.Errorf("%w: it does not list a socket of its own", ErrCannotEnd)
}
