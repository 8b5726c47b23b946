// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

type content struct {
	A int
	B string
}

func TestHalfWrittenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	v := content{A: 7}
	if err := ReadJSON(path, &v); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := Write(path, []byte(`{"A":1,"B":"x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	if err := ReadJSON(path, &v); err != nil || v != (content{1, "x"}) {
		t.Errorf("read %+v, %v", v, err)
	}
	for _, half := range []string{`{"A":2,"B"`, ``, "\x00\x00\x00", `{"A":"text"}`} {
		if err := os.WriteFile(path, []byte(half), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ReadJSON(path, &v); !errors.Is(err, ErrBroken) || v != (content{1, "x"}) {
			t.Errorf("%q: read %+v, %v", half, v, err)
		}
	}
	aside, err := SetAside(path)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(aside); err != nil || string(b) != `{"A":"text"}` {
		t.Errorf("put aside: %q, %v", b, err)
	}
}

// TestFailedWriteKeepsTheOld writes where there is no room for another file.
func TestFailedWriteKeepsTheOld(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.json")
	if err := Write(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(path, "below"), []byte("new"), 0o600); err == nil {
		t.Error("no error for a path below a file")
	}
	if b, _ := os.ReadFile(path); string(b) != "old" {
		t.Errorf("content %q", b)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("%d files left, want 1", len(entries))
	}
}
