// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/rest"
	"lash.internal/lash/agent/state"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// tables is a node with one pod of its own, one elsewhere, and two Services.
func tables() *state.Tables {
	t := state.NewTables()
	w := t.DB.WriteTxn()
	labels := []string{
		"k8s:app=backend1", "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=default",
		"k8s:io.cilium.k8s.policy.cluster=kubernetes", "k8s:io.cilium.k8s.policy.serviceaccount=default",
		"k8s:io.kubernetes.pod.namespace=default",
	}
	t.Identities.Insert(w, state.Identity{ID: 6040, Labels: labels})
	t.Nodes.Insert(w, state.Node{
		Name: "n1", Local: true, InternalIPs: []netip.Addr{addr("172.18.0.2"), addr("fc00::2")},
		RouterIPs: []netip.Addr{addr("10.244.1.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
	})
	t.Nodes.Insert(w, state.Node{Name: "n2", InternalIPs: []netip.Addr{addr("172.18.0.3")}})
	t.Endpoints.Insert(w, state.Endpoint{
		ID: 12, Pod: state.Name{Namespace: "default", Name: "backend1-0"}, ContainerID: "abc", ContainerIf: "eth0",
		IfName: "lxc0123456789ab", IfIndex: 9, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, NodeMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2},
		IPv4: addr("10.244.1.7"), IPv6: addr("fd00:1::7"), Identity: 6040, Labels: labels, State: state.EndpointReady,
	})
	t.Endpoints.Insert(w, state.Endpoint{
		ID: 13, Pod: state.Name{Namespace: "default", Name: "new"}, ContainerID: "def", ContainerIf: "eth0",
		IPv4: addr("10.244.1.8"), State: state.EndpointWaitingForIdentity,
	})
	t.RemoteIPs.Insert(w, state.RemoteIP{IP: addr("10.244.2.9"), Pod: state.Name{Namespace: "default", Name: "backend1-1"}, NodeIP: addr("172.18.0.3"), Identity: 6040})
	t.Services.Insert(w, state.Service{
		Name: state.Name{Namespace: "default", Name: "web"}, Type: "ClusterIP", ClusterIPs: []netip.Addr{addr("10.96.0.20")},
		Ports: []state.ServicePort{{Name: "http", Protocol: "TCP", Port: 80}, {Name: "dns", Protocol: "UDP", Port: 53}},
	})
	t.EndpointSlices.Insert(w, state.EndpointSlice{
		Name: state.Name{Namespace: "default", Name: "web-1"}, Service: state.Name{Namespace: "default", Name: "web"},
		Ports: []state.SlicePort{{Name: "http", Protocol: "TCP", Port: 8080}},
		Endpoints: []state.SliceEndpoint{
			{Addresses: []netip.Addr{addr("10.244.1.7")}, Ready: true, Serving: true, NodeName: "n1"},
			{Addresses: []netip.Addr{addr("10.244.2.9")}, Serving: true, Terminating: true, NodeName: "n2"},
			{Addresses: []netip.Addr{addr("10.244.2.10")}},
		},
	})
	t.Devices.Insert(w, state.Device{
		Name: "eth0", Index: 2, DirectRouting: true,
		Addrs: []netip.Prefix{netip.MustParsePrefix("172.18.0.2/16"), netip.MustParsePrefix("fe80::1/64")},
	})
	w.Commit()
	return t
}

func kubeProxyReplacement() *api.KubeProxyReplacement {
	on := api.EnabledFeature{Enabled: true}
	return &api.KubeProxyReplacement{
		Mode: "True", Devices: []string{"eth0", "eth1"}, DirectRoutingDevice: "eth0",
		DeviceList: []api.KPRDevice{{Name: "eth0", IP: []string{"172.18.0.2", "fe80::1"}}, {Name: "eth1", IP: []string{"192.0.2.1"}}},
		Features: &api.KPRFeatures{
			Annotations: []string{}, ClusterIP: &on, ExternalIPs: on, GracefulTermination: on, HostPort: on, LoadBalancer: on,
			HostReachableServices: api.HostReachableServices{Enabled: true, Protocols: []string{"TCP", "UDP"}}, SocketLB: on, SessionAffinity: on,
			NodePort: api.NodePortFeature{Enabled: true, Mode: "SNAT", Algorithm: "Random", Acceleration: "Disabled", PortMin: 30000, PortMax: 32767},
		},
	}
}

// services are the frontends of one Service of type NodePort with externalTrafficPolicy Local.
func services() []api.Service {
	here := api.BackendAddress{IP: "10.244.1.7", Port: 8080, Protocol: "TCP", State: "active", NodeName: "n1"}
	away := api.BackendAddress{IP: "10.244.2.9", Port: 8080, Protocol: "TCP", State: "terminating", NodeName: "n2"}
	row := func(id int64, kind, ip string, port uint16, proto, scope string, backends ...api.BackendAddress) api.Service {
		spec := api.ServiceSpec{
			ID: id, Frontend: api.FrontendAddress{IP: ip, Port: port, Protocol: proto, Scope: scope}, Backends: append([]api.BackendAddress{}, backends...),
			Flags: api.ServiceSpecFlags{
				Type: kind, Namespace: "default", Name: "web", TrafficPolicy: "Local", ExtTrafficPolicy: "Local", IntTrafficPolicy: "Cluster", HealthCheckNodePort: 31000,
			},
		}
		return api.Service{Spec: spec, Status: &api.ServiceStatus{Realized: spec}}
	}
	return []api.Service{
		row(1, "ClusterIP", "10.96.0.20", 53, "UDP", "external"),
		row(2, "ClusterIP", "10.96.0.20", 80, "TCP", "external", here, away),
		row(2, "NodePort", "0.0.0.0", 30080, "TCP", "external", here),
		row(2, "NodePort", "0.0.0.0", 30080, "TCP", "internal", here, away),
		row(3, "ClusterIP", "fd00:10::20", 80, "TCP", "external"),
	}
}

type fakeMaps struct{}

func (fakeMaps) Maps() ([]api.BPFMap, error) {
	return []api.BPFMap{{Name: "addr", Type: "Hash", MaxEntries: 524288, Entries: 2, KeySize: 20, ValueSize: 24}, {Name: "svc", Type: "Array", MaxEntries: 65536, Entries: -1, KeySize: 4, ValueSize: 64}}, nil
}

func (fakeMaps) Map(name string) (api.BPFMap, error) {
	m := api.BPFMap{Name: name}
	switch name {
	case "view:ipcache":
		m.Cache = []api.MapEntry{
			{Key: "0.0.0.0/0", Value: "identity=2 encryptkey=0 tunnelendpoint=0.0.0.0 flags=<none>"},
			{Key: "10.244.2.9/32", Value: "identity=6040 encryptkey=0 tunnelendpoint=172.18.0.3 flags=hastunnel"},
		}
	case "view:lb":
		m.Cache = []api.MapEntry{
			{Key: "10.96.0.20:80/TCP (0)", Value: "0.0.0.0:0 (1) (0) [ClusterIP, non-routable]"},
			{Key: "10.96.0.20:80/TCP (1)", Value: "10.244.1.7:8080/TCP (1) (1)"},
		}
	case "view:lb-frontends":
		m.Cache = []api.MapEntry{{Key: "10.96.0.20:80/TCP", Value: "1 (external)"}}
	case "view:lb-backends":
		m.Cache = []api.MapEntry{{Key: "3", Value: "10.244.1.7:8080/TCP (active)"}}
	case "view:lb-revnat":
		m.Cache = []api.MapEntry{{Key: "1", Value: "10.96.0.20:80"}}
	case "view:lb-sources":
		m.Cache = []api.MapEntry{{Key: "192.0.2.0/24 (1)", Value: "203.0.113.1:80/TCP"}}
	case "view:lb-affinity":
		m.Cache = []api.MapEntry{{Key: "192.0.2.77 (1)", Value: "10.244.1.7:8080/TCP (3) idle=1s"}}
	case "view:lb-maglev":
		m.Cache = []api.MapEntry{{Key: "1", Value: "7 entries by backend [3: 4, 4: 3]"}}
	case "view:lb-maglev:1":
		m.Cache = []api.MapEntry{{Key: "1", Value: "[3, 4, 3, 4, 3, 4, 3]"}}
	case "view:lb-maglev:2":
	case "view:nat":
		m.Cache = []api.MapEntry{{
			Key: "TCP OUT 10.244.1.7:40000 -> 198.51.100.1:80", Value: "XLATE_SRC 172.18.0.2:50000 Idle=1s", Fields: map[string]string{"direction": "OUT"},
		}}
	case "view:endpoint":
		m.Cache = []api.MapEntry{
			{Key: "10.244.1.7", Value: "id=12 sec_id=6040 flags=0x0000 ifindex=9 mac=02:00:00:00:00:01 nodemac=02:00:00:00:00:02"},
			{Key: "172.18.0.2", Value: "(localhost)"},
		}
	case "view:tunnel":
		m.Cache = []api.MapEntry{{Key: "10.244.2.0/24", Value: "172.18.0.3"}}
	case "view:frag":
		m.Cache = []api.MapEntry{{Key: "10.244.1.7 -> 10.244.2.9, 0x1234 UDP", Value: "40000 -> 53"}}
	case "view:metrics":
		m.Cache = []api.MapEntry{{Key: "x", Fields: map[string]string{
			"reason": "Policy denied", "direction": "INGRESS", "packets": "3", "bytes": "222", "line": "77", "file": "flow.h",
		}}}
	case "view:ct":
		m.Cache = []api.MapEntry{{Key: "TCP OUT 10.0.0.1:1 -> 10.0.0.2:80", Value: "expires=117 Bytes=1024", Fields: map[string]string{"kind": "PLAIN", "remaining": "17"}}}
	case "addr":
		m.Cache = []api.MapEntry{{Key: "10.244.1.7", Value: "kind=local-endpoint"}}
	default:
		return m, fs.ErrNotExist
	}
	return m, nil
}

type fakeEvents struct{}

func (fakeEvents) Ring() api.MonitorStatus {
	return api.MonitorStatus{CPUs: 2, NPages: 512, PageSize: 4096}
}

func (fakeEvents) Subscribe(context.Context) <-chan api.MonitorEvent {
	ch := make(chan api.MonitorEvent, 4)
	sum := &api.PacketSummary{
		L3: &api.Pair{Src: "10.244.1.7", Dst: "10.244.2.9"}, L4: &api.Pair{Src: "1234", Dst: "80"}, Proto: "tcp", Info: "SYN",
		Text: "10.244.1.7:1234 -> 10.244.2.9:80 tcp SYN",
	}
	ch <- api.MonitorEvent{
		Type: api.MonitorTrace, Mark: "0x1234", ObservationPoint: "to-endpoint", State: "new", Interface: "lxc0123456789ab",
		IfIndex: 9, Source: 12, DstID: 13, SrcLabel: 6040, DstLabel: 1, Summary: sum, Time: time.Unix(1700000000, 5000).UTC(),
		Bytes: 74, SrcPod: "default/backend1-0",
	}
	ch <- api.MonitorEvent{
		Type: api.MonitorDrop, Mark: "0x99", Reason: "Policy denied", ReasonCode: 133, File: "flow.h", Line: 77,
		IfIndex: 9, Source: 20, DstID: 21, SrcLabel: 2, DstLabel: 6040, Summary: sum,
		Data: []byte("the first bytes of a packet"),
	}
	ch <- api.MonitorEvent{Type: api.MonitorLost, Lost: 5}
	close(ch)
	return ch
}

// serve runs an agent's API on a socket of its own and returns the path.
func serve(t *testing.T, ready error, failing string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "a.sock")
	now := time.Now()
	src := rest.Sources{
		Settings: rest.Settings{
			NodeName: "n1", ClusterName: "kubernetes", IPv4: true, RoutingMode: "tunnel", TunnelProtocol: "vxlan",
			MasqueradeIPv4: true, AttachMode: "TCX",
			Options: map[string]string{"tunnel-port": "8472", "debug": "false"},
		},
		Tables:               tables(),
		Ready:                func() error { return ready },
		KubeProxyReplacement: kubeProxyReplacement, Services: func() ([]api.Service, error) { return services(), nil },
		FlushFlows: func() (uint64, error) { return 42, nil },
		Attachments: func() api.AttachmentStatus {
			return api.AttachmentStatus{Generation: "0123456789abcdef", Devices: 12, Sockets: 8, Foreign: 1, Repairs: 2, LastAudit: now}
		},
		Probe: func() api.Status { return api.Status{State: api.StateOk, Msg: "IPv4 and IPv6, 12s ago"} },
		Kubernetes: func() api.K8sStatus {
			return api.K8sStatus{State: api.StateOk, Msg: "1.36 (v1.36.3) [linux/amd64]", APIVersions: []string{"core/v1::Pods", "cilium/v2::CiliumNode"}}
		},
		IPAM: func() api.IPAMStatus {
			return api.IPAMStatus{Status: "IPv4: 3/254 allocated from 10.244.1.0/24, ", Allocations: map[string]string{
				"10.244.1.7": "default/backend1-0", "10.244.1.1": "router", "10.244.1.10": "default/x",
			}}
		},
		CNIFile: func() api.Status {
			return api.Status{State: api.StateOk, Msg: "successfully wrote CNI configuration file to /host/etc/cni/net.d/05-cilium.conflist"}
		},
		Controllers: func() []api.Controller {
			out := []api.Controller{{Name: "addresses", Status: api.ControllerStatus{SuccessCount: 4, LastSuccessTimestamp: now.Add(-90 * time.Second)}}}
			if failing != "" {
				out = append(out, api.Controller{Name: "routes", Status: api.ControllerStatus{ConsecutiveFailureCount: 3, FailureCount: 3, LastFailureMsg: failing}})
			}
			return out
		},
		Maps: fakeMaps{}, Datapath: func() *api.DatapathStatus {
			return &api.DatapathStatus{
				MTU: &api.MTUStatus{Underlay: 1500, Pod: 1450},
				Attachments: []api.Attachment{
					{Device: "eth0", Direction: "ingress", Program: "nd_from", State: api.AttachmentOK, Others: []string{"program 17 (tcx)"}},
					{Device: "lxc0123456789ab", Direction: "egress", Owner: "default/a", Program: "pod_to", State: api.AttachmentMissing},
				},
			}
		}, Events: fakeEvents{},
		Traffic: func() ([]api.TrafficCount, error) {
			return []api.TrafficCount{
				{Ingress: true, Packets: 5, Bytes: 500},
				{Reason: "Policy denied", Ingress: true, Packets: 1, Bytes: 60},
				{Reason: "Policy denied", Ingress: true, Packets: 2, Bytes: 162},
			}, nil
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rest.New(src).ListenAndServe(ctx, socket) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("server: %v", err)
		}
	})
	for {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
			return socket
		}
		if !errors.Is(err, fs.ErrNotExist) {
			select {
			case err := <-done:
				t.Fatal(err)
			default:
			}
		}
		time.Sleep(time.Millisecond)
	}
}

