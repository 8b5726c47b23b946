// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"lash.internal/lash/connectivity/cluster"
	"lash.internal/lash/install/image"
)

// images assembles what the tests' pods run, under the references that the suite asks for, and returns
// the archives.
func (s *suite) images(ctx context.Context, progress func(string)) ([]string, error) {
	out, err := exec.CommandContext(ctx, s.tests, "--list-images").Output()
	if err != nil {
		return nil, fmt.Errorf("which images the tests ask for: %w", err)
	}
	wanted := strings.Fields(string(out))
	specs, err := s.specs(ctx, progress)
	if err != nil {
		return nil, err
	}
	var archives []string
	for repository, spec := range specs {
		var refs []string
		for _, ref := range wanted {
			if ref == repository || strings.HasPrefix(ref, repository+":") {
				refs = append(refs, ref)
			}
		}
		if len(refs) == 0 {
			return nil, fmt.Errorf("the tests of Kubernetes %s ask for no image %s: %s", s.version, repository, strings.Join(wanted, ", "))
		}
		for _, ref := range refs {
			spec.Ref = ref
			archive, err := cluster.CacheImage(spec)
			if err != nil {
				return nil, err
			}
			archives = append(archives, archive)
		}
	}
	slices.Sort(archives)
	return archives, nil
}

// specs are the images by repository, or by reference where the suite asks for several and its tests of
// the network for one.
func (s *suite) specs(ctx context.Context, progress func(string)) (map[string]image.Spec, error) {
	box, err := busybox(ctx)
	if err != nil {
		return nil, err
	}
	dns, err := tools(box, "sh", "dig", "getent")
	if err != nil {
		return nil, err
	}
	// What the tests type in agnhost's pods; the rest of what its own image has is busybox there too.
	// Debian 12's busybox has a wget that does not survive -T.
	hands, err := tools(box, "sh", "bash", "curl", "dig", "getent", "ip", "nc", "ss", "wget")
	if err != nil {
		return nil, err
	}
	coredns, err := cluster.FindProgram(ctx, "coredns", "", progress)
	if err != nil {
		return nil, err
	}
	certs := filepath.Join(s.source, "test/images/agnhost/porter")
	agnhost := append(hands,
		image.File{Path: "/agnhost", Source: s.agnhost},
		image.File{Path: "/agnhost-2", Link: "agnhost"},
		image.File{Path: "/coredns", Source: coredns},
		image.File{Path: "/localhost.crt", Mode: 0o644, Source: filepath.Join(certs, "localhost.crt")},
		image.File{Path: "/localhost.key", Mode: 0o644, Source: filepath.Join(certs, "localhost.key")},
		image.File{Path: "/etc/wgetrc", Mode: 0o644, Data: []byte("tries = 1\n")}, // as busybox, which gives up at once
		image.File{Path: "/uploads"},
	)
	version, err := os.ReadFile(filepath.Join(s.source, "test/images/agnhost/VERSION"))
	if err != nil {
		return nil, fmt.Errorf("version of agnhost: %w", err)
	}
	const repository = "registry.k8s.io/e2e-test-images/"
	return map[string]image.Spec{
		repository + "agnhost:" + strings.TrimSpace(string(version)): {Files: agnhost, Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}},
		repository + "busybox":           {Files: box, Cmd: []string{"sh"}},
		repository + "glibc-dns-testing": {Files: dns, Cmd: []string{"sh"}},
		// The tests that ask for nginx want containers that run; nobody connects to them.
		repository + "nginx":                  {Files: box, Cmd: []string{"httpd", "-f", "-h", "/tmp"}},
		repository + "regression-issue-74839": {Files: []image.File{{Path: "/regression-issue-74839", Source: s.regress}}, Entrypoint: []string{"/regression-issue-74839"}},
		"registry.k8s.io/pause":               {Files: []image.File{{Path: "/agnhost", Source: s.agnhost}}, Entrypoint: []string{"/agnhost", "pause"}},
	}, nil
}

// busybox is a root file system whose every command is this machine's busybox.
func busybox(ctx context.Context) ([]image.File, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("the images of the tests take busybox from this machine (Debian: apt-get install busybox): %w", err)
	}
	out, err := exec.CommandContext(ctx, path, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("commands of busybox: %w", err)
	}
	files := []image.File{
		{Path: "/bin/busybox", Source: path},
		{Path: "/etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")},
		{Path: "/etc/group", Mode: 0o644, Data: []byte("root:x:0:\nnogroup:x:65534:\n")},
		{Path: "/etc/nsswitch.conf", Mode: 0o644, Data: []byte("passwd: files\ngroup: files\nhosts: files dns\n")},
		{Path: "/root"},
		{Path: "/tmp", Mode: 0o1777},
	}
	for name := range strings.FieldsSeq(string(out)) {
		if name != "busybox" {
			files = append(files, image.File{Path: "/bin/" + name, Link: "busybox"})
		}
	}
	libraries, err := cluster.Libraries(files[:1])
	return append(files, libraries...), err
}

// tools puts this machine's programs of the given names, and their libraries, into a root file system in
// place of busybox's. Without a shell among them they may be passed over: Debian's busybox, as a shell, runs
// what it has itself first.
func tools(root []image.File, names ...string) ([]image.File, error) {
	files := slices.DeleteFunc(slices.Clone(root), func(f image.File) bool {
		return f.Link != "" && slices.Contains(names, filepath.Base(f.Path))
	})
	var programs []image.File
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			return nil, fmt.Errorf("the images of the tests take %s from this machine (Debian: apt-get install bash curl bind9-dnsutils iproute2 netcat-openbsd wget): %w", name, err)
		}
		programs = append(programs, image.File{Path: "/bin/" + name, Source: path})
	}
	libraries, err := cluster.Libraries(programs)
	if err != nil {
		return nil, err
	}
	libraries = slices.DeleteFunc(libraries, func(l image.File) bool {
		return slices.ContainsFunc(files, func(f image.File) bool { return f.Path == l.Path })
	})
	return slices.Concat(files, programs, libraries), nil
}
