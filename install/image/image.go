// SPDX-License-Identifier: Apache-2.0

// Package image assembles container images from files, without a container engine, a registry
// or a shell, and knows the one image of this project: node program, CNI plugin and the names
// that its commands go by.
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"lash.internal/lash/agent/api"
)

const arch = runtime.GOARCH

// Repository is what the image is called until the user pushes it somewhere.
const Repository = "localhost/lash"

// ErrNoPayload says that the two programs of the image are neither inside nor beside this one.
var ErrNoPayload = errors.New("this build holds no node image: build with `make build`, or put lash-agent and lash-cni beside this program")

// Options say what image to save.
type Options struct {
	Repository string // default localhost/lash
	Version    string // tag, default the version of this program
	Dir        string // take lash-agent and lash-cni from this folder, whatever this program holds
}

// Ref is the reference of the image under the options.
func (o Options) Ref() string {
	if o.Repository == "" {
		o.Repository = Repository
	}
	if o.Version == "" {
		o.Version = api.Version
	}
	return o.Repository + ":" + o.Version
}

// names are what the node program is called inside the image, besides its own name.
var names = []string{"cilium", "cilium-dbg", "cilium-agent", "cilium-operator-generic"}

// Save writes the project's image to w as a docker-archive. Equal programs give equal bytes.
func Save(ctx context.Context, w io.Writer, o Options) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	spec, err := o.spec()
	if err != nil {
		return err
	}
	return spec.Write(w)
}

// spec is the project's image.
func (o Options) spec() (Spec, error) {
	agent, cni, err := o.programs()
	if err != nil {
		return Spec{}, err
	}
	agent.Path, cni.Path = "/usr/bin/lash-agent", "/opt/lash/bin/lash-cni"
	spec := Spec{
		Ref:        o.Ref(),
		Entrypoint: []string{"/usr/bin/lash-agent"},
		Labels: map[string]string{
			"org.opencontainers.image.title":    "lash",
			"org.opencontainers.image.version":  api.Version,
			"org.opencontainers.image.licenses": "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)",
		},
		Files: []File{
			agent, cni,
			{Path: "/etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n")},
			{Path: "/etc/group", Mode: 0o644, Data: []byte("root:x:0:\nnogroup:x:65534:\n")},
			{Path: "/etc/nsswitch.conf", Mode: 0o644, Data: []byte("hosts: files dns\n")},
			{Path: "/tmp", Mode: 0o1777},
		},
	}
	for _, n := range names {
		spec.Files = append(spec.Files, File{Path: "/usr/bin/" + n, Link: "lash-agent"})
	}
	return spec, nil
}

// programs finds lash-agent and lash-cni: in the given folder, in this program, beside it.
func (o Options) programs() (agent, cni File, err error) {
	if o.Dir == "" {
		a, c, err := payload()
		if err != nil {
			return agent, cni, err
		}
		if a != nil && c != nil {
			return File{Data: a}, File{Data: c}, nil
		}
		self, err := os.Executable()
		if err != nil {
			return agent, cni, fmt.Errorf("own path: %w", err)
		}
		o.Dir = filepath.Dir(self)
	}
	agent.Source, cni.Source = filepath.Join(o.Dir, "lash-agent"), filepath.Join(o.Dir, "lash-cni")
	for _, f := range []File{agent, cni} {
		if _, err := os.Stat(f.Source); err != nil {
			return agent, cni, fmt.Errorf("%w (%w)", ErrNoPayload, err)
		}
	}
	return agent, cni, nil
}
