// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// limit ends a test that hangs. Segments get lost on the loopback too, when a machine has too much to do.
const limit = time.Minute

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server on a free port of an address until the test is over.
func serve(t *testing.T, s *Server, host string) netip.AddrPort {
	t.Helper()
	s.Listen = net.JoinHostPort(host, "0")
	ctx, cancel := context.WithCancel(t.Context())
	at, ended := make(chan net.Addr, 1), make(chan error, 1)
	go func() { ended <- s.Run(ctx, func(a net.Addr) { at <- a }) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("server: %v", err)
			}
		case <-time.After(limit):
			t.Error("the server does not end")
		}
	})
	select {
	case a := <-at:
		return netip.MustParseAddrPort(a.String())
	case err := <-ended:
		ended <- nil
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Skipf("this machine has no address %s", host)
		}
		t.Fatal(err)
	}
	panic("unreachable")
}

// plausible checks what must hold for the result of any test that took a second.
func plausible(t *testing.T, r Result) {
	t.Helper()
	if r.Seconds < 0.9 || r.Seconds > 30 {
		t.Errorf("took %v s", r.Seconds)
	}
	if r.LocalCPU.Count == 0 || r.LocalDemand <= 0 || r.ThreadDemand <= 0 {
		t.Errorf("processor time: %+v, %v us, of the thread %v us", r.LocalCPU, r.LocalDemand, r.ThreadDemand)
	}
	if !r.Test.Transactions() {
		if r.Bytes == 0 || r.Throughput <= 0 || r.Latency != nil {
			t.Errorf("%+v", r)
		}
		return
	}
	l := r.Latency
	if r.Transactions == 0 || l == nil || l.Count != r.Transactions {
		t.Fatalf("%d transactions, latencies %+v", r.Transactions, l)
	}
	if l.Min <= 0 || l.Min > l.P50 || l.P50 > l.P90 || l.P90 > l.P99 || l.P99 > l.P999 || l.P999 > l.Max {
		t.Errorf("percentiles are out of order: %+v", l)
	}
	// The latencies fill the time of the test, so their mean is netperf's RT_LATENCY.
	if d := r.RTLatency/l.Mean - 1; d < -1e-6 || d > 1e-6 {
		t.Errorf("RT_LATENCY %v, mean %v", r.RTLatency, l.Mean)
	}
}

// TestStreamByCount sends a buffer that is far larger than the count, and than what the server reads at once:
// all of it arrives, and the connection ends in order.
func TestStreamByCount(t *testing.T) {
	addr := serve(t, &Server{}, "127.0.0.1")
	const size = maxSize
	r, err := Measure(t.Context(), Options{Test: TCPStream, Server: addr, Count: 1, SendSize: size, RecvSize: 1000, CPU: -1, ServerCPU: -1})
	if err != nil {
		t.Fatal(err)
	}
	if r.Bytes != size || r.ServerSaw != size {
		t.Errorf("%d bytes, the server saw %d: want all %d", r.Bytes, r.ServerSaw, size)
	}
}

func TestAll(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		addr := serve(t, &Server{}, host)
		for _, test := range Tests {
			t.Run(host+" "+string(test), func(t *testing.T) {
				t.Parallel()
				r, err := Measure(t.Context(), Options{
					Test: test, Server: addr, Length: time.Second, CPU: 0, ServerCPU: 0, RequestSize: 3, ResponseSize: 5,
				})
				if err != nil {
					t.Fatal(err)
				}
				plausible(t, r)
				if r.Server.Addr() != addr.Addr() || r.Server.Port() == addr.Port() || r.Client.Port() == 0 {
					t.Errorf("between %s and %s", r.Client, r.Server)
				}
				switch {
				case test == UDPRR:
					if r.ServerSaw < uint64(r.Transactions) {
						t.Errorf("%d transactions, the server saw %d", r.Transactions, r.ServerSaw)
					}
				case test.Transactions():
					if r.ServerSaw != uint64(r.Transactions) {
						t.Errorf("%d transactions, the server saw %d", r.Transactions, r.ServerSaw)
					}
				case r.ServerSaw != r.Bytes:
					t.Errorf("%d bytes, the server saw %d", r.Bytes, r.ServerSaw)
				}
			})
		}
	}
}

