// SPDX-License-Identifier: Apache-2.0

package install

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"lash.internal/lash/install/values"
)

// derive makes the values: what the facts suggest, under what the user gave.
func derive(f *Facts, o Options, level string, say func(string, ...any)) (map[string]any, error) {
	d := derivation{f: f, out: map[string]any{}, user: o.Values, mode: o.DatapathMode, say: say}
	d.set("compatibility.level", level)
	d.set("cluster.name", f.ClusterName)
	if d.get("operator.replicas") == nil {
		d.set("operator.replicas", 1)
	}
	d.datapath()
	d.services()
	d.families()
	if err := d.ipam(); err != nil {
		return nil, err
	}
	d.flavour()
	if o.NodesWithoutNetwork {
		d.nodesWithout()
	}
	return merge(d.out, o.Values), nil
}

type derivation struct {
	f    *Facts
	out  map[string]any
	user map[string]any
	mode string // datapath mode that the user asked for, or ""
	say  func(string, ...any)
}

// get is what the user set, or nil.
func (d *derivation) get(path string) any { return lookup(d.user, path) }

// set records a value that was derived.
func (d *derivation) set(path string, v any) {
	m := d.out
	parts := strings.Split(path, ".")
	for _, p := range parts[:len(parts)-1] {
		sub, ok := m[p].(map[string]any)
		if !ok {
			sub = map[string]any{}
			m[p] = sub
		}
		m = sub
	}
	m[parts[len(parts)-1]] = v
}

func (d *derivation) datapath() {
	mode, _ := d.get("routingMode").(string)
	if mode == "" {
		mode = cmp.Or(d.mode, "tunnel")
	}
	d.set("routingMode", mode)
	if mode == "tunnel" {
		d.set("tunnelProtocol", "vxlan")
		return
	}
	if direct, _ := d.get("autoDirectNodeRoutes").(bool); !direct {
		d.say("ℹ️  Native routing: the network has to route every node's pod CIDR to it; --set autoDirectNodeRoutes=true does so for nodes on one link")
	}
}

// services makes Services ours where there is no kube-proxy.
func (d *derivation) services() {
	if d.f.KubeProxy || d.f.KubeProxySkip {
		return
	}
	if v := d.get("kubeProxyReplacement"); v == nil {
		d.say("ℹ️  Cilium will fully replace all functionalities of kube-proxy")
		d.set("kubeProxyReplacement", "true")
	}
	d.apiServers()
}

// apiServers says where nodes find the API servers before anything makes the Service kubernetes work.
// Agents learn of others by themselves once they have reached one.
func (d *derivation) apiServers() {
	host, port := d.f.APIHost, d.f.APIPort
	given := wordsOf(d.get("k8s.apiServerURLs"))
	if len(given) > 0 {
		u, err := url.Parse(given[0])
		if err != nil {
			return // the agents' own check says what is wrong with it
		}
		host, port = u.Hostname(), cmp.Or(u.Port(), "443")
	}
	if d.get("k8sServiceHost") == nil {
		d.set("k8sServiceHost", host)
		if d.get("k8sServicePort") == nil {
			d.set("k8sServicePort", port)
		}
	}
	if s := d.f.APIServers; len(given) == 0 && len(s) > 0 && (len(s) > 1 || s[0] != net.JoinHostPort(host, port)) {
		d.set("k8s.apiServerURLs", "https://"+strings.Join(s, " https://"))
	}
}

func (d *derivation) families() {
	if d.get("ipv4.enabled") == nil && !d.f.IPv4 {
		d.say("ℹ️  The cluster is IPv6 only: using ipv4.enabled=false")
		d.set("ipv4.enabled", false)
	}
	if d.get("ipv6.enabled") == nil && d.f.IPv6 {
		if d.f.IPv4 {
			d.say("ℹ️  The cluster is dual stack: using ipv6.enabled=true")
		}
		d.set("ipv6.enabled", true)
	}
}

func (d *derivation) enabled(path string, byDefault bool) bool {
	v := d.get(path)
	if v == nil {
		v = lookup(d.out, path)
	}
	if b, ok := v.(bool); ok {
		return b
	}
	return byDefault
}

