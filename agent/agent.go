// SPDX-License-Identifier: Apache-2.0

// Package agent is the node program: it makes the node's kernel equal to what the API server and
// the container runtime say. This page lists its parts in the order in which data flows; each
// part explains itself in its own folder.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lash.internal/lash/agent/cni"
	"lash.internal/lash/agent/cni/wire"
	"lash.internal/lash/agent/config"
	"lash.internal/lash/agent/crash"
	"lash.internal/lash/agent/datapath/attach"
	"lash.internal/lash/agent/datapath/maps"
	"lash.internal/lash/agent/datapath/netlink"
	"lash.internal/lash/agent/datapath/pinroot"
	"lash.internal/lash/agent/datapath/upgrade"
	"lash.internal/lash/agent/flow"
	"lash.internal/lash/agent/identity"
	"lash.internal/lash/agent/ipam"
	"lash.internal/lash/agent/kube"
	"lash.internal/lash/agent/node"
	"lash.internal/lash/agent/reconcile"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// Agent is a running node program.
type Agent struct {
	cfg    *config.Config
	log    *slog.Logger
	tables *state.Tables
	start  time.Time

	source    *kube.Source
	servers   *reconcile.Chain // nil where the API server is a Service of others
	k8s       kube.ServerVersion
	node      state.Node
	pool      *ipam.Pool
	kernel    *kernel
	view      node.View
	paths     *paths
	pods      *cni.Server
	addresses *addresses
	events    *flow.Monitor
	svc       *services
	notes     *notes
	probe     *probe // nil: there is none, or not yet

	flowsMove atomic.Bool // out of a table of before, which is not purged

	mu    sync.Mutex
	phase error // what the agent waits for; nil when it serves its node
}

// Run is the whole life of the agent. It returns when ctx ends, or with the error that makes it
// impossible to serve this node. What it has put into the kernel stays there.
func Run(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	a := &Agent{cfg: cfg, log: log, tables: state.NewTables(), start: time.Now(), phase: errors.New("starting")}
	for _, k := range cfg.Unknown() {
		log.Warn("unknown option is ignored", "option", k)
	}
	// One agent a node: nothing is done, and nobody answered, before that is certain.
	root, err := pinroot.Own(pinroot.Options{BPFRoot: cfg.BPFRoot, StateDir: cfg.StateDir, Attached: attach.Find, Log: log})
	if err != nil {
		return err
	}
	defer root.Close()
	crash.At(crash.Owned)
	ctx, stop := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop(nil)
	// background runs a part until ctx ends; a part that fails ends the agent.
	background := func(name string, run func(context.Context) error) {
		running.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				stop(fmt.Errorf("%s: %w", name, err))
			}
		})
	}

	// Answers about the agent come first: a node that waits for something has to say so.
	background("health", a.serveHealth)

	// Sources: the API server, the devices of the node, the container runtime.
	client, err := a.connect(background)
	if err != nil {
		return err
	}
	if err := a.learn(ctx); err != nil {
		return cause(ctx, err)
	}
	if a.k8s, err = client.Version(ctx); err != nil {
		return cause(ctx, err)
	}
	watcher := netlink.NewWatcher(a.tables, cfg.Devices, a.node.InternalIPs, log)
	background("devices", watcher.Run)

	// The kernel: devices, maps and programs, adopted if they are there.
	a.kernel, err = openKernel(cfg, a.node, a.pool, a.tables, root, log)
	if errors.Is(err, upgrade.ErrStandby) {
		log.Error("standing by", "error", err)
		a.setPhase(err)
		<-ctx.Done()
		return cause(ctx, nil)
	}
	if err != nil {
		return err
	}
	defer func() {
		stop(nil)
		running.Wait() // nobody uses what is closed here
		if a.svc != nil {
			a.svc.close()
		}
		a.kernel.close()
	}()
	tunnels, err := a.newTunnels()
	if err != nil {
		return err
	}
	if a.svc, err = newServices(a); err != nil {
		return err
	}
	if err := a.newPaths(); err != nil {
		return err
	}
	a.notes = newNotes(a, client.Warn)

	// Pods: identities, addresses, and the runtime's requests.
	if err := a.newPods(client); err != nil {
		return err
	}
	a.events = flow.New(a.kernel.maps.Of("events"), a.kernel.maps.Of("evt_budget"), a.tables, a.kernel.setHeard, log)
	background("events", a.events.Run)
	background("api", a.serveAPI)
	if err := a.restore(ctx, background); err != nil {
		return err
	}

	// Loops: from here on the kernel follows the tables.
	background("own devices", func(ctx context.Context) error { return a.kernel.devices.Run(ctx, a.auditAll) })
	background("addresses", a.svc.followAddresses)
	background("tunnels", func(ctx context.Context) error { tunnels.Run(ctx); return nil })
	follow := func(chains ...*reconcile.Chain) {
		for _, c := range chains {
			background(c.Name(), func(ctx context.Context) error { c.Run(ctx); return nil })
		}
	}
	follow(a.chains()...)
	a.setPhase(errors.New("waiting for the first full set of objects and for the kernel to hold it"))
	for _, chain := range a.chains() {
		select {
		case <-chain.Synced():
		case <-ctx.Done():
			return cause(ctx, ctx.Err())
		}
	}
	crash.At(crash.Synced)
	if err := a.putIntoService(ctx); err != nil {
		return cause(ctx, err)
	}
	follow(a.svc.health, a.notes.chain) // what no packet waits for
	background("conntrack", a.svc.collect)
	background("sockets", a.svc.sockets.run)
	background("pods", a.pods.Run)
	background("addresses of removed pods", a.addresses.Run)
	if err := a.ready(); err != nil {
		return err
	}
	background("datapath probe", a.runProbe)
	background("memory", a.giveBackAtRest)
	background("upgrade", func(ctx context.Context) error { return a.settle(ctx, probation, attach.AuditInterval) })
	<-ctx.Done()
	return cause(ctx, nil)
}

