// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckInotify(t *testing.T) {
	proc := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkInotify(proc, 3); err != nil {
		t.Errorf("no limit: %v", err)
	}
	write("sys/fs/inotify/max_user_instances", "50\n")
	if err := checkInotify(proc, 3); err != nil {
		t.Errorf("48 of 50: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(proc, "12/fd"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, fd := range []string{"3", "4", "5"} {
		if err := os.Symlink("anon_inode:inotify", filepath.Join(proc, "12/fd", fd)); err != nil {
			t.Fatal(err)
		}
	}
	err := checkInotify(proc, 3)
	if !errors.Is(err, ErrNoInotify) || !strings.Contains(err.Error(), "3 of 50 are in use") || !strings.Contains(err.Error(), "sysctl -w fs.inotify.max_user_instances=1024") {
		t.Errorf("got %v", err)
	}
}
