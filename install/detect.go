// SPDX-License-Identifier: Apache-2.0

package install

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lash.internal/lash/agent/api"
)

// Facts is what the cluster is, as far as an installation depends on it.
type Facts struct {
	Flavour     string // kind, GKE, K3s, ...; "" when not known
	ClusterName string // derived from the kubeconfig, valid as cluster.name
	NameGiven   bool   // the user set cluster.name

	KubeVersion string
	Nodes       []corev1.Node
	DaemonSets  []appsv1.DaemonSet // of all namespaces

	KubeProxy     bool   // there is a kube-proxy
	KubeProxySkip bool   // it cannot be told (k3s runs it inside its own process)
	APIHost       string // address of the API server that nodes can use
	APIPort       string
	APIFromSlice  bool // taken from the EndpointSlice because the kubeconfig's host is a loopback
	// APIServers are all API servers that the cluster names, as "address:port".
	APIServers []string

	PodCIDRs     bool // every node has spec.podCIDRs
	IPv4, IPv6   bool // families of pods
	ServiceCIDRs []netip.Prefix
	NodeAddrs    []netip.Addr
}

// detect reads the cluster. It fails only where going on would make no sense: no answer, no
// permission to list nodes.
func detect(ctx context.Context, c *Cluster, user map[string]any) (*Facts, error) {
	f := &Facts{}
	v, err := c.Clientset.Discovery().ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("asking for the server's version: %w", err)
	}
	f.KubeVersion = v.GitVersion
	nodes, err := c.Clientset.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing nodes: %w", err)
	}
	f.Nodes = nodes.Items
	sets, err := c.Clientset.AppsV1().DaemonSets("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing DaemonSets: %w", err)
	}
	f.DaemonSets = sets.Items

	if f.Flavour, err = flavour(c, f.Nodes); err != nil {
		return nil, err
	}
	f.clusterName(c, user)
	if err := f.kubeProxy(ctx, c, user); err != nil {
		return nil, err
	}
	if f.ServiceCIDRs, err = serviceCIDRs(ctx, c); err != nil {
		return nil, err
	}
	f.addresses()
	return f, nil
}

// flavour names the kind of cluster, from the kubeconfig, then from nodes, then from API groups.
func flavour(c *Cluster, nodes []corev1.Node) (string, error) {
	switch {
	case c.Context == "minikube", c.Name == "minikube":
		return "minikube", nil
	case strings.HasPrefix(c.Name, "microk8s-"):
		return "microk8s", nil
	case c.Name == "rancher-desktop":
		return "rancher-desktop", nil
	case strings.HasPrefix(c.Name, "kind-"):
		return "kind", nil
	case strings.HasPrefix(c.Name, "gke_"):
		return "GKE", nil
	case strings.HasSuffix(c.Name, ".eksctl.io"), strings.HasSuffix(c.Server, "eks.amazonaws.com"):
		return "EKS", nil
	case strings.HasSuffix(c.Server, "azmk8s.io:443"):
		return "AKS", nil
	}
	for i := range nodes {
		l := nodes[i].Labels
		switch {
		case l["cloud.google.com/gke-nodepool"] != "", l["cloud.google.com/gke-os-distribution"] != "":
			return "GKE", nil
		case l["node-role.kubernetes.io/master"] == "true" && l["node.kubernetes.io/instance-type"] == "k3s":
			return "K3s", nil
		}
	}
	groups, err := c.Clientset.Discovery().ServerGroups()
	if err != nil {
		return "", fmt.Errorf("listing API groups: %w", err)
	}
	for _, g := range groups.Groups {
		if g.Name == "route.openshift.io" {
			return "OpenShift", nil
		}
	}
	return "", nil
}

// maxClusterName is the longest cluster name that fits into identities.
const maxClusterName = 32

var clusterNameForm = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

func (f *Facts) clusterName(c *Cluster, user map[string]any) {
	if name, ok := lookup(user, "cluster.name").(string); ok && name != "" {
		f.ClusterName, f.NameGiven = name, true
		return
	}
	name := c.Name
	if i := strings.LastIndexByte(name, '/'); strings.HasPrefix(name, "arn:") && i >= 0 {
		name = name[i+1:]
	}
	name = strings.NewReplacer("_", "-", ".", "-", ":", "-", "/", "-", "@", "-").Replace(strings.ToLower(name))
	if len(name) > maxClusterName {
		name = name[:maxClusterName]
	}
	name = strings.Trim(name, "-")
	if !clusterNameForm.MatchString(name) {
		name = "default"
	}
	f.ClusterName = name
}

