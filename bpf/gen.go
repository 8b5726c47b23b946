// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the dataplane: the C programs in src and lib, the objects built from them and
// the Go types of everything that programs and agent share. types.go gives the shared types their
// Go names, config.go sets the programs' constants. The objects are committed, so that building
// the agent needs no C compiler.
package bpf

//go:generate sh gen.sh
