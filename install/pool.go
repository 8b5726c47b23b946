// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"helm.sh/helm/v3/pkg/chartutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// pools are findings about a change of where pod addresses come from, in a cluster whose nodes have
// ranges already: nodes and pods keep what they have, so the ranges may only be added to.
func (ch *Change) pools(ctx context.Context) ([]Finding, error) {
	before, after := orEmpty(ch.From.Config), ch.Values
	if ch.From.Chart != nil {
		all, err := chartutil.CoalesceValues(ch.From.Chart, before)
		if err != nil {
			return nil, fmt.Errorf("values of chart %s: %w", chartOf(ch.From.Chart), err)
		}
		before = all
	}
	all, err := chartutil.CoalesceValues(ch.Chart, after)
	if err != nil {
		return nil, fmt.Errorf("values of chart %s: %w", chartOf(ch.Chart), err)
	}
	after = all
	const mode = "ipam.mode"
	was, will := fmt.Sprint(lookup(before, mode)), fmt.Sprint(lookup(after, mode))
	changed := was != will
	for _, f := range poolFamilies {
		for _, key := range []string{f.key, f.maskKey} {
			changed = changed || fmt.Sprint(lookup(before, key)) != fmt.Sprint(lookup(after, key))
		}
	}
	if !changed {
		return nil, nil
	}
	ranges, err := ch.nodeRanges(ctx)
	if err != nil || len(ranges) == 0 {
		return nil, err
	}
	if was != will {
		return []Finding{{
			Level: Block, What: fmt.Sprintf("value %s cannot change in a cluster that has pods", mode),
			Evidence: fmt.Sprintf("%s; pods would keep addresses that no node has", ranges[0]),
			Next:     fmt.Sprintf("leave it: --set %s=%s; or `lash uninstall` and install again", mode, was),
		}}, nil
	}
	if will != "cluster-pool" {
		return nil, nil
	}
	var out []Finding
	for _, f := range poolFamilies {
		out = append(out, f.outside(ranges, wordsOf(lookup(before, f.key)), wordsOf(lookup(after, f.key)), fmt.Sprint(lookup(after, f.maskKey)))...)
	}
	return out, nil
}

// nodeRange is a range of pod addresses that a node has.
type nodeRange struct {
	node   string
	prefix netip.Prefix
}

func (r nodeRange) String() string { return fmt.Sprintf("node %s has %s", r.node, r.prefix) }

// nodeRanges reads the ranges of all nodes. A cluster in which no agent ever ran has none.
func (ch *Change) nodeRanges(ctx context.Context) ([]nodeRange, error) {
	l, err := ch.cluster.Dynamic.Resource(ciliumResource("ciliumnodes")).List(ctx, metav1.ListOptions{})
	if err != nil && noSuchKind(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the address ranges of nodes: %w", err)
	}
	var out []nodeRange
	for i := range l.Items {
		cidrs, _, err := unstructured.NestedStringSlice(l.Items[i].Object, "spec", "ipam", "podCIDRs")
		if err != nil {
			return nil, fmt.Errorf("CiliumNode %s: %w", l.Items[i].GetName(), err)
		}
		for _, c := range cidrs {
			if p, err := netip.ParsePrefix(c); err == nil {
				out = append(out, nodeRange{l.Items[i].GetName(), p})
			}
		}
	}
	return out, nil
}

// outside is a finding if nodes have ranges of this family that the pool would not give them.
func (f poolFamily) outside(ranges []nodeRange, was, will []string, mask string) []Finding {
	var parents []netip.Prefix
	for _, w := range will {
		if p, err := netip.ParsePrefix(w); err == nil { // the schema has checked them
			parents = append(parents, p)
		}
	}
	var left, cut []string
	for _, r := range ranges {
		inside := func(p netip.Prefix) bool { return p.Bits() <= r.prefix.Bits() && p.Contains(r.prefix.Addr()) }
		switch {
		case r.prefix.Addr().Is6() != f.v6:
		case !slices.ContainsFunc(parents, inside):
			left = append(left, r.String())
		case mask != strconv.Itoa(r.prefix.Bits()):
			cut = append(cut, r.String())
		}
	}
	list := slices.Clone(was)
	for _, w := range will {
		if !slices.Contains(was, w) {
			list = append(list, w)
		}
	}
	var out []Finding
	if len(left) > 0 {
		out = append(out, Finding{
			Level: Block, What: fmt.Sprintf("nodes have ranges that value %s would no longer hold", f.key),
			Evidence: someOf(left),
			Next:     fmt.Sprintf("only add to the list: --set-json '%s=[%s]'", f.key, quoted(list)),
		})
	}
	if len(cut) > 0 {
		out = append(out, Finding{
			Level: Block, What: fmt.Sprintf("nodes have ranges of another size than value %s would be", f.maskKey),
			Evidence: fmt.Sprintf("/%s; %s", mask, someOf(cut)),
			Next:     "leave it as it is: the size of ranges is that of the whole life of a cluster; add ranges to " + f.key + " where there are too few",
		})
	}
	return out
}

// someOf names the first few of a list.
func someOf(list []string) string {
	const most = 3
	if len(list) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
	}
	return strings.Join(list, ", ")
}

func quoted(list []string) string {
	var out []string
	for _, s := range list {
		out = append(out, strconv.Quote(s))
	}
	return strings.Join(out, ",")
}
