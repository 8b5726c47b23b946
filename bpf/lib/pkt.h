/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The packet under way: what was parsed and what was decided so far. It lives in a per-CPU scratch
 * that every function looks up itself, so that functions are verified one by one and the stack
 * stays small. Programs at devices run with softirqs off and never inside one another.
 */
#pragma once

#include "../include/consts.h"
#include "../include/event_abi.h"
#include "../include/kernel.h"
#include "../include/maps_abi.h"
#include "../include/wire_abi.h"

#define ETH_LEN 14

#define PROTO_ICMP 1
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_ICMP6 58
#define PROTO_SCTP 132

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define ICMP4_ECHO_REPLY 0
#define ICMP4_UNREACH 3
#define ICMP4_ECHO 8
#define ICMP4_TIME_EXCEEDED 11
#define ICMP4_PARAM 12
#define ICMP6_UNREACH 1
#define ICMP6_TOO_BIG 2
#define ICMP6_TIME_EXCEEDED 3
#define ICMP6_PARAM 4
#define ICMP6_ECHO 128
#define ICMP6_ECHO_REPLY 129
#define ICMP6_NS 135
#define ICMP6_NA 136

#define V4MAPPED bpf_htonl(0xffff)

union ip {
	u8 b[16];
	u32 w[4];
	u64 d[2];
};

struct tuple {
	union ip saddr;
	union ip daddr;
	__be16 sport;
	__be16 dport;
	u32 pad;
};

/* Which tuple of the packet a function is about. */
#define TUPLE_T 0
#define TUPLE_X 1

enum hook {
	HOOK_POD_FROM = 1,
	HOOK_POD_TO,
	HOOK_OV_FROM,
	HOOK_OV_TO,
	HOOK_ND_FROM,
	HOOK_ND_TO,
};

/* Where the source port of a translated flow comes from. */
enum snat_range {
	SNAT_KEEP = 0, /* the packet's own, unless it is taken */
	SNAT_NODE,     /* the node's reserved ports */
	SNAT_ADDR,     /* ports of an address that is there for this */
};

/* How a packet leaves its hook; the numbers are those of test_rec.helper. */
enum fwd_how {
	FWD_NONE = 0,
	FWD_STACK = 1,  /* the host stack takes it */
	FWD_PEER = 2,   /* bpf_redirect_peer */
	FWD_DEV = 3,    /* bpf_redirect */
	FWD_NEIGH = 4,  /* bpf_redirect_neigh */
	FWD_TUNNEL = 5, /* tunnel key set, bpf_redirect to the vxlan device */
	FWD_ENCAP = 6,  /* outer headers written, bpf_redirect_neigh to the other node */
	FWD_HERE = 7,   /* bpf_redirect to the device of an endpoint with EP_PEER_HERE */
};

/* What functions of the engine return; a drop is the negated reason. */
enum verdict {
	V_NEXT = 0,   /* go on */
	V_FWD = 1,    /* decided: pkt.how */
	V_PASS = 2,   /* not ours, untouched to the stack: no event, not counted */
	V_EAT = 3,    /* answered or not worth a word: free it */
	V_REFUSE = 4, /* no backend: to be answered so */
};

enum frag_pos {
	FRAG_NOT = 0,
	FRAG_FIRST,
	FRAG_LATER,
};

struct pkt {
	struct tuple t; /* as it stands in the packet */
	struct tuple x; /* what it is to become, if xlate */
	u8 zero[0];     /* from here on cleared for each packet */
	u8 hook;        /* enum hook */
	u8 v6;
	u8 proto;
	u8 ttl;
	u8 tcp_flags;
	u8 icmp_type;
	u8 icmp_code;
	u8 icmp_err; /* carries the head of another packet */
	u8 frag;     /* enum frag_pos */
	u8 df;
	u8 xlate;
	u8 reply;
	u8 state; /* enum trace_reason */
	u8 monitor;
	u8 how;
	u8 file;
	u16 line;
	u16 l3;
	u16 l4;
	u16 inner; /* offset of the quoted IP header */
	__be32 frag_id;
	u32 len;
	u32 now; /* unit of struct ct */
	u32 src_id;
	u32 dst_id;
	u16 ep_id;  /* of the pod that sent it */
	u16 dst_ep; /* of the pod that gets it */
	/* who the destination is */
	u8 dst_kind; /* enum addr_kind */
	u8 dst_pod;  /* a pod of another node, even if unheard of */
	u16 dst_flags;
	u32 dst_vtep;
	u32 dst_ifindex;
	u16 dst_cidr_flags;
	/* conntrack */
	u16 ct_flags;
	u8 ct_kind;
	u8 ct_twin; /* the other half wants to know */
	u16 svc_gen;
	u32 svc_id;
	u32 backend_id;
	u32 backend_gen;
	u8 snat; /* enum snat_range: where the source port comes from */
	u8 dsr;  /* travels as it came from outside, in the tunnel */
	u8 pad2[2];
	u32 oif;
	u32 tun_id;
	u8 zero_end[0];
	struct bpf_fib_lookup fib;
	struct bpf_redir_neigh nh;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, struct pkt);
	__uint(max_entries, 1);
} scratch SEC(".maps");

static __inline struct pkt *pkt_get(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

/* Notes where a packet was dropped and returns the verdict for it. */
static __inline int drop_at(struct pkt *p, u8 file, u16 line, u8 reason)
{
	p->file = file;
	p->line = line;
	return -(int)reason;
}
#define DROP(p, file, reason) drop_at(p, file, __LINE__, reason)

static __inline int ip_same(const union ip *a, const union ip *b)
{
	return a->d[0] == b->d[0] && a->d[1] == b->d[1];
}

static __inline void ip_from4(union ip *ip, __be32 a)
{
	ip->w[0] = 0;
	ip->w[1] = 0;
	ip->w[2] = V4MAPPED;
	ip->w[3] = a;
}

static __inline int ip_is_multicast(const struct pkt *p, const union ip *ip)
{
	if (p->v6)
		return ip->b[0] == 0xff;
	return (ip->b[12] & 0xf0) == 0xe0 || ip->w[3] == 0xffffffff;
}

static __inline int ip6_is_link_local(const union ip *ip)
{
	return ip->b[0] == 0xfe && (ip->b[1] & 0xc0) == 0x80;
}

static __inline int hook_is_ingress(u8 hook)
{
	return hook == HOOK_POD_FROM || hook == HOOK_OV_FROM || hook == HOOK_ND_FROM;
}
