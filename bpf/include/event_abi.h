/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Records of the event ring: a header and up to EVT_CAP_MAX bytes of the packet, from its Ethernet
 * header on. Numbers of types, observation points and drop reasons are those that Cilium's
 * observers know.
 */
#pragma once

#include <linux/types.h>

#define EVT_VERSION 1
#define EVT_CAP_MAX 128

enum event_type {
	EVT_DROP = 1,
	EVT_TRACE = 4,
};

enum event_flag {
	EVT_IPV6 = 1 << 0,
	EVT_L3_DEV = 1 << 1, /* the capture starts at the IP header */
	EVT_ENCRYPTED = 1 << 2,
};

/* Where a trace event was taken: subtype of EVT_TRACE. */
enum trace_point {
	TRACE_TO_ENDPOINT = 0,
	TRACE_TO_PROXY = 1,
	TRACE_TO_HOST = 2,
	TRACE_TO_STACK = 3,
	TRACE_TO_OVERLAY = 4,
	TRACE_FROM_ENDPOINT = 5,
	TRACE_FROM_PROXY = 6,
	TRACE_FROM_HOST = 7,
	TRACE_FROM_STACK = 8,
	TRACE_FROM_OVERLAY = 9,
	TRACE_FROM_NETWORK = 10,
	TRACE_TO_NETWORK = 11,
};

/* What conntrack said about the packet. */
enum trace_reason {
	REASON_NEW = 0,
	REASON_ESTABLISHED = 1,
	REASON_REPLY = 2,
	REASON_RELATED = 3,
	REASON_REOPENED = 4,
	REASON_UNKNOWN = 5,
};

struct event {
	__u8 type;    /* enum event_type */
	__u8 subtype; /* enum trace_point or enum drop_reason */
	__u8 version;
	__u8 flags; /* enum event_flag */
	__u32 hash;
	__u32 orig_len;
	__u16 cap_len;
	__u16 ep_id; /* endpoint that reports, 0: none */
	__u32 src_id;
	__u32 dst_id;
	__u16 dst_ep; /* local endpoint that the packet is for, 0: none */
	__u16 line;   /* of the drop, with file */
	__u32 ifindex;
	__u8 file;   /* enum src_file */
	__u8 reason; /* enum trace_reason */
	__u8 dir;    /* enum metric_dir */
	__u8 pad;
	__u32 cookie;
	__u64 time; /* coarse monotonic ns */
};

/* Source files that drops name. */
enum src_file {
	FILE_NONE = 0,
	FILE_TC = 1,
	FILE_PARSE = 2,
	FILE_FLOW = 3,
	FILE_NAT = 4,
	FILE_LB = 5,
	FILE_FWD = 6,
	FILE_ICMP = 7,
	FILE_FRAG = 8,
};

/* Why a packet was dropped: subtype of EVT_DROP, reason of metrics. */
enum drop_reason {
	DROP_INVALID_SOURCE_IP = 132,
	DROP_POLICY_DENIED = 133,
	DROP_INVALID_PACKET = 134,
	DROP_TRUNCATED = 135,
	DROP_CT_UNKNOWN_PROTO = 137,
	DROP_UNSUPPORTED_L3 = 139,
	DROP_MISSED_TAIL_CALL = 140,
	DROP_WRITE_ERROR = 141,
	DROP_UNKNOWN_L4 = 142,
	DROP_UNKNOWN_ICMP4_CODE = 143,
	DROP_UNKNOWN_ICMP4_TYPE = 144,
	DROP_UNKNOWN_ICMP6_CODE = 145,
	DROP_UNKNOWN_ICMP6_TYPE = 146,
	DROP_NO_TUNNEL_KEY = 147,
	DROP_UNKNOWN_L3_TARGET = 150,
	DROP_STALE_IP = 151,
	DROP_CSUM_L3 = 153,
	DROP_CSUM_L4 = 154,
	DROP_CT_INSERT = 155,
	DROP_INVALID_EXTHDR = 156,
	DROP_FRAG_UNSUPPORTED = 157,
	DROP_NO_BACKEND = 158,
	DROP_NO_TUNNEL_ENDPOINT = 160,
	DROP_UNKNOWN_CT = 163,
	DROP_HOST_UNREACHABLE = 164,
	DROP_UNSUPPORTED_L2 = 166,
	DROP_NO_SNAT_MAPPING = 167,
	DROP_SNAT_UNSUPPORTED = 168,
	DROP_NO_FIB = 169,
	DROP_INVALID_IDENTITY = 171,
	DROP_UNKNOWN_SENDER = 172,
	DROP_IS_CLUSTER_IP = 174,
	DROP_FRAG_NOT_FOUND = 175,
	DROP_FORBIDDEN_ICMP6 = 176,
	DROP_NOT_IN_SRC_RANGE = 177,
	DROP_INVALID_VNI = 183,
	DROP_TTL_EXCEEDED = 196,
	DROP_HOST_NOT_READY = 202,
	DROP_EP_NOT_READY = 203,
	DROP_NO_EGRESS_IP = 204,
};
