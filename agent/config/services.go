// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// LBMode is how packets from outside reach a backend on another node.
type LBMode string

// Modes, with Cilium's words.
const (
	LBSNAT   LBMode = "snat"   // with an address of this node as the source
	LBDSR    LBMode = "dsr"    // as they are, in the tunnel; the other node answers
	LBHybrid LBMode = "hybrid" // TCP as LBDSR, the rest as LBSNAT
)

// MasqueradeMin is the first of the ports, up to 65535, that masqueraded connections get. No
// NodePort may be among them.
const MasqueradeMin = 49152

// Bounds of a Maglev table, those of Cilium.
const (
	maglevMin = 251
	maglevMax = 131071
)

func serviceOptions() []option {
	return []option{
		{key: "kube-proxy-replacement", def: "false", boolean: true, help: "handle Services", set: setKPR},
		toggle("bpf-lb-sock", "false", "translate Services at the sockets of pods", func(c *Config) *bool { return &c.SocketLB }),
		toggle("bpf-lb-sock-hostns-only", "false", "translate at the sockets of the host only", func(c *Config) *bool { return &c.SocketLBHostNSOnly }),
		part("enable-node-port", "NodePorts"),
		part("enable-external-ips", "externalIPs"),
		part("enable-host-port", "HostPorts of pods"),
		part("enable-session-affinity", "sessionAffinity"),
		{key: "node-port-range", def: "30000,32767", help: "first and last NodePort", set: setNodePortRange},
		{key: "nodeport-addresses", def: "", help: "ranges of node addresses at which NodePorts are open; empty: all addresses of the node's devices", set: setNodePortAddresses},
		toggle("node-port-bind-protection", "true", "keep processes of the node from binding NodePorts that are in use", func(c *Config) *bool { return &c.BindProtection }),
		toggle("enable-auto-protect-node-port-range", "true", "keep connections of the node's own from getting a NodePort as their port", func(c *Config) *bool { return &c.ProtectNodePorts }),
		toggle("enable-health-check-nodeport", "true", "answer load balancers at the healthCheckNodePort of Services", func(c *Config) *bool { return &c.HealthCheckNodePort }),
		toggle("enable-svc-source-range-check", "true", "heed loadBalancerSourceRanges", func(c *Config) *bool { return &c.SourceRangeCheck }),
		one("bpf-lb-mode", "snat", "how packets from outside reach backends on other nodes", []string{"snat", "dsr", "hybrid"}, func(c *Config) *string { return (*string)(&c.LBMode) }),
		one("bpf-lb-algorithm", "random", "how a backend is chosen for a connection from outside", []string{"random", "maglev"}, func(c *Config) *string { return &c.LBAlgorithm }),
		only("bpf-lb-acceleration", "disabled", "translation in the driver of a device", "disabled"),
		{key: "bpf-lb-dsr-dispatch", def: "", help: "what bpf-lb-mode dsr sends packets on in; empty: the VXLAN tunnel", set: setDispatch},
		{key: "bpf-lb-maglev-table-size", def: "16381", help: "entries of a Service's table with bpf-lb-algorithm maglev, a prime", set: setMaglevSize},
		{key: "bpf-lb-maglev-hash-seed", def: "JLfvgnHc2kaSUFaI", help: "12 bytes in base64, the same on all nodes", set: setMaglevSeed},
		listen("kube-proxy-replacement-healthz-bind-address", "", "address that answers instead of kube-proxy's healthz; empty: none", func(c *Config) *string { return &c.KubeProxyHealthzAddr }),
	}
}

// part is a kind of Services that kube-proxy-replacement comes with and that cannot be had otherwise.
func part(key, what string) option {
	return option{key: key, def: "", boolean: true, help: "translate " + what + "; comes with kube-proxy-replacement", set: func(c *Config, v string) error {
		if v == "" {
			return nil
		}
		b, err := parseBool(v)
		c.parts = append(c.parts, servicePart{key, b})
		return err
	}}
}

