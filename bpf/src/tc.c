// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The programs at the devices. They are one object because they are one engine: every hook parses,
 * asks conntrack, decides and forwards with the same functions, constants and scratch.
 *
 *   pod_from, pod_to   host side of a pod's interface, ingress and egress
 *   ov_from, ov_to     cilium_vxlan
 *   nd_from, nd_to     devices that lead out of the node
 */
#include "../include/kernel.h"
#include "../include/consts.h"
#include "../lib/flow.h"

/* Neighbour discovery and group membership of a pod. V_NEXT: an ordinary packet. */
static __inline int pod_local6(struct __sk_buff *ctx, struct pkt *p, const struct ep *e)
{
	union ip target;

	if (p->proto == PROTO_ICMP6 && p->icmp_type >= 130 && p->icmp_type <= 137) {
		if (p->icmp_type != ICMP6_NS || !(p->t.saddr.d[0] | p->t.saddr.d[1]))
			return p->icmp_type == ICMP6_NA ? V_PASS : V_EAT;
		if (bpf_skb_load_bytes(ctx, p->l4 + 8, &target, 16))
			return V_EAT;
		return nd_answer(ctx, p, e);
	}
	if (p->proto == PROTO_ICMP6 && p->icmp_type == 143)
		return V_EAT; /* group membership */
	if (p->proto == NEXT_HOP || ip6_is_link_local(&p->t.saddr))
		return V_EAT;
	return V_NEXT;
}

static __inline int source_is_own(const struct pkt *p, const struct ep *e)
{
	u32 a, w[4];

	if (e->flags & EP_NO_SPOOF_CHECK)
		return 1;
	if (p->v6) {
		__builtin_memcpy(w, e->ipv6, 16);
		return p->t.saddr.w[0] == w[0] && p->t.saddr.w[1] == w[1] &&
		       p->t.saddr.w[2] == w[2] && p->t.saddr.w[3] == w[3];
	}
	__builtin_memcpy(&a, e->ipv4, 4);
	return p->t.saddr.w[3] == a;
}

static __inline int from_pod(struct __sk_buff *ctx)
{
	u32 ifindex = ctx->ifindex;
	struct pkt *p;
	const struct ep *e;
	int v = parse(ctx, HOOK_POD_FROM);

	p = pkt_get();
	if (!p || v == V_PASS)
		return V_PASS;
	e = bpf_map_lookup_elem(&ep, &ifindex);
	if (!e)
		return DROP(p, FILE_TC, DROP_HOST_NOT_READY);
	p->src_id = e->identity;
	p->ep_id = e->ep_id;
	if (v)
		return v;
	if (p->v6) {
		v = pod_local6(ctx, p, e);
		if (v)
			return v;
	}
	if (!source_is_own(p, e))
		return DROP(p, FILE_TC, DROP_INVALID_SOURCE_IP);
	if (ip_is_multicast(p, &p->t.daddr))
		return DROP(p, FILE_TC, DROP_UNKNOWN_L3_TARGET);
	return flow(ctx);
}

SEC("tc")
int pod_from(struct __sk_buff *ctx)
{
	return was_handled(ctx, HOOK_POD_FROM) ? ACT_NEXT : leave(ctx, from_pod(ctx));
}

static __inline int to_local_pod(struct __sk_buff *ctx)
{
	u32 ifindex = ctx->ifindex;
	const struct ep *e;
	struct pkt *p;
	int v;

	if (is_done(ctx))
		return V_PASS;
	v = parse(ctx, HOOK_POD_TO);
	p = pkt_get();
	if (!p || v == V_PASS)
		return V_PASS;
	e = bpf_map_lookup_elem(&ep, &ifindex);
	if (!e)
		return DROP(p, FILE_TC, DROP_HOST_NOT_READY);
	p->dst_ep = e->ep_id;
	if (v)
		return v;
	if (p->v6 && p->proto == PROTO_ICMP6 && p->icmp_type >= 133 && p->icmp_type <= 137)
		return V_PASS;
	if (ip_is_multicast(p, &p->t.daddr))
		return V_PASS;
	p->src_id = src_identity();
	return flow(ctx);
}

