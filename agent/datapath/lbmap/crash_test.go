// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	kernel "lash.internal/lash/agent/datapath/maps"
	"lash.internal/lash/agent/datapath/testnode"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// killedDir tells the process that is to be killed where its maps are pinned.
const killedDir = "LBMAP_KILLED_DIR"

// changing are Services that go back and forth between two forms, which have no backend in common with
// another Service.
func changing() map[state.Frontend][2]state.Balance {
	out := map[state.Frontend][2]state.Balance{}
	for i, f := range []state.Frontend{web, other, front("10.96.0.12:80")} {
		ap := func(n ...int) (out []netip.AddrPort) {
			for _, x := range n {
				out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i + 1), 0, byte(x)}), 80))
			}
			return out
		}
		node, lb := nodePort, balancer
		node.Port, lb.Port = 30080+uint16(i), 80+uint16(i)
		open := lb
		open.Sources = false
		out[f] = [2]state.Balance{
			{Type: state.FrontClusterIP, All: ap(1, 2, 3), Fronts: []state.Front{node, lb}, SourceRanges: prefixList("10.0.0.0/8")},
			{
				Type: state.FrontClusterIP, All: ap(2, 4, 5, 6, 7), Local: ap(4), ExternalLocal: true, InternalLocal: true, AffinitySecs: 30,
				Fronts: []state.Front{open}, Draining: ap(1),
			},
		}
	}
	return out
}

func openKilled(dir string) (*Target, Maps, error) {
	var failed error
	m := MapsOf(func(name string) *ebpf.Map {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if err != nil {
			failed = err
		}
		return m
	})
	if failed != nil {
		return nil, m, failed
	}
	now := time.Unix(0, 0)
	t, err := open(m, Options{MaglevSize: testMaglev}, func() time.Time { now = now.Add(holdBlock); return now })
	return t, m, err
}

// TestKilled is not a test: it is the process that TestKill kills.
func TestKilled(t *testing.T) {
	dir := os.Getenv(killedDir)
	if dir == "" {
		t.Skip("is run by TestKill")
	}
	lb, _, err := openKilled(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		for f, b := range changing() {
			if err := lb.Set(t.Context(), f, b[i%2]); err != nil {
				t.Fatal(err)
			}
		}
		if i == 4 {
			fmt.Println("working")
		}
	}
}

// TestKill ends a process while it writes, at any moment. Programs find nothing wrong, and the next
// process finds each Service in one of its forms, or as something between that it sees to be that.
func TestKill(t *testing.T) {
	dir := testnode.BPFFS(t)
	m := kernelMaps(t, nil)
	for name, km := range map[string]*ebpf.Map{
		"front": m.Front, "svc": m.Svc, "slot": m.Slot, "backend": m.Backend, "maglev": m.Maglev, "srcrange": m.Srcrange, "hostback": m.Hostback,
	} {
		if err := km.Pin(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	between := 0
	numbers := map[state.Frontend]uint32{}
	for range 25 {
		kill(t, self, dir)
		f := &fixture{Maps: m, t: t}
		for fr := range changing() {
			f.checkAsPrograms(fr)
		}
		lb, opened, err := openKilled(dir)
		if err != nil {
			t.Fatal(err)
		}
		f.lb = lb
		got := f.load()
		for fr, forms := range changing() {
			b := got[fr]
			forms[1].Draining = nil // is not known any more
			if !b.Satisfies(forms[0]) && !b.Satisfies(forms[1]) {
				between++
				if !b.Damaged && !slices.Equal(b.All, forms[0].All) && !slices.Equal(b.All, forms[1].All) {
					t.Errorf("%s is %+v", fr, b)
				}
			}
			id, _ := f.svc(fr)
			if had := numbers[fr]; had != 0 && had != id {
				t.Errorf("%s had number %d and has %d", fr, had, id)
			}
			numbers[fr] = id
			f.set(fr, forms[0])
		}
		got = f.load()
		for fr, forms := range changing() {
			if !got[fr].Satisfies(forms[0]) || len(got) != len(numbers) {
				t.Errorf("%s is not completed: %+v", fr, got[fr])
			}
			f.checkAsPrograms(fr)
		}
		if err := lb.Close(); err != nil {
			t.Fatal(err)
		}
		for _, o := range []*ebpf.Map{opened.Front, opened.Svc, opened.Slot, opened.Backend, opened.Maglev, opened.Srcrange, opened.Hostback} {
			o.Close()
		}
	}
	t.Logf("of %d Services, %d were between two forms", 25*len(numbers), between)
}

// kill runs a process that writes and ends it at a moment that nobody chooses.
func kill(t *testing.T, self, dir string) {
	t.Helper()
	c := exec.Command(self, "-test.run=^TestKilled$", "-test.v")
	c.Env = append(os.Environ(), killedDir+"="+dir)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(out)
	working, last := false, ""
	for !working && said.Scan() {
		working = said.Text() == "working"
		if !working {
			last = said.Text()
		}
	}
	time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
	err = c.Process.Kill()
	if c.Wait(); err != nil || !working {
		t.Fatalf("the process that writes ended by itself: %s, %v", last, err)
	}
}

// checkAsPrograms follows a Service from its frontends as a program would: all backends are its own
// and known.
func (f *fixture) checkAsPrograms(fr state.Frontend) {
	f.t.Helper()
	forms := changing()[fr]
	own := slices.Concat(forms[0].All, forms[1].All)
	check := func(id uint32) {
		be := f.backend(id)
		if a := (endpoint{be.Ip, be.Port, be.Proto}).addr(); be.State == bpf.BackendGone || !slices.Contains(own, a) {
			f.t.Errorf("a program finds backend %d, %s in state %d, behind %s", id, a, be.State, fr)
		}
	}
	id, s := f.svc(fr)
	for _, ref := range []uint64{s.BlkAll, s.BlkLocal} {
		b, _ := unpack(ref)
		for i := b.base; i < b.base+b.count; i++ {
			var sl bpf.Slots
			if err := f.Slot.Lookup(i/bpf.SlotsPerElem, &sl); err != nil {
				f.t.Fatal(err)
			}
			check(sl.BackendId[i%bpf.SlotsPerElem])
		}
	}
	for i := uint32(0); s.Maglev != 0 && i < testMaglev; i++ {
		var m bpf.Maglev
		if err := f.Maglev.Lookup(uint32(s.Maglev)+i/perElem, &m); err != nil {
			f.t.Fatal(err)
		}
		check(m.BackendId[i%perElem])
	}
	limited := false
	if err := kernel.Each(f.Front, func(_ bpf.FrontKey, v bpf.Front) {
		limited = limited || v.SvcId == id && v.Flags&bpf.FrontSources != 0
	}); err != nil {
		f.t.Fatal(err)
	}
	if limited && !f.allows(id, "10.9.9.9") {
		f.t.Errorf("%s asks for source ranges that are not there", fr)
	}
}
