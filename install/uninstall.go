// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/release"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lash.internal/lash/agent/api"
	nodeimage "lash.internal/lash/install/image"
)

// ErrNotInstalled is an uninstall where there is nothing of ours.
var ErrNotInstalled = errors.New("not installed")

// Selectors of the pods that have to be gone before anything is taken away under them.
const (
	agentSelector    = "k8s-app=cilium"
	operatorSelector = "io.cilium/app=operator"
)

// Removal is an uninstallation.
type Removal struct {
	NodePods
	Clean    bool          // wait until the agents are gone, then clean every node and the API
	KeepCRDs bool          // leave the definitions of our kinds; their objects go in any case
	Force    bool          // without a release, too: clean all nodes
	Image    string        // image for pods on nodes where no release names one
	Timeout  time.Duration // of Helm's part; the context limits the whole
	// Before runs when it is clear that there is something to remove, before that is done.
	Before func(ctx context.Context) error
}

// Run removes the release, then the traces on the nodes and in the API server. It returns what is
// kept on purpose, in words.
func (r *Removal) Run(ctx context.Context) (kept []string, err error) {
	c := r.Cluster
	if f, err := ForeignRelease(c); err != nil {
		return nil, err
	} else if f != nil {
		return nil, fmt.Errorf("%w: %s (%s): %s", ErrForeign, f.What, f.Evidence, f.Next)
	}
	rel, err := Existing(c)
	if err != nil {
		return nil, err
	}
	if rel == nil && !r.Force {
		return nil, fmt.Errorf("%w: there is no Helm release %s in namespace %s of context %q (to remove what an earlier uninstall left: --force)",
			ErrNotInstalled, c.Release, c.Namespace, c.Context)
	}
	if rel == nil {
		if err := noForeignAgents(ctx, c); err != nil {
			return nil, err
		}
	}
	where, err := places(ctx, c, rel, r.Image)
	if err != nil {
		return nil, err
	}
	nodes, err := r.nodesToClean(ctx)
	if err != nil {
		return nil, err
	}
	if r.Before != nil {
		if err := r.Before(ctx); err != nil {
			return nil, err
		}
	}
	r.Say("⌛ Uninstalling Cilium")
	if rel != nil {
		if err := r.release(); err != nil {
			return nil, err
		}
	}
	if !r.Clean {
		return nil, nil
	}
	for _, sel := range []string{agentSelector, operatorSelector} {
		err = r.WaitPods(ctx, c.Namespace, sel, func(pods []corev1.Pod) (bool, string) {
			return len(pods) == 0, fmt.Sprintf("%d pods %s are still there", len(pods), sel)
		})
		if err != nil {
			return nil, fmt.Errorf("waiting for agents and operator to end: %w", err)
		}
	}
	if kept, err = r.clean(ctx, nodes, where); err != nil {
		return kept, err
	}
	inAPI, err := cleanAPI(ctx, c, where.taint, r.KeepCRDs)
	if err != nil {
		return kept, err
	}
	kept = append(kept, inAPI...)
	kept = append(kept, "image "+where.image+" on the nodes, until a kubelet needs the room")
	if c.Namespace != metav1.NamespaceSystem {
		kept = append(kept, "namespace "+c.Namespace)
	}
	return kept, nil
}

// noForeignAgents makes sure that no Cilium of others would be cleaned away.
func noForeignAgents(ctx context.Context, c *Cluster) error {
	sets, err := c.Clientset.AppsV1().DaemonSets("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing DaemonSets: %w", err)
	}
	for i := range sets.Items {
		d := &sets.Items[i]
		if (d.Name == agentDaemonSet || d.Labels["k8s-app"] == agentDaemonSet) && !owned(d.ObjectMeta) {
			return fmt.Errorf("%w: DaemonSet %s/%s runs %s; its devices and files have the same names as those of Lash", ErrForeign, d.Namespace, d.Name, imageOf(d))
		}
	}
	return nil
}

