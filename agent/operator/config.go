// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Config is everything that the operator can be told. Its keys are those of ConfigMap
// cilium-config; each is also an environment variable CILIUM_<KEY> and a flag --<key>.
type Config struct {
	IPv4, IPv6         bool
	ClusterPool        bool // ipam
	IPv4Pool, IPv6Pool []netip.Prefix
	IPv4Mask, IPv6Mask int
	// IdentityGCInterval is how long an identity must be unused before it is collected, and how
	// often that is looked at. EndpointGCInterval is how often CiliumEndpoints are compared with
	// pods; 0 switches it off.
	IdentityGCInterval time.Duration
	EndpointGCInterval time.Duration
	NotReadyTaint      string
	RemoveTaints       bool
	SetNodeCondition   bool
	APIServeAddr       string
	PrometheusAddr     string // empty: no metrics
	Debug              bool
	LogJSON            bool
	// AgentNamespace holds the agents and the lease.
	AgentNamespace string
}

// ErrConfig marks configuration that cannot be used.
var ErrConfig = errors.New("configuration")

// settings reads one key after another and keeps the first error.
type settings struct {
	value func(key string) (string, bool)
	err   error
}

func (s *settings) fail(key, val string, err error) {
	if s.err == nil {
		s.err = fmt.Errorf("%w: %s=%q: %w", ErrConfig, key, val, err)
	}
}

func (s *settings) text(key, def string) string {
	if v, ok := s.value(key); ok {
		return v
	}
	return def
}

func (s *settings) yes(key string, def bool) bool {
	v, ok := s.value(key)
	if !ok || v == "" {
		return def
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		s.fail(key, v, errors.New("want true or false"))
	}
	return b
}

func (s *settings) number(key string, def, low, high int) int {
	v, ok := s.value(key)
	if !ok || v == "" {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		s.fail(key, v, fmt.Errorf("want a number from %d to %d", low, high))
	}
	return n
}

func (s *settings) duration(key string, def time.Duration) time.Duration {
	v, ok := s.value(key)
	if !ok || v == "" {
		return def
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		s.fail(key, v, errors.New("want a duration such as 15m0s"))
	}
	return d
}

func (s *settings) prefixes(key, def string, v6 bool) []netip.Prefix {
	v := s.text(key, def)
	var out []netip.Prefix
	for _, f := range strings.FieldsFunc(v, func(r rune) bool { return r == ' ' || r == ',' }) {
		p, err := netip.ParsePrefix(f)
		if err == nil && p.Addr().Is6() != v6 {
			err = errors.New("wrong address family")
		}
		if err != nil {
			s.fail(key, v, err)
			continue
		}
		out = append(out, p.Masked())
	}
	return out
}

// flags splits "--key=value", "--key value" and "--key"; the first argument that is none of these
// is an error.
func flags(args []string) (map[string]string, error) {
	out := map[string]string{}
	for i := 0; i < len(args); i++ {
		name, ok := strings.CutPrefix(args[i], "--")
		if !ok || name == "" {
			return nil, fmt.Errorf("%w: argument %q is not of the form --key=value", ErrConfig, args[i])
		}
		key, val, has := strings.Cut(name, "=")
		switch {
		case has:
		case i+1 < len(args) && !strings.HasPrefix(args[i+1], "--"):
			i++
			val = args[i]
		default:
			val = "true"
		}
		out[key] = val
	}
	return out, nil
}

// knownFlags are the keys that may be given as flags.
var knownFlags = map[string]bool{
	"config-dir": true, "enable-ipv4": true, "enable-ipv6": true, "ipam": true,
	"cluster-pool-ipv4-cidr": true, "cluster-pool-ipv4-mask-size": true,
	"cluster-pool-ipv6-cidr": true, "cluster-pool-ipv6-mask-size": true,
	"identity-gc-interval": true, "cilium-endpoint-gc-interval": true,
	"agent-not-ready-taint-key": true, "remove-cilium-node-taints": true, "set-cilium-is-up-condition": true,
	"operator-api-serve-addr": true, "operator-prometheus-serve-addr": true,
	"debug": true, "log-opt": true, "cilium-pod-namespace": true,
}

