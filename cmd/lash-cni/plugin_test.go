// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"

	"lash.internal/lash/agent/cni/wire"
)

// TestMain lets the test binary be the plugin.
func TestMain(m *testing.M) {
	if os.Getenv("LASH_TEST_PLUGIN") != "" {
		main()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// bench is a node namespace with a pod namespace, and an agent that answers what it is told.
type bench struct {
	t      *testing.T
	dir    string
	node   netns.NsHandle
	podNS  string
	agent  *http.Server
	called []string
	refuse *wire.Error // the agent's answer to ADD
}

func newBench(t *testing.T) *bench {
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	runtime.LockOSThread() // the test's thread stays in the node's namespace and ends with the test
	b := &bench{t: t, dir: t.TempDir()}
	pod, err := netns.New()
	if err != nil {
		t.Skipf("no network namespaces: %v", err)
	}
	b.podNS = filepath.Join("/proc", itoa(os.Getpid()), "fd", itoa(int(pod)))
	if b.node, err = netns.New(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pod.Close(); _ = b.node.Close() })
	return b
}

func itoa(n int) string {
	body, _ := json.Marshal(n)
	return string(body)
}

// serve starts the agent; it makes the pair on ADD.
func (b *bench) serve() {
	b.t.Helper()
	itf := wire.Interface{EndpointID: 7, HostName: "lxctest", PeerName: "tmptest", HostMAC: "02:00:00:00:00:01", PodMAC: "02:00:00:00:00:02", MTU: 1500, RouteMTU: 1450}
	if err := json.Unmarshal([]byte(`[{"ip":"10.0.1.2","gateway":"10.0.1.1"},{"ip":"fd00::2","gateway":"fd00::1"}]`), &itf.Addresses); err != nil {
		b.t.Fatal(err)
	}
	nl, err := netlink.NewHandleAt(b.node)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(nl.Close)
	host, _ := net.ParseMAC(itf.HostMAC)
	peer, _ := net.ParseMAC(itf.PodMAC)
	l, err := net.Listen("unix", filepath.Join(b.dir, "cilium.sock"))
	if err != nil {
		b.t.Fatal(err)
	}
	b.agent = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.called = append(b.called, r.URL.Path)
		if b.refuse != nil && r.URL.Path == wire.PathAdd {
			w.WriteHeader(http.StatusInternalServerError)
			_ = json.NewEncoder(w).Encode(b.refuse)
			return
		}
		if _, err := nl.LinkByName(itf.HostName); err != nil && r.URL.Path == wire.PathAdd {
			_ = nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: itf.HostName, HardwareAddr: host, Flags: net.FlagUp}, PeerName: itf.PeerName, PeerHardwareAddr: peer})
		}
		_ = json.NewEncoder(w).Encode(itf)
	})}
	go func() { _ = b.agent.Serve(l) }()
	b.t.Cleanup(func() { _ = b.agent.Close() })
}

// run calls the plugin as a runtime does and returns what it prints.
func (b *bench) run(command, extra string) (string, error) {
	b.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "LASH_TEST_PLUGIN=1", "LASH_CNI_SOCKET="+filepath.Join(b.dir, "cilium.sock"), "CNI_COMMAND="+command,
		"CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS="+b.podNS, "CNI_PATH=/x", "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p")
	cmd.Stdin = strings.NewReader(`{"cniVersion":"1.1.0","name":"cilium","type":"cilium-cni"` + extra + `}`)
	out, err := cmd.Output()
	return string(out), err
}

func TestAddCheckDel(t *testing.T) {
	b := newBench(t)
	b.serve()
	first, err := b.run("ADD", "")
	if err != nil {
		t.Fatalf("ADD: %s", first)
	}
	for _, want := range []string{`"sandbox": "` + b.podNS, `"address": "10.0.1.2/32"`, `"address": "fd00::2/128"`, `"mac": "02:00:00:00:00:02"`, `"mtu": 1450`, `"cniVersion": "1.1.0"`} {
		if !strings.Contains(first, want) {
			t.Errorf("result lacks %s:\n%s", want, first)
		}
	}
	if again, err := b.run("ADD", ""); err != nil || again != first {
		t.Errorf("repeated ADD: %v\n%s", err, again)
	}
	if out, err := b.run("CHECK", `,"prevResult":`+first); err != nil {
		t.Errorf("CHECK: %s", out)
	}
	pod, err := openNetns(b.podNS)
	if err != nil {
		t.Fatal(err)
	}
	defer pod.close()
	if err := pod.remove("eth0"); err != nil {
		t.Fatal(err)
	}
	if out, err := b.run("CHECK", `,"prevResult":`+first); err == nil || !strings.Contains(out, "interface eth0 in the pod") {
		t.Errorf("CHECK of a broken pod: %v %s", err, out)
	}
	if out, err := b.run("DEL", ""); err != nil {
		t.Errorf("DEL: %s", out)
	}
	if got := strings.Join(b.called, " "); got != strings.Join([]string{wire.PathAdd, wire.PathReady, wire.PathAdd, wire.PathReady, wire.PathCheck, wire.PathCheck, wire.PathDel}, " ") {
		t.Errorf("agent was asked %s", got)
	}
}

// TestAddSaysWhatTheAgentSays: the runtime shows code and text in the events of the pod.
func TestAddSaysWhatTheAgentSays(t *testing.T) {
	b := newBench(t)
	b.serve()
	for _, c := range []struct {
		refuse wire.Error
		want   string
	}{
		{
			wire.Error{Code: wire.CodePool, Message: "no address for pod default/p: address pool is exhausted: all 254 IPv4 addresses of 10.0.1.0/24 are in use"},
			`{"cniVersion":"1.1.0","code":101,"msg":"no address for pod default/p: address pool is exhausted: all 254 IPv4 addresses of 10.0.1.0/24 are in use"}`,
		},
		{
			wire.Error{Code: wire.CodeTryAgain, Message: "pod default/p does not exist"},
			`{"cniVersion":"1.1.0","code":11,"msg":"pod default/p does not exist"}`,
		},
	} {
		b.refuse = &c.refuse
		out, err := b.run("ADD", "")
		var flat bytes.Buffer
		if cerr := json.Compact(&flat, []byte(out)); cerr != nil || err == nil || flat.String() != c.want {
			t.Errorf("%v, %v:\n%s\nwant %s", err, cerr, flat.String(), c.want)
		}
	}
	if out, err := b.run("ADD", `,"prevResult":[`); err == nil || !strings.Contains(out, `"code": 6`) {
		t.Errorf("a configuration that is no JSON: %v %s", err, out)
	}
}

func TestDelWithoutAgentIsQueued(t *testing.T) {
	b := newBench(t)
	if out, err := b.run("DEL", ""); err != nil {
		t.Fatalf("DEL: %s", out)
	}
	files, _ := filepath.Glob(filepath.Join(b.dir, "deleteQueue", "*"+wire.QueueSuffix))
	if len(files) != 1 {
		t.Fatalf("queue %v", files)
	}
	var a wire.Attachment
	body, _ := os.ReadFile(files[0])
	if err := json.Unmarshal(body, &a); err != nil || a.ContainerID != "c1" || a.IfName != "eth0" {
		t.Errorf("queued %s, %v", body, err)
	}
}
