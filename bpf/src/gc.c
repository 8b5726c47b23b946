// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Work on flows, called by the agent through a test run: ct_expire deletes candidates that have not
 * moved since the sweep saw them, ct_purge everything of one address, ct_move takes flows out of
 * the tables that the generation before used.
 */
#include "../include/kernel.h"
#include "../lib/maps_ct.h"

#define GC_BATCH_MAX 1024
#define EEXIST 17

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, u32);
	__type(value, struct gc_item);
	__uint(max_entries, GC_BATCH_MAX);
} gc_batch SEC(".maps");

/* Deletes an entry if it is as the sweep saw it. The copy from before the deletion is put back if
 * a packet moved the entry in between: the deleted element itself may already belong to another.
 */
#define EXPIRE(NAME, KEY, VALUE, MAP)                                                              \
	static __noinline void NAME(struct gc_item *it)                                            \
	{                                                                                          \
		KEY key;                                                                           \
		VALUE copy, *v;                                                                    \
                                                                                                   \
		__builtin_memcpy(&key, it->key, sizeof(key));                                      \
		v = bpf_map_lookup_elem(&MAP, &key);                                               \
		if (!v) {                                                                          \
			it->done = GC_MISSING;                                                     \
			return;                                                                    \
		}                                                                                  \
		copy = *v;                                                                         \
		if (copy.c.seen != it->seen || copy.c.flags != it->flags) {                        \
			it->done = GC_CHANGED;                                                     \
			return;                                                                    \
		}                                                                                  \
		bpf_map_delete_elem(&MAP, &key);                                                   \
		it->done = GC_DELETED;                                                             \
		if (READ_ONCE(v->c.seen) == it->seen && READ_ONCE(v->c.flags) == it->flags)        \
			return;                                                                    \
		copy.c.seen = bpf_ktime_get_ns() >> 20; /* no coarse clock here */                 \
		if (!bpf_map_update_elem(&MAP, &key, &copy, BPF_NOEXIST))                          \
			it->done = GC_CHANGED;                                                     \
	}

EXPIRE(expire4, struct ct4_key, struct ct4, ct4)
EXPIRE(expire4_new, struct ct4_key, struct ct4, ct4_new)
EXPIRE(expire6, struct ct6_key, struct ct6, ct6)
EXPIRE(expire6_new, struct ct6_key, struct ct6, ct6_new)

struct each_ctx {
	u32 v6;
	u32 deleted;
};

/* What bpf_loop calls for each item: the function for its table. */
#define EACH(NAME, WORK)                                                                           \
	static long NAME(u32 i, void *arg)                                                         \
	{                                                                                          \
		struct each_ctx *c = arg;                                                          \
		struct gc_item *it = bpf_map_lookup_elem(&gc_batch, &i);                           \
                                                                                                   \
		if (!it)                                                                           \
			return 1;                                                                  \
		if (c->v6) {                                                                       \
			if (it->tier)                                                              \
				WORK##6_new(it);                                                   \
			else                                                                       \
				WORK##6(it);                                                       \
		} else {                                                                           \
			if (it->tier)                                                              \
				WORK##4_new(it);                                                   \
			else                                                                       \
				WORK##4(it);                                                       \
		}                                                                                  \
		if (it->done == GC_DELETED)                                                        \
			c->deleted++;                                                              \
		return 0;                                                                          \
	}

EACH(expire_one, expire)

SEC("syscall")
int ct_expire(struct gc_expire *arg)
{
	struct each_ctx c = { .v6 = arg->v6 };
	u32 count = arg->count;

	if (count > GC_BATCH_MAX)
		count = GC_BATCH_MAX;
	bpf_loop(count, expire_one, &c, 0);
	arg->deleted = c.deleted;
	return 0;
}

/* Takes one flow over; what a packet has taken over before stays as it is. If the table is full the
 * flow stays where it is.
 */
