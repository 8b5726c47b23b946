// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File is one entry of an image's file system. Exactly one of Source, Data and Link is set; none
// of them makes a folder.
type File struct {
	Path   string // absolute, in the image
	Mode   int64  // permission bits; 0 means 0755
	Source string // a file of this machine
	Data   []byte
	Link   string // target of a symbolic link
}

// Spec describes an image of one layer.
type Spec struct {
	Ref        string // repository:tag
	Files      []File
	Entrypoint []string
	Cmd        []string // arguments of the entrypoint when a container gives none
	Env        []string
	User       string // uid or uid:gid, root when empty
	Labels     map[string]string
}

// Write writes the image as a docker-archive, which containerd, Docker, podman and skopeo read.
// Equal specs give equal bytes: entries are sorted and carry no time and no owner but root.
func (s Spec) Write(w io.Writer) error {
	ref, err := name.NewTag(s.Ref)
	if err != nil {
		return fmt.Errorf("image reference: %w", err)
	}
	img, err := s.build(plainLayer)
	if err != nil {
		return err
	}
	if err := tarball.Write(ref, img, w); err != nil {
		return fmt.Errorf("write image %s: %w", s.Ref, err)
	}
	return nil
}

// plainLayer is a layer for an archive: its reader unpacks it at once, so it is not compressed.
func plainLayer(files []byte) (v1.Layer, error) {
	return static.NewLayer(files, types.DockerUncompressedLayer), nil
}

func (s Spec) build(layerOf func(files []byte) (v1.Layer, error)) (v1.Image, error) {
	files, err := s.layer()
	if err != nil {
		return nil, err
	}
	layer, err := layerOf(files)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Ref, err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Ref, err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Ref, err)
	}
	cfg = cfg.DeepCopy()
	cfg.Architecture, cfg.OS = arch, "linux"
	cfg.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	cfg.History = nil
	cfg.Config = v1.Config{
		Entrypoint: s.Entrypoint,
		Cmd:        s.Cmd,
		Env:        append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, s.Env...),
		User:       s.User,
		Labels:     s.Labels,
		WorkingDir: "/",
	}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Ref, err)
	}
	return img, nil
}

// layer is the tar of all files with the folders that they need.
func (s Spec) layer() ([]byte, error) {
	entries := map[string]File{}
	given := map[string]bool{}
	for _, f := range s.Files {
		if !path.IsAbs(f.Path) {
			return nil, fmt.Errorf("image %s: path %q is not absolute", s.Ref, f.Path)
		}
		f.Path = strings.TrimPrefix(path.Clean(f.Path), "/")
		if f.Path == "" {
			return nil, errors.New("image: the root folder needs no entry")
		}
		if given[f.Path] {
			return nil, fmt.Errorf("image %s: there are two files /%s", s.Ref, f.Path)
		}
		given[f.Path], entries[f.Path] = true, f
	}
	for _, f := range s.Files {
		f.Path = strings.TrimPrefix(path.Clean(f.Path), "/")
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			if parent, ok := entries[dir]; !ok {
				entries[dir] = File{Path: dir}
			} else if !parent.isDir() {
				return nil, fmt.Errorf("image %s: /%s is no folder, and /%s is to be in it", s.Ref, dir, f.Path)
			}
		}
	}
	var names []string
	for n := range entries {
		names = append(names, n)
	}
	slices.Sort(names)
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, n := range names {
		if err := entries[n].write(tw); err != nil {
			return nil, fmt.Errorf("image %s: %s: %w", s.Ref, n, err)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Ref, err)
	}
	return buf.Bytes(), nil
}

func (f File) isDir() bool { return f.Link == "" && f.Source == "" && f.Data == nil }

func (f File) write(tw *tar.Writer) error {
	h := &tar.Header{Name: f.Path, Mode: f.Mode, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	if len(f.Path) > 100 || len(f.Link) > 100 {
		h.Format = tar.FormatPAX
	}
	if h.Mode == 0 {
		h.Mode = 0o755
	}
	data := f.Data
	switch {
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
	case f.Source != "":
		var err error
		if data, err = os.ReadFile(f.Source); err != nil {
			return err
		}
		h.Typeflag, h.Size = tar.TypeReg, int64(len(data))
	case f.Data != nil:
		h.Typeflag, h.Size = tar.TypeReg, int64(len(data))
	default:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := tw.Write(data)
	return err
}
