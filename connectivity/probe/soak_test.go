// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"
)

func TestSoakLosesNothingOnAHealthyPath(t *testing.T) {
	s := serve(t)
	// So few datagrams that all of them fit a socket's buffer: on a busy machine the echo server may
	// not run for most of the time.
	r := Soak{UDP: at("127.0.0.1", s.UDP), TCP: at("127.0.0.1", s.TCP), Rate: 200, Flows: 5, New: true, Duration: 700 * time.Millisecond}.Run(t.Context())
	if r.UDPSent < 50 || r.UDPLost != 0 || r.UDPDuplicated != 0 || r.Flows != 5 || r.FlowsBroken != 0 || r.Exchanges < 5 ||
		r.NewDone < 1 || r.NewFailed != 0 || len(r.Errors) > 0 {
		t.Errorf("%+v", r)
	}
}

// TestSoakCounts answers some datagrams twice, some late and some never.
func TestSoakCounts(t *testing.T) {
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		b := make([]byte, 2048)
		var held []byte
		for {
			n, from, err := l.ReadFrom(b)
			if err != nil {
				return
			}
			switch seq := binary.BigEndian.Uint64(b); {
			case seq%10 == 1: // lost
				continue
			case seq == 12:
				held = bytes.Clone(b[:n])
				continue
			case seq == 13:
				_, _ = l.WriteTo(b[:n], from)
				_, _ = l.WriteTo(held, from)
				continue
			case seq == 14:
				_, _ = l.WriteTo(b[:n], from)
			}
			_, _ = l.WriteTo(b[:n], from)
		}
	}()
	r := Soak{UDP: l.LocalAddr().String(), Rate: 200, Duration: 400 * time.Millisecond, Late: time.Second}.Run(t.Context())
	if r.UDPLost != (r.UDPSent+9)/10 || r.UDPReordered != 1 || r.UDPDuplicated != 1 {
		t.Errorf("%+v", r)
	}
}

// TestSoakWaitsForASlowServer has a server that begins to answer long after the last datagram was sent:
// nothing is lost.
func TestSoakWaitsForASlowServer(t *testing.T) {
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		b := make([]byte, 2048)
		time.Sleep(2 * time.Second)
		for {
			n, from, err := l.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = l.WriteTo(b[:n], from)
			time.Sleep(100 * time.Millisecond)
		}
	}()
	r := Soak{UDP: l.LocalAddr().String(), Rate: 100, Duration: 200 * time.Millisecond}.Run(t.Context())
	if r.UDPSent == 0 || r.UDPLost != 0 {
		t.Errorf("%+v", r)
	}
}

func TestSoakSeesBrokenConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("lash-echo x y\n"))
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}()
	r := Soak{TCP: l.Addr().String(), Flows: 3, Duration: 500 * time.Millisecond}.Run(t.Context())
	if r.Flows != 3 || r.FlowsBroken != 3 || len(r.Errors) == 0 {
		t.Errorf("%+v", r)
	}
}

func TestSoakCommandSaysWhatIsWrong(t *testing.T) {
	for args, want := range map[string]string{
		"--flows 3": "need --tcp", "--rate -1": "--rate must be", "x": `takes no argument "x"`,
	} {
		err := SoakCommand(t.Context(), strings.Fields(args), strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
	var out bytes.Buffer
	if err := SoakCommand(t.Context(), nil, strings.NewReader(""), &out, &bytes.Buffer{}); err != nil || json.Unmarshal(out.Bytes(), &SoakResult{}) != nil {
		t.Errorf("%v: %s", err, out.String())
	}
}
