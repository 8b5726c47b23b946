/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Choice of a backend: from an address and port to a front, from there to a Service port, and from
 * its blocks, its table or what the client had before to one backend.
 */
#pragma once

#include "../include/consts.h"
#include "maps_lb.h"
#include "maps_node.h"

#define SECOND_SEEN 954    /* units of ct.seen in a second */
#define BLOCK_SEARCH 65536 /* backends that a search for one looks at */
#define LB_V4MAPPED bpf_htonl(0xffff)

/* Who asks, and how a backend is to be drawn. */
struct lb_ask {
	u8 client[16] ABI_ADDR; /* address, or the cookie of a network namespace */
	u8 is_cookie;
	u8 from; /* enum lb_from */
	u16 pad;
	u32 random;
	u32 hash; /* of the flow, with Maglev */
	u32 now;  /* unit of struct ct */
};

struct lb_choice {
	u32 svc_id;
	u32 backend_id;
	u32 gen; /* of the Service */
	u16 backend_gen;
	__be16 port;
	u8 ip[16] ABI_ADDR;
};

enum lb_from {
	LB_INSIDE = 0,  /* a pod or the host */
	LB_OUTSIDE = 1, /* the network */
	LB_SENT_ON = 2, /* another node, which has chosen this one */
};

enum lb_result {
	LB_OK = 0,
	LB_NO_SERVICE = 1,
	LB_NO_BACKEND = 2, /* refuse it */
	LB_NOT_HERE = 3,   /* only other nodes have backends, and the policy says Local: drop it */
};

/*
 * The front without address of a port: a NodePort, or a HostPort of this node. What another node
 * does with its NodePort is its own business where only backends there may be used: then there is
 * none.
 */
static __noinline const struct front *lb_front_any(const struct front_key *key, u32 kind, u32 flags)
{
	struct front_key any = *key;
	const struct front *f;
	u32 *w = (u32 *)any.ip;
	int this_node;

	if (w[2] != LB_V4MAPPED)
		w[2] = 0;
	w[0] = 0;
	w[1] = 0;
	w[3] = 0;
	f = bpf_map_lookup_elem(&front, &any);
	if (!f)
		return 0;
	this_node = !!(f->flags & FRONT_THIS_NODE);
	if (this_node ? kind != ADDR_LOCAL_NODE : !(flags & ADDR_NODEPORT))
		return 0;
	if (kind == ADDR_REMOTE_NODE) {
		u32 id = f->svc_id;
		const struct svc *s = bpf_map_lookup_elem(&svc, &id);

		if (s && (s->flags & SVC_EXTERNAL_LOCAL))
			return 0;
	}
	return f;
}

/* Whether an address with these flags of map addr may have fronts without address. */
static __inline int lb_any(u8 kind, u16 flags)
{
	return (flags & ADDR_NODEPORT) || (kind == ADDR_LOCAL_NODE && (flags & ADDR_HAS_SVC));
}

struct lb_search {
	u64 base;
	u32 id;
	u32 found;
};

static long lb_search_one(u32 i, void *arg)
{
	struct lb_search *s = arg;
	u64 index = s->base + i;
	u32 elem = index / SLOTS_PER_ELEM;
	const struct slots *sl = bpf_map_lookup_elem(&slot, &elem);

	if (!sl)
		return 1;
	s->found = sl->backend_id[index & (SLOTS_PER_ELEM - 1)] == s->id;
	return s->found;
}

/* Whether a block has a backend. */
static __noinline int lb_has(u64 block, u32 id)
{
	struct lb_search s = { .base = block & ((1ULL << SVC_BLOCK_SHIFT) - 1), .id = id };
	u32 n = block >> SVC_BLOCK_SHIFT;

	bpf_loop(n > BLOCK_SEARCH ? BLOCK_SEARCH : n, lb_search_one, &s, 0);
	return s.found;
}

/* The backend that a client had before, if it may keep it; else 0. */
static __noinline u32 lb_remembered(const struct lb_ask *ask, const struct aff_key *key,
				    const struct svc *s, u64 block)
{
	struct aff *a = bpf_map_lookup_elem(&aff, key);
	const struct backend *b;
	u32 id;

	if (!a || (u64)(u32)(ask->now - a->seen) > (u64)s->affinity_secs * SECOND_SEEN)
		return 0;
	id = a->backend_id;
	b = bpf_map_lookup_elem(&backend, &id);
	if (!b || b->state != BACKEND_ACTIVE || b->gen != a->backend_gen)
		return 0;
	if (a->set_gen != s->set_gen) {
		if (!lb_has(block, id))
			return 0;
		a->set_gen = s->set_gen;
	}
	a->seen = ask->now;
	return id;
}

