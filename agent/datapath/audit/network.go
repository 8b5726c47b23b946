// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"errors"
	"fmt"
	"net"
	"strings"

	nl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lash.internal/lash/agent/datapath/attach"
	"lash.internal/lash/agent/datapath/netlink"
)

// network looks at devices and at what hangs on them, in the network namespace of the process.
func (a *audit) network() {
	links, err := nl.LinkList()
	if err != nil {
		a.problem("devices", err)
		return
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		a.device(l, names)
	}
	for _, family := range []int{nl.FAMILY_V4, nl.FAMILY_V6} {
		a.routes(family, names)
		a.rules(family)
		a.neighbours(family, names)
	}
}

// deviceOurs says whether a device is one that Lash makes.
func deviceOurs(name string) string {
	if netlink.Ours(name) {
		return "a device of Lash"
	}
	return ""
}

func (a *audit) device(l nl.Link, names map[int]string) {
	at := l.Attrs()
	words := []string{l.Type(), fmt.Sprintf("mtu %d", at.MTU)}
	if at.Flags&net.FlagUp != 0 {
		words = append(words, "up")
	}
	if m := names[at.MasterIndex]; m != "" {
		words = append(words, "master "+m)
	}
	if at.Alias != "" {
		words = append(words, "alias "+at.Alias)
	}
	a.add("device", at.Name, strings.Join(words, " "), deviceOurs(at.Name))
	addrs, err := nl.AddrList(l, nl.FAMILY_ALL)
	a.problem("addresses of "+at.Name, gone(err))
	for _, x := range addrs {
		a.add("address", at.Name+" "+x.IPNet.String(), fmt.Sprintf("scope %d", x.Scope), deviceOurs(at.Name))
	}
	queues, err := nl.QdiscList(l)
	a.problem("queues of "+at.Name, gone(err))
	for _, q := range queues {
		if q.Type() == "noqueue" {
			continue // the absence of one
		}
		a.add("queue", at.Name+" "+q.Type(), "", deviceOurs(at.Name))
	}
	for _, egress := range []bool{false, true} {
		side := "ingress"
		if egress {
			side = "egress"
		}
		seen, err := attach.OnDevice(attach.Hook{Ifindex: at.Index, Egress: egress})
		if errors.Is(err, attach.ErrNoDevice) {
			continue
		}
		a.problem("programs on "+at.Name, err)
		for _, s := range seen {
			a.program(at.Name+" "+side, s)
		}
	}
	if at.Xdp != nil && at.Xdp.Attached {
		a.add("program", at.Name+" xdp", fmt.Sprintf("id %d", at.Xdp.ProgId), "")
	}
}

// gone drops the error of a device that was removed while it was looked at.
func gone(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func (a *audit) routes(family int, names map[int]string) {
	list, err := nl.RouteListFiltered(family, &nl.Route{Table: unix.RT_TABLE_UNSPEC}, nl.RT_FILTER_TABLE)
	a.problem("routes", err)
	for _, r := range list {
		dst := "default"
		if r.Dst != nil {
			dst = r.Dst.String()
		}
		name := fmt.Sprintf("table %d %s", r.Table, dst)
		ours := deviceOurs(names[r.LinkIndex])
		if d := names[r.LinkIndex]; d != "" {
			name += " dev " + d
		}
		words := []string{fmt.Sprintf("type %d proto %d metric %d", r.Type, int(r.Protocol), r.Priority)}
		if len(r.Gw) > 0 {
			words = append(words, "via "+r.Gw.String())
		}
		if len(r.Src) > 0 {
			words = append(words, "src "+r.Src.String())
		}
		if r.MTU > 0 {
			words = append(words, fmt.Sprintf("mtu %d", r.MTU))
		}
		if r.Protocol == netlink.RouteProtocol {
			ours = fmt.Sprintf("a route of Lash (protocol %d)", netlink.RouteProtocol)
		}
		a.add("route", name, strings.Join(words, " "), ours)
	}
}

func (a *audit) rules(family int) {
	list, err := nl.RuleList(family)
	a.problem("rules", err)
	for _, r := range list {
		ours := ""
		if r.Protocol == netlink.RouteProtocol {
			ours = fmt.Sprintf("a rule of Lash (protocol %d)", netlink.RouteProtocol)
		}
		a.add("rule", fmt.Sprintf("family %d %s", family, r.String()), fmt.Sprintf("proto %d", r.Protocol), ours)
	}
}

// neighbours lists the permanent ones; the others come and go.
func (a *audit) neighbours(family int, names map[int]string) {
	list, err := nl.NeighList(0, family)
	a.problem("neighbours", err)
	for _, n := range list {
		if n.State&nl.NUD_PERMANENT == 0 || n.IP.IsMulticast() {
			continue
		}
		dev := names[n.LinkIndex]
		a.add("neighbour", n.IP.String()+" dev "+dev, n.HardwareAddr.String(), deviceOurs(dev))
	}
}
