// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// freePort returns a port that nobody listens on.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

// serve starts a server named "bob" and stops it with the test.
func serve(t *testing.T) Server {
	t.Helper()
	s := Server{HTTP: freePort(t), TCP: freePort(t), UDP: freePort(t), Host: "bob"}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("server: %v", err)
		}
	})
	return s
}

func hasIPv6() bool {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		return false
	}
	_ = l.Close()
	return true
}

func at(ip string, port uint16) string {
	return netip.AddrPortFrom(netip.MustParseAddr(ip), port).String()
}

func TestEcho(t *testing.T) {
	s := serve(t)
	ips := []string{"127.0.0.1", "127.0.0.77"}
	if hasIPv6() {
		ips = append(ips, "::1")
	}
	for _, ip := range ips {
		probes := []Probe{
			{ID: "tcp", Proto: TCP, Target: at(ip, s.TCP)},
			{ID: "tcp1", Proto: TCP, Target: at(ip, s.TCP), Size: 1},
			{ID: "tcp-large", Proto: TCP, Target: at(ip, s.TCP), Size: 3 << 20, Count: 2},
			{ID: "udp-empty", Proto: UDP, Target: at(ip, s.UDP)},
			{ID: "udp1", Proto: UDP, Target: at(ip, s.UDP), Size: 1},
			{ID: "udp", Proto: UDP, Target: at(ip, s.UDP), Size: 1400, Count: 3},
			{ID: "udp-large", Proto: UDP, Target: at(ip, s.UDP), Size: 60000},
			{ID: "http", Proto: HTTP, Target: "http://" + at(ip, s.HTTP) + "/"},
			{ID: "http-large", Proto: HTTP, Target: "http://" + at(ip, s.HTTP), Size: 1 << 20},
		}
		for _, p := range probes {
			t.Run(ip+"/"+p.ID, func(t *testing.T) {
				res := Run(t.Context(), p)
				if !res.OK || res.ID != p.ID {
					t.Fatalf("got %+v", res)
				}
				if res.Lost != 0 || res.RTTMicros <= 0 {
					t.Errorf("got %+v", res)
				}
				if p.Proto != HTTP && p.Size > 0 && res.Bytes != p.Size*max(p.Count, 1) {
					t.Errorf("%d bytes came back, sent %d x %d", res.Bytes, p.Size, p.Count)
				}
				if p.Proto == UDP && p.Size < udpHeader {
					return
				}
				if res.Host != "bob" || res.Seen != res.Local {
					t.Errorf("host %q, seen %q, local %q", res.Host, res.Seen, res.Local)
				}
			})
		}
	}
}

func TestHTTPPaths(t *testing.T) {
	s := serve(t)
	base := "http://" + at("127.0.0.1", s.HTTP)
	if res := Run(t.Context(), Probe{Proto: HTTP, Target: base + "/size?n=nonsense"}); !res.OK || res.Status != 400 {
		t.Errorf("a bad size: %+v", res)
	}
	if res := Run(t.Context(), Probe{Proto: HTTP, Target: base + "/ip"}); !res.OK || res.Bytes != len("127.0.0.1\n") {
		t.Errorf("/ip: %+v", res)
	}
}

func TestFailuresAreNamed(t *testing.T) {
	s := serve(t)
	closed := freePort(t)
	mute, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	liar, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer liar.Close()
	go func() {
		buf := make([]byte, 100)
		n, from, err := liar.ReadFrom(buf)
		if err == nil && n > 0 {
			buf[n-1] ^= 1
			_, _ = liar.WriteTo(buf[:n], from)
		}
	}()
	tests := []struct {
		name string
		p    Probe
		want Kind
	}{
		{"tcp refused", Probe{Proto: TCP, Target: at("127.0.0.1", closed)}, KindRefused},
		{"udp refused", Probe{Proto: UDP, Target: at("127.0.0.1", closed), Size: 1}, KindRefused},
		{"http refused", Probe{Proto: HTTP, Target: "http://" + at("127.0.0.1", closed)}, KindRefused},
		{"timeout", Probe{Proto: UDP, Target: mute.LocalAddr().String(), Size: 1, TimeoutMillis: 30}, KindTimeout},
		{"corrupt", Probe{Proto: UDP, Target: liar.LocalAddr().String(), Size: 50}, KindCorrupt},
		{"not an echo server", Probe{Proto: TCP, Target: at("127.0.0.1", s.HTTP), TimeoutMillis: 30}, KindTimeout},
		{"too big", Probe{Proto: UDP, Target: at("127.0.0.1", s.UDP), Size: 70000}, KindOther},
		{"no target", Probe{Proto: TCP}, KindOther},
		{"no protocol", Probe{Proto: "sctp", Target: "127.0.0.1:1"}, KindOther},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			res := Run(t.Context(), tt.p)
			if res.OK || res.Kind != tt.want || res.Error == "" {
				t.Errorf("got %+v, want kind %s", res, tt.want)
			}
		})
	}
}

