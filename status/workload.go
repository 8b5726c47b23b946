// SPDX-License-Identifier: Apache-2.0

package status

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// workloadOf names the part of the network that a pod belongs to, by its labels.
func workloadOf(p *corev1.Pod) string {
	set := labels.Set(p.Labels)
	for _, x := range parts {
		for _, s := range x.selectors {
			k, v, _ := strings.Cut(s, "=")
			if set.Get(k) == v {
				return x.name
			}
		}
	}
	return ""
}

func containerRuns(p *corev1.Pod, name string) bool {
	for _, c := range p.Status.ContainerStatuses {
		if c.Name == name {
			return c.State.Running != nil
		}
	}
	// A status that lists no containers says nothing against it.
	return len(p.Status.ContainerStatuses) == 0
}

// workloads counts pods, phases and images, and judges the roll-outs.
func (g *gather) workloads() {
	for _, x := range parts {
		switch x.kind {
		case "DaemonSet":
			g.daemonSet(x)
		default:
			g.deployment(x)
		}
	}
	for i := range g.pods {
		p := &g.pods[i]
		w := workloadOf(p)
		if w == "" {
			continue
		}
		add(g.out.PhaseCount, w, string(p.Status.Phase))
		for _, c := range p.Spec.Containers {
			add(g.out.ImageCount, w, c.Image)
		}
	}
}

func add(m map[string]map[string]int, k1, k2 string) {
	if m[k1] == nil {
		m[k1] = map[string]int{}
	}
	m[k1][k2]++
}

func (g *gather) daemonSet(x part) {
	for i := range g.daemonSets {
		d := &g.daemonSets[i]
		if d.Name != x.name {
			continue
		}
		s := d.Status
		g.out.PodState[x.name] = PodState{
			Type: x.kind, Desired: int(s.DesiredNumberScheduled), Ready: int(s.NumberReady),
			Available: int(s.NumberAvailable), Unavailable: int(s.NumberUnavailable),
		}
		if x.required && s.DesiredNumberScheduled == 0 && s.ObservedGeneration >= d.Generation {
			g.out.addError(x.name, x.name, Problem{
				Message:  fmt.Sprintf("DaemonSet %s selects no node: no new pod gets a network", x.name),
				Evidence: fmt.Sprintf("nodeSelector %s", labels.Set(d.Spec.Template.Spec.NodeSelector)),
				Next:     fmt.Sprintf("kubectl -n %s describe daemonset %s", g.Namespace, x.name),
			})
		}
		g.judgeRollout(x, d.Generation, s.ObservedGeneration, s.DesiredNumberScheduled, s.UpdatedNumberScheduled, s.NumberReady)
		return
	}
	g.missing(x)
}

func (g *gather) deployment(x part) {
	for i := range g.deployments {
		d := &g.deployments[i]
		if d.Name != x.name {
			continue
		}
		want := int32(1)
		if d.Spec.Replicas != nil {
			want = *d.Spec.Replicas
		}
		s := d.Status
		g.out.PodState[x.name] = PodState{
			Type: x.kind, Desired: int(want), Ready: int(s.ReadyReplicas),
			Available: int(s.AvailableReplicas), Unavailable: int(s.UnavailableReplicas),
		}
		g.judgeRollout(x, d.Generation, s.ObservedGeneration, want, s.UpdatedReplicas, s.ReadyReplicas)
		return
	}
	g.missing(x)
}

func (g *gather) missing(x part) {
	if !x.required {
		g.out.problems(x.name, x.name, func(p *Problems) { p.Disabled = true })
		return
	}
	g.out.addError(x.name, x.name, Problem{
		Message: fmt.Sprintf("%s %s does not exist in namespace %s", x.kind, x.name, g.Namespace),
		Next:    "lash install",
	})
}

func (g *gather) judgeRollout(x part, generation, observed int64, want, updated, ready int32) {
	next := fmt.Sprintf("kubectl -n %s rollout status %s/%s", g.Namespace, strings.ToLower(x.kind), x.name)
	if observed < generation {
		g.out.addError(x.name, x.name, Problem{
			Message: fmt.Sprintf("%s %s: rollout has not started", x.kind, x.name),
			Next:    next,
		})
		return
	}
	if updated < want {
		g.out.addWarning(x.name, x.name, Problem{
			Message: fmt.Sprintf("%s %s is rolling out - %d out of %d pods updated", x.kind, x.name, updated, want),
			Next:    next,
		})
	}
	if ready < want {
		g.out.addError(x.name, x.name, Problem{
			Message: fmt.Sprintf("%d pods of %s %s are not ready", want-ready, x.kind, x.name),
			Next:    next,
		})
	}
}

// waiting reasons of a container that do not heal by themselves, and what to do about them.
var stuck = map[string]string{
	"ImagePullBackOff":           "put the image on the nodes or where they can pull it from, then look with `kubectl -n %[1]s describe pod %[2]s`",
	"ErrImagePull":               "put the image on the nodes or where they can pull it from, then look with `kubectl -n %[1]s describe pod %[2]s`",
	"ErrImageNeverPull":          "put the image on the nodes: the pod may not pull it",
	"InvalidImageName":           "correct the image name: `lash upgrade --set image.repository=...`",
	"CreateContainerConfigError": "kubectl -n %[1]s describe pod %[2]s",
	"CreateContainerError":       "kubectl -n %[1]s describe pod %[2]s",
	"RunContainerError":          "kubectl -n %[1]s describe pod %[2]s",
	"CrashLoopBackOff":           "kubectl -n %[1]s logs %[2]s -c %[3]s --previous",
}

