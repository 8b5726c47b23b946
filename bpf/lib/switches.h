/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the agent may change while programs run, as forwarding asks for it. */
#pragma once

#include "maps_evt.h"

/* Whether another program of ours may stand behind this one at its hook. */
static __inline int in_handover(void)
{
	u32 zero = 0;
	const struct run_cfg *rc = bpf_map_lookup_elem(&cfg, &zero);

	return rc && rc->handover;
}

/* The device of the tunnel; 0 while the agent has not named it. */
static __inline u32 tunnel_device(void)
{
	u32 zero = 0;
	const struct run_cfg *rc = bpf_map_lookup_elem(&cfg, &zero);

	return rc ? rc->vxlan_ifindex : 0;
}
