// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"lash.internal/lash/install/image"
)

func (k *making) pauseRef() string { return "localhost/pause:" + k.programs.versions["node"] }

func (k *making) dnsRef() string { return "localhost/coredns:" + k.programs.versions["coredns"] }

func (k *making) proxyRef() string {
	return "localhost/kube-proxy:" + k.programs.versions["kubernetes"]
}

// prepareImages assembles the images that a cluster needs before anything is installed, or takes
// them from the user's cache when they would be made of the same files.
func (k *making) prepareImages(ctx context.Context) error {
	specs := []image.Spec{
		{
			Ref: k.pauseRef(), Entrypoint: []string{"/pause"}, User: "65535:65535",
			Files: []image.File{{Path: "/pause", Source: k.programs.path["node"]}},
		},
		{
			Ref: k.dnsRef(), Entrypoint: []string{"/coredns"}, User: "65532:65532",
			Files: []image.File{{Path: "/coredns", Source: k.programs.path["coredns"]}},
		},
	}
	if k.o.KubeProxy != "none" {
		proxy, err := k.proxySpec()
		if err != nil {
			return err
		}
		specs = append(specs, proxy)
	}
	for _, spec := range specs {
		if err := ctx.Err(); err != nil {
			return err
		}
		path, err := CacheImage(spec)
		if err != nil {
			return err
		}
		k.images = append(k.images, path)
	}
	return nil
}

// CacheImage writes an image into the user's cache unless it is there, drops older makes of it and
// returns the path of its archive.
func CacheImage(spec image.Spec) (string, error) {
	dir, err := CacheDir("images")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("image cache: %w", err)
	}
	name := strings.NewReplacer("/", "_", ":", "_").Replace(strings.TrimPrefix(spec.Ref, "localhost/"))
	print, err := fingerprint(spec)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", spec.Ref, err)
	}
	path := filepath.Join(dir, name+"-"+print+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	old, err := filepath.Glob(filepath.Join(dir, name+"-*.tar"))
	if err != nil {
		return "", fmt.Errorf("image cache: %w", err)
	}
	f, err := os.CreateTemp(dir, ".image-*")
	if err != nil {
		return "", fmt.Errorf("image cache: %w", err)
	}
	defer os.Remove(f.Name())
	err = errors.Join(spec.Write(f), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return "", err
	}
	for _, o := range old {
		_ = os.Remove(o) // a stale copy costs room, nothing else; a reader keeps what it has open
	}
	return path, nil
}

// fingerprint names what an image is made of: by content, or, for files of this machine, by
// path, size and time of change.
func fingerprint(spec image.Spec) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s %q %q %s\n", spec.Ref, spec.Entrypoint, spec.Cmd, spec.User)
	for _, f := range spec.Files {
		fmt.Fprintf(h, "%s %o %s %q", f.Path, f.Mode, f.Link, f.Data)
		if f.Source != "" {
			info, err := os.Stat(f.Source)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(h, " %s %d %d", f.Source, info.Size(), info.ModTime().UnixNano())
		}
		fmt.Fprintln(h)
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// proxySpec is kube-proxy with this machine's iptables, nft and conntrack and their libraries.
func (k *making) proxySpec() (image.Spec, error) {
	spec := image.Spec{
		Ref: k.proxyRef(), Entrypoint: []string{"/usr/local/bin/kube-proxy"},
		Files: []image.File{
			{Path: "/usr/local/bin/kube-proxy", Source: k.programs.path["kube-proxy"]},
			{Path: "/run"},
			{Path: "/tmp", Mode: 0o1777},
			{Path: "/var/lib"},
			{Path: "/etc/protocols", Mode: 0o644, Data: []byte("ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\n")},
		},
	}
	names := []string{
		"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore",
		"iptables-nft", "iptables-nft-save", "ip6tables-nft", "ip6tables-nft-save",
	}
	for _, tool := range []string{"xtables-nft-multi", "nft", "conntrack", "ipset"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			return spec, fmt.Errorf("the kube-proxy image takes %s from this machine (Debian: apt-get install iptables nftables conntrack ipset): %w", tool, err)
		}
		spec.Files = append(spec.Files, image.File{Path: "/usr/sbin/" + tool, Source: path})
	}
	for _, n := range names {
		spec.Files = append(spec.Files, image.File{Path: "/usr/sbin/" + n, Link: "xtables-nft-multi"})
	}
	for _, dir := range libraryDirs {
		extensions, err := filepath.Glob(filepath.Join(dir, "xtables", "*.so"))
		if err != nil {
			return spec, fmt.Errorf("iptables extensions: %w", err)
		}
		for _, so := range extensions {
			spec.Files = append(spec.Files, image.File{Path: so, Source: so})
		}
	}
	libs, err := Libraries(spec.Files)
	spec.Files = append(spec.Files, libs...)
	return spec, err
}

