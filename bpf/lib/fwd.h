/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Where a packet goes: into a pod of this node, into the tunnel, out of a device by the kernel's
 * routes, or to the host stack. Deciding writes what the packet needs; leave() lets it go.
 */
#pragma once

#include "addr.h"
#include "encap.h"
#include "event.h"
#include "icmp.h"
#include "pkt.h"
#include "switches.h"

#define PACKET_HOST 0

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, struct test_rec);
	__uint(max_entries, 1);
} test_rec SEC(".maps");

static __inline void mark_done(struct __sk_buff *ctx)
{
	ctx->mark = (ctx->mark & ~MARK_MASK) | MARK_DONE;
}

static __inline int is_done(const struct __sk_buff *ctx)
{
	return (ctx->mark & MARK_MASK) == MARK_DONE;
}

/* Whether the program in front of this one at the hook has done the work already. */
static __inline int was_handled(struct __sk_buff *ctx, u8 hook)
{
	if ((ctx->mark & MARK_MASK) != MARK_HANDLED(hook) || !in_handover())
		return 0;
	ctx->mark &= ~MARK_MASK;
	return 1;
}

#define MACS_LEN 12
#define HOP4_END (ETH_LEN + 12) /* behind the checksum of an IPv4 header */
#define HOP6_END (ETH_LEN + 8)  /* behind the hop limit */

/*
 * One routed hop: TTL or hop limit minus one, or the answer that it is used up. With macs, where
 * the addresses of the next Ethernet header stand in front, these are written by the same call.
 */
static __inline int hop_step(struct __sk_buff *ctx, struct pkt *p, u8 *b, int macs)
{
	u8 ttl = p->ttl;

	if (ttl <= 1)
		return icmp_reply_error(ctx, p->v6 ? ICMP6_TIME_EXCEEDED : ICMP4_TIME_EXCEEDED, 0,
					0, DROP_TTL_EXCEEDED);
	p->ttl = --ttl;
	if (p->v6) {
		if (!macs)
			return bpf_skb_store_bytes(ctx, ETH_LEN + 7, &ttl, 1, 0)
				       ? DROP(p, FILE_FWD, DROP_WRITE_ERROR)
				       : V_NEXT;
		if (bpf_skb_load_bytes(ctx, MACS_LEN, b + MACS_LEN, HOP6_END - MACS_LEN))
			return DROP(p, FILE_FWD, DROP_TRUNCATED);
		b[ETH_LEN + 7] = ttl;
		if (bpf_skb_store_bytes(ctx, 0, b, HOP6_END, 0))
			return DROP(p, FILE_FWD, DROP_WRITE_ERROR);
	} else {
		u32 sum;

		if (bpf_skb_load_bytes(ctx, MACS_LEN, b + MACS_LEN, HOP4_END - MACS_LEN))
			return DROP(p, FILE_FWD, DROP_TRUNCATED);
		b[ETH_LEN + 8] = ttl;
		/* TTL is the upper byte of a word, so the complement of the sum grows by 0x100 */
		sum = ((u32)b[ETH_LEN + 10] << 8 | b[ETH_LEN + 11]) + 0x100;
		sum = (sum & 0xffff) + (sum >> 16);
		b[ETH_LEN + 10] = sum >> 8;
		b[ETH_LEN + 11] = sum;
		if (macs ? bpf_skb_store_bytes(ctx, 0, b, HOP4_END, 0)
			 : bpf_skb_store_bytes(ctx, ETH_LEN + 8, b + ETH_LEN + 8, 4, 0))
			return DROP(p, FILE_FWD, DROP_WRITE_ERROR);
	}
	return V_NEXT;
}

static __inline int ttl_step(struct __sk_buff *ctx, struct pkt *p)
{
	u8 b[HOP4_END] = {};

	return hop_step(ctx, p, b, 0);
}

static __inline int to_stack(struct pkt *p)
{
	p->how = FWD_STACK;
	return V_FWD;
}

/* Into a pod of this node: its end of the pair, in one go if that is in another namespace. */
static __inline int to_pod(struct __sk_buff *ctx, struct pkt *p)
{
	const struct ep *e;
	u32 ifindex = p->dst_ifindex;
	u8 head[HOP4_END] = {};
	int v;

	e = bpf_map_lookup_elem(&ep, &ifindex);
	if (!ifindex || !e)
		return DROP(p, FILE_FWD, DROP_STALE_IP);
	__builtin_memcpy(head, e->mac, 6);
	__builtin_memcpy(head + 6, e->node_mac, 6);
	v = hop_step(ctx, p, head, 1);
	if (v)
		return v;
	p->how = e->flags & EP_PEER_HERE ? FWD_HERE : FWD_PEER;
	p->oif = ifindex;
	return V_FWD;
}

