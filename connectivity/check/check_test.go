// SPDX-License-Identifier: Apache-2.0

package check

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/connectivity/probe"
)

func run(t *testing.T, c *fakeCluster, o Options) (*Report, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	o.Client, o.Exec = c.client, c.exec
	rep, err := Run(ctx, o)
	if ctx.Err() != nil {
		t.Fatalf("the run hangs: %v", err)
	}
	return rep, err
}

func namespaceGone(t *testing.T, c *fakeCluster) {
	t.Helper()
	_, err := c.client.CoreV1().Namespaces().Get(t.Context(), "cilium-test-1", metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		t.Errorf("the test namespace was left behind: %v", err)
	}
}

func TestHealthyClusterPasses(t *testing.T) {
	c := newFakeCluster(t)
	rep, err := run(t, c, Options{})
	if err != nil {
		t.Fatalf("%v\n%s", err, text(t, rep))
	}
	n := rep.count()
	if rep.Code != 0 || !strings.HasPrefix(rep.Summary, "✅ [cilium-test-1] All 14 tests (") ||
		!strings.HasSuffix(rep.Summary, "actions) successful, 1 tests skipped, 5 scenarios skipped.") {
		t.Errorf("got %q", rep.Summary)
	}
	if n.actions < 100 {
		t.Errorf("only %d actions", n.actions)
	}
	namespaceGone(t, c)
}

