// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"lash.internal/lash/connectivity/cluster"
)

// suite is what has been built of the nested module.
type suite struct {
	version string // of Kubernetes
	source  string // folder of its module
	tests   string // the test binary
	ginkgo  string // what runs it in several processes
	agnhost string // the program of the tests' pods
	regress string // a server that sends segments out of window
}

// buildSuite builds what is not in the user's cache. dir is the folder of the nested module.
func buildSuite(ctx context.Context, dir string, progress func(string)) (*suite, error) {
	files := map[string][]byte{}
	paths, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return nil, fmt.Errorf("sources of the suite: %w", err)
	}
	slices.Sort(paths)
	sum := sha256.New()
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			return nil, fmt.Errorf("sources of the suite: %w", err)
		}
		files[filepath.Base(p)] = data
		fmt.Fprintf(sum, "%s %d\n%s", filepath.Base(p), len(data), data)
	}
	if files["go.mod"] == nil {
		return nil, fmt.Errorf("%s holds no module: run this in a checkout of the repository", dir)
	}
	out, err := exec.CommandContext(ctx, "go", "mod", "download", "-C", dir, "-json", "k8s.io/kubernetes").Output()
	if err != nil {
		return nil, fmt.Errorf("module of Kubernetes: %w: %s", err, out)
	}
	var module struct{ Version, Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return nil, fmt.Errorf("module of Kubernetes: %w", err)
	}
	cache, err := cluster.CacheDir("bin")
	if err != nil {
		return nil, err
	}
	cache = filepath.Join(cache, "conformance-"+module.Version+"-"+hex.EncodeToString(sum.Sum(nil)[:6]))
	s := &suite{
		version: module.Version, source: module.Dir,
		tests: filepath.Join(cache, "e2e.test"), ginkgo: filepath.Join(cache, "ginkgo"),
		agnhost: filepath.Join(cache, "agnhost"), regress: filepath.Join(cache, "regression-issue-74839"),
	}
	stamp := "-s -w -X k8s.io/component-base/version.gitVersion=" + module.Version
	for _, p := range []struct {
		out, pkg string
		test     bool
	}{
		{s.ginkgo, "github.com/onsi/ginkgo/v2/ginkgo", false},
		{s.agnhost, "k8s.io/kubernetes/test/images/agnhost", false},
		{s.regress, "k8s.io/kubernetes/test/images/regression-issue-74839", false},
		{s.tests, ".", true},
	} {
		if _, err := os.Stat(p.out); err == nil {
			continue
		}
		progress(fmt.Sprintf("building %s of Kubernetes %s (once; kept in %s)", filepath.Base(p.out), module.Version, cache))
		err := cluster.Build(ctx, cluster.Program{Files: files, Package: p.pkg, Test: p.test, LDFlags: stamp}, p.out, progress)
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}
