// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"fmt"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/release"
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

// Change is an upgrade that is ready to be applied.
type Change struct {
	From   *release.Release
	Values map[string]any // the user's, complete

	cluster *Cluster
	options Options
	level   string
}

// Upgrade plans a change of an existing release of ours. It only reads.
func Upgrade(c *Cluster, o Options, reuse Reuse) (*Change, error) {
	if err := checkValues(o); err != nil {
		return nil, err
	}
	if f, err := ForeignRelease(c); err != nil {
		return nil, err
	} else if f != nil {
		return nil, fmt.Errorf("%w: %s (%s): %s", ErrForeign, f.What, f.Evidence, f.Next)
	}
	rel, err := Existing(c)
	if err != nil {
		return nil, err
	}
	if rel == nil {
		return nil, fmt.Errorf("%w: there is no Helm release %s in namespace %s of context %q; use `lash install`", ErrNotInstalled, c.Release, c.Namespace, c.Context)
	}
	before := rel.Config
	switch reuse {
	case ReuseAll:
		before = merge(rel.Chart.Values, rel.Config)
	case Reset:
		before = map[string]any{}
	}
	ch := &Change{From: rel, cluster: c, options: o, Values: merge(orEmpty(before), orEmpty(o.Values))}
	old, _ := lookup(ch.Values, "compatibility.level").(string)
	if o.Version != "" || old == "" {
		if old, err = resolveVersion(o.Version); err != nil {
			return nil, err
		}
		ch.Values = merge(ch.Values, map[string]any{"compatibility": map[string]any{"level": old}})
	}
	ch.level = old
	return ch, nil
}

func orEmpty(m map[string]any) map[string]any {
	if m == nil {
		return map[string]any{}
	}
	return m
}

// Apply runs the upgrade, or with dryRun asks the API server what it would say. It does not wait
// for pods.
func (ch *Change) Apply(ctx context.Context, dryRun bool) (*release.Release, error) {
	cfg, err := configuration(ch.cluster, ch.options.HistoryMax, func(string, ...any) {})
	if err != nil {
		return nil, err
	}
	c, err := loadChart(ch.options.ChartDir, ch.level)
	if err != nil {
		return nil, err
	}
	up := action.NewUpgrade(cfg)
	up.Namespace, up.MaxHistory, up.DryRun = ch.cluster.Namespace, ch.options.HistoryMax, dryRun
	up.ResetValues = true // Values is complete
	up.Description = "upgraded by lash"
	rel, err := up.RunWithContext(ctx, ch.cluster.Release, c, ch.Values)
	if err != nil {
		return nil, fmt.Errorf("upgrading the Helm release %s: %w", ch.cluster.Release, err)
	}
	return rel, nil
}
