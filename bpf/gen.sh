#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the BPF objects and their Go bindings, the same bytes on every machine: clang is pinned
# and paths are stripped from the debug information.
set -eu
cd "$(dirname "$0")"

CFLAGS="-O2 -g -mcpu=v3 -Wall -Werror -fno-stack-protector -fno-ident
	-ffile-prefix-map=$PWD=. -fdebug-compilation-dir=. -I/usr/include/$(uname -m)-linux-gnu"

object() { # NAME SOURCE [bpf2go flags]
	name=$1 source=$2
	shift 2
	# shellcheck disable=SC2086 # flags are words
	go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel \
		-go-package bpf "$@" "$name" "src/$source.c" -- $CFLAGS
}

types=$(sed -n 's/^EXPORT([a-z]*, \([a-z0-9_]*\));$/-type \1/p' src/types.c)
# shellcheck disable=SC2086 # flags are words
object types types $types
object Tc tc -no-global-types
object Sock sock -no-global-types
object Gc gc -no-global-types
