// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	helmchart "helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/release"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Change is a new revision of the release that is ready to be applied: an upgrade or a rollback.
type Change struct {
	From     *release.Release
	To       *release.Release // the revision to go back to; nil for an upgrade
	Chart    *helmchart.Chart
	Values   map[string]any // the user's, complete
	Manifest string

	Diff     []ValueChange
	Kept     []string // paths of the user's earlier values that stay as they are
	Objects  []ObjectChange
	Drift    []Drift
	Findings []Finding

	// AgentsRoll and OperatorRolls say that pods are replaced because their template changes;
	// ConfigChanges that the options change, which pods read when they start.
	AgentsRoll, OperatorRolls, ConfigChanges bool

	cluster *Cluster
	options Options
}

// Empty says whether applying would change nothing.
func (ch *Change) Empty() bool {
	reverts := slices.ContainsFunc(ch.Drift, func(d Drift) bool { return !d.Stays })
	return len(ch.Diff) == 0 && len(ch.Objects) == 0 && !reverts &&
		ch.From.Info.Status == release.StatusDeployed && chartOf(ch.From.Chart) == chartOf(ch.Chart)
}

// chartOf is "NAME-VERSION" of a chart.
func chartOf(c *helmchart.Chart) string {
	if c == nil || c.Metadata == nil {
		return "unknown"
	}
	return c.Metadata.Name + "-" + c.Metadata.Version
}

// Charts are the versions of the chart before and after.
func (ch *Change) Charts() (from, to string) { return chartOf(ch.From.Chart), chartOf(ch.Chart) }

// Origin says why a value changes.
type Origin string

// Reasons.
const (
	OriginGiven   Origin = "given now"
	OriginDropped Origin = "back to the default"
	OriginDefault Origin = "default of the chart"
	OriginEarlier Origin = "as it was then" // rollback
)

// ValueChange is one value that will be another. Before and After are JSON; "-" is no value.
type ValueChange struct {
	Path, Before, After string
	Why                 Origin
}

// leaves flattens values: path to JSON. A list is one leaf, and so is an empty map.
func leaves(prefix string, m map[string]any, out map[string]string) map[string]string {
	for k, v := range m {
		path := k
		if prefix != "" {
			path = prefix + "." + k
		}
		if sub, ok := v.(map[string]any); ok && len(sub) > 0 {
			leaves(path, sub, out)
			continue
		}
		text, err := json.Marshal(v)
		if err != nil { // nothing that YAML or JSON can hold
			text = []byte(fmt.Sprint(v))
		}
		out[path] = string(text)
	}
	return out
}

// effective are the values that the templates see.
func effective(c *helmchart.Chart, user map[string]any) (map[string]string, error) {
	if c == nil {
		return leaves("", user, map[string]string{}), nil
	}
	all, err := chartutil.CoalesceValues(c, user)
	if err != nil {
		return nil, fmt.Errorf("values of chart %s: %w", chartOf(c), err)
	}
	return leaves("", all, map[string]string{}), nil
}

// compare fills in what the change does to values, objects and pods. given are the values of this
// command line.
func (ch *Change) compare(given map[string]any) error {
	before, err := effective(ch.From.Chart, ch.From.Config)
	if err != nil {
		return err
	}
	after, err := effective(ch.Chart, ch.Values)
	if err != nil {
		return err
	}
	now := leaves("", given, map[string]string{})
	own := leaves("", ch.From.Config, map[string]string{})
	paths := maps.Clone(before)
	maps.Copy(paths, after)
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		b, bok := before[p]
		a, aok := after[p]
		if bok == aok && b == a || filled(p, b, after) || filled(p, a, before) {
			continue
		}
		row := ValueChange{Path: p, Before: "-", After: "-", Why: OriginDefault}
		if bok {
			row.Before = b
		}
		if aok {
			row.After = a
		}
		_, isNow := now[p]
		_, wasOwn := own[p]
		switch {
		case isNow && (now[p] != "null" || !wasOwn):
			row.Why = OriginGiven
		case ch.To != nil:
			row.Why = OriginEarlier
		case wasOwn:
			row.Why = OriginDropped
		}
		ch.Diff = append(ch.Diff, row)
	}
	final := leaves("", ch.Values, map[string]string{})
	for _, p := range slices.Sorted(maps.Keys(own)) {
		if v, ok := final[p]; ok && v == own[p] {
			ch.Kept = append(ch.Kept, p)
		}
	}
	return ch.compareObjects()
}

