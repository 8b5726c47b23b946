// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"bytes"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/strvals"

	"lash.internal/lash/chart"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// render is what `helm template cilium DIR -n kube-system --set ...` prints.
func render(t *testing.T, sets ...string) string {
	t.Helper()
	c, err := chart.Load()
	if err != nil {
		t.Fatal(err)
	}
	user := map[string]any{}
	for _, s := range sets {
		if err := strvals.ParseInto(s, user); err != nil {
			t.Fatal(err)
		}
	}
	vals, err := chartutil.ToRenderValues(c, user,
		chartutil.ReleaseOptions{Name: "cilium", Namespace: "kube-system", IsInstall: true}, chartutil.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	out, err := engine.Render(c, vals)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(out)) {
		if text := strings.TrimSpace(out[name]); text != "" && strings.HasSuffix(name, ".yaml") {
			b.WriteString("---\n# " + filepath.Base(name) + "\n" + text + "\n")
		}
	}
	return b.String()
}

func TestGolden(t *testing.T) {
	for name, sets := range map[string][]string{
		"default":        nil,
		"no-kube-proxy":  {"kubeProxyReplacement=true", "k8sServiceHost=10.0.0.1", "k8sServicePort=6443", "operator.replicas=1", "cluster.name=dev"},
		"podcidr-dual":   {"ipam.mode=kubernetes", "ipv6.enabled=true"},
		"everything-set": {"debug.enabled=true", "logOptions.format=json", "devices={eth0,eth+}", "prometheus.enabled=true", "rollOutCiliumPods=true", "extraConfig.mtu=1400", "extraEnv[0].name=CILIUM_ENABLE_POLICY", "extraEnv[0].value=never", "resources.limits.memory=1Gi", "image.digest=sha256:00", "image.useDigest=true", "cni.binPath=/home/kubernetes/bin", "extraHostPathMounts[0].name=x", "extraHostPathMounts[0].mountPath=/x", "extraHostPathMounts[0].hostPath=/y", "commonLabels.team=net", "operator.podDisruptionBudget.minAvailable=1", "bpf.enableTCX=false"},
		"minimal":        {"operator.enabled=false", "rbac.create=false", "serviceAccounts.cilium.create=false", "cni.install=false", "bpf.autoMount.enabled=false", "cgroup.autoMount.enabled=false", "ipv4.enabled=false", "ipv6.enabled=true"},
	} {
		t.Run(name, func(t *testing.T) {
			got := render(t, sets...)
			file := filepath.Join("testdata", name+".golden.yaml")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(want, []byte(got)) {
				t.Errorf("render differs from %s; see the difference with: go test ./chart -run Golden -update && git diff chart/testdata", file)
			}
		})
	}
}

func TestRenderIsByteStable(t *testing.T) {
	first, second := render(t, "ipv6.enabled=true"), render(t, "ipv6.enabled=true")
	if first != second {
		t.Error("two renders with the same values differ")
	}
}

func TestLongRunningContainersAreNotPrivileged(t *testing.T) {
	_, long, ok := strings.Cut(render(t), "containers:\n      - name: cilium-agent")
	if !ok {
		t.Fatal("no agent container")
	}
	for _, bad := range []string{"privileged: true", "SYS_ADMIN", "SYS_RESOURCE", "SYS_MODULE"} {
		if strings.Contains(long, bad) {
			t.Errorf("a long-running container has %s", bad)
		}
	}
}

func TestNoSecrets(t *testing.T) {
	if strings.Contains(render(t), "kind: Secret") || strings.Contains(render(t), "resources: [secrets") {
		t.Error("the chart makes or reads secrets")
	}
}

func TestExportIsAChart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	if err := chart.Export(dir); err != nil {
		t.Fatal(err)
	}
	c, err := loader.LoadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if c.Name() != chart.Name || len(c.Templates) < 6 || c.Schema == nil {
		t.Errorf("exported chart is %s with %d templates", c.Name(), len(c.Templates))
	}
	if err := chart.Export(dir); err == nil {
		t.Error("exported over an existing chart")
	}
}
