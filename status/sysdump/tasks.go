// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/yaml"

	"lash.internal/lash/status"
)

// lists reads nodes and the pods of the namespace.
func (r *run) lists(ctx context.Context) ([]corev1.Node, []corev1.Pod, error) {
	nodes, err := r.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("listing nodes: %w", err)
	}
	pods, err := r.Client.CoreV1().Pods(r.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("listing pods of namespace %s: %w", r.Namespace, err)
	}
	return nodes.Items, pods.Items, nil
}

// objects are kinds of the API server that are always taken; large ones are those of users.
type objects struct {
	file      string
	resource  schema.GroupVersionResource
	namespace bool // of our namespace only
	ours      bool // only what is of us, by labels or name
	large     bool
}

func gvr(group, version, resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: resource}
}

var objectFiles = []objects{
	{file: "nodes.yaml", resource: gvr("", "v1", "nodes")},
	{file: "workloads/daemonsets.yaml", resource: gvr("apps", "v1", "daemonsets"), namespace: true, ours: true},
	{file: "workloads/deployments.yaml", resource: gvr("apps", "v1", "deployments"), namespace: true, ours: true},
	{file: "workloads/replicasets.yaml", resource: gvr("apps", "v1", "replicasets"), namespace: true, ours: true},
	{file: "workloads/pods.yaml", resource: gvr("", "v1", "pods"), namespace: true, ours: true},
	{file: "workloads/configmaps.yaml", resource: gvr("", "v1", "configmaps"), namespace: true, ours: true},
	{file: "workloads/leases.yaml", resource: gvr("coordination.k8s.io", "v1", "leases"), namespace: true, ours: true},
	{file: "workloads/serviceaccounts.yaml", resource: gvr("", "v1", "serviceaccounts"), namespace: true, ours: true},
	{file: "workloads/roles.yaml", resource: gvr("rbac.authorization.k8s.io", "v1", "roles"), namespace: true, ours: true},
	{file: "workloads/rolebindings.yaml", resource: gvr("rbac.authorization.k8s.io", "v1", "rolebindings"), namespace: true, ours: true},
	{file: "workloads/clusterroles.yaml", resource: gvr("rbac.authorization.k8s.io", "v1", "clusterroles"), ours: true},
	{file: "workloads/clusterrolebindings.yaml", resource: gvr("rbac.authorization.k8s.io", "v1", "clusterrolebindings"), ours: true},
	{file: "workloads/poddisruptionbudgets.yaml", resource: gvr("policy", "v1", "poddisruptionbudgets"), namespace: true, ours: true},
	{file: "workloads/secrets.yaml", resource: gvr("", "v1", "secrets"), namespace: true, ours: true},
	{file: "events-own.yaml", resource: gvr("", "v1", "events"), namespace: true},
	{file: "definitions.yaml", resource: gvr("apiextensions.k8s.io", "v1", "customresourcedefinitions"), ours: true},
	{file: "cluster/namespaces.yaml", resource: gvr("", "v1", "namespaces"), large: true},
	{file: "cluster/networkpolicies.yaml", resource: gvr("networking.k8s.io", "v1", "networkpolicies"), large: true},
	{file: "cluster/services.yaml", resource: gvr("", "v1", "services"), large: true},
	{file: "cluster/endpointslices.yaml", resource: gvr("discovery.k8s.io", "v1", "endpointslices"), large: true},
	{file: "cluster/events.yaml", resource: gvr("", "v1", "events"), large: true},
	{file: "cluster/pods.yaml", resource: gvr("", "v1", "pods"), large: true},
}

// ours says whether an object belongs to the network.
func ours(o *unstructured.Unstructured) bool {
	l := o.GetLabels()
	return l["app.kubernetes.io/part-of"] == "cilium" || l["k8s-app"] == "cilium" || l["io.cilium/app"] == "operator" ||
		strings.HasPrefix(o.GetName(), "cilium") || strings.HasSuffix(o.GetName(), ".cilium.io")
}

