// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"lash.internal/lash/perf/netperf"
	"lash.internal/lash/perf/stats"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestRounds has three paths, on a machine that is loud while the second one is measured in the first
// two rounds.
func TestRounds(t *testing.T) {
	var log []string
	measured := map[string]int{}
	pressure := 0.0
	fake := func(name string, loud int) path {
		return path{name, func(_ context.Context, test netperf.Test) (netperf.Result, error) {
			log = append(log, name)
			measured[name]++
			pressure = 0
			if measured[name] <= loud {
				pressure = MaxPressure + 0.01
			}
			return netperf.Result{Test: test, Rate: 1, Latency: &stats.Summary{}}, nil
		}}
	}
	var samples []Sample
	var said []string
	f := &field{
		want: 2, attempts: 4,
		pressure: func(context.Context) (float64, error) { return pressure, nil },
		record:   func(s Sample) error { samples = append(samples, s); return nil },
		say:      func(f string, args ...any) { said = append(said, fmt.Sprintf(f, args...)) },
	}
	c := &course{group: "g", test: netperf.TCPRR, paths: []path{fake("a", 0), fake("b", 2), fake("c", 0)}}
	if err := f.run(t.Context(), []*course{c}); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(log, ""), "abc"+"cba"+"abc"+"cba"; got != want {
		t.Errorf("measured in the order %s, want %s", got, want)
	}
	var bad string
	for _, s := range samples {
		if s.Disturbed {
			bad += fmt.Sprint(s.Round, s.Path)
		}
	}
	// The pressure after b is also that before the next path.
	if len(samples) != 12 || bad != "0b0c1b1a" || samples[11].Round != 3 {
		t.Errorf("disturbed %s of %+v", bad, samples)
	}
	if !strings.HasSuffix(said[0], "(disturbed)") || strings.HasSuffix(said[3], "(disturbed)") {
		t.Errorf("said %q", said)
	}

	// A machine that never gets quiet ends the rounds too.
	log, measured, f.want, f.attempts = nil, map[string]int{}, 3, 5
	c = &course{group: "g", test: netperf.TCPRR, paths: []path{fake("a", 100)}}
	if err := f.run(t.Context(), []*course{c}); err != nil {
		t.Fatal(err)
	}
	if len(log) != 5 {
		t.Errorf("%d rounds on a machine that is never quiet, want 5", len(log))
	}

	broken := errors.New("no route")
	c = &course{group: "g", test: netperf.TCPRR, paths: []path{{"a", func(context.Context, netperf.Test) (netperf.Result, error) { return netperf.Result{}, broken }}}}
	f.attempts = 100
	if err := f.run(t.Context(), []*course{c}); !errors.Is(err, broken) || !strings.Contains(err.Error(), "g, path a") {
		t.Errorf("error %v", err)
	}

	// One failure costs one round.
	n := 0
	once := path{"once", func(context.Context, netperf.Test) (netperf.Result, error) {
		if n++; n == 2 {
			return netperf.Result{}, broken
		}
		return netperf.Result{}, nil
	}}
	samples, pressure, f.failed = nil, 0, 0
	c = &course{group: "g", test: netperf.TCPRR, paths: []path{once}}
	if err := f.run(t.Context(), []*course{c}); err != nil || len(samples) != 4 || samples[1].Error != "no route" || !samples[1].Disturbed {
		t.Errorf("%v; samples %+v", err, samples)
	}
}

// TestAwait begins a round when the machine gets quiet, and without that when patience is over.
func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		said, looks := 0, 0
		f := &field{
			patience: time.Minute,
			pressure: func(context.Context) (float64, error) {
				looks++
				time.Sleep(pause)
				if looks > 10 {
					return 0.01, nil
				}
				return 0.5, nil
			},
			say: func(string, ...any) { said++ },
		}
		if p, err := f.await(t.Context()); err != nil || p != 0.01 || looks != 11 || said != 1 {
			t.Errorf("pressure %v after %d looks, said %d times: %v", p, looks, said, err)
		}
		looks, f.patience = -1e6, 3*pause
		start := time.Now()
		if p, err := f.await(t.Context()); err != nil || p != 0.5 || time.Since(start) > 5*pause {
			t.Errorf("pressure %v after %s: %v", p, time.Since(start), err)
		}
	})
}

