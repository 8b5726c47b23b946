/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From bytes to struct pkt: IP header, extension headers, ports; also of quoted packets. */
#pragma once

#include "pkt.h"

#define EXTHDR_MAX 6

struct ip4_hdr {
	u8 vihl;
	u8 tos;
	__be16 len;
	__be16 id;
	__be16 off;
	u8 ttl;
	u8 proto;
	u16 csum;
	__be32 src;
	__be32 dst;
};

struct ip6_hdr {
	__be32 vtf;
	__be16 len;
	u8 next;
	u8 hops;
	u8 src[16];
	u8 dst[16];
};

#define NEXT_HOP 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_AUTH 51
#define NEXT_NONE 59
#define NEXT_DEST 60

static __inline int icmp_is_error(const struct pkt *p, u8 type)
{
	if (p->v6)
		return type < 128;
	return type == ICMP4_UNREACH || type == ICMP4_TIME_EXCEEDED || type == ICMP4_PARAM;
}

static __inline int icmp_is_echo(const struct pkt *p)
{
	if (p->v6)
		return p->icmp_type == ICMP6_ECHO || p->icmp_type == ICMP6_ECHO_REPLY;
	return p->icmp_type == ICMP4_ECHO || p->icmp_type == ICMP4_ECHO_REPLY;
}

static __inline int icmp_is_request(const struct pkt *p)
{
	return p->icmp_type == (p->v6 ? ICMP6_ECHO : ICMP4_ECHO);
}

/*
 * The id of an echo is the port of the side that asks, and the other side has port 0: both sides
 * may ask each other at the same time with the same id.
 */
static __inline void echo_ports(struct pkt *p, u8 type, __be16 id)
{
	p->t.sport = 0;
	p->t.dport = 0;
	if (type == (p->v6 ? ICMP6_ECHO : ICMP4_ECHO))
		p->t.sport = id;
	else if (type == (p->v6 ? ICMP6_ECHO_REPLY : ICMP4_ECHO_REPLY))
		p->t.dport = id;
}

/* Ports, TCP flags, ICMP type and id. */
__noinline int parse_l4(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	u8 b[16] = {};
	u32 off;

	if (!p)
		return -DROP_INVALID_PACKET;
	off = p->l4;

	switch (p->proto) {
	case PROTO_TCP:
		if (bpf_skb_load_bytes(ctx, off, b, 14))
			return DROP(p, FILE_PARSE, DROP_TRUNCATED);
		p->tcp_flags = b[13];
		break;
	case PROTO_UDP:
	case PROTO_SCTP:
		if (bpf_skb_load_bytes(ctx, off, b, 8))
			return DROP(p, FILE_PARSE, DROP_TRUNCATED);
		break;
	case PROTO_ICMP:
	case PROTO_ICMP6:
		if (bpf_skb_load_bytes(ctx, off, b, 8))
			return DROP(p, FILE_PARSE, DROP_TRUNCATED);
		p->icmp_type = b[0];
		p->icmp_code = b[1];
		if (icmp_is_error(p, b[0])) {
			p->icmp_err = 1;
			p->inner = off + 8;
		}
		echo_ports(p, b[0], *(__be16 *)(b + 4));
		return V_NEXT;
	default:
		return V_NEXT;
	}
	p->t.sport = *(__be16 *)b;
	p->t.dport = *(__be16 *)(b + 2);
	return V_NEXT;
}

static __inline int parse4(struct __sk_buff *ctx, struct pkt *p)
{
	struct ip4_hdr h;
	u16 off;

	if (bpf_skb_load_bytes(ctx, ETH_LEN, &h, sizeof(h)))
		return DROP(p, FILE_PARSE, DROP_TRUNCATED);
	if ((h.vihl >> 4) != 4 || (h.vihl & 0xf) < 5)
		return DROP(p, FILE_PARSE, DROP_INVALID_PACKET);
	p->l3 = ETH_LEN;
	p->l4 = ETH_LEN + (h.vihl & 0xf) * 4;
	p->proto = h.proto;
	p->ttl = h.ttl;
	ip_from4(&p->t.saddr, h.src);
	ip_from4(&p->t.daddr, h.dst);
	off = bpf_ntohs(h.off);
	p->df = !!(off & 0x4000);
	if (off & 0x3fff) {
		p->frag = (off & 0x1fff) ? FRAG_LATER : FRAG_FIRST;
		p->frag_id = h.id;
		if (p->frag == FRAG_LATER)
			return V_NEXT;
	}
	return parse_l4(ctx);
}

