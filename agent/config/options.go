// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// option is one row of the table: a key, its default, and how a value gets into a Config.
type option struct {
	key     string
	def     string
	help    string
	boolean bool
	set     func(*Config, string) error
}

// options is the table of everything that can be set.
func options() []option {
	return slices.Concat(clusterOptions(), datapathOptions(), serviceOptions(), runtimeOptions())
}

func clusterOptions() []option {
	return []option{
		text("config-dir", "", "directory with a file for each option", func(c *Config) *string { return &c.ConfigDir }),
		{key: "cluster-name", def: "default", help: "name of the cluster", set: setClusterName},
		number("cluster-id", "0", "number of the cluster, 0 to 255", 0, 255, func(c *Config, n int) { c.ClusterID = uint32(n) }),
		toggle("enable-ipv4", "true", "give pods IPv4 addresses", func(c *Config) *bool { return &c.IPv4 }),
		toggle("enable-ipv6", "false", "give pods IPv6 addresses", func(c *Config) *bool { return &c.IPv6 }),
		{key: "ipam", def: "cluster-pool", help: "who divides the pod CIDRs: kubernetes or cluster-pool", set: setIPAM},
		prefixes("cluster-pool-ipv4-cidr", "10.0.0.0/8", "IPv4 pools of the cluster", false, func(c *Config) *[]netip.Prefix { return &c.PoolIPv4 }),
		prefixes("cluster-pool-ipv6-cidr", "fd00::/104", "IPv6 pools of the cluster", true, func(c *Config) *[]netip.Prefix { return &c.PoolIPv6 }),
		number("cluster-pool-ipv4-mask-size", "24", "prefix length of a node's IPv4 range", 1, 30, func(c *Config, n int) { c.PoolMaskV4 = n }),
		number("cluster-pool-ipv6-mask-size", "120", "prefix length of a node's IPv6 range", 1, 126, func(c *Config, n int) { c.PoolMaskV6 = n }),
		only("identity-allocation-mode", "crd", "where identities are kept", "crd"),
		text("labels", "", "label prefixes that identities are made of", func(c *Config) *string { return &c.Labels }),
		one("enable-policy", "default", "when network policy applies", []string{"default", "always", "never"}, func(c *Config) *string { return &c.EnablePolicy }),
		interval("identity-gc-interval", "15m0s", "how often unused identities are looked for", func(c *Config) *time.Duration { return &c.IdentityGCInterval }),
		interval("cilium-endpoint-gc-interval", "5m0s", "how often orphaned CiliumEndpoints are looked for", func(c *Config) *time.Duration { return &c.EndpointGCInterval }),
		interval("unmanaged-pod-watcher-interval", "15s", "how often pods without network of ours are looked for; 0: never", func(c *Config) *time.Duration { return &c.UnmanagedPodWatcher }),
		text("agent-not-ready-taint-key", "node.cilium.io/agent-not-ready", "taint that a ready node loses", func(c *Config) *string { return &c.NotReadyTaint }),
		toggle("remove-cilium-node-taints", "true", "remove the taint when the agent is ready", func(c *Config) *bool { return &c.RemoveNodeTaints }),
		toggle("set-cilium-is-up-condition", "true", "set NetworkUnavailable=False when the agent is ready", func(c *Config) *bool { return &c.SetCiliumIsUp }),
		toggle("leader-elect", "true", "operator: only one replica acts", func(c *Config) *bool { return &c.OperatorLeaderElect }),
		{key: "set-cilium-node-taints", def: "false", boolean: true, help: "operator: taint nodes on which no agent is ready", set: unsupportedTrue("give nodes the taint when they join the cluster; a ready agent removes it")},
		text("compatibility-level", "", "Cilium version that is reported", func(c *Config) *string { return &c.CompatibilityLevel }),
	}
}