func TestRouteMTUAndPayloadFromIt(t *testing.T) {
	s := serve(t)
	res := Run(t.Context(), Probe{Proto: MTU, Target: "127.0.0.1"})
	if !res.OK || res.MTU < 1280 {
		t.Fatalf("mtu: %+v", res)
	}
	if res.MTU > maxDatagram+28 {
		t.Skip("loopback MTU is larger than a datagram")
	}
	up := Run(t.Context(), Probe{Proto: UDP, Target: at("127.0.0.1", s.UDP), FromMTU: true, Size: -28, DontFragment: true})
	if !up.OK || up.Bytes != res.MTU-28 {
		t.Errorf("largest datagram: %+v", up)
	}
}

func TestBind(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, c := range []struct{ network, target, want string }{
		{"tcp", "127.0.0.1:0", ""},
		{"udp", "127.0.0.1:0", ""},
		{"tcp", ln.Addr().String(), "address already in use"},
		{"sctp", "127.0.0.1:0", "tcp or udp"},
	} {
		r := Run(t.Context(), Probe{Proto: Bind, Network: c.network, Target: c.target})
		if r.OK != (c.want == "") || !strings.Contains(r.Error, c.want) {
			t.Errorf("%s %s: %+v, want %q", c.network, c.target, r, c.want)
		}
	}
}

func TestRoute(t *testing.T) {
	res := Run(t.Context(), Probe{Proto: Route, Target: "127.0.0.1"})
	if !res.OK || len(res.Answers) != 1 || !strings.Contains(res.Answers[0], "dev lo") {
		t.Errorf("got %+v", res)
	}
}

func TestICMP(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, syscall.IPPROTO_ICMP)
	if err != nil {
		if fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP); err != nil {
			t.Skipf("no ICMP socket: %v", err)
		}
	}
	_ = syscall.Close(fd)
	ips := []string{"127.0.0.1"}
	if hasIPv6() {
		ips = append(ips, "::1")
	}
	for _, ip := range ips {
		for _, size := range []int{0, 56, 8000, 60000} {
			res := Run(t.Context(), Probe{Proto: ICMP, Target: ip, Size: size, Count: 2})
			if !res.OK || res.Bytes != 2*size {
				t.Errorf("%s, %d bytes: %+v", ip, size, res)
			}
		}
	}
}

func TestDNS(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		answerDNS(server)
	}()
	defer func() { _ = server.Close(); <-done }()
	addr := server.LocalAddr().String()
	res := Run(t.Context(), Probe{Proto: DNS, Target: "kubernetes.default.svc.cluster.local", Server: addr})
	if !res.OK || len(res.Answers) != 1 || res.Answers[0] != "10.96.0.1" {
		t.Errorf("a name: %+v", res)
	}
	res = Run(t.Context(), Probe{Proto: DNS, Target: "nobody.", Server: addr})
	if res.OK || res.Kind != KindNoName {
		t.Errorf("no name: %+v", res)
	}
}

func answerDNS(c net.PacketConn) {
	buf := make([]byte, 512)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil {
			continue
		}
		m.Response = true
		q := m.Questions[0]
		if q.Name.String() == "nobody." {
			m.RCode = dnsmessage.RCodeNameError
		} else {
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 5},
				Body:   &dnsmessage.AResource{A: [4]byte{10, 96, 0, 1}},
			}}
		}
		b, err := m.Pack()
		if err == nil {
			_, _ = c.WriteTo(b, from)
		}
	}
}