// kubeProxy finds out who serves Services, and, when nobody does, where the API servers are, as far as
// the user has not said so.
func (f *Facts) kubeProxy(ctx context.Context, c *Cluster, user map[string]any) error {
	if f.Flavour == "K3s" {
		f.KubeProxySkip = true
		return nil
	}
	for i := range f.DaemonSets {
		d := &f.DaemonSets[i]
		if d.Namespace == metav1.NamespaceSystem && strings.Contains(d.Name, "kube-proxy") {
			f.KubeProxy = true
			return nil
		}
	}
	if host, _ := lookup(user, "k8sServiceHost").(string); host != "" || len(wordsOf(lookup(user, "k8s.apiServerURLs"))) > 0 {
		return nil
	}
	u, err := url.Parse(c.Server)
	if err != nil {
		return fmt.Errorf("the kubeconfig's server URL %q: %w", c.Server, err)
	}
	f.APIHost, f.APIPort = u.Hostname(), cmp.Or(u.Port(), "443")
	f.APIServers, err = apiServers(ctx, c)
	if f.Flavour != "kind" && !isLoopback(f.APIHost) {
		return nil // the servers behind it are good to know, not more
	}
	if err != nil {
		return err
	}
	if len(f.APIServers) == 0 {
		return fmt.Errorf("the kubeconfig's server %s is a loopback address and the Service default/kubernetes has no endpoint: give --set k8sServiceHost=ADDRESS --set k8sServicePort=PORT", c.Server)
	}
	f.APIFromSlice = true
	if f.APIHost, f.APIPort, err = net.SplitHostPort(f.APIServers[0]); err != nil {
		return fmt.Errorf("address of the API server: %w", err)
	}
	return nil
}

// isLoopback says whether no other machine can mean the same by this host.
func isLoopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && (a.IsLoopback() || a.IsUnspecified())
}

// apiServers are the endpoints of default/kubernetes, which each API server adds itself to.
func apiServers(ctx context.Context, c *Cluster) ([]string, error) {
	list, err := c.Clientset.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=kubernetes",
	})
	if err != nil {
		return nil, fmt.Errorf("looking for the API server's address: listing EndpointSlices of default/kubernetes: %w", err)
	}
	var out []string
	for i := range list.Items {
		s := &list.Items[i]
		for _, e := range s.Endpoints {
			if len(e.Addresses) > 0 && len(s.Ports) > 0 && s.Ports[0].Port != nil {
				out = append(out, net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*s.Ports[0].Port))))
			}
		}
	}
	return out, nil
}

// serviceCIDRs reads the ranges of Services. Clusters before 1.33 have no such objects; there the
// surroundings of the addresses in use stand for them.
func serviceCIDRs(ctx context.Context, c *Cluster) ([]netip.Prefix, error) {
	list, err := c.Clientset.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
		return nil, fmt.Errorf("listing ServiceCIDRs: %w", err)
	}
	var out []netip.Prefix
	if err == nil {
		for i := range list.Items {
			for _, s := range list.Items[i].Spec.CIDRs {
				if p, err := netip.ParsePrefix(s); err == nil {
					out = append(out, p.Masked())
				}
			}
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	services, err := c.Clientset.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing services: %w", err)
	}
	for i := range services.Items {
		for _, s := range services.Items[i].Spec.ClusterIPs {
			a, err := netip.ParseAddr(s)
			if err != nil { // "None"
				continue
			}
			bits := 16
			if a.Is6() {
				bits = 108
			}
			if p, err := a.Prefix(bits); err == nil && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// addresses derives families and pod ranges from the nodes.
func (f *Facts) addresses() {
	f.PodCIDRs = len(f.Nodes) > 0
	pod4, pod6 := true, true
	for i := range f.Nodes {
		n := &f.Nodes[i]
		cidrs := n.Spec.PodCIDRs
		if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
			cidrs = []string{n.Spec.PodCIDR}
		}
		f.PodCIDRs = f.PodCIDRs && len(cidrs) > 0
		has4, has6 := false, false
		for _, s := range cidrs {
			if p, err := netip.ParsePrefix(s); err == nil {
				has4, has6 = has4 || p.Addr().Is4(), has6 || p.Addr().Is6()
			}
		}
		pod4, pod6 = pod4 && has4, pod6 && has6
		for _, a := range n.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type != corev1.NodeHostName {
				f.NodeAddrs = append(f.NodeAddrs, ip)
			}
		}
	}
	if f.PodCIDRs {
		f.IPv4, f.IPv6 = pod4, pod6
		return
	}
	for _, p := range f.ServiceCIDRs {
		f.IPv4, f.IPv6 = f.IPv4 || p.Addr().Is4(), f.IPv6 || p.Addr().Is6()
	}
	if !f.IPv4 && !f.IPv6 {
		f.IPv4 = true
	}
}

// Say prints what was found, in the words that users of Cilium know.
func (f *Facts) Say(level string, say func(string, ...any)) {
	if f.Flavour != "" {
		say("🔮 Auto-detected Kubernetes kind: %s", f.Flavour)
	}
	say("ℹ️  Using Cilium version %s (Lash %s)", level, api.Version)
	if f.NameGiven {
		say("ℹ️  Using cluster name %q", f.ClusterName)
	} else {
		say("🔮 Auto-detected cluster name: %s", f.ClusterName)
	}
	switch {
	case f.KubeProxySkip:
	case f.KubeProxy:
		say("🔮 Auto-detected kube-proxy has been installed")
	default:
		if f.APIFromSlice && f.Flavour == "kind" {
			say("ℹ️  Detecting real Kubernetes API server addr and port on Kind")
		} else if f.APIFromSlice {
			say("ℹ️  Detecting real Kubernetes API server addr and port: %s", net.JoinHostPort(f.APIHost, f.APIPort))
		}
		if len(f.APIServers) > 1 {
			say("ℹ️  There are %d API servers, nodes use one that answers: %s", len(f.APIServers), strings.Join(f.APIServers, ", "))
		}
		say("🔮 Auto-detected kube-proxy has not been installed")
	}
}
