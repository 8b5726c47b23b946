// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package plugins pins the reference network plugins of the local cluster. It holds no code: the
// imports keep `go mod tidy` from dropping the modules that the build needs.
package plugins

import (
	_ "github.com/containernetworking/plugins/plugins/ipam/host-local"
	_ "github.com/containernetworking/plugins/plugins/main/loopback"
	_ "github.com/containernetworking/plugins/plugins/main/ptp"
	_ "github.com/containernetworking/plugins/plugins/meta/portmap"
)
