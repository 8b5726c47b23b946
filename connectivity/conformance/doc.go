// SPDX-License-Identifier: Apache-2.0

// Package conformance runs Kubernetes' own end-to-end tests of [sig-network] against a local cluster
// that has Lash and no kube-proxy, and writes a report of every test: passed, failed, or not run and why.
//
// The tests come from the module of Kubernetes, of the version that the cluster runs, and are built in
// the nested module suite. Their images are assembled here, under the names that the tests ask for, from
// programs of the same module and of Debian: no registry is asked.
package conformance
