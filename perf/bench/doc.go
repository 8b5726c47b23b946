// SPDX-License-Identifier: Apache-2.0

// Package bench measures Lash in real local clusters, beside the bare paths of package lab on the same
// machine at the same time, and writes down what it saw.
//
//	cluster, installed --> pods ---+
//	                               +--> rounds: A B, B A, ... --> records (JSON lines) --> BENCHMARKS.md
//	lab --> bare namespaces -------+
//
// Every record is kept, disturbed ones too; the report is made from records alone, so it can be made
// again from the file.
package bench
