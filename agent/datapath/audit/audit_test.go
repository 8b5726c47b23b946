// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	nl "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/api"
)

// options look below a folder that stands for the node's file system.
func options(root string) Options {
	return Options{
		Root: root, BPFRoot: "/sys/fs/bpf", CgroupRoot: "/run/cilium/cgroupv2", CNIConf: "/etc/cni/net.d", CNIBin: "/opt/cni/bin", CNIResults: "/var/lib/cni/results",
		RunDir: "/var/run/cilium", StateDir: "/run/lash", KeepDir: "/var/lib/lash-agent", Mounted: func(string) ([]string, error) { return nil, nil },
	}
}

// nodeRoot is an empty file system of a node.
func nodeRoot(t *testing.T) string {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"run", "var", "etc/cni/net.d", "opt/cni/bin"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/run", filepath.Join(root, "var/run")); err != nil {
		t.Fatal(err)
	}
	return root
}

func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// ours lists the traces as "kind name".
func ours(a api.NodeAudit, kinds ...string) []string {
	var out []string
	for _, i := range a.Traces() {
		if len(kinds) == 0 || slices.Contains(kinds, i.Kind) {
			out = append(out, i.Kind+" "+i.Name)
		}
	}
	return out
}

func TestFilesOfOursAndOfOthers(t *testing.T) {
	root := nodeRoot(t)
	if got := ours(Take(options(root)), "file"); len(got) > 0 {
		t.Errorf("an empty node has %q", got)
	}
	write(t, root, map[string]string{
		"etc/cni/net.d/05-cilium.conflist": `{"plugins":[{"type":"cilium-cni"}]}`, "etc/cni/net.d/10-other.conflist": `{"plugins":[{"type":"ptp"}]}`,
		"opt/cni/bin/cilium-cni": "x", "opt/cni/bin/.cilium-cni-123": "half", "opt/cni/bin/ptp": "x",
		"run/cilium/cilium.sock": "", "run/lash/endpoints/1": "{}", "run/other": "",
		"var/lib/lash-agent/api-servers.json": "{}",
		"var/lib/cni/results/cilium-0-eth0":   "", "var/lib/cni/results/other-0-eth0": "",
	})
	want := []string{
		"file /etc/cni/net.d/05-cilium.conflist", "file /opt/cni/bin/.cilium-cni-123", "file /opt/cni/bin/cilium-cni",
		"file /run/cilium/", "file /run/cilium/cilium.sock", "file /run/lash/", "file /run/lash/endpoints/", "file /run/lash/endpoints/1",
		"file /var/lib/cni/results/cilium-0-eth0", "file /var/lib/lash-agent/", "file /var/lib/lash-agent/api-servers.json",
	}
	o := options(root)
	if got := ours(Take(o), "file"); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	o.Walk = []string{"/etc"}
	all := Take(o)
	if !slices.ContainsFunc(all.Items, func(i api.NodeItem) bool { return i.Name == "/etc/cni/net.d/10-other.conflist" && i.Ours == "" }) {
		t.Error("a file of others is not listed")
	}
	before := all
	write(t, root, map[string]string{"etc/cni/net.d/10-other.conflist": "changed"})
	if slices.Equal(before.Items, Take(o).Items) {
		t.Error("a file that was changed looks the same")
	}
}

// TestSysctlsThatWereNotGivenBack compares the ledger with what is.
func TestSysctlsThatWereNotGivenBack(t *testing.T) {
	root := nodeRoot(t)
	now, err := os.ReadFile("/proc/sys/net/ipv4/ip_default_ttl")
	if err != nil {
		t.Skip(err)
	}
	write(t, root, map[string]string{"run/lash/sysctl.json": `{"ipv4/ip_default_ttl":"` + strings.TrimSpace(string(now)) + `","ipv4/tcp_syncookies":"7"}`})
	found := Take(options(root))
	if got := ours(found, "sysctl"); !slices.Equal(got, []string{"sysctl net/ipv4/tcp_syncookies"}) {
		t.Errorf("got %q", got)
	}
	write(t, root, map[string]string{"run/lash/sysctl.json": `half`})
	if found = Take(options(root)); len(found.Problems) != 1 || !strings.Contains(found.Problems[0], "sysctls that Lash has changed") {
		t.Errorf("a broken ledger: %q", found.Problems)
	}
}

// TestNetwork makes what Lash makes, and the same of others, in a namespace of its own.
func TestNetwork(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if _, err := netns.New(); err != nil {
		t.Skipf("no new network namespace: %v", err)
	}
	o := options(nodeRoot(t))
	empty := Take(o)
	if got := ours(empty); len(got) > 0 || len(empty.Problems) > 0 {
		t.Errorf("an empty namespace has %q, problems %q", got, empty.Problems)
	}
	for _, names := range [][2]string{{"cilium_host", "cilium_net"}, {"lxc0123456789ab", "p"}, {"lxcmine", "q"}, {"eth0", "r"}} {
		if err := nl.LinkAdd(&nl.Veth{LinkAttrs: nl.LinkAttrs{Name: names[0]}, PeerName: names[1]}); err != nil {
			t.Fatal(err)
		}
	}
	eth0, err := nl.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := nl.ParseAddr("192.0.2.1/24")
	if err := errors.Join(nl.LinkSetUp(eth0), nl.AddrAdd(eth0, addr)); err != nil {
		t.Fatal(err)
	}
	route := func(dst string, proto nl.RouteProtocol) {
		to, _ := nl.ParseIPNet(dst)
		if err := nl.RouteAdd(&nl.Route{Dst: to, LinkIndex: eth0.Attrs().Index, Protocol: proto, Scope: nl.SCOPE_LINK, Table: unix.RT_TABLE_MAIN}); err != nil {
			t.Fatal(err)
		}
	}
	route("198.51.100.0/24", 76)
	route("203.0.113.0/24", 4)
	want := []string{"device cilium_host", "device cilium_net", "device lxc0123456789ab", "route table 254 198.51.100.0/24 dev eth0"}
	if got := ours(Take(o)); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, name := range []string{"cilium_host", "lxc0123456789ab", "lxcmine", "eth0"} {
		l, err := nl.LinkByName(name)
		if err == nil {
			err = nl.LinkDel(l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if after := Take(o); !slices.Equal(after.Items, empty.Items) {
		t.Errorf("what was removed still shows:\n%v\n%v", after.Items, empty.Items)
	}
}

func TestOwnProgramsGoByWholeAndShortNames(t *testing.T) {
	own, err := ownPrograms()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"nd_from", "pod_to", "sock_getpeername4", "sock_getpeernam"} {
		if !own[name] {
			t.Errorf("%s is not known as ours", name)
		}
	}
	if own["cil_from_netdev"] || own[""] {
		t.Error("a program of others counts as ours")
	}
}

func TestCommandWritesJSON(t *testing.T) {
	var out, errOut bytes.Buffer
	w := World{Out: &out, Err: &errOut, Mounted: func(string) ([]string, error) { return nil, errors.New("half a file") }}
	if code := mainOf(w, "--root", nodeRoot(t)); code != 0 {
		t.Fatal(errOut.String())
	}
	var found api.NodeAudit
	if err := json.Unmarshal(out.Bytes(), &found); err != nil || !slices.Contains(found.Problems, "mounts of Lash: half a file") {
		t.Errorf("%v, %+v", err, found)
	}
	if code := mainOf(w, "x"); code != 2 || !strings.Contains(errOut.String(), `takes no argument "x"`) {
		t.Errorf("code %d, %s", code, errOut.String())
	}
}

func mainOf(w World, args ...string) int { return Main(args, w) }
