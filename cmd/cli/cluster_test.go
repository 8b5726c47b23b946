// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"strings"
	"testing"
)

// TestClusterCommandLine checks what is refused before anything is touched.
func TestClusterCommandLine(t *testing.T) {
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"cluster create Not_A_Name", ExitUsage, "lower-case letters"},
		{"cluster create --kube-proxy ipvs", ExitUsage, "none, iptables, nftables"},
		{"cluster create --cni flannel", ExitUsage, "none, ptp"},
		{"cluster create --ip-family dual --pod-cidr 10.1.0.0/16", ExitUsage, "exactly one CIDR"},
		{"cluster create --pod-cidr 10.96.0.0/14", ExitUsage, "overlap"},
		{"cluster create --workers many", ExitUsage, "workers"},
		{"cluster list -o xml", ExitUsage, "table or json"},
		{"cluster exec worker --", ExitUsage, "no command"},
		{"cluster kubeconfig no-such-cluster", ExitFailed, "no such cluster: no-such-cluster"},
		{"cluster load-image --name no-such-cluster x.tar", ExitFailed, "no such cluster: no-such-cluster"},
		{"cluster exec --name no-such-cluster worker -- true", ExitFailed, "no such cluster: no-such-cluster"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			var out, errOut bytes.Buffer
			code := Main(World{
				In: strings.NewReader(""), Out: &out, Err: &errOut, Args: strings.Fields(tc.args),
				Getenv: func(string) string { return "" },
			})
			if code != tc.code || !strings.Contains(errOut.String(), tc.want) || out.Len() > 0 {
				t.Errorf("code %d, stdout %q, stderr %q; want %d and %q", code, out.String(), errOut.String(), tc.code, tc.want)
			}
		})
	}
}
