// SPDX-License-Identifier: Apache-2.0

// Package values is the one table of Helm value keys: what each key is for, its type, its default
// and how well it is supported. The chart's values.yaml and values.schema.json are generated from
// it, and Check judges what a user gives by it.
package values

// Class says what becomes of a key that the user sets.
type Class int

const (
	// Supported keys do what they say.
	Supported Class = iota
	// Neutral keys belong to something that Lash lacks; they are accepted at their default or
	// switched off, because then nothing is lost.
	Neutral
	// Superseded keys ask for something that is met another way; any value is accepted, with a
	// notice.
	Superseded
	// Unsupported keys, at another value than their default or "off", are an error that says what
	// to use.
	Unsupported
	// Unknown is every other key.
	Unknown
)

// Type is the type of a value. Several may be joined by "|".
type Type string

// Types of values.
const (
	Bool    Type = "bool"
	Int     Type = "int"
	String  Type = "string"
	List    Type = "list"
	Map     Type = "map"
	BoolStr Type = "bool|string"
	IntStr  Type = "int|string"
	StrList Type = "string|list"
	Any     Type = "any"
)

// Key is one row of the table.
type Key struct {
	Path    string
	Type    Type
	Default string // as YAML
	Doc     string // one or more sentences; becomes the comment in values.yaml
	Class   Class
	Enum    []string // the values that are supported, where there are few
	Use     string   // what to use instead (unsupported), or how the wish is met (superseded)
}

func key(path string, t Type, def, doc string, enum ...string) Key {
	return Key{Path: path, Type: t, Default: def, Doc: doc, Enum: enum}
}

func superseded(path, use string) Key {
	return Key{Path: path, Type: Any, Class: Superseded, Use: use}
}

func unsupported(path, use string) Key {
	return Key{Path: path, Type: Any, Class: Unsupported, Use: use}
}

