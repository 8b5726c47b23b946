// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"lash.internal/lash/perf/stats"
)

// netserver runs the command on a free port until the test is over.
func netserver(t *testing.T, args ...string) string {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(int(netip.MustParseAddrPort(free.Addr().String()).Port()))
	free.Close()
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- ServerCommand(ctx, append([]string{"-4", "-D", "-L", "127.0.0.1", "-p", port}, args...), in, io.Discard)
		in.Close()
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if _, err := out.Read(make([]byte, 200)); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, out)
	return port
}

// TestCommands runs the two commands as scripts run netperf's.
func TestCommands(t *testing.T) {
	port := netserver(t, "-Z", "open")
	run := func(args string) (string, error) {
		var out bytes.Buffer
		err := ClientCommand(t.Context(), append([]string{"-4", "-H127.0.0.1", "-p", port, "-Zopen"}, strings.Fields(args)...), &out, io.Discard)
		return out.String(), err
	}
	out, err := run("-t TCP_CRR -l -50 -P 0 -- -P ,0 -o rt_latency,THROUGHPUT_UNITS,REQUEST_SIZE -r 10,20")
	if f := strings.Split(strings.TrimSpace(out), ","); err != nil || len(f) != 3 || f[1] != "Trans/s" || f[2] != "10" {
		t.Errorf("%v: %q", err, out)
	}
	out, err = run("-t UDP_STREAM -l 1 -- -m 1000 -k LOCAL_SEND_SIZE,DIRECTION,rt_latency,DEST_PORT")
	if lines := strings.Split(out, "\n"); err != nil || !strings.HasPrefix(lines[0], "UDP_STREAM TEST to 127.0.0.1") ||
		strings.Join(lines[1:4], " ") != "LOCAL_SEND_SIZE=1000 DIRECTION=Send RT_LATENCY=-1.000" || !strings.HasPrefix(lines[4], "DEST_PORT=") {
		t.Errorf("%v: %q", err, out)
	}
	out, err = run("-t TCP_RR -l -10 -- -O rt_latency,throughput_units")
	if lines := strings.Split(out, "\n"); err != nil || len(lines) != 7 || !strings.HasPrefix(lines[1], "Round ") || !strings.HasPrefix(lines[4], "usec/tran") {
		t.Errorf("%v: %q", err, out)
	}
	out, err = run("-t TCP_STREAM -l -1000000 -P 0 -- -M 5000 -o REMOTE_RECV_SIZE,LOCAL_RECV_SIZE")
	if err != nil || strings.TrimSpace(out) != "5000,0" {
		t.Errorf("%v: %q, want what the server was asked to read at once", err, out)
	}
	out, err = run("-t TCP_MAERTS -l -1000000 -P 0 -- -M 5000 -o LOCAL_RECV_SIZE")
	if err != nil || strings.TrimSpace(out) != "5000" {
		t.Errorf("%v: %q, want what the client was asked to read at once", err, out)
	}
	out, err = run("-t TCP_STREAM -l -1000000 -c -C -P 0")
	if err != nil || len(strings.Fields(out)) != 23 {
		t.Errorf("%v: %q", err, out)
	}
	out, err = run("-t TCP_RR -l -100 -i 4,3 -I 95,90 -P 0 -- -k CONFIDENCE_LEVEL,CONFIDENCE_ITERATION,THROUGHPUT_CONFID")
	if err != nil || !strings.HasPrefix(out, "CONFIDENCE_LEVEL=95\nCONFIDENCE_ITERATION=") || strings.Contains(out, "ITERATION=1\n") {
		t.Errorf("%v: %q", err, out)
	}
}

