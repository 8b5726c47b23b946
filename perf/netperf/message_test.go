// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// fromWords makes a message from its non-zero words, as "index:value" in hexadecimal values.
func fromWords(t *testing.T, text string) *message {
	t.Helper()
	m := &message{}
	for _, f := range strings.Fields(text) {
		var i, v uint32
		if _, err := fmt.Sscanf(f, "%d:%x", &i, &v); err != nil {
			t.Fatalf("%q: %v", f, err)
		}
		binary.BigEndian.PutUint32(m[4*i:], v)
	}
	return m
}

func (m *message) String() string {
	var out []string
	for i := 0; i < MessageSize; i += 4 {
		if v := binary.BigEndian.Uint32(m[i:]); v != 0 {
			out = append(out, fmt.Sprintf("%d:%x", i/4, v))
		}
	}
	return strings.Join(out, " ")
}

// What netperf 2.7.1 sent and got in a TCP_CRR test of one second with data port 30002, non-zero
// words only.
const (
	seenRequest = `0:61 1:ffffffff 2:ffffffff 3:ffffffff 4:8 6:1 7:1 8:ffffffff 9:ffffffff 10:8 12:1 13:1
		14:24 16:1 19:ffffffff 20:ffffffff 21:ffffffff 22:7532 23:4 24:1 25:6 26:6 27:feb3 38:ffffffff 39:ffffffff`
	seenResponse = `0:62 2:20000 3:1 4:1 5:4000 6:1 7:1 13:7532 18:ffffffff 19:ffffffff`
	seenResults  = `0:62000000 3:3906 4:3906 5:20000 7:3906 8:3906 9:4000 11:3906 12:3f80079c 13:32750000
		18:ffffffff 19:ffffffff 28:ffffffff`
)

func TestRequestOfNetperf(t *testing.T) {
	want := fromWords(t, seenRequest)
	r := TCPCRR.request()
	r.RequestSize, r.ResponseSize, r.Length, r.DataPort, r.ClientPort = 1, 1, 1, 30002, 0xfeb3
	var got message
	r.marshal(&got)
	if got != *want {
		t.Errorf("the request is\n%s\nnetperf sends\n%s", &got, want)
	}
	back, err := parseRequest(want)
	if err != nil || back != r {
		t.Errorf("read as %+v, %v; want %+v", back, err, r)
	}
	if test, err := back.test(); err != nil || test != TCPCRR {
		t.Errorf("taken for %q, %v", test, err)
	}
}

func TestResponseOfNetserver(t *testing.T) {
	want := fromWords(t, seenResponse)
	r, err := parseResponse(want)
	if err != nil || r.DataPort != 30002 || r.RecvBuffer != 0x20000 || r.SendBuffer != 0x4000 || r.RecvSize != 1 {
		t.Errorf("read as %+v, %v", r, err)
	}
	var got message
	r.marshal(&got)
	if got != *want {
		t.Errorf("the response is\n%s\nnetserver sends\n%s", &got, want)
	}
}

// TestResultsOfNetserver reads results whose kind is backwards and which hold left-overs.
func TestResultsOfNetserver(t *testing.T) {
	r := parseResults(fromWords(t, seenResults))
	want := Results{
		BytesReceived: 14598, ReceiveCalls: 14598, RecvBuffer: 0x20000, BytesSent: 14598, SendCalls: 14598, SendBuffer: 0x4000,
		Transactions: 14598, Elapsed: r.Elapsed, Retransmits: -1,
	}
	// Word 3 is the second half of a 64-bit number, word 4 the number of calls.
	if r != want || fmt.Sprintf("%.4f", r.Elapsed) != "1.0002" {
		t.Errorf("read as %+v\nwant %+v", r, want)
	}
	var m message
	r.marshal(&m)
	if back := parseResults(&m); back != r {
		t.Errorf("read back as %+v", back)
	}
}

func TestRequests(t *testing.T) {
	for _, test := range Tests {
		for _, v6 := range []bool{false, true} {
			o := Options{Test: test, ServerCPU: 3, Congestion: "reno", RequestSize: 10, ResponseSize: 20, SendSize: 4000, Length: 2e9}
			o.Server = netip.MustParseAddrPort("192.0.2.1:1")
			if v6 {
				o.Server = netip.MustParseAddrPort("[2001:db8::1]:1")
			}
			r := o.request()
			r.ClientAddr, r.ServerAddr = o.Server.Addr(), o.Server.Addr()
			var m message
			r.marshal(&m)
			back, err := parseRequest(&m)
			if err != nil || back != r {
				t.Errorf("%s: read back as %+v, %v; want %+v", test, back, err, r)
			}
			if got, err := back.test(); err != nil || got != test {
				t.Errorf("%s is taken for %q, %v", test, got, err)
			}
		}
	}
}

// TestIPv6OnTheWire: a little-endian netperf sends each group of four bytes backwards.
func TestIPv6OnTheWire(t *testing.T) {
	var m message
	m.putAddr(32, netip.MustParseAddr("2001:db8:1:2:3:4:5:6"))
	if got, want := fmt.Sprintf("%x", m[dataAt+4*32:dataAt+4*36]), "b80d012002000100"+"04000300"+"06000500"; got != want {
		t.Errorf("sent as %s, want %s", got, want)
	}
}

func TestBadRequests(t *testing.T) {
	good := fromWords(t, seenRequest)
	for name, words := range map[string]string{
		"kind":             "0:62",
		"family":           "23:2",
		"socket type":      "24:3",
		"protocol":         "25:84",
		"no direction":     "26:0",
		"UDP_MAERTS":       "14:20 24:2 25:11 26:2 7:ffffffff 13:ffffffff",
		"connect only":     "7:ffffffff 13:ffffffff",
		"UDP connections":  "24:2 25:11",
		"half a size each": "14:20 7:ffffffff",
	} {
		m := *good
		for _, f := range strings.Fields(words) {
			var i, v uint32
			fmt.Sscanf(f, "%d:%x", &i, &v)
			binary.BigEndian.PutUint32(m[4*i:], v)
		}
		r, err := parseRequest(&m)
		if err == nil {
			_, err = r.test()
		}
		if err == nil {
			t.Errorf("%s: taken for a test: %+v", name, r)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	var m message
	r := TCPRR.request()
	r.marshal(&m)
	f.Add(m[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		var m message
		copy(m[:], b)
		r, err := parseRequest(&m)
		if err != nil {
			return
		}
		var again message
		r.marshal(&again)
		back, err := parseRequest(&again)
		if err != nil {
			t.Fatalf("%+v does not survive the wire: %v", r, err)
		}
		if len(r.Congestion) < congestionLen && back != r {
			t.Fatalf("%+v becomes %+v", r, back)
		}
	})
}