// libraryDirs are where the dynamic linker looks, most specific first.
var libraryDirs = []string{"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"}

// Libraries finds this machine's shared objects, and its dynamic linker, that programs of this machine
// need in an image.
func Libraries(files []image.File) ([]image.File, error) {
	seen := map[string]bool{}
	var out []image.File
	var objects []string
	add := func(path string) {
		if !seen[path] {
			seen[path] = true
			out, objects = append(out, image.File{Path: path, Source: path}), append(objects, path)
		}
	}
	for _, f := range files {
		if f.Source != "" {
			objects = append(objects, f.Source)
		}
	}
	for i := 0; i < len(objects); i++ {
		needed, interp, err := elfNeeds(objects[i])
		if err != nil {
			return nil, fmt.Errorf("libraries of %s: %w", objects[i], err)
		}
		if interp != "" {
			add(interp)
		}
		for _, name := range needed {
			path, err := findLibrary(name)
			if err != nil {
				return nil, fmt.Errorf("libraries of %s: %w", objects[i], err)
			}
			if filepath.Base(interp) != name {
				add(path)
			}
		}
	}
	return out, nil
}

func elfNeeds(path string) (needed []string, interp string, err error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		raw, err := io.ReadAll(p.Open())
		if err != nil {
			return nil, "", err
		}
		interp = strings.TrimRight(string(raw), "\x00")
	}
	needed, err = f.ImportedLibraries()
	return needed, interp, err
}

func findLibrary(name string) (string, error) {
	for _, dir := range libraryDirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

// LoadImage imports an image archive (docker-archive or OCI layout, plain or compressed) into
// every node.
func LoadImage(ctx context.Context, stateDir, name, file string) error {
	c, err := Get(stateDir, name)
	if err != nil {
		return err
	}
	return c.loadImage(ctx, file)
}

// LoadOwnImage imports the image of this project, as Save of package image writes it.
func LoadOwnImage(ctx context.Context, stateDir, name string, o image.Options) error {
	f, err := os.CreateTemp("", "lash-image-*.tar")
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	defer os.Remove(f.Name())
	if err := errors.Join(image.Save(ctx, f, o), f.Close()); err != nil {
		return err
	}
	return LoadImage(ctx, stateDir, name, f.Name())
}

func (c *Cluster) loadImage(ctx context.Context, file string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range c.kubeNodes() {
		g.Go(func() error {
			m, err := c.machineOf(n.Name)
			if err != nil {
				return err
			}
			if err := m.waitContainerd(ctx); err != nil {
				return err
			}
			f, err := os.Open(file)
			if err != nil {
				return fmt.Errorf("image: %w", err)
			}
			defer f.Close()
			return m.run(ctx, process{
				path: "ctr", in: f, out: io.Discard,
				args: []string{"--address", containerdSocket, "--namespace", "k8s.io", "images", "import", "-"},
			})
		})
	}
	return g.Wait()
}

// HasImage says whether a node of a cluster has an image, given by its full reference.
func HasImage(ctx context.Context, stateDir, name, node, ref string) (bool, error) {
	var out, errOut bytes.Buffer
	code, err := Exec(ctx, stateDir, name, node, []string{
		"ctr", "--address", containerdSocket, "--namespace", "k8s.io", "images", "list", "-q", "name==" + ref,
	}, nil, &out, &errOut)
	if err != nil {
		return false, err
	}
	if code != 0 {
		return false, fmt.Errorf("listing the images of %s: %s", node, strings.TrimSpace(errOut.String()))
	}
	return strings.TrimSpace(out.String()) == ref, nil
}

// waitContainerd waits until the node's containerd answers.
func (m *machine) waitContainerd(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := m.inside(func() error {
			_, err := os.Stat(containerdSocket)
			return err
		})
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: containerd does not come up: %w (%w)", m.name, context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}
