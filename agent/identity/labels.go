// SPDX-License-Identifier: Apache-2.0

// Package identity turns the labels of a pod into its security identity: a number that every node
// knows for the same label set.
//
//	Pod, Namespace --PodLabels, Filter--> label set --Allocator--> CiliumIdentity object, Identities row
//
// Nothing is given back here: an identity that no CiliumEndpoint refers to is collected by the
// operator, and one that was collected too early is made again under the same number.
package identity

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"lash.internal/lash/agent/state"
)

// Keys of the labels that are derived rather than copied (source: Cilium's identity model).
const (
	KeyNamespace       = "io.kubernetes.pod.namespace"
	KeyCluster         = "io.cilium.k8s.policy.cluster"
	KeyServiceAccount  = "io.cilium.k8s.policy.serviceaccount"
	KeyNamespaceLabels = "io.cilium.k8s.namespace.labels."
)

const sourceKubernetes = "k8s"

// rule is one entry of a filter: labels of source (all when empty) whose key starts with a match
// of re.
type rule struct {
	source  string
	re      *regexp.Regexp
	exclude bool
}

// match returns the length of the part of key that the rule covers, 0 when it does not apply.
func (r rule) match(source, key string) int {
	if r.source != "" && r.source != source {
		return 0
	}
	return len(r.re.FindString(key))
}

// Filter decides which labels make up an identity. Of the entries that match a label the one
// that covers the longest part of its key wins, an excluding one when they are equal.
type Filter struct {
	rules     []rule
	whitelist bool
}

var defaultRules = []string{
	"reserved:.*",
	`io\.kubernetes\.pod\.namespace`,
	`io\.cilium\.k8s\.namespace\.labels`,
	`app\.kubernetes\.io`,
	`io\.cilium\.k8s\.policy\.cluster`,
	`io\.cilium\.k8s\.policy\.serviceaccount`,
	`!io\.kubernetes`,
	`!kubernetes\.io`,
	`!statefulset\.kubernetes\.io/pod-name`,
	`!apps\.kubernetes\.io/pod-index`,
	`!batch\.kubernetes\.io/job-completion-index`,
	`!batch\.kubernetes\.io/controller-uid`,
	`!.*beta\.kubernetes\.io`,
	`!k8s\.io`,
	`!pod-template-generation`,
	`!pod-template-hash`,
	`!controller-revision-hash`,
	`!controller-uid`,
	`!annotation.*`,
	`!etcd_node`,
	`!topology\.kubernetes\.io`,
}

// NewFilter parses the option "labels": entries apart by spaces, each [!][source:]prefix, where
// prefix is a regular expression that must match the start of a key. They are added to the
// default entries; an entry without "!" makes the filter drop everything that nothing includes.
func NewFilter(option string) (*Filter, error) {
	f := &Filter{}
	for _, e := range defaultRules {
		r, err := parseRule(e)
		if err != nil {
			return nil, err
		}
		f.rules = append(f.rules, r)
	}
	for _, e := range strings.Fields(option) {
		r, err := parseRule(e)
		if err != nil {
			return nil, err
		}
		f.whitelist = f.whitelist || !r.exclude
		f.rules = append(f.rules, r)
	}
	return f, nil
}

func parseRule(e string) (rule, error) {
	var r rule
	rest := e
	if rest, r.exclude = strings.CutPrefix(rest, "!"); rest == "" {
		return rule{}, fmt.Errorf("label filter entry %q is empty", e)
	}
	if src, key, ok := strings.Cut(rest, ":"); ok {
		r.source, rest = src, key
	}
	re, err := regexp.Compile("^(?:" + rest + ")")
	if err != nil {
		return rule{}, fmt.Errorf("label filter entry %q: %w", e, err)
	}
	r.re = re
	return r, nil
}

// keep says whether a label is part of an identity.
func (f *Filter) keep(source, key string) bool {
	in, out := 0, 0
	for _, r := range f.rules {
		n := r.match(source, key)
		if r.exclude {
			out = max(out, n)
		} else {
			in = max(in, n)
		}
	}
	return in > out || (!f.whitelist && out == 0)
}

// PodLabels returns the sorted label set of a pod, as "source:key=value".
func (f *Filter) PodLabels(pod state.Pod, ns state.Namespace, cluster string) []string {
	set := map[string]string{}
	for k, v := range pod.Labels {
		set[k] = v
	}
	for k, v := range ns.Labels {
		set[KeyNamespaceLabels+k] = v
	}
	set[KeyNamespace] = pod.Name.Namespace
	set[KeyCluster] = cluster
	if pod.ServiceAccount != "" {
		set[KeyServiceAccount] = pod.ServiceAccount
	}
	out := make([]string, 0, len(set))
	for k, v := range set {
		if f.keep(sourceKubernetes, k) {
			out = append(out, sourceKubernetes+":"+k+"="+v)
		}
	}
	slices.Sort(out)
	return out
}
