/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Packets that we make ourselves, in place of the one they answer: ICMP errors, TCP resets and
 * neighbour advertisements. They go back where the packet came from.
 */
#pragma once

#include "addr.h"
#include "event.h"
#include "parse.h"
#include "pkt.h"
#include "switches.h"

#define QUOTE_MAX 128 /* bytes of the packet that an error quotes, from its IP header on */

int tunnel_key(struct __sk_buff *ctx, u32 index);

static __inline u16 csum_final(s64 sum)
{
	u64 s = (u32)sum;

	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return ~s;
}

/* Sums n bytes of the packet at off, at most QUOTE_MAX; folded to 16 bits. */
__noinline int csum_packet(struct __sk_buff *ctx, u32 off, u32 n)
{
	s64 sum = 0;
	u32 w[2], i;

	for (i = 0; i < QUOTE_MAX / 8; i++) {
		if (n < 8)
			break;
		if (bpf_skb_load_bytes(ctx, off, w, 8))
			return 0;
		sum = bpf_csum_diff(0, 0, w, 8, sum);
		off += 8;
		n -= 8;
	}
	w[0] = 0;
	w[1] = 0;
	if (n > 0 && n < 8) {
		barrier_var(n);
		n = ((n - 1) & 7) + 1; /* says to kernel 6.1 what the condition says */
		if (bpf_skb_load_bytes(ctx, off, w, n))
			return 0;
		sum = bpf_csum_diff(0, 0, w, 8, sum);
	}
	return (u16)~csum_final(sum);
}

/* Sends the packet back: to the pod or network it came from, or through the tunnel to the node. */
__noinline int send_back(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	const struct addr *a;
	u8 macs[12], back[12];
	int v;

	if (!p)
		return -DROP_INVALID_PACKET;
	if (p->hook == HOOK_OV_FROM) {
		a = addr_find(&p->t.saddr);
		if (!a || !a->vtep)
			return V_EAT;
		p->src_id = ID_HOST;
		v = tunnel_key(ctx, a->vtep);
		if (v)
			return v;
		p->how = FWD_TUNNEL;
		p->oif = tunnel_device();
		return V_FWD;
	}
	if (bpf_skb_load_bytes(ctx, 0, macs, 12))
		return DROP(p, FILE_ICMP, DROP_TRUNCATED);
	__builtin_memcpy(back, macs + 6, 6);
	__builtin_memcpy(back + 6, macs, 6);
	if (bpf_skb_store_bytes(ctx, 0, back, 12, 0))
		return DROP(p, FILE_ICMP, DROP_WRITE_ERROR);
	p->how = FWD_DEV;
	p->oif = ctx->ifindex;
	return V_FWD;
}

static __inline u32 quote_len(const struct pkt *p)
{
	u32 n = p->len - ETH_LEN;

	return n > QUOTE_MAX ? QUOTE_MAX : n;
}

static __inline int error4(struct __sk_buff *ctx, struct pkt *p, u8 type, u8 code, u32 mtu)
{
	struct {
		struct ip4_hdr ip;
		u8 type;
		u8 code;
		u16 csum;
		__be16 unused;
		__be16 mtu;
	} h = {};
	u32 n = quote_len(p);
	s64 sum;

	if (bpf_skb_change_tail(ctx, ETH_LEN + n, 0) ||
	    bpf_skb_adjust_room(ctx, sizeof(h), BPF_ADJ_ROOM_MAC, 0))
		return DROP(p, FILE_ICMP, DROP_WRITE_ERROR);
	h.ip.vihl = 0x45;
	h.ip.len = bpf_htons(sizeof(h) + n);
	h.ip.ttl = 64;
	h.ip.proto = PROTO_ICMP;
	h.ip.src = p->hook == HOOK_ND_FROM ? const4(&c_node4) : const4(&c_router4);
	h.ip.dst = p->t.saddr.w[3];
	h.ip.csum = csum_final(bpf_csum_diff(0, 0, (__be32 *)&h.ip, sizeof(h.ip), 0));
	h.type = type;
	h.code = code;
	h.mtu = bpf_htons(mtu);
	sum = csum_packet(ctx, ETH_LEN + sizeof(h), n);
	sum = bpf_csum_diff(0, 0, (__be32 *)&h.type, 8, sum);
	h.csum = csum_final(sum);
	if (bpf_skb_store_bytes(ctx, ETH_LEN, &h, sizeof(h), 0))
		return DROP(p, FILE_ICMP, DROP_WRITE_ERROR);
	return send_back(ctx);
}