// tasks makes the list of all files in the order in which they are wanted.
func (r *run) tasks() {
	r.add("version.json", func(context.Context) ([]byte, error) {
		v, err := r.Client.Discovery().ServerVersion()
		if err != nil {
			return nil, err
		}
		return json.MarshalIndent(v, "", " ")
	})
	r.add("status.json", r.status)
	r.add("helm.yaml", r.helm)
	for _, f := range objectFiles {
		if !f.large {
			r.add(f.file, r.objects(f))
		}
	}
	r.ciliumObjects()
	for _, n := range r.out.Nodes { // in the order of interest
		r.node(n.Name)
	}
	for i := range r.pods {
		if p := &r.pods[i]; p.Labels["io.cilium/app"] == "operator" {
			r.logs("operator/"+p.Name, p)
		}
	}
	for _, s := range r.Selectors {
		r.add(path.Join("extra", fileName(s), "pods.txt"), r.extraPods(s))
	}
	if r.Quick {
		return
	}
	for _, f := range objectFiles {
		if f.large {
			r.add(f.file, r.objects(f))
		}
	}
}

// status is the same as lash status -o json.
func (r *run) status(ctx context.Context) ([]byte, error) {
	c := &status.Collector{Client: r.Client, Dynamic: r.Dynamic, Exec: r.Exec, Namespace: r.Namespace, Release: r.Release, Workers: r.Workers}
	s, err := c.Collect(ctx)
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(s, "", " ")
}

// helm is the values of every revision of the release; what else a release holds is secret.
func (r *run) helm(ctx context.Context) ([]byte, error) {
	all, err := status.Releases(ctx, r.Client, r.Namespace, r.Release)
	if err != nil {
		return nil, err
	}
	for _, x := range all {
		r.red.values(x.Values)
	}
	return yaml.Marshal(all)
}

// page is how many objects are asked for at a time.
const page = 500

// objects lists one kind.
func (r *run) objects(f objects) func(ctx context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		var out []any
		opts := metav1.ListOptions{Limit: page}
		for {
			var l *unstructured.UnstructuredList
			var err error
			if f.namespace {
				l, err = r.Dynamic.Resource(f.resource).Namespace(r.Namespace).List(ctx, opts)
			} else {
				l, err = r.Dynamic.Resource(f.resource).List(ctx, opts)
			}
			if err != nil {
				b, merr := marshalList(out)
				return b, errors.Join(err, merr) // what came before the failure counts
			}
			for i := range l.Items {
				o := &l.Items[i]
				if f.ours && !ours(o) || o.GetKind() == "Secret" && o.GetLabels()["owner"] == "helm" {
					continue
				}
				if o.GetKind() == "Node" {
					unstructured.RemoveNestedField(o.Object, "status", "images")
				}
				r.red.object(o.Object, r.Namespace)
				out = append(out, o.Object)
			}
			if opts.Continue = l.GetContinue(); opts.Continue == "" {
				return marshalList(out)
			}
		}
	}
}

func marshalList(items []any) ([]byte, error) {
	if len(items) == 0 {
		return []byte("items: []\n"), nil
	}
	return yaml.Marshal(map[string]any{"items": items})
}

// ciliumObjects adds every kind of group cilium.io that the cluster knows.
func (r *run) ciliumObjects() {
	lists, err := discovery.ServerPreferredResources(r.Client.Discovery())
	found := false
	for _, l := range lists {
		gv, perr := schema.ParseGroupVersion(l.GroupVersion)
		if perr != nil || gv.Group != "cilium.io" {
			continue
		}
		for _, x := range l.APIResources {
			if slices.Contains(x.Verbs, "list") {
				found = true
				r.add("cilium.io/"+x.Name+".yaml", r.objects(objects{resource: gv.WithResource(x.Name)}))
			}
		}
	}
	if err != nil && !found {
		r.out.Failed = append(r.out.Failed, Missing{"cilium.io/", err.Error()})
	}
}

// questions are what every agent is asked: file and command. Those after the empty row are large.
var questions = [][]string{
	{"status.txt", "cilium", "status", "--verbose"},
	{"node.json", "lash-agent", "audit", "--all"},
	{"status.json", "cilium", "status", "-o", "json"},
	{"endpoints.json", "cilium", "endpoint", "list", "-o", "json"},
	{"metrics.txt", "cilium", "metrics", "list"},
	{"config.txt", "cilium", "config", "--all"},
	{"nodes.txt", "cilium", "node", "list"},
	{"maps.txt", "cilium", "map", "list"},
	{"bpf-endpoint.txt", "cilium", "bpf", "endpoint", "list"},
	{"bpf-tunnel.txt", "cilium", "bpf", "tunnel", "list"},
	{"bpf-metrics.txt", "cilium", "bpf", "metrics", "list"},
	{},
	{"identities.txt", "cilium", "identity", "list"},
	{"services.txt", "cilium", "service", "list"},
	{"ips.txt", "cilium", "ip", "list"},
	{"bpf-lb.txt", "cilium", "bpf", "lb", "list"},
	{"bpf-ipcache.txt", "cilium", "bpf", "ipcache", "list"},
	{"bpf-frag.txt", "cilium", "bpf", "frag", "list"},
	{"bpf-ct.txt", "cilium", "bpf", "ct", "list", "global"},
}

