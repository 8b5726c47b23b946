// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // the sources of what is built below
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"
)

// modulesArchive holds go.mod, go.sum and tools.go of the nested modules, which the compiler
// cannot embed from where they are. A test keeps it equal to them.
//
//go:generate go test . -run TestModulesArchive -update
//go:embed modules.txtar
var modulesArchive []byte

// nodeSource is the helper program of the nodes.
//
//go:embed node/main.go
var nodeSource []byte

// product is a group of programs that are built together at one version.
type product struct {
	name     string // of the cache folder
	folder   string // the nested module that pins it
	module   string // whose version counts
	packages string // import path of the programs, without the last element
	programs []string
	version  []string                    // arguments that make a program print its version; none: never take it from PATH
	ldflags  func(version string) string // beside -s -w
}

var products = []product{
	{
		name: "kubernetes", folder: "kube", module: "k8s.io/kubernetes", packages: "k8s.io/kubernetes/cmd/",
		programs: []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"},
		version:  []string{"--version"},
		ldflags: func(v string) string {
			parts := strings.Split(strings.TrimPrefix(v, "v"), ".")
			const base = "k8s.io/component-base/version."
			return fmt.Sprintf("-X %[1]sgitVersion=%[2]s -X %[1]sgitMajor=%[3]s -X %[1]sgitMinor=%[4]s -X k8s.io/client-go/pkg/version.gitVersion=%[2]s",
				base, v, parts[0], parts[1])
		},
	},
	{
		name: "etcd", folder: "kube", module: "go.etcd.io/etcd/server/v3", packages: "go.etcd.io/etcd/server/v3",
		programs: []string{"etcd"}, version: []string{"--version"},
	},
	{
		name: "containerd", folder: "containerd", module: "github.com/containerd/containerd/v2",
		packages: "github.com/containerd/containerd/v2/cmd/",
		programs: []string{"containerd", "containerd-shim-runc-v2", "ctr"}, version: []string{"-v"},
		ldflags: func(v string) string { return "-X github.com/containerd/containerd/v2/version.Version=" + v },
	},
	{
		name: "coredns", folder: "coredns", module: "github.com/coredns/coredns", packages: "github.com/coredns/coredns",
		programs: []string{"coredns"}, version: []string{"-version"},
	},
	{
		name: "plugins", folder: "plugins", module: "github.com/containernetworking/plugins",
		packages: "github.com/containernetworking/plugins/plugins/",
		programs: []string{"main/loopback", "main/ptp", "ipam/host-local", "meta/portmap"},
	},
}

// programs is where each program was found, by its base name, and the versions of the products.
type programs struct {
	path     map[string]string
	versions map[string]string
}

// CacheDir is the folder of the user's cache that outlives clusters: bin or images.
func CacheDir(kind string) (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cache folder: %w", err)
	}
	return filepath.Join(base, "lash", kind), nil
}

// findPrograms locates all programs and builds the ones that are nowhere.
func findPrograms(ctx context.Context, binDir string, progress func(string)) (*programs, error) {
	cache, err := CacheDir("bin")
	if err != nil {
		return nil, err
	}
	found := &programs{path: map[string]string{}, versions: map[string]string{}}
	for _, p := range products {
		v, err := pinnedVersion(p.folder, p.module)
		if err != nil {
			return nil, err
		}
		found.versions[p.name] = v
		if err := p.find(ctx, v, binDir, filepath.Join(cache, p.name+"-"+v), found.path, progress); err != nil {
			return nil, err
		}
	}
	sum := sha256.Sum256(nodeSource)
	found.versions["node"] = hex.EncodeToString(sum[:6])
	found.path["node"], err = buildNode(ctx, filepath.Join(cache, "node-"+found.versions["node"]), progress)
	if err != nil {
		return nil, err
	}
	if found.path["runc"], err = exec.LookPath("runc"); err != nil {
		return nil, fmt.Errorf("runc is not installed (Debian: apt-get install runc): %w", err)
	}
	return found, nil
}

// Version is the version of a product of clusters, such as kubernetes.
func Version(product string) (string, error) {
	for _, p := range products {
		if p.name == product {
			return pinnedVersion(p.folder, p.module)
		}
	}
	return "", fmt.Errorf("no product of a local cluster is called %s", product)
}

// FindProgram locates one of the third-party programs of clusters, by its base name, and builds it if it
// is nowhere.
func FindProgram(ctx context.Context, name, binDir string, progress func(string)) (string, error) {
	cache, err := CacheDir("bin")
	if err != nil {
		return "", err
	}
	for _, p := range products {
		if !slices.ContainsFunc(p.programs, func(prog string) bool { return filepath.Base(prog) == name }) {
			continue
		}
		v, err := pinnedVersion(p.folder, p.module)
		if err != nil {
			return "", err
		}
		found := map[string]string{}
		err = p.find(ctx, v, binDir, filepath.Join(cache, p.name+"-"+v), found, progress)
		return found[name], err
	}
	return "", fmt.Errorf("no program of a local cluster is called %s", name)
}

