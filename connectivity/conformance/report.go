// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// Outcome is what became of a test.
type Outcome string

// The outcomes of a test.
const (
	Passed  Outcome = "passed"
	Failed  Outcome = "failed"
	Skipped Outcome = "skipped"
)

// Test is one test of the suite.
type Test struct {
	Name    string
	Outcome Outcome
	Why     string // of one that failed or was not run
	Took    time.Duration
}

// Report is what became of a run.
type Report struct {
	Tests      []Test   // by name
	Suite      []string // what went wrong outside the tests
	Kubernetes string   // version
	Lash       string   // version
	Kernel     string
	Family     string
	KubeProxy  string
	Workers    int
	Procs      int
	Command    string // what was typed
	Started    time.Time
	Took       time.Duration
}

// Count counts the tests of an outcome.
func (r *Report) Count(o Outcome) int {
	n := 0
	for _, t := range r.Tests {
		if t.Outcome == o {
			n++
		}
	}
	return n
}

// Err says that tests failed.
func (r *Report) Err() error {
	var errs []error
	if n := r.Count(Failed); n > 0 {
		errs = append(errs, fmt.Errorf("%d of %d tests failed", n, n+r.Count(Passed)))
	}
	for _, s := range r.Suite {
		errs = append(errs, errors.New(s))
	}
	return errors.Join(errs...)
}

// spec is what ginkgo's report says of a test or another node of its tree.
type spec struct {
	ContainerHierarchyTexts  []string
	ContainerHierarchyLabels [][]string
	LeafNodeType             string
	LeafNodeText             string
	State                    string
	RunTime                  time.Duration
	Failure                  struct {
		Message  string
		Location struct {
			FileName   string
			LineNumber int
		}
	}
}

// parse reads ginkgo's report. Tests of others, and those that focus, a regular expression given by the
// user, leaves out, are not in the result.
func parse(data []byte, focus string) (*Report, error) {
	var suites []struct {
		SpecialSuiteFailureReasons []string
		SpecReports                []spec
	}
	if err := json.Unmarshal(data, &suites); err != nil {
		return nil, fmt.Errorf("ginkgo's report: %w", err)
	}
	r := &Report{}
	matches, err := matcher(focus)
	if err != nil {
		return nil, err
	}
	for _, s := range suites {
		for _, why := range s.SpecialSuiteFailureReasons {
			if why != "Detected Programmatic Focus - setting exit status to GINKGO_FOCUS_EXIT_CODE" {
				r.Suite = append(r.Suite, why)
			}
		}
		for _, sp := range s.SpecReports {
			name := strings.Join(append(slices.Clone(sp.ContainerHierarchyTexts), sp.LeafNodeText), " ")
			why := strings.TrimSpace(sp.Failure.Message)
			switch {
			case sp.LeafNodeType == "It" && (!matches(name) || !strings.Contains(name, "[sig-network]")):
			case sp.LeafNodeType != "It":
				if sp.State == "failed" || sp.State == "panicked" || sp.State == "timedout" {
					r.Suite = append(r.Suite, sp.LeafNodeType+": "+why)
				}
			case sp.State == "passed":
				r.Tests = append(r.Tests, Test{name, Passed, "", sp.RunTime})
			case sp.State == "skipped" || sp.State == "pending":
				if why == "" {
					why = reasonOf(name)
				}
				if why == "" {
					return nil, fmt.Errorf("test %q was not run, and nothing says why", name)
				}
				r.Tests = append(r.Tests, Test{name, Skipped, why, 0})
			default:
				r.Tests = append(r.Tests, Test{name, Failed, fmt.Sprintf("%s (%s:%d)", firstLines(why, 4), sp.Failure.Location.FileName, sp.Failure.Location.LineNumber), sp.RunTime})
			}
		}
	}
	if r.Count(Passed)+r.Count(Failed) == 0 && len(r.Suite) == 0 {
		return nil, errors.New("no test was run: does --focus match any?")
	}
	slices.SortFunc(r.Tests, func(a, b Test) int { return strings.Compare(a.Name, b.Name) })
	return r, nil
}

func firstLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[:min(len(lines), n)], "\n")
}

