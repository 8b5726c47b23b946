// SPDX-License-Identifier: Apache-2.0

package dump

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"unsafe"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/state"
	"lash.internal/lash/bpf"
)

// frontTypes are the words of enum front_type.
var frontTypes = []state.FrontType{
	state.FrontClusterIP, state.FrontNodePort, state.FrontExternalIP, state.FrontLoadBalancer, state.FrontHostPort,
}

func (f frontend) kind() state.FrontType {
	if i := f.flags >> bpf.FrontTypeShift; int(i) < len(frontTypes) {
		return frontTypes[i]
	}
	return state.FrontType(fmt.Sprint(f.flags >> bpf.FrontTypeShift))
}

// words are a frontend and its Service port in Cilium's words.
func (f frontend) words(s bpf.Svc) string {
	out := []string{string(f.kind())}
	external, internal := s.Flags&bpf.SvcExternalLocal != 0, s.Flags&bpf.SvcInternalLocal != 0
	if external != internal {
		out = append(out, "two-scopes")
	}
	if external {
		out = append(out, "Local")
	}
	if internal {
		out = append(out, "InternalLocal")
	}
	if s.AffinitySecs > 0 {
		out = append(out, "sessionAffinity")
	}
	if f.flags&bpf.FrontOutside == 0 {
		out = append(out, "non-routable")
	}
	if f.flags&bpf.FrontSources != 0 {
		out = append(out, "check source-range")
	}
	return strings.Join(out, ", ")
}

// frontKey is what a frontend is found by in the tables.
type frontKey struct {
	kind  state.FrontType
	addr  netip.AddrPort // a HostPort on all addresses has none
	proto string
}

// owner is the object of Kubernetes that a frontend is of.
type owner struct {
	name  state.Name
	svc   state.Service // zero for a HostPort
	port  string
	ips   []netip.Addr // of the pod with the HostPort
	found bool
}

// owners finds the Service ports by ClusterIP, which each has, and the pods by HostPort, which several
// may claim.
func owners(t *state.Tables) map[frontKey][]owner {
	out := map[frontKey][]owner{}
	for _, s := range t.Services.All() {
		for _, a := range s.ClusterIPs {
			for _, p := range s.Ports {
				k := frontKey{state.FrontClusterIP, netip.AddrPortFrom(a, p.Port), p.Protocol}
				out[k] = append(out[k], owner{name: s.Name, svc: s, port: p.Name, found: true})
			}
		}
	}
	for _, p := range t.Pods.All() {
		for _, h := range p.HostPorts {
			name := state.Name{Namespace: p.Name.Namespace, Name: fmt.Sprintf("%s/host-port/%d", p.Name.Name, h.HostPort)}
			for _, a := range hostAddrs(h.HostIP) {
				k := frontKey{state.FrontHostPort, netip.AddrPortFrom(a, h.HostPort), h.Protocol}
				out[k] = append(out[k], owner{name: name, ips: p.IPs, found: true})
			}
		}
	}
	return out
}

func hostAddrs(a netip.Addr) []netip.Addr {
	if a.IsValid() && !a.IsUnspecified() {
		return []netip.Addr{a}
	}
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
}

// servicePort is one element of map svc with what its blocks lead to.
type servicePort struct {
	bpf.Svc
	owner
	all, local []api.BackendAddress
}

// join reads what Services takes from maps and tables, each once.
type join struct {
	*Maps
	t       *state.Tables
	self    string // this node's name
	addrs   []addrRow
	ports   map[uint32]*servicePort
	present map[endpoint]uint8 // state by address, read when asked for
}

type endpoint struct {
	addr  netip.AddrPort
	proto uint8
}

type addrRow struct {
	ip       netip.Addr
	nodePort bool
}

