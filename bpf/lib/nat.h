/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Translation: changes of addresses and ports in the packet, always by incremental checksums so
 * that packets whose checksum is still to be filled in stay right, and the choice of source ports.
 */
#pragma once

#include "ct.h"
#include "parse.h"

#define SNAT_RANDOM_TRIES 8
#define SNAT_TRIES 40

static __inline u32 l4_csum_off(const struct pkt *p)
{
	switch (p->proto) {
	case PROTO_TCP:
		return 16;
	case PROTO_UDP:
		return 6;
	case PROTO_ICMP:
	case PROTO_ICMP6:
		return 2;
	default:
		return 0;
	}
}

/* Puts new addresses into the IP header at l3 and into the checksums that cover them. */
static __inline int put_addrs(struct __sk_buff *ctx, struct pkt *p, const struct tuple *to)
{
	u32 csum = l4_csum_off(p), l3 = p->l3, l4 = p->l4;
	u64 flags = BPF_F_PSEUDO_HDR | (p->proto == PROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0);
	u32 from[8], new[8];
	s64 diff;

	if (p->v6) {
		__builtin_memcpy(from, &p->t.saddr, 32);
		__builtin_memcpy(new, &to->saddr, 32);
		diff = bpf_csum_diff(from, 32, new, 32, 0);
		if (bpf_skb_store_bytes(ctx, l3 + 8, new, 32, 0))
			return DROP(p, FILE_NAT, DROP_WRITE_ERROR);
	} else {
		from[0] = p->t.saddr.w[3];
		from[1] = p->t.daddr.w[3];
		new[0] = to->saddr.w[3];
		new[1] = to->daddr.w[3];
		diff = bpf_csum_diff(from, 8, new, 8, 0);
		if (bpf_skb_store_bytes(ctx, l3 + 12, new, 8, 0))
			return DROP(p, FILE_NAT, DROP_WRITE_ERROR);
		if (bpf_l3_csum_replace(ctx, l3 + 10, 0, diff, 0))
			return DROP(p, FILE_NAT, DROP_CSUM_L3);
		if (p->proto == PROTO_ICMP)
			return V_NEXT; /* has no pseudo header */
	}
	if (csum && p->frag != FRAG_LATER && bpf_l4_csum_replace(ctx, l4 + csum, 0, diff, flags))
		return DROP(p, FILE_NAT, DROP_CSUM_L4);
	return V_NEXT;
}

__noinline int put_port(struct __sk_buff *ctx, u32 off, u32 from, u32 new)
{
	struct pkt *p = pkt_get();
	__be16 to = new;
	u64 flags;

	if (!p)
		return -DROP_INVALID_PACKET;
	flags = 2 | (p->proto == PROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0);
	if (bpf_l4_csum_replace(ctx, p->l4 + l4_csum_off(p), from, to, flags))
		return DROP(p, FILE_NAT, DROP_CSUM_L4);
	if (bpf_skb_store_bytes(ctx, p->l4 + off, &to, 2, 0))
		return DROP(p, FILE_NAT, DROP_WRITE_ERROR);
	return V_NEXT;
}

/* The id of an echo: one of its ports is 0. */
static __inline __be16 echo_id(const struct tuple *t)
{
	return t->sport | t->dport;
}

/* Makes the packet's tuple t become x. */
__noinline int nat_rewrite(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	int v;

	if (!p)
		return -DROP_INVALID_PACKET;
	if (!ip_same(&p->t.saddr, &p->x.saddr) || !ip_same(&p->t.daddr, &p->x.daddr)) {
		v = put_addrs(ctx, p, &p->x);
		if (v)
			return v;
	}
	if (p->frag != FRAG_LATER) {
		switch (p->proto) {
		case PROTO_TCP:
		case PROTO_UDP:
			if (p->t.sport != p->x.sport) {
				v = put_port(ctx, 0, p->t.sport, p->x.sport);
				if (v)
					return v;
			}
			if (p->t.dport != p->x.dport) {
				v = put_port(ctx, 2, p->t.dport, p->x.dport);
				if (v)
					return v;
			}
			break;
		case PROTO_ICMP:
		case PROTO_ICMP6:
			v = put_port(ctx, 4, echo_id(&p->t), echo_id(&p->x));
			if (v)
				return v;
			break;
		}
	}
	p->t = p->x;
	return V_NEXT;
}

/* Stores a half-word inside the quoted packet and keeps the ICMP checksum right. */
static __inline int put_quoted2(struct __sk_buff *ctx, u32 csum, u32 off, u16 from, u16 to)
{
	if (from == to)
		return 0;
	if (bpf_skb_store_bytes(ctx, off, &to, 2, 0))
		return -1;
	return bpf_l4_csum_replace(ctx, csum, from, to, 2);
}

