/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flow state. New flows live in the LRU tier, flows that were answered in the plain hash. The
 * latter takes memory with its flows: an element of either family and what the allocator adds fill
 * one piece of 192 bytes. A flow for which there is none stays in the LRU tier.
 */
#pragma once

#include "../include/kernel.h"
#include "../include/ct_prev.h"
#include "../include/maps_abi.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ct4_key);
	__type(value, struct ct4);
	__uint(max_entries, 131072);
} ct4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct ct4_key);
	__type(value, struct ct4);
	__uint(max_entries, 32768);
} ct4_new SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ct6_key);
	__type(value, struct ct6);
	__uint(max_entries, 65536);
} ct6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct ct6_key);
	__type(value, struct ct6);
	__uint(max_entries, 16384);
} ct6_new SEC(".maps");

/* Entries that have come into the main tier, by v6: who clears it up has to know how fast it fills.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, u64);
	__uint(max_entries, 2);
} settled SEC(".maps");

/*
 * The tables that the generation before used, where they have another size or layout: their flows
 * move to the ones above as packets hit them, and the agent moves the rest. Without such tables
 * these are placeholders.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct ct4_key);
	__type(value, struct ct4_prev);
	__uint(max_entries, 1);
} ct4_prev SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct ct4_key);
	__type(value, struct ct4_prev);
	__uint(max_entries, 1);
} ct4_new_prev SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct ct6_key);
	__type(value, struct ct6_prev);
	__uint(max_entries, 1);
} ct6_prev SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct ct6_key);
	__type(value, struct ct6_prev);
	__uint(max_entries, 1);
} ct6_new_prev SEC(".maps");
