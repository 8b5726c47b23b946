/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The flow tables' layout of the version before this one, and how an entry of it becomes one of
 * today's. While the layouts are the same the tables only change their size. Who changes struct ct
 * or a flow's key keeps the old form here and raises CT_ABI in bpf/digest.go.
 */
#pragma once

#include "maps_abi.h"

struct ct4_prev {
	struct ct4 e;
};

struct ct6_prev {
	struct ct6 e;
};

static __inline void ct4_from_prev(const struct ct4_prev *old, struct ct4 *new)
{
	*new = old->e;
}

static __inline void ct6_from_prev(const struct ct6_prev *old, struct ct6 *new)
{
	*new = old->e;
}