func text(t *testing.T, rep *Report) string {
	t.Helper()
	var b bytes.Buffer
	if rep == nil {
		return "no report"
	}
	if err := rep.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A network where one thing is broken fails with a sentence that names it.
func TestBrokenPathsAreNamed(t *testing.T) {
	fail := func(r *probe.Result) { r.Error, r.Kind = "i/o timeout", probe.KindTimeout }
	crossNode := func(from Peer, p probe.Probe) bool {
		dst := dstOf(p)
		return strings.HasPrefix(dst, "10.244.") && !strings.HasPrefix(dst, "10.244."+strings.TrimPrefix(from.Node, "n")+".")
	}
	tests := []struct {
		name  string
		setup func(c *fakeCluster)
		want  string
	}{
		{
			"tunnel port blocked",
			func(c *fakeCluster) {
				c.answer = func(from Peer, p probe.Probe, r *probe.Result) {
					if p.Proto != probe.Route && crossNode(from, p) {
						fail(r)
					}
				}
			},
			"Nothing passes the tunnel between n1 and n2 (IPv4 pods), while the nodes reach each other directly: check that UDP port 8472",
		},
		{
			"fabric broken",
			func(c *fakeCluster) {
				c.answer = func(from Peer, p probe.Probe, r *probe.Result) {
					if p.Proto != probe.Route && (crossNode(from, p) || dstOf(p) == "172.31.0.2" && from.Node == "n1") {
						fail(r)
					}
				}
			},
			"Node n1 does not reach node n2 over IPv4, without any pod in between",
		},
		{
			"NodePorts not kept from processes",
			func(c *fakeCluster) {
				c.answer = func(_ Peer, p probe.Probe, r *probe.Result) {
					if p.Proto == probe.Bind {
						r.Error, r.Kind = "", ""
					}
				}
			},
			`node n1 to service echo-other-node NodePort@n1 over IPv4 (got an answer, expected "forbidden")`,
		},
		{
			"route missing",
			func(c *fakeCluster) {
				c.answer = func(from Peer, p probe.Probe, r *probe.Result) {
					switch {
					case p.Proto == probe.Route:
						r.Answers = []string{"default via 172.31.0.254 dev eth0"}
					case crossNode(from, p) && from.Name == "host-netns":
						fail(r)
					}
				}
			},
			"has no route through the tunnel",
		},
		{
			"address map entry missing",
			func(c *fakeCluster) {
				c.answer = func(from Peer, p probe.Probe, r *probe.Result) {
					if p.Proto != probe.Route && crossNode(from, p) && from.Node == "n1" {
						fail(r)
					}
				}
				c.agent = func(node, command string) (string, error) {
					if strings.HasPrefix(command, "cilium bpf ipcache get") && node == "n1" {
						return "10.244.2.14 does not map to any identity\n", errors.New("command ended with code 1")
					}
					return "", nil
				}
			},
			"Node n1 does not know the address 10.244.2.",
		},
		{
			"endpoint missing",
			func(c *fakeCluster) {
				c.answer = func(_ Peer, p probe.Probe, r *probe.Result) {
					if p.Proto != probe.Route && dstOf(p) == "10.244.1.13" {
						fail(r)
					}
				}
				c.agent = func(_, command string) (string, error) {
					if strings.HasPrefix(command, "cilium bpf endpoint list") {
						return "10.244.1.11:0 id=1\n10.244.1.12:0 id=2\n10.244.2.14:0 id=3\n10.244.2.15:0 id=3\n10.244.1.130:0 id=9\n", nil
					}
					return "", nil
				}
			},
			"Node n1 does not know its own pod echo-same-node (10.244.1.13)",
		},
		{
			"large packets lost",
			func(c *fakeCluster) {
				c.answer = func(from Peer, p probe.Probe, r *probe.Result) {
					if crossNode(from, p) && p.Size > 5000 {
						fail(r)
					}
				}
			},
			"small packets pass, large ones",
		},
		{
			"service translation broken",
			func(c *fakeCluster) {
				c.answer = func(from Peer, p probe.Probe, r *probe.Result) {
					if strings.HasPrefix(dstOf(p), "10.96.1.") && r.Kind == "" && from.Node == "n2" {
						fail(r)
					}
				}
			},
			"the translation of Services on node n2 is broken",
		},
		{
			"health check counts wrong",
			func(c *fakeCluster) {
				c.answer = func(_ Peer, _ probe.Probe, r *probe.Result) {
					if r.Status == 200 {
						r.Text = `{"localEndpoints": 2}`
					}
				}
			},
			"the health check counts 2 servers, expected 1",
		},
		{
			"node port closed",
			func(c *fakeCluster) {
				c.answer = func(from Peer, p probe.Probe, r *probe.Result) {
					if from.Name == "client3" && strings.HasPrefix(dstOf(p), "172.31.0.") && strings.HasPrefix(portOf(p), "30") {
						fail(r)
					}
				}
			},
			"Pod to a port of a node is broken: client3@n2 to service echo-same-node NodePort@",
		},
		{
			"affinity ignored",
			func(c *fakeCluster) {
				c.answer = func(from Peer, p probe.Probe, r *probe.Result) {
					sticky, err := c.client.CoreV1().Services("cilium-test-1").Get(t.Context(), svcSticky, metav1.GetOptions{})
					if err == nil && dstOf(p) == sticky.Spec.ClusterIPs[0] {
						c.mu.Lock()
						defer c.mu.Unlock()
						if c.turn[from.Pod]++; c.turn[from.Pod]%2 == 0 {
							r.Host = "echo-same-node-x"
						}
					}
				}
			},
			"expected 1 of the servers echo-other-node-x, echo-same-node-x",
		},
		{
			"ended server gets connections",
			func(c *fakeCluster) {
				c.answer = func(from Peer, p probe.Probe, r *probe.Result) {
					c.mu.Lock()
					defer c.mu.Unlock()
					if c.ending != "" && p.Conn == "" && from.Name == "client" && r.Host != c.ending && r.Host != "" {
						r.Host = c.ending
					}
				}
			},
			"which is none of echo-same-node-x",
		},
		{
			"connection broken by termination",
			func(c *fakeCluster) {
				c.answer = func(_ Peer, p probe.Probe, r *probe.Result) {
					c.mu.Lock()
					defer c.mu.Unlock()
					if c.ending != "" && p.Conn != "" {
						r.Error, r.Kind = "connection reset by peer", probe.KindReset
					}
				}
			},
			"connection reset by peer",
		},
		{
			"not refused",
			func(c *fakeCluster) {
				c.answer = func(_ Peer, _ probe.Probe, r *probe.Result) {
					if r.Kind == probe.KindRefused {
						fail(r)
					}
				}
			},
			"Service no-endpoints has no endpoints, but",
		},
		{
			"source translated",
			func(c *fakeCluster) {
				c.answer = func(from Peer, p probe.Probe, r *probe.Result) {
					if crossNode(from, p) && from.Name == "client" && r.Seen != "" {
						r.Seen = "172.31.0.1:4000"
					}
				}
			},
			"the server saw the source 172.31.0.1:4000, expected 10.244.1.11",
		},
		{
			"unexpected drops",
			func(c *fakeCluster) {
				c.answer = func(_ Peer, p probe.Probe, _ *probe.Result) {
					c.mu.Lock()
					defer c.mu.Unlock()
					if p.Proto == probe.ICMP {
						c.dropped++
					}
				}
			},
			`packets were dropped: "CT: Map insertion failed"`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newFakeCluster(t)
			tt.setup(c)
			rep, err := run(t, c, Options{})
			if !errors.Is(err, ErrFailed) || rep.Code != 1 || !strings.HasPrefix(rep.Summary, "❌ [cilium-test-1] ") {
				t.Fatalf("err %v, report %s", err, text(t, rep))
			}
			if all := strings.Join(rep.Diagnosis, "\n"); !strings.Contains(all, tt.want) {
				t.Errorf("diagnosis:\n%s\nwant: %s", all, tt.want)
			}
			namespaceGone(t, c)
		})
	}
}

