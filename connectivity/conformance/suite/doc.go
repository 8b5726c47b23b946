// SPDX-License-Identifier: Apache-2.0

// Package suite is Kubernetes' own end-to-end tests of [sig-network], as one test binary, and pins
// what runs them: ginkgo, and agnhost, the program of the pods.
package suite
