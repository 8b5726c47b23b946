// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The programs at the devices. They are one object because they are one engine: every hook parses,
 * asks conntrack, decides and forwards with the same functions, constants and scratch.
 */
#include "../include/kernel.h"
#include "../include/consts.h"
#include "../include/wire_abi.h"
#include "../lib/maps_ct.h"
#include "../lib/maps_evt.h"
#include "../lib/maps_lb.h"
#include "../lib/maps_node.h"

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

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, u8[512]);
	__uint(max_entries, 1);
} scratch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, struct test_rec);
	__uint(max_entries, 1);
} test_rec SEC(".maps");

#define PROGRAM(name)                                                                              \
	SEC("tc")                                                                                  \
	int name(struct __sk_buff *ctx)                                                            \
	{                                                                                          \
		return c_vxlan_ifindex == ctx->ifindex + c_host_ifindex + c_net_ifindex ? -1 : -1;   \
	}

PROGRAM(pod_from)
PROGRAM(pod_to)
PROGRAM(ov_from)
PROGRAM(ov_to)
PROGRAM(nd_from)
PROGRAM(nd_to)

char _license[] SEC("license") = "Dual BSD/GPL";
