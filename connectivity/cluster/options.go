// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"net/netip"
	"strings"
)

// DefaultName is the cluster that commands mean when none is named.
const DefaultName = "dev"

// DefaultStateDir is where the clusters of this machine have their state.
const DefaultStateDir = "/var/lib/lash/clusters"

// Options say what cluster to make.
type Options struct {
	Name         string   // default DefaultName
	Workers      int      // nodes beside the control plane
	KubeProxy    string   // none, iptables or nftables
	CNI          string   // none, or ptp: the reference plugins and static routes
	IPFamily     string   // ipv4, ipv6 or dual
	PodCIDRs     []string // one a family; default 10.244.0.0/16 and fd00:10:244::/56
	ServiceCIDRs []string // one a family; default 10.96.0.0/12 and fd00:10:96::/112
	BinDir       string   // where to look for third-party programs first
	Kubeconfig   string   // file to merge into; default as kubectl has it
	StateDir     string   // default DefaultStateDir
	Keep         bool     // on failure, leave what has been made for a look at it
	Progress     func(step string)
}

func (o *Options) setDefaults() {
	set := func(s *string, value string) {
		if *s == "" {
			*s = value
		}
	}
	set(&o.Name, DefaultName)
	set(&o.KubeProxy, "none")
	set(&o.CNI, "none")
	set(&o.IPFamily, "ipv4")
	set(&o.StateDir, DefaultStateDir)
	v4, v6 := o.families()
	if len(o.PodCIDRs) == 0 {
		o.PodCIDRs = pick(v4, v6, "10.244.0.0/16", "fd00:10:244::/56")
	}
	if len(o.ServiceCIDRs) == 0 {
		o.ServiceCIDRs = pick(v4, v6, "10.96.0.0/12", "fd00:10:96::/112")
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
}

func pick(v4, v6 bool, four, six string) []string {
	var out []string
	if v4 {
		out = append(out, four)
	}
	if v6 {
		out = append(out, six)
	}
	return out
}

func (o *Options) families() (v4, v6 bool) {
	return o.IPFamily != "ipv6", o.IPFamily == "ipv6" || o.IPFamily == "dual"
}

func oneOf(flag, value string, allowed ...string) error {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	return fmt.Errorf("%w: %s %q: use one of %s", ErrBadOption, flag, value, strings.Join(allowed, ", "))
}

// validate checks o after setDefaults.
func (o *Options) validate() error {
	if err := checkName(o.Name); err != nil {
		return err
	}
	if o.Workers < 0 || o.Workers > 50 {
		return fmt.Errorf("%w: workers %d: use 0 to 50", ErrBadOption, o.Workers)
	}
	for _, err := range []error{
		oneOf("kube-proxy", o.KubeProxy, "none", "iptables", "nftables"),
		oneOf("cni", o.CNI, "none", "ptp"),
		oneOf("ip-family", o.IPFamily, "ipv4", "ipv6", "dual"),
	} {
		if err != nil {
			return err
		}
	}
	pods, err := o.prefixes("pod-cidr", o.PodCIDRs)
	if err != nil {
		return err
	}
	services, err := o.prefixes("service-cidr", o.ServiceCIDRs)
	if err != nil {
		return err
	}
	for _, p := range pods {
		if _, err := nodeMask(p); err != nil {
			return err
		}
		for _, s := range services {
			if p.Overlaps(s) {
				return fmt.Errorf("%w: pod CIDR %s and service CIDR %s overlap", ErrBadOption, p, s)
			}
		}
	}
	for _, s := range services {
		if s.Addr().BitLen()-s.Bits() < 5 || s.Addr().Is6() && s.Bits() < 108 {
			return fmt.Errorf("%w: service CIDR %s: use a prefix of at most 20 host bits and at least 5", ErrBadOption, s)
		}
	}
	return nil
}

// prefixes parses one CIDR a family and checks that they are the families asked for.
func (o *Options) prefixes(flag string, cidrs []string) ([]netip.Prefix, error) {
	v4, v6 := o.families()
	var out []netip.Prefix
	seen := map[bool]bool{}
	for _, s := range cidrs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrBadOption, flag, err)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%w: %s %s has host bits set, did you mean %s", ErrBadOption, flag, s, p.Masked())
		}
		seen[p.Addr().Is6()] = true
		out = append(out, p)
	}
	if seen[false] != v4 || seen[true] != v6 || len(out) != len(seen) {
		return nil, fmt.Errorf("%w: %s %s: family %s needs exactly one CIDR of each of its families",
			ErrBadOption, flag, strings.Join(cidrs, ","), o.IPFamily)
	}
	return out, nil
}

// nodeMask is the length of a node's share of the pod CIDR.
func nodeMask(pods netip.Prefix) (int, error) {
	bits := pods.Bits()
	if pods.Addr().Is4() {
		switch {
		case bits < 8 || bits > 24:
			return 0, fmt.Errorf("%w: pod CIDR %s: use a prefix length of 8 to 24", ErrBadOption, pods)
		case bits <= 20:
			return 24, nil
		}
		return bits + 4, nil
	}
	switch {
	case bits < 32 || bits > 108:
		return 0, fmt.Errorf("%w: pod CIDR %s: use a prefix length of 32 to 108", ErrBadOption, pods)
	case bits < 48:
		return bits + 16, nil
	case bits <= 60:
		return 64, nil
	}
	return bits + 8, nil
}
