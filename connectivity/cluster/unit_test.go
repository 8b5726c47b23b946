// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"lash.internal/lash/install/image"
)

func TestOptions(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    Options
		want string // part of the error, empty for none
	}{
		{"defaults", Options{}, ""},
		{"dual", Options{IPFamily: "dual"}, ""},
		{"six", Options{IPFamily: "ipv6"}, ""},
		{"own ranges", Options{PodCIDRs: []string{"10.9.0.0/22"}, ServiceCIDRs: []string{"10.8.0.0/16"}}, ""},
		{"name", Options{Name: "A_b"}, "lower-case"},
		{"proxy", Options{KubeProxy: "ipvs"}, "none, iptables, nftables"},
		{"cni", Options{CNI: "calico"}, "none, ptp"},
		{"family", Options{IPFamily: "v4"}, "ipv4, ipv6, dual"},
		{"workers", Options{Workers: -1}, "0 to 50"},
		{"overlap", Options{PodCIDRs: []string{"10.96.0.0/16"}}, "overlap"},
		{"host bits", Options{PodCIDRs: []string{"10.244.1.0/16"}}, "did you mean 10.244.0.0/16"},
		{"wrong family", Options{PodCIDRs: []string{"fd00::/56"}}, "family ipv4 needs"},
		{"not a CIDR", Options{ServiceCIDRs: []string{"ten"}}, "service-cidr"},
		{"one of two", Options{IPFamily: "dual", PodCIDRs: []string{"10.244.0.0/16"}}, "exactly one CIDR"},
		{"huge service range", Options{IPFamily: "ipv6", ServiceCIDRs: []string{"fd00:10:96::/64"}}, "20 host bits"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.o.setDefaults()
			err := tc.o.validate()
			if tc.want == "" && err != nil {
				t.Fatal(err)
			}
			if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || !errors.Is(err, ErrBadOption)) {
				t.Fatalf("got %v, want an option error with %q", err, tc.want)
			}
		})
	}
}

func TestFreeIndex(t *testing.T) {
	clusters := []*Cluster{{Index: 0, Nodes: []Node{{}}}, {Index: 1, Nodes: []Node{{}}}, {Index: 3}}
	taken := []netip.Prefix{netip.MustParsePrefix("172.31.2.0/25")}
	got, err := freeIndex(clusters, taken, true, true)
	if err != nil || got != 3 {
		t.Errorf("got %d %v, want 3: 0 and 1 are used, 2 is routed, and a cluster without nodes has no subnet", got, err)
	}
	if _, err := freeIndex(nil, []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")}, true, false); err == nil {
		t.Error("found a subnet inside a network of the machine")
	}
}

func TestPlan(t *testing.T) {
	c := &Cluster{Name: "x", Subnets: nodeSubnets(7, true, true)}
	c.plan(2)
	var got []string
	for _, n := range c.Nodes {
		got = append(got, n.Name+" "+n.Addresses[0].String()+" "+n.Addresses[1].String())
	}
	want := []string{
		"lash-x-control-plane 172.31.7.11 fd6c:6173:6800:7::b",
		"lash-x-worker 172.31.7.12 fd6c:6173:6800:7::c",
		"lash-x-worker2 172.31.7.13 fd6c:6173:6800:7::d",
		"lash-x-external 172.31.7.200 fd6c:6173:6800:7::c8",
		"lash-x-fabric 172.31.7.1 fd6c:6173:6800:7::1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	for _, name := range []string{"worker2", "lash-x-worker2"} {
		if n, err := c.Node(name); err != nil || n.Name != "lash-x-worker2" {
			t.Errorf("node %s: %v %v", name, n, err)
		}
	}
	if _, err := c.Node("worker3"); err == nil || !strings.Contains(err.Error(), "external") {
		t.Errorf("unknown node: %v, want the names that there are", err)
	}
}

func TestNodeMask(t *testing.T) {
	for cidr, want := range map[string]int{"10.0.0.0/8": 24, "10.0.0.0/22": 26, "fd00::/56": 64, "fd00::/32": 48, "fd00::/96": 104} {
		got, err := nodeMask(netip.MustParsePrefix(cidr))
		if err != nil || got != want {
			t.Errorf("%s: got %d %v, want %d", cidr, got, err, want)
		}
	}
	if _, err := nodeMask(netip.MustParsePrefix("10.0.0.0/30")); err == nil {
		t.Error("a /30 has room for no node")
	}
}

func TestCertificates(t *testing.T) {
	c := &Cluster{Name: "x", Subnets: nodeSubnets(0, true, true), Services: []string{"10.96.0.0/12", "fd00:10:96::/112"}}
	c.plan(0)
	ca, err := newAuthority("kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	dns, addrs := c.apiNames()
	pair, err := ca.server("kube-apiserver", dns, addrs)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca.pair.cert) {
		t.Fatal("no authority")
	}
	cert := parseCert(t, pair.cert)
	for _, name := range []string{
		"127.0.0.1", "::1", "172.31.0.11", "10.96.0.1", "fd00:10:96::1", "kubernetes.default.svc.cluster.local", "lash-x-control-plane",
	} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("server certificate as %s: %v", name, err)
		}
	}
	user, err := ca.client("system:node:n", "system:nodes")
	if err != nil {
		t.Fatal(err)
	}
	cert = parseCert(t, user.cert)
	if cert.Subject.CommonName != "system:node:n" || !slices.Equal(cert.Subject.Organization, []string{"system:nodes"}) {
		t.Errorf("client certificate is for %s", cert.Subject)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
		t.Error("a client certificate serves as a server's")
	}
}