// example is a small run whose numbers are easy to follow.
func example() []Record {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	out := []Record{{Time: at, Machine: &Machine{
		Kernel: "6.18.0", Processor: "Example", Processors: 2, MemoryMB: 1000, Clock: "tsc", Load: 0.1, Rounds: 10, Seconds: 2,
		ServerCPU: 1, Congestion: "reno", Command: "make bench", Versions: map[string]string{"go": "go1.26"},
	}}}
	sample := func(path string, test netperf.Test, round int, perSecond float64, disturbed bool) {
		r := netperf.Result{Test: test, Rate: perSecond, RTLatency: 1e6 / perSecond, Latency: &stats.Summary{P50: 9e5 / perSecond, P99: 3e6 / perSecond}}
		if test == netperf.TCPStream {
			r = netperf.Result{Test: test, Throughput: perSecond, Counters: map[string]int64{"RetransSegs": 2}}
		}
		out = append(out, Record{Time: at, Sample: &Sample{Group: "same-node", Path: path, Test: test, Round: round, Disturbed: disturbed, Result: r}})
	}
	for _, test := range []netperf.Test{netperf.TCPStream, netperf.TCPRR} {
		for round := range 11 {
			bad := round == 3 && test == netperf.TCPRR
			sample("veth", test, round, 20000, bad)
			sample("routed", test, round, 19000-float64(round), false)
			sample(LashPath, test, round, 19600+10*float64(round), false)
			sample("nat", test, round, 17000, false)
		}
	}
	sample(LashPath, netperf.TCPRR, 11, 1, false) // cut short
	out = append(out, Record{Time: at, Sample: &Sample{Group: "same-node", Path: "nat", Test: netperf.TCPRR, Round: 12, Disturbed: true, Error: "no route"}})
	for round := range 10 {
		for i, p := range pairs {
			for _, test := range []netperf.Test{netperf.TCPRR, netperf.TCPStream} {
				sample(p.name, test, round, 20000-100*float64(i), false)
				s := out[len(out)-1].Sample
				s.Group, s.Result.ProcessDemand = "tool-veth", 12-float64(i)
			}
		}
	}
	for round := range 10 {
		for plugin, ms := range map[string]int64{lashPlugin: 9, ptpPlugin: 20} {
			for _, atOnce := range []bool{false, true} {
				ns := (ms*100 + int64(round)) * 10000
				out = append(out, Record{Time: at, CNI: &CNISample{Plugin: plugin, Round: round, AtOnce: atOnce, Times: CNITimes{
					Add: []int64{ns, ns + 1, ns + 2}, Del: []int64{ns / 2}, AddWall: 3 * ns, DelWall: ns,
				}}})
			}
		}
	}
	return append(out,
		Record{Time: at, Figure: &Figure{Name: "agent, start to ready", Unit: "s", Values: []float64{0.3, 0.2, 0.25}, Goal: 0.4}},
		Record{Time: at, Figure: &Figure{Name: "agent, resident memory", Unit: "MB", Values: []float64{50}, Goal: 40, Note: "a note"}},
		Record{Time: at, Skipped: &Skipped{What: "Pods of two nodes, native routing", Why: "lash install: refused:\nno such mode"}})
}

