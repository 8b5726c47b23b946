// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// edit changes one text in one file of the sources.
type edit struct{ file, from, to string }

// changedPrograms are programs that differ, over the same maps.
var changedPrograms = []edit{{"bpf/lib/event.h", "#define EVT_WAKE (64 << 10)", "#define EVT_WAKE (32 << 10)"}}

// changedLayout are flow tables whose entries have another form.
var changedLayout = []edit{
	{"bpf/digest.go", "CtABI  = 2", "CtABI  = 3"},
	{"bpf/src/types.c", "sizeof(struct ct4) == 64", "sizeof(struct ct4) == 72"},
	{"bpf/include/maps_abi.h", `struct ct4 {
	struct ct c;
`, `struct ct4 {
	__u64 more;
	struct ct c;
`},
	{"bpf/include/maps_abi.h", `struct ct6 {
	struct ct c;
`, `struct ct6 {
	__u64 more;
	struct ct c;
`},
	{"bpf/include/maps_abi.h", "	__u8 pad[8];\n};\n\n/* frag4", "};\n\n/* frag4"},
	{"bpf/include/ct_prev.h", "struct ct4_prev {\n	struct ct4 e;\n};", `struct ct4_prev {
	struct ct c;
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
};`},
	{"bpf/include/ct_prev.h", "struct ct6_prev {\n	struct ct6 e;\n};", `struct ct6_prev {
	struct ct c;
	__u8 saddr[16];
	__u8 daddr[16];
	__be16 sport;
	__be16 dport;
	__u8 pad[8];
};`},
	{"bpf/include/ct_prev.h", "*new = old->e;\n}\n\n", `new->more = 1;
	new->c = old->c;
	new->saddr = old->saddr;
	new->daddr = old->daddr;
	new->sport = old->sport;
	new->dport = old->dport;
}

`},
	{"bpf/include/ct_prev.h", "*new = old->e;\n}\n", `new->more = 1;
	new->c = old->c;
	__builtin_memcpy(new->saddr, old->saddr, 16);
	__builtin_memcpy(new->daddr, old->daddr, 16);
	new->sport = old->sport;
	new->dport = old->dport;
}
`},
}

// build makes a CLI of another version from changed sources, with the given GOFLAGS, and loads its image
// into the nodes.
func (c *cluster) build(version, flags string, edits []edit) string {
	c.t.Helper()
	dir := c.t.TempDir()
	run := func(command string) {
		c.t.Helper()
		cmd := exec.Command("sh", "-ec", command)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOFLAGS="+flags)
		if out, err := cmd.CombinedOutput(); err != nil {
			c.t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		c.t.Fatal(err)
	}
	run(fmt.Sprintf("git -C %[1]s ls-files -co --exclude-standard -z | tar -C %[1]s --null -T - -c | tar -x", root))
	chart, err := os.ReadFile(filepath.Join(dir, "chart", "Chart.yaml"))
	if err != nil {
		c.t.Fatal(err)
	}
	_, rest, _ := strings.Cut("\n"+string(chart), "\nversion:")
	own, _, _ := strings.Cut(rest, "\n") // what runs in the cluster may be another build
	edits = append(edits, edit{"chart/Chart.yaml", "\nversion:" + own, "\nversion: " + version})
	for _, e := range edits {
		path := filepath.Join(dir, e.file)
		text, err := os.ReadFile(path)
		if err != nil {
			c.t.Fatal(err)
		}
		if !bytes.Contains(text, []byte(e.from)) {
			c.t.Fatalf("%s lacks %q", e.file, e.from)
		}
		if err := os.WriteFile(path, []byte(strings.Replace(string(text), e.from, e.to, 1)), 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
	run("go generate ./bpf && make -s build")
	lash := filepath.Join(dir, "bin", "lash")
	c.loadImage(lash)
	return lash
}

// TestBuildEdits says early when sources have moved away from under the edits.
func TestBuildEdits(t *testing.T) {
	for _, e := range append(append([]edit{}, changedPrograms...), changedLayout...) {
		text, err := os.ReadFile(filepath.Join("../..", e.file))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(text, []byte(e.from)) {
			t.Errorf("%s lacks %q", e.file, e.from)
		}
	}
}
