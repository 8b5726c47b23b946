// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cable holds the descriptor that a thread is blocked on, so that another one can cut it. A thread
// takes a descriptor out before it closes it: its number may belong to somebody else right after.
type cable struct {
	mu  sync.Mutex
	fd  int
	off bool
}

func newCable() *cable { return &cable{fd: -1} }

// hold makes fd the descriptor that is cut; -1 stands for none.
func (c *cable) hold(fd int) {
	c.mu.Lock()
	c.fd = fd
	if c.off {
		c.shut()
	}
	c.mu.Unlock()
}

// cut ends whatever the thread waits for, now and later: the descriptor stays valid, but every read,
// accept or connect on it returns.
func (c *cable) cut() {
	c.mu.Lock()
	c.off = true
	c.shut()
	c.mu.Unlock()
}

func (c *cable) shut() {
	if c.fd >= 0 {
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
	}
}

func (c *cable) isCut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.off
}

// address is a socket address in the kernel's form, ready for system calls that allocate nothing.
type address struct {
	raw [unix.SizeofSockaddrInet6]byte
	len uint32
}

func addressOf(ap netip.AddrPort) address {
	var a address
	if ip := ap.Addr().Unmap(); ip.Is4() {
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&a.raw))
		sa.Family, sa.Addr = unix.AF_INET, ip.As4()
		a.len = unix.SizeofSockaddrInet4
	} else {
		sa := (*unix.RawSockaddrInet6)(unsafe.Pointer(&a.raw))
		sa.Family, sa.Addr, sa.Scope_id = unix.AF_INET6, ip.As16(), scope(ip.Zone())
		a.len = unix.SizeofSockaddrInet6
	}
	a.setPort(ap.Port())
	return a
}

// scope is the number of the interface that a link-local address belongs to.
func scope(zone string) uint32 {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	if i, err := net.InterfaceByName(zone); err == nil {
		return uint32(i.Index)
	}
	return 0
}

// setPort writes the port, which both families have in the same place.
func (a *address) setPort(port uint16) { a.raw[2], a.raw[3] = byte(port>>8), byte(port) }

func (a *address) port() uint16 { return uint16(a.raw[2])<<8 | uint16(a.raw[3]) }

func (a *address) ip() netip.Addr {
	if a.len == unix.SizeofSockaddrInet4 {
		return netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(&a.raw)).Addr)
	}
	return netip.AddrFrom16((*unix.RawSockaddrInet6)(unsafe.Pointer(&a.raw)).Addr).Unmap()
}

func (a *address) family() int {
	if a.len == unix.SizeofSockaddrInet4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// The calls below are the kernel's own: without the allocation of the socket addresses of package unix,
// and without a word to the runtime, see enter. Each repeats itself when a signal interrupts it: the
// runtime sends signals to its threads.

func connect(fd int, a *address) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&a.raw)), uintptr(a.len))
	if e != unix.EINTR {
		return e
	}
	// An interrupted connect goes on by itself: wait for its outcome (connect(2)).
	for {
		p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if _, err := unix.Poll(p[:], -1); err == nil {
			break
		} else if !errors.Is(err, unix.EINTR) {
			return unix.EINTR
		}
	}
	v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return unix.EINTR
	}
	return unix.Errno(v)
}

func bindTo(fd int, a *address) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&a.raw)), uintptr(a.len))
	return e
}

func accept(fd int) (int, unix.Errno) {
	for {
		r, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
		if e != unix.EINTR {
			return int(r), e
		}
	}
}

// recv reads once, at most len(b) bytes.
func recv(fd int, b []byte) (int, unix.Errno) {
	for {
		r, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0)
		if e != unix.EINTR {
			return int(r), e
		}
	}
}

// recvFull reads until b is full or the other side has closed.
func recvFull(fd int, b []byte) (int, unix.Errno) {
	n := 0
	for n < len(b) {
		k, e := recv(fd, b[n:])
		if e != 0 {
			return n, e
		}
		if k == 0 {
			break
		}
		n += k
	}
	return n, 0
}

// send writes all of b; the sockets here block, so a call takes everything or fails.
func send(fd int, b []byte) (int, unix.Errno) {
	for {
		r, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
		if e != unix.EINTR {
			return int(r), e
		}
	}
}

func sendTo(fd int, b []byte, to *address) (int, unix.Errno) {
	for {
		r, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL,
			uintptr(unsafe.Pointer(&to.raw)), uintptr(to.len))
		if e != unix.EINTR {
			return int(r), e
		}
	}
}