static __inline int error6(struct __sk_buff *ctx, struct pkt *p, u8 type, u8 code, u32 mtu)
{
	struct {
		struct ip6_hdr ip;
		u8 type;
		u8 code;
		u16 csum;
		__be32 mtu;
	} h = {};
	u32 n = quote_len(p);
	u32 pseudo[2];
	s64 sum;

	if (bpf_skb_change_tail(ctx, ETH_LEN + n, 0) ||
	    bpf_skb_adjust_room(ctx, sizeof(h), BPF_ADJ_ROOM_MAC, 0))
		return DROP(p, FILE_ICMP, DROP_WRITE_ERROR);
	h.ip.vtf = bpf_htonl(0x60000000);
	h.ip.len = bpf_htons(8 + n);
	h.ip.next = PROTO_ICMP6;
	h.ip.hops = 64;
	if (p->hook == HOOK_ND_FROM)
		const6(h.ip.src, &c_node6);
	else
		const6(h.ip.src, &c_router6);
	__builtin_memcpy(h.ip.dst, &p->t.saddr, 16);
	h.type = type;
	h.code = code;
	h.mtu = bpf_htonl(mtu);
	pseudo[0] = bpf_htonl(8 + n);
	pseudo[1] = bpf_htonl(PROTO_ICMP6);
	sum = csum_packet(ctx, ETH_LEN + sizeof(h), n);
	sum = bpf_csum_diff(0, 0, (__be32 *)&h.type, 8, sum);
	sum = bpf_csum_diff(0, 0, (__be32 *)h.ip.src, 32, sum);
	sum = bpf_csum_diff(0, 0, pseudo, 8, sum);
	h.csum = csum_final(sum);
	if (bpf_skb_store_bytes(ctx, ETH_LEN, &h, sizeof(h), 0))
		return DROP(p, FILE_ICMP, DROP_WRITE_ERROR);
	return send_back(ctx);
}

/*
 * Answers the packet with an ICMP error. Errors, later fragments and multicast are not answered,
 * nor is anything that came out of the host stack; those are dropped with the reason
 * given. A reason that is not zero is counted in any case.
 */
__noinline int icmp_reply_error(struct __sk_buff *ctx, u32 type, u32 code, u32 mtu, u32 reason)
{
	struct pkt *p = pkt_get();

	if (!p)
		return -DROP_INVALID_PACKET;
	if (reason)
		count(reason, p->hook == HOOK_POD_FROM ? METRIC_EGRESS : METRIC_INGRESS, 0,
		      FILE_ICMP, p->len);
	if (p->icmp_err || p->frag == FRAG_LATER || ip_is_multicast(p, &p->t.daddr) ||
	    !hook_is_ingress(p->hook))
		return V_EAT;
	return p->v6 ? error6(ctx, p, type, code, mtu) : error4(ctx, p, type, code, mtu);
}

struct tcp_hdr {
	__be16 sport;
	__be16 dport;
	__be32 seq;
	__be32 ack;
	u8 off;
	u8 flags;
	__be16 window;
	u16 csum;
	__be16 urgent;
};

