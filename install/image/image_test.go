// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// programsIn makes a folder with stand-ins for the two programs.
func programsIn(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range []string{"lash-agent", "lash-cni"} {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("program "+n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestSave reads the image back as a container engine would.
func TestSave(t *testing.T) {
	var first, second bytes.Buffer
	o := Options{Dir: programsIn(t), Version: "9.9.9"}
	for _, w := range []*bytes.Buffer{&first, &second} {
		if err := Save(t.Context(), w, o); err != nil {
			t.Fatal(err)
		}
		o.Dir = programsIn(t) // same programs, other place and time
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same programs give other bytes")
	}
	tag, err := name.NewTag("localhost/lash:9.9.9")
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(first.Bytes())), nil }, &tag)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Config.Entrypoint) != 1 || cfg.Config.Entrypoint[0] != "/usr/bin/lash-agent" || cfg.OS != "linux" {
		t.Errorf("configuration: %+v", cfg.Config)
	}
	rootfs := mutate.Extract(img)
	defer rootfs.Close()
	got := map[string]string{}
	for tr := tar.NewReader(rootfs); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		got["/"+h.Name] = h.Linkname + string(text)
	}
	for path, want := range map[string]string{
		"/usr/bin/lash-agent":              "program lash-agent",
		"/opt/lash/bin/lash-cni":           "program lash-cni",
		"/usr/bin/cilium":                  "lash-agent",
		"/usr/bin/cilium-dbg":              "lash-agent",
		"/usr/bin/cilium-agent":            "lash-agent",
		"/usr/bin/cilium-operator-generic": "lash-agent",
	} {
		if got[path] != want {
			t.Errorf("%s is %q, want %q", path, got[path], want)
		}
	}
	if _, ok := got["/etc/passwd"]; !ok {
		t.Error("no /etc/passwd")
	}
}

func TestSaveWithoutPrograms(t *testing.T) {
	err := Save(t.Context(), io.Discard, Options{Dir: t.TempDir()})
	if !errors.Is(err, ErrNoPayload) {
		t.Errorf("got %v, want no payload", err)
	}
}

func TestBadSpec(t *testing.T) {
	for _, s := range []Spec{
		{Ref: "UPPER:case", Files: []File{{Path: "/a"}}},
		{Ref: "a:b", Files: []File{{Path: "relative"}}},
		{Ref: "a:b", Files: []File{{Path: "/missing", Source: "/does/not/exist"}}},
		{Ref: "a:b", Files: []File{{Path: "/twice", Data: []byte("x")}, {Path: "/./twice", Link: "y"}}},
		{Ref: "a:b", Files: []File{{Path: "/file/inside", Data: []byte("x")}, {Path: "/file", Data: []byte("x")}}},
	} {
		if err := s.Write(io.Discard); err == nil {
			t.Errorf("%+v was written", s)
		}
	}
}