func run(socket string, args ...string) (out, errOut string, code int) {
	var o, e bytes.Buffer
	code = Main(World{Out: &o, Err: &e, Args: args, Getenv: func(k string) string {
		if k == api.SocketEnv {
			return "unix://" + socket
		}
		return ""
	}})
	return o.String(), e.String(), code
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	p := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(p, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (run with -update to accept):\n%s\nwant:\n%s", name, got, want)
	}
}

func TestOutputs(t *testing.T) {
	socket := serve(t, nil, "")
	for name, cmd := range map[string]string{
		"status":             "status",
		"status-verbose":     "status --verbose",
		"status-brief":       "status --brief",
		"identity-list":      "identity list",
		"identity-app":       "identity list k8s:app=backend1 -o json",
		"identity-endpoints": "identity list --endpoints",
		"identity-get":       "identity get 7",
		"endpoint-list":      "endpoint list",
		"endpoint-get":       "endpoint get pod-name:default/backend1-0",
		"endpoint-list-json": "endpoint list -o json",
		"endpoint-list-bare": "endpoint list --no-headers",
		"identity-yaml":      "identity get --label k8s:app=backend1 -o yaml",
		"ip-list":            "ip list -v",
		"ip-list-numeric":    "ip list -n",
		"ip-list-labels":     "ip list",
		"ip-list-json":       "ip list -o json",
		"node-list-json":     "node list -o json",
		"bpf-endpoint":       "bpf endpoint list",
		"bpf-tunnel":         "bpf tunnel list",
		"bpf-frag":           "bpf frag list",
		"bpf-lb-frontends":   "bpf lb list --frontends",
		"bpf-lb-backends":    "bpf lb list --backends",
		"bpf-lb-revnat":      "bpf lb list --revnat",
		"bpf-lb-sources":     "bpf lb list --source-ranges",
		"bpf-lb-affinity":    "bpf lb list --affinity",
		"bpf-lb-maglev":      "bpf lb maglev list",
		"bpf-lb-maglev-get":  "bpf lb maglev get 1 -o json",
		"bpf-nat":            "bpf nat list",
		"bpf-nat-json":       "bpf nat list -o json",
		"bpf-ct-diff":        "bpf ct list -d",
		"bpf-ct-flush":       "bpf ct flush global",
		"service-get":        "service get 2",
		"service-named":      "service list -n default --name web -o jsonpath={[*].spec.frontend-address.port}",
		"bpf-ct-json":        "bpf ct list global -o json",
		"bpf-metrics-json":   "bpf metrics list -o json",
		"metrics-json":       "metrics list -p ^cilium_forward_count -o json",
		"monitor-json":       "monitor -j --to 21",
		"monitor-related":    "monitor --related-to 20 -vv",
		"service-list":       "service list",
		"service-list-json":  "service list -o json",
		"node-list":          "node list",
		"map-list":           "map list",
		"map-get":            "map get addr",
		"bpf-ipcache":        "bpf ipcache list",
		"bpf-ipcache-get":    "bpf ipcache get 10.244.2.9",
		"bpf-lb":             "bpf lb list",
		"bpf-lb-json":        "bpf lb list -o json",
		"bpf-ct":             "bpf ct list global",
		"bpf-metrics":        "bpf metrics list",
		"config":             "config",
		"metrics-drop":       "metrics list -p ^cilium_(drop|forward)",
		"monitor":            "monitor",
		"monitor-drop":       "monitor -t drop -n",
		"monitor-from":       "monitor --from 12 -v",
	} {
		t.Run(name, func(t *testing.T) {
			out, errOut, code := run(socket, strings.Fields(cmd)...)
			if strings.HasPrefix(name, "monitor") {
				// The test's source ends by itself, which a real one does not.
				if code != 1 || !strings.Contains(errOut, "closed the stream") {
					t.Errorf("exit %d: %s", code, errOut)
				}
			} else if code != 0 {
				t.Errorf("exit %d: %s", code, errOut)
			}
			golden(t, name, out)
		})
	}
}

