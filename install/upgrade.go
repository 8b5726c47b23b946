// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/Masterminds/semver/v3"
	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/storage/driver"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lash.internal/lash/install/values"
)

// Reuse says which earlier values an upgrade starts from.
type Reuse int

const (
	// ResetThenReuse takes the new chart's defaults and the values that the user gave before.
	ResetThenReuse Reuse = iota
	// ReuseAll takes everything from the release, its chart's defaults included.
	ReuseAll
	// Reset forgets what was given before.
	Reset
)

// ErrInterrupted is a release that an operation has left half done.
var ErrInterrupted = errors.New("an earlier operation did not end")

// Upgrade plans a change of an existing release of ours. It only reads.
func Upgrade(ctx context.Context, c *Cluster, o Options, reuse Reuse) (*Change, error) {
	if err := checkValues(o); err != nil {
		return nil, err
	}
	rel, err := current(c)
	if err != nil {
		return nil, err
	}
	ch := &Change{From: rel, cluster: c, options: o}
	given := merge(ch.fromFlags(), orEmpty(o.Values))
	before := orEmpty(rel.Config)
	if reuse == Reset {
		before = map[string]any{}
	}
	ch.Values = overlay(before, given)
	level, _ := lookup(ch.Values, "compatibility.level").(string)
	if o.Version != "" || level == "" {
		if level, err = resolveVersion(o.Version); err != nil {
			return nil, err
		}
		own := map[string]any{"compatibility": map[string]any{"level": level}}
		ch.Values = merge(ch.Values, own)
		if o.Version != "" {
			given = merge(given, own)
		}
	}
	if _, err := values.Check(ch.Values); err != nil {
		return nil, fmt.Errorf("%w (kept from revision %d; KEY=null takes a value away)", err, rel.Version)
	}
	if ch.Chart, err = loadChart(o.ChartDir, level); err != nil {
		return nil, err
	}
	if reuse == ReuseAll && rel.Chart != nil {
		ch.Chart.Values = earlierDefaults(ch.Chart.Values, rel.Chart.Values)
	}
	return ch, ch.plan(ctx, given)
}

// earlierDefaults are the values of a chart with an earlier chart's for the keys that both have.
func earlierDefaults(now, before map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range now {
		out[k] = v
		old, had := before[k]
		a, aok := v.(map[string]any)
		b, bok := old.(map[string]any)
		switch {
		case !had:
		case aok && bok && len(a) > 0:
			out[k] = earlierDefaults(a, b)
		default:
			out[k] = old
		}
	}
	return out
}

// fromFlags are values that flags other than --set stand for.
func (ch *Change) fromFlags() map[string]any {
	d := derivation{f: &Facts{}, out: map[string]any{}, user: orEmpty(ch.options.Values), mode: ch.options.DatapathMode, say: ch.options.Say}
	if ch.options.DatapathMode != "" {
		d.datapath()
	}
	if ch.options.NodesWithoutNetwork {
		d.nodesWithout()
	}
	return d.out
}

// plan renders the manifest and finds out what the change does.
func (ch *Change) plan(ctx context.Context, given map[string]any) error {
	c := ch.cluster
	v, err := c.Clientset.Discovery().ServerVersion()
	if err != nil {
		return fmt.Errorf("asking for the server's version: %w", err)
	}
	if ch.To == nil {
		if ch.Manifest, err = render(ch.Chart, c, v.GitVersion, ch.Values); err != nil {
			return err
		}
		if err := judge(ch.Manifest); err != nil {
			return err
		}
	}
	if err := ch.compare(given); err != nil {
		return err
	}
	if err := ch.findDrift(ctx); err != nil {
		return err
	}
	nodes, err := c.Clientset.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing nodes: %w", err)
	}
	p := &Plan{Manifest: ch.Manifest, Values: ch.Values, Facts: &Facts{Nodes: nodes.Items}, imageOnNode: ch.options.ImageOnNode}
	if ch.Findings, err = images(ctx, c, p); err != nil {
		return err
	}
	pools, err := ch.pools(ctx)
	if err != nil {
		return err
	}
	ch.Findings = slices.Concat(ch.Findings, ch.downgrade(), pools)
	return nil
}

