/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Keys and values of the maps that programs and agent share. The Go types are generated from
 * here. Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d; addresses and ports are in network order,
 * everything else in host order. Padding is explicit and zero.
 *
 * A map's pin name ends in its ABI number. Raise the number only when new programs cannot live
 * with the old bytes.
 */
#pragma once

#include <linux/types.h>

#define ABI_ADDR __attribute__((aligned(4)))

/* ep: pod interfaces of this node, by ifindex of the host side. */
struct ep {
	__u32 identity;
	__u32 ep_id;
	__u32 rs_egress; /* ruleset ids, 0 while there is no policy */
	__u32 rs_ingress;
	__u32 flags;      /* EP_* */
	__u32 ifindex;    /* of the host side, the key again */
	__u8 mac[6];      /* inside the pod */
	__u8 node_mac[6]; /* host side */
	__u8 ipv4[4];
	__u8 ipv6[16];
	__u8 pad[8];
};

enum ep_flag {
	EP_NO_SPOOF_CHECK = 1 << 0, /* accept any source address */
	EP_PEER_HERE = 1 << 1,      /* the other end is in the node's network namespace too */
};

/* addr: who an address is. */
struct addr_key {
	__u8 ip[16] ABI_ADDR;
	__u16 cluster; /* 0: this one */
	__u16 pad;
};

enum addr_kind {
	ADDR_NONE = 0,
	ADDR_LOCAL_EP = 1,    /* pod of this node: ifindex, ep_id */
	ADDR_REMOTE_EP = 2,   /* reached through vtep: pod or router address of another node */
	ADDR_LOCAL_NODE = 3,  /* address of this node */
	ADDR_REMOTE_NODE = 4, /* address of another node; vtep is that node */
	ADDR_GATEWAY = 5,     /* router address of this node */
	ADDR_VIP = 6,         /* nothing but a Service has it */
	ADDR_CIDR = 7,        /* only an identity is known */
};

enum addr_flag {
	ADDR_HAS_SVC = 1 << 0,  /* front may have entries for it */
	ADDR_NODEPORT = 1 << 1, /* a node's address where fronts without address hold too */
	ADDR_ECHO = 1 << 2,     /* ADDR_VIP: it answers pings */
};

struct addr {
	__u8 kind; /* enum addr_kind */
	__u8 pad;
	__u16 flags; /* ADDR_HAS_SVC ... */
	__u32 identity;
	__u32 vtep;    /* index, 0: none */
	__u32 ifindex; /* ADDR_LOCAL_EP */
	__u32 ep_id;   /* ADDR_LOCAL_EP */
	__u32 pad2;
};

/* cidr: consulted when addr has no entry. plen counts 32 bits of cluster and pad, then the
 * address: 32 + 96 + n for an IPv4 prefix of n bits, 32 + n for IPv6.
 */
struct cidr_key {
	__u32 plen;
	__u16 cluster;
	__u16 pad;
	__u8 ip[16];
};

enum cidr_kind {
	CIDR_IDENTITY = 1,  /* outside the cluster, with an identity of its own */
	CIDR_POD = 2,       /* pods of another node, reached through vtep */
	CIDR_POD_LOCAL = 3, /* pods of this node */
};

enum cidr_flag {
	CIDR_NO_MASQ = 1 << 0, /* pods keep their source address */
};

struct cidr {
	__u32 identity; /* 0: unknown for pods, world for CIDR_IDENTITY */
	__u32 vtep;
	__u8 kind; /* enum cidr_kind */
	__u8 pad;
	__u16 flags;
};

/* vtep: tunnel endpoints by index; 0 is never used. */
struct vtep {
	__u8 ip[16] ABI_ADDR; /* of the peer node */
	__u32 key;            /* encryption key index, 0: none */
	__u32 mtu;            /* largest inner packet, 0: the default */
};

/* dev: devices that lead out of the node, by ifindex. */
struct dev {
	__u8 masq4[4] ABI_ADDR; /* zero: pods are not masqueraded here */
	__u8 masq6[16];
	__u8 mac[6];
	__u8 pad[2];
	__u32 flags; /* DEV_* */
	__u32 mtu;
};

enum dev_flag {
	DEV_L3 = 1 << 0, /* no Ethernet header */
};

/*
 * Conntrack. The key is canonical: the smaller (address, port) pair, compared as the program reads
 * the bytes, is side a. ICMP echo has its id as the port of the side that asks.
 */
struct ct4_key {
	__be32 a;
	__be32 b;
	__be16 pa;
	__be16 pb;
	__u8 proto;
	__u8 zone;
	__u16 pad;
};

struct ct6_key {
	__u8 a[16] ABI_ADDR;
	__u8 b[16];
	__be16 pa;
	__be16 pb;
	__u8 proto;
	__u8 zone;
	__u16 pad;
};

