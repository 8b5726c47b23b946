// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	cliterm "lash.internal/lash/cmd/term"
	"lash.internal/lash/status/sysdump"
)

func TestSysdumpFlags(t *testing.T) {
	for want, args := range map[string][]string{
		`invalid --max-size "lots": want a size such as 20Mi`: {"--max-size", "lots"},
		`invalid --max-size "1Ki": want at least 16Ki`:        {"--max-size", "1Ki"},
		`invalid --max-time 1s: want at least 2s`:             {"--max-time", "1s"},
		`invalid --worker-count 0: want 1 or more`:            {"--worker-count", "0"},
		`invalid --logs-limit-bytes "-1"`:                     {"--logs-limit-bytes", "-1"},
		`invalid --extra-label-selectors`:                     {"--extra-label-selectors", "a in"},
		`not supported: there is no Hubble`:                   {"--hubble-flows-count", "10000"},
		`cluster unreachable`:                                 {"--quick"},
	} {
		code, _, stderr := lash(t, unreachable, append([]string{"sysdump"}, args...)...)
		wantCode := ExitUsage
		if want == "cluster unreachable" {
			wantCode = ExitUnreachable
		}
		if code != wantCode || !strings.Contains(stderr, want) {
			t.Errorf("%v: code %d, %q", args, code, stderr)
		}
	}
}

func TestSysdumpWritesOneFile(t *testing.T) {
	c := released(t, map[string]any{})
	if _, err := c.Clientset.CoreV1().Nodes().Create(context.Background(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.Dynamic = dynamicClient()
	dir := t.TempDir()
	f := sysdumpFlags{output: filepath.Join(dir, "dump-<ts>"), maxSize: "1Mi", logBytes: "1Ki"}
	f.MaxTime, f.Workers = 10*time.Second, 2
	if err := f.complete(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	// A kind that the client does not know ends a fake with a panic, so only agents are asked.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w, out, _ := testWorld()
	err := takeSysdump(ctx, w, &f, c)
	if err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
		t.Errorf("after Ctrl-C: %v", err)
	}
	name := filepath.Join(dir, "dump-20260102-030405.zip")
	if strings.TrimSpace(out.String()) != name {
		t.Errorf("printed %q", out)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != filepath.Base(name) {
		t.Errorf("folder: %v, %v", entries, err)
	}
}

func TestSysdumpSaysWhatIsMissing(t *testing.T) {
	w, _, errOut := testWorld()
	var failed []sysdump.Missing
	for _, f := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		failed = append(failed, sysdump.Missing{File: f, Why: "no answer within 15s\nmore"})
	}
	printSysdump(cliterm.New(errOut, w.Getenv), &sysdump.Result{
		Files: 12, Size: 3 << 20, Failed: failed, Skipped: []sysdump.Missing{{File: "x", Why: "no room left (--max-size)"}},
		Redacted: map[string]int{"bearer tokens": 2, "data of Secrets": 1}, Nodes: []sysdump.Node{{Name: "n1", Sick: "no agent"}, {Name: "n2"}},
	})
	statusGolden(t, "sysdump", errOut.String())
}
