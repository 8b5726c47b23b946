// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/storage/driver"
)

// ErrNoRevision is a revision of the release that there is not.
var ErrNoRevision = errors.New("no such revision")

// Revision is one entry of a release's history, in the form that `helm history -o json` has.
type Revision struct {
	Revision    int       `json:"revision"`
	Updated     time.Time `json:"updated"`
	Status      string    `json:"status"`
	Chart       string    `json:"chart"`
	AppVersion  string    `json:"app_version"`
	Description string    `json:"description"`
}

// History lists the revisions of the release that Helm has kept, oldest first.
func History(c *Cluster) ([]Revision, error) {
	all, err := revisions(c)
	if err != nil {
		return nil, err
	}
	out := make([]Revision, 0, len(all))
	for _, r := range all {
		row := Revision{Revision: r.Version, Chart: chartOf(r.Chart)}
		if r.Info != nil {
			row.Updated, row.Status, row.Description = r.Info.LastDeployed.Time.UTC(), r.Info.Status.String(), r.Info.Description
		}
		if r.Chart != nil && r.Chart.Metadata != nil {
			row.AppVersion = r.Chart.Metadata.AppVersion
		}
		out = append(out, row)
	}
	return out, nil
}

func revisions(c *Cluster) ([]*release.Release, error) {
	all, err := storageOf(c).History(c.Release)
	if errors.Is(err, driver.ErrReleaseNotFound) || err == nil && len(all) == 0 {
		return nil, fmt.Errorf("%w: there is no Helm release %s in namespace %s of context %q; use `lash install`", ErrNotInstalled, c.Release, c.Namespace, c.Context)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the Helm release %s: %w", c.Release, err)
	}
	slices.SortFunc(all, func(a, b *release.Release) int { return a.Version - b.Version })
	return all, nil
}

// Rollback plans the return to an earlier revision; 0 means the newest one that worked. It only
// reads.
func Rollback(ctx context.Context, c *Cluster, o Options, revision int) (*Change, error) {
	from, err := current(c)
	if err != nil && !errors.Is(err, ErrInterrupted) {
		return nil, err
	}
	all, err := revisions(c)
	if err != nil {
		return nil, err
	}
	last := all[len(all)-1]
	to, err := target(all, revision)
	if err != nil {
		return nil, err
	}
	if !Ours(to) {
		return nil, fmt.Errorf("%w: revision %d of release %s is of chart %s", ErrForeign, to.Version, c.Release, chartOf(to.Chart))
	}
	// What is in the cluster is what the last revision has got done, so that is compared with.
	if last.Info.Status != release.StatusDeployed {
		from = last
	}
	ch := &Change{From: from, To: to, Chart: to.Chart, Values: orEmpty(to.Config), Manifest: to.Manifest, cluster: c, options: o}
	return ch, ch.plan(ctx, nil)
}

// target chooses the revision to go back to.
func target(all []*release.Release, revision int) (*release.Release, error) {
	last := all[len(all)-1]
	var have []string
	for _, r := range slices.Backward(all[:len(all)-1]) {
		have = append(have, fmt.Sprint(r.Version))
		if r.Version == revision {
			return r, nil
		}
		if s := r.Info.Status; revision == 0 && (s == release.StatusDeployed || s == release.StatusSuperseded) {
			return r, nil
		}
	}
	slices.Reverse(have)
	switch {
	case len(have) == 0:
		return nil, fmt.Errorf("%w: revision %d is the only one, there is nothing to go back to", ErrNoRevision, last.Version)
	case revision == 0:
		return nil, fmt.Errorf("%w: none of the earlier revisions (%s) was ever deployed", ErrNoRevision, strings.Join(have, ", "))
	case revision == last.Version:
		return nil, fmt.Errorf("%w: %d is the current one; earlier ones are %s", ErrNoRevision, revision, strings.Join(have, ", "))
	}
	return nil, fmt.Errorf("%w: %d; there are %s (see `lash history`)", ErrNoRevision, revision, strings.Join(have, ", "))
}

func (ch *Change) applyRollback(cfg *action.Configuration) (*release.Release, error) {
	back := action.NewRollback(cfg)
	back.Version, back.MaxHistory = ch.To.Version, ch.options.HistoryMax
	if err := back.Run(ch.cluster.Release); err != nil {
		return nil, fmt.Errorf("rolling the Helm release %s back to revision %d: %w", ch.cluster.Release, ch.To.Version, err)
	}
	rel, err := Existing(ch.cluster)
	if err != nil {
		return nil, err
	}
	if rel == nil {
		return nil, fmt.Errorf("rolling the Helm release %s back: it is gone", ch.cluster.Release)
	}
	return rel, nil
}