enum ct_kind {
	CT_PLAIN = 0, /* one entry for both directions */
	CT_FWD = 1,   /* original tuple, hit by packets of the originator */
	CT_REV = 2,   /* translated tuple, hit by replies */
};

enum ct_flag {
	CT_ORIG_A = 1 << 0,    /* the originator is side a */
	CT_CONFIRMED = 1 << 1, /* a reply was seen */
	CT_VIA_STACK = 1 << 2, /* both directions cross the host stack */
	CT_LOOPBACK = 1 << 3,  /* a pod talks to itself through a Service */
	CT_TUNNEL = 1 << 4,    /* the originator is reached through the tunnel */
	CT_PICKED_UP = 1 << 5, /* began in the middle */
	CT_SERVICE = 1 << 6,   /* destination was chosen by a Service */
	CT_MASQ = 1 << 7,      /* source was masqueraded */
	CT_SETTLED = 1 << 8,   /* nd_to has decided */
	CT_DSR = 1 << 9,       /* another node translates, and answers by itself */
};

/* The part that both families share: everything but the translation. */
struct ct {
	__u32 seen;   /* last packet, coarse monotonic ns >> 20; compare modulo 2^32 */
	__u32 report; /* last trace event, same unit */
	__u16 flags;  /* CT_* */
	__u8 tcp_o;   /* TCP flags seen from the originator */
	__u8 tcp_r;   /* and from the other side */
	__u16 proxy_port;
	__u8 verdict;
	__u8 kind; /* enum ct_kind */
	__u32 src_id;
	__u32 dst_id;
	__u32 epoch_e; /* ruleset epochs that the verdicts are of */
	__u32 epoch_i;
	__u32 svc_id;
	__u32 backend_id;
	__u16 svc_gen;
	__u16 backend_gen;
	__u32 kib_fwd; /* bytes of the originator, in units of 1 KiB, rounded at random */
	__u32 kib_rev;
};

struct ct4 {
	struct ct c;
	__be32 saddr; /* what the packet gets, CT_FWD and CT_REV */
	__be32 daddr;
	__be16 sport;
	__be16 dport;
};

struct ct6 {
	struct ct c;
	__u8 saddr[16];
	__u8 daddr[16];
	__be16 sport;
	__be16 dport;
	__u8 pad[8];
};

/* frag4, frag6: ports of datagrams whose first fragment was seen. */
struct frag4_key {
	__be32 src;
	__be32 dst;
	__be16 id;
	__u8 proto;
	__u8 pad;
};

struct frag6_key {
	__u8 src[16] ABI_ADDR;
	__u8 dst[16];
	__be32 id;
	__u8 proto;
	__u8 pad[3];
};

struct frag {
	__be16 sport;
	__be16 dport;
	__u32 seen; /* unit of struct ct */
};

/*
 * front: address and port under which a Service is reached. The unspecified address of a family
 * stands for every address of a node that has ADDR_NODEPORT.
 */
struct front_key {
	__u8 ip[16] ABI_ADDR;
	__be16 port;
	__u8 proto;
	__u8 pad;
	__u16 cluster;
	__u16 pad2;
};

enum front_flag {
	FRONT_PRIMARY = 1 << 0,   /* the one by which the agent knows the Service port */
	FRONT_OUTSIDE = 1 << 1,   /* callers outside the cluster may use it */
	FRONT_SOURCES = 1 << 2,   /* only for sources that srcrange has */
	FRONT_THIS_NODE = 1 << 3, /* without address: not for addresses of other nodes */
};

enum front_type {
	FRONT_CLUSTER_IP = 0,
	FRONT_NODE_PORT = 1,
	FRONT_EXTERNAL_IP = 2,
	FRONT_LOAD_BALANCER = 3,
	FRONT_HOST_PORT = 4,
};

#define FRONT_TYPE_SHIFT 8 /* where flags have the enum front_type */

struct front {
	__u32 svc_id; /* never 0 */
	__u32 flags;
};

/*
 * svc: one port of a Service, by id; all its frontends share it. A block is a run of slots, packed
 * so that one store publishes it: base in the lower 40 bits, count in the upper 24.
 */
struct svc {
	__u64 blk_all; /* backends in the whole cluster */
	__u64 pad;
	__u64 blk_local;     /* backends of this node */
	__u64 maglev;        /* first element of its table in map maglev; 0: choose at random */
	__u32 affinity_secs; /* how long a client keeps its backend; 0: it does not */
	__u32 set_gen;       /* raised when a backend gets no new flows any more */
	__u32 flags;         /* SVC_* */
	__u32 gen;           /* raised when a backend is removed */
	__u8 pad2[16];
};

enum svc_flag {
	SVC_INTERNAL_LOCAL = 1 << 0, /* internalTrafficPolicy: Local */
	SVC_EXTERNAL_LOCAL = 1 << 1, /* externalTrafficPolicy: Local */
};

