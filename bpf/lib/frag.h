/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Fragments: the first one leaves the ports of its datagram for those that follow. */
#pragma once

#include "pkt.h"

#define FRAG_VALID 4768 /* 5 s in units of struct ct */

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct frag4_key);
	__type(value, struct frag);
	__uint(max_entries, 4096);
} frag4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct frag6_key);
	__type(value, struct frag);
	__uint(max_entries, 4096);
} frag6 SEC(".maps");

/* Remembers or recalls the ports. Out of order fragments have none yet and are dropped. */
__noinline int frag_ports(void)
{
	struct pkt *p = pkt_get();
	struct frag4_key k4 = {};
	struct frag6_key k6 = {};
	struct frag f = {}, *old;

	if (!p)
		return -DROP_INVALID_PACKET;
	k4.src = p->t.saddr.w[3];
	k4.dst = p->t.daddr.w[3];
	k4.id = p->frag_id;
	k4.proto = p->proto;
	__builtin_memcpy(k6.src, &p->t.saddr, 16);
	__builtin_memcpy(k6.dst, &p->t.daddr, 16);
	k6.id = p->frag_id;
	k6.proto = p->proto;
	if (p->frag == FRAG_FIRST) {
		f.sport = p->t.sport;
		f.dport = p->t.dport;
		f.seen = p->now;
		if (p->v6)
			bpf_map_update_elem(&frag6, &k6, &f, BPF_ANY);
		else
			bpf_map_update_elem(&frag4, &k4, &f, BPF_ANY);
		return V_NEXT;
	}
	if (p->v6)
		old = bpf_map_lookup_elem(&frag6, &k6);
	else
		old = bpf_map_lookup_elem(&frag4, &k4);
	if (!old || p->now - old->seen > FRAG_VALID)
		return DROP(p, FILE_FRAG, DROP_FRAG_NOT_FOUND);
	p->t.sport = old->sport;
	p->t.dport = old->dport;
	return V_NEXT;
}
