/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Conntrack: one lookup tells what was decided for a flow. Flows without translation have one
 * entry; translated ones have a half for each direction, each complete in itself.
 */
#pragma once

#include "maps_ct.h"
#include "maps_evt.h"
#include "maps_lb.h"
#include "pkt.h"

#define SEEN_STEP 1024      /* about 1 s: how stale ct.seen may be */
#define REOPEN_IDLE 114440  /* 2 min */
#define TAKE_OVER_IDLE 1024 /* about 1 s: how long a closed flow keeps its translated port */
#define UPDATE_TRIES 3
#define EBUSY 16
#define EEXIST 17

#define TIER_MAIN 0x100 /* ored to the flags of ct_insert: the tier that nobody evicts */

#define TCP_EDGES (TCP_SYN | TCP_FIN | TCP_RST)

/* Fill the canonical key; the result says that the source is side a. */
static __inline int ct_key4(const struct tuple *t, u8 proto, struct ct4_key *k)
{
	u32 s = t->saddr.w[3], d = t->daddr.w[3];
	int a = s < d || (s == d && t->sport < t->dport);

	k->a = a ? s : d;
	k->b = a ? d : s;
	k->pa = a ? t->sport : t->dport;
	k->pb = a ? t->dport : t->sport;
	k->proto = proto;
	k->zone = 0;
	k->pad = 0;
	return a;
}

static __inline int ct_key6(const struct tuple *t, u8 proto, struct ct6_key *k)
{
	const union ip *s = &t->saddr, *d = &t->daddr;
	int a = s->d[0] < d->d[0] ||
		(s->d[0] == d->d[0] &&
		 (s->d[1] < d->d[1] || (s->d[1] == d->d[1] && t->sport < t->dport)));

	__builtin_memcpy(k->a, a ? s : d, 16);
	__builtin_memcpy(k->b, a ? d : s, 16);
	k->pa = a ? t->sport : t->dport;
	k->pb = a ? t->dport : t->sport;
	k->proto = proto;
	k->zone = 0;
	k->pad = 0;
	return a;
}

/* A bucket may be held by a walker on this CPU for a moment: try again. */
static __noinline int ct_insert4(const struct ct4_key *k, const struct ct4 *v, u64 how)
{
	int err = -1; /* kernel 6.1 returns 32 bits */
	int i;

	for (i = 0; i < UPDATE_TRIES; i++) {
		if (how & 0x100)
			err = bpf_map_update_elem(&ct4, k, v, how & 0xff);
		else
			err = bpf_map_update_elem(&ct4_new, k, v, how & 0xff);
		if (err != -EBUSY)
			break;
	}
	return err;
}

static __noinline int ct_insert6(const struct ct6_key *k, const struct ct6 *v, u64 how)
{
	int err = -1; /* kernel 6.1 returns 32 bits */
	int i;

	for (i = 0; i < UPDATE_TRIES; i++) {
		if (how & 0x100)
			err = bpf_map_update_elem(&ct6, k, v, how & 0xff);
		else
			err = bpf_map_update_elem(&ct6_new, k, v, how & 0xff);
		if (err != -EBUSY)
			break;
	}
	return err;
}

/*
 * Takes the entry of a tuple over from the tables before. It stays there, for programs of the
 * generation before may still ask for it. 1: there is one.
 */
__noinline int ct_adopt(u32 which)
{
	struct pkt *p = pkt_get();
	const struct tuple *t;
	u64 tier = TIER_MAIN;

	if (!c_ct_prev || !p)
		return 0;
	t = which ? &p->x : &p->t;
	if (p->v6) {
		const struct ct6_prev *old;
		struct ct6_key k;
		struct ct6 v;

		ct_key6(t, p->proto, &k);
		old = bpf_map_lookup_elem(&ct6_prev, &k);
		if (!old) {
			tier = 0;
			old = bpf_map_lookup_elem(&ct6_new_prev, &k);
		}
		if (!old)
			return 0;
		ct6_from_prev(old, &v);
		ct_insert6(&k, &v, BPF_NOEXIST | tier);
	} else {
		const struct ct4_prev *old;
		struct ct4_key k;
		struct ct4 v;

		ct_key4(t, p->proto, &k);
		old = bpf_map_lookup_elem(&ct4_prev, &k);
		if (!old) {
			tier = 0;
			old = bpf_map_lookup_elem(&ct4_new_prev, &k);
		}
		if (!old)
			return 0;
		ct4_from_prev(old, &v);
		ct_insert4(&k, &v, BPF_NOEXIST | tier);
	}
	return 1;
}

