/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The engine: every hook brings a parsed packet here. A known flow is translated by its entry; a
 * new one gets a backend, a masquerade address and an entry. Then its destination decides where
 * the packet goes.
 */
#pragma once

#include "addr.h"
#include "ct.h"
#include "frag.h"
#include "fwd.h"
#include "icmp.h"
#include "lb.h"
#include "nat.h"

/* Ports that a Service or a masqueraded flow can have. */
static __inline int has_ports(const struct pkt *p)
{
	return p->proto == PROTO_TCP || p->proto == PROTO_UDP || p->proto == PROTO_SCTP;
}

/* The hash that Maglev chooses by: of the flow as it came. */
static __inline u32 flow_hash(const struct pkt *p)
{
	u32 h = c_maglev_seed;

	if (p->v6) {
		h = lb_mix(h, p->t.saddr.w[0]);
		h = lb_mix(h, p->t.saddr.w[1]);
		h = lb_mix(h, p->t.saddr.w[2]);
		h = lb_mix(h, p->t.daddr.w[0]);
		h = lb_mix(h, p->t.daddr.w[1]);
		h = lb_mix(h, p->t.daddr.w[2]);
	}
	h = lb_mix(h, p->t.saddr.w[3]);
	h = lb_mix(h, p->t.daddr.w[3]);
	h = lb_mix(h, (u32)p->t.sport << 16 | p->t.dport);
	return lb_final(lb_mix(h, p->proto));
}

/*
 * Chooses a backend if the destination is a Service: x becomes the tuple towards it. from is an
 * enum lb_from. V_PASS: it is no Service; V_REFUSE: it has no backend.
 */
__noinline int service(u32 from)
{
	struct pkt *p = pkt_get();
	struct lb_choice to = {};
	struct front_key k = {};
	struct lb_ask ask = {};
	const struct front *f;

	if (!p || !has_ports(p))
		return V_PASS;
	__builtin_memcpy(k.ip, &p->t.daddr, 16);
	k.port = p->t.dport;
	k.proto = p->proto;
	f = bpf_map_lookup_elem(&front, &k);
	if (!f && lb_any(p->dst_kind, p->dst_flags))
		f = lb_front_any(&k, p->dst_kind, p->dst_flags);
	if (!f)
		return V_PASS;
	if (from != LB_INSIDE && !(f->flags & FRONT_OUTSIDE))
		return DROP(p, FILE_LB, DROP_IS_CLUSTER_IP);
	if ((f->flags & FRONT_SOURCES) && !lb_source_ok(f->svc_id, p->t.saddr.b))
		return DROP(p, FILE_LB, DROP_NOT_IN_SRC_RANGE);
	__builtin_memcpy(ask.client, &p->t.saddr, 16);
	ask.from = from;
	ask.random = bpf_get_prandom_u32();
	ask.now = p->now;
	if (c_maglev_size)
		ask.hash = flow_hash(p);
	switch (lb_choose(f->svc_id, f->flags, &ask, &to)) {
	case LB_NO_SERVICE:
		return V_PASS;
	case LB_NO_BACKEND:
		return V_REFUSE;
	case LB_NOT_HERE:
		return DROP(p, FILE_LB, DROP_NO_BACKEND);
	default:
		break;
	}
	/* the checksum of SCTP covers the ports and is too long to be mended */
	if (p->proto == PROTO_SCTP && to.port != p->t.dport)
		return DROP(p, FILE_LB, DROP_SNAT_UNSUPPORTED);
	__builtin_memcpy(&p->x.daddr, to.ip, 16);
	p->x.dport = to.port;
	p->svc_id = to.svc_id;
	p->svc_gen = to.gen;
	p->backend_id = to.backend_id;
	p->backend_gen = to.backend_gen;
	p->ct_flags |= CT_SERVICE;
	p->xlate = 1;
	return V_NEXT;
}

/* A pod that reaches itself must not see its own address as the peer's. */
static __inline void loopback(struct pkt *p)
{
	if (!ip_same(&p->x.daddr, &p->t.saddr))
		return;
	if (p->v6)
		const6(&p->x.saddr, &c_loopback6);
	else
		p->x.saddr.w[3] = const4(&c_loopback4);
	p->ct_flags |= CT_LOOPBACK;
}

/* The destination lies outside of the pod network, so the fabric must see the node's address. */
static __inline int wants_masq(const struct pkt *p)
{
	if (!(p->v6 ? c_masq6 : c_masq4))
		return 0;
	if (p->dst_cidr_flags & CIDR_NO_MASQ)
		return 0;
	if (p->v6 && ip6_is_link_local(&p->t.daddr))
		return 0;
	/* with native routing other nodes know the way back to a pod */
	return p->dst_kind == ADDR_NONE || p->dst_kind == ADDR_CIDR ||
	       (c_tunnel && p->dst_kind == ADDR_REMOTE_NODE);
}

