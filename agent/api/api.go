// SPDX-License-Identifier: Apache-2.0

// Package api holds the types that cross a process boundary: what the agent answers on its unix
// socket, what the in-pod commands and the CLI read, and what the CNI plugin sends. JSON names
// follow Cilium's agent API, so that scripts written for it go on working. The package imports
// nothing of ours.
package api

// Version is the version of this program; the build may set it with -ldflags.
var Version = "0.1.0"

// CiliumVersion is the compatibility level that is reported where a client asks for Cilium's version.
var CiliumVersion = "1.16.5"

// Revision is the commit that the program was built from; empty when unknown.
var Revision = ""

// SocketPath is where the agent listens unless told otherwise.
const SocketPath = "/var/run/cilium/cilium.sock"

// SocketEnv is the environment variable that names another socket.
const SocketEnv = "CILIUM_SOCK"

// Error is the body of every answer of the agent with a status of 400 or more.
type Error struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// Metric is one sample of the agent's metrics.
type Metric struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels"`
	Value  float64           `json:"value"`
}

// VersionInfo describes one program.
type VersionInfo struct {
	Version          string `json:"Version"`
	Lash             string `json:"Lash"`
	Revision         string `json:"Revision"`
	GoRuntimeVersion string `json:"GoRuntimeVersion"`
	Arch             string `json:"Arch"`
	AuthorDate       string `json:"AuthorDate"`
}

// Config is what the agent runs with.
type Config struct {
	// Options maps each option to its effective value.
	Options map[string]string `json:"options"`
	// Daemon describes the running agent program.
	Daemon VersionInfo `json:"daemon"`
	// NodeName is the Kubernetes node that the agent serves.
	NodeName string `json:"node-name"`
}
