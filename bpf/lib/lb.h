/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Choice of a backend: from a front to its Service, from a block of slots to one backend. */
#pragma once

#include "maps_lb.h"

struct lb_choice {
	u32 svc_id;
	u32 backend_id;
	u32 gen; /* of the Service */
	u16 backend_gen;
	__be16 port;
	u8 ip[16] ABI_ADDR;
};

enum lb_result {
	LB_OK = 0,
	LB_NO_SERVICE = 1,
	LB_NO_BACKEND = 2,
};

static __inline u64 svc_block(const struct svc *s)
{
	if (s->flags & SVC_INTERNAL_LOCAL)
		return READ_ONCE(s->blk_local);
	return READ_ONCE(s->blk_all);
}

/* Picks a backend with a random or given 32-bit number. */
static __inline enum lb_result lb_pick(const struct front_key *key, u32 random,
				       struct lb_choice *out)
{
	const struct front *f = bpf_map_lookup_elem(&front, key);
	const struct backend *b;
	const struct slots *sl;
	const struct svc *s;
	u64 block, index;
	u32 id, elem;

	if (!f)
		return LB_NO_SERVICE;
	id = f->svc_id;
	s = bpf_map_lookup_elem(&svc, &id);
	if (!s)
		return LB_NO_SERVICE;
	out->svc_id = id;
	out->gen = s->gen;
	block = svc_block(s);
	if (!(block >> SVC_BLOCK_SHIFT))
		return LB_NO_BACKEND;
	index = (block & ((1ULL << SVC_BLOCK_SHIFT) - 1)) +
		(((u64)random * (block >> SVC_BLOCK_SHIFT)) >> 32);
	elem = index / SLOTS_PER_ELEM;
	sl = bpf_map_lookup_elem(&slot, &elem);
	if (!sl)
		return LB_NO_BACKEND;
	id = READ_ONCE(sl->backend_id[index & (SLOTS_PER_ELEM - 1)]);
	b = bpf_map_lookup_elem(&backend, &id);
	if (!b || !id || b->state == BACKEND_GONE)
		return LB_NO_BACKEND;
	out->backend_id = id;
	out->backend_gen = b->gen;
	out->port = b->port;
	__builtin_memcpy(out->ip, b->ip, sizeof(out->ip));
	return LB_OK;
}
