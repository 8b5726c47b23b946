// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"lash.internal/lash/agent/config"
	"lash.internal/lash/agent/datapath/attach"
	"lash.internal/lash/agent/datapath/feature"
	"lash.internal/lash/agent/datapath/loader"
	"lash.internal/lash/agent/datapath/maps"
	"lash.internal/lash/agent/datapath/netlink"
	"lash.internal/lash/agent/ipam"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// Rates of events a CPU and second, beyond which they are only counted.
const (
	dropEvents  = 10_000
	traceEvents = 10_000
)

// kernel is what the agent holds of the node's kernel.
type kernel struct {
	cfg         *config.Config
	features    feature.Set
	sysctls     *netlink.Sysctls
	devices     netlink.Devices
	underlay6   bool
	underlayMTU int
	podMTU      int // largest packet between pods of two nodes
	maps        *maps.Set
	programs    *loader.Programs
	attach      *attach.Attacher
}

// openKernel brings devices, maps and programs to where the loops can work with them. What an
// earlier agent left is adopted.
func openKernel(cfg *config.Config, self state.Node, pool *ipam.Pool, log *slog.Logger) (*kernel, error) {
	k := &kernel{cfg: cfg, underlay6: !self.Addr(false).IsValid()}
	var err error
	if k.features, err = feature.Probe(); err != nil {
		return nil, err
	}
	log.Info("kernel", "features", k.features.String())
	if k.sysctls, err = netlink.NewSysctls(filepath.Join(cfg.StateDir, "sysctl.json"), "/host/proc/sys/net", "/proc/sys/net"); err != nil {
		return nil, err
	}
	if err := k.openDevices(self, pool); err != nil {
		return nil, err
	}
	constants, err := k.constants(self, pool)
	if err != nil {
		return nil, err
	}
	if err := k.sysctls.ReservePorts(constants.SNATMin, constants.SNATMax); err != nil {
		return nil, err
	}
	specs, err := loader.Read()
	if err != nil {
		return nil, err
	}
	if k.maps, err = specs.OpenMaps(cfg.BPFRoot); err != nil {
		return nil, err
	}
	if k.programs, err = specs.Load(cfg.BPFRoot, k.maps, constants, k.features.String(), log); err != nil {
		k.maps.Close()
		return nil, fmt.Errorf("load programs: %w", err)
	}
	k.attach = attach.New(cfg.BPFRoot, k.programs, k.features, log)
	return k, nil
}

// openDevices finds out the MTU of the underlay and makes the devices of the node.
func (k *kernel) openDevices(self state.Node, pool *ipam.Pool) error {
	found, err := netlink.Detect(k.cfg.Devices, self.InternalIPs)
	if err != nil {
		return err
	}
	k.underlayMTU = k.cfg.MTU
	for _, d := range found {
		if d.DirectRouting && k.underlayMTU == 0 {
			k.underlayMTU = d.MTU
		}
	}
	if k.underlayMTU == 0 {
		return fmt.Errorf("no device of this node has one of its addresses %v: set option mtu", self.InternalIPs)
	}
	k.podMTU = k.underlayMTU
	if k.cfg.Tunnel {
		if k.podMTU, err = netlink.TunnelMTU(k.underlayMTU, k.underlay6); err != nil {
			return fmt.Errorf("option mtu: %w", err)
		}
	}
	if err := errors.Join(k.sysctls.NoGlobalReversePath(), k.sysctls.Forwarding(k.cfg.IPv4, k.cfg.IPv6)); err != nil {
		return err
	}
	k.devices, err = netlink.Ensure(netlink.Plan{
		IPv4: k.cfg.IPv4, IPv6: k.cfg.IPv6, Router4: pool.Router4(), Router6: pool.Router6(),
		UnderlayMTU: k.underlayMTU, Tunnel: k.cfg.Tunnel, TunnelPort: k.cfg.TunnelPort,
	}, k.sysctls)
	return err
}

// constants are what the programs are loaded with.
func (k *kernel) constants(self state.Node, pool *ipam.Pool) (bpf.Config, error) {
	c := bpf.DefaultConfig()
	cookie, err := netlink.NetnsCookie()
	if err != nil {
		return c, err
	}
	c.IPv4, c.IPv6 = k.cfg.IPv4, k.cfg.IPv6
	c.KubeProxyReplacement = k.cfg.KubeProxyReplacement
	c.SockLB = bpf.SockLBOff
	if k.cfg.KubeProxyReplacement {
		// Sockets of the host are always translated: nothing else sees their packets.
		c.SockLB = bpf.SockLBHostNS
		if k.cfg.SocketLB && !k.cfg.SocketLBHostNSOnly {
			c.SockLB = bpf.SockLBAll
		}
	}
	c.Masquerade4 = k.cfg.IPv4 && k.cfg.MasqueradeIPv4
	c.Masquerade6 = k.cfg.IPv6 && k.cfg.MasqueradeIPv6
	c.VXLANIfindex, c.HostIfindex, c.NetIfindex = uint32(k.devices.VXLAN), uint32(k.devices.Host), uint32(k.devices.Net)
	c.Tunnel, c.TunnelPort, c.TunnelMTU = k.cfg.Tunnel, k.cfg.TunnelPort, uint32(k.podMTU)
	c.HostCookie = cookie
	if k.cfg.IPv4 && k.cfg.IPv6 {
		c.World4, c.World6 = uint32(state.IdentityWorldIPv4), uint32(state.IdentityWorldIPv6)
	}
	only := func(enabled bool, a netip.Addr) netip.Addr {
		if !enabled {
			return netip.Addr{}
		}
		return a
	}
	c.Router4, c.Router6 = only(k.cfg.IPv4, pool.Router4()), only(k.cfg.IPv6, pool.Router6())
	// The node's addresses carry the tunnel, whichever families pods have.
	c.Node4, c.Node6 = self.Addr(false), self.Addr(true)
	return c, nil
}

// runCfg are the switches that may change while programs run.
func (k *kernel) runCfg() map[uint32]bpf.RunCfg {
	interval := k.cfg.MonitorAggregationInterval
	c := bpf.RunCfg{ReportInterval: uint32(interval / (1 << bpf.SeenShift * time.Nanosecond)), DropRate: dropEvents, TraceRate: traceEvents}
	if k.cfg.MonitorAggregation == "none" {
		c.TraceEvery = 1
	}
	return map[uint32]bpf.RunCfg{0: c}
}

// retire drops the pins of generations that nothing runs any more.
func (k *kernel) retire() error { return k.programs.Retire() }

// close lets go of the kernel's objects; what is pinned or attached stays.
func (k *kernel) close() {
	k.attach.Close()
	k.programs.Close()
	k.maps.Close()
}
