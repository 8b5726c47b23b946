/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The tunnel without its device: the outer headers are written here and the packet goes straight to
 * the device that leads to the other node, past the tunnel's device and the host stack. That is
 * done for nodes with IPv4 addresses; over IPv6 the outer UDP checksum must be there, which the
 * kernel has to make. On the wire there is no difference.
 */
#pragma once

#include "addr.h"
#include "pkt.h"

#define AF_INET 2
#define AF_INET6 10

#define VXLAN_FLAGS 0x08 /* the network id is valid (RFC 7348) */

/* Source ports of tunnels, so that flows spread over links and queues: the kernel's default range.
 */
#define TUNNEL_PORT_MIN 32768
#define TUNNEL_PORTS 28232

/* What is put between the Ethernet header of the wire and the packet. */
struct outer {
	u8 version; /* and length of the IPv4 header */
	u8 tos;
	__be16 len;
	__be16 id;
	__be16 frag;
	u8 ttl;
	u8 proto;
	u16 sum;
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__be16 udp_len;
	__be16 udp_sum; /* 0: none, as the kernel's tunnels over IPv4 */
	u8 flags;
	u8 reserved[3];
	__be32 vni; /* upper 24 bits */
	u8 eth[ETH_HLEN];
} __attribute__((packed));

/* The segments of a large packet stay as large as they are: the pod's MTU leaves room for the
 * headers. */
#define ENCAP_ROOM                                                                                 \
	(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |  \
	 BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) |                         \
	 BPF_F_ADJ_ROOM_ENCAP_L2_ETH)

/* The identity as other nodes understand it. */
static __inline u32 wire_identity(u32 id)
{
	if (id == ID_HOST)
		return ID_REMOTE_NODE;
	if (id >= VNI_DSR)
		return ID_WORLD;
	return id;
}

/* The network id under which a packet travels. */
static __inline u32 network_id(const struct pkt *p)
{
	return p->dsr ? VNI_DSR : wire_identity(p->src_id);
}

/* The IPv4 address of the node behind dst_vtep; 0: it has none. */
static __inline __be32 tunnel_peer(const struct pkt *p)
{
	u32 w[4], index = p->dst_vtep;
	const struct vtep *vt = bpf_map_lookup_elem(&vtep, &index);

	if (!vt || !index)
		return 0;
	__builtin_memcpy(w, vt->ip, 16);
	return w[0] || w[1] || w[2] != V4MAPPED ? 0 : w[3];
}

/* Whether the kernel's routes lead to the node behind dst_vtep; the route is in fib then. */
static __noinline int encap_route(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	struct bpf_fib_lookup *f;
	int r;

	if (!p)
		return 0;
	f = &p->fib;
	__builtin_memset(f, 0, sizeof(*f));
	f->family = AF_INET;
	f->ifindex = ctx->ifindex;
	f->l4_protocol = PROTO_UDP;
	f->ipv4_src = const4(&c_node4);
	f->ipv4_dst = tunnel_peer(p);
	if (!f->ipv4_src || !f->ipv4_dst)
		return 0;
	r = bpf_fib_lookup(ctx, f, sizeof(*f), BPF_FIB_LOOKUP_SKIP_NEIGH);
	return r == BPF_FIB_LKUP_RET_SUCCESS || r == BPF_FIB_LKUP_RET_NO_NEIGH;
}

/* What the outer header says of congestion (RFC 6040, in the mode that every receiver understands).
 */
static __inline u8 outer_tos(const struct pkt *p, const u8 *ip)
{
	u8 ecn = (p->v6 ? ip[1] >> 4 : ip[1]) & 3;

	return ecn == 3 ? 2 : ecn;
}

static __inline u16 header_sum(const struct outer *o)
{
	u32 sum = 0, i;
	u16 w[10];

	__builtin_memcpy(w, o, sizeof(w));
	for (i = 0; i < 10; i++)
		sum += w[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Writes the outer headers. V_NEXT: the kernel does not let them be written, nothing has changed.
 */
static __inline int encap(struct __sk_buff *ctx)
{
	struct pkt *p = pkt_get();
	struct outer o __attribute__((aligned(4))) = {};
	u8 head[ETH_LEN + 2];
	u32 hash, len;

	if (!p)
		return V_NEXT;
	len = ctx->len - ETH_LEN + sizeof(o);
	if (len > 0xffff || bpf_skb_load_bytes(ctx, 0, head, sizeof(head)))
		return V_NEXT;
	hash = bpf_get_hash_recalc(ctx);
	hash ^= hash << 16;
	o.version = 0x45;
	o.tos = outer_tos(p, head + ETH_LEN);
	o.len = bpf_htons(len);
	o.id = bpf_get_prandom_u32(); /* nothing forbids to make fragments of it */
	o.ttl = 64;
	o.proto = PROTO_UDP;
	o.saddr = const4(&c_node4);
	o.daddr = tunnel_peer(p);
	o.sum = header_sum(&o);
	o.sport = bpf_htons(TUNNEL_PORT_MIN + (((u64)hash * TUNNEL_PORTS) >> 32));
	o.dport = bpf_htons(c_tunnel_port);
	o.udp_len = bpf_htons(len - 20);
	o.flags = VXLAN_FLAGS;
	o.vni = bpf_htonl(p->tun_id << 8);
	__builtin_memcpy(o.eth, head, ETH_LEN);
	if (bpf_skb_adjust_room(ctx, sizeof(o), BPF_ADJ_ROOM_MAC, ENCAP_ROOM))
		return V_NEXT;
	if (bpf_skb_store_bytes(ctx, ETH_LEN, &o, sizeof(o), 0))
		return DROP(p, FILE_FWD, DROP_WRITE_ERROR);
	return V_FWD;
}