// podProblems looks for the reason of every pod of ours that is not ready.
func (g *gather) podProblems(ctx context.Context) {
	var wg sync.WaitGroup
	for i := range g.pods {
		p := &g.pods[i]
		w := workloadOf(p)
		if w == "" || p.DeletionTimestamp != nil || podReady(p) {
			continue
		}
		wg.Go(func() {
			for _, x := range g.podCauses(ctx, p) {
				g.out.addError(w, p.Name, x)
			}
		})
	}
	wg.Wait()
}

func podReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (g *gather) podCauses(ctx context.Context, p *corev1.Pod) []Problem {
	var out []Problem
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			out = append(out, Problem{
				Message: "the pod cannot be scheduled", Evidence: c.Message,
				Next: fmt.Sprintf("kubectl -n %s describe pod %s", g.Namespace, p.Name),
			})
		}
	}
	if p.Status.Phase == corev1.PodFailed {
		out = append(out, Problem{
			Message: "the pod has failed: " + p.Status.Reason, Evidence: p.Status.Message,
			Next: fmt.Sprintf("kubectl -n %s describe pod %s", g.Namespace, p.Name),
		})
	}
	for _, c := range append(append([]corev1.ContainerStatus{}, p.Status.InitContainerStatuses...), p.Status.ContainerStatuses...) {
		if x, ok := g.containerCause(ctx, p, c); ok {
			out = append(out, x)
		}
	}
	if len(out) == 0 && p.Status.Phase == corev1.PodRunning {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Message != "" && len(p.Spec.Containers) > 0 {
				return []Problem{{
					Message: "the pod is not ready", Evidence: join(c.Message, g.lastWords(ctx, p, p.Spec.Containers[0].Name)),
					Next: fmt.Sprintf("kubectl -n %s logs %s", g.Namespace, p.Name),
				}}
			}
		}
	}
	if len(out) == 0 {
		out = append(out, Problem{
			Message: fmt.Sprintf("the pod is %s and not ready on node %s", p.Status.Phase, nodeOf(p)),
			Next:    fmt.Sprintf("kubectl -n %s describe pod %s", g.Namespace, p.Name),
		})
	}
	return out
}

func nodeOf(p *corev1.Pod) string {
	if p.Spec.NodeName == "" {
		return "(none)"
	}
	return p.Spec.NodeName
}

func (g *gather) containerCause(ctx context.Context, p *corev1.Pod, c corev1.ContainerStatus) (Problem, bool) {
	w := c.State.Waiting
	if w == nil {
		t := c.State.Terminated
		if t == nil || t.ExitCode == 0 {
			return Problem{}, false
		}
		return Problem{
			Message:  fmt.Sprintf("container %s ended with code %d on node %s", c.Name, t.ExitCode, nodeOf(p)),
			Evidence: g.lastLog(ctx, p, c.Name, false),
			Next:     fmt.Sprintf("kubectl -n %s logs %s -c %s", g.Namespace, p.Name, c.Name),
		}, true
	}
	advice, ok := stuck[w.Reason]
	if !ok {
		return Problem{}, false
	}
	x := Problem{
		Message: fmt.Sprintf("container %s: %s on node %s", c.Name, w.Reason, nodeOf(p)),
		Next:    advice,
	}
	// Arguments are chosen by index, so a text may leave some out.
	if strings.Contains(advice, "%") {
		x.Next = fmt.Sprintf(advice, g.Namespace, p.Name, c.Name)
	}
	switch w.Reason {
	case "CrashLoopBackOff":
		x.Message += fmt.Sprintf(", %d restarts", c.RestartCount)
		x.Evidence = g.lastLog(ctx, p, c.Name, true)
		if t := c.LastTerminationState.Terminated; x.Evidence == "" && t != nil {
			x.Evidence = fmt.Sprintf("exit code %d %s %s", t.ExitCode, t.Reason, t.Message)
		}
	default:
		x.Evidence = "image " + c.Image
		if w.Message != "" {
			x.Evidence = w.Message
		}
	}
	return x, true
}

// logLimit is how long a log may take to come.
const logLimit = 3 * time.Second

// lastWords is the last line that a running container has written, as evidence.
func (g *gather) lastWords(ctx context.Context, p *corev1.Pod, container string) string {
	line := g.lastLog(ctx, p, container, false)
	if line == "" {
		return ""
	}
	return "last log line: " + line
}

// join puts pieces of evidence together.
func join(pieces ...string) string {
	return strings.Join(slices.DeleteFunc(pieces, func(s string) bool { return s == "" }), "; ")
}

// lastLog is the last line that a container has written, of the run before when previous is set.
func (g *gather) lastLog(ctx context.Context, p *corev1.Pod, container string, previous bool) string {
	ctx, cancel := context.WithTimeout(ctx, logLimit)
	defer cancel()
	lines := int64(5)
	b, err := g.Client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{
		Container: container, Previous: previous, TailLines: &lines,
	}).DoRaw(ctx)
	if err != nil {
		return ""
	}
	return lastLine(b)
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// dropEchoes removes the general statement about an agent that does not answer, or a pod that is
// not ready, where a cause of the same pod is known.
func (g *gather) dropEchoes() {
	for _, pods := range g.out.Errors {
		for name, p := range pods {
			if len(p.Errors) < 2 {
				continue
			}
			kept := p.Errors[:0:0]
			for _, e := range p.Errors {
				if e.Message != "the pod is not ready" {
					kept = append(kept, e)
				}
			}
			p.Errors = kept
			pods[name] = p
		}
	}
}
