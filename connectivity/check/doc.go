// SPDX-License-Identifier: Apache-2.0

// Package check is the connectivity test: it deploys clients and servers into a cluster, tries
// every path that a pod network has to offer, and says which one is broken and why it thinks so.
//
//	Env        what was found and deployed: nodes, pods, Services, families, options
//	Scenario   one file each: a function from the Env to Actions; adding a file adds a scenario
//	Action     one probe from a peer to a peer and what is expected of it
//	session    one exec into a source pod, over which all its probes go
//	watcher    the drops that the agents report meanwhile
//	evidence   route, map entries and drops behind a failed action; diagnose makes a sentence of it
//
// No action is tried twice. What has to be waited for (pods, Services) is waited for before.
package check

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
)

// Streams are the streams of a command in a container; nil ones are not connected.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Exec runs a command in a container until it ends or ctx does.
type Exec func(ctx context.Context, namespace, pod, container string, s Streams, command ...string) error

// Progress hears what goes on. It is called from one goroutine at a time.
type Progress interface {
	// Step starts a piece of preparation; the returned function ends it.
	Step(format string, args ...any) func(error)
	// Info is a line for the reader.
	Info(format string, args ...any)
	// Debug is one for --debug and -v.
	Debug(format string, args ...any)
	// TestDone hears of every test as it ends.
	TestDone(t TestResult, number, of int)
}

// Options say what to test and with what. The zero value of a field means its default.
type Options struct {
	Client kubernetes.Interface
	Exec   Exec
	// Context names the cluster in the report.
	Context string
	// Namespace is where the network is installed, TestNamespace the one that is created.
	Namespace, TestNamespace string
	// AgentDaemonSet and AgentSelector find the agents.
	AgentDaemonSet, AgentSelector string
	// NodeSelector limits the nodes that take part.
	NodeSelector string
	// Tests selects tests and scenarios, see ParseFilter.
	Tests []string
	// Families are the IP versions to test, 4 and 6; those that the cluster lacks are skipped.
	Families []int
	// SingleNode leaves out what needs two nodes.
	SingleNode bool
	// RequestTimeout bounds one exchange of a probe.
	RequestTimeout time.Duration
	// Concurrency is the number of actions at a time.
	Concurrency int
	// Keep leaves the test namespace behind.
	Keep bool
	// Image replaces the agent's own image in the test pods.
	Image string
	// External starts an echo server outside the cluster; nil when there is no such place.
	External func(ctx context.Context, httpPort, tcpPort, udpPort uint16) (*External, error)
	// ExternalTarget is a host name or address to fetch over HTTP, ExternalIPs are addresses to ping.
	ExternalTarget string
	ExternalIPs    []string
	// ServicePrefixes, one a family, hold the externalIPs and load balancers' addresses of the test's
	// Services; none: DefaultServicePrefixes.
	ServicePrefixes []netip.Prefix
	// ClusterDomain is the DNS zone of the cluster.
	ClusterDomain string
	// NamespaceLabels and NamespaceAnnotations are added to the test namespace.
	NamespaceLabels, NamespaceAnnotations map[string]string
	// Pause, when set, is called after each failed test and returns when the run shall go on.
	Pause func(ctx context.Context, t TestResult)
	// Progress may be nil.
	Progress Progress
}

// External is a host outside the cluster that runs an echo server.
type External struct {
	Addresses []string
	// Exec runs the probe command there, see probe.ProbeCommand; nil when nothing can be sent from there.
	Exec func(ctx context.Context, s Streams, args ...string) error
	// Route sends packets to an address by way of a node, until Stop.
	Route func(ctx context.Context, to, via netip.Addr) error
	// Stop ends the server.
	Stop func()
}

// ErrFailed says that at least one test failed; the report says which.
var ErrFailed = errors.New("connectivity test failed")

// Defaults.
const (
	DefaultTestNamespace  = "cilium-test"
	DefaultAgentDaemonSet = "cilium"
	DefaultAgentSelector  = "k8s-app=cilium"
	DefaultRequestTimeout = 5 * time.Second
	DefaultConcurrency    = 24
	DefaultClusterDomain  = "cluster.local"
)

func (o *Options) fill() {
	set := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	set(&o.Namespace, "kube-system")
	set(&o.TestNamespace, DefaultTestNamespace+"-1")
	set(&o.AgentDaemonSet, DefaultAgentDaemonSet)
	set(&o.AgentSelector, DefaultAgentSelector)
	set(&o.ClusterDomain, DefaultClusterDomain)
	if o.RequestTimeout <= 0 {
		o.RequestTimeout = DefaultRequestTimeout
	}
	if o.Concurrency <= 0 {
		o.Concurrency = DefaultConcurrency
	}
	if len(o.ServicePrefixes) == 0 {
		o.ServicePrefixes, _ = ParseServicePrefixes(strings.Split(DefaultServicePrefixes, ","))
	}
	if len(o.Families) == 0 {
		o.Families = []int{4, 6}
	}
	if o.Progress == nil {
		o.Progress = silent{}
	}
}

type silent struct{}

func (silent) Step(string, ...any) func(error) { return func(error) {} }
func (silent) Info(string, ...any)             {}
func (silent) Debug(string, ...any)            {}
func (silent) TestDone(TestResult, int, int)   {}
