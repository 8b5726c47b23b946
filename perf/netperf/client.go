// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
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
	// ConnectPort is the port that the client uses for the test whatever the server answers; 0 is the
	// answer. Behind a Service or any other translation the two differ.
	ConnectPort uint16
	// Length is how long to measure, in whole seconds: the protocol knows no others.
	Length time.Duration
	// Count, when it is not 0, ends the test after so many transactions or bytes, and Length is not used.
	Count int
	// Rate is how many transactions to begin in a second, whether the ones before are over or not; their
	// latencies then begin when they should have begun. 0 begins each when the one before is over.
	Rate float64
	// RequestSize and ResponseSize are the bytes of a transaction each way, 1 by default.
	RequestSize, ResponseSize int
	// SendSize is the bytes that a call sends in a one-way test, by default the socket's send buffer.
	// RecvSize is what a call of the receiver asks for, by default its receive buffer.
	SendSize, RecvSize int
	// SendBuffer and RecvBuffer are the sizes of the socket's buffers here, ServerSendBuffer and
	// ServerRecvBuffer there; 0 leaves them to the kernels.
	SendBuffer, RecvBuffer, ServerSendBuffer, ServerRecvBuffer int
	// NoDelay sets TCP_NODELAY on both sides.
	NoDelay bool
	// FirstPort and LastPort are the local ports that TCP_CRR goes round in, by default netperf's.
	FirstPort, LastPort uint16
	// Local is the address to send from, by default the kernel's choice.
	Local netip.Addr
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
	// Due is how many transactions should have begun at the rate that was asked for.
	Due int `json:"due,omitempty"`
	// RTLatency is netperf's RT_LATENCY: the time of the whole test divided by its transactions.
	RTLatency float64        `json:"rtLatency_us,omitempty"`
	Latency   *stats.Summary `json:"latency,omitempty"`

	Bytes      uint64  `json:"bytes,omitempty"` // that arrived, one-way tests
	Sent       uint64  `json:"sent,omitempty"`  // bytes that were sent, one-way tests
	Throughput float64 `json:"throughput_mbit,omitempty"`

	RequestSize  int `json:"requestSize,omitempty"`
	ResponseSize int `json:"responseSize,omitempty"`
	SendSize     int `json:"sendSize,omitempty"`
	RecvSize     int `json:"recvSize,omitempty"`
	PortsTaken   int `json:"portsTaken,omitempty"` // local ports that were in use, TCP_CRR
	// Errors counts the connections of TCP_CRR that failed, by what happened to them.
	Errors map[string]int `json:"errors,omitempty"`
	// Histogram is the latencies as an HdrHistogram in nanoseconds, in its own V2 encoding.
	Histogram   string `json:"histogram,omitempty"`
	Lost        int    `json:"lost,omitempty"` // datagrams without an answer, UDP_RR
	PathMTU     int    `json:"pathMTU,omitempty"`
	MSS         int    `json:"mss,omitempty"`
	Retransmits int    `json:"retransmits"` // TCP segments that were sent again in this network namespace
	Congestion  string `json:"congestion,omitempty"`
	// Counters are the TCP counters of the network namespace that tell of trouble, as far as they grew.
	Counters map[string]int64 `json:"counters,omitempty"`
	// Noise is what went on on the machine during the test, the test included; Before is what went on
	// while the client settled.
	Noise  stats.Noise  `json:"noise"`
	Before *stats.Noise `json:"noiseBefore,omitempty"`
	// LocalCPU and RemoteCPU are how busy the two machines were, the test included, and the demands the
	// microseconds of processor time that a transaction took there, or 1024 bytes of a one-way test.
	LocalCPU     stats.CPU `json:"localCPU"`
	RemoteCPU    stats.CPU `json:"remoteCPU"`
	LocalDemand  float64   `json:"localDemand_us"`
	RemoteDemand float64   `json:"remoteDemand_us"`
	// ThreadDemand is the part of it that the measuring thread took itself.
	ThreadDemand float64 `json:"threadDemand_us"`
	// ProcessDemand is the part of it that the measuring process took with all its threads and streams.
	ProcessDemand float64 `json:"processDemand_us"`
	Streams       int     `json:"streams,omitempty"` // that ran at the same time, when more than one
	// Socket buffers as they were at the end, and calls; SendCalls and RecvCalls are the client's.
	SendBuffer       int     `json:"sendBuffer,omitempty"`
	RecvBuffer       int     `json:"recvBuffer,omitempty"`
	ServerSendBuffer int     `json:"serverSendBuffer,omitempty"`
	ServerRecvBuffer int     `json:"serverRecvBuffer,omitempty"`
	SendCalls        int     `json:"sendCalls,omitempty"`
	RecvCalls        int     `json:"recvCalls,omitempty"`
	ServerSendCalls  int     `json:"serverSendCalls,omitempty"`
	ServerRecvCalls  int     `json:"serverRecvCalls,omitempty"`
	ServerRetrans    int     `json:"serverRetransmits"` // -1: not known
	ServerSeconds    float64 `json:"serverSeconds,omitempty"`
	ServerCongestion string  `json:"serverCongestion,omitempty"`
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
	if o.FirstPort == 0 && o.LastPort == 0 {
		o.FirstPort, o.LastPort = firstPort, lastPort
	}
	if _, err := ParseTest(string(o.Test)); err != nil {
		return err
	}
	switch {
	case !o.Server.Addr().IsValid():
		return errors.New("the address of the server is missing")
	case o.Count < 0 || o.Count > math.MaxInt32:
		return fmt.Errorf("count %d: use 1 to %d transactions or bytes", o.Count, math.MaxInt32)
	case o.Count == 0 && (o.Length < time.Second || o.Length%time.Second != 0 || o.Length > maxLength):
		return fmt.Errorf("length %s: use whole seconds from 1s to %s", o.Length, maxLength)
	case o.Rate < 0 || o.Rate > 1e6 || math.IsNaN(o.Rate):
		return fmt.Errorf("rate %v: use up to 1000000 transactions a second, or 0 for as fast as it goes", o.Rate)
	case o.Rate > 0 && !o.Test.Transactions():
		return fmt.Errorf("%s has no transactions that could have a rate", o.Test)
	case o.FirstPort == 0 || o.FirstPort >= o.LastPort:
		return fmt.Errorf("local ports %d to %d: the second has to be higher", o.FirstPort, o.LastPort)
	}
	for name, size := range map[string]int{
		"request": o.RequestSize, "response": o.ResponseSize, "send": o.SendSize, "receive": o.RecvSize,
	} {
		if size < 0 || size > maxSize {
			return fmt.Errorf("%s size %d: use 1 to %d bytes", name, size, maxSize)
		}
	}
	for name, size := range map[string]int{
		"send": o.SendBuffer, "receive": o.RecvBuffer, "server's send": o.ServerSendBuffer, "server's receive": o.ServerRecvBuffer,
	} {
		if size < 0 || size > math.MaxInt32/2 {
			return fmt.Errorf("%s buffer of %d bytes: use 0 (the kernel's) or more", name, size)
		}
	}
	if n := max(o.RequestSize, o.ResponseSize); o.Test == UDPRR && n > maxDatagram {
		return fmt.Errorf("a datagram takes %d bytes, not %d", maxDatagram, n)
	}
	if o.Test == UDPStream && o.SendSize > maxDatagram {
		return fmt.Errorf("a datagram takes %d bytes, not %d", maxDatagram, o.SendSize)
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
	if o.Count > 0 {
		r.Length = -int32(o.Count)
	}
	r.Flags |= FlagMeasureCPU
	if o.NoDelay {
		r.Flags |= FlagNoDelay
	}
	r.SendBuffer, r.RecvBuffer = orKernels(o.ServerSendBuffer), orKernels(o.ServerRecvBuffer)
	r.IPv6 = o.Server.Addr().Unmap().Is6()
	r.DataPort = o.DataPort
	r.Congestion = o.Congestion
	switch {
	case o.Test.Transactions():
		r.RequestSize, r.ResponseSize = int32(o.RequestSize), int32(o.ResponseSize)
	case o.Test == TCPMaerts && o.SendSize > 0:
		r.SendSize = int32(o.SendSize)
	case o.Test != TCPMaerts && o.RecvSize > 0:
		r.RecvSize = int32(o.RecvSize)
	}
	return r
}