#define SVC_BLOCK_SHIFT 40
#define SLOTS_PER_ELEM 16

/* slot: backend ids, 16 to an element because array values are padded to 8 bytes. */
struct slots {
	__u32 backend_id[SLOTS_PER_ELEM];
};

enum backend_state {
	BACKEND_GONE = 0,
	BACKEND_ACTIVE = 1,
	BACKEND_TERMINATING = 2, /* keeps what it has, gets nothing new */
};

/* backend: by id; 0 is never used. */
struct backend {
	__u8 ip[16] ABI_ADDR;
	__be16 port;
	__u8 proto;
	__u8 state; /* enum backend_state */
	__u16 gen;
	__u8 zone;
	__u8 flags;
};

/*
 * maglev: tables of backend ids, two to an element because array values are padded to 8 bytes. The
 * table of a Service has c_maglev_size entries and begins at an element of its own.
 */
struct maglev {
	__u32 backend_id[2];
};

/* aff: which backend a client has, by its address, or by network namespace for a socket. */
struct aff_key {
	__u8 client[16] ABI_ADDR; /* a cookie fills the first 8 bytes */
	__u32 svc_id;
	__u8 is_cookie;
	__u8 pad[3];
};

struct aff {
	__u32 backend_id;
	__u32 set_gen; /* of the Service */
	__u32 seen;    /* unit of struct ct */
	__u16 backend_gen;
	__u16 pad;
};

/*
 * srcrange: sources that may use the fronts with FRONT_SOURCES. plen counts svc_id, then the
 * address as in map cidr.
 */
struct srcrange_key {
	__u32 plen;
	__u32 svc_id;
	__u8 ip[16];
};

/*
 * hostback: bit n of the array says that a backend with an address of this node has port n, or had
 * it: packets which leave the node from there may be replies to a Service. UDP follows TCP.
 */
#define HOSTBACK_WORDS 1024 /* of 64 ports, for each protocol */

/* skrev: the Service address behind what a socket was connected to. */
struct skrev_key {
	__u64 cookie; /* of the socket */
	__u8 ip[16];  /* backend */
	__be16 port;
	__u8 pad[6];
};

struct skrev {
	__u8 ip[16] ABI_ADDR; /* Service */
	__be16 port;
	__u16 pad;
	__u32 svc_id;
	__u32 gen;
	__u32 pad2;
};

/* metrics: packets that were not forwarded, by reason and direction. */
struct metrics_key {
	__u8 reason;
	__u8 dir; /* enum metric_dir */
	__u16 line;
	__u8 file;
	__u8 pad[3];
};

enum metric_dir {
	METRIC_INGRESS = 1,
	METRIC_EGRESS = 2,
	METRIC_SERVICE = 3,
};

struct metrics {
	__u64 packets;
	__u64 bytes;
};

/* cfg: switches that change while programs run; one element. */
struct run_cfg {
	__u32 trace_every;     /* 1: an event for each packet */
	__u32 report_interval; /* between events of a busy flow, unit of struct ct */
	__u32 drop_rate;       /* drop events a second and CPU */
	__u32 trace_rate;      /* trace events a second and CPU, 0: no trace events */
	__u32 vxlan_ifindex;   /* cilium_vxlan */
	__u32 handover; /* 1: another program of ours may stand behind this one at its hook */
};

/* evt_budget: token buckets of the events; one element a CPU. */
struct evt_budget {
	__u32 last; /* unit of struct ct */
	__u32 drops;
	__u32 traces;
	__u32 pad;
	__u64 lost_ring; /* events that found the ring full */
	__u64 lost_rate; /* events that the budget refused */
};

/*
 * gc_batch: candidates for ct_expire. The key's family is that of the call; IPv4 uses the first
 * 16 bytes of key. An entry is deleted when seen and flags are still what the sweep saw.
 */
struct gc_item {
	__u8 key[40] ABI_ADDR;
	__u32 seen;
	__u16 flags;
	__u8 tier; /* 0: ct, 1: ct_new */
	__u8 done; /* out: enum gc_done */
};

enum gc_done {
	GC_PENDING = 0,
	GC_DELETED = 1,
	GC_CHANGED = 2,
	GC_MISSING = 3,
};

/* Argument of ct_expire. */
struct gc_expire {
	__u32 v6;
	__u32 count; /* elements of gc_batch */
	__u32 deleted;
	__u32 pad;
};

/* Argument of ct_purge: delete every entry that has this address, translated or not. */
struct gc_purge {
	__u8 ip[16] ABI_ADDR;
	__u32 deleted;
	__u32 pad;
};

/* test_rec: the last redirect decision, written only by programs loaded for tests. */
struct test_rec {
	__u32 helper; /* enum fwd_how */
	__u32 ifindex;
	__u32 flags;
	__u32 tun_id;
	__u8 tun_ip[16];
	__u8 nexthop[16];
};
