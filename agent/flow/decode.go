// SPDX-License-Identifier: Apache-2.0

// Package flow turns what the datapath writes into its event ring into events that people can
// read: decode (a header and the first bytes of the packet) -> enrich (names from the tables) ->
// fan out to everyone who listens.
package flow

import (
	"encoding/binary"
	"errors"
	"fmt"

	"lash.internal/lash/agent/api"
)

// headerSize is the size of struct event, in bytes; version is the one that this decoder reads.
// Source: bpf/include/event_abi.h.
const (
	headerSize = 48
	version    = 1
)

// Types of a record.
const (
	typeDrop  = 1
	typeTrace = 4
)

// Flags of a record.
const (
	flagIPv6      = 1 << 0
	flagL3Dev     = 1 << 1
	flagEncrypted = 1 << 2
)

// ErrRecord is a record that is too short or of another version.
var ErrRecord = errors.New("invalid event record")

// Record is one event as the datapath wrote it. Data aliases the buffer it was decoded from.
type Record struct {
	Type    uint8
	Subtype uint8 // trace point, or drop reason
	Flags   uint8
	Hash    uint32
	OrigLen uint32 // of the packet, in bytes
	EpID    uint16 // local endpoint that reports
	SrcID   uint32
	DstID   uint32
	DstEp   uint16
	Line    uint16
	IfIndex uint32
	File    uint8
	Reason  uint8 // what conntrack said
	Dir     uint8
	Cookie  uint32
	Time    uint64 // monotonic ns
	Data    []byte
}

// Decode reads one record of the ring.
func Decode(b []byte) (Record, error) {
	if len(b) < headerSize {
		return Record{}, fmt.Errorf("%w: %d bytes", ErrRecord, len(b))
	}
	if b[2] != version {
		return Record{}, fmt.Errorf("%w: version %d", ErrRecord, b[2])
	}
	e := binary.NativeEndian
	r := Record{
		Type: b[0], Subtype: b[1], Flags: b[3],
		Hash: e.Uint32(b[4:]), OrigLen: e.Uint32(b[8:]), EpID: e.Uint16(b[14:]),
		SrcID: e.Uint32(b[16:]), DstID: e.Uint32(b[20:]), DstEp: e.Uint16(b[24:]), Line: e.Uint16(b[26:]),
		IfIndex: e.Uint32(b[28:]), File: b[32], Reason: b[33], Dir: b[34],
		Cookie: e.Uint32(b[36:]), Time: e.Uint64(b[40:]),
	}
	n := min(int(e.Uint16(b[12:])), len(b)-headerSize)
	r.Data = b[headerSize : headerSize+n]
	return r, nil
}

// tracePoints are the words of enum trace_point.
var tracePoints = []string{
	"to-endpoint", "to-proxy", "to-host", "to-stack", "to-overlay", "from-endpoint", "from-proxy",
	"from-host", "from-stack", "from-overlay", "from-network", "to-network",
}

// traceStates are the words of enum trace_reason.
var traceStates = []string{"new", "established", "reply", "related", "reopened", "unknown"}

func word(list []string, i uint8, other string) string {
	if int(i) < len(list) {
		return list[i]
	}
	return fmt.Sprintf("%s-%d", other, i)
}

// Event turns a record into an event, without names from the tables.
func (r Record) Event() api.MonitorEvent {
	ev := api.MonitorEvent{
		Hash: r.Hash, Mark: fmt.Sprintf("0x%x", r.Hash),
		IfIndex: r.IfIndex, Interface: fmt.Sprint(r.IfIndex),
		Source: r.EpID, DstID: r.DstEp, SrcLabel: r.SrcID, DstLabel: r.DstID, Bytes: r.OrigLen,
		Encrypted: r.Flags&flagEncrypted != 0,
		Summary:   Summarize(r.Data, r.Flags&flagL3Dev != 0),
		Data:      append([]byte(nil), r.Data...),
	}
	switch r.Type {
	case typeDrop:
		ev.Type = api.MonitorDrop
		ev.ReasonCode = r.Subtype
		ev.Reason = api.DropReason(r.Subtype)
		ev.Line = r.Line
		ev.File = api.SourceFile(r.File)
	case typeTrace:
		ev.Type = api.MonitorTrace
		ev.ObservationPoint = word(tracePoints, r.Subtype, "point")
		ev.State = word(traceStates, r.Reason, "state")
	default:
		ev.Type = api.MonitorDebug
		ev.Msg = fmt.Sprintf("event of unknown type %d", r.Type)
	}
	return ev
}
