// SPDX-License-Identifier: Apache-2.0

// Package lbmap keeps Services in the kernel: it is the target that holds what stands behind each
// frontend, in the maps front, svc, slot and backend.
//
//	front{ip,port,proto} --svc_id--> svc --block--> slot[base..base+count) --> backend
//
// The arrays are mapped into memory. A new list of backends is written to slots that nobody reads,
// then published by one 8-byte store; the slots before it are reused only after every program run
// that may still read them is over. Numbers of Services and backends are in conntrack entries, so
// they are restored from the maps and rest for a minute before they are used again.
package lbmap
