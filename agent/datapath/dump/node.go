// SPDX-License-Identifier: Apache-2.0

package dump

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/bpf"
)

// addrKinds are the words of enum addr_kind.
var addrKinds = []string{"none", "local-endpoint", "remote-endpoint", "local-node", "remote-node", "gateway", "service", "identity"}

// cidrKinds are the words of enum cidr_kind.
var cidrKinds = []string{"none", "identity", "pods", "local-pods"}

func word(list []string, i uint8) string {
	if int(i) < len(list) {
		return list[i]
	}
	return fmt.Sprint(i)
}

func (d *Maps) eps() ([]api.MapEntry, error) {
	rows, err := read[uint32, bpf.Ep](d, "ep")
	var out []api.MapEntry
	for _, e := range rows {
		out = append(out, api.MapEntry{Key: fmt.Sprintf("ifindex %d", e.key), Value: epText(e.val)})
	}
	return sortEntries(out), err
}

func epText(e bpf.Ep) string {
	return fmt.Sprintf("id=%d sec_id=%d flags=0x%04x ifindex=%d mac=%s nodemac=%s", e.EpId, e.Identity, e.Flags, e.Ifindex,
		net.HardwareAddr(e.Mac[:]), net.HardwareAddr(e.NodeMac[:]))
}

// viewEndpoint lists what is local by address: pods, and the node itself.
func (d *Maps) viewEndpoint() ([]api.MapEntry, error) {
	eps, err := read[uint32, bpf.Ep](d, "ep")
	if err != nil {
		return nil, err
	}
	var out []api.MapEntry
	for _, e := range eps {
		if a := netip.AddrFrom4(e.val.Ipv4); !a.IsUnspecified() {
			out = append(out, api.MapEntry{Key: a.String(), Value: epText(e.val)})
		}
		if a := bpf.FromIP(e.val.Ipv6); a.IsValid() {
			out = append(out, api.MapEntry{Key: a.String(), Value: epText(e.val)})
		}
	}
	addrs, err := read[bpf.AddrKey, bpf.Addr](d, "addr")
	for _, e := range addrs {
		if e.val.Kind == bpf.AddrLocalNode || e.val.Kind == bpf.AddrGateway {
			out = append(out, api.MapEntry{Key: bpf.FromIP(e.key.Ip).String(), Value: "(localhost)"})
		}
	}
	return sortEntries(out), err
}

func (d *Maps) addrs() ([]api.MapEntry, error) {
	rows, err := read[bpf.AddrKey, bpf.Addr](d, "addr")
	var out []api.MapEntry
	for _, e := range rows {
		out = append(out, api.MapEntry{
			Key: bpf.FromIP(e.key.Ip).String(),
			Value: fmt.Sprintf("kind=%s identity=%d vtep=%d ifindex=%d endpoint=%d flags=0x%x",
				word(addrKinds, e.val.Kind), e.val.Identity, e.val.Vtep, e.val.Ifindex, e.val.EpId, e.val.Flags),
		})
	}
	return sortEntries(out), err
}

func (d *Maps) cidrs() ([]api.MapEntry, error) {
	rows, err := read[bpf.CidrKey, bpf.Cidr](d, "cidr")
	var out []api.MapEntry
	for _, e := range rows {
		out = append(out, api.MapEntry{
			Key: prefixOf(e.key).String(),
			Value: fmt.Sprintf("kind=%s identity=%d vtep=%d flags=0x%x",
				word(cidrKinds, e.val.Kind), e.val.Identity, e.val.Vtep, e.val.Flags),
		})
	}
	return sortEntries(out), err
}

// prefixOf is the inverse of bpf.CIDR: the 32 bits before the address always count.
func prefixOf(k bpf.CidrKey) netip.Prefix {
	bits := int(k.Plen) - 32
	a := netip.AddrFrom16(k.Ip)
	if a.Is4In6() && bits >= 96 {
		return netip.PrefixFrom(a.Unmap(), bits-96)
	}
	return netip.PrefixFrom(a, bits)
}

