// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"path"
	"testing"
)

// FuzzLayer: whatever files an image is to have, the layer is refused, or it is a tar in which
// every folder comes before what is in it, once, and every file has its content.
func FuzzLayer(f *testing.F) {
	f.Add("/usr/bin/a", "text", "/usr/bin/b", "link", true)
	f.Add("/a", "x", "/a/b", "y", false)
	f.Add("/a", "x", "/a", "y", false)
	f.Add("/../a/./b", "", "//c", "z", false)
	f.Add("/"+string(bytes.Repeat([]byte("long/"), 60)), "x", "/\x00", "y", true)
	f.Add("/ü", "x", "/u\n", "y", true)
	f.Fuzz(func(t *testing.T, p1, text, p2, other string, link bool) {
		files := []File{{Path: p1, Data: []byte(text)}}
		if link && other != "" {
			files = append(files, File{Path: p2, Link: other})
		} else {
			files = append(files, File{Path: p2, Data: []byte(other)})
		}
		layer, err := Spec{Ref: "a:b", Files: files}.layer()
		if err != nil {
			return
		}
		seen, content := map[string]byte{".": tar.TypeDir}, map[string]string{}
		for r := tar.NewReader(bytes.NewReader(layer)); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			name := path.Clean(h.Name)
			if _, twice := seen[name]; twice || seen[path.Dir(name)] != tar.TypeDir {
				t.Fatalf("%q comes twice, or before its folder", h.Name)
			}
			seen[name] = h.Typeflag
			body, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			content[name] = h.Linkname + string(body)
		}
		for i, want := range []string{text, other} {
			if got := content[path.Clean("."+path.Clean(files[i].Path))]; got != want {
				t.Errorf("%q has %q, want %q", files[i].Path, got, want)
			}
		}
	})
}