func TestReport(t *testing.T) {
	got, err := Report(example(), "perf/results/example.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/report.golden.md"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the report differs from %s; look at it with -update:\n%s", golden, got)
	}
	for _, text := range []string{
		"10 rounds; 1 more were disturbed and left out.", // of 11 TCP_RR rounds
		"0.95: met", "0.983 [0.981, 0.985]", "2.00: met", // ratios and goals
		"at most 40: missed", "at most 0.4: met", "a note", // figures
		"native routing: lash install: refused: no such mode", // what is missing
		"left out: nat 1.",                        // failures
		"lash RetransSegs 22, nat RetransSegs 22", // counters
	} {
		if !strings.Contains(got, text) {
			t.Errorf("the report lacks %q", text)
		}
	}
	if _, err := Report(nil, ""); err == nil {
		t.Error("nothing makes a report")
	}
}

func TestRecords(t *testing.T) {
	var file bytes.Buffer
	want := example()
	for _, r := range want {
		if err := writeRecord(&file, r); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadRecords(&file)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read back as %d records, %v", len(got), err)
	}
	for _, bad := range []string{"", "{}\n", "nonsense\n"} {
		if _, err := ReadRecords(strings.NewReader(bad)); err == nil {
			t.Errorf("%q is taken for results", bad)
		}
	}
}

func TestPickGroups(t *testing.T) {
	if g, err := pickGroups(nil); err != nil || len(g) != len(Groups) {
		t.Errorf("%d groups, %v", len(g), err)
	}
	if g, err := pickGroups([]string{"other-node-native"}); err != nil || len(g) != 1 || !g[0].Native {
		t.Errorf("%+v, %v", g, err)
	}
	if _, err := pickGroups([]string{"moon"}); err == nil || !strings.Contains(err.Error(), "same-node") {
		t.Errorf("error %v", err)
	}
}