func parseCert(t *testing.T, data []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestKubeconfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	entry := func(name string) *api.Config {
		return kubeconfigFor(name, "https://127.0.0.1:1", []byte("ca"), name, keyPair{[]byte("c"), []byte("k")})
	}
	for _, name := range []string{"other", "lash-a", "lash-b"} {
		if err := mergeKubeconfig(file, entry(name)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(current string, want ...string) {
		t.Helper()
		cfg, err := clientcmd.LoadFromFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for name := range cfg.Contexts {
			if cfg.Clusters[name] != nil && cfg.AuthInfos[name] != nil {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) || cfg.CurrentContext != current || len(cfg.Clusters) != len(want) {
			t.Errorf("contexts %q, current %q; want %q, %q", got, cfg.CurrentContext, want, current)
		}
	}
	check("lash-b", "lash-a", "lash-b", "other")
	drop := func(name string, created bool) {
		t.Helper()
		if err := dropKubeconfig(file, name, created); err != nil {
			t.Fatal(err)
		}
	}
	drop("lash-a", true)
	check("lash-b", "lash-b", "other")
	drop("lash-b", false)
	check("", "other")
	drop("lash-b", false) // again
	drop("other", true)
	if _, err := os.Stat(file); err == nil {
		t.Error("the file that was made for a cluster is left, though empty")
	}
	drop("other", true) // no file
}

func TestLedger(t *testing.T) {
	root := t.TempDir()
	if _, err := load(root, "x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v, want not found", err)
	}
	c := &Cluster{Name: "x", Phase: PhaseCreating, dir: filepath.Join(root, "x"), Subnets: nodeSubnets(1, true, false)}
	c.plan(1)
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	half, err := load(root, "x")
	if err != nil || half.Phase != PhaseDeleting {
		t.Errorf("a folder without a ledger: %v %v", half, err)
	}
	if err := c.record("lash-x-worker", "hold", os.Getpid()); err != nil {
		t.Fatal(err)
	}
	got, err := load(root, "x")
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Nodes) != 4 || got.Nodes[1].Addresses[0] != c.Nodes[1].Addresses[0] || len(got.Dead()) != 0 {
		t.Errorf("read back %+v", got)
	}
	got.Processes[0].Start++ // the pid was given to another process
	if len(got.Dead()) != 1 {
		t.Error("a process with another start time counts as ours")
	}
	if err := c.acquire(); err != nil {
		t.Fatal(err)
	}
	if err := got.acquire(); !errors.Is(err, ErrBusy) {
		t.Errorf("second lock: %v", err)
	}
	c.release()
	if err := got.acquire(); err != nil {
		t.Error(err)
	}
	got.release()
	if err := got.matches(&Options{}); !errors.Is(err, ErrHalfMade) {
		t.Errorf("half made: %v", err)
	}
	if all, err := loadAll(root); err != nil || len(all) != 1 {
		t.Errorf("list: %v %v", all, err)
	}
}

func TestMatches(t *testing.T) {
	o := Options{Workers: 1}
	o.setDefaults()
	c := &Cluster{Name: o.Name, Phase: PhaseReady, KubeProxy: "none", CNI: "none", Subnets: nodeSubnets(0, true, false), PodCIDRs: o.PodCIDRs, Services: o.ServiceCIDRs}
	c.plan(1)
	if err := c.matches(&o); err != nil {
		t.Error(err)
	}
	o.KubeProxy = "iptables"
	if err := c.matches(&o); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "kube-proxy none, not iptables") {
		t.Errorf("got %v, want the difference", err)
	}
}

func TestFindCgroups(t *testing.T) {
	hybrid := `30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 30 0:28 /a /run/cilium/cgroupv2 rw - cgroup2 cgroup2 rw`
	got, err := findCgroups(hybrid)
	if err != nil || got.unified != "/sys/fs/cgroup/unified" || !slices.Equal(got.v1, []string{"/sys/fs/cgroup/cpu"}) {
		t.Errorf("hybrid: %+v %v", got, err)
	}
	got, err = findCgroups("32 30 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw")
	if err != nil || got.unified != "/sys/fs/cgroup" || got.v1 != nil {
		t.Errorf("unified: %+v %v", got, err)
	}
	if _, err := findCgroups("1 1 0:1 / / rw - ext4 /dev/x rw"); err == nil {
		t.Error("no hierarchy, but no error")
	}
}

func TestHasVersion(t *testing.T) {
	for out, want := range map[string]bool{
		"Kubernetes v1.36.3": true,
		"Client Version: v1.36.3\nKustomize Version: v5.7.1":    true,
		"Kubernetes v1.36.30":                                   false,
		"containerd github.com/containerd/containerd v1.36.3 x": true,
		"CoreDNS-1.36.3\nlinux/amd64":                           true,
		"":                                                      false,
	} {
		if hasVersion(out, "v1.36.3") != want {
			t.Errorf("%q: want %t", out, want)
		}
	}
}

// TestPinned reads the version of every product out of the embedded modules.
func TestPinned(t *testing.T) {
	for _, p := range products {
		if v, err := pinnedVersion(p.folder, p.module); err != nil || !strings.HasPrefix(v, "v") {
			t.Errorf("%s: %q %v", p.name, v, err)
		}
	}
}

func TestLibraries(t *testing.T) {
	path, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no shell to look at")
	}
	libs, err := Libraries([]image.File{{Path: "/bin/sh", Source: path}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(libs, func(l image.File) bool {
		return strings.Contains(l.Path, "libc.so") || strings.Contains(l.Path, "ld-")
	}) {
		t.Errorf("a shell needs %+v, no C library among them", libs)
	}
}