func TestDropsAreEvidence(t *testing.T) {
	c := newFakeCluster(t)
	c.drops["n2"] = []api.MonitorEvent{{
		Type: api.MonitorDrop, Reason: "Stale or unroutable IP",
		Summary: &api.PacketSummary{
			L3: &api.Pair{Src: "10.244.1.11", Dst: "10.244.2.15"}, Text: "10.244.1.11:1 -> 10.244.2.15:8081 tcp SYN",
		},
	}}
	c.answer = func(from Peer, p probe.Probe, r *probe.Result) {
		if from.Name == "client" && dstOf(p) == "10.244.2.15" {
			time.Sleep(10 * time.Millisecond) // the monitor is quicker than a probe's time limit
			r.Error, r.Kind = "i/o timeout", probe.KindTimeout
		}
	}
	rep, err := run(t, c, Options{Tests: []string{"no-policies/pod-to-pod"}})
	if !errors.Is(err, ErrFailed) {
		t.Fatal(err)
	}
	if all := strings.Join(rep.Diagnosis, "\n"); !strings.Contains(all, "Node n2 drops packets between client@n1 and echo-other-node@n2: Stale or unroutable IP.") {
		t.Errorf("diagnosis:\n%s", all)
	}
	if !strings.Contains(text(t, rep), "drop: Stale or unroutable IP on n2: 10.244.1.11:1 -\\u003e 10.244.2.15:8081 tcp SYN") {
		t.Errorf("report:\n%s", text(t, rep))
	}
}

// A node whose agent is broken fails the health test by name; the others are tested.
func TestBrokenAgentIsNamed(t *testing.T) {
	c := newFakeCluster(t)
	pods := c.client.CoreV1().Pods("kube-system")
	p, err := pods.Get(t.Context(), "agent-n2", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p.Status.Conditions[0].Status = corev1.ConditionFalse
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "cilium-agent", State: corev1.ContainerState{
		Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"},
	}}}
	if _, err := pods.UpdateStatus(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	rep, err := run(t, c, Options{})
	if !errors.Is(err, ErrFailed) {
		t.Fatalf("%v: %s", err, text(t, rep))
	}
	if len(rep.Diagnosis) != 1 || !strings.Contains(rep.Diagnosis[0], "agent of node n2: its agent agent-n2 is not ready: container cilium-agent waits: ImagePullBackOff no such image.") {
		t.Errorf("diagnosis: %q", rep.Diagnosis)
	}
}

func TestCancelCleansUp(t *testing.T) {
	c := newFakeCluster(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.answer = func(Peer, probe.Probe, *probe.Result) { cancel() }
	_, err := Run(ctx, Options{Client: c.client, Exec: c.exec})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	namespaceGone(t, c)
}

func TestForeignNamespaceIsLeftAlone(t *testing.T) {
	c := newFakeCluster(t)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "cilium-test-1"}}
	if _, err := c.client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, c, Options{}); !errors.Is(err, errForeign) || strings.Count(err.Error(), "--test-namespace") != 1 {
		t.Errorf("run: %v", err)
	}
	if err := Clean(t.Context(), Options{Client: c.client}); !errors.Is(err, errForeign) {
		t.Errorf("clean: %v", err)
	}
	if _, err := c.client.CoreV1().Namespaces().Get(t.Context(), "cilium-test-1", metav1.GetOptions{}); err != nil {
		t.Errorf("somebody else's namespace: %v", err)
	}
}

