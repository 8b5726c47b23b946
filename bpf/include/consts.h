/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Constants of the node, set in .rodata before a program is loaded, so that the verifier removes
 * what is switched off. They are the same for every pod and device.
 */
#pragma once

#include "kernel.h"

enum sock_lb {
	SOCK_LB_OFF = 0,
	SOCK_LB_ALL = 1,    /* TCP of pods, everything of the host */
	SOCK_LB_HOSTNS = 2, /* sockets of the host only */
};

/* How packets from outside reach a backend on another node. */
enum lb_mode {
	LB_SNAT = 0,   /* with an address of this node as their source */
	LB_DSR = 1,    /* as they are, in the tunnel; the other node answers */
	LB_HYBRID = 2, /* TCP as DSR, the rest as SNAT */
};

#define CONST(type, name) volatile const type name SEC(".rodata")

CONST(u8, c_ipv4) = 1;              /* pods have IPv4 addresses */
CONST(u8, c_ipv6) = 1;              /* pods have IPv6 addresses */
CONST(u8, c_kpr) = 1;               /* Services are ours; 0: left to kube-proxy */
CONST(u8, c_sock_lb) = SOCK_LB_ALL; /* enum sock_lb */
CONST(u8, c_tunnel) = 1;            /* other nodes' pods are behind the tunnel; 0: behind routes */
CONST(u8, c_masq4) = 1;             /* masquerade pods that leave the cluster */
CONST(u8, c_masq6) = 1;
CONST(u8, c_ct_prev) = 0;         /* flows are still moving from the tables before */
CONST(u8, c_test) = 0;            /* record redirects in test_rec */
CONST(u8, c_encap) = 0;           /* programs write the outer headers where they can */
CONST(u16, c_tunnel_port) = 8472; /* UDP, host order */
CONST(u32, c_tunnel_mtu) = 1450;  /* largest packet of a pod that fits the tunnel */
CONST(u16, c_snat_min) = 49152;   /* source ports of masqueraded flows, host order, inclusive */
CONST(u16, c_snat_max) = 65535;
CONST(u16, c_snat_addr_min) = 1024; /* the same where the source is c_snat_addr */
CONST(u16, c_snat_addr_max) = 65535;
CONST(u16, c_node_port_min) = 30000; /* NodePorts, host order, inclusive */
CONST(u16, c_node_port_max) = 32767;
CONST(u8, c_bind_protect) = 1;  /* the host cannot bind to NodePorts in use */
CONST(u8, c_lb_mode) = LB_SNAT; /* enum lb_mode */
CONST(u32, c_maglev_size) = 0;  /* entries of a Service's table, a prime; 0: choose at random */
CONST(u32, c_maglev_seed) = 0;  /* the same on every node */
CONST(u64, c_host_cookie) = 0;  /* cookie of the node's network namespace */
CONST(u32, c_world_id4) = 2;    /* identity of what is outside: 9 with both families */
CONST(u32, c_world_id6) = 2;    /* 10 with both families */

/* Addresses, in network order. Zero: none. */
struct ip4_const {
	u8 b[4];
} __attribute__((aligned(4)));

struct ip6_const {
	u8 b[16];
} __attribute__((aligned(8)));

/* Reads of address constants, word by word: a plain copy would take the value at compile time. */
static __inline u32 const4(const volatile struct ip4_const *c)
{
	return *(const volatile u32 *)c->b;
}

static __inline void const6(void *to, const volatile struct ip6_const *c)
{
	const volatile u32 *w = (const volatile u32 *)c->b;
	u32 *out = to;

	out[0] = w[0];
	out[1] = w[1];
	out[2] = w[2];
	out[3] = w[3];
}

CONST(struct ip4_const, c_router4) = {}; /* cilium_host: source of ICMP errors to pods */
CONST(struct ip6_const, c_router6) = {};
/* source of what comes from outside to pods of other nodes; all 0: the node's address is */
CONST(struct ip4_const, c_snat_addr4) = {};
CONST(struct ip6_const, c_snat_addr6) = {};
CONST(struct ip4_const, c_node4) = {}; /* this node, direct routing */
CONST(struct ip6_const, c_node6) = {};
CONST(struct ip4_const, c_loopback4) = { { 169, 254, 42, 1 } }; /* a pod's own Service, as source */
CONST(struct ip6_const, c_loopback6) = { { 0xfd, 0x0c, 0x11, 0x1a, [15] = 1 } };