/* Walks extension headers up to the transport header. */
static __noinline int parse6_ext(struct __sk_buff *ctx, struct pkt *p, u8 next)
{
	u32 off = ETH_LEN + sizeof(struct ip6_hdr);
	u8 b[8];
	int i;

	for (i = 0; i <= EXTHDR_MAX; i++) {
		switch (next) {
		case NEXT_HOP:
		case NEXT_ROUTING:
		case NEXT_DEST:
		case NEXT_AUTH:
		case NEXT_FRAGMENT:
			break;
		default:
			p->proto = next;
			p->l4 = off;
			return V_NEXT;
		}
		if (bpf_skb_load_bytes(ctx, off, b, sizeof(b)))
			return DROP(p, FILE_PARSE, DROP_TRUNCATED);
		if (next == NEXT_FRAGMENT) {
			u16 pos = bpf_ntohs(*(__be16 *)(b + 2));

			if (pos & 0xfff8)
				p->frag = FRAG_LATER;
			else if (pos & 1)
				p->frag = FRAG_FIRST;
			p->frag_id = *(__be32 *)(b + 4);
			off += 8;
		} else if (next == NEXT_AUTH) {
			off += (b[1] + 2) * 4;
		} else {
			off += (b[1] + 1) * 8;
		}
		next = b[0];
		if (p->frag == FRAG_LATER) {
			p->proto = next;
			p->l4 = off;
			return V_NEXT;
		}
	}
	return DROP(p, FILE_PARSE, DROP_INVALID_EXTHDR);
}

static __inline int parse6(struct __sk_buff *ctx, struct pkt *p)
{
	struct ip6_hdr h;
	int v;

	if (bpf_skb_load_bytes(ctx, ETH_LEN, &h, sizeof(h)))
		return DROP(p, FILE_PARSE, DROP_TRUNCATED);
	if ((*(u8 *)&h.vtf >> 4) != 6)
		return DROP(p, FILE_PARSE, DROP_INVALID_PACKET);
	p->v6 = 1;
	p->df = 1;
	p->l3 = ETH_LEN;
	p->ttl = h.hops;
	__builtin_memcpy(&p->t.saddr, h.src, 16);
	__builtin_memcpy(&p->t.daddr, h.dst, 16);
	if (h.next == PROTO_TCP || h.next == PROTO_UDP || h.next == PROTO_ICMP6) {
		p->proto = h.next;
		p->l4 = ETH_LEN + sizeof(h);
	} else {
		v = parse6_ext(ctx, p, h.next);
		if (v)
			return v;
	}
	if (p->frag == FRAG_LATER)
		return V_NEXT;
	return parse_l4(ctx);
}

/* Starts a packet. V_PASS: neither IPv4 nor IPv6, or a family that pods do not have. */
__noinline int parse(struct __sk_buff *ctx, u32 hook)
{
	struct pkt *p = pkt_get();

	if (!p)
		return V_PASS;
	__builtin_memset(p->zero, 0,
			 __builtin_offsetof(struct pkt, zero_end) -
				 __builtin_offsetof(struct pkt, zero));
	p->hook = hook;
	p->len = ctx->len;
	p->now = bpf_ktime_get_coarse_ns() >> 20;
	p->t.sport = 0;
	p->t.dport = 0;
	if (ctx->protocol == bpf_htons(ETH_P_IP))
		return c_ipv4 ? parse4(ctx, p) : V_PASS;
	if (ctx->protocol == bpf_htons(ETH_P_IPV6))
		return c_ipv6 ? parse6(ctx, p) : V_PASS;
	return V_PASS;
}

/*
 * Reads the packet that an ICMP error quotes. The tuple is turned round, so that it belongs to a
 * packet that travels like the error does. Quotes may end after 8 bytes of the transport header.
 */
__noinline int parse_quote(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	u32 off, l4;
	u8 b[8] = {};
	u8 proto;

	if (!p)
		return -DROP_INVALID_PACKET;
	off = p->inner;
	if (p->v6) {
		struct ip6_hdr h;

		if (bpf_skb_load_bytes(ctx, off, &h, sizeof(h)))
			return DROP(p, FILE_PARSE, DROP_TRUNCATED);
		proto = h.next;
		l4 = off + sizeof(h);
		__builtin_memcpy(&p->t.saddr, h.dst, 16);
		__builtin_memcpy(&p->t.daddr, h.src, 16);
		if (proto == NEXT_FRAGMENT) {
			if (bpf_skb_load_bytes(ctx, l4, b, sizeof(b)))
				return DROP(p, FILE_PARSE, DROP_TRUNCATED);
			proto = b[0];
			l4 += 8;
		}
	} else {
		struct ip4_hdr h;

		if (bpf_skb_load_bytes(ctx, off, &h, sizeof(h)))
			return DROP(p, FILE_PARSE, DROP_TRUNCATED);
		if ((h.vihl & 0xf) < 5)
			return DROP(p, FILE_PARSE, DROP_INVALID_PACKET);
		proto = h.proto;
		l4 = off + (h.vihl & 0xf) * 4;
		ip_from4(&p->t.saddr, h.dst);
		ip_from4(&p->t.daddr, h.src);
	}
	p->proto = proto;
	p->l4 = l4;
	if (bpf_skb_load_bytes(ctx, l4, b, sizeof(b)))
		return DROP(p, FILE_PARSE, DROP_TRUNCATED);
	if (proto == PROTO_ICMP || proto == PROTO_ICMP6) {
		u16 id;

		echo_ports(p, b[0], *(__be16 *)(b + 4));
		id = p->t.sport;
		p->t.sport = p->t.dport;
		p->t.dport = id;
	} else {
		p->t.sport = *(__be16 *)(b + 2);
		p->t.dport = *(__be16 *)b;
	}
	return V_NEXT;
}