func TestFilter(t *testing.T) {
	all := Scenarios()
	tests := []struct {
		patterns []string
		want     string
	}{
		{[]string{"dns"}, "pod-to-dns"},
		{[]string{"no-policies/pod-to-pod$", "health"}, "agent-health pod-to-pod"},
		{[]string{"/pod-to-world"}, "pod-to-world"},
		{[]string{"client-to-client"}, "client-to-client"}, // a scenario's name alone
		{[]string{"no-policies$", "!pod-to-world", "!/pod-to-cidr", "!pod-to-(host|service)", "!host-to-pod", "!hostport"}, "pod-to-pod client-to-client external-to-pod"},
	}
	for _, tt := range tests {
		f, err := ParseFilter(tt.patterns, all)
		if err != nil {
			t.Errorf("%q: %v", tt.patterns, err)
			continue
		}
		var got []string
		for _, s := range all {
			if f.Match(s) {
				got = append(got, s.Name)
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%q: got %v, want %s", tt.patterns, got, tt.want)
		}
	}
	for _, bad := range []string{"pod-to-pd", "!nonsense", "no-policies/nonsense", "("} {
		if _, err := ParseFilter([]string{bad}, all); err == nil {
			t.Errorf("%q was accepted", bad)
		} else if bad == "pod-to-pd" && !strings.Contains(err.Error(), "no-policies/pod-to-pod, client-to-client") {
			t.Errorf("the error lists no scenarios: %v", err)
		}
	}
}

func TestScenarioNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Scenarios() {
		if seen[s.Name] {
			t.Errorf("%s is there twice", s.Name)
		}
		seen[s.Name] = true
		if (s.Actions == nil) == (s.Do == nil) {
			t.Errorf("%s needs either Actions or Do", s.Name)
		}
	}
}

func TestReports(t *testing.T) {
	rep := &Report{Namespace: "cilium-test-1", Tests: []TestResult{
		{Name: "a", OK: false, Scenarios: []ScenarioResult{
			{Name: "s1", Actions: []ActionResult{{Name: "x -> y", Problem: "lost & gone", Evidence: []string{"route: none"}}}},
			{Name: "s2", Skipped: "no <reason>"},
		}},
		{Name: "b", OK: true, Skipped: true, Scenarios: []ScenarioResult{{Name: "s3", Skipped: "no"}}},
	}}
	rep.finish(time.Second)
	if rep.Summary != "❌ [cilium-test-1] 1/1 tests failed (1/1 actions), 1 tests skipped, 1 scenarios skipped." {
		t.Errorf("got %s", rep.Summary)
	}
	var b bytes.Buffer
	if err := rep.WriteJUnit(&b, map[string]string{"owner": "me"}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`tests="3" failures="1" skipped="2"`, `<property name="owner" value="me">`,
		`<testcase name="s1" classname="a"`, `x -&gt; y: lost &amp; gone`, `route: none`, `<skipped message="no &lt;reason&gt;">`,
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("JUnit lacks %s:\n%s", want, b.String())
		}
	}
	b.Reset()
	if err := rep.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var back map[string]any
	if err := json.Unmarshal(b.Bytes(), &back); err != nil || back["kind"] != "ConnectivityReport" || back["code"] != 1.0 {
		t.Errorf("JSON: %v, %v", err, back)
	}
}

func TestGrepFindsWholeAddresses(t *testing.T) {
	text := "TCP 10.0.0.1:80 -> 10.0.0.2:9\nTCP 10.0.0.11:80 -> 10.0.0.2:9\n[fd00::1]:80 x\nfd00::12 x\n"
	if got := grep(text, "10.0.0.1", "10.0.0.2"); len(got) != 1 || !strings.HasPrefix(got[0], "TCP 10.0.0.1:80") {
		t.Errorf("got %q", got)
	}
	if got := grep(text, "fd00::1"); len(got) != 1 {
		t.Errorf("got %q", got)
	}
	if got := grep(text, netip.MustParseAddr("10.0.0.3").String()); len(got) != 0 {
		t.Errorf("got %q", got)
	}
}

