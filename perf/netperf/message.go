// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"

	"lash.internal/lash/perf/stats"
)

// MessageSize is the length of every message on the control connection, in bytes: two words and
// 162 words of data. Before 2.6.0 it was 256, and there is no exchange of versions.
const MessageSize = 656

// DefaultPort is the port of the control connection.
const DefaultPort = 12865

// Kind is the first word of a message.
type Kind uint32

// The kinds in use here. Any other request is answered with the error code 998.
const (
	KindDebugOn    Kind = 1
	KindDebugOff   Kind = 2
	KindDebugOK    Kind = 3
	KindCalibrate  Kind = 5
	KindPassphrase Kind = 6
	KindRequest    Kind = 97
	KindResponse   Kind = 98
	KindResults    Kind = 99
	KindSystem     Kind = 600
	KindSystemInfo Kind = 601
)

// errUnknownRequest is the error code that a server gives to a request of a kind that it lacks.
const errUnknownRequest = 998

// message is one message on the wire. The first words of its data are numbers in network order: 38 in
// a request, 18 in a response, 27 in results. What follows them are bytes.
type message [MessageSize]byte

// dataAt is where the data of a message begins.
const dataAt = 8

// Offsets of the texts in the data.
const (
	requestCongestionAt = 160 - dataAt
	resultCongestionAt  = 276 - dataAt
	congestionLen       = 16
)

func (m *message) kind() Kind       { return Kind(binary.BigEndian.Uint32(m[0:])) }
func (m *message) second() int32    { return int32(binary.BigEndian.Uint32(m[4:])) }
func (m *message) word(k int) int32 { return int32(binary.BigEndian.Uint32(m[dataAt+4*k:])) }

func (m *message) head(k Kind, second int32) {
	binary.BigEndian.PutUint32(m[0:], uint32(k))
	binary.BigEndian.PutUint32(m[4:], uint32(second))
}

func (m *message) putFloat(k int, v float64) { m.put(k, int32(math.Float32bits(float32(v)))) }

func (m *message) float(k int) float64 { return float64(math.Float32frombits(uint32(m.word(k)))) }

func (m *message) put(k int, v int32) { binary.BigEndian.PutUint32(m[dataAt+4*k:], uint32(v)) }

func (m *message) putText(at int, text string) { copy(m[dataAt+at:dataAt+at+congestionLen-1], text) }

