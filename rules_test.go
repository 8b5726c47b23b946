// SPDX-License-Identifier: Apache-2.0

package lash

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
)

const module = "lash.internal/lash/"

// source is one Go file of the project.
type source struct {
	path    string // slash-separated, from the root
	file    *ast.File
	fset    *token.FileSet
	text    string
	imports []string
	test    bool
}

func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			name := d.Name()
			_, nested := os.Stat(filepath.Join(p, "go.mod"))
			if p != "." && (nested == nil || strings.HasPrefix(name, ".") || name == "node_modules" || name == "bin") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, p, text, parser.ParseComments)
		if err != nil {
			return err
		}
		s := source{path: filepath.ToSlash(p), file: f, fset: fset, text: string(text), test: strings.HasSuffix(p, "_test.go")}
		for _, im := range f.Imports {
			s.imports = append(s.imports, strings.Trim(im.Path.Value, `"`))
		}
		out = append(out, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s source) generated() bool { return ast.IsGenerated(s.file) }

func under(p string, dirs ...string) bool {
	for _, d := range dirs {
		if p == d || strings.HasPrefix(p, d+"/") {
			return true
		}
	}
	return false
}

// TestRootFolders holds the root to its fixed set of folders.
func TestRootFolders(t *testing.T) {
	allowed := []string{
		"cmd", "install", "status", "connectivity", "perf", "agent", "bpf", "chart", "bin",
		".ci", ".git", "LICENSES", "go.mod", "go.sum", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md",
		"BENCHMARKS.md", "LICENSE", "NOTICE", "Makefile", ".golangci.yml", ".clang-format", ".gitignore",
		".gitattributes", "rules_test.go",
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(allowed, e.Name()) {
			t.Errorf("%s is not one of the root's folders and files", e.Name())
		}
	}
}

// TestDependencyRule holds imports to one direction.
func TestDependencyRule(t *testing.T) {
	features := []string{"agent/identity", "agent/ipam", "agent/policy", "agent/service", "agent/node", "agent/cni", "agent/health"}
	type rule struct {
		why    string
		in     func(p string) bool // where it holds
		forbid func(im string) bool
	}
	ours := func(im string, dirs ...string) bool {
		rest, ok := strings.CutPrefix(im, module)
		return ok && under(rest, dirs...)
	}
	rules := []rule{
		{
			"agent imports nothing of the CLI's side",
			func(p string) bool { return under(p, "agent") },
			func(im string) bool { return ours(im, "cmd", "install", "status", "connectivity", "perf") },
		},
		{
			"bpf, agent/api and chart import nothing of ours",
			func(p string) bool {
				return (path.Dir(p) == "bpf" || under(p, "agent/api") || under(p, "chart"))
			},
			func(im string) bool { return strings.HasPrefix(im, module) && im != module+"agent/api" },
		},
		{
			"agent/config is shared with the CLI: it imports the standard library only",
			func(p string) bool { return under(p, "agent/config") },
			func(im string) bool { return strings.Contains(im, ".") },
		},
		{
			"of the agent, the CLI's side imports api and config only",
			func(p string) bool { return under(p, "cmd/cli", "cmd/kube", "cmd/term", "install", "status") },
			func(im string) bool { return ours(im, "agent") && !ours(im, "agent/api", "agent/config") },
		},
		{
			"install, status, connectivity and perf do not import cmd",
			func(p string) bool { return under(p, "install", "status", "connectivity", "perf") },
			func(im string) bool { return ours(im, "cmd") },
		},
		{
			"only cmd imports cobra and lipgloss",
			func(p string) bool { return !under(p, "cmd") },
			func(im string) bool {
				return strings.HasPrefix(im, "github.com/spf13/cobra") || strings.HasPrefix(im, "github.com/charmbracelet/")
			},
		},
		{
			"the in-pod commands link no lipgloss",
			func(p string) bool { return under(p, "cmd/pod", "cmd/lash-agent", "cmd/measure") },
			func(im string) bool {
				return strings.HasPrefix(im, "github.com/charmbracelet/") || ours(im, "cmd/term")
			},
		},
		{
			"what runs in pods links no bench",
			func(p string) bool {
				return under(p, "cmd/pod", "cmd/lash-agent", "cmd/measure", "perf/netperf", "perf/stats")
			},
			func(im string) bool { return ours(im, "perf/bench", "perf/lab", "perf/scale", "connectivity/cluster") },
		},
		{
			"only install and chart import helm (cmd/cli reads its value flags)",
			func(p string) bool { return !under(p, "install", "chart", "cmd/cli") },
			func(im string) bool { return strings.HasPrefix(im, "helm.sh/helm") },
		},
		{
			"only agent/datapath and agent/flow touch cilium/ebpf",
			func(p string) bool {
				return !under(p, "agent/datapath", "agent/flow", "bpf", "connectivity/cluster", "connectivity/e2e")
			},
			func(im string) bool { return strings.HasPrefix(im, "github.com/cilium/ebpf") },
		},
		{
			"only agent/datapath, agent/flow, the CNI plugin and the local cluster touch netlink",
			func(p string) bool {
				return !under(p, "agent/datapath", "agent/flow", "cmd/lash-cni", "connectivity/cluster", "bpf")
			},
			func(im string) bool { return strings.HasPrefix(im, "github.com/vishvananda/netlink") },
		},
		{
			"only agent/kube and agent/operator hold informers",
			func(p string) bool { return under(p, "agent") && !under(p, "agent/kube", "agent/operator") },
			func(im string) bool {
				return strings.HasPrefix(im, "k8s.io/client-go/informers") || im == "k8s.io/client-go/tools/cache"
			},
		},
		{
			"features do not import datapath",
			func(p string) bool { return under(p, features...) },
			func(im string) bool { return ours(im, "agent/datapath") },
		},
	}
	for _, f := range features {
		rules = append(rules, rule{
			"features do not import each other",
			func(p string) bool { return under(p, f) },
			func(im string) bool {
				return ours(im, slices.DeleteFunc(slices.Clone(features), func(o string) bool { return o == f })...)
			},
		})
	}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		for _, r := range rules {
			if !r.in(s.path) {
				continue
			}
			for _, im := range s.imports {
				if r.forbid(im) {
					t.Errorf("%s imports %s: %s", s.path, im, r.why)
				}
			}
		}
		for _, im := range s.imports {
			if strings.HasPrefix(im, "github.com/cilium/cilium") {
				t.Errorf("%s imports %s: wire formats are declared by us", s.path, im)
			}
		}
	}
}

