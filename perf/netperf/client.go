// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"lash.internal/lash/perf/stats"
)

// Options say what to measure.
type Options struct {
	Test Test
	// Server is the address of the control connection; port 0 means DefaultPort.
	Server netip.AddrPort
	// DataPort is the port that the server is asked to use for the test, 0 for any.
	DataPort uint16
	// Length is how long to measure, in whole seconds: the protocol knows no others.
	Length time.Duration
	// RequestSize and ResponseSize are the bytes of a transaction each way, 1 by default.
	RequestSize, ResponseSize int
	// SendSize is the bytes that a call sends in a one-way test, by default the socket's send buffer.
	SendSize int
	// CPU and ServerCPU bind the measuring thread of either side to a processor; -1 does not.
	CPU, ServerCPU int
	// Congestion is the congestion control of both sides, by default the kernels' own.
	Congestion string
	// Passphrase is sent first when it is not empty.
	Passphrase string
	// Settle is how long to do nothing first, so that what it took to start this process is over.
	Settle time.Duration

	grace time.Duration // how long after its time the test may go on; 0: graceDefault
}

// Result is what a measurement gave. Rates are per second, latencies microseconds.
type Result struct {
	Test      Test           `json:"test"`
	Server    netip.AddrPort `json:"server"` // of the test, not of the control connection
	Client    netip.AddrPort `json:"client"` // of the last connection
	CPU       int            `json:"cpu"`
	ServerCPU int            `json:"serverCPU"`
	Seconds   float64        `json:"seconds"` // that the test really took

	Transactions int     `json:"transactions,omitempty"`
	Rate         float64 `json:"rate,omitempty"`
	// RTLatency is netperf's RT_LATENCY: the time of the whole test divided by its transactions.
	RTLatency float64        `json:"rtLatency_us,omitempty"`
	Latency   *stats.Summary `json:"latency,omitempty"`

	Bytes      uint64  `json:"bytes,omitempty"` // that arrived, one-way tests
	Throughput float64 `json:"throughput_mbit,omitempty"`

	RequestSize  int    `json:"requestSize,omitempty"`
	ResponseSize int    `json:"responseSize,omitempty"`
	SendSize     int    `json:"sendSize,omitempty"`
	PortsTaken   int    `json:"portsTaken,omitempty"` // local ports that were in use, TCP_CRR
	Lost         int    `json:"lost,omitempty"`       // datagrams without an answer, UDP_RR
	PathMTU      int    `json:"pathMTU,omitempty"`
	MSS          int    `json:"mss,omitempty"`
	Retransmits  int    `json:"retransmits"` // TCP segments that were sent again in this network namespace
	Congestion   string `json:"congestion,omitempty"`
	// Counters are the TCP counters of the network namespace that tell of trouble, as far as they grew.
	Counters map[string]int64 `json:"counters,omitempty"`
	// Noise is what went on on the machine during the test, the test included.
	Noise stats.Noise `json:"noise"`
	// ServerSaw is how many transactions or bytes the server counted.
	ServerSaw uint64 `json:"serverSaw"`
}

const (
	maxSize = 1 << 20 // bytes that a single call reads or writes
	// graceDefault is enough for a segment that is lost three times, and for what the send buffer holds
	// on a machine with a lot else to do.
	graceDefault = 10 * time.Second
	// patience is how long the server may take for its results. The original waits for 4 s after the
	// time of a TCP_CRR test is over, because it cannot know that the client is through.
	patience = 20 * time.Second
)

func (o *Options) complete() error {
	if o.Server.Port() == 0 {
		o.Server = netip.AddrPortFrom(o.Server.Addr(), DefaultPort)
	}
	if o.grace == 0 {
		o.grace = graceDefault
	}
	if o.RequestSize == 0 {
		o.RequestSize = 1
	}
	if o.ResponseSize == 0 {
		o.ResponseSize = 1
	}
	known := false
	for _, t := range Tests {
		known = known || t == o.Test
	}
	switch {
	case !known:
		return fmt.Errorf("test %q: use one of %v", o.Test, Tests)
	case !o.Server.Addr().IsValid():
		return errors.New("the address of the server is missing")
	case o.Length < time.Second || o.Length%time.Second != 0 || o.Length > maxLength:
		return fmt.Errorf("length %s: use whole seconds from 1s to %s", o.Length, maxLength)
	}
	for name, size := range map[string]int{"request": o.RequestSize, "response": o.ResponseSize, "send": o.SendSize} {
		if size < 0 || size > maxSize {
			return fmt.Errorf("%s size %d: use 1 to %d bytes", name, size, maxSize)
		}
	}
	if o.Test == UDPRR && max(o.RequestSize, o.ResponseSize) > maxDatagram {
		return fmt.Errorf("a datagram takes %d bytes, not %d", maxDatagram, max(o.RequestSize, o.ResponseSize))
	}
	if len(o.Congestion) >= congestionLen {
		return fmt.Errorf("congestion control %q: the name may have up to %d letters", o.Congestion, congestionLen-1)
	}
	return nil
}

