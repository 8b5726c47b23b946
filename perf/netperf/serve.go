// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lash.internal/lash/perf/stats"
)

// run is the server's side of one test. A thread of its own moves the data; the session reads the
// tally while it does.
type run struct {
	test   Test
	req    Request
	length time.Duration // 0: until units have been counted
	units  int64         // transactions or bytes

	fd                     int // listening, or the datagram socket
	port                   uint16
	sendBuffer, recvBuffer int32
	in, out                []byte
	cable                  *cable
	done                   chan struct{} // closed when the thread has ended
	err                    error         // of the thread, once it has ended

	started      atomic.Int64 // ns since began of the first byte or connection
	ended        atomic.Int64 // of the last
	transactions atomic.Int64
	received     atomic.Uint64
	sent         atomic.Uint64
	recvCalls    atomic.Uint64
	sendCalls    atomic.Uint64
	retransmits  atomic.Int32 // of the connection; -1 while there is none to ask
	control      atomic.Pointer[string]
	clockAt      stats.Clock // of the start
	began        time.Time
}

// size makes the buffers.
func (r *run) size() {
	in, out := int(r.req.RequestSize), int(r.req.ResponseSize)
	if !r.test.Transactions() {
		if in = int(r.req.RecvSize); in <= 0 {
			in = int(r.recvBuffer)
		}
		if out = int(r.req.SendSize); out <= 0 {
			out = int(r.sendBuffer)
		}
	}
	if r.test.Datagrams() {
		in = maxDatagram // a longer one than announced is still one
	}
	r.in, r.out = make([]byte, min(max(in, 1), maxSize)), make([]byte, min(max(out, 1), maxSize))
}

func (r *run) response() *Response {
	resp := &Response{
		SendBuffer: r.sendBuffer, RecvBuffer: r.recvBuffer, DataPort: r.port,
		Flags: r.req.Flags & FlagNoDelay, Priority: r.req.Priority, TOS: r.req.TOS,
		SendSize: r.req.SendSize, RecvSize: r.req.RecvSize, SendWidth: r.req.SendWidth, RecvWidth: 1,
	}
	if r.req.Direction&ServerReceives != 0 {
		resp.RecvSize = int32(len(r.in))
		if r.test == UDPRR {
			resp.RecvSize = r.req.RequestSize
		} else if r.test == UDPStream && r.req.RecvSize <= 0 {
			resp.RecvSize = r.recvBuffer
		}
	}
	if r.req.Direction&ServerSends != 0 {
		resp.SendSize, resp.SendWidth = int32(len(r.out)), max(r.req.SendWidth, 1)
	}
	return resp
}

func (r *run) results() *Results {
	out := r.tally()
	if r.req.Flags&FlagMeasureCPU != 0 {
		if now, err := stats.ReadClock(); err == nil {
			out.CPU = r.clockAt.CPU(now)
		}
	}
	return out
}

func (r *run) tally() *Results {
	return &Results{
		BytesReceived: r.received.Load(), ReceiveCalls: uint32(r.recvCalls.Load()), RecvBuffer: r.recvBuffer,
		BytesSent: r.sent.Load(), SendCalls: uint32(r.sendCalls.Load()), SendBuffer: r.sendBuffer,
		Transactions: uint32(r.transactions.Load()),
		Elapsed:      float32(time.Duration(r.ended.Load() - r.started.Load()).Seconds()),
		Retransmits:  r.retransmits.Load(),
		Congestion:   r.congestion(),
	}
}

// congestion is the control that the connection of the test had.
func (r *run) congestion() string {
	if name := r.control.Load(); name != nil {
		return *name
	}
	return ""
}

// start begins to serve on a thread of its own.
func (r *run) start(cpu int) error {
	if r.req.Flags&FlagMeasureCPU != 0 {
		var err error
		if r.clockAt, err = stats.ReadClock(); err != nil {
			_ = unix.Close(r.fd)
			return err
		}
	}
	r.retransmits.Store(-1)
	r.began = time.Now()
	ended, err := startThread(cpu, r.serve)
	if err != nil {
		_ = unix.Close(r.fd)
		return err
	}
	go func() {
		r.err = <-ended
		close(r.done)
	}()
	return nil
}

// end stops the thread and waits until it is gone. It may be called on nil and more than once.
func (r *run) end() {
	if r == nil {
		return
	}
	r.cable.cut()
	<-r.done
}