// TestLicenceHeaders wants the licence in the first lines of each file.
func TestLicenceHeaders(t *testing.T) {
	for _, s := range sources(t) {
		if !s.generated() && !strings.Contains(firstLines(s.text, 3), "SPDX-License-Identifier: Apache-2.0") {
			t.Errorf("%s: no Apache-2.0 line at the head", s.path)
		}
	}
	for _, dir := range []string{"bpf/src", "bpf/lib", "bpf/include"} {
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(path.Join(dir, f.Name()))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(firstLines(string(b), 3), "SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)") {
				t.Errorf("%s/%s: no GPL-2.0-only OR BSD-2-Clause line at the head", dir, f.Name())
			}
		}
	}
}

func firstLines(s string, n int) string {
	lines := strings.SplitN(s, "\n", n+1)
	return strings.Join(lines[:min(n, len(lines))], "\n")
}

// TestPackageSentences wants a doc comment on every package.
func TestPackageSentences(t *testing.T) {
	has := map[string]bool{}
	for _, s := range sources(t) {
		if s.test || s.generated() {
			continue
		}
		dir := path.Dir(s.path)
		has[dir] = has[dir] || s.file.Doc.Text() != ""
	}
	for dir, ok := range has {
		if !ok {
			t.Errorf("package %s has no doc comment", dir)
		}
	}
}

// TestNoInit forbids init functions: order is visible data.
func TestNoInit(t *testing.T) {
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" && !s.generated() {
				t.Errorf("%s has an init function", s.path)
			}
		}
	}
}

// TestBudgets bounds the length of functions and the number of files a package.
func TestBudgets(t *testing.T) {
	var lengths []int
	files := map[string]int{}
	for _, s := range sources(t) {
		if s.test || s.generated() {
			continue
		}
		files[path.Dir(s.path)]++
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			n := s.fset.Position(f.End()).Line - s.fset.Position(f.Pos()).Line + 1
			lengths = append(lengths, n)
			if n > 120 {
				t.Errorf("%s: %s has %d lines, at most 120", s.path, f.Name.Name, n)
			}
		}
	}
	for dir, n := range files {
		if n > 25 {
			t.Errorf("package %s has %d files, at most 25", dir, n)
		}
	}
	sort.Ints(lengths)
	if p95 := lengths[len(lengths)*95/100]; p95 > 60 {
		t.Errorf("95 %% of the functions have up to %d lines, at most 60", p95)
	}
}