// TestSession runs two tests on one control connection and meets, after the first, a data port that
// still accepts: a client that is stuck in a lost SYN depends on it.
func TestSession(t *testing.T) {
	addr := serve(t, &Server{}, "127.0.0.1")
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 2 {
		r := TCPCRR.request()
		r.RequestSize, r.ResponseSize, r.Length = 1, 1, 1
		var m message
		r.marshal(&m)
		if err := writeMessage(conn, &m); err != nil {
			t.Fatal(err)
		}
		answer, err := readMessage(conn, time.Now().Add(limit))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := parseResponse(answer)
		if err != nil || resp.Errno != 0 {
			t.Fatalf("%+v, %v", resp, err)
		}
		transact := func() {
			t.Helper()
			data, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(resp.DataPort))))
			if err != nil {
				t.Fatal(err)
			}
			defer data.Close()
			data.SetDeadline(time.Now().Add(limit))
			data.Write([]byte{1})
			if b, err := io.ReadAll(data); err != nil || len(b) != 1 {
				t.Fatalf("%d bytes, %v", len(b), err)
			}
		}
		transact()
		end, err := readMessage(conn, time.Now().Add(limit))
		if err != nil {
			t.Fatal(err)
		}
		if res := parseResults(end); res.Transactions != 1 || res.BytesReceived != 1 || res.BytesSent != 1 {
			t.Errorf("%+v", res)
		}
		transact()
	}
}

// TestCount ends a test by a number of transactions, as `netperf -l -1000` asks.
func TestCount(t *testing.T) {
	addr := serve(t, &Server{}, "127.0.0.1")
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := TCPRR.request()
	r.RequestSize, r.ResponseSize, r.Length = 2, 2, -3
	var m message
	r.marshal(&m)
	writeMessage(conn, &m)
	answer, err := readMessage(conn, time.Now().Add(limit))
	if err != nil {
		t.Fatal(err)
	}
	resp, _ := parseResponse(answer)
	data, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(resp.DataPort))))
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	data.SetDeadline(time.Now().Add(limit))
	data.Write([]byte("aabbcc"))
	if b, err := io.ReadAll(data); err != nil || len(b) != 6 {
		t.Errorf("%d bytes came back, %v", len(b), err)
	}
	end, err := readMessage(conn, time.Now().Add(limit))
	if err != nil {
		t.Fatal(err)
	}
	if res := parseResults(end); res.Transactions != 3 {
		t.Errorf("%+v", res)
	}
}

type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// TestRefusals says things to a server that it must not do.
func TestRefusals(t *testing.T) {
	request := func(f func(*Request)) message {
		r := TCPRR.request()
		r.RequestSize, r.ResponseSize, r.Length = 1, 1, 1
		f(&r)
		var m message
		r.marshal(&m)
		return m
	}
	var unknown message
	unknown.head(300, -1)
	for name, c := range map[string]struct {
		m     message
		errno int32
		log   string
	}{
		"classic test":   {unknown, errUnknownRequest, "only the omni test"},
		"huge response":  {request(func(r *Request) { r.ResponseSize = 2 << 20 }), int32(syscall.EINVAL), "at most 1048576 bytes"},
		"huge datagram":  {request(func(r *Request) { r.Datagram, r.RequestSize = true, 70000 }), int32(syscall.EINVAL), "at most 65507 bytes"},
		"no length":      {request(func(r *Request) { r.Length = 0 }), int32(syscall.EINVAL), "length 0"},
		"a day":          {request(func(r *Request) { r.Length = 86400 }), int32(syscall.EINVAL), "length 86400"},
		"no processor":   {request(func(r *Request) { r.BindCPU = 1000 }), int32(syscall.EINVAL), "bind to processor 1000"},
		"foreign addr":   {request(func(r *Request) { r.ServerAddr = netip.MustParseAddr("192.0.2.1") }), int32(syscall.EADDRNOTAVAIL), "192.0.2.1"},
		"bad congestion": {request(func(r *Request) { r.Congestion = "none" }), int32(syscall.ENOENT), "data socket"},
	} {
		t.Run(name, func(t *testing.T) {
			var log lines
			addr := serve(t, &Server{Log: slog.New(slog.NewTextHandler(&log, nil))}, "127.0.0.1")
			conn, err := net.Dial("tcp", addr.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			writeMessage(conn, &c.m)
			reply, err := readMessage(conn, time.Now().Add(limit))
			if err != nil {
				t.Fatal(err)
			}
			if reply.second() != c.errno {
				t.Errorf("error %d, want %d", reply.second(), c.errno)
			}
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("the server does not end the session: %v", err)
			}
			if !strings.Contains(log.String(), c.log) {
				t.Errorf("the log lacks %q:\n%s", c.log, log.String())
			}
		})
	}
}

