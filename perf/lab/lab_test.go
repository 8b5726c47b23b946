// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lash.internal/lash/perf/netperf"
)

// TestMain is also the server and the client of the lab, when the environment says so.
func TestMain(m *testing.M) {
	switch os.Getenv("LASH_LAB_ROLE") {
	case "server":
		s := netperf.Server{}
		if err := s.Run(context.Background(), func(a net.Addr) { fmt.Println(a) }); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "client":
		r, err := netperf.Measure(context.Background(), netperf.Options{
			Test: netperf.TCPRR, Server: netip.MustParseAddrPort(os.Args[1]), Length: time.Second, CPU: -1, ServerCPU: -1,
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		_ = json.NewEncoder(os.Stdout).Encode(r)
	default:
		goleak.VerifyTestMain(m)
	}
}

func self(t *testing.T, role string, args ...string) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{"env", "LASH_LAB_ROLE=" + role, exe}, args...)
}

func TestPaths(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6=%v", v6), func(t *testing.T) {
			groups, err := GroupsOf(os.Getpid())
			if err != nil {
				t.Fatal(err)
			}
			l, err := New(t.Context(), Options{
				IPv6: v6, LocalMTU: 1400, RemoteMTU: 1500, TunnelMTU: 1420, ClientGroups: groups, ServerGroups: groups, Server: self(t, "server"),
			})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			for _, p := range []struct {
				from, to string
				tunnel   bool
				mtu      int
			}{
				{Direct1, Direct2, false, 1400},
				{Plain1, Plain2, false, 1400},
				{Plain1, Plain3, false, 1500},
				{Plain1, Plain3, true, 1420},
				{NAT1, NAT2, false, 1400},
				{NAT1, NAT3, false, 1500},
				{NAT1, NAT3, true, 1420},
			} {
				to, err := l.Addr(p.to, p.tunnel)
				if err != nil {
					t.Fatal(err)
				}
				before := tunnelled(t, l, p.from)
				out, err := l.Exec(t.Context(), p.from, self(t, "client", netip.AddrPortFrom(to, netperf.DefaultPort).String())...)
				if err != nil {
					t.Errorf("%s to %s: %v", p.from, p.to, err)
					continue
				}
				var r netperf.Result
				if err := json.Unmarshal(out, &r); err != nil {
					t.Fatal(err)
				}
				if r.PathMTU != p.mtu || r.Transactions == 0 {
					t.Errorf("%s to %s: MTU %d, want %d; %d transactions", p.from, p.to, r.PathMTU, p.mtu, r.Transactions)
				}
				if used := tunnelled(t, l, p.from) > before; used != p.tunnel {
					t.Errorf("%s to %s, tunnel %v: the VXLAN device was used: %v", p.from, p.to, p.tunnel, used)
				}
			}
			for _, n := range PlainNodes {
				if k, err := l.Tracked(t.Context(), n); err != nil || k != 0 {
					t.Errorf("%s tracks %d connections, %v", n, k, err)
				}
			}
			for _, n := range NATNodes {
				if k, err := l.Tracked(t.Context(), n); err != nil || k == 0 {
					t.Errorf("%s tracks %d connections, %v", n, k, err)
				}
			}
		})
	}
}

// tunnelled is how many packets the VXLAN device of a pod's node has sent; none without a node.
func tunnelled(t *testing.T, l *Lab, pod string) int {
	t.Helper()
	for _, n := range nodes {
		if !slices.Contains(n.pods, pod) {
			continue
		}
		out, err := l.spaces[n.name].Run(t.Context(), nil, "", "ip", "-json", "-s", "link", "show", "vxlan0")
		if err != nil {
			t.Fatal(err)
		}
		var links []struct {
			Stats struct{ Tx struct{ Packets int } } `json:"stats64"`
		}
		if err := json.Unmarshal(out, &links); err != nil || len(links) != 1 {
			t.Fatalf("%s: %v", out, err)
		}
		// A few packets look for neighbours whatever the path.
		return links[0].Stats.Tx.Packets / 100
	}
	return 0
}

func TestUnknown(t *testing.T) {
	l := &Lab{}
	if _, err := l.Addr("plain-9", false); err == nil {
		t.Error("there is an address of nothing")
	}
	if _, err := l.Exec(t.Context(), "plain-9", "true"); err == nil {
		t.Error("a program ran nowhere")
	}
}

// TestServerFails wants the reason of a server that ends at once.
func TestServerFails(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	_, err := New(t.Context(), Options{LocalMTU: 1500, RemoteMTU: 1500, TunnelMTU: 1450, Server: []string{"sh", "-c", "echo no such option >&2; exit 2"}})
	if err == nil || !strings.Contains(err.Error(), "no such option") || !strings.Contains(err.Error(), Direct2) {
		t.Errorf("error %v", err)
	}
}

func TestGroupsOf(t *testing.T) {
	hybrid := `31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
42 41 0:38 /n/system /run/cilium/cgroupv2 rw - cgroup2 cgroup2 rw
`
	unified := "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	for _, c := range []struct {
		mounts, member string
		want           []string
	}{
		{
			hybrid, "4:memory:/n/kubepods/pod1\n3:devices:/n/kubepods/pod1\n1:cpu,cpuacct:/n/kubepods/pod1\n0::/n/kubepods/pod1\n",
			[]string{"/sys/fs/cgroup/memory/n/kubepods/pod1", "/sys/fs/cgroup/cpu,cpuacct/n/kubepods/pod1"},
		},
		{unified, "0::/n/kubepods/pod1\n", []string{"/sys/fs/cgroup/n/kubepods/pod1"}},
	} {
		if got, err := groupsOf(c.mounts, c.member); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q, %v; want %q", got, err, c.want)
		}
	}
	if _, err := groupsOf(unified, "nonsense"); err == nil {
		t.Error("nonsense has control groups")
	}
}