// recvFrom reads a datagram and notes where it came from.
func recvFrom(fd int, b []byte, from *address) (int, unix.Errno) {
	for {
		from.len = uint32(len(from.raw))
		r, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0,
			uintptr(unsafe.Pointer(&from.raw)), uintptr(unsafe.Pointer(&from.len)))
		if e != unix.EINTR {
			return int(r), e
		}
	}
}

// closeFD closes a descriptor with which nothing is lost: what mattered has been read or sent.
func closeFD(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// settings are what one socket of a test is given before it is used.
type settings struct {
	sendBuffer, recvBuffer int32 // -1: as the kernel has it
	noDelay                bool
	priority, tos          int32 // -1: as it is
	congestion             string
}

// openSocket makes a data socket in the steps that netperf takes, so that a connection for each
// transaction costs the same: socket, both buffer sizes asked for, SO_REUSEADDR, bind.
func openSocket(local *address, dgram bool, s *settings) (fd int, sendBuffer, recvBuffer int32, err unix.Errno) {
	kind, proto := unix.SOCK_STREAM, unix.IPPROTO_TCP
	if dgram {
		kind, proto = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	}
	r, _, err := unix.RawSyscall(unix.SYS_SOCKET, uintptr(local.family()), uintptr(kind|unix.SOCK_CLOEXEC), uintptr(proto))
	if err != 0 {
		return -1, 0, 0, err
	}
	fd = int(r)
	if sendBuffer, err = bufferSize(fd, unix.SO_SNDBUF, s.sendBuffer); err == 0 {
		recvBuffer, err = bufferSize(fd, unix.SO_RCVBUF, s.recvBuffer)
	}
	if err == 0 && s.noDelay && !dgram {
		err = setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err == 0 {
		err = setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == 0 && s.priority >= 0 {
		err = setInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, s.priority)
	}
	if err == 0 && s.tos >= 0 {
		if local.family() == unix.AF_INET {
			err = setInt(fd, unix.IPPROTO_IP, unix.IP_TOS, s.tos)
		} else {
			err = setInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, s.tos)
		}
	}
	if err == 0 && s.congestion != "" && !dgram {
		_, _, err = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION,
			uintptr(unsafe.Pointer(unsafe.StringData(s.congestion))), uintptr(len(s.congestion)), 0)
	}
	if err == 0 {
		err = bindTo(fd, local)
	}
	if err != 0 {
		closeFD(fd)
		return -1, 0, 0, err
	}
	return fd, sendBuffer, recvBuffer, 0
}

// bufferSize sets a socket's buffer unless want is negative and returns what it has.
func bufferSize(fd, option int, want int32) (int32, unix.Errno) {
	if want >= 0 {
		if err := setInt(fd, unix.SOL_SOCKET, option, want); err != 0 {
			return 0, err
		}
	}
	return getInt(fd, unix.SOL_SOCKET, option)
}

func setInt(fd, level, option int, v int32) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0)
	return e
}

func getInt(fd, level, option int) (int32, unix.Errno) {
	var v int32
	size := uint32(unsafe.Sizeof(v))
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&size)), 0)
	return v, e
}

// localAddress is the address that the kernel gave a socket.
func localAddress(fd int) (address, unix.Errno) {
	var a address
	a.len = uint32(len(a.raw))
	_, _, e := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&a.raw)), uintptr(unsafe.Pointer(&a.len)))
	return a, e
}

// connection is what the kernel says of a TCP connection.
type connection struct {
	MTU         int // of the path, bytes
	MSS         int // bytes of a segment that is sent
	Retransmits int // segments
	SendBuffer  int // bytes, as the kernel has grown it
	RecvBuffer  int
	Congestion  string // control in use
}

func describe(fd int) connection {
	var c connection
	if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
		c.MTU, c.MSS, c.Retransmits = int(info.Pmtu), int(info.Snd_mss), int(info.Total_retrans)
	}
	if name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION); err == nil {
		c.Congestion = name
	}
	if n, e := getInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF); e == 0 {
		c.SendBuffer = int(n)
	}
	if n, e := getInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF); e == 0 {
		c.RecvBuffer = int(n)
	}
	return c
}

// sysError names the system call that failed.
func sysError(name string, e unix.Errno) error { return os.NewSyscallError(name, e) }
