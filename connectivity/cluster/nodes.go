// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/template"
	"time"

	_ "embed" // the manifests

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
)

//go:embed manifests/coredns.yaml
var corednsManifest string

//go:embed manifests/kube-proxy.yaml
var proxyManifest string

// registerTimeout is how long nodes and addons may take to come up.
const registerTimeout = 3 * time.Minute

// registerNodes starts the kubelets and waits until every node is known to the API and has its
// pod CIDRs; then it marks the roles as kubeadm does.
func (k *making) registerNodes(ctx context.Context) error {
	for _, n := range k.c.kubeNodes() {
		if err := k.startKubelet(ctx, n); err != nil {
			return err
		}
	}
	client, err := k.client()
	if err != nil {
		return err
	}
	_, err = waitNodes(ctx, client, "registered with pod CIDRs", len(k.c.kubeNodes()), func(n *corev1.Node) bool {
		return len(n.Spec.PodCIDRs) == len(k.c.PodCIDRs)
	})
	if err != nil {
		return err
	}
	const role = `{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":"","node.kubernetes.io/exclude-from-external-load-balancers":""}}}`
	_, err = client.CoreV1().Nodes().Patch(ctx, k.c.controlPlane().Name, types.StrategicMergePatchType, []byte(role), metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("mark the control plane: %w", err)
	}
	return nil
}

// waitNodes waits until count nodes exist and fit, and returns them.
func waitNodes(ctx context.Context, client kubernetes.Interface, what string, count int, fits func(*corev1.Node) bool) ([]corev1.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	var nodes []corev1.Node
	nodesAPI := client.CoreV1().Nodes()
	err := waitFor(ctx, nodesAPI.Watch, func() (bool, error) {
		list, err := nodesAPI.List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		nodes = list.Items
		n := 0
		for i := range nodes {
			if fits(&nodes[i]) {
				n++
			}
		}
		return n >= count, nil
	})
	if err != nil {
		var seen []string
		for i := range nodes {
			seen = append(seen, fmt.Sprintf("%s (fits: %t)", nodes[i].Name, fits(&nodes[i])))
		}
		return nil, fmt.Errorf("%d nodes are not %s: %w; seen: %s", count, what, err, strings.Join(seen, ", "))
	}
	return nodes, nil
}

// waitFor checks a condition now and after every event of a watch.
func waitFor(ctx context.Context, start func(context.Context, metav1.ListOptions) (watch.Interface, error), check func() (bool, error)) error {
	for {
		w, err := start(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		done, err := checkEvents(ctx, w, check)
		w.Stop()
		if done || err != nil {
			return err
		}
	}
}

func checkEvents(ctx context.Context, w watch.Interface, check func() (bool, error)) (bool, error) {
	for {
		if done, err := check(); done || err != nil {
			return done, err
		}
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case _, open := <-w.ResultChan():
			if !open {
				return false, nil // the server ends watches now and then
			}
		}
	}
}

// deployAddons applies DNS and, when asked for, kube-proxy.
func (k *making) deployAddons(ctx context.Context) error {
	dns, err := k.c.dnsAddrs()
	if err != nil {
		return err
	}
	policy := "SingleStack"
	if len(dns) > 1 {
		policy = "RequireDualStack"
	}
	values := map[string]any{
		"Image": k.dnsRef(), "ClusterIPs": dns, "FamilyPolicy": policy,
		"ProxyImage": k.proxyRef(), "Mode": k.o.KubeProxy, "Server": k.c.internalURL(),
		"PodCIDR": strings.Join(k.c.PodCIDRs, ","), "BindAddress": "0.0.0.0",
	}
	if len(dns) == 1 && k.c.hasIPv6() {
		values["BindAddress"] = "::"
	}
	client, err := dynamic.NewForConfig(k.restConfig())
	if err != nil {
		return fmt.Errorf("API client: %w", err)
	}
	if k.o.KubeProxy != "none" {
		if err := apply(ctx, client, proxyManifest, values); err != nil {
			return err
		}
		// DNS that comes up before the API's service address works would wait for half a minute.
		if err := k.waitProxy(ctx); err != nil {
			return err
		}
	}
	return apply(ctx, client, corednsManifest, values)
}