/* Deletes the entry of a tuple from both tiers. */
__noinline int ct_forget(u32 which)
{
	struct pkt *p = pkt_get();
	const struct tuple *t;
	struct ct4_key k4;
	struct ct6_key k6;

	if (!p)
		return 0;
	t = which ? &p->x : &p->t;
	if (p->v6) {
		ct_key6(t, p->proto, &k6);
		if (c_ct_prev) {
			bpf_map_delete_elem(&ct6_prev, &k6);
			bpf_map_delete_elem(&ct6_new_prev, &k6);
		}
		bpf_map_delete_elem(&ct6, &k6);
		bpf_map_delete_elem(&ct6_new, &k6);
	} else {
		ct_key4(t, p->proto, &k4);
		if (c_ct_prev) {
			bpf_map_delete_elem(&ct4_prev, &k4);
			bpf_map_delete_elem(&ct4_new_prev, &k4);
		}
		bpf_map_delete_elem(&ct4, &k4);
		bpf_map_delete_elem(&ct4_new, &k4);
	}
	return 0;
}

static __inline void count_settled(const struct pkt *p)
{
	u32 v6 = p->v6;
	u64 *n = bpf_map_lookup_elem(&settled, &v6);

	if (n)
		(*n)++;
}

/* Moves the entry of a tuple to the main tier. If that is full the flow stays where it is. */
__noinline int ct_promote(u32 which)
{
	struct pkt *p = pkt_get();
	const struct tuple *t;
	struct ct4_key k4;
	struct ct6_key k6;

	if (!p)
		return 0;
	t = which ? &p->x : &p->t;
	if (p->v6) {
		struct ct6 *v, copy;

		ct_key6(t, p->proto, &k6);
		v = bpf_map_lookup_elem(&ct6_new, &k6);
		if (!v)
			return 0;
		copy = *v;
		copy.c.flags |= CT_CONFIRMED;
		if (ct_insert6(&k6, &copy, BPF_NOEXIST | TIER_MAIN)) {
			v->c.flags |= CT_CONFIRMED;
			return 0;
		}
		bpf_map_delete_elem(&ct6_new, &k6);
	} else {
		struct ct4 *v, copy;

		ct_key4(t, p->proto, &k4);
		v = bpf_map_lookup_elem(&ct4_new, &k4);
		if (!v)
			return 0;
		copy = *v;
		copy.c.flags |= CT_CONFIRMED;
		if (ct_insert4(&k4, &copy, BPF_NOEXIST | TIER_MAIN)) {
			v->c.flags |= CT_CONFIRMED;
			return 0;
		}
		bpf_map_delete_elem(&ct4_new, &k4);
	}
	count_settled(p);
	return 0;
}

/* Tells the other half of a translated flow which TCP flags this side has sent. */
__noinline int ct_tell_twin(void)
{
	struct pkt *p = pkt_get();
	struct ct4_key k4;
	struct ct6_key k6;
	struct ct *c;

	if (!p)
		return 0;
	if (p->v6) {
		ct_key6(&p->x, p->proto, &k6);
		c = bpf_map_lookup_elem(&ct6, &k6);
		if (!c)
			c = bpf_map_lookup_elem(&ct6_new, &k6);
	} else {
		ct_key4(&p->x, p->proto, &k4);
		c = bpf_map_lookup_elem(&ct4, &k4);
		if (!c)
			c = bpf_map_lookup_elem(&ct4_new, &k4);
	}
	if (!c)
		return 0;
	if (p->reply)
		c->tcp_r |= p->tcp_flags;
	else
		c->tcp_o |= p->tcp_flags;
	return 0;
}

/* A Service lost a backend since this UDP flow chose: 1 if the flow must choose again. */
static __noinline int ct_backend_lost(struct ct *c)
{
	u32 id = c->svc_id, bid = c->backend_id;
	const struct svc *s = bpf_map_lookup_elem(&svc, &id);
	const struct backend *b;

	if (!s || (u16)s->gen == c->svc_gen)
		return 0;
	b = bpf_map_lookup_elem(&backend, &bid);
	if (!b || b->state == BACKEND_GONE || b->gen != c->backend_gen)
		return 1;
	c->svc_gen = s->gen;
	return 0;
}

enum ct_look {
	CT_MISS = 0,
	CT_HIT = 1,
	CT_STALE = 2, /* there is one, but the flow starts anew */
};

