// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/report"
	"lash.internal/lash/perf/stats"
)

// crr is a sample of TCP_CRR around a P50.
func crr(p50 float64, noisy bool) report.Sample {
	r := &netperf.Result{
		Test: netperf.TCPCRR, Seconds: 2, Transactions: int(2e6 / p50), Rate: 1e6 / p50, RTLatency: p50, LocalDemand: p50 / 2, RemoteDemand: p50 / 4,
		Latency: &stats.Summary{Count: int(2e6 / p50), Min: p50 / 2, Mean: p50, P50: p50, P90: 1.5 * p50, P99: 3 * p50, P999: 9 * p50, Max: 20 * p50},
	}
	return report.Sample{Start: time.Unix(1e9, 0).UTC(), Noisy: noisy, Result: r}
}

// ladder is a report of two clusters, one of which gets slower with the number of Services.
func ladder() *report.Report {
	r := &report.Report{Format: report.Format, Kind: report.KindServices, Started: time.Unix(1e9, 0).UTC(), Seconds: 2, Rounds: 6}
	for _, c := range []struct {
		name, cni, proxy string
		slope            float64
	}{{"lash-a", "Lash 0.1.0", "none", 0}, {"lash-b", "ptp", "iptables", 0.01}} {
		r.Clusters = append(r.Clusters, report.Cluster{Name: c.name, Kubernetes: "v1.36.3", Lash: "0.1.0", CNI: c.cni, KubeProxy: c.proxy, Nodes: []report.Node{{Name: "n1", Kernel: "6.18.0"}}})
		for _, n := range []int{1, 100, 1000, 2767} {
			s := &report.Series{
				Key:        report.Key{Cluster: c.name, Scenario: "pod-to-node-port-local", Placement: "other-node", Family: "IPv4", Test: netperf.TCPCRR, Services: n, ServicePorts: 2 * n},
				Programmed: float64(n) / 1000,
			}
			for i := range 6 {
				x := crr(100+c.slope*float64(2*n)+0.1*float64(i), c.slope > 0 && n == 1000 && i > 1)
				x.Round = i
				if n == 2767 && c.slope > 0 && i == 5 {
					x.Result.Errors = map[string]int{"connect: connection refused": 2}
					x.Result.Counters = map[string]int64{"TCPSynRetrans": 3}
				}
				s.Samples = append(s.Samples, x)
			}
			r.Series = append(r.Series, s)
		}
	}
	return r
}

func writeLadder(t *testing.T, r *report.Report) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "r.json")
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestPerfShow holds the forms of a report to golden files.
func TestPerfShow(t *testing.T) {
	file := writeLadder(t, ladder())
	for name, args := range map[string]string{
		"perf-table":    "perf show FILE",
		"perf-markdown": "perf show FILE -o markdown",
		"perf-netperf":  "perf show FILE --cluster lash-a -o netperf --netperf-format keyval --selectors rt_latency,P50_LATENCY,THROUGHPUT_UNITS",
		"perf-compare":  "perf compare FILE FILE --cluster-a lash-a --cluster-b lash-b",
	} {
		code, stdout, stderr := lash(t, unreachable, strings.Fields(strings.ReplaceAll(args, "FILE", file))...)
		if code != ExitOK || stderr != "" {
			t.Errorf("%s: exit %d, %q", args, code, stderr)
		}
		statusGolden(t, name, stdout)
	}
	dir := t.TempDir()
	code, stdout, stderr := lash(t, unreachable, "perf", "show", file, "-o", "csv", "--svg", dir+"/p.svg", "--html", dir+"/p.html", "--csv", dir+"/p.csv")
	if code != ExitOK || stderr != "" || strings.Count(stdout, "\n") != 49 {
		t.Fatalf("exit %d, %q, %d lines", code, stderr, strings.Count(stdout, "\n"))
	}
	svg, err := os.ReadFile(dir + "/p.svg")
	if err != nil {
		t.Fatal(err)
	}
	statusGolden(t, "perf-svg", string(svg))
	page, err := os.ReadFile(dir + "/p.html")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<svg xmlns=", "lash-b pod-to-node-port-local other-node", "TCPSynRetrans: 3", `class="noisy"`} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, outside := range []string{"<script", "src=", "href=", "url(", "@import"} {
		if strings.Contains(string(page), outside) {
			t.Errorf("the page has %q: it must need no network", outside)
		}
	}
	if lines, err := os.ReadFile(dir + "/p.csv"); err != nil || string(lines) != stdout {
		t.Errorf("--csv and -o csv differ: %v", err)
	}
}

