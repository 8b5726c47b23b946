// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"log/slog"
	stdmaps "maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lash.internal/lash/agent/config"
	"lash.internal/lash/agent/crash"
	"lash.internal/lash/agent/datapath/attach"
	"lash.internal/lash/agent/datapath/feature"
	"lash.internal/lash/agent/datapath/lbmap"
	"lash.internal/lash/agent/datapath/loader"
	"lash.internal/lash/agent/datapath/maps"
	"lash.internal/lash/agent/datapath/netlink"
	"lash.internal/lash/agent/datapath/pinroot"
	"lash.internal/lash/agent/datapath/upgrade"
	"lash.internal/lash/agent/ipam"
	"lash.internal/lash/agent/reconcile"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// Rates of events a CPU and second, beyond which they are only counted.
const (
	dropEvents  = 10_000
	traceEvents = 10_000
)

// lbModes are the programs' numbers of the modes.
var lbModes = map[config.LBMode]uint8{config.LBSNAT: bpf.LBSNAT, config.LBDSR: bpf.LBDSR, config.LBHybrid: bpf.LBHybrid}

// kernel is what the agent holds of the node's kernel.
type kernel struct {
	cfg         *config.Config
	log         *slog.Logger
	features    feature.Set
	root        *pinroot.Root
	sysctls     *netlink.Sysctls
	devices     *netlink.Keeper
	tables      *state.Tables
	underlay6   bool
	underlayMTU int
	podMTU      int        // largest packet between pods of two nodes
	constant    bpf.Config // what the programs are loaded with
	maps        *maps.Set
	choice      *upgrade.Choice
	attach      *attach.Attacher

	heard     atomic.Bool // somebody listens to events of packets
	listening reconcile.Signal

	mu      sync.Mutex
	problem error // with the generation that runs
	runs    running
}

// running is what is known of the programs that the node runs.
type running struct {
	constant bpf.Config
	known    bool // an older version may not have noted its constants
	// balances says that packets of pods are balanced, outside those that come in, affinity that
	// clients may keep their backend.
	balances, outside, affinity bool
}

