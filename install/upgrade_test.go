// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chartutil"
	kubefake "helm.sh/helm/v3/pkg/kube/fake"
	"helm.sh/helm/v3/pkg/release"
	helmtime "helm.sh/helm/v3/pkg/time"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"lash.internal/lash/agent/api"
)

// installed is a cluster with revisions of our release, each made of values (YAML) and a status.
// The options in the cluster are those of the last deployed revision.
type installed struct {
	t *testing.T
	c *Cluster
}

type past struct {
	values string
	status release.Status
}

func with(t *testing.T, revisions ...past) installed {
	t.Helper()
	c := world{objects: []runtime.Object{node("n1", "172.16.0.1")}}.cluster()
	caps := *chartutil.DefaultCapabilities
	caps.KubeVersion = chartutil.KubeVersion{Version: "v1.36.3", Major: "1", Minor: "36"}
	c.helm = func() *action.Configuration {
		return &action.Configuration{
			Releases: storageOf(c), KubeClient: &kubefake.PrintingKubeClient{Out: io.Discard},
			Capabilities: &caps, Log: func(string, ...any) {},
		}
	}
	i := installed{t, c}
	for n, p := range revisions {
		ch, err := loadChart("", api.CiliumVersion)
		if err != nil {
			t.Fatal(err)
		}
		values := map[string]any{}
		if err := yaml.Unmarshal([]byte(p.values), &values); err != nil {
			t.Fatal(err)
		}
		manifest, err := render(ch, c, "v1.36.3", values)
		if err != nil {
			t.Fatal(err)
		}
		at := helmtime.Time{Time: time.Date(2026, 1, 1+n, 0, 0, 0, 0, time.UTC)}
		rel := &release.Release{
			Name: "cilium", Namespace: "kube-system", Version: n + 1, Chart: ch, Config: values, Manifest: manifest,
			Info: &release.Info{Status: p.status, FirstDeployed: at, LastDeployed: at, Description: fmt.Sprintf("revision %d", n+1)},
		}
		if err := storageOf(c).Create(rel); err != nil {
			t.Fatal(err)
		}
		if p.status == release.StatusDeployed {
			i.live(i.options(manifest))
		}
	}
	return i
}

// options reads cilium-config out of a manifest.
func (i installed) options(manifest string) map[string]string {
	i.t.Helper()
	objects, err := objectsOf(manifest)
	if err != nil {
		i.t.Fatal(err)
	}
	out := map[string]string{}
	m, _ := objects["ConfigMap kube-system/cilium-config"].at("data").(map[string]any)
	for k, v := range m {
		out[k] = fmt.Sprint(v)
	}
	return out
}

// live makes data the ConfigMap in the cluster.
func (i installed) live(data map[string]string) {
	i.t.Helper()
	api := i.c.Clientset.CoreV1().ConfigMaps("kube-system")
	_ = api.Delete(context.Background(), ConfigMap, metav1.DeleteOptions{})
	_, err := api.Create(context.Background(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Name: ConfigMap, Namespace: "kube-system",
			Labels: map[string]string{"helm.sh/chart": "lash-0.1.0"}, Annotations: map[string]string{"meta.helm.sh/release-name": "cilium"},
		}, Data: data,
	}, metav1.CreateOptions{})
	if err != nil {
		i.t.Fatal(err)
	}
}

func (i installed) upgrade(values string, o Options, reuse Reuse) (*Change, error) {
	i.t.Helper()
	o.Values = map[string]any{}
	if err := yaml.Unmarshal([]byte(values), &o.Values); err != nil {
		i.t.Fatal(err)
	}
	o.Say = func(string, ...any) {}
	return Upgrade(context.Background(), i.c, o, reuse)
}

func (i installed) mustUpgrade(values string, reuse Reuse) *Change {
	i.t.Helper()
	ch, err := i.upgrade(values, Options{}, reuse)
	if err != nil {
		i.t.Fatal(err)
	}
	return ch
}

// rows is the diff as text.
func rows(ch *Change) []string {
	var out []string
	for _, d := range ch.Diff {
		out = append(out, fmt.Sprintf("%s: %s -> %s (%s)", d.Path, d.Before, d.After, d.Why))
	}
	return out
}

// users are values of each shape that a user may have given.
const users = `
cluster: {name: mine}
compatibility: {level: 1.15.1}
MTU: 1400
devices: [eth0, "bond+"]
affinity: {podAntiAffinity: null, nodeAffinity: {x: y}}
podLabels: {team: net, "a.b/c": "1"}
extraConfig: {debug: "true"}
operator: {replicas: 1, tolerations: []}
extraEnv: [{name: A, value: "1,2"}]
`

