// SPDX-License-Identifier: Apache-2.0

// Package install puts the network into a cluster and takes it out again. Up to Apply it only
// reads: detect what the cluster is, derive values, look for obstacles, render the chart.
//
//	Detect -> Values -> Preflight -> Render -> Apply
package install

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"lash.internal/lash/agent/api"
)

// Names of the workloads in the cluster.
const (
	agentDaemonSet     = "cilium"
	operatorDeployment = "cilium-operator"
)

// Sentinels of Plan; test with errors.Is.
var (
	ErrInstalled = errors.New("already installed")
	ErrForeign   = errors.New("another network is in the way")
	ErrPreflight = errors.New("the cluster is not ready for it")
)

// OptionError is a mistake in what the user asked for, as opposed to an obstacle in the cluster.
type OptionError struct{ Err error }

func (e *OptionError) Error() string { return e.Err.Error() }

// Unwrap returns the mistake itself.
func (e *OptionError) Unwrap() error { return e.Err }

// badOption makes an OptionError.
func badOption(format string, args ...any) error {
	return &OptionError{fmt.Errorf(format, args...)}
}

// Cluster is where to install, as the kubeconfig and the flags name it.
type Cluster struct {
	Clientset kubernetes.Interface
	Dynamic   dynamic.Interface                  // for uninstall and its verification
	Getter    genericclioptions.RESTClientGetter // for Helm; not used before Apply

	Context   string // kubeconfig context
	Name      string // kubeconfig cluster entry
	Server    string // URL of the API server in the kubeconfig
	Namespace string // where agent and operator run
	Release   string // name of the Helm release

	helm func() *action.Configuration // a test's stand-in for Helm's connection
}

// Options is what the user asks for.
type Options struct {
	Version             string         // our version, or a Cilium version that is reported as compatibility level
	ChartDir            string         // chart to use instead of the embedded one
	Values              map[string]any // from -f and --set
	DatapathMode        string         // "", tunnel, native, or one that is refused
	NodesWithoutNetwork bool           // leave out nodes labelled cilium.io/no-schedule=true
	HistoryMax          int            // revisions that Helm keeps

	// ImageOnNode asks a node itself whether it has an image, where there is a way; known is false
	// where there is none, and the node's status decides. May be nil.
	ImageOnNode func(ctx context.Context, node, image string) (have, known bool)
	// Say receives one line of progress; never nil.
	Say func(format string, args ...any)
}

// Validate finds the mistakes that show without asking a cluster; each is an *OptionError.
func (o Options) Validate() error {
	if _, err := resolveVersion(o.Version); err != nil {
		return err
	}
	o.Say = func(string, ...any) {} // Make tells the notices
	return checkValues(o)
}

// Plan is all that Apply needs, and what a dry run prints.
type Plan struct {
	Chart    *chart.Chart
	Values   map[string]any // detected ones and the user's; the chart's defaults are not in it
	Facts    *Facts
	Findings []Finding
	Manifest string

	imageOnNode func(ctx context.Context, node, image string) (have, known bool)
}

// Make reads the cluster and returns the plan. Errors are mistakes of the user (*OptionError) or an
// unreachable cluster; obstacles in the cluster are findings of the plan.
func Make(ctx context.Context, c *Cluster, o Options) (*Plan, error) {
	p := &Plan{imageOnNode: o.ImageOnNode}
	var level string
	steps := []func() error{
		func() (err error) { level, err = resolveVersion(o.Version); return err },
		func() error { return checkValues(o) },
		func() (err error) { p.Chart, err = loadChart(o.ChartDir, level); return err },
		func() (err error) { p.Facts, err = detect(ctx, c, o.Values); return err },
		func() error { p.Facts.Say(level, o.Say); return nil },
		func() (err error) { p.Values, err = derive(p.Facts, o, level, o.Say); return err },
		func() (err error) { p.Manifest, err = render(p.Chart, c, p.Facts.KubeVersion, p.Values); return err },
		func() error { return judge(p.Manifest) },
		func() (err error) { p.Findings, err = preflight(ctx, c, p); return err },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// resolveVersion turns --version into the compatibility level that is reported.
func resolveVersion(v string) (level string, err error) {
	v = strings.TrimPrefix(v, "v")
	switch {
	case v == "", v == api.Version:
		return api.CiliumVersion, nil
	case isLevel(v):
		return v, nil
	}
	return "", badOption("there is no version %s: this program installs %s; a Cilium version 1.15.x or 1.16.x is accepted as compatibility level",
		v, api.Version)
}

// isLevel says whether v is a Cilium version of the two lines that can be reported.
func isLevel(v string) bool {
	patch, ok := strings.CutPrefix(v, "1.16.")
	if !ok {
		patch, ok = strings.CutPrefix(v, "1.15.")
	}
	return ok && patch != "" && len(patch) <= 3 && strings.Trim(patch, "0123456789") == ""
}

// Versions lists what --version takes: each version of ours with its compatibility level, then the
// patterns of levels.
func Versions() [][2]string {
	return [][2]string{
		{api.Version, "Cilium " + api.CiliumVersion},
		{"1.16.x", "Lash " + api.Version + " that reports this Cilium version"},
		{"1.15.x", "Lash " + api.Version + " that reports this Cilium version"},
	}
}