func datapathOptions() []option {
	return []option{
		{key: "routing-mode", def: "tunnel", help: "how packets get to other nodes: tunnel or native", set: setRouting},
		toggle("auto-direct-node-routes", "false", "with native routing: routes to the pods of nodes on the same link", func(c *Config) *bool { return &c.DirectRoutes }),
		one("tunnel-protocol", "vxlan", "encapsulation", []string{"vxlan"}, func(c *Config) *string { return &c.TunnelProtocol }),
		number("tunnel-port", "8472", "UDP port of the tunnel", 1, 65535, func(c *Config, n int) { c.TunnelPort = uint16(n) }),
		list("devices", "", "devices that lead out of the node; empty: detect", func(c *Config) *[]string { return &c.Devices }),
		number("mtu", "0", "MTU of the network between the nodes; 0: detect", 0, 65535, func(c *Config, n int) { c.MTU = n }),
		toggle("enable-ipv4-masquerade", "true", "hide pod addresses from what is outside", func(c *Config) *bool { return &c.MasqueradeIPv4 }),
		toggle("enable-ipv6-masquerade", "true", "hide pod addresses from what is outside", func(c *Config) *bool { return &c.MasqueradeIPv6 }),
		prefix("ipv4-native-routing-cidr", "destinations that are never masqueraded", false, func(c *Config) *netip.Prefix { return &c.NativeRoutingCIDRv4 }),
		prefix("ipv6-native-routing-cidr", "destinations that are never masqueraded", true, func(c *Config) *netip.Prefix { return &c.NativeRoutingCIDRv6 }),
		number("bpf-ct-global-tcp-max", "0", "IPv4 flows that fit the connection table; the others follow from it; 0: as it is, 131072 at first", 0, 1<<24, func(c *Config, n int) { c.FlowsMax = uint32(n) }),
		toggle("enable-endpoint-health-checking", "true", "have an endpoint at which the agent probes whether the node's datapath carries packets", func(c *Config) *bool { return &c.EndpointHealthChecking }),
		text("cgroup-root", "/run/cilium/cgroupv2", "where the node's cgroup2 tree is mounted", func(c *Config) *string { return &c.CgroupRoot }),
		toggle("force-cls-bpf", "false", "attach to devices by cls_bpf filters also where the kernel has tcx", func(c *Config) *bool { return &c.ForceCLSBPF }),
		text("bpf-root", "/sys/fs/bpf", "where bpffs is mounted", func(c *Config) *string { return &c.BPFRoot }),
		{key: "monitor-aggregation", def: "medium", help: "how much of the traffic is reported: none, low, medium, maximum", set: setAggregation},
		interval("monitor-aggregation-interval", "5s", "how often an active flow is reported", func(c *Config) *time.Duration { return &c.MonitorAggregationInterval }),
	}
}

func runtimeOptions() []option {
	return []option{
		number("agent-health-port", "9879", "port of the health endpoint on the loopback address", 1, 65535, func(c *Config, n int) { c.HealthPort = uint16(n) }),
		listen("prometheus-serve-addr", "", "address of the agent's metrics; empty: none", func(c *Config) *string { return &c.PrometheusAddr }),
		listen("operator-prometheus-serve-addr", "", "address of the operator's metrics; empty: none", func(c *Config) *string { return &c.OperatorPrometheus }),
		listen("operator-api-serve-addr", "127.0.0.1:9234", "address of the operator's health endpoint", func(c *Config) *string { return &c.OperatorAPIAddr }),
		text("write-cni-conf-when-ready", "", "path of the CNI configuration that is written when the agent is ready; empty: none", func(c *Config) *string { return &c.CNIConfPath }),
		toggle("cni-exclusive", "false", "report foreign CNI configurations", func(c *Config) *bool { return &c.CNIExclusive }),
		toggle("debug", "false", "log more", func(c *Config) *bool { return &c.Debug }),
		{key: "log-opt", def: "", help: `{"format":"text"} or {"format":"json"}`, set: setLogOpt},
		text("k8s-kubeconfig-path", "", "kubeconfig; empty: the pod's service account", func(c *Config) *string { return &c.Kubeconfig }),
		{key: "k8s-api-server-urls", def: "", help: "API servers to choose among, beside KUBERNETES_SERVICE_HOST, as URLs", set: setAPIServers},
		text("state-dir", "/run/lash", "where state lives that must survive a restart", func(c *Config) *string { return &c.StateDir }),
		text("keep-dir", "/var/lib/lash-agent", "where state lives that must survive a reboot", func(c *Config) *string { return &c.KeepDir }),
		text("run-dir", "/var/run/cilium", "where the agent's socket lives", func(c *Config) *string { return &c.RunDir }),
		{key: "enable-hubble", def: "false", boolean: true, help: "serve flows", set: unsupportedTrue("flow observation over gRPC is not available")},
	}
}

func text(key, def, help string, at func(*Config) *string) option {
	return option{key: key, def: def, help: help, set: func(c *Config, v string) error { *at(c) = v; return nil }}
}

func toggle(key, def, help string, at func(*Config) *bool) option {
	return option{key: key, def: def, help: help, boolean: true, set: func(c *Config, v string) error {
		b, err := parseBool(v)
		*at(c) = b
		return err
	}}
}

func parseBool(v string) (bool, error) {
	switch strings.ToLower(v) {
	case "true", "1":
		return true, nil
	case "false", "0", "":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", v)
}

func number(key, def, help string, low, high int, put func(*Config, int)) option {
	return option{key: key, def: def, help: help, set: func(c *Config, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < low || n > high {
			return fmt.Errorf("%q is not a number from %d to %d", v, low, high)
		}
		put(c, n)
		return nil
	}}
}

func interval(key, def, help string, at func(*Config) *time.Duration) option {
	return option{key: key, def: def, help: help, set: func(c *Config, v string) error {
		// A bare number is seconds.
		if n, err := strconv.Atoi(v); err == nil {
			v = strconv.Itoa(n) + "s"
		}
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			return fmt.Errorf("%q is not a duration such as 5s", v)
		}
		*at(c) = d
		return nil
	}}
}

func one(key, def, help string, values []string, at func(*Config) *string) option {
	return option{key: key, def: def, help: help + ": " + strings.Join(values, ", "), set: func(c *Config, v string) error {
		if !slices.Contains(values, v) {
			return fmt.Errorf("%q is not supported; it must be %s", v, strings.Join(values, " or "))
		}
		*at(c) = v
		return nil
	}}
}

