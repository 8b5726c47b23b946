// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"crypto/sha256"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"lash.internal/lash/agent/datapath/loader"
	"lash.internal/lash/bpf"
)

// objects reads the real objects, changed by spoil.
func objects(t *testing.T, spoil func(*ebpf.CollectionSpec)) *loader.Specs {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	tc, err1 := bpf.LoadTc()
	gc, err2 := bpf.LoadGc()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if spoil != nil {
		spoil(tc)
	}
	return loader.New(sha256.Sum256([]byte(t.Name())), loader.Object{Name: "tc", Spec: tc}, loader.Object{Name: "gc", Spec: gc})
}

// TestProgramsPass runs the packets through the programs with the configurations that a node can
// have.
func TestProgramsPass(t *testing.T) {
	for name, change := range map[string]func(*bpf.Config){
		"default":       func(*bpf.Config) {},
		"IPv4 only":     func(c *bpf.Config) { c.IPv6 = false },
		"IPv6 only":     func(c *bpf.Config) { c.IPv4 = false },
		"kube-proxy":    func(c *bpf.Config) { c.KubeProxyReplacement, c.SockLB = false, bpf.SockLBOff },
		"no masquerade": func(c *bpf.Config) { c.Masquerade4, c.Masquerade6 = false, false },
		"native":        func(c *bpf.Config) { c.Tunnel = false },
		"jumbo frames":  func(c *bpf.Config) { c.TunnelMTU = 8950 },
		"small MTU":     func(c *bpf.Config) { c.TunnelMTU = 1280 },
		"both worlds":   func(c *bpf.Config) { c.World4, c.World6 = bpf.IdentityWorldV4, bpf.IdentityWorldV6 },
		"addresses": func(c *bpf.Config) {
			c.Router4, c.Router6 = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
			c.Node4, c.Node6 = netip.MustParseAddr("172.16.0.1"), netip.MustParseAddr("fd01::1")
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := bpf.DefaultConfig()
			change(&cfg)
			sent, err := Run(objects(t, nil), cfg)
			if err != nil {
				t.Error(err)
			}
			families := 0
			for _, on := range []bool{cfg.IPv4, cfg.IPv6} {
				if on {
					families++
				}
			}
			if sent < 18*families {
				t.Errorf("%d packets for %d families", sent, families)
			}
		})
	}
}

// TestWrongProgramsFail gives it programs that load and do the wrong thing.
func TestWrongProgramsFail(t *testing.T) {
	always := func(action int32) asm.Instructions {
		return asm.Instructions{asm.Mov.Imm(asm.R0, action), asm.Return()}
	}
	for _, c := range []struct {
		name  string
		spoil func(*ebpf.CollectionSpec)
		want  string
	}{
		{"drops all", func(s *ebpf.CollectionSpec) { s.Programs["pod_from"].Instructions = always(actDrop) }, "pod to pod, IPv4"},
		{"passes all", func(s *ebpf.CollectionSpec) { s.Programs["nd_to"].Instructions = always(-1) }, "pod to outside, IPv6"},
		{"lets the host identity in", func(s *ebpf.CollectionSpec) { s.Programs["ov_from"].Instructions = always(0) }, "host identity from the wire"},
		{"is not there", func(s *ebpf.CollectionSpec) { delete(s.Programs, "pod_to") }, "host to pod"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Run(objects(t, c.spoil), bpf.DefaultConfig())
			if !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one about %q", err, c.want)
			}
		})
	}
	_, err := Run(objects(t, func(s *ebpf.CollectionSpec) {
		s.Programs["pod_from"].Instructions = asm.Instructions{asm.Return()} // R0 was never set
	}), bpf.DefaultConfig())
	if err == nil || errors.Is(err, ErrFailed) {
		t.Errorf("a program that the kernel refuses: %v", err)
	}
}