// general holds the keys of the whole installation and of the agent.
var general = []Key{
	key("cluster.name", String, "default", "Name of the cluster; part of every pod's identity. At most 32 lower-case letters, digits and dashes."),
	key("cluster.id", Int, "0", "Number of the cluster among connected clusters; 0 while there is only one.", "0"),
	key("image.repository", String, "localhost/lash", "Image of every container of this chart. The default is the name under which `lash image save` writes it; set it after pushing the image to a registry of yours."),
	key("image.tag", String, `""`, "Tag of the image; empty means the version of the chart."),
	key("image.digest", String, `""`, "Digest (sha256:...) that pins the image when image.useDigest is set."),
	key("image.useDigest", Bool, "false", "Whether the digest is part of the reference."),
	key("image.override", String, "null", "Complete image reference that replaces all of the above."),
	key("image.pullPolicy", String, "IfNotPresent", "When the kubelet pulls the image.", "Always", "IfNotPresent", "Never"),
	key("imagePullSecrets", List, "[]", "Secrets for pulling the image, as in a pod's spec."),
	key("compatibility.level", String, `""`, "Cilium version that agent and status report as their compatibility level; empty means the chart's appVersion."),
	key("k8sServiceHost", String, `""`, "Address of the API server for agent and operator. Needed where nothing else makes the Service `kubernetes` work, that is, without kube-proxy."),
	key("k8sServicePort", IntStr, `""`, "Port of the API server, with k8sServiceHost."),
	key("k8s.apiServerURLs", StrList, `""`, "All API servers, as URLs: agent and operator use one that answers, and k8sServiceHost before them if it is none of them. Nodes keep what they learn of API servers later."),
	key("kubeProxyReplacement", BoolStr, `"false"`, "Whether Services are ours (true) or kube-proxy's (false).", "true", "false"),
	key("kubeProxyReplacementHealthzBindAddr", String, `":10256"`, "With kubeProxyReplacement: where nodes answer load balancers in place of kube-proxy (/healthz, /livez); empty means nowhere."),
	key("socketLB.enabled", Bool, "false", "Choose a Service's backend when a socket connects. Always on with kubeProxyReplacement."),
	key("socketLB.hostNamespaceOnly", Bool, "false", "Do so for the node's own sockets only; pods' packets are then translated one by one."),
	key("nodePort.enabled", Bool, "false", "NodePorts. Always on with kubeProxyReplacement, and not to be had without."),
	key("nodePort.range", StrList, `"30000,32767"`, "First and last NodePort, as kube-apiserver has them (--service-node-port-range)."),
	key("nodePort.addresses", StrList, `[]`, "Ranges of node addresses at which NodePorts are open; empty means all addresses of the nodes' devices."),
	key("nodePort.bindProtection", Bool, "true", "Keep processes on the nodes from binding NodePorts that are in use."),
	key("nodePort.autoProtectPortRange", Bool, "true", "Keep the nodes' own connections from getting a NodePort as their port (sysctl ip_local_reserved_ports)."),
	key("nodePort.enableHealthCheck", Bool, "true", "Answer load balancers at the healthCheckNodePort of Services."),
	key("hostPort.enabled", Bool, "false", "HostPorts of pods. Always on with kubeProxyReplacement, and not to be had without."),
	key("externalIPs.enabled", Bool, "false", "externalIPs of Services. Always on with kubeProxyReplacement, and not to be had without."),
	key("svcSourceRangeCheck", Bool, "true", "Heed loadBalancerSourceRanges of Services."),
	key("loadBalancer.algorithm", String, "random", "How a backend is chosen for a connection from outside: at random, or the same on every node (maglev).", "random", "maglev"),
	key("loadBalancer.mode", String, "snat", "How packets from outside reach backends on other nodes: with the node's address as their source (snat), or as they are, in the tunnel, so that the backend's node answers by itself (dsr), or the latter for TCP only (hybrid). dsr and hybrid need routingMode tunnel.", "snat", "dsr", "hybrid"),
	key("loadBalancer.dsrDispatch", String, `""`, "With loadBalancer.mode dsr: what packets are sent on in; empty means vxlan.", "", "vxlan"),
	key("loadBalancer.acceleration", String, "disabled", "Accepted as disabled only: packets are translated where the kernel receives them from a device, not in its driver.", "disabled"),
	key("maglev.tableSize", Int, "16381", "Entries of a Service's table with loadBalancer.algorithm maglev: a prime from 251 to 131071, best a hundred times the backends of the largest Service."),
	key("maglev.hashSeed", String, `""`, "Seed of these tables: 12 bytes in base64, such as `head -c12 /dev/urandom | base64 -w0` prints; empty means the one that Cilium has by default."),
	key("routingMode", String, `""`, "How packets reach pods on other nodes: in a tunnel, or as they are (native); empty means tunnel.", "", "tunnel", "native"),
	key("autoDirectNodeRoutes", Bool, "false", "With routingMode native: routes to the pods of all nodes that are on one link; without it the network has to route the pod CIDRs."),
	key("tunnelProtocol", String, `""`, "Tunnel protocol; empty means vxlan.", "", "vxlan"),
	key("tunnelPort", Int, "0", "UDP port of the tunnel; 0 means 8472."),
	key("ipv4.enabled", Bool, "true", "IPv4 for pods."),
	key("ipv6.enabled", Bool, "false", "IPv6 for pods."),
	key("ipam.mode", String, "cluster-pool", "Where pod addresses come from: ranges that the operator hands to nodes (cluster-pool), or the ranges in the Node objects (kubernetes).", "cluster-pool", "kubernetes"),
	key("ipam.operator.clusterPoolIPv4PodCIDRList", StrList, `["10.0.0.0/8"]`, "IPv4 ranges that cluster-pool cuts into one range a node."),
	key("ipam.operator.clusterPoolIPv4MaskSize", Int, "24", "Prefix length of one node's IPv4 range."),
	key("ipam.operator.clusterPoolIPv6PodCIDRList", StrList, `["fd00::/104"]`, "IPv6 ranges that cluster-pool cuts into one range a node."),
	key("ipam.operator.clusterPoolIPv6MaskSize", Int, "120", "Prefix length of one node's IPv6 range."),
	key("enableIPv4Masquerade", Bool, "true", "Give packets that leave the cluster the node's IPv4 address."),
	key("enableIPv6Masquerade", Bool, "true", "Give packets that leave the cluster the node's IPv6 address."),
	key("ipv4NativeRoutingCIDR", String, `""`, "IPv4 range whose destinations are never masqueraded."),
	key("ipv6NativeRoutingCIDR", String, `""`, "IPv6 range whose destinations are never masqueraded."),
	key("devices", StrList, `""`, "Network devices that face the outside, as names or patterns such as `eth+`; empty means to detect them."),
	key("MTU", Int, "0", "MTU of the underlay; 0 means to detect it."),
	key("bpf.root", String, "/sys/fs/bpf", "Where the BPF file system is mounted on the nodes."),
	key("bpf.autoMount.enabled", Bool, "true", "Mount it there when it is missing."),
	key("bpf.enableTCX", Bool, "true", "Attach programs to network devices by tcx where the kernel has it; false means by cls_bpf filters everywhere. It takes effect when the agents restart; the first change to false may cost single packets, as the kernel stops a device for an instant when it gets a qdisc."),
	key("bpf.ctTcpMax", Int, "0", "IPv4 flows of all protocols that fit the connection table of a node; the tables of IPv6 and of new flows follow from it. 0 leaves it as it is: 131072 at first. Flows survive the change."),
	key("bpf.monitorAggregation", String, "medium", "How many trace events of one connection are reported.", "none", "lowest", "low", "medium", "maximum"),
	key("bpf.monitorInterval", String, "5s", "How often a connection that goes on is reported."),
	key("cgroup.hostRoot", String, "/run/cilium/cgroupv2", "Where the cgroup2 hierarchy is mounted on the nodes; socket programs are attached there."),
	key("cgroup.autoMount.enabled", Bool, "true", "Mount it there when it is missing."),
	key("policyEnforcementMode", String, "default", "Network policy enforcement. This version enforces none, so `always` is not accepted.", "default", "never"),
	key("cni.install", Bool, "true", "Put the CNI plugin on the nodes."),
	key("cni.exclusive", Bool, "false", "Accepted as false only: other CNI configurations are reported and never renamed.", "false"),
	key("cni.binPath", String, "/opt/cni/bin", "Folder of the CNI plugins on the nodes."),
	key("cni.confPath", String, "/etc/cni/net.d", "Folder of the CNI configurations on the nodes."),
	key("agentNotReadyTaintKey", String, "node.cilium.io/agent-not-ready", "Node taint that is removed once the agent is ready."),
	key("labels", String, `""`, "Pod labels that make up identities, as prefixes separated by spaces; empty means the default filter."),
	key("debug.enabled", Bool, "false", "Log at debug level."),
	key("logOptions.format", String, `""`, "Format of the logs; empty means text.", "", "text", "json", "json-ts"),
	key("extraConfig", Map, "{}", "More keys for the ConfigMap cilium-config; they win over those of the chart."),
	key("prometheus.enabled", Bool, "false", "Serve the agent's metrics."),
	key("prometheus.port", Int, "9962", "Port of the agent's metrics."),
	key("endpointHealthChecking.enabled", Bool, "true", "Have an endpoint on each node at which its agent probes every 30 seconds whether the node's datapath carries packets. An agent whose probe fails is not ready, and changes nothing."),
	key("healthPort", Int, "9879", "Port of the agent's health endpoint on 127.0.0.1."),
	key("cleanState", Bool, "false", "Remove all state of the node when an agent pod starts. Interrupts traffic."),
	key("cleanBpfState", Bool, "false", "Remove programs, maps and devices of Lash on the node when an agent pod starts. Interrupts traffic."),
	key("daemon.runPath", String, "/var/run/cilium", "Folder of the agent's sockets on the nodes."),
	key("rbac.create", Bool, "true", "Create roles and bindings."),
	key("serviceAccounts.cilium.create", Bool, "true", "Create the agent's service account."),
	key("serviceAccounts.cilium.name", String, "cilium", "Name of the agent's service account."),
	key("serviceAccounts.cilium.annotations", Map, "{}", "Annotations of the agent's service account."),
	key("serviceAccounts.operator.create", Bool, "true", "Create the operator's service account."),
	key("serviceAccounts.operator.name", String, "cilium-operator", "Name of the operator's service account."),
	key("serviceAccounts.operator.annotations", Map, "{}", "Annotations of the operator's service account."),
	key("commonLabels", Map, "{}", "Labels on every object of the chart."),
}