SEC("tc")
int pod_to(struct __sk_buff *ctx)
{
	return was_handled(ctx, HOOK_POD_TO) ? ACT_NEXT : leave(ctx, to_local_pod(ctx));
}

static __inline int from_tunnel(struct __sk_buff *ctx)
{
	struct bpf_tunnel_key key = {};
	struct pkt *p;
	int v = parse(ctx, HOOK_OV_FROM);

	p = pkt_get();
	if (!p || v == V_PASS)
		return V_PASS;
	if (v)
		return v;
	/* without TUNINFO_IPV6 the call fails for keys of IPv6 underlays, and the other way round
	 */
	if (bpf_skb_get_tunnel_key(ctx, &key, sizeof(key), 0) &&
	    bpf_skb_get_tunnel_key(ctx, &key, sizeof(key), BPF_F_TUNINFO_IPV6)) {
		if (!c_test)
			return DROP(p, FILE_TC, DROP_NO_TUNNEL_KEY);
		key.tunnel_id = ctx->cb[0]; /* a test run cannot set a tunnel key */
	}
	if (key.tunnel_id == ID_HOST)
		return DROP(p, FILE_TC, DROP_INVALID_IDENTITY);
	if (key.tunnel_id == VNI_DSR) {
		/* whatever this node does with its own callers: nodes differ while that is changed,
		 * and flows outlast it
		 */
		if (!c_kpr)
			return DROP(p, FILE_TC, DROP_INVALID_VNI);
		p->dsr = 1;
		dst_resolve(TUPLE_T);
		v = to_node(ctx);
		return v == V_PASS ? DROP(p, FILE_TC, DROP_NO_BACKEND) : v;
	}
	p->src_id = key.tunnel_id;
	return flow(ctx);
}

SEC("tc")
int ov_from(struct __sk_buff *ctx)
{
	return was_handled(ctx, HOOK_OV_FROM) ? ACT_NEXT : leave(ctx, from_tunnel(ctx));
}

static __inline int to_overlay(struct __sk_buff *ctx)
{
	struct pkt *p;
	int v;

	if (is_done(ctx))
		return V_PASS;
	v = parse(ctx, HOOK_OV_TO);
	p = pkt_get();
	if (!p)
		return V_PASS;
	if (v == V_PASS)
		return V_EAT; /* nothing else may enter the tunnel */
	if (v)
		return v;
	if (ip_is_multicast(p, &p->t.daddr) || (p->v6 && ip6_is_link_local(&p->t.saddr)))
		return V_EAT;
	p->src_id = src_identity();
	v = flow(ctx);
	if (v != V_FWD)
		return v;
	if (p->dst_kind != ADDR_REMOTE_EP && p->dst_kind != ADDR_REMOTE_NODE)
		return DROP(p, FILE_TC, DROP_NO_TUNNEL_ENDPOINT);
	v = tunnel_key(ctx, p->dst_vtep);
	return v ? v : V_FWD;
}

SEC("tc")
int ov_to(struct __sk_buff *ctx)
{
	return was_handled(ctx, HOOK_OV_TO) ? ACT_NEXT : leave(ctx, to_overlay(ctx));
}

/* Whether a packet to this node's own address can be the reply to a masqueraded flow. */
static __inline int may_be_reply(const struct pkt *p)
{
	u16 port = bpf_ntohs(p->t.dport);

	if (p->frag == FRAG_LATER || p->icmp_err)
		return 1;
	if (p->proto != PROTO_TCP && p->proto != PROTO_UDP && !icmp_is_echo(p))
		return 0;
	return port >= c_snat_min && port <= c_snat_max;
}

