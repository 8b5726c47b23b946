// SPDX-License-Identifier: Apache-2.0

// Package dump shows BPF maps to people: each map by its own name, entry by entry, and as views,
// which join maps into the lists that `cilium bpf ... list` prints. It only reads.
package dump

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/datapath/maps"
)

// ViewPrefix stands before the name of a view where names of maps are expected.
const ViewPrefix = "view:"

// countTTL is how long a count of entries is believed: counting reads the map.
const countTTL = 30 * time.Second

// Maps shows the maps of one datapath. It is safe for concurrent use.
type Maps struct {
	// MaglevSize is the number of entries of a Service's table; 0: there are none.
	MaglevSize uint32

	maps map[string]*ebpf.Map
	show map[string]func() ([]api.MapEntry, error)

	mu     sync.Mutex
	counts map[string]count
}

type count struct {
	n  int64
	at time.Time
}

// New shows maps by the names that the programs give them (ep, addr, ct4, ...). Maps that are
// missing are not shown.
func New(maps map[string]*ebpf.Map) *Maps {
	d := &Maps{maps: maps, counts: map[string]count{}}
	d.show = map[string]func() ([]api.MapEntry, error){
		"ep": d.eps, "addr": d.addrs, "cidr": d.cidrs, "vtep": d.vteps, "dev": d.devs,
		"ct4": d.ctOf("ct4"), "ct4_new": d.ctOf("ct4_new"), "ct6": d.ctOf("ct6"), "ct6_new": d.ctOf("ct6_new"),
		"frag4": d.frag4, "frag6": d.frag6,
		"front": d.fronts, "svc": d.svcs, "backend": d.backends, "skrev": d.skrevs,
		"metrics": d.metrics, "evt_budget": d.budget, "cfg": d.cfg,

		"aff": d.viewAffinity, "srcrange": d.viewSources,

		ViewPrefix + "ct":           d.ctOf(ctTables...),
		ViewPrefix + "endpoint":     d.viewEndpoint,
		ViewPrefix + "frag":         d.viewFrag,
		ViewPrefix + "ipcache":      d.viewIPCache,
		ViewPrefix + "lb":           d.viewLB,
		ViewPrefix + "lb-frontends": d.fronts,
		ViewPrefix + "lb-backends":  d.backends,
		ViewPrefix + "lb-revnat":    d.viewRevNAT,
		ViewPrefix + "lb-sources":   d.viewSources,
		ViewPrefix + "lb-affinity":  d.viewAffinity,
		ViewPrefix + "lb-maglev":    d.viewMaglev,
		ViewPrefix + "nat":          d.viewNAT,
		ViewPrefix + "metrics":      d.metrics,
		ViewPrefix + "tunnel":       d.viewTunnel,
	}
	return d
}

// Maps lists the maps by name. Entries is counted for hash maps, every half a minute at most.
func (d *Maps) Maps() ([]api.BPFMap, error) {
	out := make([]api.BPFMap, 0, len(d.maps))
	for name, m := range d.maps {
		if m == nil {
			continue
		}
		out = append(out, d.describe(name, m))
	}
	slices.SortFunc(out, func(a, b api.BPFMap) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out, nil
}

func (d *Maps) describe(name string, m *ebpf.Map) api.BPFMap {
	return api.BPFMap{
		Name: name, Type: m.Type().String(), KeySize: int64(m.KeySize()), ValueSize: int64(m.ValueSize()),
		MaxEntries: int64(m.MaxEntries()), Entries: d.count(name, m),
	}
}

func (d *Maps) count(name string, m *ebpf.Map) int64 {
	switch m.Type() {
	case ebpf.Hash, ebpf.LRUHash, ebpf.PerCPUHash, ebpf.LPMTrie:
	default:
		return -1
	}
	show := d.show[name]
	if show == nil {
		return -1
	}
	d.mu.Lock()
	c, ok := d.counts[name]
	d.mu.Unlock()
	if ok && time.Since(c.at) < countTTL {
		return c.n
	}
	n := int64(-1)
	if counted, err := countKeys(m); err == nil {
		n = counted
	}
	d.mu.Lock()
	d.counts[name] = count{n: n, at: time.Now()}
	d.mu.Unlock()
	return n
}

// countKeys walks the keys. A map that changes meanwhile gives an estimate, and never more than
// fits into it.
func countKeys(m *ebpf.Map) (int64, error) {
	key, err := m.NextKeyBytes(nil)
	n := int64(0)
	for ; err == nil && key != nil && n < int64(m.MaxEntries()); n++ {
		key, err = m.NextKeyBytes(key)
	}
	return n, err
}

// Map returns a map or a view with its entries. The error is fs.ErrNotExist for other names.
func (d *Maps) Map(name string) (api.BPFMap, error) {
	show := d.show[name]
	if id, ok := strings.CutPrefix(name, ViewPrefix+"lb-maglev:"); ok {
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return api.BPFMap{}, fmt.Errorf("map %s: number of a service: %w", name, err)
		}
		show = func() ([]api.MapEntry, error) { return d.viewMaglevTable(uint32(n)) }
	}
	m := d.maps[name]
	if show == nil || (m == nil && !strings.HasPrefix(name, ViewPrefix)) {
		return api.BPFMap{}, fmt.Errorf("map %s: %w", name, fs.ErrNotExist)
	}
	entries, err := show()
	if err != nil {
		return api.BPFMap{}, fmt.Errorf("map %s: %w", name, err)
	}
	if entries == nil {
		entries = []api.MapEntry{}
	}
	out := api.BPFMap{Name: name}
	if m != nil {
		out = d.describe(name, m)
	}
	out.Entries = int64(len(entries))
	out.Cache = entries
	return out, nil
}

// kv is one entry of a map.
type kv[K, V any] struct {
	key K
	val V
}

// read returns all entries of a hash map, an LPM trie or an LRU. A map that this agent does not
// have gives none.
func read[K, V any](d *Maps, name string) ([]kv[K, V], error) {
	m := d.maps[name]
	if m == nil {
		return nil, nil
	}
	var out []kv[K, V]
	err := maps.Each(m, func(k K, v V) { out = append(out, kv[K, V]{k, v}) })
	if errors.Is(err, ebpf.ErrIterationAborted) {
		err = nil // it changes faster than it can be read
	}
	return out, err
}

// iterate reads entry by entry, which maps with a value for each CPU need.
func iterate[K, V any](m *ebpf.Map) ([]kv[K, V], error) {
	var out []kv[K, V]
	it := m.Iterate()
	var e kv[K, V]
	for it.Next(&e.key, &e.val) {
		out = append(out, e)
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, err
	}
	return out, nil
}

// at reads one element of an array; a map that this agent does not have gives the zero value.
func at[V any](d *Maps, name string, i uint32) (V, error) {
	var v V
	m := d.maps[name]
	if m == nil {
		return v, nil
	}
	err := m.Lookup(i, &v)
	return v, err
}

func sortEntries(in []api.MapEntry) []api.MapEntry {
	slices.SortFunc(in, func(a, b api.MapEntry) int {
		switch {
		case a.Key != b.Key && a.Key < b.Key:
			return -1
		case a.Key != b.Key:
			return 1
		case a.Value < b.Value:
			return -1
		}
		return 1
	})
	return in
}
