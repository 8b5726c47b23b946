// SPDX-License-Identifier: Apache-2.0

package check

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"time"

	"lash.internal/lash/connectivity/probe"
)

// Report is the outcome of a run; it is what -o json prints.
type Report struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	Context    string       `json:"context,omitempty"`
	Namespace  string       `json:"namespace"`
	Started    time.Time    `json:"started"`
	Seconds    float64      `json:"seconds"`
	Code       int          `json:"code"` // exit code
	Summary    string       `json:"summary"`
	Tests      []TestResult `json:"tests"`
	// Diagnosis names the broken paths, the likeliest cause first.
	Diagnosis []string `json:"diagnosis,omitempty"`
}

// TestResult is one test.
type TestResult struct {
	Name      string           `json:"name"`
	OK        bool             `json:"ok"`
	Skipped   bool             `json:"skipped,omitempty"` // every scenario was
	Scenarios []ScenarioResult `json:"scenarios"`
}

// ScenarioResult is one scenario.
type ScenarioResult struct {
	Name    string         `json:"name"`
	OK      bool           `json:"ok"`
	Skipped string         `json:"skipped,omitempty"` // why
	Seconds float64        `json:"seconds"`
	Actions []ActionResult `json:"actions,omitempty"`
}

// ActionResult is one action.
type ActionResult struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Problem says what was not as expected.
	Problem string        `json:"problem,omitempty"`
	Result  *probe.Result `json:"result,omitempty"`
	// Evidence is what was found on the nodes after a failure.
	Evidence []string `json:"evidence,omitempty"`

	action   *Action
	from, to time.Time
	broken   bool // the exec broke, nothing was tried
	facts    facts
}

// Failed lists the actions that failed.
func (t TestResult) Failed() []ActionResult {
	var out []ActionResult
	for _, s := range t.Scenarios {
		for _, a := range s.Actions {
			if !a.OK {
				out = append(out, a)
			}
		}
	}
	return out
}

// counts are the numbers of the result line.
type counts struct{ tests, failed, skipped, scenariosSkipped, actions, actionsFailed int }

func (r *Report) count() counts {
	var c counts
	for _, t := range r.Tests {
		switch {
		case t.Skipped:
			c.skipped++
		case t.OK:
			c.tests++
		default:
			c.tests++
			c.failed++
		}
		for _, s := range t.Scenarios {
			if s.Skipped != "" {
				if !t.Skipped {
					c.scenariosSkipped++
				}
				continue
			}
			c.actions += len(s.Actions)
			for _, a := range s.Actions {
				if !a.OK {
					c.actionsFailed++
				}
			}
		}
	}
	return c
}

// finish sets the code and the result line.
func (r *Report) finish(took time.Duration) {
	r.APIVersion, r.Kind = "lash.internal/v1", "ConnectivityReport"
	r.Seconds = took.Seconds()
	c := r.count()
	r.Code = 0
	r.Summary = fmt.Sprintf("✅ [%s] All %d tests (%d actions) successful, %d tests skipped, %d scenarios skipped.",
		r.Namespace, c.tests, c.actions, c.skipped, c.scenariosSkipped)
	if c.failed > 0 {
		r.Code = 1
		r.Summary = fmt.Sprintf("❌ [%s] %d/%d tests failed (%d/%d actions), %d tests skipped, %d scenarios skipped.",
			r.Namespace, c.failed, c.tests, c.actionsFailed, c.actions, c.skipped, c.scenariosSkipped)
	}
}

// WriteJSON writes the report.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

type junitSuites struct {
	XMLName xml.Name     `xml:"testsuites"`
	Suites  []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name       string          `xml:"name,attr"`
	Tests      int             `xml:"tests,attr"`
	Failures   int             `xml:"failures,attr"`
	Skipped    int             `xml:"skipped,attr"`
	Time       string          `xml:"time,attr"`
	Timestamp  string          `xml:"timestamp,attr"`
	Properties *junitPropertys `xml:"properties,omitempty"`
	Cases      []junitCase     `xml:"testcase"`
}

type junitPropertys struct {
	Property []junitProperty `xml:"property"`
}

type junitProperty struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

type junitCase struct {
	Name      string        `xml:"name,attr"`
	Classname string        `xml:"classname,attr"`
	Time      string        `xml:"time,attr"`
	Failure   *junitMessage `xml:"failure,omitempty"`
	Skipped   *junitMessage `xml:"skipped,omitempty"`
}

type junitMessage struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// WriteJUnit writes the report as JUnit XML: a suite, a case for every scenario.
func (r *Report) WriteJUnit(w io.Writer, properties map[string]string) error {
	suite := junitSuite{
		Name: "connectivity test", Time: seconds(r.Seconds), Timestamp: r.Started.UTC().Format("2006-01-02T15:04:05"),
	}
	for _, k := range sortedKeys(properties) {
		if suite.Properties == nil {
			suite.Properties = &junitPropertys{}
		}
		suite.Properties.Property = append(suite.Properties.Property, junitProperty{k, properties[k]})
	}
	for _, t := range r.Tests {
		for _, s := range t.Scenarios {
			c := junitCase{Name: s.Name, Classname: t.Name, Time: seconds(s.Seconds)}
			suite.Tests++
			switch {
			case s.Skipped != "":
				suite.Skipped++
				c.Skipped = &junitMessage{Message: s.Skipped}
			case !s.OK:
				suite.Failures++
				c.Failure = junitFailure(s)
			}
			suite.Cases = append(suite.Cases, c)
		}
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(junitSuites{Suites: []junitSuite{suite}}); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func junitFailure(s ScenarioResult) *junitMessage {
	m := &junitMessage{}
	n := 0
	for _, a := range s.Actions {
		if a.OK {
			continue
		}
		n++
		m.Text += a.Name + ": " + a.Problem + "\n"
		for _, e := range a.Evidence {
			m.Text += "    " + e + "\n"
		}
	}
	m.Message = fmt.Sprintf("%d of %d actions failed", n, len(s.Actions))
	return m
}

func seconds(s float64) string { return fmt.Sprintf("%.3f", s) }