// only is an option with a single possible value.
func only(key, def, help, value string) option {
	return one(key, def, help, []string{value}, func(*Config) *string { return new(string) })
}

func unsupportedTrue(why string) func(*Config, string) error {
	return func(_ *Config, v string) error {
		b, err := parseBool(v)
		if err == nil && b {
			err = errors.New("true is not supported: " + why)
		}
		return err
	}
}

func list(key, def, help string, at func(*Config) *[]string) option {
	return option{key: key, def: def, help: help, set: func(c *Config, v string) error {
		*at(c) = fields(v)
		return nil
	}}
}

func fields(v string) []string {
	return strings.FieldsFunc(v, func(r rune) bool { return r == ' ' || r == ',' || r == '\n' || r == '\t' })
}

func parsePrefix(s string, v6 bool) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	family := "IPv4"
	if v6 {
		family = "IPv6"
	}
	if err != nil || p.Addr().Is6() != v6 {
		return netip.Prefix{}, fmt.Errorf("%q is not an %s prefix such as 10.0.0.0/8 or fd00::/104", s, family)
	}
	return p.Masked(), nil
}

func prefixes(key, def, help string, v6 bool, at func(*Config) *[]netip.Prefix) option {
	return option{key: key, def: def, help: help, set: func(c *Config, v string) error {
		var out []netip.Prefix
		for _, s := range fields(v) {
			p, err := parsePrefix(s, v6)
			if err != nil {
				return err
			}
			out = append(out, p)
		}
		*at(c) = out
		return nil
	}}
}

func prefix(key, help string, v6 bool, at func(*Config) *netip.Prefix) option {
	return option{key: key, help: help, set: func(c *Config, v string) error {
		if v == "" {
			return nil
		}
		p, err := parsePrefix(v, v6)
		*at(c) = p
		return err
	}}
}

func listen(key, def, help string, at func(*Config) *string) option {
	return option{key: key, def: def, help: help, set: func(c *Config, v string) error {
		if v != "" {
			if _, port, err := net.SplitHostPort(v); err != nil || port == "" {
				return fmt.Errorf("%q is not an address such as :9962 or 127.0.0.1:9234", v)
			}
		}
		*at(c) = v
		return nil
	}}
}

func setClusterName(c *Config, v string) error {
	if !regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`).MatchString(v) {
		return fmt.Errorf("%q is not a name of at most 32 lower-case letters, digits and dashes", v)
	}
	c.ClusterName = v
	return nil
}

func setIPAM(c *Config, v string) error {
	switch v {
	case "kubernetes":
		c.ClusterPool = false
	case "cluster-pool":
		c.ClusterPool = true
	default:
		return fmt.Errorf("%q is not supported; it must be kubernetes or cluster-pool", v)
	}
	return nil
}

func setRouting(c *Config, v string) error {
	if v != "tunnel" && v != "native" {
		return fmt.Errorf("%q is not supported; it must be tunnel or native", v)
	}
	c.Tunnel = v == "tunnel"
	return nil
}

func setKPR(c *Config, v string) error {
	switch v {
	case "strict":
		v = "true"
	case "partial", "probe", "disabled":
		return fmt.Errorf("%q is not supported; it must be true or false", v)
	}
	b, err := parseBool(v)
	c.KubeProxyReplacement = b
	return err
}

func setAggregation(c *Config, v string) error {
	switch strings.ToLower(v) {
	case "none", "disabled", "0":
		c.MonitorAggregation = "none"
	case "low", "lowest", "1", "2":
		c.MonitorAggregation = "low"
	case "medium", "3":
		c.MonitorAggregation = "medium"
	case "max", "maximum", "4":
		c.MonitorAggregation = "maximum"
	default:
		return fmt.Errorf("%q is not supported; it must be none, low, medium or maximum", v)
	}
	return nil
}

func setAPIServers(c *Config, v string) error {
	var out []string
	for _, s := range fields(v) {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			return fmt.Errorf("%q is not the URL of an API server such as https://192.0.2.1:6443", s)
		}
		out = append(out, net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443")))
	}
	c.APIServers = out
	return nil
}

func setLogOpt(c *Config, v string) error {
	c.LogFormat = "text"
	if v == "" {
		return nil
	}
	opts := map[string]string{}
	if strings.HasPrefix(v, "{") {
		if err := json.Unmarshal([]byte(v), &opts); err != nil {
			return fmt.Errorf("%q is not a JSON object of strings: %w", v, err)
		}
	} else {
		for _, s := range fields(v) {
			k, val, _ := strings.Cut(s, "=")
			opts[k] = val
		}
	}
	for k, val := range opts {
		switch {
		case k == "format" && (val == "json" || val == "text"):
			c.LogFormat = val
		case k == "level" && (val == "info" || val == "debug"):
			c.Debug = c.Debug || val == "debug"
		default:
			return fmt.Errorf("%s=%q is not supported; there are format=text, format=json, level=info, level=debug", k, val)
		}
	}
	return nil
}
