// SPDX-License-Identifier: Apache-2.0

package nodeinit

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestInstallCNIReplacesAtomicallyAndOnce(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "plugin"), filepath.Join(dir, "bin", "cilium-cni")
	write := func(s string) {
		if err := os.WriteFile(from, []byte(s), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	for i, want := range []bool{true, false} {
		if done, err := InstallCNI(from, to); err != nil || done != want {
			t.Fatalf("run %d: done %v, %v", i, done, err)
		}
	}
	write("two")
	if done, err := InstallCNI(from, to); err != nil || !done {
		t.Fatalf("new plugin: done %v, %v", done, err)
	}
	b, _ := os.ReadFile(to)
	st, _ := os.Stat(to)
	if string(b) != "two" || st.Mode().Perm() != 0o755 {
		t.Fatalf("installed %q with mode %v", b, st.Mode())
	}
	if files, _ := os.ReadDir(filepath.Dir(to)); len(files) != 1 {
		t.Fatalf("temporary files left: %v", files)
	}
}

func TestCleanGoesOnAfterErrors(t *testing.T) {
	dir := t.TempDir()
	conf, state := filepath.Join(dir, "05-cilium.conflist"), filepath.Join(dir, "state")
	if err := os.MkdirAll(filepath.Join(state, "endpoints"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	results := filepath.Join(dir, "results")
	if err := os.Mkdir(results, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"cilium-0123-eth0", "other-0123-eth0"} {
		if err := os.WriteFile(filepath.Join(results, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	boom := errors.New("boom")
	err := Clean(context.Background(), Traces{CNIConf: conf, CNIPlugin: filepath.Join(dir, "none"), Results: results, Folders: []string{state, filepath.Join(dir, "absent")}},
		func(context.Context) error {
			if _, err := os.Stat(conf); err == nil {
				t.Error("the CNI configuration has to go before the programs do")
			}
			return boom
		})
	if !errors.Is(err, boom) {
		t.Fatalf("error lost: %v", err)
	}
	if left, _ := os.ReadDir(state); len(left) != 0 {
		t.Fatalf("state left: %v", left)
	}
	if left, _ := os.ReadDir(results); len(left) != 1 || left[0].Name() != "other-0123-eth0" {
		t.Fatalf("results of CNI plugins left: %v", left)
	}
}

func TestMainNamesWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "init needs a step: mount-bpffs"},
		{[]string{"mount"}, `unknown init step "mount"`},
		{[]string{"mount-bpffs", "x"}, `takes no argument "x"`},
		{[]string{"mount-cgroup", "--path", t.TempDir(), "--host-cgroup", t.TempDir()}, "no cgroup2 hierarchy"},
		{[]string{"install-cni", "--from", "/nonexistent"}, "CNI plugin in the image"},
	} {
		var out, errw bytes.Buffer
		code := Main(context.Background(), c.args, World{Out: &out, Err: &errw, Getenv: func(string) string { return "" }})
		if code == 0 || !strings.Contains(errw.String(), c.want) {
			t.Errorf("%q: code %d, %q lacks %q", c.args, code, errw.String(), c.want)
		}
	}
}

func TestCleanStateActsOnlyWhenAsked(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		args []string
		want bool
	}{
		{nil, nil, false},
		{map[string]string{"CILIUM_ALL_STATE": "false", "CILIUM_BPF_STATE": "false"}, nil, false},
		{map[string]string{"CILIUM_BPF_STATE": "true", "BPF_ROOT": "/bpf"}, nil, true},
		{nil, []string{"--bpf", "--bpf-root", "/bpf"}, true},
	} {
		cleaned := false
		var out bytes.Buffer
		code := Main(context.Background(), append([]string{"clean-state"}, c.args...), World{
			Out: &out, Err: &out, Getenv: func(k string) string { return c.env[k] },
			CleanKernel: func(_ context.Context, root string) error {
				if cleaned = true; root != "/bpf" {
					t.Errorf("BPF root %q", root)
				}
				return nil
			},
		})
		if code != 0 || cleaned != c.want {
			t.Errorf("%v %v: code %d, cleaned %v: %s", c.env, c.args, code, cleaned, out.String())
		}
	}
}
