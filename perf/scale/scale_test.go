// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lash.internal/lash/connectivity/cluster"
	"lash.internal/lash/perf/bench"
	"lash.internal/lash/perf/scale/dial"
)

// TestMain is also the client on nodes, when its argument says so.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "dial" {
		if err := dial.Serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestRun measures everything once with few Services: the agent and kube-proxy in both modes follow the
// stand-in, and a second agent writes nothing.
func TestRun(t *testing.T) {
	if os.Getenv("LASH_E2E") == "" {
		t.Skip("LASH_E2E=1 is not set: starts an agent and kube-proxy (make test does)")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	agent, err := filepath.Abs("../../bin/lash-agent")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(agent); err != nil {
		t.Fatalf("%v: run make build", err)
	}
	o := Options{
		Agent: agent, Contenders: []string{Lash, IPTables, NFTables}, Sizes: []Size{{Services: 40, Endpoints: 2, Ports: 2}}, Parts: Parts,
		Starts: map[string]int{Lash: 2, IPTables: 1, NFTables: 1}, Events: 3, EventsLimit: 5 * time.Minute, Rate: 20, Length: time.Second,
		Limit: 5 * time.Minute, Log: t.Output(), Say: t.Logf,
	}
	if o.Self, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	if o.Version, err = cluster.Version("kubernetes"); err != nil {
		t.Fatal(err)
	}
	if o.KubeProxy, err = cluster.FindProgram(t.Context(), "kube-proxy", "", func(s string) { t.Log(s) }); err != nil {
		t.Fatal(err)
	}
	var r Results
	if err := Run(t.Context(), o, &r, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	for _, c := range o.Contenders {
		for _, name := range []string{ColdStart, WarmChange, AddEndpoint, AddService, Changes, ChangesLast, Memory, MemoryAfter} {
			f, ok := r.find(c, o.Sizes[0], name)
			if !ok || len(f.Values) == 0 || f.Failed != "" {
				t.Errorf("%s of %s: %+v", name, c, f)
			}
		}
	}
	for _, name := range []string{AddEndpoint, AddService} {
		if f, _ := r.find(Lash, o.Sizes[0], name); len(f.Values) != o.Events {
			t.Errorf("%d values of %s, want %d", len(f.Values), name, o.Events)
		}
	}
	if f, _ := r.find(Lash, o.Sizes[0], WarmWrites); !slices.Equal(f.Values, []float64{0, 0}) {
		t.Errorf("an agent over what another has programmed wrote %v entries", f.Values)
	}
	if f, _ := r.find(Lash, o.Sizes[0], MemoryMaps); len(f.Values) != 1 || f.Values[0] <= 0 {
		t.Errorf("maps: %+v", f)
	}
}

// TestDial waits for an address that begins to answer, and gives up on one that never does.
func TestDial(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(l.Addr().String())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	in, orders := io.Pipe()
	answers, out := io.Pipe()
	served := make(chan error, 1)
	go func() { served <- dial.Serve(in, out) }()
	n := &node{orders: orders}
	n.answers = newAnswers(answers)
	first, err := n.begin(dial.Order{Addrs: []netip.AddrPort{addr}, Pause: time.Millisecond, Limit: time.Minute})
	if err != nil || first.Last != 0 || first.First == 0 {
		t.Fatalf("before it answers: %+v, %v", first, err)
	}
	before := dial.Now()
	if l, err = net.Listen("tcp", addr.String()); err != nil {
		t.Fatal(err)
	}
	a, err := n.answer()
	if err != nil || a.Missing != 0 || a.Refused != 1 || a.Last < before || a.Attempts < 2 {
		t.Errorf("%+v, %v", a, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	a, err = n.until(dial.Order{Addrs: []netip.AddrPort{addr}, Pause: time.Millisecond, Limit: time.Millisecond})
	if err != nil || a.Missing != 1 {
		t.Errorf("what never answers: %+v, %v", a, err)
	}
	if err := orders.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestReport shows what was measured, what was not and what is missed.
func TestReport(t *testing.T) {
	z := Size{Services: 30000, Endpoints: 4, Ports: 1}
	r := &Results{Machine: &bench.Machine{Kernel: "6.18", Processors: 2, Command: "make bench-scale"}}
	put := func(c, name, failed string, values ...float64) {
		r.put(Figure{Contender: c, Size: z, Name: name, Values: values, Failed: failed})
	}
	put(Lash, ColdStart, "", 9, 9, 9)
	put(Lash, ColdStart, "", 3, 2, 2.5) // in place of the former
	put(Lash, Memory, "", 250)
	put(Lash, MemoryMaps, "", 90)
	put(IPTables, Memory, "", 900)
	put(NFTables, ColdStart, "128 of 128 Services did not answer within 5m0s")
	put(Lash, AddEndpoint, "", 1, 2, 3, 40)
	put(IPTables, AddEndpoint, "ended after 1m0s", 1000, 2000)
	r.put(Figure{Contender: Lash, Size: z, Name: WarmReady, Values: []float64{5.5}, Pressure: 0.9}) // with others at work
	path := filepath.Join(t.TempDir(), "r.json")
	if err := r.Write(path); err != nil {
		t.Fatal(err)
	}
	again, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	text := Report(again, "results.json")
	for _, want := range []string{
		"### 30000 Services with 4 endpoints each\n",
		"| Cold start, until the last Service answers, s | 2.50 (2 to 3, 3) | | 128 of 128 Services did not answer within 5m0s | at most 4: met |",
		"| Both, MB | 340 | 900 | | at most 300: missed |",
		"P50 ms | 2 (1 to 40, 4) | 1000 (1000 to 2000, 2); ended after 1m0s | | at most 3: met |",
		"| The same, P99 ms | 40 (1 to 40, 4) |",
		"at most 15: missed",
		"until ready, s | 5.50, noisy | | | at most 1: missed |",
		"Kernel 6.18, 2 processors",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if strings.Contains(text, "entries written") {
		t.Error("a row without figures")
	}
}

// TestObjects: addresses of different Services and endpoints differ, and lie where the far namespace
// answers and the client does not.
func TestObjects(t *testing.T) {
	seen := map[netip.Addr]bool{}
	note := func(a netip.Addr, in netip.Prefix) {
		if seen[a] || !in.Contains(a) {
			t.Fatalf("%s is there twice or not in %s", a, in)
		}
		seen[a] = true
	}
	z := Size{Services: 30000, Endpoints: 4, Ports: 1}
	for i := range z.Services {
		note(serviceAddr(i), servicesIn)
		for e := range z.Endpoints {
			note(backendAddr(i, e, z.Endpoints), backendsIn)
		}
	}
	small := Size{Services: 2, Endpoints: 3, Ports: 2}
	if objs := objects(small, 1); len(objs) != 4+2*3 {
		t.Errorf("%d objects", len(objs))
	}
}
