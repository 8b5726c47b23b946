/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the programs need from the kernel: UAPI types and constants, the helpers by number and the
 * notation of map definitions. Nothing else is included from the system.
 */
#pragma once

#include <linux/types.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;

#define SEC(name) __attribute__((section(name), used))
#define __inline inline __attribute__((always_inline))
#define __noinline __attribute__((noinline))
#define __weak __attribute__((weak))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))
#define barrier_var(v) asm volatile("" : "+r"(v))

#define bpf_htons(x) ((__be16)__builtin_bswap16(x))
#define bpf_ntohs(x) ((u16)__builtin_bswap16(x))
#define bpf_htonl(x) ((__be32)__builtin_bswap32(x))
#define bpf_ntohl(x) ((u32)__builtin_bswap32(x))

/* Map definitions: integers and types as the library reads them from BTF. */
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

/* Helpers, by the number that the kernel knows them by. */
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value,
				   u64 flags) = (void *)BPF_FUNC_map_update_elem;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static u32 (*bpf_get_prandom_u32)(void) = (void *)BPF_FUNC_get_prandom_u32;
static u64 (*bpf_ktime_get_coarse_ns)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;
static u64 (*bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*bpf_skb_store_bytes)(void *skb, u32 off, const void *from, u32 len,
				   u64 flags) = (void *)BPF_FUNC_skb_store_bytes;
static long (*bpf_skb_load_bytes)(const void *skb, u32 off, void *to,
				  u32 len) = (void *)BPF_FUNC_skb_load_bytes;
static long (*bpf_l3_csum_replace)(void *skb, u32 off, u64 from, u64 to,
				   u64 flags) = (void *)BPF_FUNC_l3_csum_replace;
static long (*bpf_l4_csum_replace)(void *skb, u32 off, u64 from, u64 to,
				   u64 flags) = (void *)BPF_FUNC_l4_csum_replace;
static s64 (*bpf_csum_diff)(__be32 *from, u32 from_size, __be32 *to, u32 to_size,
			    u32 seed) = (void *)BPF_FUNC_csum_diff;
static long (*bpf_redirect)(u32 ifindex, u64 flags) = (void *)BPF_FUNC_redirect;
static long (*bpf_redirect_peer)(u32 ifindex, u64 flags) = (void *)BPF_FUNC_redirect_peer;
static long (*bpf_redirect_neigh)(u32 ifindex, struct bpf_redir_neigh *params, int plen,
				  u64 flags) = (void *)BPF_FUNC_redirect_neigh;
static long (*bpf_skb_get_tunnel_key)(void *skb, struct bpf_tunnel_key *key, u32 size,
				      u64 flags) = (void *)BPF_FUNC_skb_get_tunnel_key;
static long (*bpf_skb_set_tunnel_key)(void *skb, struct bpf_tunnel_key *key, u32 size,
				      u64 flags) = (void *)BPF_FUNC_skb_set_tunnel_key;
static long (*bpf_skb_change_type)(void *skb, u32 type) = (void *)BPF_FUNC_skb_change_type;
static long (*bpf_skb_change_tail)(void *skb, u32 len,
				   u64 flags) = (void *)BPF_FUNC_skb_change_tail;
static long (*bpf_skb_adjust_room)(void *skb, s32 len_diff, u32 mode,
				   u64 flags) = (void *)BPF_FUNC_skb_adjust_room;
static long (*bpf_skb_pull_data)(void *skb, u32 len) = (void *)BPF_FUNC_skb_pull_data;
static u32 (*bpf_get_hash_recalc)(void *skb) = (void *)BPF_FUNC_get_hash_recalc;
static long (*bpf_fib_lookup)(void *ctx, struct bpf_fib_lookup *params, int plen,
			      u32 flags) = (void *)BPF_FUNC_fib_lookup;
static void *(*bpf_ringbuf_reserve)(void *ringbuf, u64 size,
				    u64 flags) = (void *)BPF_FUNC_ringbuf_reserve;
static void (*bpf_ringbuf_submit)(void *data, u64 flags) = (void *)BPF_FUNC_ringbuf_submit;
static void (*bpf_ringbuf_discard)(void *data, u64 flags) = (void *)BPF_FUNC_ringbuf_discard;
static u64 (*bpf_ringbuf_query)(void *ringbuf, u64 flags) = (void *)BPF_FUNC_ringbuf_query;
static u64 (*bpf_get_socket_cookie)(void *ctx) = (void *)BPF_FUNC_get_socket_cookie;
static u64 (*bpf_get_netns_cookie)(void *ctx) = (void *)BPF_FUNC_get_netns_cookie;
static int (*bpf_set_retval)(int retval) = (void *)BPF_FUNC_set_retval;
static long (*bpf_loop)(u32 nr_loops, void *callback_fn, void *callback_ctx,
			u64 flags) = (void *)BPF_FUNC_loop;
static long (*bpf_for_each_map_elem)(void *map, void *callback_fn, void *callback_ctx,
				     u64 flags) = (void *)BPF_FUNC_for_each_map_elem;
