// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
)

// NodePods runs a short pod on nodes, where no agent has to be. They bring no service account, use
// the node's own network and are bound to their node directly: the scheduler would wait for a
// network that may not be there.
type NodePods struct {
	Cluster *Cluster
	// WaitPods waits by watch until cond is true of the selected pods.
	WaitPods func(ctx context.Context, namespace, selector string, cond func([]corev1.Pod) (done bool, state string)) error
	// Logs is what a container has written.
	Logs func(ctx context.Context, namespace, pod, container string) ([]byte, error)
	Say  func(format string, args ...any)
}

// nodeJob is what runs on each node.
type nodeJob struct {
	name      string // of the pods, and their label
	what      string // for messages: "cleaning", ...
	spec      corev1.PodSpec
	container string // whose output counts
}

// outcome is how it went on one node.
type outcome struct {
	out []byte
	err error
}

// nodePodLabel holds the name of the job.
const nodePodLabel = "app.kubernetes.io/name"

// removeLimit is how long the end of the pods is waited for.
const removeLimit = 30 * time.Second

// run runs the job on all nodes at once, waits for all of them and removes the pods, also after an
// interrupt. The error is that of the whole; those of single nodes are in the outcomes.
func (n *NodePods) run(ctx context.Context, j nodeJob, nodes []string) (map[string]outcome, error) {
	if len(nodes) == 0 {
		return map[string]outcome{}, nil
	}
	c := n.Cluster
	api := c.Clientset.CoreV1().Pods(c.Namespace)
	// The label tells this run from others, which may have been killed.
	run := rand.String(6)
	selector := nodePodLabel + "=" + j.name + ",lash.internal/run=" + run
	defer n.remove(ctx, selector)
	for i, node := range nodes {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Name: fmt.Sprintf("%s-%s-%d", j.name, run, i), Namespace: c.Namespace,
				Labels: map[string]string{nodePodLabel: j.name, "lash.internal/run": run},
			},
			Spec: *j.spec.DeepCopy(),
		}
		p.Spec.NodeName = node
		if _, err := api.Create(ctx, p, metav1.CreateOptions{}); err != nil {
			return nil, fmt.Errorf("starting the %s of node %s: %w", j.what, node, err)
		}
	}
	done := map[string]corev1.Pod{}
	err := n.WaitPods(ctx, c.Namespace, selector, func(pods []corev1.Pod) (bool, string) {
		var busy []string
		for i := range pods {
			p := &pods[i]
			if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || stuck(p) != "" {
				done[p.Spec.NodeName] = *p
				continue
			}
			busy = append(busy, p.Spec.NodeName)
		}
		slices.Sort(busy)
		return len(busy) == 0 && len(done) >= len(nodes), fmt.Sprintf("%s has not ended on %s", j.what, strings.Join(busy, ", "))
	})
	if err != nil {
		return nil, fmt.Errorf("%s of the nodes: %w", j.what, err)
	}
	out := map[string]outcome{}
	for node, p := range done {
		out[node] = n.outcome(ctx, j, &p)
	}
	return out, nil
}

func (n *NodePods) outcome(ctx context.Context, j nodeJob, p *corev1.Pod) outcome {
	if why := stuck(p); why != "" {
		return outcome{err: fmt.Errorf("the pod did not start: %s", why)}
	}
	if p.Status.Phase != corev1.PodSucceeded {
		return outcome{err: fmt.Errorf("%s", terminationOf(p))}
	}
	b, err := n.Logs(ctx, p.Namespace, p.Name, j.container)
	if err != nil {
		return outcome{err: fmt.Errorf("reading its output: %w", err)}
	}
	return outcome{out: b}
}

// stuck says why a pod will not start; empty when it may.
func stuck(p *corev1.Pod) string {
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		w := s.State.Waiting
		if w == nil {
			continue
		}
		switch w.Reason {
		case "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError", "RunContainerError":
			return fmt.Sprintf("%s, image %s: %s", w.Reason, s.Image, w.Message)
		}
	}
	return ""
}

// terminationOf is what the container that failed said last.
func terminationOf(p *corev1.Pod) string {
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if t := s.State.Terminated; t != nil && t.ExitCode != 0 {
			if m := strings.TrimSpace(t.Message); m != "" {
				return m
			}
			return fmt.Sprintf("%s ended with code %d", s.Name, t.ExitCode)
		}
	}
	if p.Status.Message != "" {
		return p.Status.Message
	}
	return "the pod failed without saying why"
}

// remove deletes the pods of a run and waits until they are gone.
func (n *NodePods) remove(ctx context.Context, selector string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeLimit)
	defer cancel()
	api := n.Cluster.Clientset.CoreV1().Pods(n.Cluster.Namespace)
	now := int64(0)
	pods, err := api.List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		n.Say("⚠️  Could not remove pods %s: %v", selector, err)
		return
	}
	for i := range pods.Items {
		if err := api.Delete(ctx, pods.Items[i].Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil && !apierrors.IsNotFound(err) {
			n.Say("⚠️  Could not remove pod %s: %v", pods.Items[i].Name, err)
		}
	}
	err = n.WaitPods(ctx, n.Cluster.Namespace, selector, func(pods []corev1.Pod) (bool, string) {
		return len(pods) == 0, fmt.Sprintf("%d pods are still there", len(pods))
	})
	if err != nil {
		n.Say("⚠️  Waiting for the end of pods %s: %v", selector, err)
	}
}

// basePod is the part that all pods on nodes share.
func basePod() corev1.PodSpec {
	no := false
	return corev1.PodSpec{
		HostNetwork: true, RestartPolicy: corev1.RestartPolicyNever,
		PriorityClassName:            "system-node-critical",
		AutomountServiceAccountToken: &no,
		Tolerations:                  []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		SecurityContext: &corev1.PodSecurityContext{
			// The runtime's default profiles forbid to write sysctls and to touch the BPF file system.
			AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined},
			SELinuxOptions:  &corev1.SELinuxOptions{Level: "s0", Type: "spc_t"},
		},
	}
}

// restricted is a container's security context without any right but the given capabilities.
func restricted(capabilities ...corev1.Capability) *corev1.SecurityContext {
	no, yes := false, true
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: capabilities},
	}
}

// hostMount adds a folder of the node to a pod and to one of its containers.
func hostMount(s *corev1.PodSpec, ctr *corev1.Container, host string, kind corev1.HostPathType, m corev1.VolumeMount) {
	for _, v := range s.Volumes {
		if v.HostPath != nil && v.HostPath.Path == host {
			m.Name = v.Name
		}
	}
	if m.Name == "" {
		m.Name = fmt.Sprintf("v%d", len(s.Volumes))
		s.Volumes = append(s.Volumes, corev1.Volume{Name: m.Name, VolumeSource: corev1.VolumeSource{
			HostPath: &corev1.HostPathVolumeSource{Path: host, Type: &kind},
		}})
	}
	ctr.VolumeMounts = append(ctr.VolumeMounts, m)
}

// liveNodes splits the Linux nodes into those whose kubelet answers and those that are lost.
func liveNodes(ctx context.Context, c *Cluster) (live, lost []string, err error) {
	nodes, err := c.Clientset.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("listing nodes: %w", err)
	}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		if os := n.Labels[corev1.LabelOSStable]; os != "" && os != "linux" {
			continue
		}
		dead := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown
		})
		if dead {
			lost = append(lost, n.Name)
		} else {
			live = append(live, n.Name)
		}
	}
	slices.Sort(live)
	slices.Sort(lost)
	return live, lost, nil
}
