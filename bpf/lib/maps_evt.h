/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What programs tell the agent, and the switches that it may turn while they run. */
#pragma once

#include "../include/kernel.h"
#include "../include/event_abi.h"
#include "../include/maps_abi.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__type(key, struct metrics_key);
	__type(value, struct metrics);
	__uint(max_entries, 1024);
} metrics SEC(".maps");

/* Packets that were forwarded, by enum metric_dir: an array, as every packet is counted. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, struct metrics);
	__uint(max_entries, METRIC_SERVICE);
} forwarded SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, struct evt_budget);
	__uint(max_entries, 1);
} evt_budget SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, u32);
	__type(value, struct run_cfg);
	__uint(max_entries, 1);
} cfg SEC(".maps");