/* Mixes one more word into a hash. */
static __inline u32 lb_mix(u32 h, u32 w)
{
	w *= 0xcc9e2d51;
	w = (w << 15) | (w >> 17);
	h ^= w * 0x1b873593;
	h = (h << 13) | (h >> 19);
	return h * 5 + 0xe6546b64;
}

/* The last step: every bit of the input tells on every bit of the result (MurmurHash3's). */
static __inline u32 lb_final(u32 h)
{
	h ^= h >> 16;
	h *= 0x85ebca6b;
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	return h ^ (h >> 16);
}

/* An entry of a Maglev table. */
static __inline u32 lb_maglev(u64 table, u32 hash)
{
	u32 size = c_maglev_size, i, elem;
	const struct maglev *m;

	if (!size || !table)
		return 0;
	i = hash % size;
	elem = table + i / 2;
	m = bpf_map_lookup_elem(&maglev, &elem);
	if (!m)
		return 0;
	return READ_ONCE(m->backend_id[i & 1]);
}

static __inline u32 lb_slot(u64 block, u32 random)
{
	u64 index = (block & ((1ULL << SVC_BLOCK_SHIFT) - 1)) +
		    (((u64)random * (block >> SVC_BLOCK_SHIFT)) >> 32);
	u32 elem = index / SLOTS_PER_ELEM;
	const struct slots *sl = bpf_map_lookup_elem(&slot, &elem);

	return sl ? READ_ONCE(sl->backend_id[index & (SLOTS_PER_ELEM - 1)]) : 0;
}

/*
 * Chooses a backend of a front. Callers outside, and those of a ClusterIP, follow the Service's
 * policy for them; others inside may use every backend.
 */
static __noinline enum lb_result lb_choose(u32 svc_id, u32 front_flags, const struct lb_ask *ask,
					   struct lb_choice *out)
{
	const struct svc *s = bpf_map_lookup_elem(&svc, &svc_id);
	u32 policy = 0, id = 0;
	const struct backend *b;
	struct aff_key key = {};
	int kept = 0;
	u64 block;

	if (!s)
		return LB_NO_SERVICE;
	if (ask->from == LB_OUTSIDE)
		policy = SVC_EXTERNAL_LOCAL;
	else if (!(front_flags >> FRONT_TYPE_SHIFT))
		policy = SVC_INTERNAL_LOCAL;
	block = READ_ONCE(s->blk_all);
	if ((s->flags & policy) || ask->from == LB_SENT_ON) {
		u64 all = block;

		block = READ_ONCE(s->blk_local);
		if (!(block >> SVC_BLOCK_SHIFT))
			return all >> SVC_BLOCK_SHIFT ? LB_NOT_HERE : LB_NO_BACKEND;
	}
	if (!(block >> SVC_BLOCK_SHIFT))
		return LB_NO_BACKEND;
	out->svc_id = svc_id;
	out->gen = s->gen;
	if (s->affinity_secs) {
		__builtin_memcpy(key.client, ask->client, 16);
		key.svc_id = svc_id;
		key.is_cookie = ask->is_cookie;
		id = lb_remembered(ask, &key, s, block);
		kept = !!id;
	}
	if (!id && ask->from == LB_OUTSIDE)
		id = lb_maglev(READ_ONCE(s->maglev), ask->hash);
	b = bpf_map_lookup_elem(&backend, &id);
	if (!id || !b || b->state == BACKEND_GONE) {
		id = lb_slot(block, ask->random);
		b = bpf_map_lookup_elem(&backend, &id);
		if (!id || !b || b->state == BACKEND_GONE)
			return LB_NO_BACKEND;
	}
	if (s->affinity_secs && !kept) {
		struct aff a = { .backend_id = id,
				 .set_gen = s->set_gen,
				 .seen = ask->now,
				 .backend_gen = b->gen };

		bpf_map_update_elem(&aff, &key, &a, BPF_ANY);
	}
	out->backend_id = id;
	out->backend_gen = b->gen;
	out->port = b->port;
	__builtin_memcpy(out->ip, b->ip, sizeof(out->ip));
	return LB_OK;
}

/* Whether a source may use the fronts of a Service that has ranges. */
static __noinline int lb_source_ok(u32 svc_id, const u8 *ip)
{
	struct srcrange_key k = { .plen = 32 + 128, .svc_id = svc_id };

	__builtin_memcpy(k.ip, ip, 16);
	return !!bpf_map_lookup_elem(&srcrange, &k);
}
