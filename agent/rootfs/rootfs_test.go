// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestLinksLeadWhereTheyLeadOnTheNode(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		os.MkdirAll(filepath.Join(root, "run/cilium"), 0o755), os.MkdirAll(filepath.Join(root, "var"), 0o755),
		os.Symlink("/run", filepath.Join(root, "var/run")), os.Symlink("../../../run", filepath.Join(root, "up")),
	); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/var/run/cilium": "/run/cilium", "/up/cilium": "/run/cilium", "/run": "/run", "/": ""} {
		if got, err := Path(root, path); err != nil || got != root+want {
			t.Errorf("%s: %s, %v", path, got, err)
		}
	}
	if _, err := Path(root, "/var/run/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
}
