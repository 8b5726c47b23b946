// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// making is a cluster under construction.
type making struct {
	c        *Cluster
	o        Options
	groups   cgroups
	programs *programs
	machines map[string]*machine
	ca       *authority
	admin    keyPair
	images   []string   // archives for every node
	died     chan error // a daemon that ended, which none should
}

// Create makes a cluster and waits until its API serves and its nodes are registered; with a
// network (CNI ptp) also until nodes and DNS are ready. If the cluster exists and is as the
// options say, Create changes nothing and returns it. On failure and on cancellation what has
// been made is taken down again, unless Keep is set.
func Create(ctx context.Context, o Options) (*Cluster, error) {
	o.setDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	if err := preflight(o.StateDir); err != nil {
		return nil, err
	}
	c, err := load(o.StateDir, o.Name)
	if err == nil {
		return c, c.matches(&o)
	}
	if !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	if err := checkInotify("/proc", 1+o.Workers); err != nil {
		return nil, err
	}
	groups, err := machineCgroups()
	if err != nil {
		return nil, err
	}
	programs, err := findPrograms(ctx, o.BinDir, o.Progress)
	if err != nil {
		return nil, err
	}
	k := &making{o: o, groups: groups, programs: programs, machines: map[string]*machine{}, died: make(chan error, 8*(o.Workers+4))}
	if k.c, err = reserve(o, programs); err != nil {
		return nil, err
	}
	defer k.c.release()
	if err := k.steps(ctx); err != nil {
		if o.Keep {
			return nil, fmt.Errorf("%w (what has been made is kept, logs are below %s)", err, k.c.dir)
		}
		o.Progress("taking down what has been made")
		if undo := k.c.remove(); undo != nil {
			return nil, errors.Join(err, fmt.Errorf("taking down: %w", undo))
		}
		return nil, err
	}
	return k.c, nil
}

// steps is how a cluster comes up.
func (k *making) steps(ctx context.Context) error {
	steps := []struct {
		what string
		run  func(context.Context) error
	}{
		{"preparing images", k.prepareImages},
		{"starting nodes " + strings.Join(k.shortNames(), ", "), k.startMachines},
		{"issuing certificates", func(context.Context) error { return k.issueAll() }},
		{"starting the container runtime and the control plane", k.startRuntimes},
		{"registering the nodes", k.registerNodes},
		{"deploying DNS" + k.proxyWords(), k.deployAddons},
		{"writing the kubeconfig", func(context.Context) error { return k.writeKubeconfig() }},
	}
	if k.o.CNI == "ptp" {
		steps = slices.Insert(steps, 5, struct {
			what string
			run  func(context.Context) error
		}{"connecting the nodes' pods by routes", k.connectPods})
		steps = append(steps, struct {
			what string
			run  func(context.Context) error
		}{"waiting until nodes and DNS are ready", k.waitReady})
	}
	for _, s := range steps {
		k.o.Progress(s.what)
		if err := k.interruptible(ctx, s.run); err != nil {
			return err
		}
	}
	k.c.Phase = PhaseReady
	return k.c.save()
}

// interruptible runs a step that ends early when a daemon dies.
func (k *making) interruptible(ctx context.Context, step func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() { done <- step(ctx) }()
	select {
	case err := <-done:
		return err
	case err := <-k.died:
		cancel(err)
		<-done //nolint:errcheck // it ends soon, its context is gone
		return err
	}
}

func (k *making) proxyWords() string {
	if k.o.KubeProxy == "none" {
		return ""
	}
	return " and kube-proxy (" + k.o.KubeProxy + ")"
}

func (k *making) shortNames() []string {
	var out []string
	for _, n := range k.c.kubeNodes() {
		out = append(out, n.Name)
	}
	return out
}

// preflight checks what no part of a cluster can do without.
func preflight(stateDir string) error {
	if os.Geteuid() != 0 {
		return errors.New("a local cluster needs root: it makes namespaces, mounts and control groups")
	}
	for _, tool := range []string{"mount", "runc"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed: %w", tool, err)
		}
	}
	if strings.ContainsAny(stateDir, ":,\\ ") || !filepath.IsAbs(stateDir) {
		return fmt.Errorf("%w: state folder %q: use an absolute path without colon, comma, space and backslash", ErrBadOption, stateDir)
	}
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(stateDir, &st); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	if st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return fmt.Errorf("the state folder %s is on an overlay file system, which cannot carry another one; choose another folder", stateDir)
	}
	return nil
}

// matches tells whether an existing cluster is fit for the options.
func (c *Cluster) matches(o *Options) error {
	if c.Phase != PhaseReady {
		if err := c.acquire(); err != nil {
			return err // somebody is at it
		}
		c.release()
		return fmt.Errorf("%w: delete it first: lash cluster delete %s", ErrHalfMade, c.Name)
	}
	if dead := c.Dead(); len(dead) > 0 {
		return fmt.Errorf("cluster %s does not run as a whole: %s of %s ended; delete it and create it again",
			c.Name, dead[0].Name, dead[0].Node)
	}
	workers := len(c.kubeNodes()) - 1
	family := map[[2]bool]string{{true, false}: "ipv4", {false, true}: "ipv6", {true, true}: "dual"}[[2]bool{c.hasIPv4(), c.hasIPv6()}]
	for _, d := range []struct{ flag, have, want string }{
		{"workers", fmt.Sprint(workers), fmt.Sprint(o.Workers)},
		{"kube-proxy", c.KubeProxy, o.KubeProxy},
		{"cni", c.CNI, o.CNI},
		{"ip-family", family, o.IPFamily},
		{"pod-cidr", strings.Join(c.PodCIDRs, ","), strings.Join(o.PodCIDRs, ",")},
		{"service-cidr", strings.Join(c.Services, ","), strings.Join(o.ServiceCIDRs, ",")},
	} {
		if d.have != d.want {
			return fmt.Errorf("%w: %s has %s %s, not %s; delete it first or choose another name", ErrExists, c.Name, d.flag, d.have, d.want)
		}
	}
	o.Progress("cluster " + c.Name + " exists and runs")
	return nil
}