// LoadConfig reads flags, then the environment, then the files of --config-dir: the first that has
// a key decides.
func LoadConfig(args []string, env func(string) string) (Config, error) {
	given, err := flags(args)
	if err != nil {
		return Config{}, err
	}
	for k := range given {
		if !knownFlags[k] {
			return Config{}, fmt.Errorf("%w: unknown flag --%s", ErrConfig, k)
		}
	}
	dir := given["config-dir"]
	s := &settings{}
	s.value = func(key string) (string, bool) {
		if v, ok := given[key]; ok {
			return v, true
		}
		if v := env("CILIUM_" + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))); v != "" {
			return v, true
		}
		if dir == "" {
			return "", false
		}
		b, err := os.ReadFile(filepath.Join(dir, key))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.fail(key, "", err)
		}
		return strings.TrimSpace(string(b)), err == nil
	}
	c := Config{
		IPv4:               s.yes("enable-ipv4", true),
		IPv6:               s.yes("enable-ipv6", false),
		IPv4Pool:           s.prefixes("cluster-pool-ipv4-cidr", "10.0.0.0/8", false),
		IPv4Mask:           s.number("cluster-pool-ipv4-mask-size", 24, 1, 30),
		IPv6Pool:           s.prefixes("cluster-pool-ipv6-cidr", "fd00::/104", true),
		IPv6Mask:           s.number("cluster-pool-ipv6-mask-size", 120, 1, 126),
		IdentityGCInterval: s.duration("identity-gc-interval", 15*time.Minute),
		EndpointGCInterval: s.duration("cilium-endpoint-gc-interval", 5*time.Minute),
		NotReadyTaint:      s.text("agent-not-ready-taint-key", "node.cilium.io/agent-not-ready"),
		RemoveTaints:       s.yes("remove-cilium-node-taints", true),
		SetNodeCondition:   s.yes("set-cilium-is-up-condition", true),
		APIServeAddr:       s.text("operator-api-serve-addr", "127.0.0.1:9234"),
		PrometheusAddr:     s.text("operator-prometheus-serve-addr", ""),
		Debug:              s.yes("debug", false),
		AgentNamespace:     s.text("cilium-pod-namespace", env("CILIUM_K8S_NAMESPACE")),
	}
	if c.AgentNamespace == "" {
		c.AgentNamespace = "kube-system"
	}
	switch mode := s.text("ipam", "cluster-pool"); mode {
	case "cluster-pool":
		c.ClusterPool = true
	case "kubernetes":
	default:
		s.fail("ipam", mode, errors.New("want kubernetes or cluster-pool"))
	}
	c.LogJSON = strings.Contains(s.text("log-opt", ""), "json")
	if s.err != nil {
		return Config{}, s.err
	}
	return c, c.check()
}

// check looks at what only shows in combination.
func (c Config) check() error {
	if !c.IPv4 && !c.IPv6 {
		return fmt.Errorf("%w: enable-ipv4 and enable-ipv6 are both false", ErrConfig)
	}
	if !c.ClusterPool {
		return nil
	}
	for _, f := range []struct {
		on   bool
		pool []netip.Prefix
		key  string
	}{{c.IPv4, c.IPv4Pool, "cluster-pool-ipv4-cidr"}, {c.IPv6, c.IPv6Pool, "cluster-pool-ipv6-cidr"}} {
		if f.on && len(f.pool) == 0 {
			return fmt.Errorf("%w: %s is empty: give a range, or use ipam=kubernetes", ErrConfig, f.key)
		}
	}
	if _, err := newSubnets(c.IPv4Pool, c.IPv4Mask); c.IPv4 && err != nil {
		return fmt.Errorf("%w: cluster-pool-ipv4-cidr, cluster-pool-ipv4-mask-size: %w", ErrConfig, err)
	}
	if _, err := newSubnets(c.IPv6Pool, c.IPv6Mask); c.IPv6 && err != nil {
		return fmt.Errorf("%w: cluster-pool-ipv6-cidr, cluster-pool-ipv6-mask-size: %w", ErrConfig, err)
	}
	return nil
}

// Logger returns the logger that the configuration asks for.
func (c Config) Logger() *slog.Logger {
	o := &slog.HandlerOptions{Level: slog.LevelInfo}
	if c.Debug {
		o.Level = slog.LevelDebug
	}
	if c.LogJSON {
		return slog.New(slog.NewJSONHandler(os.Stderr, o))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o))
}