// connect makes the client of the API server, and starts what mirrors it.
func (a *Agent) connect(background func(string, func(context.Context) error)) (*kube.Client, error) {
	cfg := a.cfg
	client, err := kube.NewClient(kube.ClientOptions{
		UserAgent: "cilium-agent", Kubeconfig: cfg.Kubeconfig, NodeName: cfg.NodeName,
		Servers: cfg.APIServers, Follow: cfg.KubeProxyReplacement, ServersFile: cfg.APIServersFile(), Log: a.log,
	})
	if err != nil {
		return nil, err
	}
	a.source = kube.NewSource(client, a.tables, kube.SourceOptions{
		NodeName: cfg.NodeName, ClusterPool: cfg.ClusterPool, IPv4: cfg.IPv4, IPv6: cfg.IPv6,
		SetNodeCondition: cfg.SetCiliumIsUp, Log: a.log,
	})
	background("kubernetes", func(ctx context.Context) error { a.source.Run(ctx); return nil })
	if client.Servers != nil {
		a.servers = kube.FollowServers(client, a.tables, a.log)
		background("API servers", client.Servers.Run)
		background(a.servers.Name(), func(ctx context.Context) error { a.servers.Run(ctx); return nil })
	}
	return client, nil
}

// cause is the error that a part has ended the agent with, or else err.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) {
		return c
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// learn waits for what has to be known before the kernel can be touched: the node's own addresses
// and its pod CIDRs.
func (a *Agent) learn(ctx context.Context) error {
	var err error
	a.setPhase(errors.New("waiting for the addresses of Node " + a.cfg.NodeName))
	if a.node, err = a.source.WaitNode(ctx); err != nil {
		return err
	}
	a.setPhase(errors.New("waiting for the pod CIDRs of node " + a.cfg.NodeName))
	cidrs, err := a.source.WaitPodCIDRs(ctx)
	if err != nil {
		return err
	}
	if a.pool, err = ipam.New(cidrs); err != nil {
		return err
	}
	have, err := netlink.HostAddrs()
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", netlink.HostDevice, err)
	}
	pods, err := cni.SavedAddrs(a.endpointsDir())
	if err != nil {
		return fmt.Errorf("addresses of restored endpoints: %w", err)
	}
	asked, err := netlink.HealthAddrs()
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", netlink.HealthDevice, err)
	}
	a.pool.TakeSNAT(have, slices.Concat(pods, asked))
	if a.cfg.EndpointHealthChecking {
		a.pool.TakeHealth(asked, pods)
	}
	a.source.SetHealthIPs(a.pool.Health()...)
	a.source.SetRouterIPs(a.pool.Own()...)
	a.log.Info("node", "name", a.node.Name, "addresses", a.node.InternalIPs, "podCIDRs", cidrs)
	a.setPhase(errors.New("loading programs"))
	return nil
}

// newTunnels restores the numbers of tunnel endpoints from the map.
func (a *Agent) newTunnels() (*node.Tunnels, error) {
	vteps, err := maps.ArrayTarget[bpf.Vtep](a.kernel.maps, "vtep")
	if err != nil {
		return nil, err
	}
	restored, err := vteps.Load(context.Background())
	if err != nil {
		return nil, fmt.Errorf("map vtep: %w", err)
	}
	return node.NewTunnels(a.tables, a.kernel.underlay6, restored, a.log), nil
}