type servicePart struct {
	key string
	on  bool
}

// MaglevTable is the size of the tables of Services, 0 if backends are chosen at random.
func (c *Config) MaglevTable() uint32 {
	if c.LBAlgorithm != "maglev" {
		return 0
	}
	return c.MaglevSize
}

// checkServices finds options of Services that contradict each other.
func (c *Config) checkServices() []error {
	var errs []error
	for _, p := range c.parts {
		switch {
		case p.on && !c.KubeProxyReplacement:
			errs = append(errs, fmt.Errorf("option %s: true needs kube-proxy-replacement true; with false all Services are left to kube-proxy", p.key))
		case !p.on && c.KubeProxyReplacement:
			errs = append(errs, fmt.Errorf("option %s: false is not possible with kube-proxy-replacement true, which comes with it", p.key))
		}
	}
	if c.LBMode != LBSNAT && !c.Tunnel {
		errs = append(errs, fmt.Errorf("options bpf-lb-mode and routing-mode: %s sends packets on in the tunnel and does not go with native; use bpf-lb-mode snat, or routing-mode tunnel", c.LBMode))
	}
	if c.KubeProxyReplacement {
		return errs
	}
	for key, set := range map[string]bool{
		"bpf-lb-mode": c.LBMode != LBSNAT, "bpf-lb-algorithm": c.LBAlgorithm != "random", "nodeport-addresses": len(c.NodePortAddresses) > 0,
		"bpf-lb-sock": c.SocketLB,
	} {
		if set {
			errs = append(errs, fmt.Errorf("option %s: %s needs kube-proxy-replacement true; with false all Services are left to kube-proxy", key, c.values[key]))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errs
}

func setNodePortRange(c *Config, v string) error {
	words := fields(v)
	bad := fmt.Errorf("%q is not a first and a last port such as 30000,32767", v)
	if len(words) != 2 {
		return bad
	}
	low, err1 := strconv.ParseUint(words[0], 10, 16)
	high, err2 := strconv.ParseUint(words[1], 10, 16)
	if err1 != nil || err2 != nil || low == 0 || low > high {
		return bad
	}
	if high >= MasqueradeMin {
		return fmt.Errorf("%q overlaps %d-65535, the ports of masqueraded connections; it must end below %d", v, MasqueradeMin, MasqueradeMin)
	}
	c.NodePortMin, c.NodePortMax = uint16(low), uint16(high)
	return nil
}

func setNodePortAddresses(c *Config, v string) error {
	var out []netip.Prefix
	for _, s := range fields(v) {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("%q is not an address range such as 192.0.2.0/24 or 2001:db8::/64", s)
		}
		out = append(out, p.Masked())
	}
	c.NodePortAddresses = out
	return nil
}

func setDispatch(_ *Config, v string) error {
	if v != "" && v != "vxlan" {
		return fmt.Errorf("%q is not supported; packets are sent on in the VXLAN tunnel: leave it out or use vxlan", v)
	}
	return nil
}

func setMaglevSize(c *Config, v string) error {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n < maglevMin || n > maglevMax || !big.NewInt(int64(n)).ProbablyPrime(0) {
		return fmt.Errorf("%q is not a prime from %d to %d such as 16381", v, maglevMin, maglevMax)
	}
	c.MaglevSize = uint32(n)
	return nil
}

// setMaglevSeed folds the twelve bytes into the one word that programs mix into their hash.
func setMaglevSeed(c *Config, v string) error {
	b, err := base64.StdEncoding.DecodeString(v)
	if err == nil && len(b) != 12 {
		err = errors.New("it has " + strconv.Itoa(len(b)) + " bytes")
	}
	if err != nil {
		return fmt.Errorf("%q is not 12 bytes in base64, such as `head -c12 /dev/urandom | base64 -w0` prints: %w", v, err)
	}
	c.MaglevSeed = 0
	for ; len(b) > 0; b = b[4:] {
		c.MaglevSeed ^= binary.BigEndian.Uint32(b)
	}
	return nil
}
