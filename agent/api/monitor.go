// SPDX-License-Identifier: Apache-2.0

package api

import "time"

// Types of monitor events, as `cilium monitor -t` takes them.
const (
	MonitorAgent         = "agent"
	MonitorCapture       = "capture"
	MonitorDebug         = "debug"
	MonitorDrop          = "drop"
	MonitorL7            = "l7"
	MonitorPolicyVerdict = "policy-verdict"
	MonitorTrace         = "trace"
	MonitorTraceSock     = "trace-sock"
	// MonitorLost says that the reader of the ring was too slow and events are missing.
	MonitorLost = "lost"
)

// MonitorEvent is one line of GET /v1/monitor (newline-delimited JSON).
type MonitorEvent struct {
	Time             time.Time       `json:"time"`
	Type             string          `json:"type"`
	Hash             uint32          `json:"hash"`
	Mark             string          `json:"mark,omitempty"` // hash as 0x..
	IfIndex          uint32          `json:"ifindex-number,omitempty"`
	Interface        string          `json:"ifindex,omitempty"` // device name, or the number as text
	Reason           string          `json:"reason,omitempty"`
	ReasonCode       uint8           `json:"reason-code,omitempty"`
	ObservationPoint string          `json:"observationPoint,omitempty"`
	State            string          `json:"state,omitempty"` // new, established, reply, related, unknown
	Source           uint16          `json:"source"`          // local endpoint that the program ran for
	DstID            uint16          `json:"dstID"`           // local endpoint that the packet goes to
	SrcLabel         uint32          `json:"srcLabel"`        // source identity
	DstLabel         uint32          `json:"dstLabel"`        // destination identity
	SrcPod           string          `json:"srcPod,omitempty"`
	DstPod           string          `json:"dstPod,omitempty"`
	Bytes            uint32          `json:"bytes"` // length of the packet
	Line             uint16          `json:"line,omitempty"`
	File             string          `json:"file,omitempty"`
	OrigIP           string          `json:"origIP,omitempty"`
	Encrypted        bool            `json:"encrypted,omitempty"`
	Lost             uint64          `json:"lost,omitempty"`
	Msg              string          `json:"msg,omitempty"`
	Summary          *PacketSummary  `json:"summary,omitempty"`
	Verdict          *VerdictDetails `json:"verdict,omitempty"`
	Data             []byte          `json:"data,omitempty"` // captured bytes
}

// VerdictDetails belong to an event of type policy-verdict.
type VerdictDetails struct {
	Action    string `json:"action"`
	Direction string `json:"direction"`
	Match     string `json:"match"`
	Cookie    uint32 `json:"cookie,omitempty"`
}

// PacketSummary is the captured packet in readable form.
type PacketSummary struct {
	L2    *Pair  `json:"l2,omitempty"`
	L3    *Pair  `json:"l3,omitempty"`
	L4    *Pair  `json:"l4,omitempty"`
	Proto string `json:"proto,omitempty"` // tcp, udp, icmp, icmpv6, ...
	Info  string `json:"info,omitempty"`  // TCP flags, ICMP type
	// Text is the one-line form: `10.0.0.1:1234 -> 10.0.0.2:80 tcp SYN`.
	Text string `json:"text,omitempty"`
}

// Pair is a source and a destination.
type Pair struct {
	Src string `json:"src"`
	Dst string `json:"dst"`
}