func (c *Cluster) hasIPv4() bool {
	for _, s := range c.Subnets {
		if s.Prefix.Addr().Is4() {
			return true
		}
	}
	return false
}

// Dead lists the daemons of the cluster that have ended; none should.
func (c *Cluster) Dead() []Process {
	var out []Process
	for _, p := range c.Processes {
		if !p.Alive() {
			out = append(out, p)
		}
	}
	return out
}

// reserve claims the name and a subnet and writes the ledger. From here on delete finds all that
// is made.
func reserve(o Options, programs *programs) (*Cluster, error) {
	root, err := lockDir(o.StateDir, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	others, err := loadAll(o.StateDir)
	if err != nil {
		return nil, err
	}
	taken, err := machineRoutes()
	if err != nil {
		return nil, err
	}
	for _, s := range slices.Concat(o.PodCIDRs, o.ServiceCIDRs) {
		taken = append(taken, mustPrefix(s))
	}
	v4, v6 := o.families()
	index, err := freeIndex(others, taken, v4, v6)
	if err != nil {
		return nil, err
	}
	file := kubeconfigFile(o.Kubeconfig)
	_, statErr := os.Stat(file)
	c := &Cluster{
		Kubectl: programs.path["kubectl"],
		Name:    o.Name, Phase: PhaseCreating, Created: time.Now().UTC().Truncate(time.Second), Version: programs.versions["kubernetes"],
		Index: index, Subnets: nodeSubnets(index, v4, v6), PodCIDRs: o.PodCIDRs, Services: o.ServiceCIDRs,
		KubeProxy: o.KubeProxy, CNI: o.CNI, Kubeconfig: file, NewConfig: errors.Is(statErr, fs.ErrNotExist),
		dir: filepath.Join(o.StateDir, o.Name),
	}
	if c.Subnets[0].Prefix.Addr().Is4() != mustPrefix(o.ServiceCIDRs[0]).Addr().Is4() {
		slices.Reverse(c.Subnets) // the first service CIDR sets the primary family
	}
	c.plan(o.Workers)
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	if err := c.acquire(); err != nil {
		return nil, err
	}
	return c, c.save()
}

// startMachines makes the namespaces and joins them on the fabric.
func (k *making) startMachines(context.Context) error {
	nodes := k.c.Nodes
	fabricNode := nodes[len(nodes)-1]
	fabric, err := k.startMachine(fabricNode)
	if err != nil {
		return err
	}
	k.machines[fabricNode.Name] = fabric
	if err := fabric.sysctl(nodeSettings(RoleFabric, k.c.hasIPv6())); err != nil {
		return err
	}
	if err := fabric.buildFabric(k.c.Subnets); err != nil {
		return err
	}
	for i, n := range nodes[:len(nodes)-1] {
		m, err := k.startMachine(n)
		if err != nil {
			return err
		}
		k.machines[n.Name] = m
		if err := m.sysctl(nodeSettings(n.Role, k.c.hasIPv6())); err != nil {
			return err
		}
		if err := fabric.plug(m, fmt.Sprintf("port%d", i), n, k.c.Subnets); err != nil {
			return err
		}
	}
	return nil
}

// startRuntimes brings up containerd with its images on all nodes while the control plane starts.
func (k *making) startRuntimes(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range k.c.kubeNodes() {
		if err := k.startContainerd(ctx, n); err != nil {
			return err
		}
	}
	g.Go(func() error { return k.startControlPlane(ctx) })
	g.Go(func() error {
		for _, file := range k.images {
			if err := k.c.loadImage(ctx, file); err != nil {
				return err
			}
		}
		return nil
	})
	return g.Wait()
}

// watch records a daemon that has been started and reports its end.
func (k *making) watch(node, name string, cmd *exec.Cmd) error {
	if err := k.c.record(node, name, cmd.Process.Pid); err != nil {
		return err
	}
	go func() {
		_ = cmd.Wait() // any end is one too many; the process state tells which
		log, readErr := os.ReadFile(k.logOf(node, name))
		if readErr != nil {
			log = []byte(readErr.Error())
		}
		k.died <- fmt.Errorf("%s on %s ended (%s): %s", name, node, cmd.ProcessState, lastLines(string(log), 5))
	}()
	return nil
}

// logOf is the path of a daemon's log.
func (k *making) logOf(node, name string) string {
	return filepath.Join(k.c.nodeDir(node), "var/log", name+".log")
}

// restConfig reaches the API server over the machine's loopback.
func (k *making) restConfig() *rest.Config {
	return &rest.Config{
		Host: fmt.Sprintf("https://127.0.0.1:%d", k.c.Port),
		TLSClientConfig: rest.TLSClientConfig{
			CAData: k.ca.pair.cert, CertData: k.admin.cert, KeyData: k.admin.key,
		},
		QPS: 100, Burst: 200,
	}
}

func (k *making) client() (*kubernetes.Clientset, error) {
	client, err := kubernetes.NewForConfig(k.restConfig())
	if err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	return client, nil
}

func (k *making) writeKubeconfig() error {
	name := k.c.FullName()
	cfg := kubeconfigFor(name, k.restConfig().Host, k.ca.pair.cert, name, k.admin)
	data, err := clientcmd.Write(*cfg)
	if err == nil {
		err = replaceFile(filepath.Join(k.c.dir, "kubeconfig"), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	return mergeKubeconfig(k.c.Kubeconfig, cfg)
}
