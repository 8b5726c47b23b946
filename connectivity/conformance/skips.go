// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"regexp"
)

// sigNetwork is what the tests have in their names; the packages that they import bring others with them.
const sigNetwork = `\[sig-network\]`

// skip is a kind of test that is not run. A test that fails stays: what is here cannot be run, or is not
// about what Lash does.
type skip struct {
	pattern string // regular expression on the name of a test
	reason  string
}

// skips are looked through in order; the first that matches gives the reason.
var skips = []skip{
	{`\[Disruptive\]`, "restarts the API server, kube-proxy or a node's network over SSH"},
	{`SCTP|sctp`, "SCTP: this kernel has none"},
	{`\[Feature:NetworkPolicy\]`, "NetworkPolicy is not enforced yet"},
	{`\[Provider:GCE\]`, "needs a cloud provider (GCE)"},
	{`\[Feature:Networking-(IPv4|IPv6|DNS)\]`, "needs the internet"},
	{`should forward PTR records lookup to upstream nameserver`, "needs the internet: asks for the name of 8.8.8.8 first"},
	{`\[Feature:PerformanceDNS\]`, "a measurement of the cluster's DNS server with 10,000 Services"},
	{`\[Feature:Networking-Performance\]`, "a measurement with iperf 2.2, which Debian 12 does not have; make bench measures"},
	{`\[sig-network\] KubeProxy `, "is about kube-proxy itself, which this cluster has none of"},
	{`should check kube-proxy urls`, "is about kube-proxy itself, which this cluster has none of"},
}

// reasonOf is why a test is not run, empty if it is.
func reasonOf(name string) string {
	for _, s := range skips {
		if regexp.MustCompile(s.pattern).MatchString(name) {
			return s.reason
		}
	}
	return ""
}

// matcher tells whether a test is one that the user asked for; an empty expression asks for all.
func matcher(focus string) (func(name string) bool, error) {
	re, err := regexp.Compile(focus)
	if err != nil {
		return nil, fmt.Errorf("focus: %w", err)
	}
	return re.MatchString, nil
}