// Services lists the frontends that programs know, in the order of their numbers, with the backends
// that callers get there. Names, nodes and zones come from the tables. A frontend without address
// is followed by the addresses of this node that stand for it. One whose callers inside and outside
// get other backends is listed for both scopes.
func (d *Maps) Services(t *state.Tables) ([]api.Service, error) {
	fs, err := d.frontends()
	if err != nil {
		return nil, err
	}
	j := join{Maps: d, t: t, ports: map[uint32]*servicePort{}}
	for _, n := range t.Nodes.All() {
		if n.Local {
			j.self = n.Name
		}
	}
	if err := j.nodeAddrs(); err != nil {
		return nil, err
	}
	if err := j.read(fs); err != nil {
		return nil, err
	}
	slices.SortStableFunc(fs, func(a, b frontend) int {
		return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.flags>>bpf.FrontTypeShift, b.flags>>bpf.FrontTypeShift))
	})
	out := []api.Service{}
	for _, f := range fs {
		p := j.ports[f.id]
		out = append(out, p.rows(f)...)
		if !f.addr.Addr().IsUnspecified() {
			continue
		}
		for _, a := range j.addrs {
			if a.ip.Is6() != f.addr.Addr().Is6() || !a.nodePort && f.flags&bpf.FrontThisNode == 0 {
				continue
			}
			g := f
			g.addr = netip.AddrPortFrom(a.ip, f.addr.Port())
			out = append(out, p.rows(g)...)
		}
	}
	return out, nil
}

// nodeAddrs are the addresses of this node.
func (j *join) nodeAddrs() error {
	rows, err := read[bpf.AddrKey, bpf.Addr](j.Maps, "addr")
	if err != nil {
		return err
	}
	for _, r := range rows {
		if r.val.Kind == bpf.AddrLocalNode {
			j.addrs = append(j.addrs, addrRow{bpf.FromIP(r.key.Ip), r.val.Flags&bpf.AddrNodePort != 0})
		}
	}
	slices.SortFunc(j.addrs, func(a, b addrRow) int { return a.ip.Compare(b.ip) })
	return nil
}

