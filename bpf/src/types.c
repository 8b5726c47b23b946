// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Exports the shared types: the Go package takes them from this object's BTF. */
#pragma clang diagnostic error "-Wpadded"
#include "../include/event_abi.h"
#include "../include/maps_abi.h"
#include "../include/wire_abi.h"

#define EXPORT(kind, name) kind name *export_##name __attribute__((unused))

EXPORT(struct, ep);
EXPORT(struct, addr_key);
EXPORT(struct, addr);
EXPORT(struct, cidr_key);
EXPORT(struct, cidr);
EXPORT(struct, vtep);
EXPORT(struct, dev);
EXPORT(struct, ct4_key);
EXPORT(struct, ct6_key);
EXPORT(struct, ct);
EXPORT(struct, ct4);
EXPORT(struct, ct6);
EXPORT(struct, frag4_key);
EXPORT(struct, frag6_key);
EXPORT(struct, frag);
EXPORT(struct, front_key);
EXPORT(struct, front);
EXPORT(struct, svc);
EXPORT(struct, slots);
EXPORT(struct, backend);
EXPORT(struct, maglev);
EXPORT(struct, aff_key);
EXPORT(struct, aff);
EXPORT(struct, srcrange_key);
EXPORT(struct, skrev_key);
EXPORT(struct, skrev);
EXPORT(struct, metrics_key);
EXPORT(struct, metrics);
EXPORT(struct, run_cfg);
EXPORT(struct, evt_budget);
EXPORT(struct, gc_item);
EXPORT(struct, gc_expire);
EXPORT(struct, gc_purge);
EXPORT(struct, test_rec);
EXPORT(struct, event);
EXPORT(enum, ep_flag);
EXPORT(enum, addr_kind);
EXPORT(enum, addr_flag);
EXPORT(enum, cidr_kind);
EXPORT(enum, cidr_flag);
EXPORT(enum, dev_flag);
EXPORT(enum, ct_kind);
EXPORT(enum, ct_flag);
EXPORT(enum, front_flag);
EXPORT(enum, front_type);
EXPORT(enum, svc_flag);
EXPORT(enum, backend_state);
EXPORT(enum, metric_dir);
EXPORT(enum, gc_done);
EXPORT(enum, identity);
EXPORT(enum, event_type);
EXPORT(enum, event_flag);
EXPORT(enum, trace_point);
EXPORT(enum, trace_reason);
EXPORT(enum, src_file);
EXPORT(enum, drop_reason);

_Static_assert(sizeof(struct ep) == 64, "struct ep");
_Static_assert(sizeof(struct addr_key) == 20, "struct addr_key");
_Static_assert(sizeof(struct addr) == 24, "struct addr");
_Static_assert(sizeof(struct ct4_key) == 16, "struct ct4_key");
_Static_assert(sizeof(struct ct4) == 64, "struct ct4");
_Static_assert(sizeof(struct ct6_key) == 40, "struct ct6_key");
_Static_assert(sizeof(struct ct6) == 96, "struct ct6");
_Static_assert(sizeof(struct svc) == 64, "struct svc");
_Static_assert(sizeof(struct slots) == 64, "struct slots");
_Static_assert(sizeof(struct backend) == 24, "struct backend");
_Static_assert(sizeof(struct event) == 48, "struct event");