// downgrade is a finding when the chart gets older.
func (ch *Change) downgrade() []Finding {
	if ch.To != nil || ch.From.Chart == nil || ch.From.Chart.Metadata == nil {
		return nil
	}
	old, err1 := semver.NewVersion(ch.From.Chart.Metadata.Version)
	now, err2 := semver.NewVersion(ch.Chart.Metadata.Version)
	if err1 != nil || err2 != nil || !now.LessThan(old) {
		return nil
	}
	return []Finding{{
		Level: Ask, What: "this is a downgrade",
		Evidence: fmt.Sprintf("the release is of %s, this program brings %s", chartOf(ch.From.Chart), chartOf(ch.Chart)),
		Next:     "use the program of the newer version, or `lash rollback` to go back to a revision that ran here",
	}}
}

// current is the revision that is in effect: the deployed one, or the last of a release that never
// was.
func current(c *Cluster) (*release.Release, error) {
	if f, err := ForeignRelease(c); err != nil {
		return nil, err
	} else if f != nil {
		return nil, fmt.Errorf("%w: %s (%s): %s", ErrForeign, f.What, f.Evidence, f.Next)
	}
	last, err := Existing(c)
	if err != nil {
		return nil, err
	}
	if last == nil {
		return nil, fmt.Errorf("%w: there is no Helm release %s in namespace %s of context %q; use `lash install`", ErrNotInstalled, c.Release, c.Namespace, c.Context)
	}
	if last.Info.Status == release.StatusDeployed {
		return last, nil
	}
	if last.Info.Status.IsPending() {
		next := "`lash rollback`"
		if last.Version == 1 {
			next = "`lash uninstall`, then `lash install`"
		}
		return last, fmt.Errorf("%w: release %s is in state %s since %s; if nobody is at work on it, run %s",
			ErrInterrupted, c.Release, last.Info.Status, last.Info.LastDeployed.Format(time.RFC3339), next)
	}
	rel, err := storageOf(c).Deployed(c.Release)
	if errors.Is(err, driver.ErrNoDeployedReleases) || errors.Is(err, driver.ErrReleaseNotFound) {
		return last, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the Helm release %s: %w", c.Release, err)
	}
	return rel, nil
}

func orEmpty(m map[string]any) map[string]any {
	if m == nil {
		return map[string]any{}
	}
	return m
}

// overlay lays new values over earlier ones. A null takes an earlier value away, so that the
// chart's default counts again; where there was none it stays, and takes that default away.
func overlay(before, now map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range before {
		out[k] = v
	}
	for k, v := range now {
		old, had := out[k]
		a, aok := old.(map[string]any)
		b, bok := v.(map[string]any)
		switch {
		case v == nil && had && old != nil:
			delete(out, k)
		case aok && bok:
			out[k] = overlay(a, b)
		default:
			out[k] = v
		}
	}
	return out
}

// Apply makes the new revision. It does not wait for pods.
func (ch *Change) Apply(ctx context.Context) (*release.Release, error) {
	cfg, err := configuration(ch.cluster, ch.options.HistoryMax, func(string, ...any) {})
	if err != nil {
		return nil, err
	}
	if ch.To != nil {
		return ch.applyRollback(cfg)
	}
	up := action.NewUpgrade(cfg)
	up.Namespace, up.MaxHistory = ch.cluster.Namespace, ch.options.HistoryMax
	up.ResetValues = true // Values is complete
	up.Description = "upgraded by lash"
	rel, err := up.RunWithContext(ctx, ch.cluster.Release, ch.Chart, ch.Values)
	if err != nil {
		return nil, fmt.Errorf("upgrading the Helm release %s: %w", ch.cluster.Release, err)
	}
	return rel, nil
}
