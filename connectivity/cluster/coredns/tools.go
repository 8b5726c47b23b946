// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package coredns pins the DNS server of the local cluster. It holds no code: the import keeps
// `go mod tidy` from dropping the module that the build needs.
package coredns

import _ "github.com/coredns/coredns"
