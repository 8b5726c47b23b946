// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestRemovedPluginLeavesNoLog is a call that waited for the agent while Lash was being uninstalled.
func TestRemovedPluginLeavesNoLog(t *testing.T) {
	p := newPlugin("")
	p.logFile = filepath.Join(t.TempDir(), "cilium-cni.log")
	p.gone = func() bool { return true }
	p.log("error: the agent does not answer")
	if _, err := os.Stat(p.logFile); err == nil {
		t.Error("a log was written")
	}
	p.gone = removed
	p.log("error: the agent does not answer")
	if _, err := os.Stat(p.logFile); err != nil {
		t.Errorf("no log of a plugin that is installed: %v", err)
	}
}
