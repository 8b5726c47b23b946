// SPDX-License-Identifier: Apache-2.0

package api

import "fmt"

// dropReasons are the texts of drop reasons, which are also the label "reason" of the metrics.
// Source: numbers and texts are those of Cilium's flow API.
var dropReasons = map[uint8]string{
	0:   "Success",
	132: "Invalid source ip",
	133: "Policy denied",
	134: "Invalid packet",
	135: "CT: Truncated or invalid header",
	136: "Fragmentation needed",
	137: "CT: Unknown L4 protocol",
	139: "Unsupported L3 protocol",
	140: "Missed tail call",
	141: "Error writing to packet",
	142: "Unknown L4 protocol",
	143: "Unknown ICMPv4 code",
	144: "Unknown ICMPv4 type",
	145: "Unknown ICMPv6 code",
	146: "Unknown ICMPv6 type",
	147: "Error retrieving tunnel key",
	150: "Unknown L3 target address",
	151: "Stale or unroutable IP",
	153: "Error while correcting L3 checksum",
	154: "Error while correcting L4 checksum",
	155: "CT: Map insertion failed",
	156: "Invalid IPv6 extension header",
	157: "IP fragmentation not supported",
	158: "Service backend not found",
	160: "No tunnel/encapsulation endpoint (datapath BUG!)",
	163: "Unknown connection tracking state",
	164: "Local host is unreachable",
	166: "Unsupported L2 protocol",
	167: "No mapping for NAT masquerade",
	168: "Unsupported protocol for NAT masquerade",
	169: "FIB lookup failed",
	170: "Encapsulation traffic is prohibited",
	171: "Invalid identity",
	172: "Unknown sender",
	174: "Is a ClusterIP",
	175: "First logical datagram fragment not found",
	176: "Forbidden ICMPv6 message",
	177: "Denied by LB src range check",
	181: "Policy denied by denylist",
	183: "Incorrect VNI from VTEP",
	194: "No egress gateway found",
	195: "Traffic is unencrypted",
	196: "TTL exceeded",
	202: "Host datapath not ready",
	203: "Endpoint policy program not available",
	204: "No Egress IP configured",
}

// DropReason is the text of a drop reason.
func DropReason(code uint8) string {
	if s, ok := dropReasons[code]; ok {
		return s
	}
	return fmt.Sprintf("reason %d", code)
}

// sourceFiles are the files of the datapath that drops are counted for, by number.
var sourceFiles = []string{"", "tc.c", "parse.h", "flow.h", "nat.h", "lb.h", "fwd.h", "icmp.h", "frag.h"}

// SourceFile names the source file of a drop by its number; 0 is no file.
func SourceFile(n uint8) string {
	if int(n) < len(sourceFiles) {
		return sourceFiles[n]
	}
	return fmt.Sprintf("file %d", n)
}
