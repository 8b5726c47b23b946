// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	authv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Level says what a finding means for the installation.
type Level int

const (
	// Note is worth knowing.
	Note Level = iota
	// Ask needs the user's consent.
	Ask
	// Block makes the installation impossible.
	Block
)

// Finding is one thing in the cluster that the user should know before.
type Finding struct {
	Level    Level
	What     string
	Evidence string
	Next     string // command or value to use next
	Foreign  bool   // another network owns the cluster; nothing may be touched
	Denied   bool   // the user lacks permissions
}

// preflight looks for obstacles. It only reads.
func preflight(ctx context.Context, c *Cluster, p *Plan) ([]Finding, error) {
	checks := []func(context.Context, *Cluster, *Plan) ([]Finding, error){
		foreignCilium, otherNetworks, permissions, kernels, images, services, networkPolicies,
	}
	found := make([][]Finding, len(checks))
	g, ctx := errgroup.WithContext(ctx)
	for i, check := range checks {
		g.Go(func() (err error) {
			found[i], err = check(ctx, c, p)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.Concat(found...), nil
}

// owned says whether an object belongs to a release of our chart.
func owned(m metav1.ObjectMeta) bool {
	return strings.HasPrefix(m.Labels["helm.sh/chart"], "lash-") && m.Annotations["meta.helm.sh/release-name"] != ""
}

// foreignCilium finds a Cilium that is not ours: its release, or its DaemonSet without one.
func foreignCilium(_ context.Context, c *Cluster, p *Plan) ([]Finding, error) {
	f, err := ForeignRelease(c)
	if err != nil {
		return nil, err
	}
	if f != nil {
		return []Finding{*f}, nil
	}
	for i := range p.Facts.DaemonSets {
		d := &p.Facts.DaemonSets[i]
		if (d.Name == "cilium" || d.Labels["k8s-app"] == "cilium") && !owned(d.ObjectMeta) {
			return []Finding{{
				Level: Block, Foreign: true,
				What:     "another Cilium is installed, and Lash does not touch it",
				Evidence: fmt.Sprintf("DaemonSet %s/%s runs %s and belongs to no release of Lash", d.Namespace, d.Name, imageOf(d)),
				Next:     "remove it the way it was installed, then run `lash install` again",
			}}, nil
		}
	}
	return nil, nil
}

// ForeignRelease finds out whether the release's name is taken by a chart that is not ours.
func ForeignRelease(c *Cluster) (*Finding, error) {
	rel, err := Existing(c)
	if err != nil || rel == nil || Ours(rel) {
		return nil, err
	}
	name, version := "unknown", ""
	if rel.Chart != nil && rel.Chart.Metadata != nil {
		name, version = rel.Chart.Metadata.Name, rel.Chart.Metadata.Version
	}
	return &Finding{
		Level: Block, Foreign: true,
		What:     fmt.Sprintf("release %s is of another chart, and Lash does not touch it", c.Release),
		Evidence: fmt.Sprintf("Helm release %s/%s: chart %s, version %s", c.Namespace, c.Release, name, version),
		Next:     fmt.Sprintf("remove it with `helm uninstall %s -n %s` if you mean to replace it, then run `lash install` again", c.Release, c.Namespace),
	}, nil
}

func imageOf(d *appsv1.DaemonSet) string {
	if cs := d.Spec.Template.Spec.Containers; len(cs) > 0 {
		return cs[0].Image
	}
	return "no image"
}

// networks are the DaemonSets of other pod networks, by name.
var networks = map[string]string{
	"calico-node": "Calico", "canal": "Canal", "kube-flannel-ds": "Flannel", "kube-flannel": "Flannel", "weave-net": "Weave Net",
	"kindnet": "kindnet", "antrea-agent": "Antrea", "kube-router": "kube-router", "aws-node": "the AWS VPC CNI",
	"azure-cns": "the Azure CNI", "ovnkube-node": "OVN-Kubernetes", "kube-ovn-cni": "Kube-OVN", "romana-agent": "Romana",
}

func otherNetworks(_ context.Context, _ *Cluster, p *Plan) ([]Finding, error) {
	var out []Finding
	for i := range p.Facts.DaemonSets {
		d := &p.Facts.DaemonSets[i]
		name, ok := networks[d.Name]
		if !ok {
			continue
		}
		out = append(out, Finding{
			Level:    Ask,
			What:     fmt.Sprintf("another pod network, %s, is installed: two networks would share the nodes", name),
			Evidence: fmt.Sprintf("DaemonSet %s/%s with %d pods", d.Namespace, d.Name, d.Status.DesiredNumberScheduled),
			Next:     fmt.Sprintf("remove it first: kubectl -n %s delete daemonset %s", d.Namespace, d.Name),
		})
	}
	return out, nil
}

// permissions asks the API server whether the user may do what Helm will do.
func permissions(ctx context.Context, c *Cluster, _ *Plan) ([]Finding, error) {
	need := []authv1.ResourceAttributes{
		{Verb: "create", Resource: "secrets", Namespace: c.Namespace},
		{Verb: "create", Resource: "configmaps", Namespace: c.Namespace},
		{Verb: "create", Resource: "serviceaccounts", Namespace: c.Namespace},
		{Verb: "create", Group: "apps", Resource: "daemonsets", Namespace: c.Namespace},
		{Verb: "create", Group: "apps", Resource: "deployments", Namespace: c.Namespace},
		{Verb: "create", Group: "policy", Resource: "poddisruptionbudgets", Namespace: c.Namespace},
		{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "clusterroles"},
		{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"},
		{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "roles", Namespace: c.Namespace},
		{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "rolebindings", Namespace: c.Namespace},
	}
	denied := make([]string, len(need))
	g, ctx := errgroup.WithContext(ctx)
	for i := range need {
		g.Go(func() error {
			r, err := c.Clientset.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx,
				&authv1.SelfSubjectAccessReview{Spec: authv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &need[i]}}, metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("asking what the user may do: %w", err)
			}
			if !r.Status.Allowed {
				denied[i] = need[i].Verb + " " + need[i].Resource
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	denied = slices.DeleteFunc(denied, func(s string) bool { return s == "" })
	if len(denied) == 0 {
		return nil, nil
	}
	return []Finding{{
		Level: Block, Denied: true,
		What:     "the user may not do what an installation needs",
		Evidence: fmt.Sprintf("context %q may not %s", c.Context, strings.Join(denied, ", ")),
		Next:     "use a user with the role cluster-admin: `lash install --context CONTEXT` or `--as USER`",
	}}, nil
}

// Kernels, as major*100 + minor. None below the first has what the programs need. The second is
// the first of kernel.org that has it; vendors bring features to older ones. Below the third
// nothing is tested.
const (
	minKernel    = 510
	wholeKernel  = 518
	testedKernel = 601
)

var kernelForm = regexp.MustCompile(`^(\d+)\.(\d+)`)

// kernels judges nodes by the version that they report; the agent probes the features themselves
// when it starts.
func kernels(_ context.Context, _ *Cluster, p *Plan) ([]Finding, error) {
	var refused, doubtful, untested, arch []string
	for i := range p.Facts.Nodes {
		n := &p.Facts.Nodes[i]
		info := n.Status.NodeInfo
		if info.OperatingSystem != "" && info.OperatingSystem != "linux" {
			continue
		}
		if info.Architecture != "" && info.Architecture != "amd64" && info.Architecture != "arm64" {
			arch = append(arch, n.Name+": "+info.Architecture)
		}
		m := kernelForm.FindStringSubmatch(info.KernelVersion)
		if m == nil {
			continue
		}
		major, _ := strconv.Atoi(m[1])
		minor, _ := strconv.Atoi(m[2])
		switch v := major*100 + minor; {
		case v < minKernel:
			refused = append(refused, n.Name+": "+info.KernelVersion)
		case v < wholeKernel:
			doubtful = append(doubtful, n.Name+": "+info.KernelVersion)
		case v < testedKernel:
			untested = append(untested, n.Name+": "+info.KernelVersion)
		}
	}
	var out []Finding
	add := func(l Level, list []string, what, next string) {
		if len(list) > 0 {
			out = append(out, Finding{Level: l, What: what, Evidence: strings.Join(list, ", "), Next: next})
		}
	}
	leaveOut := "upgrade these nodes, or leave them out: label them " + NoScheduleLabel + "=true and use --nodes-without-cilium"
	add(Block, refused, "nodes have a kernel without the BPF features that are needed (Linux 5.18 has them all)", leaveOut)
	add(Ask, doubtful, "nodes have a kernel older than Linux 5.18, which has the BPF features that are needed only if its vendor brought them back", leaveOut)
	add(Note, untested, "nodes have a kernel older than 6.1, which is not tested", "the agents say in `lash status` whether a feature is missing")
	add(Block, arch, "nodes have a processor that there is no program for", "label them "+NoScheduleLabel+"=true and use --nodes-without-cilium")
	return out, nil
}

// maxListedImages is how many images a kubelet reports by default; a full list may lack ours.
const maxListedImages = 50

// images makes sure that nodes can have the image.
func images(ctx context.Context, c *Cluster, p *Plan) ([]Finding, error) {
	image := imageInManifest(p.Manifest)
	switch {
	case strings.HasPrefix(image, "quay.io/cilium/"), strings.Contains(image, "/cilium/cilium:"):
		return []Finding{{
			Level: Block, What: "the image is Cilium's own and holds no Lash", Evidence: "image " + image,
			Next: "leave image.* out of the values, or push the image of `lash image save` and set image.repository",
		}}, nil
	case !strings.HasPrefix(image, "localhost/"):
		return nil, nil // a registry's: the kubelet will tell
	}
	var missing []string
	for i := range p.Facts.Nodes {
		n := &p.Facts.Nodes[i]
		if n.Labels[NoScheduleLabel] == "true" || (n.Labels["kubernetes.io/os"] != "" && n.Labels["kubernetes.io/os"] != "linux") {
			continue
		}
		if hasImage(n, image) {
			continue
		}
		if p.imageOnNode != nil { // a kubelet takes up to a minute to report a new image
			if have, known := p.imageOnNode(ctx, n.Name, image); known {
				if !have {
					missing = append(missing, n.Name)
				}
				continue
			}
		}
		if len(n.Status.Images) < maxListedImages {
			missing = append(missing, n.Name)
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	next := "lash image save lash.tar, then on each node: ctr -n k8s.io images import lash.tar, and wait up to a minute until the kubelet reports it (or push it to a registry and set image.repository)"
	if local, ok := strings.CutPrefix(c.Context, "lash-"); ok {
		next = fmt.Sprintf("lash image save lash.tar && lash cluster load-image lash.tar --name %s", local)
	}
	return []Finding{{
		Level: Block, What: fmt.Sprintf("the image %s is not on every node and no registry has it", image),
		Evidence: fmt.Sprintf("not among the images of %s", strings.Join(missing, ", ")), Next: next,
	}}, nil
}

func imageInManifest(manifest string) string {
	for line := range strings.Lines(manifest) {
		if ref, ok := strings.CutPrefix(strings.TrimSpace(line), "image: "); ok {
			return ref
		}
	}
	return ""
}

func hasImage(n *corev1.Node, image string) bool {
	for _, i := range n.Status.Images {
		if slices.Contains(i.Names, image) {
			return true
		}
	}
	return false
}

// services looks at who serves Services, and at what a former kube-proxy has left.
func services(ctx context.Context, c *Cluster, p *Plan) ([]Finding, error) {
	kpr := fmt.Sprint(lookup(p.Values, "kubeProxyReplacement")) == "true"
	if kpr && !p.Facts.KubeProxy && !p.Facts.KubeProxySkip {
		return proxyLeftovers(ctx, c)
	}
	switch {
	case kpr && p.Facts.KubeProxy:
		return []Finding{{
			Level: Note, What: "kube-proxy is there and stays, while Services become Lash's",
			Evidence: "DaemonSet kube-proxy in kube-system, kubeProxyReplacement=true",
			Next:     "afterwards: kubectl -n kube-system delete daemonset,configmap kube-proxy (its rules go when a node restarts)",
		}}, nil
	case !kpr && !p.Facts.KubeProxy && !p.Facts.KubeProxySkip:
		return []Finding{{
			Level: Ask, What: "nobody would serve Services",
			Evidence: "no DaemonSet kube-proxy in kube-system, kubeProxyReplacement=false",
			Next:     "leave kubeProxyReplacement out, or install kube-proxy",
		}}, nil
	}
	return nil, nil
}

// proxyLeftovers tells of a kube-proxy that was deleted while its rules stay on the nodes. kubeadm
// installs its configuration together with the DaemonSet.
func proxyLeftovers(ctx context.Context, c *Cluster) ([]Finding, error) {
	cm, err := c.Clientset.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, "kube-proxy", metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err): // one who may not look is told nothing
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("looking for leftovers of kube-proxy: %w", err)
	}
	return []Finding{{
		Level: Note, What: "a kube-proxy was here: its rules stay on each node until it is restarted, and answer for Services that are gone",
		Evidence: fmt.Sprintf("ConfigMap %s/%s, and no DaemonSet of this name", cm.Namespace, cm.Name),
		Next:     "kubectl -n kube-system delete configmap kube-proxy, then restart the nodes or run `kube-proxy --cleanup` on each",
	}}, nil
}

func networkPolicies(ctx context.Context, c *Cluster, _ *Plan) ([]Finding, error) {
	list, err := c.Clientset.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing NetworkPolicies: %w", err)
	}
	if len(list.Items) == 0 {
		return nil, nil
	}
	spaces := map[string]bool{}
	for i := range list.Items {
		spaces[list.Items[i].Namespace] = true
	}
	return []Finding{{
		Level:    Ask,
		What:     "NetworkPolicies exist and this version does not enforce them: what they forbid will be possible",
		Evidence: fmt.Sprintf("%d NetworkPolicies in %d namespaces", len(list.Items), len(spaces)),
		Next:     "kubectl get networkpolicies -A",
	}}, nil
}
