// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	helmrelease "helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/storage"
	"helm.sh/helm/v3/pkg/storage/driver"
	helmtime "helm.sh/helm/v3/pkg/time"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/version"
	fakediscovery "k8s.io/client-go/discovery/fake"
	"k8s.io/client-go/kubernetes/fake"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/chart"
	"lash.internal/lash/cmd/kube"
	cliterm "lash.internal/lash/cmd/term"
	"lash.internal/lash/install"
)

// released is a client of a cluster with revisions of our release, made of values.
func released(t *testing.T, revisions ...map[string]any) *kube.Client {
	t.Helper()
	set := fake.NewSimpleClientset([]runtime.Object{
		agentPod(1),
		&corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{
				Name: "cilium-config", Namespace: "kube-system",
				Labels: map[string]string{"helm.sh/chart": "lash-0.1.0"}, Annotations: map[string]string{"meta.helm.sh/release-name": "cilium"},
			},
			Data: map[string]string{"cluster-name": "c", "debug": "false"},
		},
	}...)
	set.Discovery().(*fakediscovery.FakeDiscovery).FakedServerVersion = &version.Info{GitVersion: "v1.36.3"}
	c := &kube.Client{Clientset: set, Context: "ctx", Namespace: "kube-system", Release: "cilium"}
	for n, values := range revisions {
		ch, err := chart.Load()
		if err != nil {
			t.Fatal(err)
		}
		st := helmrelease.StatusSuperseded
		if n == len(revisions)-1 {
			st = helmrelease.StatusDeployed
		}
		at := helmtime.Time{Time: time.Date(2026, 1, 1+n, 12, 0, 0, 0, time.UTC)}
		err = storage.Init(driver.NewSecrets(set.CoreV1().Secrets("kube-system"))).Create(&helmrelease.Release{
			Name: "cilium", Namespace: "kube-system", Version: n + 1, Chart: ch, Config: values,
			Info: &helmrelease.Info{Status: st, FirstDeployed: at, LastDeployed: at, Description: "installed by lash"},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// testWorld is a world without a terminal.
func testWorld() (w World, out, errOut *bytes.Buffer) {
	out, errOut = &bytes.Buffer{}, &bytes.Buffer{}
	return World{In: strings.NewReader(""), Out: out, Err: errOut, Getenv: func(string) string { return "" }}, out, errOut
}

func TestUpgradeShowsTheDiffFirstAndAsks(t *testing.T) {
	c := released(t, map[string]any{"MTU": 1400.0, "cluster": map[string]any{"name": "c"}, "podLabels": map[string]any{"team": "net"}})
	w, out, errOut := testWorld()
	term := cliterm.New(errOut, w.Getenv)
	change, err := install.Upgrade(context.Background(), clusterOf(c), install.Options{
		Values: map[string]any{"MTU": nil, "debug": map[string]any{"enabled": true}, "extraEnv": []any{map[string]any{"name": "LONG", "value": strings.Repeat("x", 60)}}},
		Say:    term.Println,
	}, install.ResetThenReuse)
	if err != nil {
		t.Fatal(err)
	}
	change.Objects, change.Findings = nil, nil // the release of this test has no manifest
	err = applyChange(context.Background(), w, term, c, change, &applyFlags{}, "Upgrade", "upgraded")
	if err == nil || !strings.Contains(err.Error(), "nothing was changed: there is no terminal to ask on, add --yes") {
		t.Errorf("without a terminal and without --yes: %v", err)
	}
	statusGolden(t, "upgrade", errOut.String())
	errOut.Reset()
	if err := applyChange(context.Background(), w, term, c, change, &applyFlags{dryRun: true}, "Upgrade", "upgraded"); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "kind: DaemonSet") || !strings.Contains(errOut.String(), "debug.enabled") {
		t.Errorf("a dry run prints\n%s\n%s", out, errOut)
	}
	for _, a := range c.Clientset.(*fake.Clientset).Actions() {
		if v := a.GetVerb(); v != "get" && v != "list" && (v != "create" || a.GetResource().Resource != "secrets") {
			t.Errorf("an upgrade that nobody agreed to did %s %s", v, a.GetResource().Resource)
		}
	}
}

func TestHistory(t *testing.T) {
	c := released(t, map[string]any{}, map[string]any{"MTU": 1400.0})
	for _, format := range []string{"table", "json", "yaml"} {
		w, out, _ := testWorld()
		rows, err := install.History(clusterOf(c))
		if err != nil {
			t.Fatal(err)
		}
		if err := printHistory(w, rows, format); err != nil {
			t.Fatal(err)
		}
		statusGolden(t, "history-"+format, out.String())
	}
}

func TestConfigCommands(t *testing.T) {
	c := released(t)
	w, out, errOut := testWorld()
	ctx := context.Background()
	if err := viewConfig(ctx, w, c, "table"); err != nil || out.String() != "cluster-name    c\ndebug           false\n" {
		t.Errorf("view: %q, %v", out, err)
	}
	set := func(key, value string, restart bool) error {
		return changeConfig(ctx, w, c, restart, func(s install.Settings) (bool, error) { return s.Set(ctx, key, value) }, "to keep it: ...")
	}
	if err := set("debug", "true", true); err != nil {
		t.Fatal(err)
	}
	want := "✨ Patching ConfigMap cilium-config with debug=true...\nℹ️  The next lash upgrade sets it back; to keep it: ...\n♻️  Restarted Cilium pods\n"
	if errOut.String() != want {
		t.Errorf("said\n%s\nwant\n%s", errOut, want)
	}
	if pods, _ := c.Clientset.CoreV1().Pods("kube-system").List(ctx, metav1.ListOptions{LabelSelector: "k8s-app=cilium"}); len(pods.Items) != 0 {
		t.Error("the agents were not restarted")
	}
	errOut.Reset()
	if err := set("debug", "false", false); err != nil || strings.Contains(errOut.String(), "Restarted") || !strings.Contains(errOut.String(), "after their next start") {
		t.Errorf("without restart: %v, %s", err, errOut)
	}
	var ee *ExitError
	for _, kv := range [][2]string{{"debgu", "true"}, {"debug", "maybe"}} {
		errOut.Reset()
		if err := set(kv[0], kv[1], true); err == nil || !asExit(err, &ee) || ee.Code != ExitUsage || errOut.Len() > 0 {
			t.Errorf("%v: %v, said %q", kv, err, errOut)
		}
	}
}

func asExit(err error, to **ExitError) bool { return errors.As(err, to) }

func TestCommandLines(t *testing.T) {
	for want, c := range map[string]struct {
		args []string
		code int
	}{
		"invalid revision \"x\"":                {[]string{"rollback", "x"}, ExitUsage},
		"cluster unreachable":                   {[]string{"rollback"}, ExitUnreachable},
		"invalid --output \"xml\"":              {[]string{"history", "-o", "xml"}, ExitUsage},
		"accepts 2 arg(s), received 1":          {[]string{"config", "set", "a"}, ExitUsage},
		"want table, json or yaml":              {[]string{"config", "view", "-o", "x"}, ExitUsage},
		"[reset-then-reuse-values reset-values": {[]string{"upgrade", "--reset-values", "--reset-then-reuse-values"}, ExitUsage},
		"unknown command \"upgrad\"":            {[]string{"upgrad"}, ExitUsage},
		"names no registry":                     {[]string{"image", "push", "lash"}, ExitUsage},
	} {
		code, _, stderr := lash(t, unreachable, c.args...)
		if code != c.code || !strings.Contains(stderr, want) {
			t.Errorf("%v: code %d, %q, want %d, %q", c.args, code, stderr, c.code, want)
		}
	}
	if _, err := os.Stat("testdata/upgrade.golden"); err != nil {
		t.Error(err)
	}
}

func TestVerdict(t *testing.T) {
	for name, v := range map[string]*install.Verdict{
		"clean": {
			Nodes: map[string][]api.NodeItem{"n1": {}, "n2": {}},
			Kept:  []install.Trace{{Kind: "CustomResourceDefinition", Name: "ciliumnodes.cilium.io"}},
		},
		"dirty": {
			API: []install.Trace{{Kind: "Lease", Name: "kube-system/cilium-operator-resource-lock", Ours: "held by the operator"}},
			Nodes: map[string][]api.NodeItem{"n1": {
				{Kind: "device", Name: "cilium_host", Ours: "a device of Lash"},
				{Kind: "file", Name: "/run/lash/", Ours: "a file of the agent"},
				{Kind: "file", Name: "/run/lash/endpoints/1", Ours: "a file of the agent"},
				{Kind: "pin", Name: "/sys/fs/bpf/lash", Ours: "a pin of Lash"},
				{Kind: "pin", Name: "/sys/fs/bpf/lash/maps", Ours: "a pin of Lash"},
				{Kind: "pin", Name: "/sys/fs/bpf/lash/maps/ct4", Ours: "a pin of Lash"},
			}, "n2": {}},
			Failed: map[string]string{"node n3": "its kubelet does not answer"},
		},
		"unknown": {Nodes: map[string][]api.NodeItem{"n1": {}}, Failed: map[string]string{"node n3": "its kubelet does not answer"}},
	} {
		w, out, errOut := testWorld()
		err := printVerdict(w, cliterm.New(errOut, w.Getenv), v, "table")
		if (err == nil) != (name == "clean") {
			t.Errorf("%s: %v", name, err)
		}
		statusGolden(t, "verify-"+name, out.String()+errOut.String())
	}
	w, out, _ := testWorld()
	err := printVerdict(w, cliterm.New(out, w.Getenv), &install.Verdict{API: []install.Trace{{Kind: "Lease", Name: "x"}}}, "json")
	var ee *ExitError
	if !asExit(err, &ee) || ee.Code != ExitFailed || !strings.Contains(out.String(), `"code": 1`) {
		t.Errorf("%v, %s", err, out)
	}
}
