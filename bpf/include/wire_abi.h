/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What nodes and programs of different versions must agree on while an upgrade is under way:
 * reserved identities, the meaning of the VNI and the layout of skb->mark.
 */
#pragma once

/* Reserved identities. */
enum identity {
	ID_UNKNOWN = 0,
	ID_HOST = 1,
	ID_WORLD = 2,
	ID_UNMANAGED = 3,
	ID_HEALTH = 4,
	ID_INIT = 5,
	ID_REMOTE_NODE = 6,
	ID_KUBE_APISERVER = 7,
	ID_INGRESS = 8,
	ID_WORLD_V4 = 9,
	ID_WORLD_V6 = 10,
};

/* The VNI is the identity of the sender, if it means the same on every node. */
#define VNI_MAX 0xffffff

/* The VNI of a packet from outside that the node behind the tunnel is to answer by itself (DSR). */
#define VNI_DSR 0xfffffe

/* Mark: one nibble says what the packet has been through. */
#define MARK_MASK 0x0f00
#define MARK_DONE 0x0300 /* all decisions are made, let it leave */

/*
 * Handled at this hook. While two ways of attaching are in place at once, the program that runs
 * first says so to the one behind it, which then leaves the packet alone. The hooks (enum hook)
 * have marks of their own, so that one that gets past its hook means nothing at the next.
 */
#define MARK_HANDLED(hook) ((8 + (hook)) << 8)