// agentContainer is the container of the agent.
const agentContainer = "cilium-agent"

// node adds what there is of one node: the agent's answers and logs.
func (r *run) node(name string) {
	for i := range r.pods {
		p := &r.pods[i]
		if p.Labels["k8s-app"] != "cilium" || p.Spec.NodeName != name {
			continue
		}
		dir := "nodes/" + name + "/" + p.Name
		r.logs(dir, p)
		if p.Status.Phase != corev1.PodRunning {
			continue
		}
		for _, q := range questions {
			if len(q) == 0 {
				if r.Quick {
					break
				}
				continue
			}
			r.add(dir+"/"+q[0], func(ctx context.Context) ([]byte, error) {
				stdout, stderr, err := r.Exec(ctx, p.Namespace, p.Name, agentContainer, q[1:]...)
				if err != nil && len(stderr) > 0 {
					err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(stderr)))
				}
				return stdout, err
			})
		}
	}
}

// logs adds the logs of all containers of a pod, those of the runs before, too.
func (r *run) logs(dir string, p *corev1.Pod) {
	all := slices.Concat(p.Status.ContainerStatuses, p.Status.InitContainerStatuses)
	names := map[string]bool{}
	for _, c := range all {
		names[c.Name] = true
		r.log(dir, p, c.Name, false)
		if c.RestartCount > 0 {
			r.log(dir, p, c.Name, true)
		}
	}
	for _, c := range p.Spec.Containers { // of a pod without a status
		if !names[c.Name] {
			r.log(dir, p, c.Name, false)
		}
	}
}

func (r *run) log(dir string, p *corev1.Pod, container string, previous bool) {
	file := dir + "/" + container + ".log"
	if previous {
		file = dir + "/" + container + "-previous.log"
	}
	r.add(file, func(ctx context.Context) ([]byte, error) { return r.readLog(ctx, p, container, previous) })
}

func (r *run) readLog(ctx context.Context, p *corev1.Pod, container string, previous bool) ([]byte, error) {
	opts := &corev1.PodLogOptions{Container: container, Previous: previous, Timestamps: true}
	if r.LogLines > 0 {
		opts.TailLines = &r.LogLines
	}
	if r.LogBytes > 0 {
		opts.LimitBytes = &r.LogBytes
	}
	if r.LogsSince > 0 {
		seconds := int64(r.LogsSince / time.Second)
		opts.SinceSeconds = &seconds
	}
	b, err := r.Client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, opts).DoRaw(ctx)
	if previous && apierrors.IsBadRequest(err) {
		return nil, nil // the runtime has dropped it
	}
	return b, err
}

// extraPods takes the logs of pods of others, one file a container, and lists them.
func (r *run) extraPods(selector string) func(ctx context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		l, err := r.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return nil, err
		}
		var b strings.Builder
		var errs []error
		for i := range l.Items {
			p := &l.Items[i]
			fmt.Fprintf(&b, "%s/%s on %s: %s\n", p.Namespace, p.Name, p.Spec.NodeName, p.Status.Phase)
			for _, c := range p.Spec.Containers {
				text, err := r.readLog(ctx, p, c.Name, false)
				if err == nil && len(text) > 0 {
					err = r.archive.add(path.Join("extra", fileName(selector), p.Namespace, p.Name, c.Name+".log"), r.red.text(text))
				}
				if err != nil {
					errs = append(errs, fmt.Errorf("%s/%s %s: %w", p.Namespace, p.Name, c.Name, err))
				}
			}
		}
		return []byte(b.String()), errors.Join(errs...)
	}
}

// fileName makes a text part of a path.
func fileName(s string) string {
	return strings.Map(func(c rune) rune {
		if strings.ContainsRune(`/\:*?"<>| `, c) {
			return '_'
		}
		return c
	}, s)
}