// nodesToClean are those with an agent, and with Force all whose kubelet answers.
func (r *Removal) nodesToClean(ctx context.Context) ([]string, error) {
	pods, err := r.Cluster.Clientset.CoreV1().Pods(r.Cluster.Namespace).List(ctx, metav1.ListOptions{LabelSelector: agentSelector})
	if err != nil {
		return nil, fmt.Errorf("listing the agents: %w", err)
	}
	var out []string
	for i := range pods.Items {
		if n := pods.Items[i].Spec.NodeName; n != "" && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	if r.Force {
		live, lost, err := liveNodes(ctx, r.Cluster)
		if err != nil {
			return nil, err
		}
		for _, n := range lost {
			r.Say("⚠️  Node %s is lost and cannot be cleaned", n)
		}
		for _, n := range live {
			if !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

func (r *Removal) release() error {
	cfg, err := configuration(r.Cluster, 0, func(string, ...any) {})
	if err != nil {
		return err
	}
	un := action.NewUninstall(cfg)
	un.Wait, un.Timeout = false, r.Timeout
	if _, err := un.Run(r.Cluster.Release); err != nil {
		return fmt.Errorf("removing the Helm release %s: %w", r.Cluster.Release, err)
	}
	return nil
}

// clean runs a short pod on every node that removes programs, devices, mounts and files.
func (r *Removal) clean(ctx context.Context, nodes []string, where folders) (kept []string, err error) {
	result, err := r.run(ctx, cleaner(where), nodes)
	if err != nil {
		return nil, err
	}
	var failed []string
	for _, n := range nodes {
		o := result[n]
		if o.err != nil {
			failed = append(failed, n+": "+o.err.Error())
		}
		for line := range strings.Lines(string(o.out)) {
			if at, ok := strings.CutPrefix(strings.TrimSpace(line), keptPrefix); ok {
				kept = append(kept, "mount "+at+" on node "+n+", which others use by now")
			}
		}
	}
	if len(failed) > 0 {
		return kept, fmt.Errorf("cleaning the nodes: %s; try again with `lash uninstall --force`", strings.Join(failed, "; "))
	}
	r.Say("✅ Cleaned %d nodes", len(nodes))
	return kept, nil
}

// keptPrefix begins the lines in which the last step of the cleaning names mounts that stay.
const keptPrefix = "kept: "

// folders are where an installation has put things on the nodes.
type folders struct {
	image, bpfRoot, cgroupRoot, cniConf, cniBin, run string
	mounts                                           bool // the init steps may have mounted something
	taint                                            string
}

// Folders of the agent on the nodes: of its state, and of what it keeps over a reboot.
const (
	stateDir = "/run/lash"
	keepDir  = "/var/lib/lash-agent"
)

// places reads them from the release's values over its chart's defaults, or without a release from
// the defaults of this version.
func places(ctx context.Context, c *Cluster, rel *release.Release, image string) (folders, error) {
	var layers []map[string]any
	if rel != nil {
		layers = append(layers, rel.Config)
		if rel.Chart != nil {
			layers = append(layers, rel.Chart.Values)
		}
	}
	own, err := loadChart("", api.CiliumVersion)
	if err != nil {
		return folders{}, err
	}
	layers = append(layers, own.Values) // what an older chart did not have
	get := func(path string) any {
		for _, m := range layers {
			if v := lookup(m, path); v != nil && v != "" {
				return v
			}
		}
		return nil
	}
	text := func(path string) string { s, _ := get(path).(string); return s }
	f := folders{
		image: image, bpfRoot: text("bpf.root"), cgroupRoot: text("cgroup.hostRoot"),
		cniConf: text("cni.confPath"), cniBin: text("cni.binPath"), run: text("daemon.runPath"), taint: text("agentNotReadyTaintKey"),
	}
	bpf, _ := get("bpf.autoMount.enabled").(bool)
	cgroup, _ := get("cgroup.autoMount.enabled").(bool)
	f.mounts = bpf || cgroup
	if f.image == "" && rel != nil {
		f.image = imageInManifest(rel.Manifest)
	}
	if f.image == "" {
		f.image, err = imageOnNodes(ctx, c)
	}
	return f, err
}

// imageOnNodes finds this version's image among those that nodes report, wherever it was pulled
// from; the name that it is saved under when none does.
func imageOnNodes(ctx context.Context, c *Cluster) (string, error) {
	nodes, err := c.Clientset.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", fmt.Errorf("listing nodes: %w", err)
	}
	for i := range nodes.Items {
		for _, img := range nodes.Items[i].Status.Images {
			for _, n := range img.Names {
				if strings.HasSuffix(n, "/lash:"+api.Version) {
					return n, nil
				}
			}
		}
	}
	return nodeimage.Options{}.Ref(), nil
}

// cleaner is the pod that cleans one node: first what needs few rights, then the mounts, which need
// all of them, and only where the installation may have mounted something.
func cleaner(f folders) nodeJob {
	s := basePod()
	hostToContainer, both := corev1.MountPropagationHostToContainer, corev1.MountPropagationBidirectional
	clean := corev1.Container{
		Name: "clean", Image: f.image, ImagePullPolicy: corev1.PullIfNotPresent,
		Command:                  []string{"lash-agent", "init", "clean-state", "--all", "--bpf-root", f.bpfRoot},
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		SecurityContext:          restricted("BPF", "NET_ADMIN"), // detach programs; remove devices and routes
	}
	hostMount(&s, &clean, f.bpfRoot, corev1.HostPathDirectoryOrCreate, corev1.VolumeMount{MountPath: f.bpfRoot, MountPropagation: &hostToContainer})
	for _, m := range [][2]string{
		{f.cniConf, "/host/etc/cni/net.d"},
		{f.cniBin, "/host/opt/cni/bin"},
		{"/var/lib/cni", "/host/var/lib/cni"},
		{f.run, "/var/run/cilium"},
		{stateDir, stateDir},
		{keepDir, keepDir},
		{"/proc/sys/net", "/host/proc/sys/net"}, // sysctls go back to what they were
	} {
		hostMount(&s, &clean, m[0], corev1.HostPathDirectoryOrCreate, corev1.VolumeMount{MountPath: m[1]})
	}
	leave := corev1.Container{
		Name: "leave", Image: f.image, ImagePullPolicy: corev1.PullIfNotPresent,
		Command:                  []string{"lash-agent", "init", "leave", "--root", "/host", "--state-dir", stateDir, "--run-dir", f.run},
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		SecurityContext:          restricted(), // remove empty folders
	}
	m := corev1.VolumeMount{}
	if f.mounts {
		yes := true
		leave.SecurityContext = &corev1.SecurityContext{Privileged: &yes} // an unmount that the node sees
		m.MountPropagation = &both
	}
	// The folders that hold mount points and folders of ours.
	for _, dir := range slices.Compact(slices.Sorted(slices.Values([]string{
		"/run", path.Dir(f.bpfRoot), parentOf(f.cgroupRoot), parentOf(f.run), parentOf(keepDir),
	}))) {
		m := m
		m.MountPath = path.Join("/host", dir)
		hostMount(&s, &leave, dir, corev1.HostPathDirectory, m)
	}
	s.InitContainers, s.Containers = []corev1.Container{clean}, []corev1.Container{leave}
	return nodeJob{name: "lash-cleaner", what: "cleaning", spec: s, container: "leave"}
}

// parentOf is the folder that a folder of ours is removed from: what is below /run is seen there.
func parentOf(dir string) string {
	if strings.HasPrefix(dir, "/run/") {
		return "/run"
	}
	return path.Dir(dir)
}