func (d *Maps) vteps() ([]api.MapEntry, error) {
	m := d.maps["vtep"]
	if m == nil {
		return nil, nil
	}
	var out []api.MapEntry
	rows, err := read[uint32, bpf.Vtep](d, "vtep")
	for _, e := range rows {
		if ip := bpf.FromIP(e.val.Ip); ip.IsValid() {
			out = append(out, api.MapEntry{
				Key: fmt.Sprint(e.key), Value: fmt.Sprintf("ip=%s key=%d mtu=%d", ip, e.val.Key, e.val.Mtu),
			})
		}
	}
	return out, err
}

func (d *Maps) vtepIP(i uint32) string {
	none := "0.0.0.0"
	if i == 0 {
		return none
	}
	v, err := at[bpf.Vtep](d, "vtep", i)
	if err != nil {
		return none
	}
	if ip := bpf.FromIP(v.Ip); ip.IsValid() {
		return ip.String()
	}
	return none
}

func (d *Maps) devs() ([]api.MapEntry, error) {
	rows, err := read[uint32, bpf.Dev](d, "dev")
	var out []api.MapEntry
	for _, e := range rows {
		masq4, masq6 := "-", "-"
		if a := netip.AddrFrom4(e.val.Masq4); !a.IsUnspecified() {
			masq4 = a.String()
		}
		if a := bpf.FromIP(e.val.Masq6); a.IsValid() {
			masq6 = a.String()
		}
		out = append(out, api.MapEntry{
			Key: fmt.Sprintf("ifindex %d", e.key),
			Value: fmt.Sprintf("masq4=%s masq6=%s mac=%s mtu=%d flags=0x%x", masq4, masq6,
				net.HardwareAddr(e.val.Mac[:]), e.val.Mtu, e.val.Flags),
		})
	}
	return sortEntries(out), err
}

// viewIPCache lists who addresses and prefixes are, in the words that users of Cilium grep for.
func (d *Maps) viewIPCache() ([]api.MapEntry, error) {
	addrs, err := read[bpf.AddrKey, bpf.Addr](d, "addr")
	if err != nil {
		return nil, err
	}
	type row struct {
		p     netip.Prefix
		value string
	}
	var rows []row
	for _, e := range addrs {
		if e.val.Kind == bpf.AddrVIP {
			continue
		}
		ip := bpf.FromIP(e.key.Ip)
		rows = append(rows, row{netip.PrefixFrom(ip, ip.BitLen()), d.ipcacheText(e.val.Identity, e.val.Vtep)})
	}
	cidrs, err := read[bpf.CidrKey, bpf.Cidr](d, "cidr")
	if err != nil {
		return nil, err
	}
	for _, e := range cidrs {
		rows = append(rows, row{prefixOf(e.key), d.ipcacheText(e.val.Identity, e.val.Vtep)})
	}
	out := make([]api.MapEntry, 0, len(rows))
	for _, r := range rows {
		out = append(out, api.MapEntry{Key: r.p.String(), Value: r.value})
	}
	return sortEntries(out), nil
}

func (d *Maps) ipcacheText(identity, vtep uint32) string {
	flags := "<none>"
	if vtep != 0 {
		flags = "hastunnel"
	}
	return fmt.Sprintf("identity=%d encryptkey=0 tunnelendpoint=%s flags=%s", identity, d.vtepIP(vtep), flags)
}

// viewTunnel lists the pod ranges of other nodes and the nodes behind them.
func (d *Maps) viewTunnel() ([]api.MapEntry, error) {
	rows, err := read[bpf.CidrKey, bpf.Cidr](d, "cidr")
	var out []api.MapEntry
	for _, e := range rows {
		if e.val.Kind == bpf.CIDRPod && e.val.Vtep != 0 {
			out = append(out, api.MapEntry{Key: prefixOf(e.key).String(), Value: d.vtepIP(e.val.Vtep)})
		}
	}
	return sortEntries(out), err
}

