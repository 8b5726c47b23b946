// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// raw is a record as programs write it.
func raw(h bpf.Event, data []byte) []byte {
	h.Version = 1
	h.CapLen = uint16(len(data))
	var b bytes.Buffer
	if err := binary.Write(&b, binary.NativeEndian, h); err != nil {
		panic(err)
	}
	for b.Len() < int(unsafe.Sizeof(h)) {
		b.WriteByte(0)
	}
	b.Write(data)
	return b.Bytes()
}

// tcpSYN is an Ethernet frame from 10.0.0.1:1234 to 10.0.0.2:80.
func tcpSYN() []byte {
	b := make([]byte, 14+20+20)
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ip := b[14:]
	ip[0], ip[9] = 0x45, 6
	copy(ip[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	binary.BigEndian.PutUint16(ip[20:], 1234)
	binary.BigEndian.PutUint16(ip[22:], 80)
	ip[33] = 2
	return b
}

func TestHeaderMatchesTheDatapath(t *testing.T) {
	var h bpf.Event
	if got := unsafe.Sizeof(h); got != headerSize {
		t.Fatalf("struct event has %d bytes, the decoder expects %d", got, headerSize)
	}
	h = bpf.Event{
		Type: 1, Subtype: 133, Flags: 7, Hash: 0xabcd, OrigLen: 1500, EpId: 12, SrcId: 6040, DstId: 1419,
		DstEp: 13, Line: 77, Ifindex: 5, File: 3, Reason: 2, Dir: 1, Cookie: 9, Time: 123456789,
	}
	r, err := Decode(raw(h, []byte{1, 2, 3}))
	if err != nil {
		t.Fatal(err)
	}
	want := Record{
		Type: 1, Subtype: 133, Flags: 7, Hash: 0xabcd, OrigLen: 1500, EpID: 12, SrcID: 6040, DstID: 1419,
		DstEp: 13, Line: 77, IfIndex: 5, File: 3, Reason: 2, Dir: 1, Cookie: 9, Time: 123456789, Data: []byte{1, 2, 3},
	}
	if !bytes.Equal(r.Data, want.Data) {
		t.Errorf("data %v", r.Data)
	}
	r.Data, want.Data = nil, nil
	if r.Type != want.Type || r.Hash != want.Hash || r.OrigLen != want.OrigLen || r.EpID != want.EpID ||
		r.SrcID != want.SrcID || r.DstID != want.DstID || r.DstEp != want.DstEp || r.Line != want.Line ||
		r.IfIndex != want.IfIndex || r.File != want.File || r.Reason != want.Reason || r.Dir != want.Dir ||
		r.Cookie != want.Cookie || r.Time != want.Time || r.Subtype != want.Subtype || r.Flags != want.Flags {
		t.Errorf("got %+v\nwant %+v", r, want)
	}
}

func TestDecodeRefusesWhatItDoesNotKnow(t *testing.T) {
	short := make([]byte, headerSize-1)
	other := raw(bpf.Event{}, nil)
	other[2] = 2
	for _, b := range [][]byte{nil, short, other} {
		if _, err := Decode(b); !errors.Is(err, ErrRecord) {
			t.Errorf("%d bytes: error %v", len(b), err)
		}
	}
}

func TestEveryDropReasonHasAText(t *testing.T) {
	for _, code := range []uint8{
		132, 133, 134, 135, 137, 139, 140, 141, 142, 143, 144, 145, 146, 147, 150, 151,
		153, 154, 155, 156, 157, 158, 160, 163, 164, 166, 167, 168, 169, 171, 172, 174, 175, 176, 183, 196, 202, 203, 204,
	} {
		if text := api.DropReason(code); strings.HasPrefix(text, "reason ") {
			t.Errorf("reason %d has no text", code)
		}
	}
}

func TestSummaries(t *testing.T) {
	v6 := make([]byte, 40+8)
	v6[0], v6[6] = 0x60, 58
	copy(v6[8:], netip.MustParseAddr("fd00::1").AsSlice())
	copy(v6[24:], netip.MustParseAddr("fd00::2").AsSlice())
	v6[40] = 128
	frag := tcpSYN()
	frag[14+7] = 1
	for _, c := range []struct {
		name string
		b    []byte
		l3   bool
		want string
	}{
		{"tcp", tcpSYN(), false, "10.0.0.1:1234 -> 10.0.0.2:80 tcp SYN"},
		{"later fragment", frag, false, "10.0.0.1 -> 10.0.0.2 tcp fragment"},
		{"ping over IPv6, no Ethernet", v6, true, "fd00::1 -> fd00::2 icmpv6 EchoRequest"},
		{"cut", tcpSYN()[:30], false, "truncated IPv4"},
		{"nothing", nil, false, ""},
	} {
		if got := Summarize(c.b, c.l3).Text; got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestListenersGetNamesAndHearOfLosses(t *testing.T) {
	tables := state.NewTables()
	w := tables.DB.WriteTxn()
	tables.Endpoints.Insert(w, state.Endpoint{ID: 12, Pod: state.Name{Namespace: "default", Name: "a"}, IPv4: netip.MustParseAddr("10.0.0.1")})
	tables.RemoteIPs.Insert(w, state.RemoteIP{IP: netip.MustParseAddr("10.0.0.2"), Pod: state.Name{Namespace: "default", Name: "b"}})
	w.Commit()
	var heard []bool // by programs, which make no events for nobody
	m := New(nil, nil, tables, func(on bool) { heard = append(heard, on) }, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	ch := m.Subscribe(ctx)
	second, end := context.WithCancel(context.Background())
	other := m.Subscribe(second)
	end()
	for range other { // ends because the channel is closed
	}
	b := raw(bpf.Event{Type: 4, Subtype: 0, Reason: 0, EpId: 12, DstEp: 13}, tcpSYN())
	m.handle(b)
	ev := <-ch
	if ev.Type != api.MonitorTrace || ev.ObservationPoint != "to-endpoint" || ev.State != "new" ||
		ev.SrcPod != "default/a" || ev.DstPod != "default/b" {
		t.Errorf("got %+v", ev)
	}

	for range backlog + 5 {
		m.handle(b)
	}
	for range backlog {
		<-ch
	}
	m.handle(b)
	if ev := <-ch; ev.Type != api.MonitorLost || ev.Lost != 5 {
		t.Errorf("want a loss of 5, got %+v", ev)
	}
	cancel()
	for range ch { // ends because the channel is closed
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Equal(heard, []bool{true, false}) {
		t.Errorf("listeners came and went: %v", heard)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(raw(bpf.Event{Type: 1, Subtype: 133}, tcpSYN()))
	f.Add(raw(bpf.Event{Type: 4, Flags: flagL3Dev}, tcpSYN()[14:]))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decode(b)
		if err != nil {
			return
		}
		if len(r.Data) > len(b)-headerSize {
			t.Fatalf("%d bytes of data in a record of %d", len(r.Data), len(b))
		}
		if ev := r.Event(); ev.Type == "" || ev.Summary == nil {
			t.Fatalf("no type or no summary: %+v", ev)
		}
	})
}
