// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	slowAPI  = "LASH_SLOW_API" // upstream address of the API server: this binary is the proxy
	slowPort = 16443
	slowMark = 0x7a7a // of the proxy's own connections
	slowness = 2 * time.Second
)

// TestMain lets the test binary be, on a node, a proxy that hands on late what the API server says.
func TestMain(m *testing.M) {
	if upstream := os.Getenv(slowAPI); upstream != "" {
		fmt.Fprintln(os.Stderr, slowProxy(upstream))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func slowProxy(upstream string) error {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(slowPort)))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	dial := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var opt error
		err := c.Control(func(fd uintptr) { opt = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, slowMark) })
		if err == nil {
			err = opt
		}
		return err
	}}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			up, err := dial.Dial("tcp", upstream)
			if err != nil {
				return
			}
			defer up.Close()
			go io.Copy(up, c)
			type piece struct {
				data []byte
				at   time.Time
			}
			pieces := make(chan piece, 4096)
			go func() {
				defer close(pieces)
				for {
					b := make([]byte, 32<<10)
					n, err := up.Read(b)
					if n > 0 {
						pieces <- piece{b[:n], time.Now().Add(slowness)}
					}
					if err != nil {
						return
					}
				}
			}()
			for p := range pieces {
				time.Sleep(time.Until(p.at))
				if _, err := c.Write(p.data); err != nil {
					return
				}
			}
		}()
	}
}

// slow makes the agent of a node hear everything from the API server late. The node's kubelet keeps
// its connection.
func (c *cluster) slow(t *testing.T, node string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	api := strings.TrimSpace(c.kubectl("get", "endpoints", "kubernetes", "-o", "jsonpath={.subsets[0].addresses[0].ip}:{.subsets[0].ports[0].port}"))
	host, port, err := net.SplitHostPort(api)
	if err != nil {
		t.Fatal(err)
	}
	ready := make([]byte, len("ready"))
	if _, err := io.ReadFull(c.begin(node, "env", slowAPI+"="+api, self), ready); err != nil {
		t.Fatalf("proxy on %s: %v", node, err)
	}
	rule := fmt.Sprintf("OUTPUT -t nat -p tcp -d %s --dport %s -m mark ! --mark %d -j DNAT --to-destination 127.0.0.1:%d", host, port, slowMark, slowPort)
	c.node(node, "sh", "-c", "iptables -A "+rule)
	t.Cleanup(func() { c.node(node, "sh", "-c", "iptables -D "+rule) })
}

// firstPackets starts pods that send one datagram each to a pod of another node, while both nodes'
// agents hear of changes two seconds late. Each has to be answered. LASH_FIRST_PACKETS is how many.
func (c *cluster) firstPackets(t *testing.T) {
	count := 20
	if s := os.Getenv("LASH_FIRST_PACKETS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		count = n
	}
	c.kubectl("delete", "pod", "server", "client", "--ignore-not-found", "--wait")
	defer c.kubectl("delete", "job,pod", "-l", "app in (traffic, first)", "--wait=false")
	c.apply(t, "traffic.yaml", nil)
	c.kubectl("wait", "--for=condition=Ready", "pod/server", "pod/client", "--timeout=60s")
	var at struct {
		Spec   struct{ NodeName string }
		Status struct{ PodIPs []struct{ IP string } }
	}
	if err := json.Unmarshal([]byte(c.kubectl("get", "pod", "server", "-o", "json")), &at); err != nil {
		t.Fatal(err)
	}
	from := strings.TrimSpace(c.kubectl("get", "pod", "client", "-o", "jsonpath={.spec.nodeName}"))
	for _, n := range []string{at.Spec.NodeName, from} {
		c.slow(t, n)
	}
	c.kubectl("-n", "kube-system", "rollout", "restart", "ds/cilium")
	c.kubectl("-n", "kube-system", "rollout", "status", "ds/cilium", "--timeout=180s")
	for i, ip := range at.Status.PodIPs {
		name := fmt.Sprintf("first%d", i)
		c.apply(t, "first.yaml", map[string]string{
			"NAME": name, "NODE": from, "COUNT": strconv.Itoa(count), "TARGET": net.JoinHostPort(ip.IP, "8082"),
		})
		// Complete only when every pod has succeeded; a failed one is not started again.
		r := c.exec(20*time.Minute, c.kube, "wait", "--for=condition=Complete", "job/"+name, "--timeout=18m")
		status := c.kubectl("get", "job", name, "-o", "jsonpath={.status.succeeded} {.status.failed}")
		if r.code != 0 || strings.TrimSpace(status) != strconv.Itoa(count) {
			t.Errorf("first packets to %s: %s of %d succeeded (failed after the blank)", ip.IP, status, count)
		}
		t.Logf("first packets to %s: %s of %d", ip.IP, status, count)
	}
}

// apply creates what a file of testdata describes, with VERSION and the given words replaced.
func (c *cluster) apply(t *testing.T, name string, words map[string]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.ReplaceAll(text, []byte("VERSION"), []byte(c.version()))
	for k, v := range words {
		text = bytes.ReplaceAll(text, []byte(k), []byte(v))
	}
	file := filepath.Join(t.TempDir(), name)
	c.write(file, string(text))
	c.kubectl("apply", "-f", file)
}

func (c *cluster) write(file, text string) {
	c.t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}
