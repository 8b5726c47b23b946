// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// byHelm installs the exported chart with plain helm and the values that lash install would use. The
// release has to be the same, and lash has to work with it.
func (c *cluster) byHelm(t *testing.T) {
	dir := t.TempDir()
	helm, chart, values := filepath.Join(dir, "helm"), filepath.Join(dir, "chart"), filepath.Join(dir, "values.yaml")
	build := exec.Command("go", "build", "-modfile=.ci/tools/helm.mod", "-o", helm, "helm.sh/helm/v3/cmd/helm")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build helm: %v\n%s", err, out)
	}
	c.ok("chart", "export", chart)
	c.write(values, c.ok("install", "--dry-run-helm-values").out)
	wanted := c.ok("install", "--dry-run", "--yes").out
	run := func(args ...string) string {
		t.Helper()
		r := c.exec(3*time.Minute, helm, append([]string{"-n", "kube-system"}, args...)...)
		if r.code != 0 {
			t.Fatalf("helm %s: code %d\n%s", strings.Join(args, " "), r.code, r.all())
		}
		return r.out
	}
	run("install", "cilium", chart, "-f", values, "--wait")
	if list := run("list"); !strings.Contains(list, "lash-"+c.version()) || !strings.Contains(list, "deployed") {
		t.Errorf("helm list:\n%s", list)
	}
	if got := run("get", "manifest", "cilium"); strings.TrimSpace(got) != strings.TrimSpace(wanted) {
		t.Errorf("lash install --dry-run and helm install differ:\n%s\n---\n%s", wanted, got)
	}
	c.ok("status", "--wait")
	if r := c.run("connectivity", "test", "--test", "health,no-policies,dns"); r.code != 0 {
		t.Errorf("connectivity test: code %d\n%s", r.code, r.all())
	}
}
