// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/connectivity/testbed"
)

// agentSelector finds the agents' pods.
const agentSelector = "k8s-app=cilium"

// agentsServe says whether the agents of Lash serve the cluster's Services.
func (s *Stage) agentsServe(ctx context.Context) (bool, error) {
	if !strings.HasPrefix(s.Cluster.CNI, "Lash ") {
		return false, nil
	}
	cm, err := s.o.Client.CoreV1().ConfigMaps(s.o.Network).Get(ctx, "cilium-config", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the agents' configuration: %w", err)
	}
	return cm.Data["kube-proxy-replacement"] == "true", nil
}

// AwaitAgents returns when the agents of the nodes that take part serve some ports of each address, or at
// once where Services are another proxy's.
func (s *Stage) AwaitAgents(ctx context.Context, limit time.Duration, addrs []netip.Addr, first, ports int) error {
	serve, err := s.agentsServe(ctx)
	if err != nil || !serve {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %s", limit))
	defer cancel()
	pods, err := s.o.Client.CoreV1().Pods(s.o.Network).List(ctx, metav1.ListOptions{LabelSelector: agentSelector})
	if err != nil {
		return fmt.Errorf("list the agents: %w", err)
	}
	for _, node := range []string{s.Local.Name, s.OtherNode.Name} {
		for i := range pods.Items {
			p := &pods.Items[i]
			if p.Spec.NodeName == node && testbed.PodReady(p) {
				if err := s.awaitAgent(ctx, p, addrs, first, ports); err != nil {
					return fmt.Errorf("node %s does not serve the new Services: %w", node, err)
				}
			}
		}
	}
	return nil
}

// awaitAgent asks an agent for its frontends until all are there. The list is a question without a way to
// wait for its answer.
func (s *Stage) awaitAgent(ctx context.Context, p *corev1.Pod, addrs []netip.Addr, first, ports int) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		missing, err := s.missing(ctx, p, addrs, first, ports)
		if err == nil && missing == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err != nil {
				return err
			}
			return fmt.Errorf("%d of %d frontends are missing: %w", missing, len(addrs)*ports, context.Cause(ctx))
		}
	}
}

func (s *Stage) missing(ctx context.Context, p *corev1.Pod, addrs []netip.Addr, first, ports int) (int, error) {
	var out, errOut bytes.Buffer
	if err := s.o.Exec(ctx, p.Namespace, p.Name, "cilium-agent", &out, &errOut, "cilium", "service", "list", "-o", "json"); err != nil {
		return 0, fmt.Errorf("ask agent %s: %w %s", p.Name, err, strings.TrimSpace(errOut.String()))
	}
	var list []api.Service
	if err := json.Unmarshal(out.Bytes(), &list); err != nil {
		return 0, fmt.Errorf("ask agent %s: %w", p.Name, err)
	}
	have := map[netip.AddrPort]bool{}
	for _, f := range list {
		if ip, err := netip.ParseAddr(f.Spec.Frontend.IP); err == nil && len(f.Spec.Backends) > 0 {
			have[netip.AddrPortFrom(ip, f.Spec.Frontend.Port)] = true
		}
	}
	missing := 0
	for _, a := range addrs {
		for i := range ports {
			if !have[netip.AddrPortFrom(a, uint16(first+i))] {
				missing++
			}
		}
	}
	return missing, nil
}

// Namespace is the one that was made.
func (s *Stage) Namespace() string { return s.o.Namespace }
