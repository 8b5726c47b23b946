// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"lash.internal/lash/connectivity/probe"
)

// path is one way that the load takes. The control path leads between the same nodes, but past all
// of Lash: what is lost there was lost by the machine.
type path struct {
	name    string
	control bool
	command []string // the program that runs the soak
	args    []string
}

// load is a soak on every path, from when it starts until stop.
type load struct {
	t   *testing.T
	bed *crashBed
	// What the servers had not read before.
	unreadControl, unreadOthers int
	stops                       []io.Closer
	wg                          sync.WaitGroup
	mu                          sync.Mutex
	got                         map[string]probe.SoakResult
}

// start puts load on all paths. The caller's event follows; stop collects.
func (b *crashBed) start(t *testing.T) *load {
	t.Helper()
	l := &load{t: t, bed: b, got: map[string]probe.SoakResult{}}
	l.unreadControl, l.unreadOthers = b.unread()
	for _, p := range b.paths {
		cmd := exec.Command(p.command[0], append(slices.Clone(p.command[1:]), p.args...)...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+b.kubeconfig)
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		in, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		l.stops = append(l.stops, in)
		l.wg.Go(func() {
			err := cmd.Wait()
			var r probe.SoakResult
			if jerr := json.Unmarshal(out.Bytes(), &r); err != nil || jerr != nil {
				t.Errorf("%s: %v: %s %s", p.name, err, out.String(), errOut.String())
			}
			l.mu.Lock()
			l.got[p.name] = r
			l.mu.Unlock()
		})
	}
	time.Sleep(2 * time.Second) // of undisturbed load
	return l
}

// unread counts the datagrams that the servers' sockets had no room for since they began, because
// the machine was too busy to read them: those of the control path, and those of all others.
func (b *crashBed) unread() (control, others int) {
	b.t.Helper()
	sum := func(table string) (total int) {
		for _, line := range strings.Split(table, "\n") {
			if f := strings.Fields(line); len(f) > 12 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", 8082)) {
				n, err := strconv.Atoi(f[len(f)-1])
				if err != nil {
					b.t.Fatal(err)
				}
				total += n
			}
		}
		return total
	}
	others = sum(b.node(b.a, "cat", "/proc/"+b.pid+"/net/udp", "/proc/"+b.pid+"/net/udp6")) +
		sum(b.node("external", "cat", "/proc/net/udp", "/proc/net/udp6"))
	return sum(b.node(b.a, "ip", "netns", "exec", "bare", "cat", "/proc/net/udp", "/proc/net/udp6")), others
}

// stop ends the load and judges it: nothing may be lost beyond what the control paths lose and what
// reached a process that did not read it in time.
func (l *load) stop(paths []path) {
	l.t.Helper()
	time.Sleep(2 * time.Second) // of load after the event
	for _, s := range l.stops {
		_ = s.Close()
	}
	l.wg.Wait()
	var control probe.SoakResult // what the worse of the control paths met, and what they lost together
	for _, p := range paths {
		if r := l.got[p.name]; p.control {
			control.UDPLost += r.UDPLost
			control.UDPDuplicated = max(control.UDPDuplicated, r.UDPDuplicated)
			control.FlowsBroken = max(control.FlowsBroken, r.FlowsBroken)
			control.NewFailed = max(control.NewFailed, r.NewFailed)
		}
	}
	lost := 0
	unreadControl, unread := l.bed.unread()
	unread -= l.unreadOthers
	for _, p := range paths {
		r := l.got[p.name]
		l.t.Logf("%-16s UDP %d sent %d lost (%d unread) %d twice, gap %.1f ms; TCP %d flows %d broken, %d exchanges, slowest %.1f ms, %d sent again; new %d, %d failed, slowest %.1f ms %v %v",
			p.name, r.UDPSent, r.UDPLost, r.UDPFull, r.UDPDuplicated, ms(r.UDPLongestGap), r.Flows, r.FlowsBroken, r.Exchanges, ms(r.FlowLongest), r.Retransmits,
			r.NewDone, r.NewFailed, ms(r.NewLongest), r.Holes, r.Errors)
		if p.control {
			continue
		}
		lost += r.UDPLost
		if r.UDPSent == 0 || r.UDPDuplicated > control.UDPDuplicated ||
			r.FlowsBroken > control.FlowsBroken || r.NewFailed > control.NewFailed || r.Exchanges == 0 {
			l.t.Errorf("%s lost more than the control path", p.name)
		}
	}
	onControl := control.UDPLost - (unreadControl - l.unreadControl)
	lost -= unread
	l.t.Logf("%d datagrams were lost on the way, on the control path %d; servers did not read %d others in time", lost, onControl, unread)
	if lost > max(0, onControl) {
		l.t.Errorf("more datagrams were lost than on the control path")
	}
}

func ms(us int64) float64 { return float64(us) / 1000 }