// metrics sums the per-CPU counters up.
func (d *Maps) metrics() ([]api.MapEntry, error) {
	counts, err := d.counters()
	var out []api.MapEntry
	for _, c := range counts {
		f := map[string]string{
			"reason": api.DropReason(c.key.Reason), "direction": direction(c.key.Dir),
			"packets": fmt.Sprint(c.val.Packets), "bytes": fmt.Sprint(c.val.Bytes),
			"line": "", "file": api.SourceFile(c.key.File),
		}
		if c.key.Line != 0 {
			f["line"] = fmt.Sprint(c.key.Line)
		}
		out = append(out, api.MapEntry{
			Key:    f["reason"] + " " + f["direction"] + " " + f["file"] + " " + f["line"],
			Value:  "packets=" + f["packets"] + " bytes=" + f["bytes"],
			Fields: f,
		})
	}
	return sortEntries(out), err
}

func (d *Maps) counters() ([]kv[bpf.MetricsKey, bpf.Metrics], error) {
	m := d.maps["metrics"]
	if m == nil {
		return nil, nil
	}
	rows, err := iterate[bpf.MetricsKey, []bpf.Metrics](m)
	out := make([]kv[bpf.MetricsKey, bpf.Metrics], 0, len(rows))
	for _, r := range rows {
		var sum bpf.Metrics
		for _, c := range r.val {
			sum.Packets += c.Packets
			sum.Bytes += c.Bytes
		}
		out = append(out, kv[bpf.MetricsKey, bpf.Metrics]{r.key, sum})
	}
	f := d.maps["forwarded"]
	if f == nil || f.Type() != ebpf.PerCPUArray {
		return out, err
	}
	for _, dir := range []uint8{bpf.MetricIngress, bpf.MetricEgress} {
		var cpus []bpf.Metrics
		if err := f.Lookup(uint32(dir), &cpus); err != nil {
			return nil, err
		}
		var sum bpf.Metrics
		for _, c := range cpus {
			sum.Packets += c.Packets
			sum.Bytes += c.Bytes
		}
		if sum.Packets > 0 {
			out = append(out, kv[bpf.MetricsKey, bpf.Metrics]{bpf.MetricsKey{Dir: dir}, sum})
		}
	}
	return out, err
}

func direction(d uint8) string {
	switch d {
	case bpf.MetricIngress:
		return "INGRESS"
	case bpf.MetricEgress:
		return "EGRESS"
	}
	return "SERVICE"
}

// Traffic gives the counters for the metrics; those of Services are left out.
func (d *Maps) Traffic() ([]api.TrafficCount, error) {
	counts, err := d.counters()
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	var out []api.TrafficCount
	for _, c := range counts {
		if c.key.Dir != bpf.MetricIngress && c.key.Dir != bpf.MetricEgress {
			continue
		}
		t := api.TrafficCount{Ingress: c.key.Dir == bpf.MetricIngress, Packets: c.val.Packets, Bytes: c.val.Bytes}
		if c.key.Reason != 0 {
			t.Reason = api.DropReason(c.key.Reason)
		}
		out = append(out, t)
	}
	return out, nil
}

func (d *Maps) budget() ([]api.MapEntry, error) {
	m := d.maps["evt_budget"]
	if m == nil || m.Type() != ebpf.PerCPUArray {
		return nil, nil
	}
	var cpus []bpf.EvtBudget
	if err := m.Lookup(uint32(0), &cpus); err != nil {
		return nil, err
	}
	var out []api.MapEntry
	for i, c := range cpus {
		out = append(out, api.MapEntry{
			Key:   fmt.Sprintf("cpu %d", i),
			Value: fmt.Sprintf("drops=%d traces=%d lost_ring=%d lost_rate=%d", c.Drops, c.Traces, c.LostRing, c.LostRate),
		})
	}
	return out, nil
}

func (d *Maps) cfg() ([]api.MapEntry, error) {
	if d.maps["cfg"] == nil {
		return nil, nil
	}
	c, err := at[bpf.RunCfg](d, "cfg", 0)
	if err != nil {
		return nil, err
	}
	return []api.MapEntry{{Key: "0", Value: fmt.Sprintf("trace_every=%d report_interval=%d drop_rate=%d trace_rate=%d vxlan_ifindex=%d handover=%d",
		c.TraceEvery, c.ReportInterval, c.DropRate, c.TraceRate, c.VxlanIfindex, c.Handover)}}, nil
}
