// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"lash.internal/lash/connectivity/cluster"
)

// programs of the bench's cluster that a user would type too.
type kube struct {
	c          *cluster.Cluster
	lash       string
	kubeconfig string
}

// run runs a program against the cluster and returns what it printed.
func (k *kube) run(ctx context.Context, program string, stdin string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+k.kubeconfig, "NO_COLOR=1")
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	if err := cmd.Run(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, reason(errOut.String())), ctx.Err())
	}
	return out.Bytes(), nil
}

// reason is what a program says of its failure: its lines with an error, else the last ones.
func reason(stderr string) string {
	var errs []string
	for line := range strings.SplitSeq(stderr, "\n") {
		if strings.HasPrefix(strings.ToLower(line), "error") {
			errs = append(errs, line)
		}
	}
	if len(errs) > 0 {
		return strings.Join(errs, "\n")
	}
	return lastLines(stderr, 6)
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(len(lines)-n, 0):], "\n")
}

func (k *kube) kubectl(ctx context.Context, args ...string) ([]byte, error) {
	return k.run(ctx, k.c.Kubectl, "", args...)
}

func (k *kube) lashCLI(ctx context.Context, args ...string) ([]byte, error) {
	return k.run(ctx, k.lash, "", args...)
}

// Pods of the bench.
const (
	namespace   = "lash-bench"
	client      = "client"
	serverSame  = "server-same"
	serverOther = "server-other"
	anchor      = "anchor"
)

// pod is a pod that runs.
type pod struct {
	name, node, ip string
	pid            int // of its program, on this machine
}

// manifest of a pod that serves measurements, which is also a place to start clients in. A host pod
// uses its node's network and only stands for a pod that a plugin is called for.
func manifest(name, node, image string, serverCPU int, host bool) map[string]any {
	container := map[string]any{
		"name": "perf", "image": image, "imagePullPolicy": "IfNotPresent",
		"command": []string{"/usr/bin/lash-agent", "perf", "server", "--cpu", strconv.Itoa(serverCPU)},
		// A pod without a request gets next to no processor time when anything else wants some.
		"resources": map[string]any{"requests": map[string]string{"cpu": "250m"}},
	}
	if host {
		container["command"] = []string{"/usr/bin/lash-agent", "perf", "server", "--listen", "127.0.0.1:0"}
	} else {
		container["startupProbe"] = map[string]any{
			"tcpSocket": map[string]any{"port": 12865}, "periodSeconds": 1, "failureThreshold": 60,
		}
	}
	return map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": name, "namespace": namespace, "labels": map[string]string{"app": name}},
		"spec": map[string]any{
			"nodeName": node, "hostNetwork": host, "terminationGracePeriodSeconds": 1,
			"automountServiceAccountToken": false, "enableServiceLinks": false,
			"tolerations": []any{map[string]string{"operator": "Exists"}},
			"containers":  []any{container},
		},
	}
}

// deploy starts the bench's pods and waits until they serve.
func (k *kube) deploy(ctx context.Context, serverCPU int, ipv6 bool) (map[string]pod, error) {
	image, err := k.kubectl(ctx, "-n", "kube-system", "get", "ds", "cilium", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
	if err != nil {
		return nil, err
	}
	worker, other, err := k.nodes()
	if err != nil {
		return nil, err
	}
	list := map[string]any{"apiVersion": "v1", "kind": "List", "items": []any{
		map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": namespace}},
		manifest(client, worker, string(image), serverCPU, false),
		manifest(serverSame, worker, string(image), serverCPU, false),
		manifest(serverOther, other, string(image), serverCPU, false),
		manifest(anchor, worker, string(image), serverCPU, true),
	}}
	text, err := json.Marshal(list)
	if err != nil {
		return nil, fmt.Errorf("pods of the bench: %w", err)
	}
	if _, err := k.run(ctx, k.c.Kubectl, string(text), "create", "-f", "-"); err != nil {
		return nil, err
	}
	if _, err := k.kubectl(ctx, "-n", namespace, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"); err != nil {
		return nil, err
	}
	return k.podsOf(ctx, namespace, "lash-agent", ipv6)
}

// nodes are the node of clients and the other one.
func (k *kube) nodes() (worker, other string, err error) {
	for _, n := range k.c.Nodes {
		switch n.Role {
		case cluster.RoleWorker:
			worker = n.Name
		case cluster.RoleControlPlane:
			other = n.Name
		}
	}
	if worker == "" || other == "" {
		return "", "", fmt.Errorf("cluster %s needs a worker beside its control plane", k.c.Name)
	}
	return worker, other, nil
}

// podList is the part of a list of pods that matters here.
type podList struct {
	Items []struct {
		Metadata struct {
			Name, UID string
		}
		Spec   struct{ NodeName string }
		Status struct {
			PodIPs []struct{ IP string }
		}
	}
}

// podsOf lists the pods of a namespace with the processes that run a program in them.
func (k *kube) podsOf(ctx context.Context, ns, comm string, ipv6 bool, selector ...string) (map[string]pod, error) {
	out, err := k.kubectl(ctx, append([]string{"-n", ns, "get", "pods", "-o", "json"}, selector...)...)
	if err != nil {
		return nil, err
	}
	var list podList
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("pods of %s: %w", ns, err)
	}
	pods := map[string]pod{}
	for _, item := range list.Items {
		p := pod{name: item.Metadata.Name, node: item.Spec.NodeName}
		for _, ip := range item.Status.PodIPs {
			if strings.Contains(ip.IP, ":") == ipv6 {
				p.ip = ip.IP
			}
		}
		if p.pid, err = processOf(item.Metadata.UID, comm); err != nil {
			return nil, fmt.Errorf("pod %s: %w", p.name, err)
		}
		pods[p.name] = p
	}
	return pods, nil
}

// processOf finds the first process of a pod that runs a program, by the pod's control group. comm is
// the name as the kernel has it.
func processOf(uid, comm string) (int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		groups, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		if err != nil || !strings.Contains(string(groups), "pod"+uid) {
			continue // ended meanwhile, or another's
		}
		if name, err := os.ReadFile(filepath.Join("/proc", e.Name(), "comm")); err == nil && strings.TrimSpace(string(name)) == comm {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no process %s runs in it", comm)
}