static __inline u16 csum_fold(u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/*
 * Translates an ICMP error by the entry of the flow that it is about. t is the tuple of a packet
 * of the flow that travels the way the error does, x what that packet would become; the quoted
 * packet is its inverse. outer has the addresses of the error itself.
 */
__noinline int nat_quote(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	u32 inner, csum, from[8], new[8], old_l4;
	struct tuple t, x;
	union ip osrc, odst;
	s64 diff;
	u8 proto;

	if (!p)
		return -DROP_INVALID_PACKET;
	inner = p->inner;
	csum = inner - 8 + 2;
	old_l4 = p->l4;
	proto = p->proto;
	t = p->t;
	x = p->x;
	/* ports: the quoted packet's source is where the error goes */
	if (proto == PROTO_TCP || proto == PROTO_UDP) {
		if (put_quoted2(ctx, csum, old_l4, t.dport, x.dport) ||
		    put_quoted2(ctx, csum, old_l4 + 2, t.sport, x.sport))
			return DROP(p, FILE_NAT, DROP_WRITE_ERROR);
	} else if (proto == PROTO_ICMP || proto == PROTO_ICMP6) {
		if (put_quoted2(ctx, csum, old_l4 + 4, echo_id(&t), echo_id(&x)))
			return DROP(p, FILE_NAT, DROP_WRITE_ERROR);
	}
	/* addresses: quoted source = t.daddr, quoted destination = t.saddr */
	if (p->v6) {
		__builtin_memcpy(from, &t.daddr, 16);
		__builtin_memcpy(from + 4, &t.saddr, 16);
		__builtin_memcpy(new, &x.daddr, 16);
		__builtin_memcpy(new + 4, &x.saddr, 16);
		diff = bpf_csum_diff(from, 32, new, 32, 0);
		if (bpf_skb_store_bytes(ctx, inner + 8, new, 32, 0) ||
		    bpf_l4_csum_replace(ctx, csum, 0, diff, 0))
			return DROP(p, FILE_NAT, DROP_WRITE_ERROR);
	} else {
		u16 old, sum;

		from[0] = t.daddr.w[3];
		from[1] = t.saddr.w[3];
		new[0] = x.daddr.w[3];
		new[1] = x.saddr.w[3];
		diff = bpf_csum_diff(from, 8, new, 8, 0);
		/* the quoted header with its own checksum sums to the same as before */
		if (bpf_skb_load_bytes(ctx, inner + 10, &old, 2))
			return DROP(p, FILE_NAT, DROP_TRUNCATED);
		sum = ~csum_fold((u16)~old + csum_fold(diff));
		if (bpf_skb_store_bytes(ctx, inner + 12, new, 8, 0) ||
		    bpf_l4_csum_replace(ctx, csum, 0, diff, 0) ||
		    put_quoted2(ctx, csum, inner + 10, old, sum))
			return DROP(p, FILE_NAT, DROP_WRITE_ERROR);
	}
	/* the error's own header: to the translated destination, and from the translated source if
	 * the flow's other end sent it itself
	 */
	if (p->v6) {
		u8 a[32];

		if (bpf_skb_load_bytes(ctx, ETH_LEN + 8, a, 32))
			return DROP(p, FILE_NAT, DROP_TRUNCATED);
		__builtin_memcpy(&osrc, a, 16);
		__builtin_memcpy(&odst, a + 16, 16);
	} else {
		__be32 a[2];

		if (bpf_skb_load_bytes(ctx, ETH_LEN + 12, a, 8))
			return DROP(p, FILE_NAT, DROP_TRUNCATED);
		ip_from4(&osrc, a[0]);
		ip_from4(&odst, a[1]);
	}
	p->x.saddr = ip_same(&osrc, &t.saddr) ? x.saddr : osrc;
	p->x.daddr = x.daddr;
	p->t.saddr = osrc;
	p->t.daddr = odst;
	p->proto = p->v6 ? PROTO_ICMP6 : PROTO_ICMP;
	p->l4 = inner - 8;
	if (put_addrs(ctx, p, &p->x))
		return DROP(p, FILE_NAT, DROP_WRITE_ERROR);
	p->t.saddr = p->x.saddr;
	p->t.daddr = p->x.daddr;
	return V_NEXT;
}

/*
 * The port to try first depends on the packet's own alone, and is that if it can be: a client that
 * uses a port again meets what it has left at the server, a socket in TIME_WAIT, as if nothing were
 * between them. With another port the server would not believe its SYN, and the client try again.
 */
static __inline u16 snat_candidate(const struct pkt *p, u32 i, u16 first)
{
	u32 min = p->snat == SNAT_ADDR ? c_snat_addr_min : c_snat_min;
	u32 max = p->snat == SNAT_ADDR ? c_snat_addr_max : c_snat_max;
	u32 n = max - min + 1;
	u16 sport = bpf_ntohs(p->t.sport);

	if (i == 0)
		return min + (u16)(sport - min) % n;
	if (i < SNAT_RANDOM_TRIES)
		return min + (u32)(((u64)bpf_get_prandom_u32() * n) >> 32);
	return min + (first - min + i) % n;
}

struct snat {
	int err;
	u16 first;
};

/* One try of nat_add: 1 ends the loop. */
static long snat_try(u32 i, void *arg)
{
	struct pkt *p = pkt_get();
	struct snat *s = arg;

	if (!p)
		return 1;
	if (p->snat != SNAT_KEEP || i)
		p->x.sport = bpf_htons(snat_candidate(p, i, s->first));
	s->err = ct_add_rev();
	if (s->err == -EEXIST && ct_take_over())
		s->err = ct_add_rev();
	return s->err != -EEXIST;
}

/*
 * Adds the halves of a translated flow. The source port comes from where p->snat says; the packet's
 * own is kept if it can be.
 */
__noinline int nat_add(void)
{
	struct pkt *p = pkt_get();
	struct snat s = { .err = -1 };
	int ports;

	if (!p)
		return -DROP_CT_INSERT;
	ports = p->proto == PROTO_TCP || p->proto == PROTO_UDP || p->proto == PROTO_ICMP ||
		p->proto == PROTO_ICMP6;
	s.first = snat_candidate(p, 1, 0);
	bpf_loop(ports ? SNAT_TRIES : 1, snat_try, &s, 0);
	if (s.err == -EEXIST)
		return DROP(p, FILE_NAT, ports ? DROP_NO_SNAT_MAPPING : DROP_SNAT_UNSUPPORTED);
	if (s.err)
		return DROP(p, FILE_NAT, DROP_CT_INSERT);
	if (ct_add_fwd()) {
		ct_forget(TUPLE_X);
		return DROP(p, FILE_NAT, DROP_CT_INSERT);
	}
	return V_NEXT;
}
