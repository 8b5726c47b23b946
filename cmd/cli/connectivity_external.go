// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"lash.internal/lash/cmd/kube"
	"lash.internal/lash/connectivity/check"
)

// externalServer returns what starts an echo server outside the cluster, nil where there is no such
// place.
func externalServer(*kube.Client) func(ctx context.Context, httpPort, tcpPort, udpPort uint16) (*check.External, error) {
	return nil
}
