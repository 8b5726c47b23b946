// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// needE2E skips tests that make clusters unless they are asked for.
func needE2E(t *testing.T) {
	t.Helper()
	if os.Getenv("LASH_E2E") == "" {
		t.Skip("set LASH_E2E=1 to make clusters (needs root)")
	}
}

// nothingLeft fails if any trace of the cluster is on this machine.
func nothingLeft(t *testing.T, o Options) {
	t.Helper()
	prefix := "lash-" + o.Name + "-"
	groups, err := machineCgroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, hierarchy := range append([]string{groups.unified}, groups.v1...) {
		left, err := filepath.Glob(filepath.Join(hierarchy, prefix+"*"))
		if err != nil || len(left) > 0 {
			t.Errorf("control groups left: %q %v", left, err)
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		text, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(text), prefix) && !strings.Contains(string(text), "(deleted)") {
			t.Errorf("process left: %s", filepath.Dir(p))
		}
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(table), filepath.Join(o.StateDir, o.Name)) {
		t.Error("mounts are left")
	}
	if _, err := os.Stat(filepath.Join(o.StateDir, o.Name)); err == nil {
		t.Error("the state folder is left")
	}
	if text, err := os.ReadFile(o.Kubeconfig); err == nil && strings.Contains(string(text), "lash-"+o.Name) {
		t.Error("the kubeconfig entry is left")
	}
}

func e2eOptions(t *testing.T, name string) Options {
	dir := t.TempDir()
	return Options{
		Name: name, Workers: 1, KubeProxy: "nftables", CNI: "ptp", StateDir: filepath.Join(dir, "state"),
		Kubeconfig: filepath.Join(dir, "kubeconfig"), Progress: func(s string) { t.Log(s) },
	}
}

// TestClusterLife makes a cluster, uses it as a user would, and deletes it.
func TestClusterLife(t *testing.T) {
	needE2E(t)
	ctx := t.Context()
	o := e2eOptions(t, "e2elife")
	t.Cleanup(func() {
		if err := Delete(context.Background(), o.StateDir, o.Name); err != nil && !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		nothingLeft(t, o)
	})
	c, err := Create(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Create(ctx, o); err != nil || again.Created != c.Created {
		t.Errorf("the second create: %v", err)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	pods, err := client.CoreV1().Pods("kube-system").List(ctx, metav1.ListOptions{LabelSelector: "k8s-app=kube-dns"})
	if err != nil || len(pods.Items) != 2 {
		t.Fatalf("DNS pods: %v", err)
	}
	log, err := client.CoreV1().Pods("kube-system").GetLogs(pods.Items[0].Name, &corev1.PodLogOptions{}).DoRaw(ctx)
	if err != nil || !bytes.Contains(log, []byte("CoreDNS")) {
		t.Errorf("log of a pod: %v %s", err, log)
	}
	for node, script := range map[string]string{
		"worker":        "exec 3<>/dev/tcp/10.96.0.10/53", // service through kube-proxy, pod on either node
		"control-plane": "kubectl get --raw /readyz",
		"external":      "test $(hostname) = lash-e2elife-external",
	} {
		var out bytes.Buffer
		code, err := Exec(ctx, o.StateDir, o.Name, node, []string{"bash", "-c", script}, nil, &out, &out)
		if err != nil || code != 0 {
			t.Errorf("%s: %s: %d %v %s", node, script, code, err, out.String())
		}
	}
	code, err := Exec(ctx, o.StateDir, o.Name, "worker", []string{"bash", "-c", "exit 7"}, nil, nil, nil)
	if err != nil || code != 7 {
		t.Errorf("exit code of a command: %d %v", code, err)
	}
}

// TestCancel stops a create half way; nothing is left.
func TestCancel(t *testing.T) {
	needE2E(t)
	o := e2eOptions(t, "e2ecancel")
	ctx, cancel := context.WithCancel(t.Context())
	o.Progress = func(step string) {
		t.Log(step)
		if strings.HasPrefix(step, "registering") {
			time.AfterFunc(time.Second, cancel)
		}
	}
	if _, err := Create(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want cancelled", err)
	}
	nothingLeft(t, o)
}

// TestCrash kills a create at several steps; delete then leaves nothing.
func TestCrash(t *testing.T) {
	needE2E(t)
	if dir := os.Getenv("LASH_E2E_CRASH"); dir != "" {
		o := e2eOptions(t, "e2ecrash")
		o.StateDir, o.Kubeconfig = filepath.Join(dir, "state"), filepath.Join(dir, "kubeconfig")
		o.Progress = func(step string) {
			if strings.HasPrefix(step, os.Getenv("LASH_E2E_STEP")) {
				time.Sleep(500 * time.Millisecond) // in the middle of what was started before
				p, err := os.FindProcess(os.Getpid())
				if err == nil {
					_ = p.Kill()
				}
			}
		}
		_, err := Create(t.Context(), o)
		t.Fatalf("survived: %v", err)
	}
	for _, step := range []string{"preparing", "issuing", "registering", "waiting"} {
		t.Run(step, func(t *testing.T) {
			o := e2eOptions(t, "e2ecrash")
			cmd := exec.Command(os.Args[0], "-test.run", "^TestCrash$")
			cmd.Env = append(os.Environ(), "LASH_E2E_CRASH="+filepath.Dir(o.StateDir), "LASH_E2E_STEP="+step)
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.Exited() {
				t.Fatalf("the create did not crash: %v %s", err, out)
			}
			if _, err := Create(t.Context(), o); !errors.Is(err, ErrHalfMade) {
				t.Errorf("create after a crash: %v, want half made", err)
			}
			if err := Delete(t.Context(), o.StateDir, o.Name); err != nil {
				t.Error(err)
			}
			nothingLeft(t, o)
		})
	}
}