/* Gives the packet a tunnel key for the node behind an index. */
__noinline int tunnel_key(struct __sk_buff *ctx, u32 index)
{
	struct bpf_tunnel_key key = {};
	struct pkt *p = pkt_get();
	const struct vtep *vt = bpf_map_lookup_elem(&vtep, &index);
	u64 flags = BPF_F_ZERO_CSUM_TX;
	u32 w[4];

	if (!p)
		return -DROP_INVALID_PACKET;
	if (!vt || !index)
		return DROP(p, FILE_FWD, DROP_NO_TUNNEL_ENDPOINT);
	__builtin_memcpy(w, vt->ip, 16);
	if (!(w[0] | w[1] | w[2] | w[3]))
		return DROP(p, FILE_FWD, DROP_NO_TUNNEL_ENDPOINT);
	if (!w[0] && !w[1] && w[2] == V4MAPPED) {
		key.remote_ipv4 = bpf_ntohl(w[3]);
	} else {
		__builtin_memcpy(key.remote_ipv6, w, 16);
		flags = BPF_F_TUNINFO_IPV6;
	}
	key.tunnel_id = network_id(p);
	key.tunnel_ttl = 64;
	p->tun_id = key.tunnel_id;
	if (bpf_skb_set_tunnel_key(ctx, &key, sizeof(key), flags))
		return DROP(p, FILE_FWD, DROP_NO_TUNNEL_ENDPOINT);
	if (c_test) {
		u32 zero = 0;
		struct test_rec *r = bpf_map_lookup_elem(&test_rec, &zero);

		if (r)
			__builtin_memcpy(r->tun_ip, w, 16);
	}
	return V_NEXT;
}

/* 1 if the packet, or a segment of it, is larger than fits. */
static __inline int too_big(const struct __sk_buff *ctx, const struct pkt *p, u32 mtu)
{
	if (ctx->gso_size)
		return ctx->gso_size + (p->l4 - ETH_LEN) + (p->proto == PROTO_TCP ? 20 : 8) > mtu;
	return p->len - ETH_LEN > mtu;
}

static __inline int answer_too_big(struct __sk_buff *ctx, struct pkt *p, u32 mtu)
{
	if (p->v6)
		return icmp_reply_error(ctx, ICMP6_TOO_BIG, 0, mtu, 0);
	return icmp_reply_error(ctx, ICMP4_UNREACH, 4, mtu, 0);
}

/* The largest packet that fits the tunnel to the node behind dst_vtep. */
static __inline u32 tunnel_mtu(const struct pkt *p)
{
	u32 index = p->dst_vtep;
	const struct vtep *vt = bpf_map_lookup_elem(&vtep, &index);

	return vt && vt->mtu ? vt->mtu : c_tunnel_mtu;
}

/* Takes device and next hop from a route. */
static __inline void next_hop(struct pkt *p)
{
	p->oif = p->fib.ifindex;
	p->nh.nh_family = p->fib.family;
	if (p->fib.family == AF_INET6) {
		__builtin_memcpy(p->nh.ipv6_nh, p->fib.ipv6_dst, 16);
	} else {
		__builtin_memset(p->nh.ipv6_nh, 0, 16);
		p->nh.ipv4_nh = p->fib.ipv4_dst;
	}
}

/* Through the tunnel to the node behind dst_vtep. */
static __inline int to_tunnel(struct __sk_buff *ctx, struct pkt *p)
{
	u32 index = p->dst_vtep, mtu = tunnel_mtu(p);
	int v;

	if (p->df && too_big(ctx, p, mtu))
		return answer_too_big(ctx, p, mtu);
	v = ttl_step(ctx, p);
	if (v)
		return v;
	if (c_encap && !too_big(ctx, p, mtu) && encap_route(ctx)) {
		p->how = FWD_ENCAP;
		p->tun_id = network_id(p);
		next_hop(p);
		return V_FWD;
	}
	v = tunnel_key(ctx, index);
	if (v)
		return v;
	p->how = FWD_TUNNEL;
	p->oif = tunnel_device();
	return V_FWD;
}

/* Asks the kernel's routing. The result is of bpf_fib_lookup; oif and next hop are in p->fib. */
__noinline int route_lookup(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	struct bpf_fib_lookup *f;

	if (!p)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	f = &p->fib;
	__builtin_memset(f, 0, sizeof(*f));
	f->ifindex = ctx->ifindex;
	f->l4_protocol = p->proto;
	if (p->v6) {
		f->family = AF_INET6;
		__builtin_memcpy(f->ipv6_src, &p->t.saddr, 16);
		__builtin_memcpy(f->ipv6_dst, &p->t.daddr, 16);
	} else {
		f->family = AF_INET;
		f->ipv4_src = p->t.saddr.w[3];
		f->ipv4_dst = p->t.daddr.w[3];
	}
	return bpf_fib_lookup(ctx, f, sizeof(*f), BPF_FIB_LOOKUP_SKIP_NEIGH);
}

