// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/release"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
)

// ErrNotInstalled is an uninstall where there is nothing of ours.
var ErrNotInstalled = errors.New("not installed")

// agentSelector selects the agents.
const agentSelector = "k8s-app=cilium"

// cleanerLabel marks the pods that clean nodes.
const cleanerLabel = "app.kubernetes.io/name=lash-cleaner"

// Removal is an uninstallation.
type Removal struct {
	Cluster *Cluster
	Clean   bool          // wait until the agents are gone and clean every node
	Timeout time.Duration // of Helm's part; the context limits the whole
	Say     func(format string, args ...any)

	// WaitPods waits by watch until cond is true of the selected pods.
	WaitPods func(ctx context.Context, namespace, selector string, cond func([]corev1.Pod) (done bool, state string)) error
}

// Run removes the release, then the traces on the nodes. The kinds (CRDs) stay, and with them the
// objects of users.
func (r *Removal) Run(ctx context.Context) error {
	c := r.Cluster
	if f, err := ForeignRelease(c); err != nil {
		return err
	} else if f != nil {
		return fmt.Errorf("%w: %s (%s): %s", ErrForeign, f.What, f.Evidence, f.Next)
	}
	rel, err := Existing(c)
	if err != nil {
		return err
	}
	if rel == nil {
		return fmt.Errorf("%w: there is no Helm release %s in namespace %s of context %q", ErrNotInstalled, c.Release, c.Namespace, c.Context)
	}
	nodes, err := r.agentNodes(ctx)
	if err != nil {
		return err
	}
	r.Say("⌛ Uninstalling Cilium")
	if err := r.release(); err != nil {
		return err
	}
	if !r.Clean {
		return nil
	}
	err = r.WaitPods(ctx, c.Namespace, agentSelector, func(pods []corev1.Pod) (bool, string) {
		return len(pods) == 0, fmt.Sprintf("%d agents are still there", len(pods))
	})
	if err != nil {
		return fmt.Errorf("waiting for the agents to end: %w", err)
	}
	return r.clean(ctx, nodes, rel)
}

// agentNodes lists the nodes that have an agent.
func (r *Removal) agentNodes(ctx context.Context) ([]string, error) {
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

// clean runs a short pod on every node that removes programs, devices and files, and waits for
// all of them.
func (r *Removal) clean(ctx context.Context, nodes []string, rel *release.Release) error {
	c := r.Cluster
	api := c.Clientset.CoreV1().Pods(c.Namespace)
	where := places(rel)
	for _, n := range nodes {
		if _, err := api.Create(ctx, cleaner(c.Namespace, n, where), metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("starting the cleaning of node %s: %w", n, err)
		}
	}
	defer func() { // also after an interrupt
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if pods, err := api.List(ctx, metav1.ListOptions{LabelSelector: cleanerLabel}); err == nil {
			for i := range pods.Items {
				if err := api.Delete(ctx, pods.Items[i].Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
					r.Say("⚠️  Could not delete pod %s: %v", pods.Items[i].Name, err)
				}
			}
		}
	}()
	var failed []string
	err := r.WaitPods(ctx, c.Namespace, cleanerLabel, func(pods []corev1.Pod) (bool, string) {
		var busy []string
		failed = failed[:0]
		for i := range pods {
			switch pods[i].Status.Phase {
			case corev1.PodSucceeded:
			case corev1.PodFailed:
				failed = append(failed, pods[i].Spec.NodeName+": "+terminationOf(&pods[i]))
			default:
				busy = append(busy, pods[i].Spec.NodeName)
			}
		}
		return len(busy) == 0, "still cleaning " + strings.Join(busy, ", ")
	})
	if err != nil {
		return fmt.Errorf("cleaning the nodes: %w", err)
	}
	if len(failed) > 0 {
		return fmt.Errorf("cleaning the nodes: %s", strings.Join(failed, "; "))
	}
	r.Say("✅ Cleaned %d nodes", len(nodes))
	return nil
}

func terminationOf(p *corev1.Pod) string {
	for _, s := range p.Status.ContainerStatuses {
		if t := s.State.Terminated; t != nil {
			return strings.TrimSpace(t.Message)
		}
	}
	return p.Status.Message
}

// folders are where an installation has put things on the nodes.
type folders struct {
	image, bpfRoot, cniConf, cniBin, run string
}

// places reads them from the release's values over the chart's defaults.
func places(rel *release.Release) folders {
	get := func(path string) string {
		for _, m := range []map[string]any{rel.Config, rel.Chart.Values} {
			if s, ok := lookup(m, path).(string); ok && s != "" {
				return s
			}
		}
		return ""
	}
	return folders{
		image:   imageInManifest(rel.Manifest),
		bpfRoot: get("bpf.root"), cniConf: get("cni.confPath"), cniBin: get("cni.binPath"), run: get("daemon.runPath"),
	}
}

// cleaner is the pod that cleans one node. It is bound to the node directly: the scheduler would
// wait for a network that is gone.
func cleaner(namespace, node string, f folders) *corev1.Pod {
	no, yes := false, true
	hostToContainer := corev1.MountPropagationHostToContainer
	k, v, _ := strings.Cut(cleanerLabel, "=")
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "lash-cleaner-" + rand.String(6), Namespace: namespace, Labels: map[string]string{k: v},
		},
		Spec: corev1.PodSpec{
			NodeName: node, HostNetwork: true, RestartPolicy: corev1.RestartPolicyNever,
			PriorityClassName:            "system-node-critical",
			AutomountServiceAccountToken: &no,
			Tolerations:                  []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{
				Name: "clean", Image: f.image, ImagePullPolicy: corev1.PullIfNotPresent,
				Command:                  []string{"lash-agent", "init", "clean-state", "--all", "--bpf-root", f.bpfRoot},
				TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
					SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
					Capabilities: &corev1.Capabilities{
						Drop: []corev1.Capability{"ALL"},
						Add:  []corev1.Capability{"BPF", "NET_ADMIN"}, // detach programs; remove devices and routes
					},
				},
			}},
		},
	}
	for i, m := range []struct{ host, inside string }{
		{f.bpfRoot, f.bpfRoot},
		{f.cniConf, "/host/etc/cni/net.d"},
		{f.cniBin, "/host/opt/cni/bin"},
		{f.run, "/var/run/cilium"},
		{"/run/lash", "/run/lash"},
		{"/proc/sys/net", "/host/proc/sys/net"}, // sysctls go back to what they were
	} {
		name := fmt.Sprintf("v%d", i)
		create := corev1.HostPathDirectoryOrCreate
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			HostPath: &corev1.HostPathVolumeSource{Path: m.host, Type: &create},
		}})
		mount := corev1.VolumeMount{Name: name, MountPath: m.inside}
		if m.host == f.bpfRoot {
			mount.MountPropagation = &hostToContainer
		}
		p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, mount)
	}
	return p
}