// orKernels is a size on the wire and in settings, where -1 leaves it to the kernel.
func orKernels(size int) int32 {
	if size == 0 {
		return -1
	}
	return int32(size)
}

// most is how long the test may last when nothing goes wrong.
func (o *Options) most() time.Duration {
	if o.Count > 0 {
		return maxLength
	}
	return o.Length
}

// Measure runs one test against a server.
func Measure(ctx context.Context, o Options) (Result, error) {
	if err := o.complete(); err != nil {
		return Result{}, err
	}
	before, err := o.settle(ctx)
	if err != nil {
		return Result{}, err
	}
	d := net.Dialer{Timeout: dialLimit}
	if o.Local.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(o.Local, 0))
	}
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
	res.Before = before
	// The original ends a session like this: half a close, and the wait for the server's.
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
		_ = tcp.SetReadDeadline(time.Now().Add(time.Second))
		_, _ = io.Copy(io.Discard, tcp) // only the end of it matters, and that only to the server
	}
	return res, nil
}

// dialLimit is how long the control connection may take.
const dialLimit = 30 * time.Second

// settle waits, and tells what went on meanwhile.
func (o *Options) settle(ctx context.Context) (*stats.Noise, error) {
	if o.Settle <= 0 {
		return nil, nil
	}
	from, err := stats.ReadClock()
	if err != nil {
		return nil, err
	}
	select {
	case <-time.After(o.Settle):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	to, err := stats.ReadClock()
	noise := from.To(to)
	return &noise, err
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
	port := resp.DataPort
	if o.ConnectPort != 0 {
		port = o.ConnectPort
	}
	c.server = addressOf(netip.AddrPortFrom(o.Server.Addr().Unmap(), port))
	c.settings = settings{
		sendBuffer: orKernels(o.SendBuffer), recvBuffer: orKernels(o.RecvBuffer), noDelay: o.NoDelay, priority: -1, tos: -1, congestion: o.Congestion,
	}
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
	saw.parseCPU(end)
	return c.result(&saw, &resp)
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
	latencies *stats.Recorder
	elapsed   time.Duration
	bytes     uint64 // sent or received
	calls     int    // that moved them
	taken     int
	lost      int
	due       int
	errors    map[string]int
	sendSize  int
	seen      connection
	counters  map[string]int64
	noise     stats.Noise
	cpu       stats.CPU
	own       time.Duration // processor time of the measuring thread
	process   time.Duration // and of its whole process
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
	if c.o.Local.IsValid() {
		c.local = addressOf(netip.AddrPortFrom(c.o.Local, 0))
	} else {
		c.local.len = c.server.len
		c.local.raw[0], c.local.raw[1] = c.server.raw[0], c.server.raw[1] // the family, any address, port 0
	}
	c.port = uint16(int(c.o.FirstPort) + rand.IntN(int(c.o.LastPort)-int(c.o.FirstPort)+1))
	room := 0
	if c.o.Test.Transactions() {
		room = min(int(c.o.Length/time.Second)*expectedRate, expectedNumber)
		if c.o.Count > 0 {
			room = min(c.o.Count, expectedNumber)
		}
	}
	c.latencies, c.errors = stats.NewRecorder(room), map[string]int{}
	before, err := readCounters()
	if err != nil {
		return err
	}
	from, err := stats.ReadClock()
	if err != nil {
		return err
	}
	own, err := usedTime(unix.RUSAGE_THREAD)
	if err != nil {
		return err
	}
	process, err := usedTime(unix.RUSAGE_SELF)
	if err != nil {
		return err
	}
	late := time.AfterFunc(c.o.most()+c.o.grace, c.cable.cut)
	defer late.Stop()
	switch c.o.Test {
	case TCPRR:
		err = c.withConnection(func() error { return c.transactions(c.exchange) })
	case UDPRR:
		err = c.withDatagrams(func() error { return c.transactions(c.datagram) })
	case UDPStream:
		err = c.withDatagrams(c.streamDatagrams)
	case TCPCRR:
		c.in = c.in[:max(c.o.ResponseSize, 1)]
		err = c.transactions(c.connectExchange)
	case TCPStream:
		err = c.withConnection(c.stream)
	case TCPMaerts:
		err = c.withConnection(c.receive)
	}
	if c.cable.isCut() {
		return fmt.Errorf("no end within %s after its time: stuck after %d transactions and %d bytes", c.o.grace, c.latencies.Count(), c.bytes)
	}
	if err != nil {
		return err
	}
	to, err := stats.ReadClock()
	if err != nil {
		return err
	}
	c.noise, c.cpu = from.To(to), from.CPU(to)
	after, err := usedTime(unix.RUSAGE_THREAD)
	if err != nil {
		return err
	}
	c.own = after - own
	if after, err = usedTime(unix.RUSAGE_SELF); err != nil {
		return err
	}
	c.process = after - process
	return c.count(before)
}

func (c *client) count(before counters) error {
	after, err := readCounters()
	c.counters = after.since(before)
	return err
}

// maxFailures is how many connections of TCP_CRR may fail one after the other.
const maxFailures = 10

// transactions repeats step until the time is over, or the count is reached. Each latency runs from the
// end of the last one, so their sum is the time of the test; there is one look at the clock for each.
// At a rate it runs from the moment when the transaction was due.
func (c *client) transactions(step func() error) error {
	var gap time.Duration
	if c.o.Rate > 0 {
		gap = max(time.Duration(float64(time.Second)/c.o.Rate), 1)
	}
	start, last, due, failures := time.Now(), time.Duration(0), time.Duration(0), 0
	for number := 0; c.o.Count == 0 && last < c.o.Length || c.o.Count > 0 && c.latencies.Count() < c.o.Count; number++ {
		if gap > 0 {
			due = time.Duration(number) * gap
			if c.o.Count == 0 && due >= c.o.Length {
				break
			}
			pauseUntil(start, due)
		}
		err := step()
		now := time.Since(start)
		if err != nil {
			failures++
			if !c.tolerable(err) || failures >= maxFailures {
				return err
			}
			c.errors[err.Error()]++
			last, due = now, now
			continue
		}
		failures = 0
		c.latencies.Add(int64(now - due))
		last, due = now, now
	}
	c.elapsed = last
	if gap > 0 {
		if c.due = c.o.Count; c.due == 0 {
			c.due = int((c.o.Length + gap - 1) / gap)
		}
	}
	return nil
}

// tolerable says whether the test goes on, and counts, after an error: one of a connection's own, that
// the next connection may not meet.
func (c *client) tolerable(err error) bool {
	var e unix.Errno
	if c.o.Test != TCPCRR || c.cable.isCut() || !errors.As(err, &e) {
		return false
	}
	switch e {
	case unix.ECONNREFUSED, unix.ECONNRESET, unix.ETIMEDOUT, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EPIPE, unix.ECONNABORTED:
		return true
	}
	return false
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
		if e != 0 && !portRefused(e) {
			return sysError("bind", e)
		}
		if e == 0 {
			c.fd = fd
			c.cable.hold(fd)
			if e = connect(fd, &c.server); e == 0 {
				break
			}
			c.drop()
			if !portInUse(e) {
				return sysError("connect", e)
			}
		}
		if c.taken++; c.taken > 10*int(c.o.LastPort-c.o.FirstPort) {
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

func portInUse(e unix.Errno) bool { return e == unix.EADDRINUSE || e == unix.EADDRNOTAVAIL }

// portRefused says whether another port may do: this one is in use, or kept from this process, as NodePorts
// and ports below 1024 are.
func portRefused(e unix.Errno) bool { return portInUse(e) || e == unix.EPERM || e == unix.EACCES }

func (c *client) nextPort() {
	for {
		if c.port >= c.o.LastPort {
			c.port = c.o.FirstPort
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
	fd, sendBuffer, recvBuffer, e := openSocket(&c.local, false, &c.settings)
	if e != 0 {
		return sysError("open a socket", e)
	}
	c.fd = fd
	c.cable.hold(fd)
	defer c.drop()
	if c.sendSize = c.o.SendSize; c.sendSize == 0 {
		c.sendSize = min(int(sendBuffer), maxSize)
	}
	if c.o.Test == TCPMaerts {
		size := c.o.RecvSize
		if size == 0 {
			size = int(recvBuffer)
		}
		c.in = make([]byte, min(size, maxSize))
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
	over, start := alarm(c.o.Length)
	for c.moreToSend(over) {
		n, e := send(c.fd, out)
		if e != 0 {
			return sysError("send", e)
		}
		c.bytes += uint64(n)
		c.calls++
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
		c.calls++
	}
}

// moreToSend says whether a one-way test goes on.
func (c *client) moreToSend(over *atomic.Bool) bool {
	if c.o.Count > 0 {
		return c.bytes < uint64(c.o.Count)
	}
	return !over.Load()
}

// maxDatagram is what fits into one over either family, as netperf has it.
const maxDatagram = 1<<16 - 1 - 28

// answerLimit is how long the answer to a datagram may take before another is sent.
const answerLimit = time.Second

// withDatagrams runs a test over UDP. Three empty datagrams tell the server that it is over.
func (c *client) withDatagrams(test func() error) error {
	fd, sendBuffer, _, e := openSocket(&c.local, true, &c.settings)
	if e != 0 {
		return sysError("open a socket", e)
	}
	c.fd = fd
	c.cable.hold(fd)
	defer c.drop()
	if c.sendSize = c.o.SendSize; c.sendSize == 0 {
		c.sendSize = min(int(sendBuffer), maxDatagram)
	}
	limit := unix.NsecToTimeval(answerLimit.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return fmt.Errorf("limit the wait for answers: %w", err)
	}
	err := test()
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

// streamDatagrams sends until the time is over. The kernel may have no room for one now and then.
func (c *client) streamDatagrams() error {
	out := make([]byte, c.sendSize)
	over, start := alarm(c.o.Length)
	for c.moreToSend(over) && !c.cable.isCut() {
		n, e := sendTo(c.fd, out, &c.server)
		if e == unix.ENOBUFS || e == unix.EAGAIN {
			c.lost++
			continue
		}
		if e != 0 {
			return sysError("sendto", e)
		}
		c.bytes += uint64(n)
		c.calls++
	}
	c.elapsed = time.Since(start)
	return nil
}

func (c *client) result(saw *Results, resp *Response) (Result, error) {
	r := Result{
		Test: c.o.Test, CPU: c.o.CPU, ServerCPU: c.o.ServerCPU, Seconds: c.elapsed.Seconds(),
		Server:     netip.AddrPortFrom(c.server.ip(), c.server.port()),
		Client:     netip.AddrPortFrom(c.local.ip(), c.local.port()),
		PortsTaken: c.taken, Lost: c.lost, PathMTU: c.seen.MTU, MSS: c.seen.MSS, Congestion: c.seen.Congestion,
		Retransmits: int(c.counters["RetransSegs"]), Counters: c.counters, Noise: c.noise,
		LocalCPU: c.cpu, RemoteCPU: saw.CPU, SendBuffer: c.seen.SendBuffer, RecvBuffer: c.seen.RecvBuffer,
		ServerSendBuffer: int(saw.SendBuffer), ServerRecvBuffer: int(saw.RecvBuffer),
		ServerSendCalls: int(saw.SendCalls), ServerRecvCalls: int(saw.ReceiveCalls), ServerRetrans: int(saw.Retransmits),
		ServerSeconds: float64(saw.Elapsed), ServerCongestion: saw.Congestion,
	}
	if len(c.errors) > 0 {
		r.Errors = c.errors
	}
	units := float64(c.latencies.Count())
	if c.o.Test.Transactions() {
		if units == 0 {
			return r, fmt.Errorf("not one transaction in %.1f s", r.Seconds)
		}
		r.RequestSize, r.ResponseSize = c.o.RequestSize, c.o.ResponseSize
		r.Transactions, r.Due = c.latencies.Count(), c.due
		r.Rate = float64(r.Transactions) / r.Seconds
		r.RTLatency = 1e6 * r.Seconds / float64(r.Transactions)
		s, histogram, err := c.latencies.Summary()
		if err != nil {
			return r, err
		}
		r.Latency, r.Histogram = &s, histogram
		r.SendCalls, r.RecvCalls = r.Transactions, r.Transactions
		r.ServerSaw = uint64(saw.Transactions)
		if saw.SendCalls == 0 {
			r.ServerSendCalls, r.ServerRecvCalls = int(saw.Transactions), int(saw.Transactions)
		}
	} else {
		r.SendSize, r.Bytes, r.Sent, r.ServerSaw, r.RecvCalls = c.sendSize, c.bytes, saw.BytesSent, saw.BytesSent, c.calls
		if c.o.Test == TCPMaerts {
			r.SendSize, r.RecvSize = int(resp.SendSize), len(c.in)
		} else {
			r.RecvSize = int(resp.RecvSize)
			// What counts is what has arrived.
			r.Bytes, r.Sent, r.ServerSaw = saw.BytesReceived, c.bytes, saw.BytesReceived
			r.SendCalls, r.RecvCalls = c.calls, 0
		}
		r.Throughput = float64(r.Bytes) * 8 / 1e6 / r.Seconds
		units = float64(r.Bytes) / 1024
	}
	r.LocalDemand, r.RemoteDemand = r.LocalCPU.PerUnit(r.Seconds, units), r.RemoteCPU.PerUnit(r.Seconds, units)
	if units > 0 {
		r.ThreadDemand, r.ProcessDemand = c.own.Seconds()*1e6/units, c.process.Seconds()*1e6/units
	}
	return r, nil
}
