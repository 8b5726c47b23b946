// SPDX-License-Identifier: Apache-2.0

// Package reconcile makes the world equal to what the tables say. A Target is anything that holds
// entries: a BPF map, the routes of the node, the attached programs, a status field. A Loop joins
// a pure Want function with a Target; a Chain runs loops whose entries refer to each other in the
// right order.
//
//	tables --Feed--> dirty keys --Want--> value --diff against belief--> Target.Set / Delete
//	                     ^                                                    |
//	                     +---- retry with back-off <---- error ---------------+
//	                     +---- audit: Load again, compare with the belief, repair
//
// Nothing is deleted before every source of the chain has delivered its first full set, and
// nothing at all when the process ends.
package reconcile
