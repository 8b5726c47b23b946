// SPDX-License-Identifier: Apache-2.0

//go:build !bundle

package image

// payload returns nothing: this build holds no programs.
func payload() (agent, cni []byte, err error) { return nil, nil, nil }