// paths is how packets find their way: each loop makes one target equal to one Want.
type paths struct {
	chain      *reconcile.Chain
	addr       *reconcile.Loop[bpf.AddrKey, bpf.Addr]
	ep         *reconcile.Loop[uint32, bpf.Ep]
	hooks      *reconcile.Loop[attach.Hook, attach.Program]
	sockets    *reconcile.Loop[string, attach.Program]
	neighbours *reconcile.Loop[state.NeighbourKey, [6]byte]
	routes     *reconcile.Loop[netip.Prefix, state.Route]
}

// newPaths joins Wants and Targets. The chain writes in this order and deletes in the opposite one.
func (a *Agent) newPaths() error {
	t, set := a.tables, a.kernel.maps
	v := node.View{
		Tables: t, Vip: a.svc.view.VIP, Ping: a.svc.view.Ping, NodePort: a.svc.view.NodePortOpen, HostPort: a.svc.view.HostPortAt, Underlay6: a.kernel.underlay6, TunnelMTU: a.kernel.podMTU,
		Tunnel: a.cfg.Tunnel, DirectRoutes: a.cfg.DirectRoutes,
		Routers: a.pool.Own(), Masquerade4: a.cfg.IPv4 && a.cfg.MasqueradeIPv4, Masquerade6: a.cfg.IPv6 && a.cfg.MasqueradeIPv6,
	}
	for _, p := range []netip.Prefix{a.cfg.NativeRoutingCIDRv4, a.cfg.NativeRoutingCIDRv6} {
		if p.IsValid() {
			v.NoMasquerade = append(v.NoMasquerade, p)
		}
	}
	a.view = v
	vtepMap, err1 := maps.ArrayTarget[bpf.Vtep](set, "vtep")
	cidrMap, err2 := maps.Target[bpf.CidrKey, bpf.Cidr](set, "cidr")
	addrMap, err3 := maps.Target[bpf.AddrKey, bpf.Addr](set, "addr")
	devMap, err4 := maps.Target[uint32, bpf.Dev](set, "dev")
	epMap, err5 := maps.Target[uint32, bpf.Ep](set, "ep")
	cfgMap, err6 := maps.ArrayTarget[bpf.RunCfg](set, "cfg")
	if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
		return err
	}
	k := a.kernel
	first := func() []uint32 { return []uint32{0} }
	switches := reconcile.Keyed("cfg", cfgMap, k.runCfg,
		reconcile.EveryKey(t.OwnDevices, first), reconcile.EveryKey(k.attach.Changed(), first), reconcile.EveryKey(&k.listening, first))
	vtep := reconcile.Keyed("vtep", vtepMap, v.Vtep, reconcile.FromTable(t.Tunnels, node.VtepKeys))
	cidr := reconcile.Keyed("cidr", cidrMap, v.CIDR,
		reconcile.FromTable(t.Nodes, v.CIDROfNode), reconcile.FromTable(t.Tunnels, v.CIDROfTunnel), reconcile.EveryKey(t.Nodes, v.CIDRStatic))
	addr := reconcile.Keyed("addr", addrMap, v.Addr,
		reconcile.FromTable(t.Endpoints, v.AddrOfEndpoint), reconcile.FromTable(t.RemoteIPs, v.AddrOfRemote),
		reconcile.FromTable(t.Nodes, v.AddrOfNode), reconcile.FromTable(t.Devices, v.AddrOfDevice),
		reconcile.FromTable(t.Tunnels, v.AddrOfTunnel), reconcile.FromTable(t.EndpointSlices, v.AddrOfSlice),
		reconcile.FromTable(t.Services, a.svc.view.AddrKeys),
		reconcile.Via(reconcile.FromTable(t.Pods, a.svc.view.HostPortAddrs), v.AddrAt))
	dev := reconcile.Keyed("dev", devMap, v.Dev,
		reconcile.FromTable(t.Devices, node.DevKeys), reconcile.EveryKey(t.Nodes, a.deviceKeys))
	ep := reconcile.Keyed("ep", epMap, v.Ep, reconcile.FromTable(t.Endpoints, node.EpKeys))
	hooks := reconcile.Keyed("hooks", k.attach.Hooks(), a.hook,
		reconcile.FromTable(t.Endpoints, podHooks), reconcile.FromTable(t.Devices, deviceHooks),
		reconcile.FromTable(t.OwnDevices, ownHooks), reconcile.EveryKey(k.attach.Changed(), a.hooksOfAll)).
		Equal(k.attach.Satisfies).Rank(a.hookRank).AuditEvery(attach.AuditInterval)
	sockets := reconcile.Whole("hooks-socket", k.attach.Cgroup(a.cfg.CgroupRoot), a.socketHooks, k.attach.Changed()).
		Equal(k.attach.Satisfies).AuditEvery(attach.AuditInterval)
	neighbours := reconcile.Keyed("neighbours", netlink.Neighbours{}, v.Neighbour, reconcile.FromTable(t.Endpoints, node.NeighbourKeys))
	routes := reconcile.Keyed("routes", netlink.Routes{}, v.Route,
		reconcile.FromTable(t.Endpoints, v.RouteOfEndpoint), reconcile.FromTable(t.Nodes, v.RouteOfNode),
		reconcile.FromTable(t.Devices, v.RouteOfDevice), reconcile.EveryKey(t.OwnDevices, v.Routes))
	a.paths = &paths{
		chain: reconcile.NewChain("paths", a.log,
			switches, vtep, cidr, addr, dev, ep, hooks, sockets, neighbours, routes),
		addr: addr, ep: ep, hooks: hooks, sockets: sockets, neighbours: neighbours, routes: routes,
	}
	return nil
}