// pods holds the keys that shape the agent's pods.
var pods = []Key{
	key("extraArgs", List, "[]", "More arguments for the agent."),
	key("extraEnv", List, "[]", "More environment variables for the agent, as in a container's spec. Every option is also read as CILIUM_<OPTION>."),
	key("extraVolumes", List, "[]", "More volumes of the agent's pods."),
	key("extraVolumeMounts", List, "[]", "More mounts of the agent's container."),
	key("extraHostPathMounts", List, "[]", "Host folders to mount: name, mountPath, hostPath, and optionally readOnly, hostPathType, mountPropagation."),
	key("annotations", Map, "{}", "Annotations of the DaemonSet."),
	key("podAnnotations", Map, "{}", "Annotations of the agent's pods."),
	key("podLabels", Map, "{}", "Labels of the agent's pods."),
	key("resources", Map, "{}", "Resource requests and limits of the agent."),
	key("initResources", Map, "{}", "Resource requests and limits of the init containers."),
	key("priorityClassName", String, `""`, "Priority class of the agent's pods; empty means system-node-critical."),
	key("tolerations", List, "[{operator: Exists}]", "Taints that the agent's pods tolerate."),
	key("nodeSelector", Map, "{kubernetes.io/os: linux}", "Nodes that get an agent."),
	key("affinity", Map, `{podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {k8s-app: cilium}}}]}}`, "Affinity of the agent's pods."),
	key("updateStrategy", Map, `{type: RollingUpdate, rollingUpdate: {maxUnavailable: 2}}`, "How the DaemonSet replaces its pods."),
	key("rollOutCiliumPods", Bool, "false", "Replace the agent's pods when the configuration changes."),
	key("terminationGracePeriodSeconds", Int, "1", "Time that an agent gets to end. Programs in the kernel go on without it."),
	key("startupProbe.failureThreshold", Int, "300", "Failures before an agent that has never been ready is restarted."),
	key("startupProbe.periodSeconds", Int, "2", "Seconds between startup probes."),
	key("livenessProbe.failureThreshold", Int, "10", "Failures before an agent is restarted."),
	key("livenessProbe.periodSeconds", Int, "30", "Seconds between liveness probes."),
	key("readinessProbe.failureThreshold", Int, "3", "Failures before an agent counts as not ready."),
	key("readinessProbe.periodSeconds", Int, "5", "Seconds between readiness probes."),
}

