// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"slices"
	"testing"

	"lash.internal/lash/agent/state"
)

// TestJudgePod says which HostPorts are not open, and nothing of those that are.
func TestJudgePod(t *testing.T) {
	port := state.HostPort{HostPort: 4000, ContainerPort: 80, Protocol: "TCP"}
	at := func(ip string) state.HostPort {
		h := port
		h.HostIP = addrs(ip)[0]
		return h
	}
	taker := clusterIP("taker", "10.96.0.30")
	taker.Type, taker.Ports[0].NodePort = "NodePort", 4000
	older := pod("older", port)
	older.Created = -5
	for _, c := range []struct {
		name   string
		change func(*state.Pod)
		pods   []state.Pod
		with   []state.Service
		want   string
	}{
		{name: "nobody else", want: " "},
		{
			name: "an older pod", pods: []state.Pod{older},
			want: "HostPortNotOpen HostPort 0.0.0.0:4000/TCP is not open: pod default/older has it, which was there before; " +
				"HostPort [::]:4000/TCP is not open: pod default/older has it, which was there before",
		},
		{name: "at another address", change: func(p *state.Pod) { p.HostPorts = []state.HostPort{at("192.0.2.1")} }, pods: []state.Pod{older}, want: " "},
		{name: "an older pod, and this one ends", change: func(p *state.Pod) { p.Terminating = true }, pods: []state.Pod{older}, want: " "},
		{name: "a Service", with: []state.Service{taker}, want: "HostPortNotOpen HostPort 0.0.0.0:4000/TCP is not open: Service default/taker has it"},
		{
			name: "a family that the pod lacks", change: func(p *state.Pod) { p.IPs, p.HostPorts = addrs("10.1.0.7"), []state.HostPort{at("2001:db8::1"), port} },
			want: "HostPortNotOpen HostPort 4000/TCP is not open at 2001:db8::1: the pod has no IPv6 address",
		},
		{name: "it has no address yet", change: func(p *state.Pod) { p.IPs, p.HostPorts = nil, []state.HostPort{at("2001:db8::1")} }, want: " "},
	} {
		v := View{Tables: state.NewTables(), Enabled: true, IPv4: true, IPv6: true}
		p := pod("web", port)
		if c.change != nil {
			c.change(&p)
		}
		tx := v.Tables.DB.WriteTxn()
		for _, o := range append(c.pods, p) {
			v.Tables.Pods.Insert(tx, o)
		}
		for _, s := range c.with {
			v.Tables.Services.Insert(tx, s)
		}
		tx.Commit()
		got, ok := v.JudgePod(p.Name)
		if text := fmt.Sprint(got.Reason, " ", got.Message); ok != (c.want != " ") || ok && text != c.want {
			t.Errorf("%s: got %s\nwant %s", c.name, text, c.want)
		}
		for _, o := range c.pods {
			if got, ok := v.JudgePod(o.Name); ok {
				t.Errorf("%s: the holder is blamed: %v", c.name, got)
			}
			if !slices.Contains(v.PodsAt(v.HostPorts(o)[0]), o.Name) {
				t.Errorf("%s: %s is not at its port", c.name, o.Name)
			}
		}
		v.Enabled = false
		if got, ok := v.JudgePod(p.Name); ok {
			t.Errorf("%s: with kube-proxy %v", c.name, got)
		}
	}
}