/* Out of the node, by the kernel's routes. */
static __inline int to_network(struct __sk_buff *ctx, struct pkt *p)
{
	int r = route_lookup(ctx);
	int v;

	switch (r) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		break;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		if (p->df)
			return answer_too_big(ctx, p, p->fib.mtu_result);
		return to_stack(p); /* the kernel makes the fragments */
	case BPF_FIB_LKUP_RET_NOT_FWDED:
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
	case BPF_FIB_LKUP_RET_UNSUPP_LWT:
		return to_stack(p);
	default:
		return DROP(p, FILE_FWD, DROP_NO_FIB);
	}
	v = ttl_step(ctx, p);
	if (v)
		return v;
	p->how = FWD_NEIGH;
	next_hop(p);
	return V_FWD;
}

static __inline u8 hook_dir(u8 hook)
{
	return hook == HOOK_POD_FROM || hook == HOOK_OV_TO || hook == HOOK_ND_TO ? METRIC_EGRESS
										 : METRIC_INGRESS;
}

static __inline u8 trace_point(const struct pkt *p)
{
	switch (p->how) {
	case FWD_PEER:
	case FWD_HERE:
		return TRACE_TO_ENDPOINT;
	case FWD_TUNNEL:
	case FWD_ENCAP:
		return TRACE_TO_OVERLAY;
	case FWD_NEIGH:
		return TRACE_TO_NETWORK;
	case FWD_DEV:
		return TRACE_TO_NETWORK;
	default:
		break;
	}
	if (p->hook == HOOK_POD_TO)
		return TRACE_TO_ENDPOINT;
	if (p->hook == HOOK_OV_TO)
		return TRACE_TO_OVERLAY;
	if (p->hook == HOOK_ND_TO)
		return TRACE_TO_NETWORK;
	if (p->hook == HOOK_POD_FROM)
		return TRACE_TO_STACK;
	return TRACE_TO_HOST;
}

static __inline void record(const struct pkt *p)
{
	u32 zero = 0;
	struct test_rec *r = bpf_map_lookup_elem(&test_rec, &zero);

	if (!r)
		return;
	r->helper = p->how;
	r->ifindex = p->oif;
	r->tun_id = p->tun_id;
	__builtin_memcpy(r->nexthop, p->nh.ipv6_nh, 16);
}

/* Counts and reports the outcome. */
__noinline int report(struct __sk_buff *ctx, int v)
{
	struct pkt *p = pkt_get();
	const struct run_cfg *rc;
	u32 zero = 0;
	u8 dir;

	if (!p || v == V_PASS || v == V_EAT)
		return 0;
	dir = hook_dir(p->hook);
	if (v < 0) {
		count(-v, dir, p->line, p->file, p->len);
		event_emit(ctx, EVT_DROP, -v, dir, dir == METRIC_EGRESS ? p->ep_id : p->dst_ep);
		return 0;
	}
	count_forwarded(dir, p->len);
	if ((p->how == FWD_PEER || p->how == FWD_HERE) && dir == METRIC_EGRESS)
		count_forwarded(METRIC_INGRESS, p->len);
	rc = bpf_map_lookup_elem(&cfg, &zero);
	if (!rc || !rc->trace_rate || (!p->monitor && !rc->trace_every))
		return 0;
	event_emit(ctx, EVT_TRACE, trace_point(p), dir,
		   trace_point(p) == TRACE_TO_ENDPOINT ? p->dst_ep : p->ep_id);
	return 0;
}

#define ACT_NEXT (-1) /* other programs at the hook, then the stack */
#define ACT_SHOT 2

/* Lets a packet go in its outer headers, or by the device where the kernel does not let them be
 * written. */
static __noinline int leave_encap(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	int v;

	if (!p)
		return ACT_SHOT;
	mark_done(ctx);
	v = encap(ctx);
	if (v == V_FWD)
		return bpf_redirect_neigh(p->oif, &p->nh, sizeof(p->nh), 0);
	if (v == V_NEXT)
		v = tunnel_key(ctx, p->dst_vtep);
	if (v == V_NEXT)
		return bpf_redirect(tunnel_device(), 0);
	report(ctx, v);
	return ACT_SHOT;
}

/* The end of every hook: report, then let the packet go. */
static __inline int leave(struct __sk_buff *ctx, int v)
{
	struct pkt *p;

	report(ctx, v);
	if (v == V_PASS)
		return ACT_NEXT;
	p = pkt_get();
	if (v < 0 || v == V_EAT || !p)
		return ACT_SHOT;
	if (c_test)
		record(p);
	switch (p->how) {
	case FWD_PEER:
		return bpf_redirect_peer(p->oif, 0);
	case FWD_DEV:
	case FWD_HERE:
	case FWD_TUNNEL:
		mark_done(ctx);
		return bpf_redirect(p->oif, 0);
	case FWD_ENCAP:
		return leave_encap(ctx);
	case FWD_NEIGH:
		mark_done(ctx);
		return bpf_redirect_neigh(p->oif, &p->nh, sizeof(p->nh), 0);
	default:
		if (p->hook == HOOK_OV_FROM || p->hook == HOOK_ND_FROM)
			bpf_skb_change_type(ctx, PACKET_HOST);
		if (in_handover())
			ctx->mark = (ctx->mark & ~MARK_MASK) | MARK_HANDLED(p->hook);
		return ACT_NEXT;
	}
}