// find puts the path of every program of p into found.
func (p product) find(ctx context.Context, version, binDir, cache string, found map[string]string, progress func(string)) error {
	for _, prog := range p.programs {
		base := filepath.Base(prog)
		if path := p.ready(ctx, base, version, binDir); path != "" {
			found[base] = path
			continue
		}
		path := filepath.Join(cache, base)
		if _, err := os.Stat(path); err != nil {
			pkg := p.packages
			if strings.HasSuffix(pkg, "/") {
				pkg += prog
			}
			progress(fmt.Sprintf("building %s %s (once; kept in %s)", base, version, cache))
			flags := "-s -w"
			if p.ldflags != nil {
				flags += " " + p.ldflags(version)
			}
			files, err := moduleFiles(p.folder)
			if err != nil {
				return err
			}
			if err := Build(ctx, Program{Files: files, Package: pkg, LDFlags: flags}, path, progress); err != nil {
				return err
			}
		}
		found[base] = path
	}
	return nil
}

// ready looks for a program of the right version in binDir and PATH.
func (p product) ready(ctx context.Context, base, version, binDir string) string {
	var candidates []string
	if binDir != "" {
		candidates = append(candidates, filepath.Join(binDir, base))
	}
	if path, err := exec.LookPath(base); err == nil && len(p.version) > 0 {
		candidates = append(candidates, path)
	}
	for _, path := range candidates {
		path, err := filepath.Abs(path)
		if err != nil {
			continue
		}
		if _, err := os.Stat(path); err != nil {
			continue
		}
		if len(p.version) == 0 {
			return path // these print no version, and were pointed at on purpose
		}
		args := p.version
		if base == "kubectl" {
			args = []string{"version", "--client"}
		}
		out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
		if err == nil && hasVersion(string(out), version) {
			return path
		}
	}
	return ""
}

// hasVersion tells whether what a program printed names exactly this version.
func hasVersion(out, version string) bool {
	want := strings.TrimPrefix(version, "v")
	for _, field := range strings.FieldsFunc(out, func(r rune) bool { return strings.ContainsRune(" \t\n,:\"", r) }) {
		field = strings.TrimPrefix(field, "CoreDNS-")
		if strings.TrimPrefix(field, "v") == want {
			return true
		}
	}
	return false
}

// moduleFiles are the files of a nested module by base name.
func moduleFiles(folder string) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, f := range txtar.Parse(modulesArchive).Files {
		if dir, base := filepath.Split(f.Name); dir == folder+"/" {
			files[base] = f.Data
		}
	}
	if files["go.mod"] == nil {
		return nil, fmt.Errorf("no nested module %s in this build", folder)
	}
	return files, nil
}

// pinnedVersion reads the version of a module out of the go.mod of a nested module.
func pinnedVersion(folder, module string) (string, error) {
	files, err := moduleFiles(folder)
	if err != nil {
		return "", err
	}
	for line := range strings.SplitSeq(string(files["go.mod"]), "\n") {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(fields) >= 2 && fields[0] == module && strings.HasPrefix(fields[1], "v") {
			return fields[1], nil
		}
	}
	return "", fmt.Errorf("nested module %s does not pin %s", folder, module)
}

// buildNode builds the nodes' helper program from its embedded source.
func buildNode(ctx context.Context, dir string, progress func(string)) (string, error) {
	path := filepath.Join(dir, "node")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	files := map[string][]byte{
		"go.mod":  []byte("module node\n\ngo 1.26.0\n"),
		"main.go": nodeSource,
	}
	if err := Build(ctx, Program{Files: files, Package: "node", LDFlags: "-s -w"}, path, progress); err != nil {
		return "", err
	}
	return path, nil
}

// Program is a program that Go can build from a module that is given whole.
type Program struct {
	Files   map[string][]byte // of the module's root folder, by base name
	Package string            // import path, or a path relative to the root
	Test    bool              // the package's tests are the program
	LDFlags string
}

// Build builds a program in a throw-away module, unless out is there. Two commands that want the same
// program wait for each other.
func Build(ctx context.Context, p Program, out string, progress func(string)) error {
	name := filepath.Base(out)
	goTool, err := exec.LookPath("go")
	if err != nil {
		return fmt.Errorf("%s has to be built, for which Go is needed (or point --bin-dir at a folder that has it): %w", name, err)
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return fmt.Errorf("cache folder: %w", err)
	}
	lock, err := lockDir(filepath.Dir(out), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := os.Stat(out); err == nil {
		return nil // built while we waited
	}
	dir, err := os.MkdirTemp("", "lash-build-*")
	if err != nil {
		return fmt.Errorf("build %s: %w", name, err)
	}
	defer os.RemoveAll(dir)
	for base, data := range p.Files {
		if err := os.WriteFile(filepath.Join(dir, base), data, 0o644); err != nil {
			return fmt.Errorf("build %s: %w", name, err)
		}
	}
	started := time.Now()
	stop := heartbeat(progress, 30*time.Second, func() string {
		return fmt.Sprintf("still building %s (%s)", name, time.Since(started).Round(time.Second))
	})
	defer stop()
	var log bytes.Buffer
	verb := []string{"build"}
	if p.Test {
		verb = []string{"test", "-c", "-vet=off"}
	}
	cmd := exec.CommandContext(ctx, goTool, append(verb, "-trimpath", "-ldflags", p.LDFlags, "-o", out+".part", p.Package)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Run(); err != nil {
		return errors.Join(fmt.Errorf("build %s: %w: %s", name, err, lastLines(log.String(), 12)), ctx.Err())
	}
	if err := os.Rename(out+".part", out); err != nil {
		return fmt.Errorf("build %s: %w", name, err)
	}
	return nil
}

// heartbeat reports every d until it is stopped.
func heartbeat(progress func(string), d time.Duration, text func() string) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(d)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				progress(text())
			}
		}
	}()
	return func() { close(done); <-ended }
}

// lastLines is the end of a log, at most n lines.
func lastLines(log string, n int) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
