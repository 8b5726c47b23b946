// SPDX-License-Identifier: Apache-2.0

// Lash-cni is the CNI plugin. The agent decides and makes the interface; the plugin, which runs on
// the node with full rights, moves it into the pod and sets it up there. It is started for every
// pod, so it imports little: no HTTP, no JSON schema, no logging library.
package main

import (
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

func main() {
	p := newPlugin(os.Getenv("LASH_CNI_SOCKET"))
	err := skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add: p.add, Del: p.del, Check: p.check, GC: p.gc, Status: p.status,
	}, version.All, "CNI plugin lash-cni")
	if err != nil {
		p.logError(err)
		p.printError(os.Stdout, err)
		os.Exit(1)
	}
}
