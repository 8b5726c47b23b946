// SPDX-License-Identifier: Apache-2.0

// Package lbmap keeps Services in the kernel: it is the target that holds what stands behind the
// frontends of each Service port, and who may use them.
//
//	front{ip,port,proto} --svc_id--> svc --block--> slot[base..base+count) --> backend
//	                     srcrange <--+   +---first--> maglev[first..) -------------^
//
// All frontends of a Service port lead to one element of svc. The arrays are mapped into memory. A new
// list of backends is written to slots that nobody reads, then published by one 8-byte store; the slots
// before it are reused only after every program run that may still read them is over. Entries of a
// Maglev table stand each for itself, so that tables are changed where they are. What a change needs is
// written before it, and removed after it:
//
//	hostback, backend, slot, srcrange | svc, maglev | front, primary first | front, others removed | srcrange
//
// Numbers of Services and backends are in conntrack entries, so they are restored from the maps and
// rest for a minute before they are used again. A run that ended in the middle leaves what the next
// one can complete, or what it finds damaged and writes anew.
package lbmap
