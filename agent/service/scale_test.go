// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"lash.internal/lash/agent/reconcile"
	"lash.internal/lash/agent/state"
)

// large is Service number i of a large cluster: two ports, one of them a NodePort, four endpoints.
func large(i int) (state.Service, state.EndpointSlice) {
	s := clusterIP(fmt.Sprintf("s%05d", i), netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String())
	s.Ports = append(s.Ports, state.ServicePort{Name: "metrics", Protocol: "TCP", Port: 9090})
	s.Ports[0].NodePort = uint16(30000 + i)
	sl := slice(s.Name.Name, "a", http)
	sl.Ports = append(sl.Ports, state.SlicePort{Name: "metrics", Protocol: "TCP", Port: 9090})
	for e := range 4 {
		sl.Endpoints = append(sl.Endpoints, state.SliceEndpoint{
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 128 + byte(e), byte(i >> 8), byte(i)})}, Ready: true, Serving: true, NodeName: "there",
		})
	}
	return s, sl
}

// cpu is what the process has used of processors.
func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// BenchmarkServices is 30,000 Services with two ports and four endpoints each, through the tables and the
// loop into a target in memory: from nothing to all of them (ns/op), and then changes of single slices.
func BenchmarkServices(b *testing.B) {
	const services, changes = 30000, 1000
	for b.Loop() {
		b.StopTimer()
		before := heap()
		w := &world{view: View{Tables: state.NewTables(), Enabled: true, IPv4: true, IPv6: true, NodeName: "here"}, target: &memory{held: map[state.Frontend]state.Balance{}}}
		tb := w.view.Tables
		ready := []func(*state.WriteTxn){tb.Services.RegisterInitializer("b"), tb.EndpointSlices.RegisterInitializer("b")}
		loop := w.loop()
		chain := reconcile.NewChain("services", slog.New(slog.DiscardHandler), loop)
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan struct{})
		used := cpu()
		b.StartTimer()
		tx := tb.DB.WriteTxn()
		for i := range services {
			s, sl := large(i)
			tb.Services.Insert(tx, s)
			tb.EndpointSlices.Insert(tx, sl)
		}
		ready[0](tx)
		ready[1](tx)
		tx.Commit()
		go func() { chain.Run(ctx); close(done) }()
		<-chain.Synced()
		b.StopTimer()
		b.ReportMetric(float64((cpu() - used).Milliseconds()), "cpu-ms/load")
		if n := len(w.target.held); n != 2*services {
			b.Fatalf("%d frontends, want %d", n, 2*services)
		}
		b.ReportMetric(heap()-before, "MiB")
		began := time.Now()
		used = cpu()
		for i := range changes {
			_, sl := large(i * services / changes)
			sl.Endpoints = sl.Endpoints[:3]
			tb.EndpointSlices.Insert(tx, sl)
			tx.Commit()
			k := state.Frontend{Addr: netip.AddrFrom4([4]byte{10, 96, byte(i * services / changes >> 8), byte(i * services / changes)}), Port: 80, Protocol: "TCP"}
			if err := loop.Sync(ctx, k); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(time.Since(began).Microseconds())/changes, "us/change")
		b.ReportMetric(float64((cpu()-used).Microseconds())/changes, "cpu-us/change")
		cancel()
		<-done
		b.StartTimer()
	}
}