// chains are all chains of loops: Services before the paths that lead to them.
func (a *Agent) chains() []*reconcile.Chain {
	return slices.Concat(a.svc.chains(), []*reconcile.Chain{a.paths.chain})
}

// auditAll has every loop look what is left of its entries.
func (a *Agent) auditAll() {
	for _, c := range a.chains() {
		c.Audit()
	}
}

// newPods makes the server of the container runtime's requests.
func (a *Agent) newPods(client *kube.Client) error {
	filter, err := identity.NewFilter(a.cfg.Labels)
	if err != nil {
		return fmt.Errorf("option labels: %w", err)
	}
	ids := identity.New(a.tables, client.Identities(), identity.Options{
		ClusterName: a.cfg.ClusterName, Filter: filter, Log: a.log,
		Taken: func(err error) bool { return errors.Is(err, kube.ErrTaken) },
	})
	a.flowsMove.Store(len(a.kernel.maps.Moving()) > 0)
	a.addresses = newAddresses(a.pool, a.purge, a.log)
	a.pods = cni.New(cni.Options{
		Tables: a.tables, Datapath: podLinks{a}, Addresses: a.addresses, Identities: ids, Objects: client,
		Exhausted: func(err error) bool { return errors.Is(err, ipam.ErrExhausted) },
		StateDir:  a.endpointsDir(), QueueDir: wire.QueueDir, Log: a.log,
	})
	return nil
}

// restore brings the rows of endpoints back: of the pods, then of the node's own, which answers from
// here on.
func (a *Agent) restore(ctx context.Context, background func(string, func(context.Context) error)) error {
	if err := a.pods.Restore(ctx); err != nil {
		return err
	}
	crash.At(crash.Restored)
	if err := a.newProbe(); err != nil {
		return err
	}
	if a.probe != nil {
		background("health endpoint", a.probe.answer)
	}
	return nil
}

// endpointsDir holds the files of endpoints.
func (a *Agent) endpointsDir() string { return filepath.Join(a.cfg.StateDir, "endpoints") }

// ready opens the node for pods, as the very last step of a start.
func (a *Agent) ready() error {
	a.pods.SetReady(nil)
	crash.At(crash.Ready)
	a.source.SetReady(true)
	if a.cfg.CNIConfPath != "" {
		foreign, err := cni.WriteConf(a.cfg.CNIConfPath, a.cfg.Debug, a.cfg.CNIExclusive)
		if err != nil {
			return err
		}
		if len(foreign) > 0 {
			a.log.Warn("other CNI configurations on this node; the runtime uses the first by name", "files", foreign)
		}
	}
	a.setPhase(nil)
	var written uint64
	for _, c := range a.chains() {
		for _, st := range c.Status() {
			written += st.Sets + st.Deletes
		}
	}
	a.log.Info("ready", "entriesWritten", written, "after", time.Since(a.start).Round(time.Millisecond), "generation", a.kernel.choice.Programs.Hash,
		"adopted", a.kernel.choice.Programs.Adopted)
	a.giveBack()
	return nil
}

func (a *Agent) setPhase(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.phase = err
}

// serving returns nil when the agent serves its node, else what it waits for.
func (a *Agent) serving() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.phase
}

// Ready returns nil when the agent serves its node and the dataplane has been seen to carry packets.
func (a *Agent) Ready() error {
	if err := a.serving(); err != nil {
		return err
	}
	if err := a.probed(); err != nil {
		return fmt.Errorf("datapath probe: %w", err)
	}
	return nil
}
