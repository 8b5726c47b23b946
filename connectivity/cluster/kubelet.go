// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"sigs.k8s.io/yaml"
)

const containerdSocket = "/run/containerd/containerd.sock"

// containerdConfig is for a node; the folders are the node's own, see arrange.
func containerdConfig(pause string) string {
	return `version = 3
root = '/var/lib/containerd'
state = '/run/containerd'

[grpc]
  address = '` + containerdSocket + `'

[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '` + pause + `'

[plugins.'io.containerd.cri.v1.runtime']
  # Raising a score needs a capability that the machine may not give.
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = 'runc'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['/opt/cni/bin']
    conf_dir = '/etc/cni/net.d'
    use_internal_loopback = true

[plugins.'io.containerd.nri.v1.nri']
  disable = true
`
}

// kubeletConfig is a KubeletConfiguration.
func (c *Cluster) kubeletConfig(n Node) ([]byte, error) {
	dns, err := c.dnsAddrs()
	if err != nil {
		return nil, err
	}
	cfg := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": pkiDir + "ca.crt"},
		},
		"authorization":                  map[string]any{"mode": "Webhook"},
		"tlsCertFile":                    pkiDir + "kubelet.crt",
		"tlsPrivateKeyFile":              pkiDir + "kubelet.key",
		"clusterDNS":                     dns,
		"clusterDomain":                  "cluster.local",
		"resolvConf":                     "/etc/resolv.conf",
		"containerRuntimeEndpoint":       "unix://" + containerdSocket,
		"cgroupDriver":                   "cgroupfs",
		"cgroupRoot":                     "/" + n.Name,
		"failCgroupV1":                   false,
		"failSwapOn":                     false,
		"enforceNodeAllocatable":         []string{},
		"localStorageCapacityIsolation":  true,
		"evictionHard":                   map[string]string{},
		"imageGCHighThresholdPercent":    100,
		"imageGCLowThresholdPercent":     99,
		"oomScoreAdj":                    0,
		"featureGates":                   map[string]bool{"KubeletInUserNamespace": true},
		"healthzBindAddress":             "127.0.0.1",
		"volumePluginDir":                "/var/lib/kubelet/volumeplugins",
		"serializeImagePulls":            false,
		"shutdownGracePeriod":            "0s",
		"nodeStatusReportFrequency":      "1m",
		"containerLogMaxSize":            "10Mi",
		"registerNode":                   true,
		"rotateCertificates":             false,
		"protectKernelDefaults":          false,
		"seccompDefault":                 false,
		"makeIPTablesUtilChains":         false,
		"cpuManagerPolicy":               "none",
		"streamingConnectionIdleTimeout": "4h",
	}
	if n.Role == RoleControlPlane && len(c.kubeNodes()) > 1 {
		cfg["registerWithTaints"] = []map[string]string{{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}}
	}
	data, err := yaml.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("kubelet configuration: %w", err)
	}
	return data, nil
}

// dnsAddrs are the cluster IPs of the DNS service: the tenth of each service range.
func (c *Cluster) dnsAddrs() ([]string, error) {
	var out []string
	for _, s := range c.Services {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("service CIDR: %w", err)
		}
		out = append(out, hostAddr(p, 10).String())
	}
	return out, nil
}

// issueNode places what a node's kubelet needs.
func (k *making) issueNode(ca *authority, n Node) error {
	client, err := ca.client("system:node:"+n.Name, "system:nodes")
	if err != nil {
		return err
	}
	server, err := ca.server("system:node:"+n.Name, []string{n.Name}, n.Addresses)
	if err != nil {
		return err
	}
	kubeconfig, err := k.componentConfig("system:node:"+n.Name, client)
	if err != nil {
		return err
	}
	config, err := k.c.kubeletConfig(n)
	if err != nil {
		return err
	}
	return k.machines[n.Name].write(map[string][]byte{
		pkiDir + "ca.crt":              ca.pair.cert,
		pkiDir + "kubelet.crt":         server.cert,
		pkiDir + "kubelet.key":         server.key,
		"/etc/kubernetes/kubelet.conf": kubeconfig,
		"/var/lib/kubelet/config.yaml": config,
		"/etc/containerd/config.toml":  []byte(containerdConfig(k.pauseRef())),
		"/etc/crictl.yaml":             []byte("runtime-endpoint: unix://" + containerdSocket + "\n"),
	})
}

func (k *making) startContainerd(ctx context.Context, n Node) error {
	return k.daemon(ctx, k.machines[n.Name], "containerd", process{path: "containerd", args: []string{"--config", "/etc/containerd/config.toml"}})
}

func (k *making) startKubelet(ctx context.Context, n Node) error {
	var ips []string
	for _, a := range n.Addresses {
		ips = append(ips, a.String())
	}
	return k.daemon(ctx, k.machines[n.Name], "kubelet", process{path: "kubelet", args: []string{
		"--config=/var/lib/kubelet/config.yaml", "--kubeconfig=/etc/kubernetes/kubelet.conf",
		"--hostname-override=" + n.Name, "--node-ip=" + strings.Join(ips, ","),
	}})
}
