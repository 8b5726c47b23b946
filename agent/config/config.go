// SPDX-License-Identifier: Apache-2.0

// Package config turns what the user said into one immutable Config. The same option may come
// from a flag, from an environment variable CILIUM_<OPTION> or from a file of the ConfigMap
// directory; the first of them that is set wins, else the default. One table (options.go) lists
// every option there is.
package config

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Config is everything that the node program and the operator can be told.
type Config struct {
	ClusterName string
	ClusterID   uint32
	NodeName    string

	IPv4, IPv6 bool

	// ClusterPool: the operator divides the pools below among the nodes; else Kubernetes does.
	ClusterPool bool
	PoolIPv4    []netip.Prefix
	PoolIPv6    []netip.Prefix
	PoolMaskV4  int
	PoolMaskV6  int

	// Tunnel: other nodes' pods are reached through the tunnel; else by the node's routes, which
	// DirectRoutes installs to nodes on the same link.
	Tunnel         bool
	DirectRoutes   bool
	TunnelProtocol string
	TunnelPort     uint16
	Devices        []string // empty: detect
	MTU            int      // of the underlay; 0: detect

	KubeProxyReplacement bool
	SocketLB             bool
	SocketLBHostNSOnly   bool
	// NodePortMin and NodePortMax bound the NodePorts, both inclusive.
	NodePortMin, NodePortMax uint16
	NodePortAddresses        []netip.Prefix // where they are open; empty: at all addresses of the node
	ProtectNodePorts         bool           // from the node's own connections
	BindProtection           bool           // from processes that bind them
	HealthCheckNodePort      bool
	EndpointHealthChecking   bool
	SourceRangeCheck         bool
	LBMode                   LBMode
	LBAlgorithm              string // random or maglev
	MaglevSize, MaglevSeed   uint32
	KubeProxyHealthzAddr     string

	MasqueradeIPv4      bool
	MasqueradeIPv6      bool
	NativeRoutingCIDRv4 netip.Prefix
	NativeRoutingCIDRv6 netip.Prefix

	FlowsMax uint32 // entries of the main table of IPv4 flows; 0: as it is

	CgroupRoot string
	BPFRoot    string
	// ForceCLSBPF attaches to devices by cls_bpf filters also where the kernel has tcx.
	ForceCLSBPF bool

	MonitorAggregation         string
	MonitorAggregationInterval time.Duration

	EnablePolicy string
	Labels       string

	HealthPort          uint16
	PrometheusAddr      string
	OperatorPrometheus  string
	OperatorAPIAddr     string
	NotReadyTaint       string
	RemoveNodeTaints    bool
	SetCiliumIsUp       bool
	CNIConfPath         string // empty: do not write
	CNIExclusive        bool
	Debug               bool
	LogFormat           string
	IdentityGCInterval  time.Duration
	EndpointGCInterval  time.Duration
	CompatibilityLevel  string
	Kubeconfig          string
	APIServers          []string // to choose among, "host:port"
	StateDir            string
	KeepDir             string
	RunDir              string
	KubernetesNamespace string
	OperatorLeaderElect bool
	ConfigDir           string
	UnmanagedPodWatcher time.Duration

	parts   []servicePart
	values  map[string]string
	unknown []string
}

// Options returns every option with its effective value.
func (c *Config) Options() map[string]string {
	out := make(map[string]string, len(c.values))
	for k, v := range c.values {
		out[k] = v
	}
	return out
}

// Unknown lists the keys of the ConfigMap that no option has.
func (c *Config) Unknown() []string { return slices.Clone(c.unknown) }

// ErrHelp is returned by Load when the user asked for help, which has been printed.
var ErrHelp = flag.ErrHelp

