// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// node is one node of ginkgo's report, as its JSON has it.
func node(kind, name, state, message string) string {
	return fmt.Sprintf(`{"ContainerHierarchyTexts":["[sig-network] Services"],"LeafNodeType":%q,"LeafNodeText":%q,"State":%q,"RunTime":1500000000,
		"Failure":{"Message":%q,"Location":{"FileName":"service.go","LineNumber":7}}}`, kind, name, state, message)
}

func results(reason string, nodes ...string) []byte {
	return []byte(`[{"SpecialSuiteFailureReasons":[` + reason + `],"SpecReports":[` + strings.Join(nodes, ",") + `]}]`)
}

// TestOutcomes reads a report with every kind of outcome.
func TestOutcomes(t *testing.T) {
	data := results("",
		node("SynchronizedBeforeSuite", "", "passed", ""),
		node("It", "works", "passed", ""),
		node("It", "breaks", "failed", "got 1\nwant 2"),
		node("It", "hangs", "timedout", "too long"),
		node("It", "needs zones", "skipped", "only 1 zone"),
		node("It", "talks SCTP", "skipped", ""),
		strings.ReplaceAll(node("It", "is of others", "skipped", ""), "sig-network", "sig-apps"),
	)
	r, err := parse(data, "")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range r.Tests {
		got = append(got, fmt.Sprintf("%s %s: %s", x.Outcome, strings.TrimPrefix(x.Name, "[sig-network] Services "), x.Why))
	}
	want := []string{
		"failed breaks: got 1\nwant 2 (service.go:7)", "failed hangs: too long (service.go:7)", "skipped needs zones: only 1 zone",
		"skipped talks SCTP: SCTP: this kernel has none", "passed works: ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
	if err := r.Err(); err == nil || err.Error() != "2 of 3 tests failed" {
		t.Errorf("error %v", err)
	}
}

// TestNothingHidden wants an error where a report would pass over something.
func TestNothingHidden(t *testing.T) {
	for _, tc := range []struct {
		name  string
		data  []byte
		focus string
		parse string // part of parse's error
		err   string // part of the report's
	}{
		{"no reason", results("", node("It", "x", "passed", ""), node("It", "is left out", "skipped", "")), "", "nothing says why", ""},
		{"no test", results("", node("It", "x", "passed", "")), "no such", "no test was run", ""},
		{"set-up", results("", node("SynchronizedBeforeSuite", "", "failed", "no nodes"), node("It", "x sctp", "skipped", "")), "", "", "no nodes"},
		{"time", results(`"Suite Timeout Elapsed"`, node("It", "x", "passed", "")), "", "", "Timeout"},
		{"not a report", []byte("{"), "", "ginkgo's report", ""},
		{"not an expression", results(""), "(", "focus", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := parse(tc.data, tc.focus)
			if tc.parse != "" {
				if err == nil || !strings.Contains(err.Error(), tc.parse) {
					t.Errorf("error %v, want %q", err, tc.parse)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Err(); err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
		})
	}
}

// TestReports writes both forms.
func TestReports(t *testing.T) {
	r, err := parse(results("", node("It", "works", "passed", ""), node("It", "breaks <a>", "failed", "got & lost"), node("It", "SCTP", "skipped", "")), "")
	if err != nil {
		t.Fatal(err)
	}
	r.Kubernetes, r.Family, r.Took = "v9", "dual", 90*time.Second
	var md, ju bytes.Buffer
	if err := r.Markdown(&md); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"tests failed", "Run 2, passed 1, failed 1, not run 1", "- [sig-network] Services works (2s)", "got & lost (service.go:7)", "SCTP: this kernel has none (1):"} {
		if !strings.Contains(md.String(), want) {
			t.Errorf("no %q in\n%s", want, md.String())
		}
	}
	if err := r.JUnit(&ju); err != nil {
		t.Fatal(err)
	}
	var back junit
	if err := xml.Unmarshal(ju.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if back.Tests != 3 || back.Failures != 1 || back.Skipped != 1 || back.Cases[1].Failure == nil && back.Cases[0].Failure == nil {
		t.Errorf("%s", ju.String())
	}
}

// TestSkips holds the list to expressions that say what they mean.
func TestSkips(t *testing.T) {
	for _, s := range skips {
		if _, err := regexp.Compile(s.pattern); err != nil || s.reason == "" {
			t.Errorf("%q: %v, reason %q", s.pattern, err, s.reason)
		}
	}
	for _, name := range []string{
		"[sig-network] Services should serve a basic endpoint from pods [Conformance]",
		"[sig-network] Conntrack should be able to preserve UDP traffic when server pod cycles for a NodePort service",
		"[sig-network] Services should have session affinity timeout work for NodePort service [LinuxOnly]",
		"[sig-network] HostPort validates that there is no conflict between pods with same hostPort but different hostIP and protocol [LinuxOnly] [Conformance]",
		"[sig-network] [Feature:IPv6DualStack] should be able to reach pod on ipv4 and ipv6 ip",
	} {
		if why := reasonOf(name); why != "" {
			t.Errorf("%s is left out: %s", name, why)
		}
	}
}
