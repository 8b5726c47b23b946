// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// lash runs a command line with a kubeconfig of the given text.
func lash(t *testing.T, kubeconfig string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	code = Main(World{
		In: strings.NewReader(""), Out: &out, Err: &errOut, Getenv: func(string) string { return "" },
		Args: append(args, "--kubeconfig", file),
	})
	return code, out.String(), errOut.String()
}

// unreachable has a server where nothing listens.
const unreachable = `{apiVersion: v1, kind: Config, current-context: c,
 clusters: [{name: k, cluster: {server: "https://127.0.0.1:1"}}],
 users: [{name: u, user: {}}],
 contexts: [{name: c, context: {cluster: k, user: u}}]}`

func TestInstallExitCodes(t *testing.T) {
	for name, c := range map[string]struct {
		kubeconfig string
		args       []string
		code       int
		want       string
	}{
		"not YAML":            {"{", []string{"install"}, ExitUnreachable, "invalid kubeconfig"},
		"no cluster":          {"", []string{"install"}, ExitUnreachable, "invalid kubeconfig"},
		"no such context":     {unreachable, []string{"install", "--context", "other"}, ExitUnreachable, `no context "other"`},
		"nobody answers":      {unreachable, []string{"install"}, ExitUnreachable, "cluster unreachable: the API server https://127.0.0.1:1 of context \"c\""},
		"uninstall":           {unreachable, []string{"uninstall"}, ExitUnreachable, "cluster unreachable"},
		"unknown flag":        {unreachable, []string{"install", "--nonsense"}, ExitUsage, "unknown flag: --nonsense"},
		"value without equal": {unreachable, []string{"install", "--set", "x"}, ExitUsage, "reading the values"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, stderr := lash(t, c.kubeconfig, c.args...)
			if code != c.code || !strings.Contains(stderr, c.want) {
				t.Errorf("code %d, want %d; %q lacks %q", code, c.code, stderr, c.want)
			}
		})
	}
}

func TestVersionClientAsksNobody(t *testing.T) {
	code, stdout, stderr := lash(t, unreachable, "version", "--client")
	if code != ExitOK || !strings.HasPrefix(stdout, "lash: v") || stderr != "" {
		t.Errorf("code %d, %q, %q", code, stdout, stderr)
	}
	if code, stdout, _ = lash(t, unreachable, "version", "--client", "-o", "json"); code != ExitOK || !strings.Contains(stdout, `"ciliumVersion"`) {
		t.Errorf("code %d, %q", code, stdout)
	}
}

func TestListVersions(t *testing.T) {
	code, stdout, _ := lash(t, unreachable, "install", "--list-versions")
	if code != ExitOK || !strings.Contains(stdout, "1.16.x") {
		t.Errorf("code %d, %q", code, stdout)
	}
}

func TestChartExport(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "chart")
	if code, _, stderr := lash(t, "", "chart", "export", dir); code != ExitOK {
		t.Fatal(stderr)
	}
	for _, f := range []string{"Chart.yaml", "values.yaml", "values.schema.json", "templates/_helpers.tpl", "templates/daemonset.yaml"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			t.Error(err)
		}
	}
	if code, _, stderr := lash(t, "", "chart", "export", dir); code != ExitFailed || !strings.Contains(stderr, "is not empty") {
		t.Errorf("second export: code %d, %q", code, stderr)
	}
}
