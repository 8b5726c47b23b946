/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Translation of socket addresses. TCP of pods and everything of the host is translated here; UDP
 * of pods is translated packet by packet, where a lost backend heals by itself.
 */
#pragma once

#include "../include/consts.h"
#include "lb.h"

#define SOCK_DENY 0
#define SOCK_OK 1

#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define ECONNREFUSED 111

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct skrev_key);
	__type(value, struct skrev);
	__uint(max_entries, 65536);
} skrev SEC(".maps");

/* Protocol of the socket if it is ours to translate, else 0. */
static __inline u8 sock_proto(struct bpf_sock_addr *ctx)
{
	int host;

	if (!c_kpr || c_sock_lb == SOCK_LB_OFF)
		return 0;
	host = bpf_get_netns_cookie(ctx) == c_host_cookie;
	if (ctx->protocol == IPPROTO_TCP && (host || c_sock_lb == SOCK_LB_ALL))
		return IPPROTO_TCP;
	if (ctx->protocol == IPPROTO_UDP && host)
		return IPPROTO_UDP;
	return 0;
}

/* An unconnected UDP socket keeps its backend: the choice is a function of the socket. */
static __inline u32 sock_random(u64 cookie, u8 proto, int connect)
{
	if (proto == IPPROTO_UDP && !connect)
		return (u32)((cookie * 0x9e3779b97f4a7c15ULL) >> 32);
	return bpf_get_prandom_u32();
}

static __inline int sock_is_loopback(const u32 ip[4])
{
	if (!ip[0] && !ip[1] && ip[2] == LB_V4MAPPED)
		return (bpf_ntohl(ip[3]) >> 24) == 127;
	return !ip[0] && !ip[1] && !ip[2] && ip[3] == bpf_htonl(1);
}

/* The front that a socket calls. NodePorts hold on the addresses of every node, and for the host on
 * those of its loopback device.
 */
static __noinline const struct front *sock_front(const struct front_key *key, int host)
{
	const struct front *f = bpf_map_lookup_elem(&front, key);
	const struct addr *a;
	struct addr_key k = {};
	u32 ip[4];

	if (f)
		return f;
	__builtin_memcpy(ip, key->ip, sizeof(ip));
	if (sock_is_loopback(ip))
		return host ? lb_front_any(key, ADDR_LOCAL_NODE, ADDR_NODEPORT) : 0;
	__builtin_memcpy(k.ip, ip, sizeof(k.ip));
	a = bpf_map_lookup_elem(&addr, &k);
	if (!a || !lb_any(a->kind, a->flags))
		return 0;
	return lb_front_any(key, a->kind, a->flags);
}

/* Whether the node itself may call a front that is for some sources only. */
static __inline int sock_source_ok(u32 svc_id, const u32 ip[4])
{
	u32 self[4] = { 0, 0, LB_V4MAPPED, const4(&c_node4) };

	if (ip[0] || ip[1] || ip[2] != LB_V4MAPPED)
		const6(self, &c_node6);
	return lb_source_ok(svc_id, (const u8 *)self);
}

/* 1: ip and port now name a backend; 0: not a Service; -1: refuse. */
static __inline int sock_translate(struct bpf_sock_addr *ctx, u32 ip[4], __be16 *port, int connect)
{
	struct front_key key = {};
	struct skrev_key rkey = {};
	struct lb_choice to = {};
	struct skrev rev = {};
	struct lb_ask ask = {};
	const struct front *f;
	u8 proto = sock_proto(ctx);
	u64 ns = bpf_get_netns_cookie(ctx);
	int host = ns == c_host_cookie;

	if (!proto)
		return 0;
	__builtin_memcpy(key.ip, ip, sizeof(key.ip));
	key.port = *port;
	key.proto = proto;
	f = sock_front(&key, host);
	if (!f)
		return 0;
	if (f->flags & FRONT_SOURCES) {
		if (!host)
			return 0; /* its packets are looked at: here nobody knows the source */
		if (!sock_source_ok(f->svc_id, ip))
			return -1;
	}
	rkey.cookie = bpf_get_socket_cookie(ctx);
	__builtin_memcpy(ask.client, &ns, sizeof(ns));
	ask.is_cookie = 1;
	ask.from = LB_INSIDE;
	ask.random = sock_random(rkey.cookie, proto, connect);
	ask.now = bpf_ktime_get_coarse_ns() >> 20;
	switch (lb_choose(f->svc_id, f->flags, &ask, &to)) {
	case LB_NO_SERVICE:
		return 0;
	case LB_NO_BACKEND:
		return -1;
	case LB_NOT_HERE:
		return host ? -1 : 0; /* a pod's packets are dropped one by one */
	default:
		break;
	}
	__builtin_memcpy(rkey.ip, to.ip, sizeof(rkey.ip));
	rkey.port = to.port;
	__builtin_memcpy(rev.ip, ip, sizeof(rev.ip));
	rev.port = *port;
	rev.svc_id = to.svc_id;
	rev.gen = to.gen;
	bpf_map_update_elem(&skrev, &rkey, &rev, BPF_ANY);
	__builtin_memcpy(ip, to.ip, sizeof(to.ip));
	*port = to.port;
	return 1;
}