// operator holds the keys of the operator.
var operator = []Key{
	key("operator.enabled", Bool, "true", "Deploy the operator."),
	key("operator.replicas", Int, "2", "Number of operators; one of them works, the others stand by."),
	key("operator.identityGCInterval", String, "15m0s", "How often unused identities are collected."),
	key("operator.endpointGCInterval", String, "5m0s", "How often endpoints without a pod are collected; 0s means never."),
	key("operator.removeNodeTaints", Bool, "true", "Remove agentNotReadyTaintKey from nodes whose agent is ready."),
	key("operator.setNodeNetworkStatus", Bool, "true", "Set the node condition NetworkUnavailable to false once the agent is ready."),
	key("operator.setNodeTaints", Bool, "false", "Accepted as false only: nodes get agentNotReadyTaintKey when they join the cluster, and a ready agent removes it.", "false"),
	key("operator.unmanagedPodWatcher.restart", Bool, "true", "Restart DNS pods that were started before the network."),
	key("operator.unmanagedPodWatcher.intervalSeconds", Int, "15", "Seconds between looks at such pods."),
	key("operator.prometheus.enabled", Bool, "true", "Serve the operator's metrics."),
	key("operator.prometheus.port", Int, "9963", "Port of the operator's metrics."),
	key("operator.extraArgs", List, "[]", "More arguments for the operator."),
	key("operator.extraEnv", List, "[]", "More environment variables for the operator, as in a container's spec."),
	key("operator.extraVolumes", List, "[]", "More volumes of the operator's pods."),
	key("operator.extraVolumeMounts", List, "[]", "More mounts of the operator's container."),
	key("operator.annotations", Map, "{}", "Annotations of the Deployment."),
	key("operator.podAnnotations", Map, "{}", "Annotations of the operator's pods."),
	key("operator.podLabels", Map, "{}", "Labels of the operator's pods."),
	key("operator.resources", Map, "{}", "Resource requests and limits of the operator."),
	key("operator.priorityClassName", String, `""`, "Priority class of the operator's pods; empty means system-cluster-critical."),
	key("operator.tolerations", List, "[{operator: Exists}]", "Taints that the operator's pods tolerate."),
	key("operator.nodeSelector", Map, "{kubernetes.io/os: linux}", "Nodes that may run the operator."),
	key("operator.affinity", Map, `{podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {io.cilium/app: operator}}}]}}`, "Affinity of the operator's pods."),
	key("operator.topologySpreadConstraints", List, "[]", "Topology spread of the operator's pods."),
	key("operator.updateStrategy", Map, `{type: RollingUpdate, rollingUpdate: {maxSurge: 25%, maxUnavailable: 100%}}`, "How the Deployment replaces its pods."),
	key("operator.rollOutPods", Bool, "false", "Replace the operator's pods when the configuration changes."),
	key("operator.podDisruptionBudget.enabled", Bool, "true", "Keep a node drain from taking all operators at once."),
	key("operator.podDisruptionBudget.maxUnavailable", IntStr, "1", "How many operators a drain may take."),
	key("operator.podDisruptionBudget.minAvailable", IntStr, "null", "How many operators a drain must leave; replaces maxUnavailable when set."),
}

