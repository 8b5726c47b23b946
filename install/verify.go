// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"lash.internal/lash/agent/api"
)

// Verification looks for what of ours is left in a cluster. It needs no agent: a short pod looks at
// each node.
type Verification struct {
	NodePods
	Image string // image for pods on nodes where no release names one
}

// Verdict is what a verification has found.
type Verdict struct {
	API   []Trace                   `json:"api"`
	Nodes map[string][]api.NodeItem `json:"nodes"` // by node; a node without traces has an empty list
	Kept  []Trace                   `json:"kept"`  // there on purpose
	// Failed is what could not be looked at: a node or a kind of the API, and why.
	Failed map[string]string `json:"failed"`
}

// Clean says whether everything was looked at and nothing was found.
func (v *Verdict) Clean() bool {
	n := len(v.API)
	for _, items := range v.Nodes {
		n += len(items)
	}
	return n == 0 && len(v.Failed) == 0
}

// Run looks at the API server and at all nodes whose kubelet answers.
func (v *Verification) Run(ctx context.Context) (*Verdict, error) {
	c := v.Cluster
	if err := noForeignAgents(ctx, c); err != nil {
		return nil, err
	}
	rel, err := Existing(c)
	if err != nil {
		return nil, err
	}
	if rel != nil && !Ours(rel) {
		rel = nil
	}
	where, err := places(ctx, c, rel, v.Image)
	if err != nil {
		return nil, err
	}
	a := &apiAudit{c: c, failed: map[string]string{}}
	a.run(ctx, where.taint)
	out := &Verdict{API: a.traces, Kept: a.kept, Nodes: map[string][]api.NodeItem{}, Failed: a.failed}
	live, lost, err := liveNodes(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, n := range lost {
		out.Failed["node "+n] = "its kubelet does not answer"
	}
	result, err := v.run(ctx, auditor(where), live)
	if err != nil {
		return nil, err
	}
	for _, n := range live {
		if err := out.node(n, result[n]); err != nil {
			out.Failed["node "+n] = err.Error()
		}
	}
	return out, nil
}

func (v *Verdict) node(name string, o outcome) error {
	if o.err != nil {
		return o.err
	}
	var found api.NodeAudit
	if err := json.Unmarshal(o.out, &found); err != nil {
		return fmt.Errorf("its answer cannot be read: %w", err)
	}
	v.Nodes[name] = found.Traces()
	for _, p := range found.Problems {
		what, why, _ := strings.Cut(p, ": ")
		v.Failed["node "+name+", "+what] = why
	}
	return nil
}

// auditor is the pod that looks at one node. It sees the node's files read-only, all of them: to
// mount only the folders that it looks at would make the kubelet create those that are not there.
func auditor(f folders) nodeJob {
	s := basePod()
	look := corev1.Container{
		Name: "audit", Image: f.image, ImagePullPolicy: corev1.PullIfNotPresent,
		Command: []string{
			"lash-agent", "audit", "--root", "/host", "--bpf-root", f.bpfRoot, "--cgroup-root", f.cgroupRoot,
			"--cni-conf", f.cniConf, "--cni-bin", f.cniBin, "--run-dir", f.run, "--state-dir", stateDir,
		},
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		// To ask which programs are on a hook, and for their names.
		SecurityContext: restricted("BPF", "NET_ADMIN", "SYS_ADMIN"),
	}
	ifPossible := corev1.RecursiveReadOnlyIfPossible
	hostMount(&s, &look, "/", corev1.HostPathDirectory, corev1.VolumeMount{MountPath: "/host", ReadOnly: true, RecursiveReadOnly: &ifPossible})
	s.Containers = []corev1.Container{look}
	return nodeJob{name: "lash-auditor", what: "audit", spec: s, container: "audit"}
}