// TestCNIJob calls a plugin that notes what it is given and that it runs beside others.
func TestCNIJob(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	dir := t.TempDir()
	script := `#!/bin/sh
read conf
[ "$conf" = '{"name":"x"}' ] || exit 9
[ -e "$CNI_NETNS" ] || exit 8
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_ARGS" >>"` + dir + `/log"
if [ "$CNI_CONTAINERID" = bad-1 ] && [ $CNI_COMMAND = ADD ]; then echo '{"msg":"no more addresses"}'; exit 1; fi
`
	plugin := filepath.Join(dir, "plugin")
	if err := os.WriteFile(plugin, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	serve := func(j CNIJob) (CNITimes, error) {
		j.Plugin, j.Config, j.Args, j.Netns = plugin, json.RawMessage(`{"name":"x"}`), "A=1", dir
		in, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := ServeCNIJob(t.Context(), bytes.NewReader(in), &out); err != nil {
			return CNITimes{}, err
		}
		var times CNITimes
		return times, json.Unmarshal(out.Bytes(), &times)
	}
	for _, atOnce := range []bool{false, true} {
		times, err := serve(CNIJob{Prefix: "good", Count: 3, AtOnce: atOnce})
		if err != nil {
			t.Fatal(err)
		}
		if len(times.Add) != 3 || len(times.Del) != 3 || times.AddWall < times.Add[0] || times.Add[2] <= 0 {
			t.Errorf("times %+v", times)
		}
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "ADD good-0 eth0 A=1\nADD good-1 eth0 A=1\nADD good-2 eth0 A=1\nDEL good-0 eth0 A=1\n"; !strings.HasPrefix(string(log), want) {
		t.Errorf("the plugin was called as\n%s", log)
	}
	// What fails says why, and is taken back.
	_, err = serve(CNIJob{Prefix: "bad", Count: 2})
	if err == nil || !strings.Contains(err.Error(), "no more addresses") {
		t.Errorf("error %v", err)
	}
	log, _ = os.ReadFile(filepath.Join(dir, "log"))
	if !strings.HasSuffix(string(log), "DEL bad-0 eth0 A=1\nDEL bad-1 eth0 A=1\n") {
		t.Errorf("what a failed job had added was not deleted:\n%s", log)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*-*"))
	if len(left) > 0 {
		t.Errorf("namespaces are left: %q", left)
	}
}

func TestLashNetConfig(t *testing.T) {
	got, err := lashNetConfig([]byte(`{"cniVersion":"1.1.0","name":"cilium","plugins":[{"type":"cilium-cni","log-file":"/x"}]}`))
	if want := `{"cniVersion":"1.1.0","log-file":"/x","name":"cilium","type":"cilium-cni"}`; err != nil || string(got) != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
	for _, bad := range []string{"", "{}"} {
		if _, err := lashNetConfig([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a configuration list", bad)
		}
	}
	for _, v6 := range []bool{false, true} {
		if !json.Valid(ptpNetConfig(v6)) {
			t.Errorf("not JSON: %s", ptpNetConfig(v6))
		}
	}
}

func TestReadyLine(t *testing.T) {
	m := readyLine.FindStringSubmatch("time=2026-01-02T03:04:05.678Z level=INFO msg=node name=n\n" +
		"time=2026-01-02T03:04:05.789Z level=INFO msg=ready entriesWritten=0 after=116ms generation=ab adopted=true\n")
	if len(m) != 3 || m[1] != "2026-01-02T03:04:05.789Z" || m[2] != "true" {
		t.Errorf("read %q", m)
	}
}

func TestReason(t *testing.T) {
	if got := reason("waiting\nstill waiting\nError: refused\n"); got != "Error: refused" {
		t.Errorf("%q", got)
	}
	if got := reason("1\n2\n3\n4\n5\n6\n7\n"); got != "2\n3\n4\n5\n6\n7" {
		t.Errorf("%q", got)
	}
}

func TestImageSize(t *testing.T) {
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(file, make([]byte, 2_000_000), 0o644); err != nil {
		t.Fatal(err)
	}
	if plain, packed, err := imageSize(file); err != nil || plain != 2 || packed <= 0 || packed > 0.1 {
		t.Errorf("%v MB, %v MB compressed, %v", plain, packed, err)
	}
}

func TestOriginalOutput(t *testing.T) {
	r, err := parseOriginal("2.00,36.905,27096.783,40,55\n", netperf.TCPRR, netip.MustParseAddrPort("10.0.0.1:12866"))
	if err != nil || r.RTLatency != 36.905 || r.Rate != 27096.783 || r.Latency.P50 != 40 || r.Latency.P99 != 55 || r.Transactions != 54193 {
		t.Errorf("%+v, %v", r, err)
	}
	r, err = parseOriginal("2.00,12000.00\n", netperf.TCPStream, netip.AddrPort{})
	if err != nil || r.Throughput != 12000 || r.Bytes != 3_000_000_000 {
		t.Errorf("%+v, %v", r, err)
	}
	for _, bad := range []string{"", "1,2,3", "a,b,c,d,e"} {
		if _, err := parseOriginal(bad, netperf.TCPRR, netip.AddrPort{}); err == nil {
			t.Errorf("%q is taken for a result", bad)
		}
	}
	if _, err := findOriginal(t.TempDir()); err == nil {
		t.Error("an empty folder has netperf")
	}
}

func TestBadOptions(t *testing.T) {
	for _, o := range []Options{{Rounds: 1, Length: 1500 * time.Millisecond}, {Length: time.Second}, {Groups: []string{"moon"}, Rounds: 1, Length: time.Second}} {
		if _, err := Run(t.Context(), o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

// TestStayAwake looks at what the kernel is told, and that it is for as long as it is wanted.
func TestStayAwake(t *testing.T) {
	file := filepath.Join(t.TempDir(), "latency")
	if _, err := stayAwake(file); err == nil || !strings.Contains(err.Error(), "keep the processors awake") {
		t.Errorf("without the file: %v", err)
	}
	if err := os.WriteFile(file, []byte("...."), 0o600); err != nil {
		t.Fatal(err)
	}
	release, err := stayAwake(file)
	if err != nil {
		t.Fatal(err)
	}
	release()
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, make([]byte, 4)) {
		t.Errorf("%v: %v, want a 32-bit 0 us", err, got)
	}
}