// openKernel brings devices, maps and programs to where the loops can work with them. What an
// earlier agent left is adopted.
func openKernel(cfg *config.Config, self state.Node, pool *ipam.Pool, tables *state.Tables, root *pinroot.Root, log *slog.Logger) (*kernel, error) {
	k := &kernel{cfg: cfg, log: log, tables: tables, root: root, underlay6: !self.Addr(false).IsValid()}
	if err := k.open(self, pool); err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

func (k *kernel) open(self state.Node, pool *ipam.Pool) error {
	cfg, log := k.cfg, k.log
	var err error
	if k.features, err = feature.Probe(); err != nil {
		return err
	}
	if cfg.ForceCLSBPF {
		k.features.TCX = false
	}
	log.Info("kernel", "features", k.features.String(), "attachMode", k.features.AttachMode())
	if k.sysctls, err = netlink.NewSysctls(filepath.Join(cfg.StateDir, "sysctl.json"), "/host/proc/sys/net", "/proc/sys/net"); err != nil {
		return err
	}
	if k.sysctls.Broken != "" {
		log.Error("the file of sysctls as they were before Lash cannot be read: an uninstallation cannot give them back", "kept", k.sysctls.Broken)
	}
	if err := k.openDevices(self, pool); err != nil {
		return err
	}
	crash.At(crash.Devices)
	constants, err := k.constants(self, pool)
	if err != nil {
		return err
	}
	if err := k.reservePorts(constants); err != nil {
		return err
	}
	specs, err := loader.Read()
	if err != nil {
		return err
	}
	sizes := lbmap.Sizes(constants.MaglevSize, 0)
	stdmaps.Copy(sizes, cfg.TableSizes())
	if k.maps, err = specs.OpenMaps(cfg.BPFRoot, sizes); err != nil {
		return err
	}
	crash.At(crash.Maps)
	if len(k.maps.Lost) > 0 {
		log.Error("flow tables of a version too old to take flows over from are gone", "tables", k.maps.Lost)
	}
	if moving := k.maps.Moving(); len(moving) > 0 {
		log.Info("flows move to tables of another size or form", "from", moving)
		constants.FlowsMove = true
	}
	k.constant = constants
	if k.choice, err = k.choose(specs); err != nil {
		return err
	}
	crash.At(crash.Loaded)
	if k.choice.Problem != nil {
		log.Error("upgrade of the programs failed", "error", k.choice.Problem)
		k.problem = k.choice.Problem
	}
	k.attach, err = attach.New(attach.Options{
		BPFRoot: cfg.BPFRoot, TCX: k.features.TCX, Generations: k.choice.Others(), Lost: k.root.Lost, Check: k.root.Check, Log: log,
	}, k.choice.Programs)
	if err != nil {
		return err
	}
	k.note()
	return nil
}

// chooseAgain decides once more, after something has changed. The objects are read again for that:
// kept, they would be a third of what the agent holds of its own.
func (k *kernel) chooseAgain() (*upgrade.Choice, error) {
	specs, err := loader.Read()
	if err != nil {
		return nil, err
	}
	next, err := k.choose(specs)
	if err != nil || next.Problem == nil {
		return next, err
	}
	next.Close()
	return nil, next.Problem
}

// reservePorts keeps the node's own connections from getting ports that packets to the node are
// translated at.
func (k *kernel) reservePorts(c bpf.Config) error {
	err := k.sysctls.ReservePorts(c.SNATMin, c.SNATMax)
	if k.cfg.KubeProxyReplacement && k.cfg.ProtectNodePorts {
		err = errors.Join(err, k.sysctls.ReservePorts(c.NodePortMin, c.NodePortMax))
	}
	return err
}

// choose decides which generation of programs the node runs with the constants and maps as they are.
func (k *kernel) choose(specs *loader.Specs) (*upgrade.Choice, error) {
	return upgrade.Choose(upgrade.Options{
		BPFRoot: k.cfg.BPFRoot, Specs: specs, Maps: k.maps, Config: k.constant, Features: k.features.String(), Log: k.log,
	})
}

// note remembers which programs may be attached, before any is, and what they do. The node can be
// served without that.
func (k *kernel) note() {
	p := k.choice.Programs
	constants := map[string]bpf.Config{}
	if k.choice.Problem == nil { // else it is a generation of before
		constants[p.Hash] = k.constant
	}
	if err := k.root.Note(p.Hash, k.choice.Known(), constants); err != nil {
		k.log.Error("what the next start needs to know cannot be written", "error", err)
	}
	var r running
	r.constant, r.known = k.root.Constants(p.Hash)
	var errs [3]error
	r.balances, errs[0] = p.Uses("pod_from", k.maps.Of("front"))
	r.outside, errs[1] = p.Uses("nd_from", k.maps.Of("front"))
	r.affinity, errs[2] = p.Uses("pod_from", k.maps.Of("aff"))
	if err := errors.Join(errs[:]...); err != nil {
		k.log.Warn("status cannot say what the programs do for Services", "error", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.runs = r
}

// running is what the node runs at the moment.
func (k *kernel) running() running {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.runs
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
	k.devices, err = netlink.NewKeeper(k.tables, netlink.Plan{
		IPv4: k.cfg.IPv4, IPv6: k.cfg.IPv6, Addrs: pool.Own(),
		UnderlayMTU: k.underlayMTU, Tunnel: k.cfg.Tunnel, TunnelPort: k.cfg.TunnelPort,
		Health: len(pool.Health()) > 0,
	}, k.sysctls, k.log)
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
	c.NodePortMin, c.NodePortMax = k.cfg.NodePortMin, k.cfg.NodePortMax
	c.BindProtect = k.cfg.BindProtection
	c.LBMode = lbModes[k.cfg.LBMode]
	c.MaglevSize, c.MaglevSeed = k.cfg.MaglevTable(), k.cfg.MaglevSeed
	c.Masquerade4 = k.cfg.IPv4 && k.cfg.MasqueradeIPv4
	c.Masquerade6 = k.cfg.IPv6 && k.cfg.MasqueradeIPv6
	c.Tunnel, c.TunnelPort, c.TunnelMTU = k.cfg.Tunnel, k.cfg.TunnelPort, uint32(k.podMTU)
	c.Encap = k.cfg.Tunnel
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
	k.snat(&c, pool)
	// The node's addresses carry the tunnel, whichever families pods have.
	c.Node4, c.Node6 = self.Addr(false), self.Addr(true)
	return c, nil
}

// snat gives what comes from outside to pods of other nodes its source: an address that is there for
// this alone, or, where the pod range has none for it, the router's behind a tunnel, with ports that the
// host does not take for itself, and the node's without.
func (k *kernel) snat(c *bpf.Config, pool *ipam.Pool) {
	for _, a := range pool.SNAT() {
		if a.Is4() {
			c.SNATAddr4 = a
		} else {
			c.SNATAddr6 = a
		}
	}
	for _, f := range []struct{ router, addr *netip.Addr }{{&c.Router4, &c.SNATAddr4}, {&c.Router6, &c.SNATAddr6}} {
		if !f.router.IsValid() || f.addr.IsValid() {
			continue
		}
		k.log.Warn("the pod range has no address for connections from outside to pods of other nodes: many from one client may fail", "range of", *f.router)
		if k.cfg.Tunnel {
			*f.addr = *f.router
			c.SNATAddrMax = routerSNATMax
		}
	}
}

// routerSNATMax is the last port below those that Linux gives to connections of the host.
const routerSNATMax = 32767

// runCfg are the switches that may change while programs run; there is one element.
func (k *kernel) runCfg(element uint32) (bpf.RunCfg, bool) {
	interval := k.cfg.MonitorAggregationInterval
	tunnel, _ := k.tables.OwnDevices.Get(state.VXLANDevice)
	c := bpf.RunCfg{
		ReportInterval: uint32(interval / (1 << bpf.SeenShift * time.Nanosecond)), DropRate: dropEvents,
		VxlanIfindex: uint32(tunnel.Index),
	}
	if k.heard.Load() { // nobody else wants to know of packets that went where they should
		c.TraceRate = traceEvents
	}
	if k.cfg.MonitorAggregation == "none" {
		c.TraceEvery = 1
	}
	if k.attach.Handover() {
		c.Handover = 1
	}
	return c, element == 0
}

// setHeard turns the events of packets on and off.
func (k *kernel) setHeard(heard bool) {
	k.heard.Store(heard)
	k.listening.Fire()
}

func (k *kernel) setProblem(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.problem = err
}

// trouble is what is wrong with the datapath though the node is served.
func (k *kernel) trouble() []string {
	k.mu.Lock()
	problem := k.problem
	k.mu.Unlock()
	_, devices := k.devices.State()
	if devices != nil {
		devices = fmt.Errorf("devices of the node: %w", devices)
	}
	var out []string
	for _, err := range []error{problem, devices, k.root.Check()} {
		if err != nil {
			out = append(out, strings.ReplaceAll(err.Error(), "\n", "; "))
		}
	}
	st := k.attach.State()
	return slices.Concat(out, st.Twins, st.Unpinned)
}

// close lets go of the kernel's objects; what is pinned or attached stays.
func (k *kernel) close() {
	if k.choice != nil {
		k.choice.Close()
	}
	if k.maps != nil {
		k.maps.Close()
	}
}