func TestPassphrase(t *testing.T) {
	addr := serve(t, &Server{Passphrase: "open"}, "127.0.0.1")
	o := Options{Test: TCPRR, Server: addr, Length: time.Second, CPU: -1, ServerCPU: -1}
	for _, wrong := range []string{"", "ope", "opener"} {
		o.Passphrase = wrong
		if _, err := Measure(t.Context(), o); err == nil {
			t.Errorf("the passphrase %q opens the server", wrong)
		}
	}
	o.Passphrase = "open"
	if _, err := Measure(t.Context(), o); err != nil {
		t.Error(err)
	}
}

// TestClientGone leaves the server alone in the middle of a test that has no end.
func TestClientGone(t *testing.T) {
	var log lines
	addr := serve(t, &Server{Log: slog.New(slog.NewTextHandler(&log, nil))}, "127.0.0.1")
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	r := TCPCRR.request()
	r.RequestSize, r.ResponseSize, r.Length = 1, 1, -1000
	var m message
	r.marshal(&m)
	writeMessage(conn, &m)
	answer, err := readMessage(conn, time.Now().Add(limit))
	if err != nil {
		t.Fatal(err)
	}
	resp, _ := parseResponse(answer)
	conn.Close()
	port := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(resp.DataPort)))
	for deadline := time.Now().Add(limit); ; {
		c, err := net.Dial("tcp", port)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if err == nil {
			c.SetDeadline(time.Now().Add(limit))
			io.Copy(io.Discard, c) // until the server closes it
			c.Close()
		}
		if time.Now().After(deadline) {
			t.Fatal("the data port is open although the client is gone")
		}
	}
}

// fake is a server that answers the request with resp and then does what f says.
func fake(t *testing.T, f func(conn net.Conn, data net.Listener)) netip.AddrPort {
	t.Helper()
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	data, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := control.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := readMessage(conn, time.Now().Add(limit)); err != nil {
			return
		}
		f(conn, data)
	}()
	t.Cleanup(func() { control.Close(); data.Close(); <-done })
	return netip.MustParseAddrPort(control.Addr().String())
}

func answerWith(conn net.Conn, data net.Listener, errno int32) {
	var m message
	(&Response{Errno: errno, DataPort: netip.MustParseAddrPort(data.Addr().String()).Port()}).marshal(&m)
	writeMessage(conn, &m)
}

