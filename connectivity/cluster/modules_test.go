// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write modules.txtar from the nested modules")

// TestModulesArchive holds the embedded copy of the nested modules equal to them.
func TestModulesArchive(t *testing.T) {
	paths, err := filepath.Glob("*/go.mod")
	if err != nil || len(paths) == 0 {
		t.Fatalf("nested modules: %v %v", paths, err)
	}
	var want txtar.Archive
	for _, mod := range paths {
		for _, base := range []string{"go.mod", "go.sum", "tools.go"} {
			name := filepath.Join(filepath.Dir(mod), base)
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			want.Files = append(want.Files, txtar.File{Name: filepath.ToSlash(name), Data: data})
		}
	}
	slices.SortFunc(want.Files, func(a, b txtar.File) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	data := txtar.Format(&want)
	if *update {
		if err := os.WriteFile("modules.txtar", data, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(data, modulesArchive) {
		t.Error("modules.txtar is not what the nested modules say: run go test ./connectivity/cluster -run TestModulesArchive -update")
	}
}
