// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"

	"helm.sh/helm/v3/pkg/action"
	helmchart "helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/storage"
	"helm.sh/helm/v3/pkg/storage/driver"

	"lash.internal/lash/chart"
)

// loadChart is the embedded chart, or the one in dir, with the level as its app version.
func loadChart(dir, level string) (*helmchart.Chart, error) {
	var (
		c   *helmchart.Chart
		err error
	)
	if dir == "" {
		c, err = chart.Load()
	} else {
		c, err = loader.LoadDir(dir)
	}
	if err != nil {
		if dir != "" {
			return nil, badOption("loading the chart in %s: %w", dir, err)
		}
		return nil, fmt.Errorf("loading the chart: %w", err)
	}
	if c.Name() != chart.Name {
		return nil, badOption("the chart in %s is %q: this program installs charts named %q, as `lash chart export` writes them", dir, c.Name(), chart.Name)
	}
	c.Metadata.AppVersion = level
	return c, nil
}

// render is the manifest that Helm would apply, without asking the cluster.
func render(c *helmchart.Chart, cl *Cluster, kubeVersion string, vals map[string]any) (string, error) {
	in := action.NewInstall(&action.Configuration{
		Log:      func(string, ...any) {},
		Releases: storage.Init(driver.NewMemory()),
	})
	in.DryRun, in.ClientOnly, in.Replace = true, true, true
	in.ReleaseName, in.Namespace = cl.Release, cl.Namespace
	if v, err := chartutil.ParseKubeVersion(kubeVersion); err == nil {
		in.KubeVersion = v
	}
	rel, err := in.Run(c, vals)
	if err != nil {
		return "", fmt.Errorf("rendering the chart: %w", err)
	}
	return rel.Manifest, nil
}

// Existing reads the newest revision of the release; nil when there is none.
func Existing(c *Cluster) (*release.Release, error) {
	rel, err := storageOf(c).Last(c.Release)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the Helm release %s: %w", c.Release, err)
	}
	return rel, nil
}

// Ours says whether a release is of this project's chart.
func Ours(r *release.Release) bool {
	return r.Chart != nil && r.Chart.Name() == chart.Name
}

// storageOf is where Helm keeps the revisions of releases: secrets.
func storageOf(c *Cluster) *storage.Storage {
	return storage.Init(driver.NewSecrets(c.Clientset.CoreV1().Secrets(c.Namespace)))
}

// configuration is Helm's connection to the cluster.
func configuration(c *Cluster, historyMax int, log func(string, ...any)) (*action.Configuration, error) {
	if c.helm != nil {
		cfg := c.helm()
		cfg.Releases.MaxHistory = historyMax
		return cfg, nil
	}
	cfg := &action.Configuration{}
	if err := cfg.Init(c.Getter, c.Namespace, "secret", log); err != nil {
		return nil, fmt.Errorf("connecting Helm to the cluster: %w", err)
	}
	cfg.Releases.MaxHistory = historyMax
	return cfg, nil
}

// Apply installs what the plan holds as a Helm release. It does not wait for pods.
func Apply(ctx context.Context, c *Cluster, p *Plan, o Options) (*release.Release, error) {
	cfg, err := configuration(c, o.HistoryMax, func(string, ...any) {})
	if err != nil {
		return nil, err
	}
	in := action.NewInstall(cfg)
	in.ReleaseName, in.Namespace = c.Release, c.Namespace
	in.CreateNamespace = c.Namespace != "kube-system"
	in.Description = "installed by lash"
	rel, err := in.RunWithContext(ctx, p.Chart, p.Values)
	if err != nil {
		return nil, fmt.Errorf("installing the Helm release %s: %w", c.Release, err)
	}
	return rel, nil
}
