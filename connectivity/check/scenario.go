// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"lash.internal/lash/connectivity/probe"
)

// Scenario is one kind of path. It belongs to a test, the unit that is counted and reported.
type Scenario struct {
	Test string
	Name string
	// Skip returns why the scenario cannot run here, or "".
	Skip func(*Env) string
	// Prepare, when set, is called before Actions.
	Prepare func(context.Context, *Env) error
	// Actions lists what to try. A scenario has Actions or Do.
	Actions func(*Env) []Action
	// Do is for what is not a probe: it returns finished results.
	Do func(context.Context, *Env) []ActionResult
	// Last scenarios run when all others are done.
	Last bool
}

// Scenarios is the test suite in the order of the report.
func Scenarios() []Scenario {
	return []Scenario{
		agentHealth(), nodeToNode(), nodeToNodeMTU(),
		podToPod(), clientToClient(), podToService(), podToHost(), hostToPod(), externalToPod(), podToWorld(), podToCIDR(),
		podToPodPayload(), podToPodNoFrag(), podToItselfViaService(), hostToService(), serviceWithoutEndpoints(),
		outsideWithoutEndpoints(),
		toHostPort(testPolicies, "pod-to-hostport", PathNodePort, nil, clients),
		toHostPort(testHosts, "host-to-hostport", PathHostNodePort, nil, hosts),
		toHostPort(testNorthSouth, "outside-to-hostport", PathFromOutside, needsOutside, outside),
		podToNodePort("pod-to-local-nodeport", true, nil), podToNodePort("pod-to-remote-nodeport", false, needsTwoHosts),
		hostToNodePort(), hostToLoopbackNodePort(), keptNodePorts(), outsideToNodePort(),
		localPolicyOutside(), localPolicyInside(), healthChecks(),
		toAddresses(testExtra, "pod-to-loadbalancer", PathService, nil, clients),
		toAddresses(testHosts, "host-to-loadbalancer", PathHostService, nil, hosts),
		outsideToAddresses(), sourceRanges(), sourceRangesInside(),
		toHostBackends(), internalLocal(), notReady(), affinity(), termination(),
		dnsLookup(), podToAPIServer(), unexpectedDrops(),
	}
}

// PathKind is the kind of way that a packet takes; the diagnosis compares them.
type PathKind string

// The kinds.
const (
	PathNodeToNode   PathKind = "node to node"
	PathSameNode     PathKind = "pod to pod on the same node"
	PathOtherNode    PathKind = "pod to pod on another node"
	PathPodToHost    PathKind = "pod to its own node"
	PathPodToRemote  PathKind = "pod to another node"
	PathHostToPod    PathKind = "node to its own pod"
	PathRemoteToPod  PathKind = "node to a pod on another node"
	PathExternal     PathKind = "pod to outside the cluster"
	PathFromOutside  PathKind = "outside the cluster to a pod or Service"
	PathService      PathKind = "pod to a Service"
	PathHostService  PathKind = "node to a Service"
	PathNodePort     PathKind = "pod to a port of a node"
	PathHostNodePort PathKind = "node to a port of a node"
	PathLoopback     PathKind = "pod to itself through a Service"
	PathRejected     PathKind = "Service without endpoints"
	PathDNS          PathKind = "pod to the cluster's DNS"
	PathAPIServer    PathKind = "pod to the API server"
	PathNone         PathKind = ""
)

// Action is one probe and what is expected of it.
type Action struct {
	From, To Peer
	Path     PathKind
	Family   int // 4 or 6
	Probe    probe.Probe
	// Title says what is tried where protocol and size of the probe do not.
	Title  string
	Expect Expect
}

// Expect is what has to come of a probe. The zero value asks for success.
type Expect struct {
	// Kind, when set, is the error that is wanted: at once, unless it is KindTimeout.
	Kind probe.Kind
	// OrKind, when set, is as good as Kind.
	OrKind probe.Kind
	// Hosts are the names of the servers that may answer; empty: any.
	Hosts []string
	// Seen are the source addresses that the server may see; empty: any.
	Seen []netip.Addr
	// Status is the code of an HTTP answer, Text says what is wrong with its text, or "".
	Status int
	Text   func(string) string
	// Answers is the whole answer of the name server.
	Answers []string
}

// Name is the line that stands for the action.
func (a Action) Name() string {
	what := a.Title
	if what == "" {
		what = string(a.Probe.Proto)
		if a.Probe.FromMTU {
			what += fmt.Sprintf(" MTU%+d bytes", a.Probe.Size)
		} else if a.Probe.Size > 0 {
			what += fmt.Sprintf(" %d bytes", a.Probe.Size)
		}
	}
	return fmt.Sprintf("%s -> %s: IPv%d %s", a.From, a.To.At(a.Family), a.Family, what)
}

