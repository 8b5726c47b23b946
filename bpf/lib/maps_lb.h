/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services: front -> svc -> block of slots -> backend, and the way back for sockets. */
#pragma once

#include "../include/kernel.h"
#include "../include/maps_abi.h"

/*
 * Room for 30,000 Services of two ports, each with four frontends and four backends. Arrays take
 * their memory at once: svc 8 MiB, slot 4 MiB, backend 6 MiB. front takes 4 MiB, and more with its
 * entries.
 */
#define FRONT_MAX 262144
#define SVC_MAX 131072
#define SLOT_ELEMS 65536 /* 1 Mi slots */
#define BACKEND_MAX 262144

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct front_key);
	__type(value, struct front);
	__uint(max_entries, FRONT_MAX);
} front SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, u32);
	__type(value, struct svc);
	__uint(max_entries, SVC_MAX);
} svc SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, u32);
	__type(value, struct slots);
	__uint(max_entries, SLOT_ELEMS);
} slot SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, u32);
	__type(value, struct backend);
	__uint(max_entries, BACKEND_MAX);
} backend SEC(".maps");

/* Its size is set when Maglev is used. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, u32);
	__type(value, struct maglev);
	__uint(max_entries, 1);
} maglev SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct aff_key);
	__type(value, struct aff);
	__uint(max_entries, 16384);
} aff SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct srcrange_key);
	__type(value, u32);
	__uint(max_entries, 65536);
} srcrange SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, u32);
	__type(value, u64);
	__uint(max_entries, 2 * HOSTBACK_WORDS);
} hostback SEC(".maps");
