// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lash.internal/lash/connectivity/cluster"
	"lash.internal/lash/perf/stats"
)

// CNIJob asks for ADD and DEL calls of one plugin. It is done inside a node.
type CNIJob struct {
	Plugin string          `json:"plugin"` // path of the program
	Config json.RawMessage `json:"config"` // what the runtime would give it on standard input
	Args   string          `json:"args"`   // CNI_ARGS
	Prefix string          `json:"prefix"` // of container ids and namespaces; nothing else has it
	Netns  string          `json:"netns"`  // folder for the namespaces
	Count  int             `json:"count"`
	AtOnce bool            `json:"atOnce"` // all calls at the same time, not one after the other
}

// CNITimes are times in nanoseconds, from the start of the plugin to its end. Wall times span all calls.
type CNITimes struct {
	Add     []int64 `json:"add_ns"`
	Del     []int64 `json:"del_ns"`
	AddWall int64   `json:"addWall_ns"`
	DelWall int64   `json:"delWall_ns"`
}

// ServeCNIJob reads a job, does it in the node that it runs in, and writes the times.
func ServeCNIJob(ctx context.Context, in io.Reader, out io.Writer) error {
	var j CNIJob
	if err := json.NewDecoder(in).Decode(&j); err != nil {
		return fmt.Errorf("job: %w", err)
	}
	t, err := j.do(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(t)
}

func (j *CNIJob) do(ctx context.Context) (t CNITimes, err error) {
	for i := range j.Count {
		if err := pinNetns(j.netns(i)); err != nil {
			return t, err
		}
		defer func() {
			path := j.netns(i)
			err = errors.Join(err, unix.Unmount(path, unix.MNT_DETACH), os.Remove(path))
		}()
	}
	if t.Add, t.AddWall, err = j.all(ctx, "ADD"); err != nil {
		_, _, undo := j.all(context.WithoutCancel(ctx), "DEL")
		return t, errors.Join(err, undo)
	}
	t.Del, t.DelWall, err = j.all(ctx, "DEL")
	return t, err
}

func (j *CNIJob) netns(i int) string {
	return filepath.Join(j.Netns, fmt.Sprintf("%s-%d", j.Prefix, i))
}

// pinNetns makes a network namespace and mounts it where runtimes do.
func pinNetns(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread is in the new namespace and ends here
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return errors.Join(fmt.Errorf("namespace %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// all calls the plugin for every namespace.
func (j *CNIJob) all(ctx context.Context, command string) (times []int64, wall int64, err error) {
	times = make([]int64, j.Count)
	errs := make([]error, j.Count)
	start := time.Now()
	if j.AtOnce {
		var calls sync.WaitGroup
		for i := range j.Count {
			calls.Go(func() { times[i], errs[i] = j.call(ctx, command, i) })
		}
		calls.Wait()
	} else {
		for i := range j.Count {
			times[i], errs[i] = j.call(ctx, command, i)
		}
	}
	return times, int64(time.Since(start)), errors.Join(errs...)
}

func (j *CNIJob) call(ctx context.Context, command string, i int) (int64, error) {
	cmd := exec.CommandContext(ctx, j.Plugin)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "CNI_COMMAND=" + command, fmt.Sprintf("CNI_CONTAINERID=%s-%d", j.Prefix, i),
		"CNI_NETNS=" + j.netns(i), "CNI_IFNAME=eth0", "CNI_ARGS=" + j.Args, "CNI_PATH=" + filepath.Dir(j.Plugin),
	}
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(j.Config), &out, &out
	start := time.Now()
	err := cmd.Run()
	took := time.Since(start)
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w: %s", filepath.Base(j.Plugin), command, err, strings.TrimSpace(out.String()))
	}
	return int64(took), nil
}

// Plugins that are compared.
const (
	lashPlugin = "lash"
	ptpPlugin  = "ptp"
)

// Calls in a round: one after the other, and at once.
const (
	serialCalls = 10
	burstCalls  = 50
)

const pluginDir = "/opt/cni/bin/"

// netnsDir is where containerd and CRI-O keep the namespaces of pods.
const netnsDir = "/var/run/netns"

// ptpNetConfig is the reference plugin's configuration: addresses that nothing else here uses.
func ptpNetConfig(ipv6 bool) json.RawMessage {
	subnet, dst := "10.96.128.0/24", "0.0.0.0/0"
	if ipv6 {
		subnet, dst = "fd96::/112", "::/0"
	}
	return json.RawMessage(fmt.Sprintf(`{"cniVersion":"1.0.0","name":"bench","type":"ptp","mtu":1500,`+
		`"ipam":{"type":"host-local","dataDir":"/run/bench-ipam","ranges":[[{"subnet":%q}]],"routes":[{"dst":%q}]}}`, subnet, dst))
}

// lashNetConfig takes the plugin's part out of the configuration list that the agent wrote.
func lashNetConfig(list []byte) (json.RawMessage, error) {
	var l struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(list, &l); err != nil {
		return nil, fmt.Errorf("network configuration list: %w", err)
	}
	if len(l.Plugins) == 0 {
		return nil, errors.New("network configuration list: it has no plugin")
	}
	conf := l.Plugins[0]
	conf["cniVersion"], conf["name"] = l.CNIVersion, l.Name
	return json.Marshal(conf)
}

// measureCNI runs rounds of both plugins inside the worker.
func (b *run) measureCNI(ctx context.Context, k *kube) error {
	worker, _, err := k.nodes()
	if err != nil {
		return err
	}
	inNode := func(stdin []byte, args ...string) ([]byte, error) {
		var out, errOut bytes.Buffer
		code, err := cluster.Exec(ctx, "", k.c.Name, worker, args, bytes.NewReader(stdin), &out, &errOut)
		if err == nil && code != 0 {
			err = fmt.Errorf("%s on %s ended with %d: %s", args[0], worker, code, lastLines(errOut.String(), 4))
		}
		return out.Bytes(), err
	}
	list, err := inNode(nil, "cat", "/etc/cni/net.d/05-cilium.conflist")
	if err != nil {
		return err
	}
	conf, err := lashNetConfig(list)
	if err != nil {
		return err
	}
	jobs := []CNIJob{
		{Plugin: pluginDir + "cilium-cni", Config: conf, Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=" + namespace + ";K8S_POD_NAME=" + anchor},
		{Plugin: pluginDir + "ptp", Config: ptpNetConfig(b.o.IPv6)},
	}
	names := []string{lashPlugin, ptpPlugin}
	// A first call of each is not counted: it finds cold files, and the identity of the pod is new.
	for round := -1; round < b.o.Rounds; round++ {
		for _, atOnce := range []bool{false, true} {
			for _, i := range stats.Order(len(jobs), max(round, 0)) {
				j := jobs[i]
				j.Netns, j.AtOnce, j.Count = netnsDir, atOnce, serialCalls
				if atOnce {
					j.Count = burstCalls
				}
				j.Prefix = fmt.Sprintf("bench-%s-%d-%d", names[i], round+1, j.Count)
				text, err := json.Marshal(j)
				if err != nil {
					return err
				}
				out, err := inNode(text, b.o.Self, "cni")
				if err != nil {
					return err
				}
				s := CNISample{Plugin: names[i], Round: round, AtOnce: atOnce}
				if err := json.Unmarshal(out, &s.Times); err != nil {
					return fmt.Errorf("times of %s: %w", names[i], err)
				}
				if round < 0 {
					continue
				}
				if err := b.record(Record{CNI: &s}); err != nil {
					return err
				}
			}
		}
		if round >= 0 {
			b.say("CNI round %d of %d", round+1, b.o.Rounds)
		}
	}
	return nil
}