// filled says whether an empty map at path has entries in others, which are shown one by one.
func filled(path, value string, others map[string]string) bool {
	if value != "{}" {
		return false
	}
	for p := range others {
		if strings.HasPrefix(p, path+".") {
			return true
		}
	}
	return false
}

// ObjectChange is one object that is made, changed or removed.
type ObjectChange struct {
	Kind, Name string
	What       string // new, changed, removed
}

// manifestObject is one document of a manifest.
type manifestObject map[string]any

func (o manifestObject) at(path ...string) any {
	var v any = map[string]any(o)
	for _, p := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[p]
	}
	return v
}

func (o manifestObject) text(path ...string) string {
	s, _ := o.at(path...).(string)
	return s
}

// objectsOf reads a manifest: "Kind namespace/name" to object.
func objectsOf(manifest string) (map[string]manifestObject, error) {
	out := map[string]manifestObject{}
	for doc := range strings.SplitSeq("\n"+manifest, "\n---") {
		o := manifestObject{}
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			return nil, fmt.Errorf("reading the manifest: %w", err)
		}
		if o.text("kind") == "" {
			continue
		}
		name := o.text("metadata", "name")
		if ns := o.text("metadata", "namespace"); ns != "" {
			name = ns + "/" + name
		}
		out[o.text("kind")+" "+name] = o
	}
	return out, nil
}

func (ch *Change) compareObjects() error {
	before, err := objectsOf(ch.From.Manifest)
	if err != nil {
		return err
	}
	after, err := objectsOf(ch.Manifest)
	if err != nil {
		return err
	}
	all := maps.Clone(before)
	maps.Copy(all, after)
	for _, id := range slices.Sorted(maps.Keys(all)) {
		b, a := before[id], after[id]
		kind, name, _ := strings.Cut(id, " ")
		row := ObjectChange{Kind: kind, Name: name}
		switch {
		case b == nil:
			row.What = "new"
		case a == nil:
			row.What = "removed"
		case !reflect.DeepEqual(b, a):
			row.What = "changed"
		default:
			continue
		}
		ch.Objects = append(ch.Objects, row)
		template := row.What == "changed" && !reflect.DeepEqual(b.at("spec", "template"), a.at("spec", "template"))
		switch {
		case template && kind == "DaemonSet" && a.text("metadata", "name") == agentDaemonSet:
			ch.AgentsRoll = true
		case template && kind == "Deployment" && a.text("metadata", "name") == operatorDeployment:
			ch.OperatorRolls = true
		case row.What == "changed" && kind == "ConfigMap" && a.text("metadata", "name") == ConfigMap:
			ch.ConfigChanges = !reflect.DeepEqual(b.at("data"), a.at("data"))
		}
	}
	return nil
}

// Drift is an option whose value in the cluster is not the one of the release, because somebody
// changed the ConfigMap.
type Drift struct {
	Key        string
	Live, Next string // "-" is no value
	Stays      bool   // the chart does not know the key, so the change leaves it alone
}

// findDrift compares the live options with those of the release.
func (ch *Change) findDrift(ctx context.Context) error {
	c := ch.cluster
	live, err := c.Clientset.CoreV1().ConfigMaps(c.Namespace).Get(ctx, ConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // applying makes it again
	}
	if err != nil {
		return fmt.Errorf("reading ConfigMap %s: %w", ConfigMap, err)
	}
	data := func(manifest string) (map[string]string, error) {
		objects, err := objectsOf(manifest)
		if err != nil {
			return nil, err
		}
		out := map[string]string{}
		for _, o := range objects {
			if o.text("kind") == "ConfigMap" && o.text("metadata", "name") == ConfigMap {
				m, _ := o.at("data").(map[string]any)
				for k, v := range m {
					out[k] = fmt.Sprint(v)
				}
			}
		}
		return out, nil
	}
	was, err := data(ch.From.Manifest)
	if err != nil {
		return err
	}
	next, err := data(ch.Manifest)
	if err != nil {
		return err
	}
	keys := maps.Clone(was)
	maps.Copy(keys, live.Data)
	word := func(m map[string]string, k string) string {
		if v, ok := m[k]; ok {
			return v
		}
		return "-"
	}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		l, w, n := word(live.Data, k), word(was, k), word(next, k)
		switch {
		case l == w, l == n: // as the release has it, or as it will be
		case w == "-" && n == "-":
			ch.Drift = append(ch.Drift, Drift{Key: k, Live: l, Next: l, Stays: true})
		default:
			ch.Drift = append(ch.Drift, Drift{Key: k, Live: l, Next: n})
		}
	}
	return nil
}