// waitProxy waits until kube-proxy has done its first round on every node. It is on the host
// network, so it needs no CNI.
func (k *making) waitProxy(ctx context.Context) error {
	client, err := k.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	sets := client.AppsV1().DaemonSets("kube-system")
	err = waitFor(ctx, sets.Watch, func() (bool, error) {
		d, err := sets.Get(ctx, "kube-proxy", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		return int(d.Status.NumberReady) == len(k.c.kubeNodes()), nil
	})
	if err != nil {
		return fmt.Errorf("kube-proxy does not get ready: %w", err)
	}
	return nil
}

// apply creates the objects of a manifest template.
func apply(ctx context.Context, client dynamic.Interface, manifest string, values map[string]any) error {
	t, err := template.New("manifest").Option("missingkey=error").Parse(manifest)
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	var text bytes.Buffer
	if err := t.Execute(&text, values); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	docs := utilyaml.NewYAMLOrJSONDecoder(&text, 4096)
	for {
		var obj unstructured.Unstructured
		err := docs.Decode(&obj)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("manifest: %w", err)
		}
		if len(obj.Object) == 0 {
			continue
		}
		resource, _ := meta.UnsafeGuessKindToResource(obj.GroupVersionKind())
		var target dynamic.ResourceInterface = client.Resource(resource)
		if ns := obj.GetNamespace(); ns != "" {
			target = client.Resource(resource).Namespace(ns)
		}
		if _, err := target.Create(ctx, &obj, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("%s %s: %w", obj.GetKind(), obj.GetName(), err)
		}
	}
}

// connectPods gives every node a configuration of the reference plugins for its pod CIDRs, and
// routes to those of the others.
func (k *making) connectPods(ctx context.Context) error {
	client, err := k.client()
	if err != nil {
		return err
	}
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("nodes: %w", err)
	}
	routes := map[string]map[netip.Prefix]netip.Addr{} // node -> its pods -> its address
	for i := range list.Items {
		n, err := k.c.Node(list.Items[i].Name)
		if err != nil {
			return err
		}
		routes[n.Name] = map[netip.Prefix]netip.Addr{}
		for _, cidr := range list.Items[i].Spec.PodCIDRs {
			p, err := netip.ParsePrefix(cidr)
			if err != nil {
				return fmt.Errorf("pod CIDR of %s: %w", n.Name, err)
			}
			for _, a := range n.Addresses {
				if a.Is4() == p.Addr().Is4() {
					routes[n.Name][p] = a
				}
			}
		}
	}
	for name, own := range routes {
		for other, pods := range routes {
			if other == name {
				continue
			}
			if err := k.machines[name].routePods(pods); err != nil {
				return err
			}
		}
		conf, err := ptpConfig(own)
		if err != nil {
			return err
		}
		if err := k.machines[name].write(map[string][]byte{"/etc/cni/net.d/10-ptp.conflist": conf}); err != nil {
			return err
		}
	}
	return nil
}

// ptpConfig is the plugin list of a node with the given pod CIDRs.
func ptpConfig(pods map[netip.Prefix]netip.Addr) ([]byte, error) {
	var ranges [][]map[string]string
	var routes []map[string]string
	for _, p := range slices.SortedFunc(maps.Keys(pods), netip.Prefix.Compare) {
		ranges = append(ranges, []map[string]string{{"subnet": p.String()}})
		dst := "0.0.0.0/0"
		if p.Addr().Is6() {
			dst = "::/0"
		}
		routes = append(routes, map[string]string{"dst": dst})
	}
	conf := map[string]any{
		"cniVersion": "1.0.0",
		"name":       "ptp",
		"plugins": []any{
			map[string]any{
				"type": "ptp", "mtu": 1500,
				"ipam": map[string]any{"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": ranges, "routes": routes},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		},
	}
	data, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("CNI configuration: %w", err)
	}
	return append(data, '\n'), nil
}

// waitReady waits for ready nodes and an available DNS.
func (k *making) waitReady(ctx context.Context) error {
	client, err := k.client()
	if err != nil {
		return err
	}
	if _, err := waitNodes(ctx, client, "ready", len(k.c.kubeNodes()), nodeReady); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	deployments := client.AppsV1().Deployments("kube-system")
	err = waitFor(ctx, deployments.Watch, func() (bool, error) {
		d, err := deployments.Get(ctx, "coredns", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		return available(d), nil
	})
	if err != nil {
		return fmt.Errorf("DNS does not get ready: %w", err)
	}
	return nil
}

func available(d *appsv1.Deployment) bool {
	return d.Spec.Replicas != nil && d.Status.AvailableReplicas >= *d.Spec.Replicas
}

func nodeReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