// read fills the Service ports of the frontends.
func (j *join) read(fs []frontend) error {
	names := owners(j.t)
	for _, f := range fs {
		p := j.ports[f.id]
		if p == nil {
			s, err := at[bpf.Svc](j.Maps, "svc", f.id)
			if err != nil {
				return err
			}
			p = &servicePort{Svc: s}
			j.ports[f.id] = p
		}
		// The primary frontend says whose port it is; the others share its element.
		claims := names[frontKey{f.kind(), f.addr, protoName(f.proto)}]
		if len(claims) == 0 || p.found {
			continue
		}
		p.owner = claims[0]
		if len(claims) > 1 {
			if err := j.choose(p, f, claims); err != nil {
				return err
			}
		}
		if err := j.backendsOf(p, f); err != nil {
			return err
		}
	}
	for _, f := range fs { // what no object of Kubernetes claims
		if p := j.ports[f.id]; !p.found {
			p.found = true
			if err := j.backendsOf(p, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// choose finds the pod that has a HostPort by the backend.
func (j *join) choose(p *servicePort, f frontend, claims []owner) error {
	b, err := j.block(p.BlkAll, nil, f.kind())
	if err != nil || len(b) == 0 {
		return err
	}
	for _, c := range claims {
		if slices.ContainsFunc(c.ips, func(a netip.Addr) bool { return a.String() == b[0].IP }) {
			p.owner = c
			return nil
		}
	}
	return nil
}

// backendsOf reads both blocks of a Service port, and adds what is draining.
func (j *join) backendsOf(p *servicePort, f frontend) error {
	places := map[netip.Addr]state.SliceEndpoint{}
	var leaving []netip.AddrPort
	for _, sl := range j.t.EndpointSlices.ByIndex("service", p.name.String()) {
		if sl.IPv6 != f.addr.Addr().Is6() {
			continue
		}
		for _, e := range sl.Endpoints {
			for _, a := range e.Addresses {
				places[a] = e
				for _, sp := range sl.Ports {
					if e.Terminating && sp.Name == p.port && sp.Protocol == protoName(f.proto) {
						leaving = append(leaving, netip.AddrPortFrom(a, sp.Port))
					}
				}
			}
		}
	}
	var err error
	if p.all, err = j.block(p.BlkAll, places, f.kind()); err != nil {
		return err
	}
	if p.local, err = j.block(p.BlkLocal, places, f.kind()); err != nil {
		return err
	}
	for _, a := range leaving {
		st, err := j.stateOf(endpoint{a, f.proto})
		if err != nil {
			return err
		}
		if st != bpf.BackendTerminating {
			continue
		}
		b := j.address(a, f.proto, st, places, f.kind())
		same := func(x api.BackendAddress) bool { return x.IP == b.IP && x.Port == b.Port }
		if !slices.ContainsFunc(p.all, same) {
			p.all = append(p.all, b)
		}
		if b.NodeName == j.self && !slices.ContainsFunc(p.local, same) {
			p.local = append(p.local, b)
		}
	}
	return nil
}

func (j *join) block(v uint64, places map[netip.Addr]state.SliceEndpoint, kind state.FrontType) ([]api.BackendAddress, error) {
	ids, err := j.slotsOf(v)
	if err != nil {
		return nil, err
	}
	out := []api.BackendAddress{}
	for _, id := range ids {
		b, err := at[bpf.Backend](j.Maps, "backend", id)
		if err != nil {
			return nil, err
		}
		if b.State == bpf.BackendGone {
			continue // programs look for another
		}
		out = append(out, j.address(netip.AddrPortFrom(bpf.FromIP(b.Ip), bpf.Port(b.Port)), b.Proto, b.State, places, kind))
	}
	return out, nil
}

func (j *join) address(a netip.AddrPort, proto, st uint8, places map[netip.Addr]state.SliceEndpoint, kind state.FrontType) api.BackendAddress {
	e := places[a.Addr()]
	b := api.BackendAddress{
		IP: a.Addr().String(), Port: a.Port(), Protocol: protoName(proto), State: word(backendStates, st),
		NodeName: e.NodeName, Zone: e.Zone,
	}
	if kind == state.FrontHostPort {
		b.NodeName = j.self
	}
	return b
}

// stateOf is the state of a backend by its address; gone when there is none.
func (j *join) stateOf(e endpoint) (uint8, error) {
	if j.present == nil {
		rows, err := read[uint32, bpf.Backend](j.Maps, "backend")
		if err != nil {
			return 0, err
		}
		j.present = map[endpoint]uint8{}
		for _, r := range rows {
			if r.val.State != bpf.BackendGone {
				j.present[endpoint{netip.AddrPortFrom(bpf.FromIP(r.val.Ip), bpf.Port(r.val.Port)), r.val.Proto}] = r.val.State
			}
		}
	}
	return j.present[e], nil
}

// rows are a frontend as clients of the API know it. Callers outside, and those of a ClusterIP,
// follow the policy for them; others inside may use every backend.
func (p *servicePort) rows(f frontend) []api.Service {
	external := p.Flags&bpf.SvcExternalLocal != 0
	row := func(scope string, backends []api.BackendAddress) api.Service {
		spec := api.ServiceSpec{
			ID:       int64(f.id),
			Frontend: api.FrontendAddress{IP: f.addr.Addr().String(), Port: f.addr.Port(), Protocol: protoName(f.proto), Scope: scope},
			Backends: backends,
			Flags: api.ServiceSpecFlags{
				Type: string(f.kind()), Namespace: p.name.Namespace, Name: p.name.Name,
				TrafficPolicy: localOrCluster(external), ExtTrafficPolicy: localOrCluster(external),
				IntTrafficPolicy:    localOrCluster(p.Flags&bpf.SvcInternalLocal != 0),
				HealthCheckNodePort: p.svc.HealthCheckNodePort,
			},
		}
		return api.Service{Spec: spec, Status: &api.ServiceStatus{Realized: spec}}
	}
	switch {
	case f.kind() == state.FrontClusterIP && p.Flags&bpf.SvcInternalLocal != 0:
		return []api.Service{row("external", p.local)}
	case f.kind() == state.FrontClusterIP || !external:
		return []api.Service{row("external", p.all)}
	}
	return []api.Service{row("external", p.local), row("internal", p.all)}
}

func localOrCluster(local bool) string {
	if local {
		return "Local"
	}
	return "Cluster"
}

// viewSources lists who may use the frontends that not everybody may.
func (d *Maps) viewSources() ([]api.MapEntry, error) {
	rows, err := read[bpf.SrcrangeKey, uint32](d, "srcrange")
	if err != nil {
		return nil, err
	}
	fs, err := d.frontends()
	if err != nil {
		return nil, err
	}
	limited := map[uint32][]string{}
	for _, f := range fs {
		if f.flags&bpf.FrontSources != 0 {
			limited[f.id] = append(limited[f.id], f.String())
		}
	}
	var out []api.MapEntry
	for _, r := range rows {
		out = append(out, api.MapEntry{
			Key:   fmt.Sprintf("%s (%d)", prefixOf(bpf.CidrKey{Plen: r.key.Plen, Ip: r.key.Ip}), r.key.SvcId),
			Value: strings.Join(limited[r.key.SvcId], ", "),
		})
	}
	return sortEntries(out), nil
}

// viewAffinity lists which client keeps which backend.
func (d *Maps) viewAffinity() ([]api.MapEntry, error) {
	rows, err := read[bpf.AffKey, bpf.Aff](d, "aff")
	if err != nil {
		return nil, err
	}
	now := tick()
	var out []api.MapEntry
	for _, r := range rows {
		client := "network namespace of cookie " + fmt.Sprint(binary.NativeEndian.Uint64(r.key.Client[:8]))
		if r.key.IsCookie == 0 {
			client = bpf.FromIP(r.key.Client).String()
		}
		b, err := at[bpf.Backend](d, "backend", r.val.BackendId)
		if err != nil {
			return nil, err
		}
		out = append(out, api.MapEntry{
			Key:   fmt.Sprintf("%s (%d)", client, r.key.SvcId),
			Value: fmt.Sprintf("%s (%d) idle=%s", backendAddr(b), r.val.BackendId, idle(r.val.Seen, now)),
		})
	}
	return sortEntries(out), nil
}

// viewMaglev lists the Service ports that have a table and how much of it each backend has. A table
// itself is long: Maglev has it.
func (d *Maps) viewMaglev() ([]api.MapEntry, error) {
	fs, err := d.frontends()
	if err != nil || d.MaglevSize == 0 {
		return nil, err
	}
	seen := map[uint32]bool{}
	var out []api.MapEntry
	for _, f := range fs {
		if seen[f.id] {
			continue
		}
		seen[f.id] = true
		table, err := d.maglev(f.id)
		if err != nil {
			return nil, err
		}
		if table == nil {
			continue
		}
		share := map[uint32]int{}
		for _, id := range table {
			share[id]++
		}
		var parts []string
		for _, id := range slices.Sorted(maps.Keys(share)) {
			parts = append(parts, fmt.Sprintf("%d: %d", id, share[id]))
		}
		out = append(out, api.MapEntry{Key: fmt.Sprint(f.id), Value: fmt.Sprintf("%d entries by backend [%s]", len(table), strings.Join(parts, ", "))})
	}
	slices.SortStableFunc(out, func(a, b api.MapEntry) int {
		return cmp.Or(cmp.Compare(len(a.Key), len(b.Key)), cmp.Compare(a.Key, b.Key))
	})
	return out, nil
}

// viewMaglevTable is the whole table of one Service port.
func (d *Maps) viewMaglevTable(id uint32) ([]api.MapEntry, error) {
	table, err := d.maglev(id)
	if err != nil || table == nil {
		return nil, err
	}
	return []api.MapEntry{{Key: fmt.Sprint(id), Value: strings.ReplaceAll(fmt.Sprint(table), " ", ", ")}}, nil
}

// maglev reads a table of backend ids; nil when the Service port has none.
func (d *Maps) maglev(id uint32) ([]uint32, error) {
	if d.MaglevSize == 0 || d.maps["maglev"] == nil {
		return nil, nil
	}
	s, err := at[bpf.Svc](d, "svc", id)
	if err != nil || s.Maglev == 0 {
		return nil, err
	}
	d.mu.Lock()                           // the first call maps it
	mem, err := d.maps["maglev"].Memory() // a look-up for each element would take too long
	d.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("map maglev: %w", err)
	}
	raw := make([]byte, 4*d.MaglevSize)
	if _, err := mem.ReadAt(raw, int64(s.Maglev)*int64(unsafe.Sizeof(bpf.Maglev{}))); err != nil {
		return nil, fmt.Errorf("table of service %d: %w", id, err)
	}
	out := make([]uint32, d.MaglevSize)
	for i := range out {
		out[i] = binary.NativeEndian.Uint32(raw[4*i:])
	}
	return out, nil
}
