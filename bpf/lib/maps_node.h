/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who and where: pods of this node, addresses, prefixes, tunnel endpoints, devices. */
#pragma once

#include "../include/kernel.h"
#include "../include/maps_abi.h"

#define VTEP_MAX 16384

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u32);
	__type(value, struct ep);
	__uint(max_entries, 4096);
} ep SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct addr_key);
	__type(value, struct addr);
	__uint(max_entries, 524288);
} addr SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cidr_key);
	__type(value, struct cidr);
	__uint(max_entries, 65536);
} cidr SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, u32);
	__type(value, struct vtep);
	__uint(max_entries, VTEP_MAX);
} vtep SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u32);
	__type(value, struct dev);
	__uint(max_entries, 256);
} dev SEC(".maps");