/* Whether a packet from outside can be for a Service. */
static __inline int may_be_service(const struct pkt *p)
{
	u16 port = bpf_ntohs(p->t.dport);

	if (!c_kpr)
		return 0;
	if (p->dst_flags & ADDR_HAS_SVC)
		return 1;
	return (p->dst_flags & ADDR_NODEPORT) && has_ports(p) && port >= c_node_port_min &&
	       port <= c_node_port_max;
}

static __inline int from_network(struct __sk_buff *ctx)
{
	struct pkt *p;
	int v = parse(ctx, HOOK_ND_FROM);

	p = pkt_get();
	if (!p || v)
		return V_PASS;
	if (ip_is_multicast(p, &p->t.daddr) || (p->v6 && ip6_is_link_local(&p->t.daddr)))
		return V_PASS;
	if (p->proto == PROTO_UDP && p->t.dport == bpf_htons(c_tunnel_port))
		return V_PASS;
	dst_resolve(TUPLE_T);
	if (p->dst_kind == ADDR_LOCAL_NODE)
		return may_be_reply(p) || may_be_service(p) ? to_node(ctx) : V_PASS;
	if (p->dst_kind == ADDR_VIP && may_be_service(p)) {
		v = to_node(ctx);
		if (v != V_PASS)
			return v;
		v = answer_ping(ctx);
		/* the stack would only send it on to where it came from */
		return v ? v : DROP(p, FILE_TC, DROP_NO_BACKEND);
	}
	/* without a tunnel pods of other nodes answer here what was sent with c_snat_addr */
	if (!c_tunnel && p->dst_kind == ADDR_GATEWAY)
		return to_node(ctx);
	if (p->dst_kind != ADDR_LOCAL_EP || !p->dst_ifindex)
		return V_PASS;
	p->src_id = src_identity();
	return flow(ctx);
}

SEC("tc")
int nd_from(struct __sk_buff *ctx)
{
	return was_handled(ctx, HOOK_ND_FROM) ? ACT_NEXT : leave(ctx, from_network(ctx));
}

/* Whether a backend of a Service on this node itself has the port that the packet comes from. */
static __inline int is_host_backend(const struct pkt *p)
{
	u32 port = bpf_ntohs(p->t.sport);
	u32 word = port / 64 + (p->proto == PROTO_UDP ? HOSTBACK_WORDS : 0);
	const u64 *w;

	if (p->proto != PROTO_TCP && p->proto != PROTO_UDP)
		return 0;
	w = bpf_map_lookup_elem(&hostback, &word);
	return w && ((*w >> (port & 63)) & 1);
}

/* What the host sends to a client outside that has called a Service. */
static __noinline int host_reply(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	int v;

	if (!p)
		return V_PASS;
	if (p->frag == FRAG_LATER)
		return V_PASS;
	p->src_id = ID_HOST;
	if (ct_lookup() != CT_HIT || !p->xlate || !p->reply)
		return V_PASS;
	v = nat_rewrite(ctx);
	return v ? v : to_stack(p);
}

/* Packets of pods that the host stack forwarded, and what backends of the host itself answer. */
static __inline int to_outside(struct __sk_buff *ctx)
{
	const struct addr *a;
	struct pkt *p;
	int v;

	if (is_done(ctx))
		return V_PASS;
	v = parse(ctx, HOOK_ND_TO);
	p = pkt_get();
	if (!p || v)
		return V_PASS;
	a = addr_find(&p->t.saddr);
	if (!a)
		return V_PASS;
	if (c_kpr && a->kind == ADDR_LOCAL_NODE && is_host_backend(p))
		return host_reply(ctx);
	if (a->kind != ADDR_LOCAL_EP)
		return V_PASS;
	p->src_id = a->identity;
	p->ep_id = a->ep_id;
	return flow(ctx);
}

SEC("tc")
int nd_to(struct __sk_buff *ctx)
{
	return was_handled(ctx, HOOK_ND_TO) ? ACT_NEXT : leave(ctx, to_outside(ctx));
}

char _license[] SEC("license") = "Dual BSD/GPL";