// TestStatusJSON has every key that clients of Cilium read, with the values they know.
func TestStatusJSON(t *testing.T) {
	socket := serve(t, nil, "no such device")
	out, errOut, code := run(socket, "status", "-o", "json")
	var st any
	if err := json.Unmarshal([]byte(out), &st); err != nil || code != 0 {
		t.Fatalf("exit %d, %v: %s", code, err, errOut)
	}
	for path, want := range map[string]any{
		"cilium.state": "Ok", "kubernetes.state": "Ok", "kubernetes.k8s-api-versions.0": "core/v1::Pods", "kvstore.state": "Disabled",
		"cni-chaining.mode": "none", "cni-file.state": "Ok", "host-firewall.mode": "Disabled", "encryption.mode": "Disabled",
		"hubble.state": "Disabled", "attach-mode": "TCX", "datapath-mode": "veth", "configured-datapath-mode": "veth",
		"kube-proxy-replacement.mode": "True", "kube-proxy-replacement.features.socketLB.enabled": true,
		"kube-proxy-replacement.features.bpfSocketLBHostnsOnly": false, "kube-proxy-replacement.features.nodePort.enabled": true, "kube-proxy-replacement.features.nodePort.portMin": 30000.0,
		"kube-proxy-replacement.features.nodePort.acceleration": "Disabled", "kube-proxy-replacement.features.hostReachableServices.protocols.0": "TCP",
		"kube-proxy-replacement.features.gracefulTermination.enabled": true, "kube-proxy-replacement.features.nat46X64.enabled": false,
		"kube-proxy-replacement.features.externalIPs.enabled": true, "kube-proxy-replacement.features.hostPort.enabled": true,
		"kube-proxy-replacement.features.sessionAffinity.enabled": true, "kube-proxy-replacement.features.socketLBTracing.enabled": false,
		"kube-proxy-replacement.deviceList.0.name": "eth0", "kube-proxy-replacement.deviceList.0.ip.0": "172.18.0.2",
		"kube-proxy-replacement.directRoutingDevice": "eth0", "kube-proxy-replacement.devices.0": "eth0",
		"masquerading.mode": "BPF", "masquerading.enabledProtocols.ipv4": true, "masquerading.enabled": true,
		"routing.inter-host-routing-mode": "Tunnel", "routing.intra-host-routing-mode": "BPF", "routing.tunnel-protocol": "vxlan",
		"identity-range.min-identity": 256.0, "identity-range.max-identity": 65535.0, "ipam.allocations.10\\.244\\.1\\.1": "router",
		"nodeMonitor.cpus": 2.0, "nodeMonitor.npages": 512.0, "nodeMonitor.pagesize": 4096.0, "nodeMonitor.lost": 0.0,
		"cluster.self": "kubernetes/n1", "cluster.nodes.0.name": "kubernetes/n1", "cluster.nodes.0.primary-address.ipv4.ip": "172.18.0.2",
		"cluster.nodes.0.primary-address.ipv4.alloc-range": "10.244.1.0/24", "bandwidth-manager.enabled": false, "clock-source.mode": "ktime",
		"bpf-maps.maps.0.name": "addr", "bpf-maps.maps.0.size": 524288.0, "ipv4-big-tcp.enabled": false, "srv6.enabled": false,
		"controllers.1.name": "routes", "controllers.1.status.consecutive-failure-count": 3.0, "controllers.1.status.last-failure-msg": "no such device",
		"controllers.0.status.success-count": 4.0,
	} {
		if got := follow(st, path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	if got := follow(st, "proxy"); got != nil {
		t.Errorf("a proxy is shown: %v", got)
	}
	out, _, code = run(socket, "status", "-o", "json", "--endpoints")
	var r api.NodeReport
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 || len(r.Endpoints) != 2 || r.Cilium == nil {
		t.Errorf("with endpoints: exit %d, %v", code, err)
	}
}

// follow walks a path of keys and indices; a dot inside of a key is written as \.
func follow(v any, path string) any {
	for _, p := range strings.Split(strings.ReplaceAll(path, `\.`, "\x00"), ".") {
		p = strings.ReplaceAll(p, "\x00", ".")
		switch x := v.(type) {
		case map[string]any:
			v = x[p]
		case []any:
			i, err := strconv.Atoi(p)
			if err != nil || i >= len(x) {
				return nil
			}
			v = x[i]
		default:
			return nil
		}
	}
	return v
}

// TestStatusFlags show what they say.
func TestStatusFlags(t *testing.T) {
	socket := serve(t, nil, "")
	for flag, want := range map[string]string{
		"--all-addresses": "\n  10.244.1.7 (default/backend1-0)\n", "--all-controllers": "\n  addresses ", "--all-nodes": "kubernetes/n2 ",
		"--all-redirects": "Proxy Status:            No managed proxy redirect\n", "--all-clusters": "ClusterMesh:             0/0 remote clusters ready",
	} {
		if out, errOut, code := run(socket, "status", flag); code != 0 || !strings.Contains(out, want) {
			t.Errorf("%s: exit %d, %s lacks %q:\n%s", flag, code, errOut, want, out)
		}
	}
}

func TestVersionLines(t *testing.T) {
	out, _, code := run(serve(t, nil, ""), "version")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	want := api.CiliumVersion + " (Lash " + api.Version + ")"
	if code != 0 || len(lines) != 2 || !strings.HasPrefix(lines[0], "Client: "+want) || !strings.HasPrefix(lines[1], "Daemon: "+want) {
		t.Errorf("exit %d: %s", code, out)
	}
	out, errOut, code := run(filepath.Join(t.TempDir(), "none"), "version")
	if code != 1 || !strings.HasPrefix(out, "Client: ") || !strings.Contains(errOut, "version of the daemon: daemon unreachable") {
		t.Errorf("without an agent: exit %d, %q, %q", code, out, errOut)
	}
}

func TestJSONPathGivesTheVersion(t *testing.T) {
	out, errOut, code := run(serve(t, nil, ""), "version", "-o", "jsonpath={$.Daemon.Version}")
	if strings.TrimSpace(out) != api.CiliumVersion || code != 0 {
		t.Errorf("%q, exit %d: %s", out, code, errOut)
	}
}

func TestAnUnhealthyAgentExits1(t *testing.T) {
	socket := serve(t, errors.New("programs are not loaded"), "no such device")
	out, _, code := run(socket, "status", "--brief")
	if want := "error in cilium: " + api.CiliumVersion + " (Lash " + api.Version + "): programs are not loaded\n"; out != want || code != 1 {
		t.Errorf("brief: %q, exit %d", out, code)
	}
	out, _, code = run(socket, "status")
	if code != 1 || !strings.Contains(out, "Controller Status:       1/2 healthy") || !strings.Contains(out, "no such device") {
		t.Errorf("exit %d:\n%s", code, out)
	}
}

func TestWithoutAnAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none.sock")
	out, _, code := run(socket, "status", "--brief")
	if out != "cilium: daemon unreachable\n" || code != 1 {
		t.Errorf("%q, exit %d", out, code)
	}
	_, errOut, code := run(socket, "endpoint", "list")
	if !strings.Contains(errOut, "daemon unreachable") || code != 1 {
		t.Errorf("%q, exit %d", errOut, code)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	socket := serve(t, nil, "")
	for cmd, want := range map[string]string{
		"status --all-health":              "nodes do not probe each other yet",
		"status --endpoints":               "--endpoints needs -o",
		"identity get --label x=y":         "no identity has the labels x=y",
		"bpf lb maglev get 2":              "service 2 has no Maglev table",
		"bpf lb maglev get web":            `invalid service id "web"`,
		"service get 9":                    "no service 9",
		"service get web":                  `invalid service id "web"`,
		"bpf ct flush 12":                  "one connection table for all endpoints",
		"bpf lb list --revnat --frontends": "none of the others can be",
		"bpf ct list 12":                   "one connection table for all endpoints",
		"monitor -t l7":                    `no events of type "l7"`,
		"monitor -t nonsense":              `unknown type "nonsense"`,
		"identity get 4711":                "no identity 4711",
		"identity get x":                   `invalid identity "x"`,
		"endpoint get 99":                  "no endpoint 99",
		"endpoint get foo:1":               `unknown endpoint prefix "foo"`,
		"map get nat":                      "no map nat",
		"status -o xml":                    `invalid output "xml"`,
		"bpf ipcache get 300.1.1":          "invalid address",
		"config debug=true":                "options cannot be set at run time",
		"metrics list -p (":                "invalid pattern",
		"identity get 1 --label x":         "give either an identity or --label",
	} {
		_, errOut, code := run(socket, strings.Fields(cmd)...)
		if code != 1 || !strings.Contains(errOut, want) {
			t.Errorf("%s: exit %d, %q; want %q", cmd, code, errOut, want)
		}
	}
}