// judge returns what is wrong with a result, or "".
func (e Expect) judge(r probe.Result) string {
	if e.Kind != "" {
		switch {
		case r.OK:
			return fmt.Sprintf("got an answer, expected %q", e.Kind)
		case r.Kind != e.Kind && (e.OrKind == "" || r.Kind != e.OrKind):
			return fmt.Sprintf("got %q (%s), expected %q", r.Kind, r.Error, e.Kind)
		}
		return ""
	}
	if !r.OK {
		return r.Error
	}
	if len(e.Hosts) > 0 && r.Host != "" && !slices.Contains(e.Hosts, r.Host) {
		return fmt.Sprintf("answered by %q, which is none of %s", r.Host, strings.Join(e.Hosts, ", "))
	}
	if len(e.Seen) > 0 && r.Seen != "" {
		ap, err := netip.ParseAddrPort(r.Seen)
		if err != nil || !slices.Contains(e.Seen, ap.Addr()) {
			return fmt.Sprintf("the server saw the source %s, expected %s", r.Seen, joinAddrs(e.Seen))
		}
	}
	if e.Status != 0 && e.Status != r.Status {
		return fmt.Sprintf("answered with HTTP %d, expected %d", r.Status, e.Status)
	}
	if e.Text != nil {
		if problem := e.Text(r.Text); problem != "" {
			return problem
		}
	}
	if e.Answers != nil && !slices.Equal(e.Answers, r.Answers) {
		return fmt.Sprintf("the name server said %v, expected %v", r.Answers, e.Answers)
	}
	return ""
}

func joinAddrs(a []netip.Addr) string {
	out := make([]string, len(a))
	for i := range a {
		out[i] = a[i].String()
	}
	return strings.Join(out, " or ")
}

// Filter selects scenarios as the flag --test describes them.
type Filter struct {
	want, skip []pattern
}

type pattern struct {
	text           string
	test, scenario *regexp.Regexp // nil: any
}

func (p pattern) match(s Scenario) bool {
	return (p.test == nil || p.test.MatchString(s.Test)) && (p.scenario == nil || p.scenario.MatchString(s.Name))
}

// ParseFilter reads patterns of the form [!]TEST[/SCENARIO], regular expressions that match part
// of a name; a leading ! leaves out what matches. A pattern that matches nothing in all is an
// error that lists what there is.
func ParseFilter(patterns []string, all []Scenario) (Filter, error) {
	var f Filter
	for _, text := range patterns {
		p := pattern{text: text}
		body, skip := strings.CutPrefix(strings.TrimSpace(text), "!")
		test, scenario, _ := strings.Cut(body, "/")
		var err error
		if p.test, err = compile(test); err != nil {
			return f, fmt.Errorf("--test %q: %w", text, err)
		}
		if p.scenario, err = compile(scenario); err != nil {
			return f, fmt.Errorf("--test %q: %w", text, err)
		}
		// Without a slash the pattern may mean a scenario as well: names of both kinds are known.
		alt := p
		if scenario == "" && test != "" {
			alt = pattern{text: text, scenario: p.test}
		}
		hit := slices.ContainsFunc(all, p.match)
		if !hit && slices.ContainsFunc(all, alt.match) {
			p, hit = alt, true
		}
		if !hit {
			return f, fmt.Errorf("no test or scenario matches %q; there are:\n%s", text, listing(all))
		}
		if skip {
			f.skip = append(f.skip, p)
		} else {
			f.want = append(f.want, p)
		}
	}
	return f, nil
}

func compile(s string) (*regexp.Regexp, error) {
	if s == "" {
		return nil, nil //nolint:nilnil // no expression matches everything
	}
	return regexp.Compile(s)
}

// Match says whether a scenario is selected.
func (f Filter) Match(s Scenario) bool {
	for _, p := range f.skip {
		if p.match(s) {
			return false
		}
	}
	if len(f.want) == 0 {
		return true
	}
	for _, p := range f.want {
		if p.match(s) {
			return true
		}
	}
	return false
}

func listing(all []Scenario) string {
	var b strings.Builder
	for _, t := range testNames(all) {
		var names []string
		for _, s := range all {
			if s.Test == t {
				names = append(names, s.Name)
			}
		}
		fmt.Fprintf(&b, "  %s/%s\n", t, strings.Join(names, ", "))
	}
	return strings.TrimRight(b.String(), "\n")
}

// testNames lists the tests in the order of the scenarios.
func testNames(all []Scenario) []string {
	var out []string
	for _, s := range all {
		if !slices.Contains(out, s.Test) {
			out = append(out, s.Test)
		}
	}
	return out
}
