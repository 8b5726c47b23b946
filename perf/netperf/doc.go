// SPDX-License-Identifier: Apache-2.0

// Package netperf speaks netperf's control protocol, as client and as server, so that its figures
// can be set beside those of the original and that either end may be the original (2.6.0 or later).
//
//	client                              server
//	   |--- control connection, request --->|  which test, sizes, seconds
//	   |<-- response: data port ------------|
//	   |=== the test, on the data port =====|
//	   |<-- results: what the server saw ---|
//
// The tests are TCP_RR (transactions on one connection), TCP_CRR (a connection for each), UDP_RR,
// TCP_STREAM and TCP_MAERTS (one-way transfer from and to the client), over IPv4 and IPv6. All of
// them are netperf's "omni" test and differ in fields of the request only.
//
// A transaction makes the same system calls in the same order as netperf's: blocking ones on a
// thread of its own, without the runtime's network poller or its knowledge, and without an allocation.
// While a test runs the garbage of the whole process is not collected, and what stops all of its
// goroutines waits for the test. Every latency is kept, so percentiles are exact where netperf's come
// from a histogram.
//
// The protocol has no written specification; messages and sequence follow what netperf 2.7.1 sends
// and takes.
package netperf