func (o *Options) request() Request {
	r := o.Test.request()
	r.BindCPU = int32(o.ServerCPU)
	r.Length = int32(o.Length / time.Second)
	r.IPv6 = o.Server.Addr().Unmap().Is6()
	r.DataPort = o.DataPort
	r.Congestion = o.Congestion
	switch {
	case o.Test.Transactions():
		r.RequestSize, r.ResponseSize = int32(o.RequestSize), int32(o.ResponseSize)
	case o.Test == TCPMaerts && o.SendSize > 0:
		r.SendSize = int32(o.SendSize)
	}
	return r
}

// Measure runs one test against a server.
func Measure(ctx context.Context, o Options) (Result, error) {
	if err := o.complete(); err != nil {
		return Result{}, err
	}
	if o.Settle > 0 {
		select {
		case <-time.After(o.Settle):
		case <-ctx.Done():
			return Result{}, context.Cause(ctx)
		}
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", o.Server.String())
	if err != nil {
		return Result{}, fmt.Errorf("control connection: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	res, err := o.measure(ctx, conn)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return Result{}, fmt.Errorf("%s with %s: %w", o.Test, o.Server, err)
	}
	// The original ends a session like this: half a close, and the wait for the server's.
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
		_ = tcp.SetReadDeadline(time.Now().Add(time.Second))
		_, _ = io.Copy(io.Discard, tcp) // only the end of it matters, and that only to the server
	}
	return res, nil
}

func (o *Options) measure(ctx context.Context, conn net.Conn) (Result, error) {
	var m message
	if o.Passphrase != "" {
		m.head(KindPassphrase, 0)
		copy(m[dataAt:MessageSize-1], o.Passphrase)
		if err := writeMessage(conn, &m); err != nil {
			return Result{}, fmt.Errorf("passphrase: %w", err)
		}
	}
	req := o.request()
	req.marshal(&m)
	if err := writeMessage(conn, &m); err != nil {
		return Result{}, fmt.Errorf("request: %w", err)
	}
	answer, err := readMessage(conn, time.Now().Add(patience))
	if err != nil {
		return Result{}, fmt.Errorf("response of the server: %w", err)
	}
	resp, err := parseResponse(answer)
	if err != nil {
		return Result{}, err
	}
	if resp.Errno != 0 {
		return Result{}, fmt.Errorf("the server refuses the test: %w", unix.Errno(resp.Errno))
	}

	c := &client{o: o, cable: newCable()}
	c.server = addressOf(netip.AddrPortFrom(o.Server.Addr().Unmap(), resp.DataPort))
	c.settings = settings{sendBuffer: -1, recvBuffer: -1, priority: -1, tos: -1, congestion: o.Congestion}
	defer context.AfterFunc(ctx, c.cable.cut)()
	done, err := startThread(o.CPU, c.run)
	if err == nil {
		err = <-done
	}
	if err != nil {
		return Result{}, err
	}
	end, err := readMessage(conn, time.Now().Add(patience))
	if err != nil {
		return Result{}, fmt.Errorf("results of the server: %w", err)
	}
	saw := parseResults(end)
	if saw.Errno != 0 {
		return Result{}, fmt.Errorf("the server failed during the test: %w", unix.Errno(saw.Errno))
	}
	return c.result(&saw), nil
}

// client is one test while it runs. Its thread alone touches it.
type client struct {
	o        *Options
	server   address
	settings settings
	cable    *cable

	fd        int
	out, in   []byte
	local     address
	port      uint16
	latencies []int64 // ns
	elapsed   time.Duration
	bytes     uint64
	taken     int
	lost      int
	sendSize  int
	seen      connection
	counters  map[string]int64
	noise     stats.Noise
}

// Local ports that TCP_CRR goes round in, as netperf does.
const (
	firstPort = 5000
	lastPort  = 65535
)

// Latencies up to this rate, 1/s, and up to this number are kept without an allocation in the middle
// of a test.
const (
	expectedRate   = 250_000
	expectedNumber = 8 << 20
)

func (c *client) run() error {
	c.in = make([]byte, max(c.o.ResponseSize, 64<<10))
	c.out = make([]byte, max(c.o.RequestSize, 1))
	c.local.len = c.server.len
	c.local.raw[0], c.local.raw[1] = c.server.raw[0], c.server.raw[1] // the family, any address, port 0
	c.port = uint16(firstPort + rand.IntN(lastPort-firstPort+1))
	if c.o.Test.Transactions() {
		c.latencies = make([]int64, min(int(c.o.Length/time.Second)*expectedRate, expectedNumber))
		for i := 0; i < len(c.latencies); i += 512 {
			c.latencies[i] = 1 // the memory is there before the clock runs
		}
		c.latencies = c.latencies[:0]
	}
	before, err := readCounters()
	if err != nil {
		return err
	}
	from, err := stats.ReadClock()
	if err != nil {
		return err
	}
	late := time.AfterFunc(c.o.Length+c.o.grace, c.cable.cut)
	defer late.Stop()
	switch c.o.Test {
	case TCPRR:
		err = c.withConnection(func() error { return c.transactions(c.exchange) })
	case UDPRR:
		err = c.datagrams()
	case TCPCRR:
		c.in = c.in[:max(c.o.ResponseSize, 1)]
		err = c.transactions(c.connectExchange)
	case TCPStream:
		err = c.withConnection(c.stream)
	case TCPMaerts:
		err = c.withConnection(c.receive)
	}
	if c.cable.isCut() {
		return fmt.Errorf("no end within %s after its time: stuck after %d transactions and %d bytes", c.o.grace, len(c.latencies), c.bytes)
	}
	if err != nil {
		return err
	}
	to, err := stats.ReadClock()
	if err != nil {
		return err
	}
	c.noise = from.To(to)
	after, err := readCounters()
	c.counters = after.since(before)
	return err
}

// transactions repeats step until the time is over. Each latency runs from the end of the last one,
// so their sum is the time of the test; there is one look at the clock for each.
func (c *client) transactions(step func() error) error {
	start, last := time.Now(), time.Duration(0)
	for last < c.o.Length {
		if err := step(); err != nil {
			return err
		}
		now := time.Since(start)
		c.latencies = append(c.latencies, int64(now-last))
		last = now
	}
	c.elapsed = last
	return nil
}

var errClosed = errors.New("the server closed the connection in the middle of a transaction")

// exchange is a transaction on the open connection.
func (c *client) exchange() error {
	if _, e := send(c.fd, c.out); e != 0 {
		return sysError("send", e)
	}
	n, e := recvFull(c.fd, c.in[:c.o.ResponseSize])
	if e != 0 {
		return sysError("recv", e)
	}
	if n < c.o.ResponseSize {
		return errClosed
	}
	return nil
}

// connectExchange is a transaction with a connection of its own: from a new local port, up to and
// with the server's close.
func (c *client) connectExchange() error {
	for {
		c.nextPort()
		fd, _, _, e := openSocket(&c.local, false, &c.settings)
		if e == 0 {
			c.fd = fd
			c.cable.hold(fd)
			if e = connect(fd, &c.server); e == 0 {
				break
			}
			c.drop()
		}
		if e != unix.EADDRINUSE && e != unix.EADDRNOTAVAIL {
			return sysError("connect", e)
		}
		if c.taken++; c.taken > 10*(lastPort-firstPort) {
			return sysError("bind", e)
		}
	}
	err := c.exchange()
	if err == nil {
		switch n, e := recv(c.fd, c.in); {
		case e != 0:
			err = sysError("recv", e)
		case n > 0:
			err = errors.New("the server sends more than the response")
		}
	}
	c.drop()
	return err
}

func (c *client) nextPort() {
	for {
		if c.port == lastPort {
			c.port = firstPort
		} else {
			c.port++
		}
		if c.port != c.server.port() {
			break
		}
	}
	c.local.setPort(c.port)
}

func (c *client) drop() {
	c.cable.hold(-1)
	closeFD(c.fd)
	c.fd = -1
}

// withConnection runs one test on one connection, and ends it as the server expects: half a close,
// then the server's.
func (c *client) withConnection(test func() error) error {
	fd, sendBuffer, _, e := openSocket(&c.local, false, &c.settings)
	if e != 0 {
		return sysError("open a socket", e)
	}
	c.fd = fd
	c.cable.hold(fd)
	defer c.drop()
	if c.sendSize = c.o.SendSize; c.sendSize == 0 {
		c.sendSize = min(int(sendBuffer), maxSize)
	}
	if e := connect(fd, &c.server); e != 0 {
		return sysError("connect", e)
	}
	if local, e := localAddress(fd); e == 0 {
		c.local = local
	}
	err := test()
	c.seen = describe(fd)
	if err != nil {
		return err
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil && !errors.Is(err, unix.ENOTCONN) {
		return fmt.Errorf("shutdown: %w", err)
	}
	if n, e := recv(fd, c.in); e != 0 && e != unix.ECONNRESET {
		return sysError("recv", e)
	} else if n > 0 {
		return errors.New("the server sends after the end of the test")
	}
	return nil
}

// stream sends until the time is over, and waits until the server has read it all.
func (c *client) stream() error {
	out := make([]byte, c.sendSize)
	start := time.Now()
	for time.Since(start) < c.o.Length {
		n, e := send(c.fd, out)
		if e != 0 {
			return sysError("send", e)
		}
		c.bytes += uint64(n)
	}
	if err := unix.Shutdown(c.fd, unix.SHUT_WR); err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	n, e := recv(c.fd, c.in)
	c.elapsed = time.Since(start)
	if e != 0 {
		return sysError("recv", e)
	}
	if n > 0 {
		return errors.New("the server sends in a test in which it only receives")
	}
	return nil
}

// receive reads until the server is through.
func (c *client) receive() error {
	start := time.Now()
	for {
		n, e := recv(c.fd, c.in)
		c.elapsed = time.Since(start)
		// The original may reset the connection once its time is over.
		if e == unix.ECONNRESET && c.elapsed >= c.o.Length {
			return nil
		}
		if e != 0 {
			return sysError("recv", e)
		}
		if n == 0 {
			return nil
		}
		c.bytes += uint64(n)
	}
}

// maxDatagram is what fits into one over either family, as netperf has it.
const maxDatagram = 1<<16 - 1 - 28

// answerLimit is how long the answer to a datagram may take before another is sent.
const answerLimit = time.Second

// datagrams runs UDP_RR. Three empty datagrams tell the server that it is over.
func (c *client) datagrams() error {
	fd, _, _, e := openSocket(&c.local, true, &c.settings)
	if e != 0 {
		return sysError("open a socket", e)
	}
	c.fd = fd
	c.cable.hold(fd)
	defer c.drop()
	limit := unix.NsecToTimeval(answerLimit.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return fmt.Errorf("limit the wait for answers: %w", err)
	}
	err := c.transactions(c.datagram)
	if local, e := localAddress(fd); e == 0 {
		c.local = local
	}
	for range 3 {
		_, _ = sendTo(fd, nil, &c.server) // the server ends by itself when all of them are lost
	}
	return err
}

func (c *client) datagram() error {
	for {
		if _, e := sendTo(c.fd, c.out, &c.server); e != 0 {
			return sysError("sendto", e)
		}
		_, e := recv(c.fd, c.in)
		switch {
		case e == unix.EAGAIN && !c.cable.isCut():
			c.lost++
		case e != 0:
			return sysError("recv", e)
		case c.cable.isCut():
			return errClosed
		default:
			return nil
		}
	}
}

func (c *client) result(saw *Results) Result {
	r := Result{
		Test: c.o.Test, CPU: c.o.CPU, ServerCPU: c.o.ServerCPU, Seconds: c.elapsed.Seconds(),
		Server:     netip.AddrPortFrom(c.server.ip(), c.server.port()),
		Client:     netip.AddrPortFrom(c.local.ip(), c.local.port()),
		PortsTaken: c.taken, Lost: c.lost, PathMTU: c.seen.MTU, MSS: c.seen.MSS, Congestion: c.seen.Congestion,
		Retransmits: int(c.counters["RetransSegs"]), Counters: c.counters, Noise: c.noise,
	}
	if c.o.Test.Transactions() {
		r.RequestSize, r.ResponseSize = c.o.RequestSize, c.o.ResponseSize
		r.Transactions = len(c.latencies)
		r.Rate = float64(r.Transactions) / r.Seconds
		r.RTLatency = 1e6 * r.Seconds / float64(r.Transactions)
		s := stats.Summarize(c.latencies)
		r.Latency = &s
		r.ServerSaw = uint64(saw.Transactions)
		return r
	}
	r.SendSize, r.Bytes, r.ServerSaw = c.sendSize, c.bytes, saw.BytesSent
	if c.o.Test == TCPStream {
		// What counts is what has arrived.
		r.Bytes, r.ServerSaw = saw.BytesReceived, saw.BytesReceived
	}
	r.Throughput = float64(r.Bytes) * 8 / 1e6 / r.Seconds
	return r
}