func TestCommandMistakes(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	port := strconv.Itoa(int(netip.MustParseAddrPort(busy.Addr().String()).Port()))
	for args, want := range map[string]string{
		"netperf -t TCP_CC":                 `unknown test "TCP_CC": use one of TCP_RR, TCP_CRR`,
		"netperf -q":                        "unknown flag -q",
		"netperf -H":                        "flag -H needs a value",
		"netperf -l 0":                      "use seconds, or minus",
		"netperf -N":                        "-N is not supported",
		"netperf -F /etc/passwd":            "no file is read",
		"netperf -i 2":                      "iterations go from 3 to 30",
		"netperf -I 90":                     "95 or 99",
		"netperf -T x":                      "numbers of processors",
		"netperf -4 -H ::1":                 "not of the family",
		"netperf -p 0":                      "use 1 to 65535",
		"netperf -- -o rt_latency,speed":    `unknown output selector "speed"`,
		"netperf -- -P 1,99999":             "use a port from 0 to 65535",
		"netperf -- -r x":                   "one or two numbers",
		"netperf -- -p 10,70000":            "ports end at 65535",
		"netperf -- -p 20,10":               "the second has to be higher",
		"netperf -- -t omni":                "-t is not supported",
		"netperf -- more":                   `unexpected "more"`,
		"netperf -H 127.0.0.1 -p 1":         "connection refused",
		"netserver -x":                      "unknown flag -x",
		"netserver -p http":                 "use a port from 1 to 65535",
		"netserver more":                    "takes flags only",
		"netserver -L 127.0.0.1 -p " + port: "another program listens there",
	} {
		words := strings.Fields(args)
		command := map[string]func(context.Context, []string, io.Writer, io.Writer) error{"netperf": ClientCommand, "netserver": ServerCommand}[words[0]]
		if err := command(t.Context(), words[1:], io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

// TestHeadings compares every selector's heading with the original's.
func TestHeadings(t *testing.T) {
	dir := os.Getenv("LASH_NETPERF")
	if dir == "" {
		t.Skip("set LASH_NETPERF to a folder with netperf to compare headings with it")
	}
	addr := serve(t, &Server{}, "127.0.0.1")
	for _, s := range selectors {
		out, err := exec.Command(dir+"/netperf", "-H", "127.0.0.1", "-p", strconv.Itoa(int(addr.Port())), "-t", "TCP_RR", "-l", "-1",
			"--", "-o", s.name).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		lines := strings.Split(string(out), "\n")
		if got, want := strings.ReplaceAll(s.heading, "|", " "), lines[1]; got != want {
			t.Errorf("%s is headed %q, netperf's is %q", s.name, got, want)
		}
	}
}

func TestSelections(t *testing.T) {
	for _, test := range Tests {
		if s := DefaultSelection(test, true); len(s) != 1 || len(s[0]) < 20 {
			t.Errorf("%s has the selection %v", test, s)
		}
	}
	if s, err := ParseSelection("min_latency;P50_LATENCY,;max_latency"); err != nil || len(s) != 3 {
		t.Errorf("%v, %v", s, err)
	}
	for _, bad := range []string{"", "rt_latency;;a", "RT_LATENCY;RT_LATENCY;RT_LATENCY;RT_LATENCY;RT_LATENCY"} {
		if _, err := ParseSelection(bad); err == nil {
			t.Errorf("%q is a selection", bad)
		}
	}
	o := Outcome{
		Result:         Result{Test: TCPCRR, RTLatency: 68.5041, Rate: 14597.7, Transactions: 14598, Latency: &stats.Summary{P50: 55.9, Max: 1000.4, Mean: 68.456}},
		MeanThroughput: 14597.7, MeanSeconds: 1.00003, Confidence: single(),
	}
	s, err := ParseSelection("RT_LATENCY,P50_LATENCY,MAX_LATENCY,MEAN_LATENCY,THROUGHPUT,ELAPSED_TIME,CONFIDENCE_INTERVAL,LOCAL_TRANSPORT_RETRANS")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := s.Write(&out, CSV, false, &o); err != nil || out.String() != "68.504,55,1000,68.46,14597.70,1.00,-1.000000,-1\n" {
		t.Errorf("%v: %q", err, out.String())
	}
}

// TestConfidence checks the width against a calculation by hand: mean 100, population variance 2/3.
func TestConfidence(t *testing.T) {
	c := single()
	if err := c.setInterval("99,5"); err != nil {
		t.Fatal(err)
	}
	if err := c.setIterations("5"); err != nil || c.Min != 3 {
		t.Fatalf("%+v, %v", c, err)
	}
	if c.done([]float64{100}) || c.done([]float64{99, 100}) {
		t.Error("one or two iterations are enough")
	}
	if c.done([]float64{99, 100, 101}) || fmt.Sprintf("%.3f", c.Reached) != "11.460" {
		t.Errorf("%+v", c)
	}
	if !c.done([]float64{100, 100, 100}) || !c.done([]float64{50, 100, 150, 10, 20}) {
		t.Error("no end when the interval is narrow, or after the last iteration")
	}
}

// TestMalformed throws 10,000 messages at a server that hold anything, and measures after that.
func TestMalformed(t *testing.T) {
	addr := serve(t, &Server{}, "127.0.0.1")
	r := rand.New(rand.NewPCG(7, 11))
	good := TCPRR.request()
	good.RequestSize, good.ResponseSize, good.Length = 1, 1, 1
	for sent := 0; sent < 10000; {
		conn, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		// One connection takes messages until the server has had enough of it.
		for conn != nil && sent < 10000 {
			var m message
			good.marshal(&m)
			for range 1 + r.IntN(40) {
				switch at := 4 * r.IntN(MessageSize/4); r.IntN(3) {
				case 0:
					binary.BigEndian.PutUint32(m[at:], r.Uint32())
				case 1:
					binary.BigEndian.PutUint32(m[at:], uint32(int32(r.IntN(200)-100)))
				default:
					m[at] ^= byte(1 << r.IntN(8))
				}
			}
			if m.kind() == KindRequest {
				m.put(24, int32(8+r.IntN(1<<20))) // a direction that no test has, or it would begin one
			}
			size := MessageSize
			if r.IntN(50) == 0 {
				size = r.IntN(MessageSize)
			}
			sent++
			if _, err = conn.Write(m[:size]); err != nil || size < MessageSize || sent%7 == 0 {
				conn.Close()
				conn = nil
			}
		}
		if conn != nil {
			conn.Close()
		}
	}
	res, err := Measure(t.Context(), Options{Test: TCPRR, Server: addr, Count: 10, CPU: -1, ServerCPU: -1})
	if err != nil || res.Transactions != 10 {
		t.Errorf("the server is of no use any more: %v", err)
	}
}

// TestIdle closes a session that asks for nothing, and one that never says its passphrase.
func TestIdle(t *testing.T) {
	addr := serve(t, &Server{idle: 50 * time.Millisecond}, "127.0.0.1")
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(limit))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the server does not close: %v", err)
	}
}

// TestBound holds a server with an address to that address.
func TestBound(t *testing.T) {
	addr := serve(t, &Server{}, "127.0.0.1")
	for name, f := range map[string]func(*Request){
		"every address":    func(r *Request) { r.IPv6 = true },
		"another address":  func(r *Request) { r.ServerAddr = netip.MustParseAddr("127.0.0.2") },
		"another family's": func(r *Request) { r.IPv6, r.ServerAddr = true, netip.MustParseAddr("::1") },
	} {
		conn, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		r := TCPRR.request()
		r.RequestSize, r.ResponseSize, r.Length = 1, 1, 1
		f(&r)
		var m message
		r.marshal(&m)
		writeMessage(conn, &m)
		reply, err := readMessage(conn, time.Now().Add(limit))
		if err != nil || (reply.second() != int32(syscall.EADDRNOTAVAIL) && reply.second() != int32(syscall.EAFNOSUPPORT)) {
			t.Errorf("%s: the server answers %d, %v", name, reply.second(), err)
		}
		conn.Close()
	}
}

// TestFillFile: a request that names a file to read from is served as if it named none.
func TestFillFile(t *testing.T) {
	r := TCPStream.request()
	r.Length = 1
	var m, plain message
	r.marshal(&m)
	r.marshal(&plain)
	copy(m[176:], "/etc/passwd")
	with, err := parseRequest(&m)
	without, _ := parseRequest(&plain)
	if err != nil || with != without {
		t.Errorf("%+v, %v; without the name %+v", with, err, without)
	}
}

// TestRest answers what a netperf with -c asks before a test.
func TestRest(t *testing.T) {
	addr := serve(t, &Server{}, "127.0.0.1")
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(k Kind) *message {
		var m message
		m.head(k, -1)
		writeMessage(conn, &m)
		reply, err := readMessage(conn, time.Now().Add(limit))
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	if r := ask(KindCalibrate); r.kind() != KindCalibrate || r.float(0) != 100 || r.word(1) < 1 {
		t.Errorf("calibration: %s", r)
	}
	if r := ask(KindSystem); r.kind() != KindSystemInfo || !bytes.HasPrefix(r[dataAt:], []byte(",Deprecated,")) {
		t.Errorf("system: %s", r)
	}
	if r := ask(KindDebugOn); r.kind() != KindDebugOK {
		t.Errorf("debug: %s", r)
	}
}

// TestMappedPort reaches the data port under another number, as behind a NodePort.
func TestMappedPort(t *testing.T) {
	addr := serve(t, &Server{}, "127.0.0.1")
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer front.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	data := netip.MustParseAddrPort(free.Addr().String())
	free.Close()
	go func() {
		for {
			in, err := front.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp", data.String())
				if err != nil {
					return
				}
				go func() { io.Copy(out, in); out.(*net.TCPConn).CloseWrite() }()
				io.Copy(in, out)
				out.Close()
			}()
		}
	}()
	o := Options{
		Test: TCPCRR, Server: addr, Count: 20, CPU: -1, ServerCPU: -1, DataPort: data.Port(),
		ConnectPort: netip.MustParseAddrPort(front.Addr().String()).Port(),
	}
	r, err := Measure(t.Context(), o)
	if err != nil || r.Transactions != 20 || r.Server.Port() != o.ConnectPort {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestFailures counts the connections that break, and goes on.
func TestFailures(t *testing.T) {
	addr := fake(t, func(c net.Conn, d net.Listener) {
		answerWith(c, d, 0)
		for i := range 24 {
			data, err := d.Accept()
			if err != nil {
				return
			}
			data.Read(make([]byte, 1))
			if i%5 == 4 {
				data.(*net.TCPConn).SetLinger(0) // a reset
			} else {
				data.Write([]byte{1})
			}
			data.Close()
		}
		var m message
		(&Results{Transactions: 20}).marshal(&m)
		writeMessage(c, &m)
		io.Copy(io.Discard, c)
	})
	r, err := Measure(t.Context(), Options{Test: TCPCRR, Server: addr, Count: 20, CPU: -1, ServerCPU: -1})
	if err != nil || r.Transactions != 20 || total(r.Errors) < 4 {
		t.Errorf("%d transactions, failures %v, %v", r.Transactions, r.Errors, err)
	}
}

// TestRate holds a test to its rate, and counts what comes late from when it was due.
func TestRate(t *testing.T) {
	addr := serve(t, &Server{}, "127.0.0.1")
	r, err := Measure(t.Context(), Options{Test: TCPRR, Server: addr, Length: time.Second, Rate: 50, CPU: -1, ServerCPU: -1})
	if err != nil || r.Transactions < 1 || r.Transactions > 50 || r.Due != 50 || r.ServerSaw != uint64(r.Transactions) {
		t.Errorf("%d transactions, the server saw %d, %v", r.Transactions, r.ServerSaw, err)
	}
	// A server that stops for a while delays all that was due meanwhile, not one transaction.
	c := &client{o: &Options{Test: TCPRR, Count: 1000, Rate: 1000}, latencies: stats.NewRecorder(2000), errors: map[string]int{}, cable: newCable()}
	n := 0
	if err := c.transactions(func() error {
		if n++; n == 100 {
			time.Sleep(300 * time.Millisecond)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	s, _, err := c.latencies.Summary()
	if err != nil || s.Count != 1000 || s.P90 < 100_000 {
		t.Errorf("%+v, %v", s, err)
	}
}

func FuzzParseAnswers(f *testing.F) {
	var m message
	(&Response{DataPort: 1}).marshal(&m)
	f.Add(m[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		var m message
		copy(m[:], b)
		if r, err := parseResponse(&m); err == nil && r.Errno == 0 && r.DataPort == 0 {
			t.Errorf("no port in %+v", r)
		}
		res := parseResults(&m)
		res.parseCPU(&m)
		var again message
		res.marshal(&again)
		if back := parseResults(&again); back.BytesSent != res.BytesSent || back.Transactions != res.Transactions {
			t.Errorf("%+v becomes %+v", res, back)
		}
	})
}