#define MOVE(NAME, KEY, OLD, VALUE, CONVERT, FROM, TO)                                             \
	static __noinline void NAME(struct gc_item *it)                                            \
	{                                                                                          \
		const struct OLD *old;                                                             \
		int err; /* kernel 6.1 returns 32 bits */                                          \
		KEY key;                                                                           \
		VALUE v;                                                                           \
                                                                                                   \
		__builtin_memcpy(&key, it->key, sizeof(key));                                      \
		old = bpf_map_lookup_elem(&FROM, &key);                                            \
		if (!old) {                                                                        \
			it->done = GC_MISSING;                                                     \
			return;                                                                    \
		}                                                                                  \
		CONVERT(old, &v);                                                                  \
		err = bpf_map_update_elem(&TO, &key, &v, BPF_NOEXIST);                             \
		if (err && err != -EEXIST) {                                                       \
			it->done = GC_CHANGED;                                                     \
			return;                                                                    \
		}                                                                                  \
		bpf_map_delete_elem(&FROM, &key);                                                  \
		it->done = GC_DELETED;                                                             \
	}

MOVE(move4, struct ct4_key, ct4_prev, struct ct4, ct4_from_prev, ct4_prev, ct4)
MOVE(move4_new, struct ct4_key, ct4_prev, struct ct4, ct4_from_prev, ct4_new_prev, ct4_new)
MOVE(move6, struct ct6_key, ct6_prev, struct ct6, ct6_from_prev, ct6_prev, ct6)
MOVE(move6_new, struct ct6_key, ct6_prev, struct ct6, ct6_from_prev, ct6_new_prev, ct6_new)

EACH(move_one, move)

SEC("syscall")
int ct_move(struct gc_expire *arg)
{
	struct each_ctx c = { .v6 = arg->v6 };
	u32 count = arg->count;

	if (count > GC_BATCH_MAX)
		count = GC_BATCH_MAX;
	bpf_loop(count, move_one, &c, 0);
	arg->deleted = c.deleted;
	return 0;
}

struct purge_ctx {
	u32 ip[4];
	u32 deleted;
};

static __inline int same6(const u8 *ip, const u32 *want)
{
	u32 w[4];

	__builtin_memcpy(w, ip, sizeof(w));
	return w[0] == want[0] && w[1] == want[1] && w[2] == want[2] && w[3] == want[3];
}

static __inline int has4(const struct ct4_key *key, const struct ct4 *e, u32 ip)
{
	return key->a == ip || key->b == ip ||
	       (e->c.kind != CT_PLAIN && (e->saddr == ip || e->daddr == ip));
}

static __inline int has6(const struct ct6_key *key, const struct ct6 *e, const u32 *ip)
{
	return same6(key->a, ip) || same6(key->b, ip) ||
	       (e->c.kind != CT_PLAIN && (same6(e->saddr, ip) || same6(e->daddr, ip)));
}

/* One callback a map: kernel 6.1 wants to know which map an element is deleted from. */
#define PURGE(NAME, MAP, HAS, IP)                                                                  \
	static long NAME(void *map, const void *key, const void *v, void *arg)                     \
	{                                                                                          \
		struct purge_ctx *c = arg;                                                         \
                                                                                                   \
		if (HAS(key, v, IP) && !bpf_map_delete_elem(&MAP, key))                            \
			c->deleted++;                                                              \
		return 0;                                                                          \
	}

PURGE(purge4, ct4, has4, c->ip[3])
PURGE(purge4_new, ct4_new, has4, c->ip[3])
PURGE(purge6, ct6, has6, c->ip)
PURGE(purge6_new, ct6_new, has6, c->ip)

/*
 * Functions of their own, so that the compiler does not make one call for two maps. New flows come
 * first: one that settles meanwhile moves to the table that is still to be read.
 */
static __noinline void purge_all4(struct purge_ctx *c)
{
	bpf_for_each_map_elem(&ct4_new, purge4_new, c, 0);
	bpf_for_each_map_elem(&ct4, purge4, c, 0);
}

static __noinline void purge_all6(struct purge_ctx *c)
{
	bpf_for_each_map_elem(&ct6_new, purge6_new, c, 0);
	bpf_for_each_map_elem(&ct6, purge6, c, 0);
}

SEC("syscall")
int ct_purge(struct gc_purge *arg)
{
	struct purge_ctx c = {};

	__builtin_memcpy(c.ip, arg->ip, sizeof(c.ip));
	if (!c.ip[0] && !c.ip[1] && c.ip[2] == bpf_htonl(0xffff))
		purge_all4(&c);
	else
		purge_all6(&c);
	arg->deleted = c.deleted;
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
