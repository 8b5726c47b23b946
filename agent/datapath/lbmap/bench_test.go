// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// realMaps creates maps of the sizes that a node has.
func realMaps(b *testing.B, maglev uint32) Maps {
	b.Helper()
	spec, err := bpf.LoadTc()
	if err != nil {
		b.Fatal(err)
	}
	return MapsOf(func(name string) *ebpf.Map {
		ms := spec.Maps[name].Copy()
		if n := Sizes(maglev, 0)[name]; n > 0 {
			ms.MaxEntries = n
		}
		m, err := ebpf.NewMap(ms)
		if err != nil {
			b.Skipf("cannot create map %s: %v", name, err)
		}
		b.Cleanup(func() { m.Close() })
		return m
	})
}

func addr4(net byte, i uint32) netip.Addr {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], uint32(net)<<24|i)
	return netip.AddrFrom4(a)
}

// cluster is Services of two ports each, of 2 to 4 endpoints. All have a ClusterIP, a NodePort and the
// address of a load balancer if outside is set.
func cluster(services int, outside bool) map[state.Frontend]state.Balance {
	out := map[state.Frontend]state.Balance{}
	ep := uint32(0)
	for i := range services {
		n := uint32(2 + i%3)
		for p := range uint16(2) {
			f := state.Frontend{Addr: addr4(10, uint32(i)+1), Port: 80 + p, Protocol: "TCP"}
			b := state.Balance{Type: state.FrontClusterIP}
			for e := range n {
				b.All = append(b.All, netip.AddrPortFrom(addr4(11, ep+e), 8080+p))
			}
			if outside {
				b.Fronts = []state.Front{
					{Frontend: state.Frontend{Addr: netip.IPv4Unspecified(), Port: uint16(2*i) + p + 1, Protocol: "TCP"}, Type: state.FrontNodePort, Outside: true},
					{Frontend: state.Frontend{Addr: addr4(12, uint32(i)), Port: 80 + p, Protocol: "TCP"}, Type: state.FrontLoadBalancer, Outside: true},
				}
			}
			out[f] = b
		}
		ep += n
	}
	return out
}

func setAll(b *testing.B, t *Target, want map[state.Frontend]state.Balance) {
	b.Helper()
	for f, w := range want {
		if err := t.Set(b.Context(), f, w); err != nil {
			b.Fatal(err)
		}
	}
}

func mustOpen(b *testing.B, m Maps, o Options) *Target {
	b.Helper()
	t, err := Open(m, o)
	if err != nil {
		b.Fatal(err)
	}
	return t
}

// cpu is the CPU time of the measured part, which means something on a busy machine too.
type cpu struct {
	total time.Duration
	begun time.Duration
}

func used() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (c *cpu) start() { c.begun = used() }
func (c *cpu) stop()  { c.total += used() - c.begun }
func (c *cpu) report(b *testing.B) {
	b.ReportMetric(float64(c.total.Microseconds())/1000/float64(b.N), "cpu-ms/op")
}

var sizes = []struct {
	services int
	outside  bool
}{{10000, false}, {10000, true}, {30000, false}, {30000, true}}

// BenchmarkLoad writes all Services into empty maps.
func BenchmarkLoad(b *testing.B) {
	for _, s := range sizes {
		b.Run(fmt.Sprintf("services=%d/outside=%v", s.services, s.outside), func(b *testing.B) {
			want := cluster(s.services, s.outside)
			var c cpu
			for range b.N {
				b.StopTimer()
				m := realMaps(b, 0)
				runtime.GC()
				var before runtime.MemStats
				runtime.ReadMemStats(&before)
				b.StartTimer()
				c.start()
				t := mustOpen(b, m, Options{})
				setAll(b, t, want)
				c.stop()
				b.StopTimer()
				runtime.GC()
				var after runtime.MemStats
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "heap-MiB")
				t.Close()
			}
			c.report(b)
		})
	}
}

// BenchmarkAdopt opens and loads the maps of an earlier run. Nothing has to be written.
func BenchmarkAdopt(b *testing.B) {
	for _, s := range sizes {
		b.Run(fmt.Sprintf("services=%d/outside=%v", s.services, s.outside), func(b *testing.B) {
			want := cluster(s.services, s.outside)
			m := realMaps(b, 0)
			t := mustOpen(b, m, Options{})
			setAll(b, t, want)
			t.Close()
			var c cpu
			for b.Loop() {
				b.StopTimer()
				runtime.GC()
				b.StartTimer()
				c.start()
				t := mustOpen(b, m, Options{})
				got, err := t.Load(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				c.stop()
				b.StopTimer()
				for f, w := range want {
					if !got[f].Satisfies(w) {
						b.Fatalf("%s would be written: %+v, want %+v", f, got[f], w)
					}
				}
				t.Close()
				b.StartTimer()
			}
			c.report(b)
		})
	}
}

// BenchmarkAudit reads again what a running agent has written.
func BenchmarkAudit(b *testing.B) {
	for _, s := range sizes {
		b.Run(fmt.Sprintf("services=%d/outside=%v", s.services, s.outside), func(b *testing.B) {
			t := mustOpen(b, realMaps(b, 0), Options{})
			defer t.Close()
			setAll(b, t, cluster(s.services, s.outside))
			var c cpu
			c.start()
			for b.Loop() {
				if _, err := t.Load(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			c.stop()
			c.report(b)
		})
	}
}

// BenchmarkChange replaces one of 100 endpoints at a time, among 30,000 Services.
func BenchmarkChange(b *testing.B) {
	for _, size := range []uint32{0, 16381} {
		b.Run(fmt.Sprintf("maglev=%d", size), func(b *testing.B) {
			now := time.Now()
			t, err := open(realMaps(b, size), Options{MaglevSize: size}, func() time.Time { return now })
			if err != nil {
				b.Fatal(err)
			}
			defer t.Close()
			setAll(b, t, cluster(30000, false))
			f := front("10.200.0.1:80")
			w := state.Balance{Type: state.FrontClusterIP, Fronts: []state.Front{
				{Frontend: front("0.0.0.0:30080"), Type: state.FrontNodePort, Outside: true},
			}}
			for i := range uint32(100) {
				w.All = append(w.All, netip.AddrPortFrom(addr4(13, i), 80))
			}
			next := uint32(100)
			var c cpu
			c.start()
			for b.Loop() {
				now = now.Add(10 * time.Millisecond) // 100 changes a second
				w.All = append([]netip.AddrPort(nil), w.All[1:]...)
				w.All = append(w.All, netip.AddrPortFrom(addr4(13, next), 80))
				next++
				if err := t.Set(b.Context(), f, w); err != nil {
					b.Fatal(err)
				}
			}
			c.stop()
			c.report(b)
		})
	}
}

// BenchmarkMaglev builds one table.
func BenchmarkMaglev(b *testing.B) {
	for _, n := range []int{2, 100, 1000} {
		b.Run(fmt.Sprintf("backends=%d", n), func(b *testing.B) {
			m := builder{size: 16381, entries: make([]int32, 16381)}
			bs := someBackends(n)
			var c cpu
			c.start()
			for b.Loop() {
				m.table(bs)
			}
			c.stop()
			c.report(b)
		})
	}
}

func someBackends(n int) []*backend {
	var out []*backend
	for i := range uint32(n) {
		out = append(out, &backend{endpoint: endpointOf(netip.AddrPortFrom(addr4(13, i), 80), protoTCP), id: i + 1})
	}
	return out
}
