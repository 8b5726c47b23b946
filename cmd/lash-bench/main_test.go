// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMistakes(t *testing.T) {
	for args, want := range map[string]string{
		"--family ipx":                             "use ipv4 or ipv6",
		"--render missing.jsonl":                   "missing.jsonl",
		"--max-load 0 --groups moon":               `group "moon": use some of same-node`,
		"--max-load 0 --rounds 0":                  "at least one round",
		"--max-load 0 --duration 1500ms":           "whole seconds",
		"--max-load 0 --duration 1s --rounds 1 -x": "-x",
	} {
		dir := t.TempDir()
		args := append(strings.Fields(args), "--results", dir)
		if err := run(t.Context(), args, nil, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
			t.Errorf("%q leaves %q, in which nothing is", args, left)
		}
	}
	if err := run(t.Context(), []string{"now"}, nil, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), `no argument "now"`) {
		t.Errorf("error %v", err)
	}
}

// TestRender makes the report of a file again.
func TestRender(t *testing.T) {
	dir := t.TempDir()
	results, report := filepath.Join(dir, "r.jsonl"), filepath.Join(dir, "B.md")
	line := `{"time":"2030-01-02T03:04:05Z","machine":{"kernel":"6.18","command":"make bench ROUNDS=3"}}` + "\n"
	if err := os.WriteFile(results, []byte(line), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"--render", results, "--report", report}, nil, io.Discard, io.Discard); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(report)
	if err != nil || !bytes.Contains(text, []byte("on 2 January 2030 by `make bench ROUNDS=3`")) {
		t.Errorf("%v:\n%s", err, text)
	}
}
