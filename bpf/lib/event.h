/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is told about packets: exact counters, and events within a budget a second and CPU. */
#pragma once

#include "maps_evt.h"
#include "pkt.h"

#define EVT_WAKE (64 << 10) /* wake the reader when so much is pending */
#define BUDGET_PERIOD 954   /* 1 s in units of struct ct */

__noinline int count(u32 reason, u32 dir, u32 line, u32 file, u32 bytes)
{
	struct metrics_key k = { .reason = reason, .dir = dir, .line = line, .file = file };
	struct metrics *m = bpf_map_lookup_elem(&metrics, &k);

	if (m) {
		m->packets++;
		m->bytes += bytes;
	} else {
		struct metrics first = { .packets = 1, .bytes = bytes };

		bpf_map_update_elem(&metrics, &k, &first, BPF_NOEXIST);
	}
	return 0;
}

static __inline void count_forwarded(u32 dir, u32 bytes)
{
	struct metrics *m = bpf_map_lookup_elem(&forwarded, &dir);

	if (m) {
		m->packets++;
		m->bytes += bytes;
	}
}

/* Takes one event from the budget of its kind; refills once a second. */
static __inline struct evt_budget *budget_take(u8 type, u32 now)
{
	u32 zero = 0;
	const struct run_cfg *rc = bpf_map_lookup_elem(&cfg, &zero);
	struct evt_budget *b = bpf_map_lookup_elem(&evt_budget, &zero);

	if (!rc || !b)
		return 0;
	if (now - b->last >= BUDGET_PERIOD) {
		b->last = now;
		b->drops = rc->drop_rate;
		b->traces = rc->trace_rate;
	}
	if (type == EVT_DROP) {
		if (b->drops) {
			b->drops--;
			return b;
		}
	} else {
		if (b->traces) {
			b->traces--;
			return b;
		}
		if (!rc->trace_rate)
			return 0; /* switched off, not lost */
	}
	b->lost_rate++;
	return 0;
}

struct event_full {
	struct event e;
	u8 packet[EVT_CAP_MAX];
};

/* Writes one event about the packet as it is now. */
__noinline int event_emit(struct __sk_buff *ctx, u32 type, u32 subtype, u32 dir, u32 ep_id)
{
	struct pkt *p = pkt_get();
	struct event_full *r;
	struct evt_budget *b;
	u64 wake;
	u32 cap;

	if (!p)
		return 0;
	b = budget_take(type, p->now);
	if (!b)
		return 0;
	r = bpf_ringbuf_reserve(&events, sizeof(*r), 0);
	if (!r) {
		b->lost_ring++;
		return 0;
	}
	cap = ctx->len;
	if (cap > EVT_CAP_MAX)
		cap = EVT_CAP_MAX;
	r->e.type = type;
	r->e.subtype = subtype;
	r->e.version = EVT_VERSION;
	r->e.flags = p->v6 ? EVT_IPV6 : 0;
	r->e.hash = ctx->hash;
	r->e.orig_len = ctx->len;
	r->e.ep_id = ep_id;
	r->e.src_id = p->src_id;
	r->e.dst_id = p->dst_id;
	r->e.dst_ep = p->dst_ep;
	r->e.line = p->line;
	r->e.ifindex = ctx->ifindex;
	r->e.file = p->file;
	r->e.reason = p->state;
	r->e.dir = dir;
	r->e.pad = 0;
	r->e.cookie = 0;
	r->e.time = bpf_ktime_get_coarse_ns();
	/* 1 to 128, in a way that kernel 6.1 follows; frames are never empty */
	barrier_var(cap);
	cap = ((cap - 1) & (EVT_CAP_MAX - 1)) + 1;
	if (bpf_skb_load_bytes(ctx, 0, r->packet, cap))
		cap = 0;
	r->e.cap_len = cap;
	wake = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) > EVT_WAKE ? BPF_RB_FORCE_WAKEUP
									: BPF_RB_NO_WAKEUP;
	bpf_ringbuf_submit(r, wake);
	return 0;
}
