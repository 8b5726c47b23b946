// SPDX-License-Identifier: Apache-2.0

// Package e2e drives a whole life of Lash through its CLI and kubectl alone: a fresh cluster,
// install, checks, faults that have to be named, restarts, uninstall, and a machine that is left
// as it was. Its tests need root and a built CLI (make build) and run with LASH_E2E=1.
package e2e
