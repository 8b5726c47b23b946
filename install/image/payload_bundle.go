// SPDX-License-Identifier: Apache-2.0

//go:build bundle

package image

import (
	"embed"
	"fmt"
)

//go:embed payload/lash-agent payload/lash-cni
var bundled embed.FS

// payload returns the programs that the build put inside this one.
func payload() (agent, cni []byte, err error) {
	if agent, err = bundled.ReadFile("payload/lash-agent"); err != nil {
		return nil, nil, fmt.Errorf("bundled node program: %w", err)
	}
	if cni, err = bundled.ReadFile("payload/lash-cni"); err != nil {
		return nil, nil, fmt.Errorf("bundled CNI plugin: %w", err)
	}
	return agent, cni, nil
}