// wait returns when the test is over: nil when its results may be sent.
func (r *run) wait(ctx context.Context, conn net.Conn) error {
	// The client says nothing while it measures. If it goes away there is nobody left to wait for.
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	gone := make(chan error, 1)
	var watch sync.WaitGroup
	watch.Go(func() { gone <- awaitHangup(conn) })
	defer func() {
		_ = conn.SetReadDeadline(time.Now())
		watch.Wait()
	}()
	var over, late <-chan time.Time
	if r.length > 0 {
		if r.test == TCPCRR || r.test.Datagrams() {
			over = time.After(r.length)
		}
		late = time.After(r.length + patience)
	}
	last := int64(-1)
	for {
		select {
		case <-r.done:
			return r.err
		case <-over:
			if n := r.transactions.Load() + int64(r.recvCalls.Load()); n != last {
				last, over = n, time.After(quiet)
				continue
			}
			return nil
		case <-late:
			return fmt.Errorf("%s: no end %s after its time", r.test, patience)
		case err := <-gone:
			if err == nil {
				err = errors.New("the client said something in the middle of a test")
			}
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// awaitHangup waits until the client says something or goes away, which is io.EOF, and reads nothing.
// A read deadline that passes ends it too.
func awaitHangup(conn net.Conn) error {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("control connection of type %T", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var b [1]byte
	var n int
	var seen error
	err = raw.Read(func(fd uintptr) bool {
		n, _, seen = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK)
		return !errors.Is(seen, unix.EAGAIN) && !errors.Is(seen, unix.EINTR)
	})
	switch {
	case err != nil:
		return err
	case seen != nil:
		return seen
	case n == 0:
		return io.EOF
	}
	return nil
}

// serve moves the data. It ends when the test does, or when the cable is cut.
func (r *run) serve() error {
	defer func() {
		r.cable.hold(-1)
		_ = unix.Close(r.fd) // a listening socket has nothing to lose
	}()
	r.cable.hold(r.fd)
	var err error
	switch r.test {
	case TCPCRR:
		err = r.connections()
	case UDPRR:
		err = r.datagrams()
	case UDPStream:
		err = r.receiveDatagrams()
	default:
		err = r.oneConnection()
	}
	if r.cable.isCut() {
		return nil // whatever it was, it was told to end
	}
	return err
}

// clock notes that something happened.
func (r *run) clock() {
	now := int64(time.Since(r.began))
	if r.started.Load() == 0 {
		r.started.Store(now)
	}
	r.ended.Store(now)
}

// count notes a transaction and says whether there are more to come.
func (r *run) count(in, out int) (more bool) {
	n := r.transactions.Load() + 1 // nobody else writes
	r.transactions.Store(n)
	r.received.Store(r.received.Load() + uint64(in))
	r.sent.Store(r.sent.Load() + uint64(out))
	return r.units == 0 || n < r.units
}

// connections serves TCP_CRR. It goes on accepting when the results are long on their way. The
// listening socket is what a cut ends: the connections end by themselves with their client.
func (r *run) connections() error {
	for {
		fd, e := accept(r.fd)
		if e != 0 {
			return sysError("accept", e)
		}
		r.cable.hold(fd)
		more, err := r.one(fd)
		r.cable.hold(r.fd)
		closeFD(fd)
		if err != nil {
			return err
		}
		if !more {
			return nil
		}
	}
}

// one is the transaction of a connection. A connection that brings none is passed over.
func (r *run) one(fd int) (more bool, err error) {
	n, e := recvFull(fd, r.in)
	if e != 0 || n < len(r.in) {
		return true, nil
	}
	if _, e := send(fd, r.out); e != 0 {
		return true, nil
	}
	r.clock()
	return r.count(n, len(r.out)), nil
}

// oneConnection serves the tests that have one.
func (r *run) oneConnection() error {
	fd, e := accept(r.fd)
	if e != 0 {
		return sysError("accept", e)
	}
	r.cable.hold(fd)
	defer func() {
		r.cable.hold(r.fd)
		_ = unix.Close(fd) // what the client waits for
	}()
	r.clock()
	var err error
	switch r.test {
	case TCPRR:
		err = r.exchanges(fd)
	case TCPStream:
		err = r.receive(fd)
	default:
		err = r.send(fd)
	}
	r.clock()
	seen := describe(fd)
	r.retransmits.Store(int32(seen.Retransmits))
	r.control.Store(&seen.Congestion)
	return err
}

func (r *run) exchanges(fd int) error {
	for {
		n, e := recvFull(fd, r.in)
		if e != 0 && e != unix.ECONNRESET {
			return sysError("recv", e)
		}
		if e != 0 || n < len(r.in) {
			return nil // the client is through
		}
		if _, e := send(fd, r.out); e != 0 {
			return sysError("send", e)
		}
		if !r.count(n, len(r.out)) {
			return nil
		}
	}
}

// receive reads until the client says that it is through. A count of bytes is the client's to keep: it sends
// whole buffers, and a close before the last of them is read would reset the connection.
func (r *run) receive(fd int) error {
	var total, calls uint64
	for {
		n, e := recv(fd, r.in)
		if e != 0 && e != unix.ECONNRESET {
			return sysError("recv", e)
		}
		if e != 0 || n == 0 {
			break
		}
		total += uint64(n)
		calls++
	}
	r.received.Store(total)
	r.recvCalls.Store(calls)
	return nil
}

// receiveDatagrams serves UDP_STREAM until an empty datagram says that it is over.
func (r *run) receiveDatagrams() error {
	for total, calls := uint64(0), uint64(0); ; {
		n, e := recv(r.fd, r.in)
		if e != 0 {
			return sysError("recv", e)
		}
		if n == 0 {
			return nil // the client is through, or the cable was cut
		}
		r.clock()
		total += uint64(n)
		calls++
		r.received.Store(total)
		r.recvCalls.Store(calls)
		if r.units > 0 && total >= uint64(r.units) {
			return nil
		}
	}
}

func (r *run) send(fd int) error {
	var total, calls uint64
	for over, _ := alarm(r.length); !over.Load() && (r.units == 0 || total < uint64(r.units)); {
		n, e := send(fd, r.out)
		if e == unix.EPIPE || e == unix.ECONNRESET {
			break // the client has enough
		}
		if e != 0 {
			return sysError("send", e)
		}
		total += uint64(n)
		calls++
	}
	r.sent.Store(total)
	r.sendCalls.Store(calls)
	// The close below would throw away what the client has not read if there were unread bytes here.
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil && !errors.Is(err, unix.ENOTCONN) {
		return fmt.Errorf("shutdown: %w", err)
	}
	return nil
}

func (r *run) datagrams() error {
	var from address
	for {
		n, e := recvFrom(r.fd, r.in, &from)
		if e != 0 {
			return sysError("recvfrom", e)
		}
		if n == 0 {
			return nil // the client is through, or the cable was cut
		}
		r.clock()
		if _, e := sendTo(r.fd, r.out, &from); e != 0 {
			return sysError("sendto", e)
		}
		if !r.count(n, len(r.out)) {
			return nil
		}
	}
}