/* Takes the masquerade address of a device. V_PASS: it has none. */
static __noinline int masq_addr(struct pkt *p, u32 ifindex)
{
	const struct dev *d = bpf_map_lookup_elem(&dev, &ifindex);

	if (!d)
		return V_PASS;
	if (p->v6) {
		union ip m;

		__builtin_memcpy(&m, d->masq6, 16);
		if (!(m.d[0] | m.d[1]))
			return V_PASS;
		p->x.saddr = m;
	} else {
		u32 m;

		__builtin_memcpy(&m, d->masq4, 4);
		if (!m)
			return V_PASS;
		p->x.saddr.w[3] = m;
	}
	p->ct_flags |= CT_MASQ;
	p->snat = SNAT_NODE;
	p->xlate = 1;
	return V_NEXT;
}

/* Where a packet to x.daddr would leave the node, as an index of map dev. */
static __inline u32 masq_device(struct __sk_buff *ctx, struct pkt *p)
{
	union ip keep = p->t.daddr;
	int r;

	p->t.daddr = p->x.daddr;
	r = route_lookup(ctx);
	p->t.daddr = keep;
	if (r != BPF_FIB_LKUP_RET_SUCCESS && r != BPF_FIB_LKUP_RET_NO_NEIGH &&
	    r != BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return 0;
	return p->fib.ifindex;
}

/* A TCP packet that neither opens nor carries on a flow leaves no entry behind. */
static __inline int closes_only(const struct pkt *p)
{
	return p->proto == PROTO_TCP && !(p->tcp_flags & TCP_SYN) &&
	       (p->tcp_flags & (TCP_FIN | TCP_RST));
}

/* Enters the flow: one entry, or two halves if it is translated. */
static __inline int enter(struct pkt *p)
{
	if (p->proto == PROTO_TCP && !(p->tcp_flags & TCP_SYN))
		p->ct_flags |= CT_PICKED_UP;
	p->monitor = 1;
	if (!p->xlate) {
		if (!closes_only(p))
			ct_add_plain(); /* untracked is better than lost */
		return V_NEXT;
	}
	return nat_add();
}

static __inline int has_snat_addr(const struct pkt *p)
{
	u32 a[4];

	if (!p->v6)
		return const4(&c_snat_addr4) != 0;
	const6(a, &c_snat_addr6);
	return (a[0] | a[1]) != 0;
}

/*
 * Gives a packet from outside, whose backend is on another node, a source to which the answer comes
 * back. For a pod that is an address of this node's pod range which nothing else sends from, so
 * that the client's own port is free there; for the other node itself, which may not know the way
 * to the pods of this one, it is the node's.
 */
static __noinline int node_source(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();

	if (!p)
		return -DROP_INVALID_PACKET;
	p->ct_flags |= CT_MASQ;
	if (p->dst_kind == ADDR_REMOTE_EP && has_snat_addr(p)) {
		p->snat = SNAT_ADDR;
		if (p->v6)
			const6(&p->x.saddr, &c_snat_addr6);
		else
			p->x.saddr.w[3] = const4(&c_snat_addr4);
	} else if (masq_addr(p, masq_device(ctx, p)) == V_PASS) {
		p->snat = SNAT_NODE;
		if (p->v6)
			const6(&p->x.saddr, &c_node6);
		else
			p->x.saddr.w[3] = const4(&c_node4);
	}
	if (p->v6 ? !(p->x.saddr.d[0] | p->x.saddr.d[1]) : !p->x.saddr.w[3])
		return DROP(p, FILE_LB, DROP_NO_EGRESS_IP);
	return V_NEXT;
}

/* Whether a packet from outside travels to the node of its backend as it is. */
static __inline int by_dsr(const struct pkt *p)
{
	if (!c_tunnel || p->hook != HOOK_ND_FROM || p->dst_kind != ADDR_REMOTE_EP)
		return 0;
	return c_lb_mode == LB_DSR || (c_lb_mode == LB_HYBRID && p->proto == PROTO_TCP);
}

/* First packet of a flow from outside to a Service. V_PASS: it is for none. */
__noinline int new_from_outside(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	int v;

	if (!p)
		return -DROP_INVALID_PACKET;
	p->x = p->t;
	v = service(p->dsr ? LB_SENT_ON : LB_OUTSIDE);
	if (v == V_REFUSE)
		return reject(ctx);
	if (v != V_NEXT)
		return v;
	dst_resolve(TUPLE_X);
	if (by_dsr(p)) {
		p->ct_flags |= CT_DSR;
		p->xlate = 0;
		p->dsr = 1;
		p->monitor = 1;
		ct_add_fwd(); /* without it the next packet chooses again */
		return V_NEXT;
	}
	if (p->dst_kind != ADDR_LOCAL_EP && p->dst_kind != ADDR_LOCAL_NODE &&
	    p->dst_kind != ADDR_GATEWAY) {
		if (p->hook == HOOK_OV_FROM)
			return DROP(p, FILE_LB, DROP_STALE_IP);
		v = node_source(ctx);
		if (v)
			return v;
	}
	return enter(p);
}

/* First packet of a flow that a pod sends. */
__noinline int new_from_pod(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	int v;

	if (!p)
		return -DROP_INVALID_PACKET;
	p->x = p->t;
	dst_resolve(TUPLE_T);
	if (!c_kpr && p->dst_kind != ADDR_LOCAL_EP && !p->dst_pod) {
		p->ct_flags |= CT_VIA_STACK;
		return enter(p);
	}
	if (c_kpr && (p->dst_flags & (ADDR_HAS_SVC | ADDR_NODEPORT))) {
		v = service(LB_INSIDE);
		if (v == V_REFUSE)
			return reject(ctx);
		if (v < 0)
			return v;
		if (v == V_NEXT) {
			loopback(p);
			dst_resolve(TUPLE_X);
		}
	}
	if (p->dst_kind == ADDR_VIP) {
		v = answer_ping(ctx);
		return v ? v : reject(ctx);
	}
	if (wants_masq(p)) {
		masq_addr(p, masq_device(ctx, p));
		if (p->proto != PROTO_TCP && p->proto != PROTO_UDP && (p->ct_flags & CT_MASQ) &&
		    !icmp_is_request(p))
			return DROP(p, FILE_FLOW, DROP_SNAT_UNSUPPORTED);
	}
	return enter(p);
}

/* First packet of a flow that reaches us any other way. */
__noinline int new_to_here(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();

	if (!p)
		return -DROP_INVALID_PACKET;
	p->x = p->t;
	dst_resolve(TUPLE_T);
	switch (p->hook) {
	case HOOK_OV_FROM:
		if (p->dst_kind != ADDR_LOCAL_EP)
			return V_NEXT; /* the host's business */
		p->ct_flags |= CT_TUNNEL;
		break;
	case HOOK_ND_TO:
		if (p->dst_kind == ADDR_LOCAL_EP)
			return V_NEXT;
		p->ct_flags |= CT_VIA_STACK | CT_SETTLED;
		if (!p->dst_pod && wants_masq(p) && !closes_only(p))
			masq_addr(p, READ_ONCE(ctx->ifindex));
		/* what kube-proxy may have translated has to come back to it */
		if (!p->xlate)
			return c_kpr ? V_NEXT : enter(p);
		if (p->proto != PROTO_TCP && p->proto != PROTO_UDP && !icmp_is_request(p))
			return DROP(p, FILE_FLOW, DROP_SNAT_UNSUPPORTED);
		break;
	case HOOK_OV_TO:
	case HOOK_POD_TO:
		p->ct_flags |= CT_VIA_STACK;
		break;
	default:
		break;
	}
	return enter(p);
}

/* An ICMP error: it belongs to the flow whose packet it quotes. */
__noinline int related(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	struct tuple outer;
	u8 proto;
	u16 l4;
	int v;

	if (!p)
		return -DROP_INVALID_PACKET;
	outer = p->t;
	proto = p->proto;
	l4 = p->l4;
	v = parse_quote(ctx);
	if (v)
		return v;
	p->state = REASON_RELATED;
	if (ct_lookup() == CT_HIT && p->xlate) {
		p->xlate = 0;
		v = nat_quote(ctx);
		if (v)
			return v;
	} else {
		p->t = outer;
	}
	p->xlate = 0;
	p->proto = proto;
	p->l4 = l4;
	dst_resolve(TUPLE_T);
	/* an error about nothing we know must not leave with a pod's address */
	if (p->hook == HOOK_POD_FROM && wants_masq(p) && !(p->ct_flags & CT_VIA_STACK))
		return DROP(p, FILE_FLOW,
			    p->v6 ? DROP_UNKNOWN_ICMP6_CODE : DROP_UNKNOWN_ICMP4_CODE);
	return V_NEXT;
}

/* A flow between a client outside and a Service, at a hook where only such flows go on from here.
 */
static __inline int serves_outside(const struct pkt *p)
{
	return c_kpr && p->hook != HOOK_POD_FROM && (p->ct_flags & CT_SERVICE);
}

/* Sends a packet that came out of a pod, or back to one, to its destination. */
__noinline int forward(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	int stack;

	if (!p)
		return -DROP_INVALID_PACKET;
	/* the stack saw this flow's first packet, so it must see all of them */
	stack = !!(p->ct_flags & CT_VIA_STACK);

	switch (p->dst_kind) {
	case ADDR_LOCAL_EP:
		if (!p->dst_ifindex)
			return DROP(p, FILE_FLOW, DROP_STALE_IP);
		return stack ? to_stack(p) : to_pod(ctx, p);
	case ADDR_LOCAL_NODE:
	case ADDR_GATEWAY:
		return to_stack(p);
	case ADDR_REMOTE_EP:
		if (p->hook == HOOK_ND_FROM && serves_outside(p) && !stack)
			return c_tunnel ? to_tunnel(ctx, p) : to_network(ctx, p);
		if (p->hook == HOOK_OV_FROM)
			return stack ? to_stack(p) : DROP(p, FILE_FLOW, DROP_STALE_IP);
		if (p->hook != HOOK_POD_FROM)
			return to_stack(p);
		if (stack)
			return to_stack(p);
		return c_tunnel ? to_tunnel(ctx, p) : to_network(ctx, p);
	case ADDR_REMOTE_NODE:
		if (c_tunnel && p->hook == HOOK_POD_FROM && p->reply && (p->ct_flags & CT_TUNNEL))
			return to_tunnel(ctx, p);
		break;
	default:
		break;
	}
	if (stack)
		return to_stack(p);
	if (serves_outside(p))
		return to_network(ctx, p);
	if (p->hook == HOOK_ND_FROM)
		return to_stack(p);
	if (p->hook == HOOK_OV_FROM)
		return DROP(p, FILE_FLOW, DROP_STALE_IP);
	return to_network(ctx, p);
}

/*
 * The way of a packet to an address of this node or of a Service: a reply to a flow whose source is
 * this node's address, or a caller from outside. V_PASS: it is neither.
 */
__noinline int to_node(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	int v, hit;

	if (!p)
		return -DROP_INVALID_PACKET;
	if (p->frag && frag_ports())
		return V_PASS;
	p->src_id = src_identity();
	if (p->icmp_err) {
		v = related(ctx);
		if (v || (p->dst_kind != ADDR_LOCAL_EP && p->dst_kind != ADDR_REMOTE_EP))
			return V_PASS;
		return forward(ctx);
	}
	hit = ct_lookup() == CT_HIT;
	if (!hit) {
		u8 state = p->state == REASON_REOPENED ? REASON_REOPENED : REASON_NEW;

		if (!c_kpr)
			return V_PASS;
		p->ct_flags = 0;
		p->ct_kind = CT_PLAIN;
		p->xlate = 0;
		p->reply = 0;
		v = new_from_outside(ctx);
		p->state = state;
		if (v)
			return v;
	} else if (p->ct_flags & CT_DSR) {
		dst_resolve(TUPLE_X);
		p->dsr = 1;
	} else if (!p->xlate) {
		return V_PASS;
	}
	if (p->xlate) {
		dst_resolve(TUPLE_X);
		/* an answer has to quote what the client has sent, so it comes before the change */
		if (p->df && c_tunnel && p->dst_kind == ADDR_REMOTE_EP &&
		    too_big(ctx, p, tunnel_mtu(p)))
			return answer_too_big(ctx, p, tunnel_mtu(p));
		v = nat_rewrite(ctx);
		if (v)
			return v;
	}
	return forward(ctx);
}

/*
 * The way of every packet. At hooks where the host stack hands packets out, the verdict is only
 * whether they may go on.
 */
__noinline int flow(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	int v = V_NEXT, hit;

	if (!p)
		return -DROP_INVALID_PACKET;
	if (p->frag) {
		v = frag_ports();
		if (v)
			return v;
	}
	if (p->icmp_err) {
		v = related(ctx);
		if (v)
			return v;
		goto out;
	}
	hit = ct_lookup() == CT_HIT;
	/* known before the device that masquerades it was: nd_to replaces the entry */
	if (hit && p->hook == HOOK_ND_TO && !p->xlate && !p->reply && p->ct_kind == CT_PLAIN &&
	    !(p->ct_flags & CT_SETTLED))
		hit = 0;
	if (!hit) {
		u8 state = p->state == REASON_REOPENED ? REASON_REOPENED : REASON_NEW;

		p->ct_flags = 0;
		p->ct_kind = CT_PLAIN;
		p->xlate = 0;
		p->reply = 0;
		v = p->hook == HOOK_POD_FROM ? new_from_pod(ctx) : new_to_here(ctx);
		p->state = state;
		if (v)
			return v;
	}
	if (p->xlate) {
		v = nat_rewrite(ctx);
		if (v)
			return v;
	}
	if (hit)
		dst_resolve(TUPLE_T);
out:
	if (!hook_is_ingress(p->hook))
		return to_stack(p);
	return forward(ctx);
}
