// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/release"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
)

// ranges gives the cluster nodes with the given pod CIDRs.
func (i installed) ranges(nodes map[string][]any) {
	var objects []runtime.Object
	for name, cidrs := range nodes {
		objects = append(objects, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": map[string]any{"name": name},
			"spec": map[string]any{"ipam": map[string]any{"podCIDRs": cidrs}},
		}})
	}
	i.c.Dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{ciliumResource("ciliumnodes"): "CiliumNodeList"}, objects...)
}

// TestPoolOfARunningCluster changes where pod addresses come from under nodes that have ranges.
func TestPoolOfARunningCluster(t *testing.T) {
	const v4, v6 = "ipam.operator.clusterPoolIPv4PodCIDRList", "ipam.operator.clusterPoolIPv6PodCIDRList"
	for name, c := range map[string]struct {
		values string
		want   []string // texts of the finding; none: nothing is found
	}{
		"other values":        {"{MTU: 1400}", nil},
		"the same":            {"{ipam: {operator: {clusterPoolIPv4PodCIDRList: [10.1.0.0/16]}}}", nil},
		"the same as text":    {"{ipam: {operator: {clusterPoolIPv4PodCIDRList: 10.1.0.0/16}}}", nil},
		"one more":            {"{ipam: {operator: {clusterPoolIPv4PodCIDRList: [10.1.0.0/16, 10.9.0.0/16]}}}", nil},
		"larger":              {"{ipam: {operator: {clusterPoolIPv4PodCIDRList: [10.0.0.0/8]}}}", nil},
		"smaller, all inside": {"{ipam: {operator: {clusterPoolIPv4PodCIDRList: [10.1.0.0/20]}}}", nil},
		"another": {
			"{ipam: {operator: {clusterPoolIPv4PodCIDRList: [10.9.0.0/16]}}}",
			[]string{v4, "node n1 has 10.1.0.0/24, node n2 has 10.1.1.0/24", `--set-json '` + v4 + `=["10.1.0.0/16","10.9.0.0/16"]'`},
		},
		"smaller, one outside": {"{ipam: {operator: {clusterPoolIPv4PodCIDRList: [10.1.0.0/24]}}}", []string{v4, "node n2 has 10.1.1.0/24"}},
		"back to the default":  {"{ipam: {operator: {clusterPoolIPv6PodCIDRList: null}}}", []string{v6, "node n1 has fd01::/120", `["fd01::/104","fd00::/104"]`}},
		"another size":         {"{ipam: {operator: {clusterPoolIPv4MaskSize: 25}}}", []string{"clusterPoolIPv4MaskSize", "/25; node n1 has 10.1.0.0/24"}},
		"another mode":         {"{ipam: {mode: kubernetes}}", []string{"ipam.mode", "--set ipam.mode=cluster-pool"}},
	} {
		t.Run(name, func(t *testing.T) {
			i := with(t, past{"{ipam: {operator: {clusterPoolIPv4PodCIDRList: [10.1.0.0/16], clusterPoolIPv6PodCIDRList: [\"fd01::/104\"]}}, ipv6: {enabled: true}}", release.StatusDeployed})
			i.ranges(map[string][]any{"n1": {"10.1.0.0/24", "fd01::/120"}, "n2": {"10.1.1.0/24", "fd01::100/120"}})
			wantFinding(t, i.mustUpgrade(c.values, ResetThenReuse), c.want)
			// In a cluster whose nodes have nothing yet everything may change.
			i.ranges(nil)
			wantFinding(t, i.mustUpgrade(c.values, ResetThenReuse), nil)
		})
	}
}

func wantFinding(t *testing.T, ch *Change, want []string) {
	t.Helper()
	var blocks []Finding
	for _, f := range ch.Findings {
		if f.Level == Block {
			blocks = append(blocks, f)
		}
	}
	if len(want) == 0 {
		if len(blocks) > 0 {
			t.Errorf("found %+v", blocks)
		}
		return
	}
	if len(blocks) != 1 {
		t.Fatalf("found %+v", blocks)
	}
	for _, w := range want {
		if all := strings.Join([]string{blocks[0].What, blocks[0].Evidence, blocks[0].Next}, "\n"); !strings.Contains(all, w) {
			t.Errorf("%q is not in:\n%s", w, all)
		}
	}
}

// TestRollbackOverAPool goes back to a revision whose ranges nodes no longer have.
func TestRollbackOverAPool(t *testing.T) {
	i := with(t,
		past{"{}", release.StatusSuperseded},
		past{"{ipam: {operator: {clusterPoolIPv4PodCIDRList: [10.0.0.0/8, 172.30.0.0/16]}}}", release.StatusDeployed})
	i.ranges(map[string][]any{"n1": {"10.0.0.0/24"}, "n2": {"172.30.0.0/24"}})
	ch, err := Rollback(context.Background(), i.c, Options{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	wantFinding(t, ch, []string{"node n2 has 172.30.0.0/24", `["10.0.0.0/8","172.30.0.0/16"]`})
}