/* Answers a TCP segment with a reset, in place. */
__noinline int tcp_reset(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	struct tcp_hdr in, out = {};
	u32 l4, ip_len, ends, pseudo[10];
	__be16 total;
	s64 sum;

	if (!p)
		return V_EAT;
	l4 = p->l4;
	ip_len = l4 - ETH_LEN;
	if (p->tcp_flags & TCP_RST)
		return V_EAT;
	if (bpf_skb_load_bytes(ctx, l4, &in, sizeof(in)))
		return DROP(p, FILE_ICMP, DROP_TRUNCATED);
	out.sport = in.dport;
	out.dport = in.sport;
	out.off = 5 << 4;
	if (in.flags & TCP_ACK) {
		out.seq = in.ack;
		out.flags = TCP_RST;
	} else {
		/* by the IP header: short frames are padded */
		if (bpf_skb_load_bytes(ctx, ETH_LEN + (p->v6 ? 4 : 2), &total, 2))
			return DROP(p, FILE_ICMP, DROP_TRUNCATED);
		ends = bpf_ntohs(total) - ip_len - (in.off >> 4) * 4;
		if (p->v6)
			ends += sizeof(struct ip6_hdr);
		ends += !!(in.flags & TCP_SYN) + !!(in.flags & TCP_FIN);
		out.ack = bpf_htonl(bpf_ntohl(in.seq) + ends);
		out.flags = TCP_RST | TCP_ACK;
	}
	if (bpf_skb_change_tail(ctx, l4 + sizeof(out), 0))
		return DROP(p, FILE_ICMP, DROP_WRITE_ERROR);
	if (p->v6) {
		__be16 len = bpf_htons(ip_len - sizeof(struct ip6_hdr) + sizeof(out));

		__builtin_memcpy(pseudo, &p->t.daddr, 16);
		__builtin_memcpy(pseudo + 4, &p->t.saddr, 16);
		if (bpf_skb_store_bytes(ctx, ETH_LEN + 4, &len, 2, 0) ||
		    bpf_skb_store_bytes(ctx, ETH_LEN + 8, pseudo, 32, 0))
			return DROP(p, FILE_ICMP, DROP_WRITE_ERROR);
	} else {
		__be16 len = bpf_htons(ip_len + sizeof(out)), old;

		__builtin_memset(pseudo, 0, sizeof(pseudo));
		pseudo[0] = p->t.daddr.w[3];
		pseudo[1] = p->t.saddr.w[3];
		if (bpf_skb_load_bytes(ctx, ETH_LEN + 2, &old, 2) ||
		    bpf_l3_csum_replace(ctx, ETH_LEN + 10, old, len, 2) ||
		    bpf_skb_store_bytes(ctx, ETH_LEN + 2, &len, 2, 0) ||
		    bpf_skb_store_bytes(ctx, ETH_LEN + 12, pseudo, 8, 0))
			return DROP(p, FILE_ICMP, DROP_WRITE_ERROR);
	}
	pseudo[8] = bpf_htonl(sizeof(out));
	pseudo[9] = bpf_htonl(PROTO_TCP);
	sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), 0);
	sum = bpf_csum_diff(0, 0, (__be32 *)&out, sizeof(out), sum);
	out.csum = csum_final(sum);
	if (bpf_skb_store_bytes(ctx, l4, &out, sizeof(out), 0))
		return DROP(p, FILE_ICMP, DROP_WRITE_ERROR);
	return send_back(ctx);
}

/* Refuses a packet to a Service that has nothing behind it: reset or port unreachable. */
__noinline int reject(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();

	if (!p)
		return -DROP_NO_BACKEND;
	if ((p->hook != HOOK_POD_FROM && p->hook != HOOK_ND_FROM) || p->icmp_err ||
	    p->frag == FRAG_LATER)
		return DROP(p, FILE_ICMP, DROP_NO_BACKEND);
	count(DROP_NO_BACKEND, p->hook == HOOK_POD_FROM ? METRIC_EGRESS : METRIC_INGRESS, __LINE__,
	      FILE_ICMP, p->len);
	if (p->proto == PROTO_TCP)
		return tcp_reset(ctx);
	return icmp_reply_error(ctx, p->v6 ? ICMP6_UNREACH : ICMP4_UNREACH, p->v6 ? 4 : 3, 0, 0);
}

/* Answers a ping, in place, to the address of a load balancer, which nobody else would. V_NEXT: it
 * is something else.
 */
