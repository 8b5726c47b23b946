// SPDX-License-Identifier: Apache-2.0

// Package ctgc removes idle flows from the conntrack tables.
//
// A sweep reads copies of the entries and decides from them; a program then deletes only those
// that have not moved since. A translated flow has two entries, each hit by one direction: what
// counts is what both have seen. The sweep never asks whether a Service or backend still exists.
package ctgc