// TestPerfFails: what is worse than the limit makes the command fail, what is better does not.
func TestPerfFails(t *testing.T) {
	file := writeLadder(t, ladder())
	code, stdout, stderr := lash(t, unreachable, "perf", "compare", file, file, "--cluster-a", "lash-a", "--cluster-b", "lash-b", "--fail-if-worse", "5%")
	if code != ExitFailed || !strings.Contains(stdout, "worse (fails)") || !strings.Contains(stderr, "worse than --fail-if-worse allows (5%)") {
		t.Errorf("exit %d, %q\n%s", code, stderr, stdout)
	}
	code, stdout, _ = lash(t, unreachable, "perf", "compare", file, file, "--cluster-a", "lash-b", "--cluster-b", "lash-a", "--fail-if-worse", "5", "-o", "json")
	if code != ExitOK || !strings.Contains(stdout, `"verdict": "better"`) || !strings.Contains(stdout, `"verdict": "too noisy"`) {
		t.Errorf("exit %d\n%s", code, stdout)
	}
}

// TestPerfMistakes needs no cluster.
func TestPerfMistakes(t *testing.T) {
	file := writeLadder(t, ladder())
	for args, want := range map[string]string{
		"perf run --tests TCP_CC":                            `unknown test "TCP_CC": use one of TCP_RR, TCP_CRR`,
		"perf run --paths wire":                              `unknown path "wire": use some of pod-ip`,
		"perf run --samples 0":                               "invalid --samples 0",
		"perf run --duration 1500ms":                         "want whole seconds",
		"perf run --streams 17":                              "invalid --streams 17: want 1 to 16",
		"perf run --msg-size 70000":                          "want 1 to 65507",
		"perf run --rate -1":                                 "invalid --rate",
		"perf run -4 -6":                                     "exclude each other",
		"perf run --same-node=false --other-node=false":      "nothing is left to measure",
		"perf run -o xml":                                    "want table, json, csv, markdown or netperf",
		"perf run -o netperf --selectors rt":                 `unknown output selector "rt"`,
		"perf services --steps 100,1":                        "name the numbers in growing order",
		"perf services --tests TCP_STREAM":                   "takes tests of transactions",
		"perf services --from moon":                          `--from "moon": use some of`,
		"perf compare " + file + " " + file:                  "more than one cluster (lash-a, lash-b): choose one",
		"perf compare " + file + " /none":                    "no such file",
		"perf compare a b --fail-if-worse much":              "want a percentage",
		"perf show " + file + " --cluster c":                 `no cluster "c", it has lash-a, lash-b`,
		"connectivity perf --net-qos":                        "there is no bandwidth manager yet",
		"connectivity perf --unsafe-capture-kernel-profiles": "use perf(1) on the nodes",
		"perf client 127.0.0.1 -t RR":                        "unknown test",
	} {
		code, stdout, stderr := lash(t, unreachable, strings.Fields(args)...)
		if code == ExitOK || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("lash %s: exit %d, %q lacks %q", args, code, stderr, want)
		}
	}
	if code, _, stderr := lash(t, unreachable, "perf", "run"); code != ExitUnreachable {
		t.Errorf("lash perf run without a cluster: exit %d, %q", code, stderr)
	}
}