// Markdown writes the report for people.
func (r *Report) Markdown(w io.Writer) error {
	var b strings.Builder
	verdict := "every test that was run passed"
	if r.Err() != nil {
		verdict = "tests failed"
	}
	fmt.Fprintf(&b, "# Kubernetes' [sig-network] tests (%s): %s\n\n", r.Family, verdict)
	fmt.Fprintf(&b, "`%s` wrote this on %s. Run %d, passed %d, failed %d, not run %d (each with its reason below), in %s.\n\n",
		r.Command, r.Started.UTC().Format("2006-01-02 15:04 MST"), r.Count(Passed)+r.Count(Failed), r.Count(Passed), r.Count(Failed), r.Count(Skipped), r.Took.Round(time.Minute))
	fmt.Fprintf(&b, "Kubernetes %s, tests and cluster; %s; kernel %s; a control plane and %d workers, kube-proxy: %s, address family %s; %d tests at a time.\n",
		r.Kubernetes, r.Lash, r.Kernel, r.Workers, r.KubeProxy, r.Family, r.Procs)
	b.WriteString("The images of the tests' pods are our own builds of the suite's programs with Debian's tools, under the names that the suite asks for.\n" +
		"The tests run on a host outside the cluster, where a stand-in for a load balancer gives Services addresses and routes these to nodes.\n")
	if len(r.Suite) > 0 {
		b.WriteString("\n## Outside the tests\n\n")
		for _, s := range r.Suite {
			fmt.Fprintf(&b, "- %s\n", s)
		}
	}
	if r.Count(Failed) > 0 {
		b.WriteString("\n## Failed\n\n")
		for _, t := range r.Tests {
			if t.Outcome == Failed {
				fmt.Fprintf(&b, "- %s (%s)\n\n  ```\n  %s\n  ```\n", t.Name, t.Took.Round(time.Second), strings.ReplaceAll(t.Why, "\n", "\n  "))
			}
		}
	}
	b.WriteString("\n## Passed\n\n")
	for _, t := range r.Tests {
		if t.Outcome == Passed {
			fmt.Fprintf(&b, "- %s (%s)\n", t.Name, t.Took.Round(time.Second))
		}
	}
	b.WriteString("\n## Not run\n")
	why := map[string][]string{}
	for _, t := range r.Tests {
		if t.Outcome == Skipped {
			why[t.Why] = append(why[t.Why], t.Name)
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(why)) {
		fmt.Fprintf(&b, "\n%s (%d):\n\n", reason, len(why[reason]))
		for _, name := range why[reason] {
			fmt.Fprintf(&b, "- %s\n", name)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// junit is the shape that machines read.
type junit struct {
	XMLName  xml.Name    `xml:"testsuite"`
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Time     string      `xml:"time,attr"`
	Started  string      `xml:"timestamp,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name    string        `xml:"name,attr"`
	Class   string        `xml:"classname,attr"`
	Time    string        `xml:"time,attr"`
	Failure *junitMessage `xml:"failure"`
	Skipped *junitMessage `xml:"skipped"`
}

type junitMessage struct {
	Message string `xml:"message,attr"`
}

// JUnit writes the report for machines.
func (r *Report) JUnit(w io.Writer) error {
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()) }
	out := junit{
		Name: "Kubernetes " + r.Kubernetes + " [sig-network], " + r.Family, Tests: len(r.Tests), Failures: r.Count(Failed), Skipped: r.Count(Skipped),
		Time: seconds(r.Took), Started: r.Started.UTC().Format("2006-01-02T15:04:05"),
	}
	for _, t := range r.Tests {
		c := junitCase{Name: t.Name, Class: "sig-network", Time: seconds(t.Took)}
		switch t.Outcome {
		case Failed:
			c.Failure = &junitMessage{t.Why}
		case Skipped:
			c.Skipped = &junitMessage{t.Why}
		case Passed:
		}
		out.Cases = append(out.Cases, c)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", " ")
	if err := enc.Encode(out); err != nil {
		return fmt.Errorf("junit: %w", err)
	}
	_, err := io.WriteString(w, "\n")
	return err
}