// others are the keys of Cilium's chart that Lash meets in another way or does not have, with
// words of their own. Keys of known.txt that are not here are neutral.
var others = []Key{
	superseded("bpf.masquerade", "masquerading is always done by BPF programs"),
	superseded("bpf.hostLegacyRouting", "packets skip the host's stack wherever that is correct"),
	superseded("bpf.tproxy", "no iptables rule is ever used"),
	superseded("bpf.preallocateMaps", "map memory is chosen map by map"),
	superseded("bpf.mapDynamicSizeRatio", "see bpf.ctTcpMax for the connection tables; other maps take memory as they fill"),
	superseded("bpf.ctAnyMax", "one connection table serves all protocols, see bpf.ctTcpMax"),
	superseded("bpf.natMax", "translations are kept in the connection tables, see bpf.ctTcpMax"),
	superseded("bpfClockProbe", "the clock is chosen by itself"),
	superseded("installNoConntrackIptablesRules", "no iptables rule is ever used"),
	superseded("enableXTSocketFallback", "no iptables rule is ever used"),
	superseded("hubble.tls", "certificates are not made by the chart"),
	superseded("certgen", "certificates are not made by the chart"),
	superseded("tls.ca", "certificates are not made by the chart"),
	superseded("securityContext", "each container asks for exactly the capabilities that it needs"),
	superseded("operator.securityContext", "the operator runs without any capability"),
	superseded("operator.image", "one image serves all containers, see image.repository"),
	superseded("preflight.image", "one image serves all containers, see image.repository"),
	superseded("upgradeCompatibility", "defaults do not depend on the version that was installed first"),
	superseded("sysctlfix", "sysctls are set per device by the agent, no file is written"),
	superseded("enableRuntimeDeviceDetection", "devices are always followed at run time"),
	superseded("enableCriticalPriorityClass", "see priorityClassName"),
	superseded("synchronizeK8sNodes", "nodes are always synchronised"),
	superseded("remoteNodeIdentity", "other nodes always have an identity of their own"),
	superseded("directRoutingSkipUnreachable", "nodes on another link get no route from autoDirectNodeRoutes and are reported"),
	superseded("loadBalancer.serviceTopology", "hints of EndpointSlices are always followed, as kube-proxy does"),
	superseded("sessionAffinity", "sessionAffinity of Services comes with kubeProxyReplacement"),
	superseded("waitForKubeProxy", "nothing depends on the order"),
	superseded("keepDeprecatedLabels", "no deprecated label is used"),
	superseded("keepDeprecatedProbes", "no deprecated probe is used"),
	superseded("k8sClientRateLimit", "requests are limited by priority and fairness in the API server"),

	unsupported("tunnel", "routingMode and tunnelProtocol"),
	unsupported("endpointRoutes.enabled", "the default; every pod has a route of its own already"),
	unsupported("encryption.enabled", "encryption between nodes by other means"),
	unsupported("hubble.relay.enabled", "`kubectl -n kube-system exec ds/cilium -- cilium monitor` to see packets of one node"),
	unsupported("hubble.ui.enabled", "`kubectl -n kube-system exec ds/cilium -- cilium monitor` to see packets of one node"),
	unsupported("hubble.metrics.enabled", "prometheus.enabled for the agent's own metrics"),
	unsupported("hostFirewall.enabled", "a firewall of the nodes' own"),
	unsupported("policyAuditMode", "policyEnforcementMode=never"),
	unsupported("ingressController.enabled", "an ingress controller that runs as pods"),
	unsupported("gatewayAPI.enabled", "a gateway that runs as pods"),
	unsupported("envoy.enabled", "the default; there is no proxy yet"),
	unsupported("envoyConfig.enabled", "the default; there is no proxy yet"),
	unsupported("l2announcements.enabled", "another announcer, such as MetalLB, for LoadBalancer addresses"),
	unsupported("l2podAnnouncements.enabled", "the default"),
	unsupported("bgpControlPlane.enabled", "another BGP speaker, such as MetalLB or BIRD"),
	unsupported("bgp.enabled", "another BGP speaker, such as MetalLB or BIRD"),
	unsupported("egressGateway.enabled", "masquerading to the address of the pod's node, which is the default"),
	unsupported("clustermesh.useAPIServer", "one cluster"),
	unsupported("clustermesh.config.enabled", "one cluster"),
	unsupported("bandwidthManager.enabled", "the default"),
	unsupported("localRedirectPolicy", "the default"),
	unsupported("identityAllocationMode", "crd"),
	unsupported("cni.chainingMode", "the default: Lash is the only plugin of a pod, next to Multus if need be"),
	unsupported("cni.chainingTarget", "the default: Lash is the only plugin of a pod, next to Multus if need be"),
	unsupported("cni.customConf", "the configuration that the agent writes"),
	unsupported("authentication.mutual.spire.enabled", "mutual authentication by other means"),
	unsupported("extraContainers", "a pod of its own"),
	unsupported("extraInitContainers", "a DaemonSet of its own"),
}