func (m *message) text(at int) string {
	b := m[dataAt+at : dataAt+at+congestionLen]
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// Flags of a request.
type Flags uint32

// The flags that have an effect here. A request with others is served without them.
const (
	FlagNoDelay        Flags = 0x1
	FlagConnectTest    Flags = 0x4 // a connection for each transaction
	FlagMeasureCPU     Flags = 0x8
	FlagRoutingAllowed Flags = 0x20
	FlagFastOpen       Flags = 0x800
	FlagDeferAccept    Flags = 0x8000
)

// Direction is who sends, as the server sees it.
type Direction uint32

// The directions.
const (
	ServerSends    Direction = 2
	ServerReceives Direction = 4
	BothWays       Direction = ServerSends | ServerReceives
)

// Values of a request's address family and socket type: netperf's own, not the kernel's.
const (
	familyIPv4 = 4
	familyIPv6 = 6
	typeStream = 1
	typeDgram  = 2
	protoTCP   = 6
	protoUDP   = 17
)

// Request asks a server for a test. A size of -1 leaves the choice to the server.
type Request struct {
	BindCPU      int32 // processor for the server, -1 for none
	SendBuffer   int32 // SO_SNDBUF of the server, -1: as the kernel has it
	RecvBuffer   int32
	SendSize     int32 // bytes a call, one-way tests
	RecvSize     int32
	SendWidth    int32 // buffers to rotate, sent for completeness
	RequestSize  int32 // bytes, -1 in one-way tests
	ResponseSize int32
	Flags        Flags
	Length       int32 // seconds, or minus a number of transactions or bytes
	DataPort     uint16
	IPv6         bool
	Datagram     bool
	Direction    Direction
	ClientPort   uint16
	ClientAddr   netip.Addr // the zero Addr: any
	ServerAddr   netip.Addr // to bind to, the zero Addr: any
	Priority     int32      // SO_PRIORITY, -1: as it is
	TOS          int32
	Congestion   string // congestion control to use
}

// marshal writes the request as netperf does. Alignments and ring widths, which only choose the
// memory that data is read into, have netperf's defaults.
func (r *Request) marshal(m *message) {
	*m = message{}
	m.head(KindRequest, r.BindCPU)
	one := func(yes bool, is, otherwise int32) int32 {
		if yes {
			return is
		}
		return otherwise
	}
	for k, v := range map[int]int32{
		0: r.SendBuffer, 1: r.SendSize, 2: 8, 4: r.SendWidth, 5: r.RequestSize,
		6: r.RecvBuffer, 7: r.RecvSize, 8: 8, 10: 1, 11: r.ResponseSize,
		12: int32(r.Flags), 14: r.Length, 17: -1, 18: -1, 19: -1, 20: int32(r.DataPort),
		21: one(r.IPv6, familyIPv6, familyIPv4), 22: one(r.Datagram, typeDgram, typeStream), 23: one(r.Datagram, protoUDP, protoTCP),
		24: int32(r.Direction), 25: int32(r.ClientPort), 36: r.Priority, 37: r.TOS,
	} {
		m.put(k, v)
	}
	m.putAddr(28, r.ClientAddr)
	m.putAddr(32, r.ServerAddr)
	m.putText(requestCongestionAt, r.Congestion)
}

func parseRequest(m *message) (Request, error) {
	if m.kind() != KindRequest {
		return Request{}, fmt.Errorf("message is of kind %d, not the request %d", m.kind(), KindRequest)
	}
	r := Request{
		BindCPU:    m.second(),
		SendBuffer: m.word(0), SendSize: m.word(1), SendWidth: m.word(4), RequestSize: m.word(5),
		RecvBuffer: m.word(6), RecvSize: m.word(7), ResponseSize: m.word(11),
		Flags: Flags(m.word(12)), Length: m.word(14), Direction: Direction(m.word(24)),
		DataPort: uint16(m.word(20)), ClientPort: uint16(m.word(25)),
		Priority: m.word(36), TOS: m.word(37), Congestion: m.text(requestCongestionAt),
	}
	switch m.word(21) {
	case familyIPv4:
	case familyIPv6:
		r.IPv6 = true
	default:
		return r, fmt.Errorf("address family %d is neither IPv4 (%d) nor IPv6 (%d)", m.word(21), familyIPv4, familyIPv6)
	}
	switch [2]int32{m.word(22), m.word(23)} {
	case [2]int32{typeStream, protoTCP}:
	case [2]int32{typeDgram, protoUDP}:
		r.Datagram = true
	default:
		return r, fmt.Errorf("socket type %d with protocol %d is neither TCP nor UDP", m.word(22), m.word(23))
	}
	r.ClientAddr, r.ServerAddr = m.addr(28, r.IPv6), m.addr(32, r.IPv6)
	return r, nil
}

// putAddr writes an address. IPv4 is in plain network order; of IPv6 the client copies the 16 bytes
// as they are in memory and then swaps each word, so that a little-endian client sends each group
// of four bytes backwards.
func (m *message) putAddr(k int, a netip.Addr) {
	switch {
	case !a.IsValid() || a.IsUnspecified():
	case a.Is4():
		b := a.As4()
		copy(m[dataAt+4*k:], b[:])
	default:
		b := a.As16()
		for i := range 4 {
			m.put(k+i, int32(binary.LittleEndian.Uint32(b[4*i:])))
		}
	}
}

func (m *message) addr(k int, v6 bool) netip.Addr {
	var a netip.Addr
	if v6 {
		var b [16]byte
		for i := range 4 {
			binary.LittleEndian.PutUint32(b[4*i:], uint32(m.word(k+i)))
		}
		a = netip.AddrFrom16(b)
	} else {
		a = netip.AddrFrom4([4]byte(m[dataAt+4*k:]))
	}
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// Response is the server's answer to a request.
type Response struct {
	Errno      int32 // of the server; 0: it listens
	RecvBuffer int32
	RecvSize   int32
	RecvWidth  int32
	SendBuffer int32
	SendSize   int32
	SendWidth  int32
	Flags      Flags
	DataPort   uint16
	Priority   int32
	TOS        int32
}

func (r *Response) marshal(m *message) {
	*m = message{}
	m.head(KindResponse, r.Errno)
	for k, v := range map[int]int32{
		0: r.RecvBuffer, 1: r.RecvSize, 2: r.RecvWidth, 3: r.SendBuffer, 4: r.SendSize, 5: r.SendWidth,
		6: int32(r.Flags), 11: int32(r.DataPort), 16: r.Priority, 17: r.TOS,
	} {
		m.put(k, v)
	}
}

func parseResponse(m *message) (Response, error) {
	r := Response{
		Errno:      m.second(),
		RecvBuffer: m.word(0), RecvSize: m.word(1), RecvWidth: m.word(2),
		SendBuffer: m.word(3), SendSize: m.word(4), SendWidth: m.word(5), Flags: Flags(m.word(6)),
		DataPort: uint16(m.word(11)), Priority: m.word(16), TOS: m.word(17),
	}
	if r.Errno != 0 {
		return r, nil // an error may come with any kind
	}
	if m.kind() != KindResponse {
		return r, fmt.Errorf("message is of kind %d, not the response %d", m.kind(), KindResponse)
	}
	if r.DataPort == 0 {
		return r, fmt.Errorf("the response names no data port")
	}
	return r, nil
}

// Results is what the server saw of a test.
type Results struct {
	Errno         int32
	BytesReceived uint64
	ReceiveCalls  uint32
	RecvBuffer    int32
	BytesSent     uint64
	SendCalls     uint32
	SendBuffer    int32
	Transactions  uint32
	Elapsed       float32 // seconds
	Retransmits   int32   // segments, -1: not known
	CPU           stats.CPU
	Congestion    string
}

// cpuMethod is how processor times are taken, in netperf's numbering: /proc/stat.
const cpuMethod = 8

// cpuFields are where the shares of processor time are in results, in percent.
func (r *Results) cpuFields() map[int]*float64 {
	c := &r.CPU
	return map[int]*float64{11: &c.Busy, 12: &c.User, 13: &c.System, 14: &c.IOWait, 15: &c.IRQ, 16: &c.SoftIRQ}
}

func (r *Results) marshal(m *message) {
	*m = message{}
	m.head(KindResults, r.Errno)
	for k, v := range map[int]int32{
		0: int32(r.BytesReceived >> 32), 1: int32(r.BytesReceived), 2: int32(r.ReceiveCalls), 3: r.RecvBuffer,
		4: int32(r.BytesSent >> 32), 5: int32(r.BytesSent), 6: int32(r.SendCalls), 7: r.SendBuffer,
		9: int32(r.Transactions), 10: int32(math.Float32bits(r.Elapsed)), 26: r.Retransmits,
	} {
		m.put(k, v)
	}
	if r.CPU.Count > 0 {
		for k, v := range r.cpuFields() {
			m.putFloat(k, *v)
		}
		m.put(18, cpuMethod)
		m.put(19, int32(r.CPU.Count))
	}
	m.putText(resultCongestionAt, r.Congestion)
}

// parseResults reads results. Those of the processors are there only when the request asked for them,
// see Results.parseCPU. The kind is not looked at: the original server sends its response
// buffer a second time after swapping it in place, and with it the kind of the response, backwards.
func parseResults(m *message) Results {
	return Results{
		Errno:         m.second(),
		BytesReceived: uint64(uint32(m.word(0)))<<32 | uint64(uint32(m.word(1))),
		ReceiveCalls:  uint32(m.word(2)), RecvBuffer: m.word(3),
		BytesSent: uint64(uint32(m.word(4)))<<32 | uint64(uint32(m.word(5))),
		SendCalls: uint32(m.word(6)), SendBuffer: m.word(7),
		Transactions: uint32(m.word(9)), Elapsed: math.Float32frombits(uint32(m.word(10))),
		Retransmits: m.word(26), Congestion: m.text(resultCongestionAt),
	}
}

// parseCPU reads the shares of processor time. Without the flag in the request these words hold
// left-overs of the original's.
func (r *Results) parseCPU(m *message) {
	for k, v := range r.cpuFields() {
		*v = m.float(k)
	}
	r.CPU.Count = int(m.word(19))
}