func TestUpgradeKeepsEveryValueOfTheUser(t *testing.T) {
	i := with(t, past{users, release.StatusDeployed})
	ch := i.mustUpgrade("{operator: {replicas: 3}, healthPort: 9999}", ResetThenReuse)
	want := []string{
		"healthPort: 9879 -> 9999 (given now)",
		"operator.replicas: 1 -> 3 (given now)",
	}
	if got := rows(ch); !slices.Equal(got, want) {
		t.Errorf("diff\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	before := map[string]any{}
	if err := yaml.Unmarshal([]byte(users), &before); err != nil {
		t.Fatal(err)
	}
	expect := leaves("", before, map[string]string{})
	if kept := slices.Sorted(maps.Keys(expect)); !slices.Equal(ch.Kept, slices.DeleteFunc(kept, func(p string) bool { return p == "operator.replicas" })) {
		t.Errorf("kept %q", ch.Kept)
	}
	rel, err := ch.Apply(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	expect["operator.replicas"], expect["healthPort"] = "3", "9999"
	if got := leaves("", rel.Config, map[string]string{}); !maps.Equal(got, expect) || rel.Version != 2 {
		t.Errorf("revision %d has\n%v\nwant\n%v", rel.Version, got, expect)
	}
	if rel.Chart.Metadata.AppVersion != "1.15.1" {
		t.Errorf("the compatibility level became %s", rel.Chart.Metadata.AppVersion)
	}
	// A version is a value that is given, too.
	if ch, err = i.upgrade("", Options{Version: "1.16.2"}, ResetThenReuse); err != nil || !slices.Equal(rows(ch), []string{`compatibility.level: "1.15.1" -> "1.16.2" (given now)`}) {
		t.Errorf("--version: %v, %v", rows(ch), err)
	}
	// And again, with nothing new.
	if ch = i.mustUpgrade("", ResetThenReuse); len(ch.Diff) > 0 || len(ch.Objects) > 0 {
		t.Errorf("an upgrade without new values changes %v %v", rows(ch), ch.Objects)
	}
}

func TestUpgradeModes(t *testing.T) {
	for name, c := range map[string]struct {
		values string
		reuse  Reuse
		want   []string
	}{
		"nothing":       {"", ResetThenReuse, nil},
		"reuse":         {"", ReuseAll, nil},
		"same value":    {"{MTU: 1400}", ResetThenReuse, nil},
		"null":          {"{MTU: null}", ResetThenReuse, []string{"MTU: 1400 -> 0 (back to the default)"}},
		"null in a map": {"{podLabels: {team: null}}", ResetThenReuse, []string{`podLabels.team: "net" -> - (back to the default)`}},
		"reset": {"", Reset, []string{
			"MTU: 1400 -> 0 (back to the default)",
			`podLabels.team: "net" -> - (back to the default)`,
		}},
		"reset with a value": {"{MTU: 1300}", Reset, []string{
			"MTU: 1400 -> 1300 (given now)",
			`podLabels.team: "net" -> - (back to the default)`,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			i := with(t, past{"{MTU: 1400, podLabels: {team: net}, compatibility: {level: 1.16.5}}", release.StatusDeployed})
			got := slices.DeleteFunc(rows(i.mustUpgrade(c.values, c.reuse)), func(s string) bool { return strings.HasPrefix(s, "compatibility") })
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// TestNewDefaultsShow upgrades from a chart with other defaults.
func TestNewDefaultsShow(t *testing.T) {
	i := with(t, past{"{MTU: 1400}", release.StatusDeployed})
	rel, err := Existing(i.c)
	if err != nil {
		t.Fatal(err)
	}
	rel.Chart.Values["healthPort"] = float64(9000)
	rel.Chart.Values["gone"] = "x"
	rel.Chart.Metadata.Version = "0.0.9"
	if err := storageOf(i.c).Update(rel); err != nil {
		t.Fatal(err)
	}
	ch := i.mustUpgrade("", ResetThenReuse)
	if got := rows(ch); !slices.Contains(got, "healthPort: 9000 -> 9879 (default of the chart)") || !slices.Contains(got, `gone: "x" -> - (default of the chart)`) {
		t.Errorf("got %q", got)
	}
	if from, to := ch.Charts(); from != "lash-0.0.9" || to != "lash-"+api.Version {
		t.Errorf("charts %s, %s", from, to)
	}
	ch = i.mustUpgrade("", ReuseAll)
	if got := rows(ch); slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "healthPort") }) {
		t.Errorf("--reuse-values changes a default: %q", got)
	}
	if _, frozen := ch.Values["healthPort"]; frozen {
		t.Error("--reuse-values makes the chart's defaults the user's")
	}
}

func TestUpgradeSaysWhatHappensToPods(t *testing.T) {
	i := with(t, past{"{}", release.StatusDeployed})
	if ch := i.mustUpgrade("{debug: {enabled: true}}", ResetThenReuse); ch.AgentsRoll || !ch.ConfigChanges {
		t.Errorf("an option: roll %v, config %v", ch.AgentsRoll, ch.ConfigChanges)
	}
	if ch := i.mustUpgrade("{resources: {limits: {cpu: 1}}}", ResetThenReuse); !ch.AgentsRoll || ch.OperatorRolls {
		t.Errorf("a limit: agents %v, operator %v", ch.AgentsRoll, ch.OperatorRolls)
	}
	ch := i.mustUpgrade("{operator: {podDisruptionBudget: {enabled: false}}}", ResetThenReuse)
	if !slices.Equal(ch.Objects, []ObjectChange{{"PodDisruptionBudget", "kube-system/cilium-operator", "removed"}}) {
		t.Errorf("objects %v", ch.Objects)
	}
	ch, err := i.upgrade("", Options{NodesWithoutNetwork: true}, ResetThenReuse)
	if err != nil || !strings.Contains(ch.Manifest, NoScheduleLabel) {
		t.Errorf("--nodes-without-cilium is not in the manifest (%v)", err)
	}
	ch, err = i.upgrade("", Options{DatapathMode: "native"}, ResetThenReuse)
	if err != nil || lookup(ch.Values, "routingMode") != "native" {
		t.Errorf("--datapath-mode native: %v, %v", lookup(ch.Values, "routingMode"), err)
	}
}

func TestUpgradeShowsWhatWasChangedByHand(t *testing.T) {
	i := with(t, past{"{}", release.StatusDeployed})
	rel, err := Existing(i.c)
	if err != nil {
		t.Fatal(err)
	}
	data := i.options(rel.Manifest)
	data["debug"], data["mine"] = "true", "1"
	delete(data, "mtu")
	i.live(data)
	ch := i.mustUpgrade("", ResetThenReuse)
	want := []Drift{{"debug", "true", "false", false}, {"mine", "1", "1", true}, {"mtu", "-", "0", false}}
	if !slices.Equal(ch.Drift, want) || ch.Empty() {
		t.Errorf("drift %v, empty %v", ch.Drift, ch.Empty())
	}
	if ch = i.mustUpgrade(`{extraConfig: {debug: "true"}}`, ResetThenReuse); slices.ContainsFunc(ch.Drift, func(d Drift) bool { return d.Key == "debug" }) {
		t.Errorf("a value that is kept by extraConfig still counts as lost: %v", ch.Drift)
	}
}

func TestUpgradeRefuses(t *testing.T) {
	bare := with(t, past{"{}", release.StatusDeployed})
	older := with(t, past{"{}", release.StatusDeployed})
	rel, err := Existing(older.c)
	if err != nil {
		t.Fatal(err)
	}
	rel.Config = map[string]any{"hostFirewall": map[string]any{"enabled": true}}
	if err := storageOf(older.c).Update(rel); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		i      installed
		values string
		o      Options
		kind   error
		want   string
	}{
		"nothing there":      {with(t), "", Options{}, ErrNotInstalled, "use `lash install`"},
		"interrupted":        {with(t, past{"{}", release.StatusSuperseded}, past{"{}", release.StatusPendingUpgrade}), "", Options{}, ErrInterrupted, "state pending-upgrade since 2026-01-02T00:00:00Z; if nobody is at work on it, run `lash rollback`"},
		"interrupted before": {with(t, past{"{}", release.StatusPendingInstall}), "", Options{}, ErrInterrupted, "run `lash uninstall`"},
		"misspelt":           {bare, "{debug: {enabld: true}}", Options{}, nil, "did you mean debug.enabled?"},
		"old one refused":    {older, "", Options{}, nil, "value hostFirewall.enabled is not supported yet: use a firewall of the nodes' own (kept from revision 1; KEY=null takes a value away)"},
		"no such version":    {bare, "", Options{Version: "9.9"}, nil, "there is no version 9.9"},
		"no such mode":       {bare, "", Options{DatapathMode: "x"}, nil, `unknown datapath mode "x"`},
	} {
		_, err := c.i.upgrade(c.values, c.o, ResetThenReuse)
		if err == nil || !strings.Contains(err.Error(), c.want) || (c.kind != nil && !errors.Is(err, c.kind)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	foreign := world{objects: []runtime.Object{releaseSecret(t, "cilium", "1.15.1")}}.cluster()
	if _, err := Upgrade(context.Background(), foreign, Options{Say: func(string, ...any) {}}, ResetThenReuse); !errors.Is(err, ErrForeign) {
		t.Errorf("a release of Cilium's chart: %v", err)
	}
}

func TestUpgradeFindings(t *testing.T) {
	i := with(t, past{"{}", release.StatusDeployed})
	ch := i.mustUpgrade("{image: {tag: 0.2.0}}", ResetThenReuse)
	if len(ch.Findings) != 1 || ch.Findings[0].Level != Block || !strings.Contains(ch.Findings[0].What, "localhost/lash:0.2.0 is not on every node") {
		t.Errorf("an image that no node has: %+v", ch.Findings)
	}
	rel, err := Existing(i.c)
	if err != nil {
		t.Fatal(err)
	}
	rel.Chart.Metadata.Version = "99.0.0"
	if err := storageOf(i.c).Update(rel); err != nil {
		t.Fatal(err)
	}
	if ch = i.mustUpgrade("", ResetThenReuse); len(ch.Findings) != 1 || ch.Findings[0].What != "this is a downgrade" {
		t.Errorf("a downgrade: %+v", ch.Findings)
	}
}

// TestUpgradeAfterAFailure starts from the revision that works, not from the one that failed.
func TestUpgradeAfterAFailure(t *testing.T) {
	i := with(t, past{"{MTU: 1400}", release.StatusDeployed}, past{"{MTU: 9000}", release.StatusFailed})
	ch := i.mustUpgrade("", ResetThenReuse)
	if ch.From.Version != 1 || lookup(ch.Values, "MTU") != float64(1400) {
		t.Errorf("starts from revision %d with %v", ch.From.Version, ch.Values)
	}
}

func TestRollback(t *testing.T) {
	two := []past{{"{MTU: 1400, cluster: {name: a}}", release.StatusSuperseded}, {"{MTU: 9000}", release.StatusFailed}, {"{MTU: 1300, cluster: {name: a}}", release.StatusDeployed}}
	say := Options{Say: func(string, ...any) {}}
	i := with(t, two...)
	ch, err := Rollback(context.Background(), i.c, say, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := rows(ch); ch.To.Version != 1 || !slices.Equal(got, []string{"MTU: 1300 -> 1400 (as it was then)"}) {
		t.Errorf("to revision %d, diff %q", ch.To.Version, got)
	}
	rel, err := ch.Apply(context.Background())
	if err != nil || rel.Version != 4 || rel.Config["MTU"] != float64(1400) || rel.Info.Status != release.StatusDeployed {
		t.Errorf("%+v, %v", rel, err)
	}
	history, err := History(i.c)
	if err != nil || len(history) != 4 || history[3].Description != "Rollback to 1" || history[2].Status != "superseded" || history[0].Chart != "lash-"+api.Version {
		t.Errorf("history %+v, %v", history, err)
	}
	// An upgrade that was interrupted is what one rolls back from.
	i = with(t, past{"{MTU: 1400}", release.StatusDeployed}, past{"{MTU: 1500}", release.StatusPendingUpgrade})
	if ch, err = Rollback(context.Background(), i.c, say, 0); err != nil || ch.To.Version != 1 || ch.From.Version != 2 || ch.Empty() {
		t.Errorf("from an interrupted upgrade: %+v, %v", ch, err)
	}
	for want, c := range map[string]struct {
		i        installed
		revision int
	}{
		"revision 1 is the only one":      {with(t, two[0]), 0},
		"3 is the current one":            {with(t, two...), 3},
		"7; there are 1, 2 (see":          {with(t, two...), 7},
		"none of the earlier revisions (": {with(t, two[1], two[2]), 0},
		"use `lash install`":              {with(t), 0},
	} {
		if _, err := Rollback(context.Background(), c.i.c, say, c.revision); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