// A batch is a conversation: a result comes while the input is still open.
func TestBatchAnswersWhileInputIsOpen(t *testing.T) {
	s := serve(t)
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- Batch(t.Context(), inR, outW, 8)
		_ = outW.Close()
	}()
	enc, dec := json.NewEncoder(inW), json.NewDecoder(outR)
	for _, id := range []string{"a", "b"} {
		if err := enc.Encode(Probe{ID: id, Proto: TCP, Target: at("127.0.0.1", s.TCP), Size: 10}); err != nil {
			t.Fatal(err)
		}
		var res Result
		if err := dec.Decode(&res); err != nil {
			t.Fatal(err)
		}
		if res.ID != id || !res.OK {
			t.Errorf("got %+v", res)
		}
	}
	_ = inW.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestBatchList(t *testing.T) {
	s := serve(t)
	list := []Probe{
		{ID: "1", Proto: TCP, Target: at("127.0.0.1", s.TCP)},
		{ID: "2", Proto: UDP, Target: at("127.0.0.1", s.UDP), Size: 5},
	}
	in, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Batch(t.Context(), bytes.NewReader(in), &out, 2); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(&out)
	for range list {
		var res Result
		if err := dec.Decode(&res); err != nil || !res.OK {
			t.Errorf("%+v, %v", res, err)
		}
	}
	if err := Batch(t.Context(), strings.NewReader(`{"protocol":"tcp"}`), io.Discard, 1); err == nil {
		t.Error("an unknown field was accepted")
	}
}

func TestCommands(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	port := freePort(t)
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- EchoCommand(ctx, []string{"--tcp", netip.AddrPortFrom(netip.IPv4Unspecified(), port).String()[8:], "--host", "carol"}, w, os.Stderr)
		_ = w.Close()
	}()
	var ready Ready
	if err := json.NewDecoder(r).Decode(&ready); err != nil || !ready.Ready {
		t.Fatal(ready, err)
	}
	var out, errOut bytes.Buffer
	if err := ProbeCommand(t.Context(), []string{"--size", "7", "tcp", at("127.0.0.1", port)}, nil, &out, &errOut); err != nil {
		t.Errorf("%v: %s", err, out.String())
	}
	if !strings.Contains(out.String(), `"host":"carol"`) {
		t.Errorf("got %s", out.String())
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, args := range [][]string{{"tcp"}, {"--nonsense"}, {"--batch", "x"}} {
		if err := ProbeCommand(t.Context(), args, nil, io.Discard, io.Discard); err == nil {
			t.Errorf("probe %q was accepted", args)
		}
	}
	for name, help := range map[string]func() error{
		"echo":  func() error { return EchoCommand(t.Context(), []string{"--help"}, io.Discard, &errOut) },
		"probe": func() error { return ProbeCommand(t.Context(), []string{"--help"}, nil, io.Discard, &errOut) },
		"soak":  func() error { return SoakCommand(t.Context(), []string{"--help"}, nil, io.Discard, &errOut) },
	} {
		if err := help(); err != nil {
			t.Errorf("help of %s: %v", name, err)
		}
	}
	if !strings.Contains(errOut.String(), "-udp") {
		t.Errorf("no flags are shown: %s", errOut.String())
	}
}

func TestCancelEndsAProbe(t *testing.T) {
	mute, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	start := time.Now()
	if res := Run(ctx, Probe{Proto: UDP, Target: mute.LocalAddr().String(), Size: 1, Count: 100}); res.OK {
		t.Error("a cancelled probe is not a success")
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestTCPCountsExchangesWithoutASizeToo(t *testing.T) {
	s := serve(t)
	res := Run(t.Context(), Probe{Proto: TCP, Target: at("127.0.0.1", s.TCP), Count: 5})
	if !res.OK || res.Sent != 5 || res.Bytes != 5 {
		t.Errorf("%+v", res)
	}
}

// A connection that one probe of a batch leaves open is gone on with by the next.
func TestBatchKeepsConnections(t *testing.T) {
	s := serve(t)
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	go func() { _ = outW.CloseWithError(Batch(t.Context(), inR, outW, 4)) }()
	enc, dec := json.NewEncoder(inW), json.NewDecoder(outR)
	var got [3]Result
	for i := range got {
		if err := enc.Encode(Probe{Proto: TCP, Target: at("127.0.0.1", s.TCP), Conn: "a"}); err != nil {
			t.Fatal(err)
		}
		if err := dec.Decode(&got[i]); err != nil {
			t.Fatal(err)
		}
		if !got[i].OK || got[i].Bytes != 1 || got[i].Seen == "" {
			t.Errorf("probe %d: %+v", i, got[i])
		}
	}
	if got[0].Local != got[1].Local || got[1].Local == got[2].Local {
		t.Errorf("connections from %s, %s, %s: want the first two to be one", got[0].Local, got[1].Local, got[2].Local)
	}
	_ = inW.Close()
	if r := Run(t.Context(), Probe{Proto: TCP, Target: at("127.0.0.1", s.TCP), Conn: "a"}); r.OK {
		t.Error("a single probe left a connection open")
	}
}