// A name server may go on answering with the addresses of the Services of the run before.
func TestNamesAreNotThoseOfAnEarlierRun(t *testing.T) {
	asked := map[string]int{} // last run that asked for a name
	for i := 1; i <= 2; i++ {
		c := newFakeCluster(t)
		c.answer = func(_ Peer, p probe.Probe, _ *probe.Result) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if p.Proto != probe.DNS || strings.HasPrefix(p.Target, "kubernetes.default.") {
				return
			}
			if before := asked[p.Target]; before != 0 && before != i {
				t.Errorf("%s was asked for by an earlier run", p.Target)
			}
			asked[p.Target] = i
		}
		if _, err := run(t, c, Options{Tests: []string{"dns"}}); err != nil {
			t.Fatal(err)
		}
	}
	if len(asked) != 2 {
		t.Errorf("names %v, want one a run", asked)
	}
}

// The host outside tries what is meant for it and what is not.
func TestFromOutside(t *testing.T) {
	c := newFakeCluster(t)
	rep, err := run(t, c, Options{External: c.external})
	if err != nil || !strings.HasSuffix(rep.Summary, "actions) successful, 0 tests skipped, 1 scenarios skipped.") {
		t.Fatalf("%v: %s", err, text(t, rep))
	}
	for _, want := range []string{"198.51.100.16", "198.51.100.17", "198.51.100.18", "198.51.100.19", "198.51.100.20"} {
		if !slices.Contains(c.routed, want) {
			t.Errorf("no route to %s, only to %v", want, c.routed)
		}
	}
	tests := []struct {
		name   string
		change func(from Peer, p probe.Probe, r *probe.Result)
		want   string
	}{
		{"policy Local answers everywhere", func(_ Peer, p probe.Probe, r *probe.Result) {
			if r.Kind == probe.KindTimeout && strings.HasPrefix(dstOf(p), "172.31.0.2") {
				*r = probe.Result{ID: r.ID, OK: true}
			}
		}, `got an answer, expected "timeout"`},
		{"ranges are not looked at", func(from Peer, p probe.Probe, r *probe.Result) {
			if r.Kind == probe.KindTimeout && from.Pod == outsidePod && dstOf(p) == "198.51.100.19" {
				*r = probe.Result{ID: r.ID, OK: true}
			}
		}, `got an answer, expected "timeout"`},
		{"client's address lost", func(from Peer, p probe.Probe, r *probe.Result) {
			if r.Seen != "" && from.Pod == outsidePod && dstOf(p) == "198.51.100.17" {
				r.Seen = "172.31.0.1:99"
			}
		}, "the server saw the source 172.31.0.1:99, expected 172.31.0.99"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newFakeCluster(t)
			c.answer = tt.change
			rep, err := run(t, c, Options{External: c.external})
			if !errors.Is(err, ErrFailed) || !strings.Contains(text(t, rep), strings.ReplaceAll(tt.want, `"`, `\"`)) {
				t.Errorf("%v: %v", err, rep.Diagnosis)
			}
		})
	}
}

// A cluster whose Services are kube-proxy's is tested by what kube-proxy does as well.
func TestKubeProxyCluster(t *testing.T) {
	c := newFakeCluster(t)
	cm, err := c.client.CoreV1().ConfigMaps("kube-system").Get(t.Context(), "cilium-config", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cm.Data["kube-proxy-replacement"] = "false"
	if _, err := c.client.CoreV1().ConfigMaps("kube-system").Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	rep, err := run(t, c, Options{External: c.external})
	if err != nil {
		t.Fatalf("%v: %s", err, text(t, rep))
	}
	all := text(t, rep)
	for _, want := range []string{"HostPorts need kubeProxyReplacement=true", "kube-proxy answers on loopback addresses in some of its modes only"} {
		if !strings.Contains(all, want) {
			t.Errorf("not skipped with %q", want)
		}
	}
}

func TestServicePrefixes(t *testing.T) {
	got, err := ParseServicePrefixes([]string{"198.51.100.77/24", "2001:db8::/64"})
	if err != nil || len(got) != 2 || got[0].String() != "198.51.100.0/24" {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range [][]string{{"198.51.100.0/28"}, {"198.51.100.1"}, {"10.0.0.0/8", "11.0.0.0/8"}, {"255.255.255.248/29"}} {
		if _, err := ParseServicePrefixes(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
