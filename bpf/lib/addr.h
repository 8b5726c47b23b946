/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who is this address: one hash lookup, the prefix tree only for what has no entry. */
#pragma once

#include "maps_node.h"
#include "pkt.h"

static __inline const struct addr *addr_find(const union ip *ip)
{
	struct addr_key k = {};

	__builtin_memcpy(k.ip, ip, 16);
	return bpf_map_lookup_elem(&addr, &k);
}

static __inline const struct cidr *cidr_find(const union ip *ip)
{
	struct cidr_key k = { .plen = 32 + 128 };

	__builtin_memcpy(k.ip, ip, 16);
	return bpf_map_lookup_elem(&cidr, &k);
}

static __inline u32 world_id(const struct pkt *p)
{
	return p->v6 ? c_world_id6 : c_world_id4;
}

/* Fills the dst_ fields for an address: of the packet, or of the backend it will be sent to. */
__noinline int dst_resolve(u32 which)
{
	struct pkt *p = pkt_get();
	const struct addr *a;
	const struct cidr *c;
	const union ip *ip;

	if (!p)
		return 0;
	ip = which ? &p->x.daddr : &p->t.daddr;
	a = addr_find(ip);
	p->dst_cidr_flags = 0;
	p->dst_flags = 0;
	p->dst_vtep = 0;
	p->dst_ifindex = 0;
	p->dst_pod = 0;
	p->dst_ep = 0;
	p->dst_kind = ADDR_NONE;
	p->dst_id = world_id(p);
	if (a) {
		p->dst_kind = a->kind;
		p->dst_flags = a->flags;
		p->dst_id = a->identity;
		p->dst_vtep = a->vtep;
		p->dst_ifindex = a->ifindex;
		p->dst_ep = a->ep_id;
		p->dst_pod = a->kind == ADDR_REMOTE_EP;
		if (a->kind != ADDR_CIDR && a->kind != ADDR_REMOTE_NODE)
			return 0;
	}
	c = cidr_find(ip);
	if (!c)
		return 0;
	p->dst_cidr_flags = c->flags;
	if (a)
		return 0;
	if (c->kind == CIDR_POD) {
		/* a pod that we have not heard of yet: its node knows it */
		p->dst_kind = ADDR_REMOTE_EP;
		p->dst_pod = 1;
		p->dst_vtep = c->vtep;
		p->dst_id = ID_UNKNOWN;
	} else if (c->kind == CIDR_POD_LOCAL) {
		p->dst_kind = ADDR_LOCAL_EP;
		p->dst_id = ID_UNKNOWN;
	} else if (c->identity) {
		p->dst_id = c->identity;
	}
	return 0;
}

/* Identity of a source address that no tunnel key and no device tells. */
__noinline u32 src_identity(void)
{
	struct pkt *p = pkt_get();
	const struct addr *a;
	const struct cidr *c;

	if (!p)
		return ID_UNKNOWN;
	a = addr_find(&p->t.saddr);

	if (a) {
		if (a->kind == ADDR_LOCAL_EP)
			p->ep_id = a->ep_id;
		if (a->kind == ADDR_LOCAL_NODE || a->kind == ADDR_GATEWAY)
			return ID_HOST;
		return a->identity;
	}
	c = cidr_find(&p->t.saddr);
	if (c && c->kind != CIDR_IDENTITY)
		return ID_UNKNOWN;
	if (c && c->identity)
		return c->identity;
	return world_id(p);
}