/* Whether a socket of the host may have a port: those of NodePorts in use are taken. */
static __inline int sock_bind(struct bpf_sock *ctx, int v6)
{
	struct front_key key = {};
	u32 port = ctx->src_port;
	u32 *w = (u32 *)key.ip;

	if (!c_kpr || !c_bind_protect || bpf_get_netns_cookie(ctx) != c_host_cookie)
		return SOCK_OK;
	if (port < c_node_port_min || port > c_node_port_max)
		return SOCK_OK;
	if (!v6)
		w[2] = LB_V4MAPPED;
	key.port = bpf_htons(port);
	key.proto = ctx->protocol;
	if (bpf_map_lookup_elem(&front, &key))
		return SOCK_DENY;
	/* a socket of IPv6 without an address, or with one of IPv4, has the port in IPv4 too */
	if (!v6 || ctx->src_ip6[0] || ctx->src_ip6[1] ||
	    (ctx->src_ip6[2] != LB_V4MAPPED && (ctx->src_ip6[2] || ctx->src_ip6[3])))
		return SOCK_OK;
	w[2] = LB_V4MAPPED;
	return bpf_map_lookup_elem(&front, &key) ? SOCK_DENY : SOCK_OK;
}

static __inline int sock_refuse(void)
{
	bpf_set_retval(-ECONNREFUSED);
	return SOCK_DENY;
}

static __inline int sock_forward4(struct bpf_sock_addr *ctx, int connect)
{
	u32 ip[4] = { 0, 0, bpf_htonl(0xffff), ctx->user_ip4 };
	__be16 port = (__be16)ctx->user_port;
	int r = sock_translate(ctx, ip, &port, connect);

	if (r < 0)
		return sock_refuse();
	if (r) {
		ctx->user_ip4 = ip[3];
		ctx->user_port = port;
	}
	return SOCK_OK;
}

static __inline int sock_forward6(struct bpf_sock_addr *ctx, int connect)
{
	u32 ip[4] = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] };
	__be16 port = (__be16)ctx->user_port;
	int r = sock_translate(ctx, ip, &port, connect);

	if (r < 0)
		return sock_refuse();
	if (r) {
		ctx->user_ip6[0] = ip[0];
		ctx->user_ip6[1] = ip[1];
		ctx->user_ip6[2] = ip[2];
		ctx->user_ip6[3] = ip[3];
		ctx->user_port = port;
	}
	return SOCK_OK;
}

static __inline struct skrev *sock_origin(struct bpf_sock_addr *ctx, const u32 ip[4], __be16 port)
{
	struct skrev_key key = {};

	if (!sock_proto(ctx))
		return 0;
	key.cookie = bpf_get_socket_cookie(ctx);
	__builtin_memcpy(key.ip, ip, sizeof(key.ip));
	key.port = port;
	return bpf_map_lookup_elem(&skrev, &key);
}

static __inline int sock_reverse4(struct bpf_sock_addr *ctx)
{
	u32 ip[4] = { 0, 0, bpf_htonl(0xffff), ctx->user_ip4 };
	struct skrev *r = sock_origin(ctx, ip, (__be16)ctx->user_port);

	if (r) {
		__builtin_memcpy(ip, r->ip, sizeof(ip));
		ctx->user_ip4 = ip[3];
		ctx->user_port = r->port;
	}
	return SOCK_OK;
}

static __inline int sock_reverse6(struct bpf_sock_addr *ctx)
{
	u32 ip[4] = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] };
	struct skrev *r = sock_origin(ctx, ip, (__be16)ctx->user_port);

	if (r) {
		__builtin_memcpy(ip, r->ip, sizeof(ip));
		ctx->user_ip6[0] = ip[0];
		ctx->user_ip6[1] = ip[1];
		ctx->user_ip6[2] = ip[2];
		ctx->user_ip6[3] = ip[3];
		ctx->user_port = r->port;
	}
	return SOCK_OK;
}