func TestServerFails(t *testing.T) {
	for name, c := range map[string]struct {
		test   Test
		server func(conn net.Conn, data net.Listener)
		want   string
	}{
		"refuses":      {TCPRR, func(c net.Conn, d net.Listener) { answerWith(c, d, int32(syscall.EADDRINUSE)) }, "refuses the test: address already in use"},
		"hangs up":     {TCPRR, func(net.Conn, net.Listener) {}, "response of the server: EOF"},
		"old":          {TCPRR, func(c net.Conn, _ net.Listener) { c.Write(make([]byte, 256)) }, "response of the server"},
		"wrong kind":   {TCPRR, func(c net.Conn, _ net.Listener) { writeMessage(c, &message{}) }, "not the response 98"},
		"no data port": {TCPRR, func(c net.Conn, d net.Listener) { answerWith(c, d, 0); d.Close() }, "connect"},
		"closes data": {TCPRR, func(c net.Conn, d net.Listener) {
			answerWith(c, d, 0)
			if data, err := d.Accept(); err == nil {
				data.Read(make([]byte, 1))
				data.Close()
			}
		}, "in the middle of a transaction"},
		"says too much": {TCPCRR, func(c net.Conn, d net.Listener) {
			answerWith(c, d, 0)
			if data, err := d.Accept(); err == nil {
				data.Read(make([]byte, 1))
				data.Write([]byte("ab"))
				data.Close()
			}
		}, "more than the response"},
		"never answers": {TCPRR, func(c net.Conn, d net.Listener) {
			answerWith(c, d, 0)
			if data, err := d.Accept(); err == nil {
				io.Copy(io.Discard, data)
				data.Close()
			}
		}, "no end within 1s after its time: stuck after 0 transactions"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Measure(t.Context(), Options{Test: c.test, Server: fake(t, c.server), Length: time.Second, CPU: -1, ServerCPU: -1, grace: time.Second})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	addr := serve(t, &Server{}, "127.0.0.1")
	for _, test := range Tests {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		start := time.Now()
		_, err := Measure(ctx, Options{Test: test, Server: addr, Length: 30 * time.Second, CPU: -1, ServerCPU: -1})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 20*time.Second {
			t.Errorf("%s: %v after %s", test, err, time.Since(start))
		}
		cancel()
	}
}

func TestBadOptions(t *testing.T) {
	good := Options{Test: TCPRR, Server: netip.MustParseAddrPort("127.0.0.1:1"), Length: time.Second}
	for want, f := range map[string]func(*Options){
		`unknown test "RR"`:            func(o *Options) { o.Test = "RR" },
		"address of the server":        func(o *Options) { o.Server = netip.AddrPort{} },
		"whole seconds":                func(o *Options) { o.Length = 1500 * time.Millisecond },
		"request size 2097152":         func(o *Options) { o.RequestSize = 2 << 20 },
		"send size -1":                 func(o *Options) { o.SendSize = -1 },
		"a datagram takes 65507 bytes": func(o *Options) { o.Test, o.ResponseSize = UDPRR, 65508 },
		"up to 15 letters":             func(o *Options) { o.Congestion = "0123456789abcdef" },
	} {
		o := good
		f(&o)
		if _, err := Measure(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

// allocations is the number of objects that this process has allocated.
func allocations() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:objects"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// dialed is a client that has agreed on a test with a server of its own, and has no connection for it yet.
func dialed(t *testing.T, test Test, host string) *client {
	t.Helper()
	addr := serve(t, &Server{}, host)
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	o := Options{Test: test, Server: addr, Length: 60 * time.Second, ServerCPU: -1, RequestSize: 1, ResponseSize: 1, Congestion: "reno"}
	r := o.request()
	var m message
	r.marshal(&m)
	writeMessage(conn, &m)
	answer, err := readMessage(conn, time.Now().Add(limit))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := parseResponse(answer)
	if err != nil || resp.Errno != 0 {
		t.Fatalf("%+v, %v", resp, err)
	}
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	c := &client{o: &o, cable: newCable(), in: make([]byte, 1), out: make([]byte, 1), port: firstPort}
	c.server = addressOf(netip.AddrPortFrom(addr.Addr(), resp.DataPort))
	c.settings = settings{sendBuffer: -1, recvBuffer: -1, priority: -1, tos: -1, congestion: "reno"}
	c.local.len = c.server.len
	c.local.raw[0], c.local.raw[1] = c.server.raw[0], c.server.raw[1]
	return c
}

// TestNoAllocations holds the transactions to not allocating: a garbage collection in the middle of
// a test would be measured.
func TestNoAllocations(t *testing.T) {
	for _, test := range []Test{TCPRR, TCPCRR, UDPRR} {
		for _, host := range []string{"127.0.0.1", "::1"} {
			t.Run(string(test)+" "+host, func(t *testing.T) {
				c := dialed(t, test, host)
				var err error
				step := map[Test]func() error{TCPRR: c.exchange, TCPCRR: c.connectExchange, UDPRR: c.datagram}[test]
				// Nothing that stops the world may be used here, so some allocations are counted late: up to
				// a few hundred of each size.
				const steps = 20000
				measure := func() error {
					before := allocations()
					for range steps {
						if err := step(); err != nil {
							return err
						}
					}
					if n := allocations() - before; n > steps/4 {
						t.Errorf("%d allocations in %d transactions, client and server together", n, steps)
					}
					return nil
				}
				switch test {
				case TCPRR:
					err = c.withConnection(measure)
				case UDPRR:
					fd, _, _, e := openSocket(&c.local, true, &c.settings)
					if e != 0 {
						t.Fatal(e)
					}
					c.fd = fd
					err = measure()
					c.drop()
				default:
					err = measure()
				}
				if err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// TestPortsThatOthersKeep: local ports that the client may not have are passed over like those in use.
func TestPortsThatOthersKeep(t *testing.T) {
	c := dialed(t, TCPCRR, "127.0.0.1")
	ended := make(chan error)
	go func() {
		runtime.LockOSThread() // it ends with the thread, whose capabilities are not those of others
		ended <- func() error {
			head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var caps [2]unix.CapUserData
			if err := unix.Capget(&head, &caps[0]); err != nil {
				return err
			}
			caps[0].Effective &^= 1 << unix.CAP_NET_BIND_SERVICE
			if err := unix.Capset(&head, &caps[0]); err != nil {
				return err
			}
			c.port = 1020
			return c.connectExchange()
		}()
	}()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if c.port < 1024 || c.taken < 3 {
		t.Errorf("port %d after %d that others keep", c.port, c.taken)
	}
}

// TestCounters reads lines as the kernel has them.
func TestCounters(t *testing.T) {
	before, after := counters{}, counters{}
	text := "Ip: Forwarding\nIp: 1\nTcp: RtoMax MaxConn RetransSegs\nTcp: 120000 -1 %d\nTcpExt: ListenDrops PruneCalled\nTcpExt: %d 9\n"
	if err := errors.Join(before.parse(fmt.Sprintf(text, 5, 1)), after.parse(fmt.Sprintf(text, 7, 1))); err != nil {
		t.Fatal(err)
	}
	if got := after.since(before); len(got) != 1 || got["RetransSegs"] != 2 {
		t.Errorf("grown: %v", got)
	}
	for _, bad := range []string{"Tcp: A B\nTcp: 1\n", "Tcp: A\nTcpExt: 1\n", "Tcp: A\nTcp: x\n"} {
		if err := (counters{}).parse(bad); err == nil {
			t.Errorf("%q is taken for counters", bad)
		}
	}
}

// TestOldClient has a netperf from before 2.6.0 for a client, whose messages are 256 bytes.
func TestOldClient(t *testing.T) {
	if testing.Short() {
		t.Skip("waits 10 s for the rest of a message")
	}
	var log lines
	addr := serve(t, &Server{Log: slog.New(slog.NewTextHandler(&log, nil))}, "127.0.0.1")
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	old := make([]byte, 256)
	binary.BigEndian.PutUint32(old, 13)
	conn.Write(old)
	conn.SetReadDeadline(time.Now().Add(3 * midMessage))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the server does not close: %v", err)
	}
	if !strings.Contains(log.String(), "netperf before 2.6.0") {
		t.Errorf("the log does not say why:\n%s", log.String())
	}
}

// TestOriginal runs every pair of our and the real client and server. LASH_NETPERF is a folder with
// netperf and netserver; without it they are looked for in PATH.
func TestOriginal(t *testing.T) {
	find := func(name string) string {
		if dir := os.Getenv("LASH_NETPERF"); dir != "" {
			return dir + "/" + name
		}
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("no %s in PATH (set LASH_NETPERF to the folder that has it): the messages are still tested against recorded ones", name)
		}
		return path
	}
	client, server := find("netperf"), find("netserver")
	for _, host := range []string{"127.0.0.1", "::1"} {
		ours := serve(t, &Server{}, host)
		free, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		real := netip.MustParseAddrPort(free.Addr().String())
		free.Close()
		cmd := exec.Command(server, "-D", "-L", host, "-p", strconv.Itoa(int(real.Port())))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		for deadline := time.Now().Add(limit); ; {
			c, err := net.Dial("tcp", real.String())
			if err == nil {
				c.Close()
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		for _, test := range Tests {
			for side, addr := range map[string]netip.AddrPort{"our server": ours, "netserver": real} {
				t.Run(fmt.Sprintf("%s %s netperf to %s", host, test, side), func(t *testing.T) {
					out, err := exec.Command(client, "-H", host, "-p", strconv.Itoa(int(addr.Port())), "-t", string(test), "-l", "1", "-P", "0",
						"--", "-o", "THROUGHPUT,RT_LATENCY,P50_LATENCY,ELAPSED_TIME").CombinedOutput()
					if err != nil {
						t.Fatalf("%v: %s", err, out)
					}
					fields := strings.Split(strings.TrimSpace(string(out)), ",")
					if v, err := strconv.ParseFloat(fields[0], 64); err != nil || v <= 0 || len(fields) != 4 {
						t.Errorf("netperf prints %q", out)
					}
					t.Logf("THROUGHPUT,RT_LATENCY,P50_LATENCY,ELAPSED_TIME %s", bytes.TrimSpace(out))
				})
				t.Run(fmt.Sprintf("%s %s ours to %s", host, test, side), func(t *testing.T) {
					r, err := Measure(t.Context(), Options{Test: test, Server: addr, Length: time.Second, CPU: -1, ServerCPU: -1})
					if err != nil {
						t.Fatal(err)
					}
					plausible(t, r)
					if r.Latency != nil {
						t.Logf("rate %.2f RT_LATENCY %.3f P50 %.1f", r.Rate, r.RTLatency, r.Latency.P50)
					} else {
						t.Logf("throughput %.2f", r.Throughput)
					}
				})
			}
		}
	}
}

// TestSessionsApart ends one test after the other beside one that goes on: ending one must not reach
// into another's connections, whose descriptors may have the numbers that it had.
func TestSessionsApart(t *testing.T) {
	addr := serve(t, &Server{}, "127.0.0.1")
	o := Options{Server: addr, Length: 2 * time.Second, CPU: -1, ServerCPU: -1}
	var long sync.WaitGroup
	for _, test := range []Test{TCPCRR, TCPCRR, TCPRR} {
		long.Go(func() {
			o := o
			o.Test = test
			if _, err := Measure(t.Context(), o); err != nil {
				t.Error(err)
			}
		})
	}
	for deadline := time.Now().Add(o.Length); time.Now().Before(deadline); {
		conn, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		r := TCPRR.request()
		r.RequestSize, r.ResponseSize, r.Length = 1, 1, -1
		var m message
		r.marshal(&m)
		writeMessage(conn, &m)
		answer, err := readMessage(conn, time.Now().Add(limit))
		if err != nil {
			t.Fatal(err)
		}
		resp, _ := parseResponse(answer)
		if data, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(resp.DataPort)))); err != nil {
			t.Error(err)
		} else {
			data.Write([]byte{1})
			data.Read(make([]byte, 1))
			data.Close()
		}
		if _, err := readMessage(conn, time.Now().Add(limit)); err != nil {
			t.Error(err)
		}
		conn.Close()
	}
	long.Wait()
}

// TestTooMany refuses the test that would be one too many for the process.
func TestTooMany(t *testing.T) {
	addr := serve(t, &Server{}, "127.0.0.1")
	ask := func() int32 {
		conn, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		r := TCPRR.request()
		r.RequestSize, r.ResponseSize, r.Length = 1, 1, 60
		var m message
		r.marshal(&m)
		writeMessage(conn, &m)
		answer, err := readMessage(conn, time.Now().Add(limit))
		if err != nil {
			t.Fatal(err)
		}
		return answer.second()
	}
	for range maxThreads {
		if errno := ask(); errno != 0 {
			t.Fatalf("refused with %d", errno)
		}
	}
	if errno := ask(); errno != int32(syscall.EBUSY) {
		t.Errorf("error %d, want %d", errno, int32(syscall.EBUSY))
	}
}