// Env is the environment variable of an option.
func Env(key string) string {
	return "CILIUM_" + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

// Load reads the configuration. args are the command line without the program's name, getenv
// gives environment variables, usage receives the help text. Every mistake is reported, each
// with the key it is about.
func Load(args []string, getenv func(string) string, usage io.Writer) (*Config, error) {
	table := options()
	flags := flag.NewFlagSet("cilium-agent", flag.ContinueOnError)
	flags.SetOutput(usage)
	given := map[string]string{}
	for _, o := range table {
		help := o.help + " (environment: " + Env(o.key) + ")"
		if o.def != "" {
			help += "\ndefault: " + o.def
		}
		set := func(v string) error { given[o.key] = v; return nil }
		if o.boolean {
			flags.BoolFunc(o.key, help, set)
		} else {
			flags.Func(o.key, help, set)
		}
	}
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	dir := given["config-dir"]
	if dir == "" {
		dir = getenv(Env("config-dir"))
	}
	files, err := readDir(dir)
	if err != nil {
		return nil, err
	}
	c := &Config{values: map[string]string{}}
	errs := c.apply(table, func(o option) (value, from string) {
		v, from := o.def, "default"
		if s, ok := files[o.key]; ok {
			v, from = s, filepath.Join(dir, o.key)
		}
		if s := getenv(Env(o.key)); s != "" {
			v, from = s, Env(o.key)
		}
		if s, ok := given[o.key]; ok {
			v, from = s, "flag"
		}
		return v, from
	})
	for k := range files {
		if !slices.ContainsFunc(table, func(o option) bool { return o.key == k }) {
			c.unknown = append(c.unknown, k)
		}
	}
	slices.Sort(c.unknown)
	if c.NodeName = getenv("K8S_NODE_NAME"); c.NodeName == "" {
		c.NodeName, _ = os.Hostname()
	}
	c.KubernetesNamespace = cmp.Or(getenv("CILIUM_K8S_NAMESPACE"), "kube-system")
	errs = append(errs, c.check()...)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return c, nil
}

// apply sets every option of the table to what value says, and returns the mistakes, each with its
// key and where the value comes from.
func (c *Config) apply(table []option, value func(option) (value, from string)) []error {
	var errs []error
	for _, o := range table {
		v, from := value(o)
		c.values[o.key] = v
		if err := o.set(c, v); err != nil {
			errs = append(errs, fmt.Errorf("option %s (%s): %w", o.key, from, err))
		}
	}
	return errs
}

// Option describes one option to those who change the configuration from outside.
type Option struct {
	Key, Default, Help string
}

// Table lists every option there is, by key.
func Table() []Option {
	var out []Option
	for _, o := range options() {
		out = append(out, Option{Key: o.key, Default: o.def, Help: o.help})
	}
	slices.SortFunc(out, func(a, b Option) int { return cmp.Compare(a.Key, b.Key) })
	return out
}

// Check judges values, by option, as an agent or an operator would that reads them from the
// ConfigMap. Keys that no option has are not judged; see Table.
func Check(values map[string]string) error {
	c := &Config{values: map[string]string{}}
	errs := c.apply(options(), func(o option) (value, from string) {
		if v, ok := values[o.key]; ok {
			return strings.TrimSpace(v), "cilium-config"
		}
		return o.def, "default"
	})
	return errors.Join(append(errs, c.check()...)...)
}

// CheckPool says whether ranges can be cut into subnets of a prefix length.
func CheckPool(ranges []netip.Prefix, bits int) error {
	for i, p := range ranges {
		if bits < p.Bits() || bits > p.Addr().BitLen()-2 {
			return fmt.Errorf("mask size %d does not fit the pool %s", bits, p.Masked())
		}
		for _, other := range ranges[:i] {
			if other.Overlaps(p) {
				return fmt.Errorf("pools %s and %s overlap", other, p)
			}
		}
	}
	return nil
}

// check finds options that contradict each other.
func (c *Config) check() []error {
	var errs []error
	if !c.IPv4 && !c.IPv6 {
		errs = append(errs, errors.New("options enable-ipv4 and enable-ipv6: one of them must be true"))
	}
	if c.ClusterID != 0 && c.ClusterName == "default" {
		errs = append(errs, errors.New("option cluster-name: must be set when cluster-id is"))
	}
	if c.ClusterPool {
		if c.IPv4 && len(c.PoolIPv4) == 0 {
			errs = append(errs, errors.New("option cluster-pool-ipv4-cidr: must be set with ipam cluster-pool and enable-ipv4"))
		}
		if c.IPv6 && len(c.PoolIPv6) == 0 {
			errs = append(errs, errors.New("option cluster-pool-ipv6-cidr: must be set with ipam cluster-pool and enable-ipv6"))
		}
		if err := CheckPool(c.PoolIPv4, c.PoolMaskV4); c.IPv4 && err != nil {
			errs = append(errs, fmt.Errorf("options cluster-pool-ipv4-cidr and cluster-pool-ipv4-mask-size: %w", err))
		}
		if err := CheckPool(c.PoolIPv6, c.PoolMaskV6); c.IPv6 && err != nil {
			errs = append(errs, fmt.Errorf("options cluster-pool-ipv6-cidr and cluster-pool-ipv6-mask-size: %w", err))
		}
	}
	return append(errs, c.checkServices()...)
}

// readDir reads a mounted ConfigMap: a file a key. Names that start with ".." are the kubelet's.
func readDir(dir string) (map[string]string, error) {
	out := map[string]string{}
	if dir == "" {
		return out, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("option config-dir: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if st, err := os.Stat(path); err != nil || st.IsDir() {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("option %s: %w", e.Name(), err)
		}
		out[e.Name()] = strings.TrimSpace(string(b))
	}
	return out, nil
}

// APIServersFile is where a node keeps the addresses of the API servers.
func (c *Config) APIServersFile() string { return filepath.Join(c.KeepDir, "api-servers.json") }

// TableSizes are the entries of the flow tables by name, in the proportions that they have at first;
// none where nothing is wished.
func (c *Config) TableSizes() map[string]uint32 {
	if c.FlowsMax == 0 {
		return nil
	}
	n := max(c.FlowsMax, 1024)
	return map[string]uint32{"ct4": n, "ct4_new": n / 4, "ct6": n / 2, "ct6_new": n / 8}
}