__noinline int answer_ping(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	__be16 was, now;
	u32 addrs[8];
	u8 hops = 64;
	u32 l4;

	if (!p)
		return -DROP_INVALID_PACKET;
	if (p->dst_kind != ADDR_VIP || !(p->dst_flags & ADDR_ECHO) || p->frag != FRAG_NOT ||
	    p->proto != (p->v6 ? PROTO_ICMP6 : PROTO_ICMP) ||
	    p->icmp_type != (p->v6 ? ICMP6_ECHO : ICMP4_ECHO))
		return V_NEXT;
	l4 = p->l4;
	if (bpf_skb_load_bytes(ctx, l4, &was, 2))
		return DROP(p, FILE_ICMP, DROP_TRUNCATED);
	now = p->v6 ? bpf_htons(ICMP6_ECHO_REPLY << 8) : bpf_htons(ICMP4_ECHO_REPLY << 8);
	if (bpf_l4_csum_replace(ctx, l4 + 2, was, now, 2) ||
	    bpf_skb_store_bytes(ctx, l4, &now, 2, 0))
		return DROP(p, FILE_ICMP, DROP_WRITE_ERROR);
	if (p->v6) {
		__builtin_memcpy(addrs, &p->t.daddr, 16);
		__builtin_memcpy(addrs + 4, &p->t.saddr, 16);
		if (bpf_skb_store_bytes(ctx, ETH_LEN + 7, &hops, 1, 0) ||
		    bpf_skb_store_bytes(ctx, ETH_LEN + 8, addrs, 32, 0))
			return DROP(p, FILE_ICMP, DROP_WRITE_ERROR);
	} else {
		addrs[0] = p->t.daddr.w[3];
		addrs[1] = p->t.saddr.w[3];
		if (bpf_skb_load_bytes(ctx, ETH_LEN + 8, &was, 2))
			return DROP(p, FILE_ICMP, DROP_TRUNCATED);
		now = bpf_htons(hops << 8 | PROTO_ICMP);
		if (bpf_l3_csum_replace(ctx, ETH_LEN + 10, was, now, 2) ||
		    bpf_skb_store_bytes(ctx, ETH_LEN + 8, &now, 2, 0) ||
		    bpf_skb_store_bytes(ctx, ETH_LEN + 12, addrs, 8, 0))
			return DROP(p, FILE_ICMP, DROP_WRITE_ERROR);
	}
	return send_back(ctx);
}

/*
 * Answers a pod's neighbour solicitation for an address of its gateway. The gateway is whoever the
 * pod asks for, because a pod sends everything to the node.
 */
static __noinline int nd_answer(struct __sk_buff *ctx, struct pkt *p, const struct ep *e)
{
	struct {
		u8 type;
		u8 code;
		u16 csum;
		__be32 flags;
		union ip target;
		u8 opt;
		u8 opt_len;
		u8 mac[6];
	} na;
	struct ip6_hdr h;
	u32 pseudo[2];
	s64 sum;

	if (p->len < ETH_LEN + sizeof(h) + sizeof(na) ||
	    bpf_skb_load_bytes(ctx, ETH_LEN, &h, sizeof(h)) ||
	    bpf_skb_load_bytes(ctx, p->l4, &na, sizeof(na)))
		return V_EAT;
	__builtin_memcpy(h.dst, h.src, 16);
	__builtin_memcpy(h.src, &na.target, 16);
	h.hops = 255;
	na.type = ICMP6_NA;
	na.csum = 0;
	na.flags = bpf_htonl(0xe0000000); /* router, solicited, override */
	na.opt = 2;
	na.opt_len = 1;
	__builtin_memcpy(na.mac, e->node_mac, 6);
	pseudo[0] = bpf_htonl(sizeof(na));
	pseudo[1] = bpf_htonl(PROTO_ICMP6);
	sum = bpf_csum_diff(0, 0, (__be32 *)h.src, 32, 0);
	sum = bpf_csum_diff(0, 0, (__be32 *)&na, sizeof(na), sum);
	sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), sum);
	na.csum = csum_final(sum);
	if (bpf_skb_store_bytes(ctx, ETH_LEN, &h, sizeof(h), 0) ||
	    bpf_skb_store_bytes(ctx, p->l4, &na, sizeof(na), 0) ||
	    bpf_skb_store_bytes(ctx, 0, e->mac, 6, 0) ||
	    bpf_skb_store_bytes(ctx, 6, e->node_mac, 6, 0))
		return V_EAT;
	p->how = FWD_DEV;
	p->oif = ctx->ifindex;
	return V_FWD;
}
