// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"lash.internal/lash/agent/file"
)

// backupSuffix marks network configurations of others that an exclusive one put aside.
const backupSuffix = ".cilium_bak"

// conf is the network configuration list that the container runtime reads.
type conf struct {
	CNIVersion string       `json:"cniVersion"`
	Name       string       `json:"name"`
	Plugins    []pluginConf `json:"plugins"`
}

type pluginConf struct {
	Type        string `json:"type"`
	EnableDebug bool   `json:"enable-debug"`
	LogFile     string `json:"log-file"`
}

// WriteConf writes the network configuration list to path, in one step and readable by root only.
// It is the last act of a start: from then on the runtime sends pods. It returns the
// configurations of others in the same directory; with exclusive they are put aside by renaming.
func WriteConf(path string, debug, exclusive bool) (foreign []string, err error) {
	body, err := json.MarshalIndent(conf{
		CNIVersion: "1.1.0",
		Name:       "cilium",
		Plugins:    []pluginConf{{Type: "cilium-cni", EnableDebug: debug, LogFile: "/var/run/cilium/cilium-cni.log"}},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode network configuration: %w", err)
	}
	dir := filepath.Dir(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("write network configuration: %w", err)
	}
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if e.Name() == filepath.Base(path) || strings.HasPrefix(e.Name(), ".") || (ext != ".conf" && ext != ".conflist" && ext != ".json") {
			continue
		}
		foreign = append(foreign, e.Name())
		if exclusive {
			if err := os.Rename(filepath.Join(dir, e.Name()), filepath.Join(dir, e.Name()+backupSuffix)); err != nil {
				return foreign, fmt.Errorf("put network configuration %s aside: %w", e.Name(), err)
			}
		}
	}
	if err := file.Write(path, append(body, '\n'), 0o600); err != nil {
		return foreign, fmt.Errorf("write network configuration: %w", err)
	}
	return foreign, nil
}