static __inline int ct_starts_anew(struct pkt *p, const struct ct *c)
{
	if (p->proto != PROTO_TCP || (p->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return 0;
	if ((c->tcp_o | c->tcp_r) & (TCP_FIN | TCP_RST))
		return 1;
	return (c->flags & CT_CONFIRMED) && p->now - c->seen > REOPEN_IDLE;
}

/* Reads the common part into the packet, and notes the packet in it. */
__noinline int ct_note(struct ct *c, u32 src_is_a)
{
	struct pkt *p = pkt_get();
	const struct run_cfg *rc;
	u32 zero = 0;
	u8 fresh;

	if (!p || !c)
		return CT_MISS;
	p->reply = !!(c->flags & CT_ORIG_A) != src_is_a;
	p->ct_flags = c->flags;
	p->ct_kind = c->kind;
	if (p->icmp_err) {
		p->state = REASON_RELATED;
		return CT_HIT;
	}
	if (ct_starts_anew(p, c))
		return CT_STALE;
	if (c->svc_id && p->proto == PROTO_UDP && !p->reply && ct_backend_lost(c))
		return CT_STALE;
	p->state = p->reply ? REASON_REPLY : REASON_ESTABLISHED;
	if (p->now - c->seen >= SEEN_STEP)
		WRITE_ONCE(c->seen, p->now);
	if (p->reply) {
		fresh = p->tcp_flags & ~c->tcp_r;
		if (fresh)
			c->tcp_r |= p->tcp_flags;
	} else {
		fresh = p->tcp_flags & ~c->tcp_o;
		if (fresh)
			c->tcp_o |= p->tcp_flags;
	}
	p->monitor = !!fresh || (p->reply && !(c->flags & CT_CONFIRMED));
	p->ct_twin = !!(fresh & TCP_EDGES);
	rc = bpf_map_lookup_elem(&cfg, &zero);
	if (rc && p->now - c->report >= rc->report_interval) {
		WRITE_ONCE(c->report, p->now);
		p->monitor = 1;
	}
	/* another direction already replied through the other half */
	if (p->reply && !(c->flags & CT_CONFIRMED))
		c->flags |= CT_CONFIRMED;
	return CT_HIT;
}

/* Whether this hook is the one that translates by a half of the flow. */
static __inline int ct_translates(struct pkt *p)
{
	if (p->ct_kind == CT_PLAIN || (p->ct_flags & CT_DSR))
		return 0;
	if ((p->ct_kind == CT_FWD) == p->reply)
		return 0;
	if (!(p->ct_flags & CT_VIA_STACK))
		return 1;
	return p->hook == (p->reply ? HOOK_ND_FROM : HOOK_ND_TO);
}

/*
 * Whether the packet shows that the flow has come about, so that it moves to the main tier: a
 * reply, or where replies do not pass this node, what a client sends after one.
 */
static __inline int ct_settles(const struct pkt *p)
{
	if (p->icmp_err)
		return 0;
	return p->reply || ((p->ct_flags & CT_DSR) && p->proto == PROTO_TCP &&
			    (p->tcp_flags & (TCP_SYN | TCP_RST | TCP_ACK)) == TCP_ACK);
}

static __noinline int ct_look4(struct pkt *p)
{
	struct ct4_key k;
	struct ct4 *v;
	int a, tier_new = 0, r;

	a = ct_key4(&p->t, p->proto, &k);
	v = bpf_map_lookup_elem(&ct4, &k);
	if (!v) {
		v = bpf_map_lookup_elem(&ct4_new, &k);
		tier_new = 1;
	}
	if (!v && c_ct_prev && ct_adopt(TUPLE_T)) {
		v = bpf_map_lookup_elem(&ct4, &k);
		tier_new = !v;
		if (!v)
			v = bpf_map_lookup_elem(&ct4_new, &k);
	}
	if (!v)
		return CT_MISS;
	if (v->c.kind != CT_PLAIN) {
		ip_from4(&p->x.saddr, v->saddr);
		ip_from4(&p->x.daddr, v->daddr);
		p->x.sport = v->sport;
		p->x.dport = v->dport;
	}
	r = ct_note(&v->c, a);
	if (r == CT_HIT && tier_new && ct_settles(p))
		p->ct_twin |= 2;
	return r;
}

static __noinline int ct_look6(struct pkt *p)
{
	struct ct6_key k;
	struct ct6 *v;
	int a, tier_new = 0, r;

	a = ct_key6(&p->t, p->proto, &k);
	v = bpf_map_lookup_elem(&ct6, &k);
	if (!v) {
		v = bpf_map_lookup_elem(&ct6_new, &k);
		tier_new = 1;
	}
	if (!v && c_ct_prev && ct_adopt(TUPLE_T)) {
		v = bpf_map_lookup_elem(&ct6, &k);
		tier_new = !v;
		if (!v)
			v = bpf_map_lookup_elem(&ct6_new, &k);
	}
	if (!v)
		return CT_MISS;
	if (v->c.kind != CT_PLAIN) {
		__builtin_memcpy(&p->x.saddr, v->saddr, 16);
		__builtin_memcpy(&p->x.daddr, v->daddr, 16);
		p->x.sport = v->sport;
		p->x.dport = v->dport;
	}
	r = ct_note(&v->c, a);
	if (r == CT_HIT && tier_new && ct_settles(p))
		p->ct_twin |= 2;
	return r;
}

/*
 * Looks the packet's flow up. On a hit the ct_ fields are set, and x with xlate if this hook is to
 * translate. An entry whose flow starts anew is removed, both halves of it.
 */
__noinline int ct_lookup(void)
{
	struct pkt *p = pkt_get();
	int r;

	if (!p)
		return CT_MISS;
	r = p->v6 ? ct_look6(p) : ct_look4(p);
	if (r == CT_STALE) {
		ct_forget(TUPLE_T);
		if (p->ct_kind != CT_PLAIN)
			ct_forget(TUPLE_X);
		p->ct_kind = CT_PLAIN;
		p->ct_flags = 0;
		p->reply = 0;
		p->state = REASON_REOPENED;
		return CT_MISS;
	}
	if (r == CT_HIT) {
		if (c_ct_prev && p->ct_twin && p->ct_kind != CT_PLAIN)
			ct_adopt(TUPLE_X); /* the other half comes along */
		if (p->ct_twin & 2) {
			ct_promote(TUPLE_T);
			if (p->ct_kind != CT_PLAIN)
				ct_promote(TUPLE_X);
		}
		if ((p->ct_twin & 1) && p->ct_kind != CT_PLAIN)
			ct_tell_twin();
		p->xlate = ct_translates(p);
	}
	return r;
}

static __inline void ct_fill(const struct pkt *p, struct ct *c, u8 kind, int src_is_a)
{
	c->seen = p->now;
	c->report = p->now;
	c->flags = p->ct_flags | (src_is_a ? CT_ORIG_A : 0);
	c->tcp_o = p->tcp_flags;
	c->kind = kind;
	c->src_id = p->src_id;
	c->dst_id = p->dst_id;
	c->svc_id = p->svc_id;
	c->backend_id = p->backend_id;
	c->svc_gen = p->svc_gen;
	c->backend_gen = p->backend_gen;
}

/* Adds an entry for a flow that is not translated. Losing a race to another CPU is fine. */
__noinline int ct_add_plain(void)
{
	struct pkt *p = pkt_get();
	int err;

	if (!p)
		return -1;
	if (p->v6) {
		struct ct6_key k;
		struct ct6 v = {};

		ct_fill(p, &v.c, CT_PLAIN, ct_key6(&p->t, p->proto, &k));
		err = ct_insert6(&k, &v, BPF_NOEXIST);
	} else {
		struct ct4_key k;
		struct ct4 v = {};

		ct_fill(p, &v.c, CT_PLAIN, ct_key4(&p->t, p->proto, &k));
		err = ct_insert4(&k, &v, BPF_NOEXIST);
	}
	return err == -EEXIST ? 0 : err;
}

/* Adds the half that replies hit. It is the allocation of the translated tuple: -EEXIST if taken.
 */
__noinline int ct_add_rev(void)
{
	struct pkt *p = pkt_get();
	int err;

	if (!p)
		return -1;
	if (p->v6) {
		struct ct6_key k;
		struct ct6 v = {};

		ct_fill(p, &v.c, CT_REV, ct_key6(&p->x, p->proto, &k));
		__builtin_memcpy(v.saddr, &p->t.daddr, 16);
		__builtin_memcpy(v.daddr, &p->t.saddr, 16);
		v.sport = p->t.dport;
		v.dport = p->t.sport;
		err = ct_insert6(&k, &v, BPF_NOEXIST);
		if (!err && (bpf_map_lookup_elem(&ct6, &k) ||
			     (c_ct_prev && (bpf_map_lookup_elem(&ct6_prev, &k) ||
					    bpf_map_lookup_elem(&ct6_new_prev, &k))))) {
			bpf_map_delete_elem(&ct6_new, &k);
			err = -EEXIST;
		}
	} else {
		struct ct4_key k;
		struct ct4 v = {};

		ct_fill(p, &v.c, CT_REV, ct_key4(&p->x, p->proto, &k));
		v.saddr = p->t.daddr.w[3];
		v.daddr = p->t.saddr.w[3];
		v.sport = p->t.dport;
		v.dport = p->t.sport;
		err = ct_insert4(&k, &v, BPF_NOEXIST);
		if (!err && (bpf_map_lookup_elem(&ct4, &k) ||
			     (c_ct_prev && (bpf_map_lookup_elem(&ct4_prev, &k) ||
					    bpf_map_lookup_elem(&ct4_new_prev, &k))))) {
			bpf_map_delete_elem(&ct4_new, &k);
			err = -EEXIST;
		}
	}
	return err;
}

/* Whether a flow is over and nothing of it can still be under way. */
static __inline int ct_is_over(const struct pkt *p, const struct ct *c)
{
	if (p->proto != PROTO_TCP || p->now - c->seen < TAKE_OVER_IDLE)
		return 0;
	return ((c->tcp_o | c->tcp_r) & TCP_RST) || (c->tcp_o & c->tcp_r & TCP_FIN);
}

/*
 * Makes room for the translated tuple x if the flow that has it is over: removes both halves of
 * that. 1: there is room.
 */
__noinline int ct_take_over(void)
{
	struct pkt *p = pkt_get();

	if (!p)
		return 0;
	if (p->v6) {
		struct ct6_key k, twin;
		const struct ct6 *v;
		struct tuple o;

		ct_key6(&p->x, p->proto, &k);
		v = bpf_map_lookup_elem(&ct6, &k);
		if (!v)
			v = bpf_map_lookup_elem(&ct6_new, &k);
		if (!v || v->c.kind != CT_REV || !ct_is_over(p, &v->c))
			return 0;
		__builtin_memcpy(&o.saddr, v->daddr, 16);
		__builtin_memcpy(&o.daddr, v->saddr, 16);
		o.sport = v->dport;
		o.dport = v->sport;
		ct_key6(&o, p->proto, &twin);
		bpf_map_delete_elem(&ct6, &twin);
		bpf_map_delete_elem(&ct6_new, &twin);
		bpf_map_delete_elem(&ct6, &k);
		bpf_map_delete_elem(&ct6_new, &k);
	} else {
		struct ct4_key k, twin;
		const struct ct4 *v;
		struct tuple o;

		ct_key4(&p->x, p->proto, &k);
		v = bpf_map_lookup_elem(&ct4, &k);
		if (!v)
			v = bpf_map_lookup_elem(&ct4_new, &k);
		if (!v || v->c.kind != CT_REV || !ct_is_over(p, &v->c))
			return 0;
		ip_from4(&o.saddr, v->daddr);
		ip_from4(&o.daddr, v->saddr);
		o.sport = v->dport;
		o.dport = v->sport;
		ct_key4(&o, p->proto, &twin);
		bpf_map_delete_elem(&ct4, &twin);
		bpf_map_delete_elem(&ct4_new, &twin);
		bpf_map_delete_elem(&ct4, &k);
		bpf_map_delete_elem(&ct4_new, &k);
	}
	return 1;
}

/* Adds the half that the originator's packets hit, in place of whatever the tuple had. */
__noinline int ct_add_fwd(void)
{
	struct pkt *p = pkt_get();

	if (!p)
		return -1;
	ct_forget(TUPLE_T);
	if (p->v6) {
		struct ct6_key k;
		struct ct6 v = {};

		ct_fill(p, &v.c, CT_FWD, ct_key6(&p->t, p->proto, &k));
		__builtin_memcpy(v.saddr, &p->x.saddr, 16);
		__builtin_memcpy(v.daddr, &p->x.daddr, 16);
		v.sport = p->x.sport;
		v.dport = p->x.dport;
		return ct_insert6(&k, &v, BPF_ANY);
	} else {
		struct ct4_key k;
		struct ct4 v = {};

		ct_fill(p, &v.c, CT_FWD, ct_key4(&p->t, p->proto, &k));
		v.saddr = p->x.saddr.w[3];
		v.daddr = p->x.daddr.w[3];
		v.sport = p->x.sport;
		v.dport = p->x.dport;
		return ct_insert4(&k, &v, BPF_ANY);
	}
}
