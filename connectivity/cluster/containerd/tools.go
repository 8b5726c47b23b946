// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package containerd pins the container runtime of the local cluster's nodes. It holds no code:
// the imports keep `go mod tidy` from dropping the modules that the build needs.
package containerd

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
	_ "github.com/containerd/containerd/v2/cmd/ctr"
)
