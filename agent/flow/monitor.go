// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

const (
	// busyPoll and idlePoll are how long the reader lets records lie. Programs wake it only when
	// much is waiting; while nobody listens there is no hurry.
	busyPoll = 10 * time.Millisecond
	idlePoll = 250 * time.Millisecond
	// lossEvery is how often the datapath's count of lost events is read.
	lossEvery = time.Second
	// backlog is how many events a listener may lag behind.
	backlog = 1024
	// nameTTL is how long the name of a device is believed.
	nameTTL = 5 * time.Second
)

// Monitor reads the event ring and hands the events to its listeners.
type Monitor struct {
	events, budget *ebpf.Map // budget may be nil
	tables         *state.Tables
	log            *slog.Logger

	// heard is told when there is a first listener, and when there is none any more.
	heard func(bool)

	mu   sync.Mutex
	subs map[*subscriber]struct{}
	done bool

	lost    atomic.Uint64 // found the ring full
	unknown atomic.Uint64 // could not be decoded

	names map[uint32]deviceName // of Run's goroutine
}

type subscriber struct {
	ch     chan api.MonitorEvent
	missed uint64 // since the last event that fitted
}

type deviceName struct {
	name string
	at   time.Time
}

// New returns a monitor of a ring. budget is the map in which programs count lost events; without
// it losses in the kernel are not known. heard is called with true when somebody begins to listen, and
// with false when nobody does any more; it may be nil.
func New(events, budget *ebpf.Map, tables *state.Tables, heard func(bool), log *slog.Logger) *Monitor {
	if heard == nil {
		heard = func(bool) {}
	}
	return &Monitor{
		events: events, budget: budget, tables: tables, heard: heard, log: log,
		subs: map[*subscriber]struct{}{}, names: map[uint32]deviceName{},
	}
}

// Subscribe returns a channel of events. It is closed when ctx ends or the monitor stops. A
// listener that is too slow misses events and is told how many.
func (m *Monitor) Subscribe(ctx context.Context) <-chan api.MonitorEvent {
	s := &subscriber{ch: make(chan api.MonitorEvent, backlog)}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done {
		close(s.ch)
		return s.ch
	}
	m.subs[s] = struct{}{}
	if len(m.subs) == 1 {
		m.heard(true)
	}
	context.AfterFunc(ctx, func() { m.unsubscribe(s) })
	return s.ch
}

func (m *Monitor) unsubscribe(s *subscriber) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.subs[s]; ok {
		delete(m.subs, s)
		close(s.ch)
		if len(m.subs) == 0 {
			m.heard(false)
		}
	}
}

// Ring describes the ring buffer.
func (m *Monitor) Ring() api.MonitorStatus {
	st := api.MonitorStatus{
		CPUs: 1, PageSize: int64(os.Getpagesize()),
		Lost: int64(m.lost.Load()), Unknown: int64(m.unknown.Load()),
	}
	if n, err := ebpf.PossibleCPU(); err == nil {
		st.CPUs = int64(n)
	}
	if m.events != nil {
		// One ring serves all CPUs; its pages are shown as shares.
		st.NPages = int64(m.events.MaxEntries()) / st.PageSize / st.CPUs
	}
	return st
}

func (m *Monitor) listeners() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.subs)
}

// Run reads the ring until ctx ends.
func (m *Monitor) Run(ctx context.Context) error {
	rd, err := ringbuf.NewReader(m.events)
	if err != nil {
		return fmt.Errorf("open event ring: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = rd.Close() })
	defer func() {
		if stop() {
			_ = rd.Close()
		}
		m.close()
	}()
	var rec ringbuf.Record
	lossAt := time.Now()
	for {
		now := time.Now()
		if now.Sub(lossAt) >= lossEvery {
			lossAt = now
			m.readLosses(now)
		}
		wait := idlePoll
		if m.listeners() > 0 {
			wait = busyPoll
		}
		rd.SetDeadline(now.Add(wait))
		for {
			err := rd.ReadInto(&rec)
			if err == nil {
				m.handle(rec.RawSample)
				continue
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("read event ring: %w", err)
		}
	}
}

func (m *Monitor) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done = true
	for s := range m.subs {
		delete(m.subs, s)
		close(s.ch)
	}
}

// handle decodes one record for the listeners; without any it does nothing.
func (m *Monitor) handle(raw []byte) {
	if m.listeners() == 0 {
		return
	}
	r, err := Decode(raw)
	if err != nil {
		if m.unknown.Add(1) == 1 {
			m.log.Warn("event not decoded", "error", err)
		}
		return
	}
	ev := r.Event()
	ev.Time = wallTime(r.Time)
	m.enrich(&ev)
	m.publish(ev)
}

// wallTime converts the datapath's monotonic clock.
func wallTime(mono uint64) time.Time {
	var ts unix.Timespec
	now := time.Now()
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return now
	}
	return now.Add(time.Duration(int64(mono) - ts.Nano())).Round(0)
}

// publish hands an event to every listener that has room for it.
func (m *Monitor) publish(ev api.MonitorEvent) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := range m.subs {
		if s.missed > 0 {
			loss := api.MonitorEvent{Time: ev.Time, Type: api.MonitorLost, Lost: s.missed, Msg: "the listener is too slow"}
			select {
			case s.ch <- loss:
				s.missed = 0
			default:
				s.missed++
				continue
			}
		}
		select {
		case s.ch <- ev:
		default:
			s.missed++
		}
	}
}

// readLosses sums up the per-CPU counts of events that found the ring full.
func (m *Monitor) readLosses(now time.Time) {
	if m.budget == nil {
		return
	}
	var cpus []bpf.EvtBudget
	if err := m.budget.Lookup(uint32(0), &cpus); err != nil {
		m.log.Debug("lost events not counted", "error", err)
		return
	}
	var sum uint64
	for _, c := range cpus {
		sum += c.LostRing
	}
	if before := m.lost.Swap(sum); sum > before {
		m.publish(api.MonitorEvent{Time: now, Type: api.MonitorLost, Lost: sum - before, Msg: "the event ring was full"})
	}
}

// enrich adds names: of the device, and of the pods behind the addresses.
func (m *Monitor) enrich(ev *api.MonitorEvent) {
	if name := m.deviceName(ev.IfIndex); name != "" {
		ev.Interface = name
	}
	if ev.Summary == nil || ev.Summary.L3 == nil {
		return
	}
	ev.SrcPod = m.podOf(ev.Summary.L3.Src)
	ev.DstPod = m.podOf(ev.Summary.L3.Dst)
}

func (m *Monitor) podOf(addr string) string {
	if m.tables == nil {
		return ""
	}
	if eps := m.tables.Endpoints.ByIndex("ip", addr); len(eps) > 0 {
		if eps[0].IsHealth() {
			return ""
		}
		return eps[0].Pod.String()
	}
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return ""
	}
	if r, ok := m.tables.RemoteIPs.Get(a); ok {
		return r.Pod.String()
	}
	return ""
}

func (m *Monitor) deviceName(index uint32) string {
	if index == 0 {
		return ""
	}
	if n, ok := m.names[index]; ok && time.Since(n.at) < nameTTL {
		return n.name
	}
	n := deviceName{at: time.Now()}
	if d, err := net.InterfaceByIndex(int(index)); err == nil {
		n.name = d.Name
	}
	if len(m.names) > 4096 {
		clear(m.names)
	}
	m.names[index] = n
	return n.name
}