// ipam chooses where pod addresses come from, and a range that is free.
func (d *derivation) ipam() error {
	mode, _ := d.get("ipam.mode").(string)
	listed := d.get("ipam.operator.clusterPoolIPv4PodCIDRList") != nil || d.get("ipam.operator.clusterPoolIPv6PodCIDRList") != nil
	if mode == "" && !listed && (d.f.PodCIDRs || d.f.Flavour == "kind") {
		d.say("ℹ️  Every node has a pod CIDR: using ipam.mode=kubernetes")
		d.set("ipam.mode", "kubernetes")
		return nil
	}
	if mode == "kubernetes" {
		if !d.f.PodCIDRs {
			return badOption("ipam.mode=kubernetes needs spec.podCIDRs on every node, and %s has none: use ipam.mode=cluster-pool, or start kube-controller-manager with --allocate-node-cidrs",
				d.f.nodeWithoutPodCIDR())
		}
		return nil
	}
	for _, f := range poolFamilies {
		if f.enabled(d) {
			if err := d.pool(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// poolFamily is what the cluster pool of one address family is described by.
type poolFamily struct {
	enabled   func(*derivation) bool
	key, def  string // value of the ranges and its default
	maskKey   string // value of the prefix length of one node's range
	mask      int    // its default
	v6        bool
	candidate func(i int) netip.Prefix // other ranges than the default
}

var poolFamilies = []poolFamily{
	{
		enabled: func(d *derivation) bool { return d.enabled("ipv4.enabled", true) },
		key:     "ipam.operator.clusterPoolIPv4PodCIDRList", def: "10.0.0.0/8",
		maskKey: "ipam.operator.clusterPoolIPv4MaskSize", mask: 24,
		candidate: func(i int) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16) },
	},
	{
		enabled: func(d *derivation) bool { return d.enabled("ipv6.enabled", false) },
		key:     "ipam.operator.clusterPoolIPv6PodCIDRList", def: "fd00::/104",
		maskKey: "ipam.operator.clusterPoolIPv6MaskSize", mask: 120, v6: true,
		candidate: func(i int) netip.Prefix {
			a := netip.MustParseAddr("fd00::").As16()
			a[7] = byte(i)
			return netip.PrefixFrom(netip.AddrFrom16(a), 104)
		},
	},
}

// pool checks the ranges that the user gave, or finds a free one where the default overlaps, and
// then whether they can be cut into ranges of nodes.
func (d *derivation) pool(f poolFamily) error {
	var ranges []netip.Prefix
	var err error
	if given := d.get(f.key); given != nil {
		ranges, err = d.givenRanges(f, wordsOf(given))
	} else {
		ranges, err = d.freeRange(f)
	}
	if err != nil {
		return err
	}
	mask := f.mask
	if v := d.get(f.maskKey); v != nil {
		if mask, err = strconv.Atoi(fmt.Sprint(v)); err != nil {
			return badOption("value %s: must be a whole number, not %v", f.maskKey, v)
		}
	}
	room, nodes := 0, 0
	for _, p := range ranges {
		if least, most := p.Bits(), p.Addr().BitLen()-2; mask < least || mask > most {
			return badOption("value %s: %d does not cut %s into ranges of nodes: use a number from %d to %d", f.maskKey, mask, p, least, most)
		}
		room += 1 << min(mask-p.Bits(), 30)
	}
	for i := range d.f.Nodes {
		if d.f.Nodes[i].Labels[NoScheduleLabel] != "true" {
			nodes++
		}
	}
	if room < nodes {
		return badOption("value %s: %s has room for %d nodes with ranges of /%d, and the cluster has %d: use a larger range, or a larger %s",
			f.key, joined(ranges), room, mask, nodes, f.maskKey)
	}
	return nil
}

// givenRanges reads the ranges that the user gave.
func (d *derivation) givenRanges(f poolFamily, words []string) ([]netip.Prefix, error) {
	if len(words) == 0 {
		return nil, badOption("value %s: is empty, so no pod could have an address: leave it out, or give a range such as %s", f.key, f.def)
	}
	var out []netip.Prefix
	for _, s := range words {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is6() != f.v6 {
			return nil, badOption("value %s: %q is not an address range such as %s", f.key, s, f.def)
		}
		what := d.f.overlap(p)
		for _, other := range out {
			if other.Overlaps(p) {
				what = fmt.Sprintf("the range %s of the same list", other)
			}
		}
		if what != "" {
			return nil, badOption("value %s: %s overlaps %s: choose a range that is free", f.key, p, what)
		}
		out = append(out, p)
	}
	return out, nil
}

// freeRange is the default, or where that overlaps, the first candidate that is free.
func (d *derivation) freeRange(f poolFamily) ([]netip.Prefix, error) {
	def := netip.MustParsePrefix(f.def)
	what := d.f.overlap(def)
	if what == "" {
		return []netip.Prefix{def}, nil
	}
	for i := range 256 {
		if p := f.candidate(i); d.f.overlap(p) == "" {
			d.say("ℹ️  The default pod range %s overlaps %s: using %s", def, what, p)
			d.set(f.key, []any{p.String()})
			return []netip.Prefix{p}, nil
		}
	}
	return nil, fmt.Errorf("no part of %s is free for pods (%s is in the way): give --set %s={RANGE}", def, what, f.key)
}

func joined(ranges []netip.Prefix) string {
	out := make([]string, len(ranges))
	for i, p := range ranges {
		out[i] = p.String()
	}
	return strings.Join(out, ", ")
}

// overlap says what p overlaps in the cluster, or "".
func (f *Facts) overlap(p netip.Prefix) string {
	for _, s := range f.ServiceCIDRs {
		if p.Overlaps(s) {
			return fmt.Sprintf("the service range %s", s)
		}
	}
	for i := range f.Nodes {
		for _, a := range f.Nodes[i].Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil && p.Contains(ip) {
				return fmt.Sprintf("the address %s of node %s", ip, f.Nodes[i].Name)
			}
		}
	}
	return ""
}

func (f *Facts) nodeWithoutPodCIDR() string {
	for i := range f.Nodes {
		if len(f.Nodes[i].Spec.PodCIDRs) == 0 && f.Nodes[i].Spec.PodCIDR == "" {
			return "node " + f.Nodes[i].Name
		}
	}
	return "the cluster"
}

// flavour sets what some kinds of cluster keep in other places.
func (d *derivation) flavour() {
	switch d.f.Flavour {
	case "microk8s":
		d.set("cni.binPath", "/var/snap/microk8s/current/opt/cni/bin")
		d.set("cni.confPath", "/var/snap/microk8s/current/args/cni-network")
	case "GKE":
		d.set("cni.binPath", "/home/kubernetes/bin")
	case "K3s":
		d.set("cni.binPath", "/var/lib/rancher/k3s/data/current/bin")
		d.set("cni.confPath", "/var/lib/rancher/k3s/agent/etc/cni/net.d")
	}
}

// NoScheduleLabel marks nodes that get no agent with NodesWithoutNetwork.
const NoScheduleLabel = "cilium.io/no-schedule"

func (d *derivation) nodesWithout() {
	rule := map[string]any{"nodeAffinity": map[string]any{
		"requiredDuringSchedulingIgnoredDuringExecution": map[string]any{
			"nodeSelectorTerms": []any{map[string]any{
				"matchExpressions": []any{map[string]any{"key": NoScheduleLabel, "operator": "NotIn", "values": []any{"true"}}},
			}},
		},
	}}
	d.set("affinity", rule)
	d.set("operator.affinity", rule)
}

// checkValues judges what the user gave before the cluster is asked anything.
func checkValues(o Options) error {
	switch o.DatapathMode {
	case "", "tunnel", "native":
	case "aws-eni", "gke", "azure", "aks-byocni":
		return badOption("datapath mode %s is not supported yet: use tunnel or native", o.DatapathMode)
	default:
		return badOption("unknown datapath mode %q: use tunnel or native", o.DatapathMode)
	}
	if mode, _ := lookup(o.Values, "routingMode").(string); mode != "" && o.DatapathMode != "" && mode != o.DatapathMode {
		return badOption("--datapath-mode %s and the value routingMode=%s contradict each other: give one of them", o.DatapathMode, mode)
	}
	notices, err := values.Check(o.Values)
	if err != nil {
		return &OptionError{err}
	}
	for _, n := range notices {
		o.Say("ℹ️  %s", n)
	}
	if name, ok := lookup(o.Values, "cluster.name").(string); ok && (len(name) > maxClusterName || !clusterNameForm.MatchString(name)) {
		return badOption("value cluster.name: %q must be at most %d lower-case letters, digits and dashes, with no dash at either end", name, maxClusterName)
	}
	return nil
}

// lookup follows a dotted path; nil when it leads nowhere.
func lookup(m map[string]any, path string) any {
	var v any = m
	for _, p := range strings.Split(path, ".") {
		sub, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = sub[p]
	}
	return v
}

// merge lays over on top of under, key by key; neither is changed.
func merge(under, over map[string]any) map[string]any {
	out := maps.Clone(under)
	for k, v := range over {
		a, aok := out[k].(map[string]any)
		b, bok := v.(map[string]any)
		if aok && bok {
			out[k] = merge(a, b)
			continue
		}
		out[k] = v
	}
	return out
}

// wordsOf is a list, or a text with one or more words, as words.
func wordsOf(v any) []string {
	switch x := v.(type) {
	case string:
		return strings.Fields(strings.ReplaceAll(x, ",", " "))
	case []any:
		var out []string
		for _, e := range x {
			out = append(out, fmt.Sprint(e))
		}
		return out
	case []string:
		return x
	}
	return nil
}
